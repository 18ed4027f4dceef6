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
