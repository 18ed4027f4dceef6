//! The machine itself: who we are on it, kernel, systemd, control groups, clock, TPM.

use super::{GIB, ok, outcome};
use crate::doctor::facts::{Cgroup, Facts};
use crate::doctor::{Outcome, Severity};
use crate::inventory::Probe;

pub(super) fn machine(facts: &Facts) -> Outcome {
    let inventory = &facts.inventory;
    if facts.uid != 0 {
        return outcome(
            Severity::Fail,
            "doctor doesn't run as root, so half of what it sees would be wrong",
            format!("uid {}", facts.uid),
        )
        .fix("run it again as root");
    }
    let cpu = &inventory.cpu;
    let memory = match inventory.memory.total_bytes.known() {
        Some(bytes) => format!("{} GiB of memory", bytes / GIB),
        None => "memory of unknown size".to_owned(),
    };
    let place = inventory
        .hypervisor
        .as_ref()
        .map(|h| format!(", a VM under {h}"))
        .unwrap_or_default();
    ok(format!(
        "{}, {} cores, {} sockets, {} threads, {memory}{place}",
        cpu.name, cpu.cores, cpu.sockets, cpu.threads
    ))
}

pub(super) fn kernel(facts: &Facts) -> Outcome {
    let kernel = &facts.inventory.kernel;
    match (&kernel.release, kernel.version()) {
        (Probe::Known(release), Some(version)) if version >= (6, 1) => ok(format!("Linux {release}")),
        (Probe::Known(release), _) => outcome(
            Severity::Warn,
            "the kernel is older than what hostd is tested on",
            release.clone(),
        )
        .fix("run Linux 6.1 or newer (6.11 for SEV-SNP, 6.16 for TDX)"),
        (Probe::Unknown(why), _) => outcome(Severity::Warn, "the kernel's release is unknown", why.clone()),
    }
}

pub(super) fn systemd(facts: &Facts) -> Outcome {
    if facts.systemd {
        return ok("systemd is PID 1: each VM gets a unit of its own");
    }
    outcome(
        Severity::Warn,
        "systemd isn't PID 1: VMs run as session leaders, without units",
        "/run/systemd/system is missing",
    )
    .fix("run hostd on a machine that systemd started; without it nothing limits what a VMM process takes")
}

pub(super) fn cgroup(facts: &Facts) -> Outcome {
    let fix = "boot with systemd.unified_cgroup_hierarchy=1";
    match &facts.cgroup {
        Cgroup::V2(has) => {
            let lacks: Vec<&str> = ["cpu", "io", "memory", "pids"]
                .into_iter()
                .filter(|c| !has.contains(*c))
                .collect();
            if lacks.is_empty() {
                return ok("control groups v2 with cpu, io, memory and pids");
            }
            outcome(
                Severity::Warn,
                format!("control groups v2 lack {}", lacks.join(", ")),
                "/sys/fs/cgroup/cgroup.controllers",
            )
            .fix("enable the controllers in the kernel, and look for v1 hierarchies that hold them")
        }
        Cgroup::V1 => outcome(
            Severity::Warn,
            "control groups are version 1: VMs aren't limited by them",
            "/sys/fs/cgroup",
        )
        .fix(fix),
        Cgroup::None => outcome(Severity::Warn, "no control groups are mounted", "/sys/fs/cgroup").fix(fix),
    }
}

pub(super) fn clock(facts: &Facts) -> Outcome {
    match &facts.clock_synchronized {
        Probe::Known(true) => ok("the clock is steered by NTP"),
        Probe::Known(false) => outcome(Severity::Warn, "nothing steers the clock", "adjtimex: unsynchronized")
            .fix("systemctl enable --now systemd-timesyncd (or chrony); the ledger refuses requests from clocks 5 minutes off"),
        Probe::Unknown(why) => outcome(Severity::Info, "whether the clock is steered is unknown", why.clone()),
    }
}

pub(super) fn tpm(facts: &Facts) -> Outcome {
    match facts.inventory.tpm.as_ref().map(|tpm| (&tpm.name, &tpm.version)) {
        Some((name, Probe::Known(2))) => ok(format!("TPM 2.0 ({name})")),
        Some((name, version)) => outcome(
            Severity::Warn,
            "the TPM isn't a TPM 2.0",
            format!("{name}: {version:?}"),
        )
        .fix("switch the firmware's TPM to version 2.0 (AMD fTPM or Intel PTT)"),
        None => outcome(
            Severity::Info,
            "no TPM: plain VMs can't reach the grade host-verified",
            "/sys/class/tpm is empty",
        )
        .fix("enable the firmware's TPM (AMD fTPM or Intel PTT)"),
    }
}

