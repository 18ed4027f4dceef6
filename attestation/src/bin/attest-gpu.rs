//! `attest-gpu`: the GPUs' evidence, for `attest agent --gpu-collector`. Dynamically linked, because NVIDIA's library is
//! loaded at run time; an image has it only beside the driver.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use attestation::gpus_to_cbor;
use attestation::nvidia::collect::collect;

const HELP: &str = "\
Gives the evidence of the NVIDIA GPUs in this VM.

Usage: attest-gpu [--library FILE] [--pci DIR] < NONCE > CBOR

  --library FILE  NVML, where the loader doesn't find libnvidia-ml.so.1
  --pci DIR       PCI devices [default: /sys/bus/pci/devices]

Reads a nonce of 32 bytes, writes `[* [report, [* certificate]]]` in CBOR. GPUs that aren't in confidential-computing
mode are left out, and named on stderr. Exit code 1: some GPU gives no evidence, though it should.
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("attest-gpu: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    use lexopt::prelude::*;
    let (mut library, mut pci) = (None, PathBuf::from("/sys/bus/pci/devices"));
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("library") => library = Some(PathBuf::from(parser.value()?)),
            Long("pci") => pci = PathBuf::from(parser.value()?),
            Long("help") | Short('h') => {
                print!("{HELP}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let mut nonce = Vec::new();
    io::stdin().take(33).read_to_end(&mut nonce)?;
    let nonce = nonce
        .try_into()
        .map_err(|_| "stdin must hold a nonce of 32 bytes and nothing else")?;
    let collected = collect(&pci, library.as_deref(), &nonce)?;
    for index in collected.open {
        eprintln!("attest-gpu: GPU {index} isn't in confidential-computing mode and gives no evidence");
    }
    let mut stdout = io::stdout();
    stdout.write_all(&gpus_to_cbor(&collected.gpus))?;
    Ok(stdout.flush()?)
}
