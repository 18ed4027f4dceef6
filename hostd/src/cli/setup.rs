//! `hostd setup` (in the image) and `hostd seed` (on the provider's own machine).

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ledger::client::ClientFile;

use super::{Failure, print, show};
use crate::setup::settings::{EXAMPLE, SETTINGS_MAX, Settings};
use crate::setup::{self, Options, Report, Stage};
use crate::tui::first_boot;
use crate::wiring::chain;

/// What `hostd setup` looks at.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A folder with answers from the console; taken away when they were read
    #[arg(long, value_name = "DIR")]
    answers: Option<PathBuf>,
    /// The network is up: ask the image's pinned URL too
    #[arg(long)]
    network: bool,
    /// Change nothing: show what the last run found
    #[arg(long, conflicts_with_all = ["answers", "network"])]
    show: bool,
    /// Ask at this terminal for what is missing, and hand it to the setup service
    #[arg(long, conflicts_with_all = ["answers", "network", "show"])]
    ask: bool,
    /// The TPM, as tpm2-tss names it
    #[arg(long, value_name = "TCTI", default_value_t = crate::config::default_tpm())]
    tpm: String,
    /// Another root folder than /
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    root: PathBuf,
}

#[derive(clap::Subcommand)]
pub(super) enum SeedVerb {
    /// Write a commented provider-seed.toml to fill in
    Init {
        /// Where to; never over a file that is there
        #[arg(long, default_value = "provider-seed.toml")]
        out: PathBuf,
        /// The ledger's client.toml: its three settings are filled in
        #[arg(long, value_name = "FILE")]
        client: Option<PathBuf>,
        /// The delegation that `decent host delegate` wrote
        #[arg(long, value_name = "FILE")]
        delegation: Option<PathBuf>,
    },
    /// Check a file, and tell every fault
    Check {
        /// The file
        file: PathBuf,
    },
}

/// Exit code 0 when hostd can start, 1 when something is missing or wrong.
pub(super) async fn run(args: &Args, json: bool) -> Result<ExitCode, Failure> {
    let report = if args.ask {
        match first_boot::run(&args.root).await {
            Ok(Some(report)) => report,
            Ok(None) => return Ok(ExitCode::SUCCESS),
            Err(error) => return Err(Failure::Refused(chain(&error))),
        }
    } else if args.show {
        let nothing = || Failure::Refused("`hostd setup` hasn't run since the machine started".to_owned());
        setup::last(&args.root).ok_or_else(nothing)?
    } else {
        let options = Options {
            root: args.root.clone(),
            tpm: args.tpm.clone(),
            answers: args.answers.clone(),
            network: args.network,
        };
        setup::run(&options)
            .await
            .map_err(|error| Failure::Refused(chain(&error)))?
    };
    show(json, &report, page)?;
    // At boot, a host that waits for its provider is in order; a fault isn't.
    let well = report.faults.is_empty() && (args.show || report.stage != Stage::Refused);
    Ok(ExitCode::from(u8::from(!well)))
}

/// The report for people.
pub(crate) fn page(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |what: &str, value: &str| {
        let _ = writeln!(text, "{what:<12} {value}");
    };
    line(
        "settings",
        match report.stage {
            Stage::NoSettings => "none yet: bring provider-seed.toml, or press Enter at the console",
            Stage::Refused => "can't be used",
            Stage::NoDelegation | Stage::Ready => "here",
        },
    );
    if let Some(name) = &report.name {
        line("host", name);
    }
    if let Some(principal) = &report.principal {
        line("principal", principal);
    }
    if let Some(name) = &report.attestation_key {
        line("attestation", name);
    }
    if report.stage == Stage::NoDelegation {
        line(
            "delegation",
            "missing: decent host delegate --host-key PRINCIPAL --attestation-key ATTESTATION …",
        );
    }
    if let Some(until) = report.delegated_until {
        let now = u64::try_from(crate::journal::now_ms()).unwrap_or(0);
        let days = (until / 1_000_000).saturating_sub(now) / 86_400_000;
        line("delegation", &format!("here, for {days} more days"));
    }
    for done in &report.done {
        line("done", done);
    }
    for fault in &report.faults {
        line("FAULT", fault);
    }
    text
}

/// Exit code 0: valid or written; 1: can't be read or written; 2: not valid.
pub(super) fn seed(verb: &SeedVerb, json: bool) -> Result<ExitCode, Failure> {
    let cannot = |path: &Path| {
        let path = path.display().to_string();
        move |error: std::io::Error| Failure::Refused(format!("{path}: {error}"))
    };
    match verb {
        SeedVerb::Check { file } => {
            let bytes = setup::source::bounded(file, SETTINGS_MAX as u64).map_err(cannot(file))?;
            let bytes = bytes.ok_or_else(|| Failure::Refused(format!("{}: no such file", file.display())))?;
            let faults = Settings::parse(&bytes).err().unwrap_or_default();
            show(json, &faults, |faults| match &faults[..] {
                [] => "the settings are valid\n".to_owned(),
                faults => faults
                    .iter()
                    .map(|fault| crate::config::render(file, fault) + "\n")
                    .collect(),
            })?;
            Ok(ExitCode::from(if faults.is_empty() { 0 } else { 2 }))
        }
        SeedVerb::Init {
            out,
            client,
            delegation,
        } => {
            let client = client.as_deref().map(ClientFile::read).transpose();
            let client = client.map_err(|error| Failure::Usage(chain(&error)))?;
            let delegation = delegation
                .as_deref()
                .map(|path| std::fs::read(path).map_err(cannot(path)));
            let text = filled(client.as_ref(), delegation.transpose()?.as_deref());
            let mut file = std::fs::File::create_new(out).map_err(cannot(out))?;
            file.write_all(text.as_bytes()).map_err(cannot(out))?;
            print(&format!(
                "wrote {}; fill it in, then: hostd seed check {0}\n",
                out.display()
            ))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The example with what is known already.
fn filled(client: Option<&ClientFile>, delegation: Option<&[u8]>) -> String {
    let mut text = String::new();
    for line in EXAMPLE.lines() {
        let new = match (line.split(" = ").next(), client, delegation) {
            (Some("url"), Some(client), _) => Some(format!("url = {:?}", client.url)),
            (Some("canister_id"), Some(client), _) => {
                Some(format!("canister_id = \"{}\"", client.canister_id))
            }
            (Some("root_key"), Some(client), _) => {
                Some(format!("root_key = \"{}\"", hex::encode(&client.root_key)))
            }
            (Some("# delegation"), _, Some(bytes)) => {
                Some(format!("delegation = \"{}\"", BASE64_STANDARD.encode(bytes)))
            }
            _ => None,
        };
        text.push_str(new.as_deref().unwrap_or(line));
        text.push('\n');
    }
    text
}
