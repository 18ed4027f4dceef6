//! `attest measure`: reference values.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use attestation::measure::{self, DirectBoot, SnpLaunch, VcpuType, Vmm};
use serde_json::json;

use super::input;

const FILE_MAX: u64 = 4 << 30;

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
    #[arg(long, value_name = "FILE")]
    firmware: PathBuf,
    /// vCPUs at the launch
    #[arg(long, value_name = "N")]
    vcpus: u32,
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
    /// Which VMM sets up the vCPUs
    #[arg(long, value_enum, default_value = "qemu")]
    vmm: VmmArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum VmmArg {
    Qemu,
    Ec2,
    Gce,
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
    let firmware = input::read(&args.firmware, FILE_MAX)?;
    let direct_boot = match &args.kernel {
        Some(kernel) => {
            let kernel = input::read(kernel, FILE_MAX)?;
            ensure!(!kernel.is_empty(), "the kernel is an empty file");
            let initrd = args
                .initrd
                .as_ref()
                .map(|initrd| input::read(initrd, FILE_MAX))
                .transpose()?;
            Some(DirectBoot::new(
                &kernel,
                initrd.as_deref(),
                args.append.as_deref().unwrap_or_default(),
            ))
        }
        None => None,
    };
    let launch = SnpLaunch {
        firmware: &firmware,
        vcpus: args.vcpus,
        vcpu: args.vcpu_type,
        direct_boot,
        guest_features: args.guest_features,
        vmm: match args.vmm {
            VmmArg::Qemu => Vmm::Qemu,
            VmmArg::Ec2 => Vmm::Ec2,
            VmmArg::Gce => Vmm::Gce,
        },
        firmware_digest: None,
    };
    let digest = hex::encode(measure::snp(&launch)?);
    if args.json {
        let kernel_hashes = direct_boot.map(|boot| {
            json!({
                "kernel": hex::encode(boot.kernel),
                "initrd": hex::encode(boot.initrd),
                "cmdline": hex::encode(boot.cmdline),
            })
        });
        let shown = json!({
            "kind": "sev-snp",
            "measurement": digest,
            "vcpus": args.vcpus,
            "vcpu_signature": args.vcpu_type.to_string(),
            "guest_features": format!("{:#x}", args.guest_features),
            "kernel_hashes": kernel_hashes,
        });
        outln!("{shown:#}");
    } else {
        outln!("{digest}");
    }
    Ok(ExitCode::SUCCESS)
}
