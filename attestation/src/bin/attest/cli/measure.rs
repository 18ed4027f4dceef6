//! `attest measure`: reference values.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use attestation::measure::{
    self, DirectBoot, IgvmIdBlock, IgvmLaunch, IgvmLoader, IgvmMeasurement, SnpLaunch, VcpuType, Vmm,
};
use serde_json::{Value, json};

use super::input;

const FILE_MAX: u64 = 4 << 30;
const IGVM_MAX: u64 = 1 << 30;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// The launch digest of an SEV-SNP guest: what its report will have as MEASUREMENT
    Snp(Snp),
    /// MRTD and RTMR0 to RTMR2 of an Intel TDX guest
    Tdx(Box<super::measure_tdx::Tdx>),
}

#[derive(Debug, clap::Args)]
pub(super) struct Snp {
    /// OVMF with SEV metadata (Debian: ovmf-amdsev)
    #[arg(
        long,
        value_name = "FILE",
        requires = "vcpus",
        required_unless_present = "igvm"
    )]
    firmware: Option<PathBuf>,
    /// IGVM file, with firmware and vCPUs in it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["firmware", "guest_features"])]
    igvm: Option<PathBuf>,
    /// vCPUs at the launch (an IGVM file: as many as it has states for)
    #[arg(long, value_name = "N")]
    vcpus: Option<u32>,
    /// Their type: QEMU's name of an AMD model
    #[arg(long, value_name = "TYPE", default_value = "EPYC-v4")]
    vcpu_type: VcpuType,
    /// Kernel that is booted directly, with kernel-hashes=on
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Its initrd
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Its command line, exactly as the VMM gets it
    #[arg(long, value_name = "CMDLINE", requires = "kernel", allow_hyphen_values = true)]
    append: Option<String>,
    /// SEV_FEATURES of the vCPUs
    #[arg(long, value_name = "HEX", default_value = "0x1", value_parser = features)]
    guest_features: u64,
    /// Which VMM sets up the guest [default: qemu; an IGVM file: any that keeps to the format]
    #[arg(long, value_enum)]
    vmm: Option<VmmArg>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum VmmArg {
    Qemu,
    Ec2,
    Gce,
    /// IGVM files only
    CloudHypervisor,
}

fn features(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).map_err(|e| e.to_string())
}

pub(super) fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Snp(args) => snp(args),
        Command::Tdx(args) => super::measure_tdx::run(args),
    }
}

fn snp(args: &Snp) -> Result<ExitCode> {
    let direct_boot = direct_boot(args)?;
    match (&args.firmware, &args.igvm) {
        (_, Some(igvm)) => snp_igvm(args, &input::read(igvm, IGVM_MAX)?, direct_boot),
        (Some(firmware), None) => snp_firmware(args, &input::read(firmware, FILE_MAX)?, direct_boot),
        (None, None) => bail!("--firmware or --igvm is needed"),
    }
}

fn direct_boot(args: &Snp) -> Result<Option<DirectBoot>> {
    let Some(kernel) = &args.kernel else {
        return Ok(None);
    };
    let kernel = input::read(kernel, FILE_MAX)?;
    ensure!(!kernel.is_empty(), "the kernel is an empty file");
    let initrd = args.initrd.as_ref();
    let initrd = initrd.map(|initrd| input::read(initrd, FILE_MAX)).transpose()?;
    let append = args.append.as_deref().unwrap_or_default();
    Ok(Some(DirectBoot::new(&kernel, initrd.as_deref(), append)))
}

fn kernel_hashes(direct_boot: Option<DirectBoot>) -> Value {
    direct_boot.map_or(Value::Null, |boot| {
        json!({
            "kernel": hex::encode(boot.kernel),
            "initrd": hex::encode(boot.initrd),
            "cmdline": hex::encode(boot.cmdline),
        })
    })
}

