//! `hostd evidence`: what the host's TPM says about it, in a file that `attest verify` takes.
//!
//! It asks the TPM itself, not the daemon: an operator can show it before anything runs. The key is named in the output,
//! because whoever relies on it has to pin it (`[tpm] aks` of a policy).

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// What to quote, and where to.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Qualifying data, in hex: the nonce of whoever asks (at most 64 bytes; 32 fit every TPM)
    #[arg(long, value_name = "HEX", default_value = "", value_parser = nonce)]
    nonce: Nonce,
    /// A certificate of the TPM's attestation key, or one of its issuers (DER or PEM)
    #[arg(long, value_name = "FILE")]
    certificate: Vec<PathBuf>,
    /// The TPM, as tpm2-tss names it
    #[arg(long, value_name = "TCTI", default_value = "device:/dev/tpmrm0")]
    tpm: String,
    /// Where to write the evidence
    #[arg(long, default_value = "host-evidence.cbor")]
    out: PathBuf,
}

#[derive(Clone)]
struct Nonce(#[cfg_attr(not(feature = "tpm"), expect(dead_code, reason = "only a TPM reads it"))] Vec<u8>);

fn nonce(hex: &str) -> Result<Nonce, String> {
    match hex::decode(hex) {
        Ok(bytes) if bytes.len() <= 64 => Ok(Nonce(bytes)),
        Ok(bytes) => Err(format!("{} bytes (at most 64)", bytes.len())),
        Err(e) => Err(e.to_string()),
    }
}

/// What was written.
#[derive(Serialize)]
pub(super) struct Taken {
    ak: String,
    out: PathBuf,
    bytes: usize,
    firmware_log: bool,
    userspace_log: bool,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let log = |there: bool| if there { "yes" } else { "none on this machine" };
        writeln!(f, "{}: {} bytes", self.out.display(), self.bytes)?;
        writeln!(f, "attestation key  {}", self.ak)?;
        writeln!(f, "firmware's log   {}", log(self.firmware_log))?;
        writeln!(f, "systemd's log    {}", log(self.userspace_log))
    }
}

#[cfg(not(feature = "tpm"))]
pub(super) fn take(_: &Args) -> Result<Taken, String> {
    Err("this hostd was built without TPM support (cargo feature `tpm`)".to_owned())
}

#[cfg(feature = "tpm")]
pub(super) fn take(args: &Args) -> Result<Taken, String> {
    use crate::wiring::chain;
    use attestation::tpm::{AttestationKey, EventLogFiles, TpmDevice};

    let mut certificates = attestation::Endorsements::none();
    for path in &args.certificate {
        let failed = |e: &dyn fmt::Display| format!("{}: {e}", path.display());
        let content = std::fs::read(path).map_err(|e| failed(&e))?;
        certificates.add(&content).map_err(|e| failed(&e))?;
    }
    let mut tpm = TpmDevice::open(&args.tpm).map_err(|e| chain(&e))?;
    let mut evidence = tpm
        .evidence(&args.nonce.0, &EventLogFiles::default())
        .map_err(|e| chain(&e))?;
    evidence.certificates = certificates.certificates().map(<[u8]>::to_vec).collect();
    let ak = AttestationKey::parse(&evidence.ak).map_err(|e| e.to_string())?;
    let bytes = evidence.to_cbor();
    std::fs::write(&args.out, &bytes).map_err(|e| format!("{}: {e}", args.out.display()))?;
    Ok(Taken {
        ak: format!("name:{}", hex::encode(ak.name().unwrap_or_default())),
        out: args.out.clone(),
        bytes: bytes.len(),
        firmware_log: evidence.firmware_log.is_some(),
        userspace_log: evidence.userspace_log.is_some(),
    })
}
