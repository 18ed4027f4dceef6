//! `guest-setup --seed DIR --out DIR`: reads a NoCloud seed inside the guest; see `image_builder::guest`.
//!
//! Exit code 3: this is a confidential VM, and the seed isn't its contract's, or nobody can tell. Nothing was applied,
//! and the caller must power off.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use attestation::agent::platform::Platform;
use attestation::agent::report::launched_for;
use image_builder::guest::{self, SeedError};

const REFUSED: u8 = 3;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--seed", seed, "--out", out] => set_up(&PathBuf::from(seed), &PathBuf::from(out)),
        ["--platform"] => platform(),
        ["--version"] => {
            println!("guest-setup {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: guest-setup --seed DIR --out DIR\n       guest-setup --platform");
            ExitCode::from(2)
        }
    }
}

fn set_up(seed: &Path, out: &Path) -> ExitCode {
    let launched = match launched_for() {
        Ok(launched) => launched,
        Err(error) => {
            eprintln!(
                "no report says which contract this VM was launched for: {error}; nothing of the seed is applied"
            );
            return ExitCode::from(REFUSED);
        }
    };
    match guest::run(seed, out, Path::new("/"), launched) {
        Ok(warnings) => {
            warnings.iter().for_each(|warning| eprintln!("{warning}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            match error {
                SeedError::OtherContract { .. } => ExitCode::from(REFUSED),
                SeedError::Write { .. } => ExitCode::FAILURE,
            }
        }
    }
}

/// One word for the boot scripts: sev-snp, tdx, simulated, plain.
fn platform() -> ExitCode {
    match Platform::detect() {
        Ok(platform) => {
            println!("{}", platform.name());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