fn snp_firmware(args: &Snp, firmware: &[u8], direct_boot: Option<DirectBoot>) -> Result<ExitCode> {
    let launch = SnpLaunch {
        firmware,
        vcpus: args.vcpus.unwrap_or(1),
        vcpu: args.vcpu_type,
        direct_boot,
        guest_features: args.guest_features,
        vmm: match args.vmm {
            None | Some(VmmArg::Qemu) => Vmm::Qemu,
            Some(VmmArg::Ec2) => Vmm::Ec2,
            Some(VmmArg::Gce) => Vmm::Gce,
            Some(VmmArg::CloudHypervisor) => {
                bail!("Cloud Hypervisor launches SEV-SNP guests from an IGVM file: --igvm")
            }
        },
        firmware_digest: None,
    };
    let digest = hex::encode(measure::snp(&launch)?);
    if args.json {
        let shown = json!({
            "kind": "sev-snp",
            "measurement": digest,
            "vcpus": launch.vcpus,
            "vcpu_signature": args.vcpu_type.to_string(),
            "guest_features": format!("{:#x}", args.guest_features),
            "kernel_hashes": kernel_hashes(direct_boot),
        });
        outln!("{shown:#}");
    } else {
        outln!("{digest}");
    }
    Ok(ExitCode::SUCCESS)
}

/// A file whose ID block expects another digest, or isn't signed, is refused: no chip launches it.
fn snp_igvm(args: &Snp, file: &[u8], direct_boot: Option<DirectBoot>) -> Result<ExitCode> {
    let measured = measure::snp_igvm(&IgvmLaunch {
        file,
        loader: match args.vmm {
            None => IgvmLoader::Format,
            Some(VmmArg::Qemu) => IgvmLoader::Qemu,
            Some(VmmArg::CloudHypervisor) => IgvmLoader::CloudHypervisor,
            Some(VmmArg::Ec2 | VmmArg::Gce) => bail!("EC2 and GCE load no IGVM files of a tenant's"),
        },
        vcpus: args.vcpus,
        vcpu: args.vcpu_type,
        direct_boot,
    })?;
    if args.json {
        let shown = json!({
            "kind": "sev-snp",
            "measurement": hex::encode(measured.digest),
            "policy": measured.policy.map(|policy| format!("{policy:#x}")),
            "vcpus": measured.vcpus,
            "guest_features": format!("{:#x}", measured.guest_features),
            "pages": measured.pages,
            "kernel_hashes": kernel_hashes(direct_boot),
            "id_block": measured.id_block.as_ref().map(id_block),
        });
        outln!("{shown:#}");
    } else {
        outln!("{}", hex::encode(measured.digest));
        about(&measured);
    }
    let wrong = |block: &IgvmIdBlock| {
        let expects = (block.digest != measured.digest)
            .then(|| format!("the file's ID block expects {}", hex::encode(block.digest)));
        expects.or_else(|| {
            (!block.signed).then(|| "the signatures of the file's ID block don't hold".to_owned())
        })
    };
    match measured.id_block.as_ref().and_then(wrong) {
        Some(wrong) => {
            eprintln!("{wrong}: the chip would refuse the launch");
            Ok(ExitCode::from(1))
        }
        None => Ok(ExitCode::SUCCESS),
    }
}

fn id_block(block: &IgvmIdBlock) -> Value {
    json!({
        "measurement": hex::encode(block.digest),
        "family_id": hex::encode(block.family_id),
        "image_id": hex::encode(block.image_id),
        "guest_svn": block.guest_svn,
        "id_key_digest": hex::encode(block.id_key_digest),
        "author_key_digest": block.author_key_digest.map(hex::encode),
        "signed": block.signed,
    })
}

/// What a person wants to know beside the digest, which is alone on standard output.
fn about(measured: &IgvmMeasurement) {
    let policy = measured
        .policy
        .map_or("none".to_owned(), |policy| format!("{policy:#x}"));
    eprintln!(
        "policy {policy}, {} vCPUs, SEV_FEATURES {:#x}, {} pages",
        measured.vcpus, measured.guest_features, measured.pages
    );
    if let Some(block) = &measured.id_block {
        eprintln!(
            "ID block: guest SVN {}, ID key {}",
            block.guest_svn,
            hex::encode(block.id_key_digest)
        );
    }
}
