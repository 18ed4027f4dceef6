//! `attest measure tdx`: the registers of a TD, as far as what is given determines them.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use attestation::eventlog::{EventLog, HashAlg};
use attestation::measure::{self, AcpiTables, PageOrder, QemuMachine, TdxBoot};
use serde_json::json;

use super::input;

const FILE_MAX: u64 = 4 << 30;

#[derive(Debug, clap::Args)]
pub(super) struct Tdx {
    /// OVMF with TDX metadata, as the VMM loads it
    #[arg(long, value_name = "FILE")]
    firmware: PathBuf,
    /// RAM in MiB, for RTMR0 under QEMU; with the three ACPI files
    #[arg(long, value_name = "MIB", requires = "acpi_tables")]
    memory: Option<u64>,
    /// QEMU's fw_cfg file etc/table-loader
    #[arg(long, value_name = "FILE", requires = "memory")]
    acpi_loader: Option<PathBuf>,
    /// QEMU's fw_cfg file etc/acpi/rsdp
    #[arg(long, value_name = "FILE", requires = "memory")]
    acpi_rsdp: Option<PathBuf>,
    /// QEMU's fw_cfg file etc/acpi/tables
    #[arg(long, value_name = "FILE", requires_all = ["memory", "acpi_loader", "acpi_rsdp"])]
    acpi_tables: Option<PathBuf>,
    /// Event log (CCEL) of a boot that you trust: RTMR0 is taken from it
    #[arg(long, value_name = "FILE", conflicts_with = "memory")]
    event_log: Option<PathBuf>,
    /// Kernel that the VMM boots directly
    #[arg(long, value_name = "FILE", conflicts_with = "uki")]
    kernel: Option<PathBuf>,
    /// Its initrd
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Its command line, exactly as the VMM gets it
    #[arg(long, value_name = "CMDLINE", requires = "kernel", allow_hyphen_values = true)]
    append: Option<String>,
    /// Unified kernel image that the firmware boots from a disk
    #[arg(long, value_name = "FILE")]
    uki: Option<PathBuf>,
    /// SHA-384 of that disk's EV_EFI_GPT_EVENT
    #[arg(long, value_name = "HEX", requires = "uki", value_parser = input::hex_bytes::<48>)]
    gpt_event: Option<Digest>,
    /// The firmware loads, and so measures, the kernel inside the image too
    #[arg(long, requires = "uki")]
    inner_kernel: bool,
    /// The VMM adds all pages of a section before it measures them (kernels before 6.16)
    #[arg(long)]
    two_pass: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

type Digest = [u8; 48];

pub(super) fn run(args: &Tdx) -> Result<ExitCode> {
    let read = |path: &PathBuf| input::read(path, FILE_MAX);
    let optional = |path: &Option<PathBuf>| path.as_ref().map(read).transpose();
    let firmware = read(&args.firmware)?;
    let acpi = [&args.acpi_loader, &args.acpi_rsdp, &args.acpi_tables].map(optional);
    let [loader, rsdp, tables] = acpi;
    let (loader, rsdp, tables) = (loader?, rsdp?, tables?);
    let machine = match (args.memory, &loader, &rsdp, &tables) {
        (Some(mib), Some(loader), Some(rsdp), Some(tables)) => {
            let memory = mib.checked_mul(1 << 20).context("--memory is too large")?;
            Some(QemuMachine {
                memory,
                acpi: AcpiTables { loader, rsdp, tables },
            })
        }
        _ => None,
    };
    let (kernel, initrd, uki) = (
        optional(&args.kernel)?,
        optional(&args.initrd)?,
        optional(&args.uki)?,
    );
    let boot = match (&kernel, &uki) {
        (Some(kernel), _) => {
            let cmdline = args.append.as_deref().unwrap_or_default();
            Some(TdxBoot::Direct {
                kernel,
                initrd: initrd.as_deref(),
                cmdline,
            })
        }
        (None, Some(uki)) => Some(TdxBoot::Uki {
            uki,
            gpt: args.gpt_event,
            inner_kernel: args.inner_kernel,
        }),
        (None, None) => None,
    };
    let order = if args.two_pass {
        PageOrder::TwoPass
    } else {
        PageOrder::Interleaved
    };
    let mut measured = measure::tdx(&firmware, order, machine, boot)?;
    if let Some(path) = &args.event_log {
        measured.rtmr0 = Some(rtmr0_of(&read(path)?).with_context(|| path.display().to_string())?);
    }
    let registers = [
        ("rtmr0", measured.rtmr0),
        ("rtmr1", measured.rtmr1),
        ("rtmr2", measured.rtmr2),
    ];
    if args.json {
        let mut shown = json!({ "kind": "tdx", "mr_td": hex::encode(measured.mr_td) });
        for (name, value) in registers {
            shown[name] = json!(value.map(hex::encode));
        }
        shown["measurement"] = json!(measured.measurement().map(hex::encode));
        println!("{shown:#}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("mr_td       {}", hex::encode(measured.mr_td));
    for (name, value) in registers {
        println!(
            "{name}       {}",
            value.map_or("not computed: see --help".to_owned(), hex::encode)
        );
    }
    if let Some(whole) = measured.measurement() {
        println!("measurement {}", hex::encode(whole));
    }
    Ok(ExitCode::SUCCESS)
}

/// What a log's events for RTMR0 add up to.
fn rtmr0_of(log: &[u8]) -> Result<Digest> {
    let registers = EventLog::parse_padded(log)?.replay(HashAlg::Sha384)?;
    let value = registers
        .get(&1)
        .context("the event log has no events for RTMR0")?;
    value
        .as_slice()
        .try_into()
        .context("the event log's digests aren't SHA-384")
}