pub(super) fn secure_boot(facts: &Facts) -> Outcome {
    let boot = &facts.inventory.boot;
    // Only the appliance can boot with the provider's own keys; elsewhere it is a fact, no fault.
    let severity = if boot.image.is_some() {
        Severity::Warn
    } else {
        Severity::Info
    };
    match (&boot.secure_boot, &boot.setup_mode) {
        (Probe::Known(true), _) => ok("secure boot is on: the firmware starts only signed images"),
        (Probe::Known(false), Probe::Known(true)) => outcome(
            severity,
            "secure boot is off and the firmware is in setup mode: whoever boots next may put in their keys",
            "efivars: SecureBoot = 0, SetupMode = 1",
        )
        .fix("boot the appliance's stick once more: systemd-boot enrols its keys in setup mode, then the firmware leaves it"),
        (Probe::Known(false), _) => outcome(
            severity,
            "secure boot is off: whoever can write the disk can change what boots",
            "efivars: SecureBoot = 0",
        )
        .fix("in the firmware: Security → Secure Boot = Enabled, Secure Boot Mode = Custom; to enrol new keys first Reset To \
              Setup Mode (Dell: Secure Boot Policy = Custom; HPE: Secure Boot Enforcement = Enabled; Supermicro: Secure Boot → \
              Key Management)"),
        (Probe::Unknown(why), _) => outcome(severity, "whether secure boot is on is unknown", why.clone())
            .fix("boot by UEFI (in the firmware: CSM Support = Disabled, Boot Mode = UEFI)"),
    }
}

pub(super) fn measured_boot(facts: &Facts) -> Outcome {
    let inventory = &facts.inventory;
    match (&inventory.tpm, &inventory.boot.event_log_bytes) {
        (None, _) => outcome(Severity::Info, "the boot isn't measured: there is no TPM", "/sys/class/tpm is empty")
            .fix("enable the firmware's TPM (AMD fTPM or Intel PTT)"),
        (Some(_), Probe::Known(bytes @ 1..)) => ok(format!("the boot is measured: an event log of {bytes} bytes")),
        (Some(_), Probe::Known(0)) => outcome(Severity::Warn, "the firmware's event log is empty", "/sys/kernel/security/tpm0")
            .fix("in the firmware: Security Device Support = Enabled, SHA256 PCR Bank = Enabled; then boot by UEFI"),
        (Some(_), Probe::Unknown(why)) => outcome(
            Severity::Info,
            "the firmware's event log can't be read, so no quote of this host can be explained",
            why.clone(),
        )
        .fix("mount -t securityfs none /sys/kernel/security; if it is mounted: in the firmware SHA256 PCR Bank = Enabled, and \
              boot by UEFI"),
    }
}

pub(super) fn microcode(facts: &Facts) -> Outcome {
    let cpu = &facts.inventory.cpu;
    let open: Vec<String> = facts
        .vulnerabilities
        .iter()
        .filter(|(_, state)| state.starts_with("Vulnerable") || state.contains("no microcode"))
        .map(|(name, state)| format!("{name}: {state}"))
        .collect();
    let revision = cpu.microcode.as_deref().unwrap_or("unknown");
    if open.is_empty() {
        return ok(format!(
            "microcode revision {revision}; the kernel knows of no open fault of these processors"
        ));
    }
    let (severity, fix) = if facts.inventory.hypervisor.is_some() {
        (Severity::Info, "this machine is a VM: its host has to be updated")
    } else {
        let fix = if cpu.vendor == "AuthenticAMD" {
            "update the firmware (newest AGESA) and the microcode (a newer image; elsewhere apt install amd64-microcode), then reboot. Tenants' TCB floors ask for it: \
             the microcode's revision is part of every SEV-SNP report"
        } else {
            "update the firmware (newest IPU) and the microcode (a newer image; elsewhere apt install intel-microcode), then reboot. It is part of the TCB level that \
             Intel judges TDX quotes by"
        };
        (Severity::Warn, fix)
    };
    outcome(
        severity,
        format!(
            "{} known faults of these processors are open at microcode revision {revision}",
            open.len()
        ),
        open.join("; "),
    )
    .fix(fix)
}

pub(super) fn update(facts: &Facts) -> Outcome {
    let boot = &facts.inventory.boot;
    let Some(image) = &boot.image else {
        return ok("this isn't the appliance: updates are the distribution's");
    };
    let version = image.version.as_deref().unwrap_or("without a version");
    if boot.on_trial {
        return outcome(
            Severity::Warn,
            format!("image {} {version} is on trial: it isn't marked good yet", image.id),
            "efivars: LoaderBootCountPath",
        )
        .fix("systemctl status boot-complete.target systemd-bless-boot.service says what it waits for; after its last try the \
              machine returns to the image before by itself");
    }
    ok(format!("image {} {version}, marked good", image.id))
}
