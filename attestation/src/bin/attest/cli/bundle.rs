//! `attest bundle` and `attest unbundle`: evidence and endorsements in one file, and out of it again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use attestation::{AnyEvidence, Bundle};

use super::input::{self, read};
use super::pins;

#[derive(Debug, clap::Args)]
pub(super) struct BundleArgs {
    /// Evidence of any kind
    evidence: PathBuf,
    /// Files to put beside it, or folders whose endorsements to put beside it
    #[arg(long, value_name = "PATH")]
    endorsements: Vec<PathBuf>,
    /// Where to write the bundle
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct UnbundleArgs {
    /// A bundle
    bundle: PathBuf,
    /// An empty folder, or one that isn't there yet
    #[arg(long, value_name = "DIR", required_unless_present = "json")]
    out: Option<PathBuf>,
    /// Print the bundle as JSON instead
    #[arg(long, conflicts_with = "out")]
    json: bool,
}

pub(super) fn bundle(args: &BundleArgs) -> Result<ExitCode> {
    let evidence = read(&args.evidence, input::EVIDENCE_FILE_MAX)?;
    ensure!(
        !Bundle::is_one(&evidence),
        "{} is a bundle already",
        args.evidence.display()
    );
    AnyEvidence::parse(&evidence).with_context(|| args.evidence.display().to_string())?;
    let found = input::endorsements(&args.endorsements)?;
    if let Some(file) = found.unreadable.first() {
        bail!("{file}");
    }
    for file in &found.passed_over {
        eprintln!("attest: not used: {file}");
    }
    let endorsements = found.files;
    let bundle = Bundle {
        evidence,
        endorsements,
    }
    .to_cbor();
    ensure!(
        bundle.len() <= Bundle::LEN_MAX,
        "the bundle would have {} bytes",
        bundle.len()
    );
    pins::write(&args.out, &bundle)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn unbundle(args: &UnbundleArgs) -> Result<ExitCode> {
    let content = read(&args.bundle, Bundle::LEN_MAX as u64)?;
    let bundle = Bundle::from_cbor(&content).with_context(|| args.bundle.display().to_string())?;
    let Some(folder) = &args.out else {
        outln!("{:#}", bundle.to_json());
        return Ok(ExitCode::SUCCESS);
    };
    write(&bundle, folder).with_context(|| format!("cannot write into {}", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// `evidence`, and `endorsements/NNNN`, in a folder that holds nothing else.
fn write(bundle: &Bundle, folder: &Path) -> Result<()> {
    let endorsements = folder.join("endorsements");
    fs::create_dir_all(folder)?;
    ensure!(fs::read_dir(folder)?.next().is_none(), "the folder isn't empty");
    fs::create_dir(&endorsements)?;
    fs::write(folder.join("evidence"), &bundle.evidence)?;
    for (n, content) in bundle.endorsements.iter().enumerate() {
        fs::write(endorsements.join(format!("{n:04}")), content)?;
    }
    Ok(())
}
