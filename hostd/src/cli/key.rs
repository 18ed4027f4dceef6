//! `hostd key`: the host's own key, for the provider's delegation.

use std::fmt;
use std::path::PathBuf;

use ledger::client::Key;
use serde::Serialize;

use crate::hostkey;
use crate::wiring::chain;

/// Which key.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The key's file
    #[arg(long, default_value = "/etc/hostd/host.pem")]
    file: PathBuf,
    /// The TPM, as tpm2-tss names it
    #[arg(long, value_name = "TCTI", default_value_t = crate::config::default_tpm())]
    tpm: String,
}

#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// Have the TPM make a key, if there is none yet, and show it
    New(Args),
    /// Show who the host is to the ledger
    Show(Args),
}

/// What is shown.
#[derive(Serialize)]
pub(super) struct Shown {
    principal: String,
    public_key: String,
    /// Of the TPM, if there is one.
    attestation_key: Option<String>,
    file: PathBuf,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "principal   {}", self.principal)?;
        writeln!(f, "public key  {}", self.public_key)?;
        let option = match &self.attestation_key {
            Some(name) => format!(" \\\n    --attestation-key {name}"),
            None => String::new(),
        };
        writeln!(f, "file        {}", self.file.display())?;
        writeln!(f, "\nOn the provider's own machine:\n")?;
        writeln!(
            f,
            "  decent --key provider.pem host delegate --profile profile.toml --out delegation \\\n    --host-key {}{option}",
            self.principal
        )
    }
}

pub(super) fn run(verb: &Verb) -> Result<Shown, String> {
    let (args, key) = match verb {
        Verb::New(args) => (args, hostkey::read_or_create(&args.file, &args.tpm)),
        Verb::Show(args) => (args, hostkey::read(&args.file, &args.tpm)),
    };
    let key: Key = key.map_err(|error| chain(&error))?;
    let (principal, public_key) = (key.principal().to_text(), key.public_key().unwrap_or_default());
    drop(key); // some TPMs serve one at a time
    Ok(Shown {
        principal,
        public_key: hex::encode(public_key),
        attestation_key: hostkey::attestation_key(&args.tpm).ok(),
        file: args.file.clone(),
    })
}
