//! The guest's side: answers the host's questions, one at a time, for as long as the VM runs.
//!
//! Whoever asks is the host, which is not trusted: every question is bounded, and evidence holds public things only.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use der::{Decode, Encode};
use x509_cert::Certificate;

use super::gpus::{self, COLLECTOR_TIME_MAX};
use super::platform::{Platform, PlatformError};
use super::{AGENT_EVIDENCE_LEN_MAX, Deframer, Request, RequestBody, Response, ResponseBody, frame, report};
use crate::{Binding, Composite, Evidence, GuestKeys, gpu_nonce};

/// What the agent speaks for.
#[derive(Clone, Debug, Default)]
pub struct Guest {
    /// The VM's public keys.
    pub keys: KeyFiles,
    /// Program that collects the GPUs' evidence ([`gpus`]). `None`: the VM has no GPUs.
    pub gpu_collector: Option<PathBuf>,
}

/// Where the agent finds the public keys that the VM made for itself.
#[derive(Clone, Debug, Default)]
pub struct KeyFiles {
    /// OpenSSH `.pub` file of the SSH host key.
    pub ssh_host_key: Option<PathBuf>,
    /// The TLS server's certificate (PEM or DER); its key is what counts.
    pub tls_certificate: Option<PathBuf>,
    /// WireGuard public key, base64.
    pub wireguard: Option<PathBuf>,
    /// Digest of the settings that the VM applied, in hex. No such file: it had no seed, and says nothing.
    pub settings: Option<PathBuf>,
}

/// What the agent can't answer; goes to the host as a text.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A key file.
    #[error("cannot read {path}: {why}")]
    Key {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// No report.
    #[error(transparent)]
    Report(#[from] report::ReportError),
    /// Unknown whether this VM has one to give.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// No evidence of the GPUs.
    #[error(transparent)]
    Gpus(#[from] gpus::CollectorError),
    /// More than an answer holds.
    #[error("evidence of {0} bytes (at most {AGENT_EVIDENCE_LEN_MAX})")]
    TooLong(usize),
}

impl KeyFiles {
    fn read(&self) -> Result<GuestKeys, AgentError> {
        let text = |path: &Path| {
            fs::read_to_string(path).map_err(|e| AgentError::Key {
                path: path.to_owned(),
                why: e.to_string(),
            })
        };
        let mut keys = GuestKeys::default();
        if let Some(path) = &self.ssh_host_key {
            let line = text(path)?;
            let key = line.parse().map_err(|e| AgentError::Key {
                path: path.clone(),
                why: format!("{e}"),
            })?;
            keys.ssh_host_key = Some(key);
        }
        if let Some(path) = &self.tls_certificate {
            let content = fs::read(path).map_err(|e| AgentError::Key {
                path: path.clone(),
                why: e.to_string(),
            })?;
            let spki = tls_spki(&content).map_err(|why| AgentError::Key {
                path: path.clone(),
                why,
            })?;
            keys.tls_spki = Some(spki);
        }
        if let Some(path) = &self.wireguard {
            use base64::Engine as _;
            let key = base64::engine::general_purpose::STANDARD
                .decode(text(path)?.trim())
                .ok()
                .and_then(|key| key.try_into().ok())
                .ok_or_else(|| AgentError::Key {
                    path: path.clone(),
                    why: "not a WireGuard key".into(),
                })?;
            keys.wireguard = Some(key);
        }
        if let Some(path) = self.settings.as_deref().filter(|path| path.exists()) {
            let digest = hex::decode(text(path)?.trim())
                .ok()
                .and_then(|digest| digest.try_into().ok())
                .ok_or_else(|| AgentError::Key {
                    path: path.to_owned(),
                    why: "not a digest: 64 hexadecimal digits".into(),
                })?;
            keys.settings = Some(digest);
        }
        Ok(keys)
    }
}

/// The `SubjectPublicKeyInfo` of the first certificate in `content`.
fn tls_spki(content: &[u8]) -> Result<Vec<u8>, String> {
    let certificate = match content.starts_with(b"-----") {
        true => {
            let mut chain = Certificate::load_pem_chain(content).map_err(|e| e.to_string())?;
            if chain.is_empty() {
                return Err("no certificate in it".to_owned());
            }
            chain.swap_remove(0)
        }
        false => Certificate::from_der(content).map_err(|e| e.to_string())?,
    };
    certificate
        .tbs_certificate()
        .subject_public_key_info()
        .to_der()
        .map_err(|e| e.to_string())
}

/// Answers questions on one stream until it ends. A virtio-serial port reads as ended while no host has it open: the
/// caller opens it again or waits.
pub fn serve(stream: &mut (impl Read + Write), guest: &Guest) -> io::Result<()> {
    let mut frames = Deframer::new();
    let mut buffer = [0; 4096];
    loop {
        let len = stream.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        frames.push(&buffer[..len]);
        while let Some(next) = frames.next_frame() {
            // Garbage and oversized frames are the host's trouble: it asks again.
            let Ok(content) = next else { continue };
            let Ok(request) = Request::from_cbor(&content) else {
                continue;
            };
            let id = request.id;
            let body = answer(request.body, guest).unwrap_or_else(|e| ResponseBody::Error(e.to_string()));
            stream.write_all(&frame(&Response { id, body }.to_cbor()))?;
            stream.flush()?;
        }
    }
}

fn answer(body: RequestBody, guest: &Guest) -> Result<ResponseBody, AgentError> {
    match body {
        RequestBody::Hello => Ok(ResponseBody::Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            platform: match Platform::detect()? {
                Platform::SevSnp | Platform::Simulated => "sev-snp",
                Platform::Tdx => "tdx",
                Platform::Plain => "none",
            }
            .to_owned(),
        }),
        RequestBody::Evidence {
            ledger,
            contract,
            nonce,
        } => {
            let guest_keys = guest.keys.read()?;
            let report_data = Binding {
                ledger: &ledger,
                contract,
                nonce,
            }
            .report_data(&guest_keys);
            let cpu = report::cpu_evidence(Platform::detect()?, &report_data)?;
            let mut evidence = Composite::from(Evidence { cpu, guest_keys });
            if let Some(collector) = &guest.gpu_collector {
                evidence.gpus = gpus::collect(collector, &gpu_nonce(&report_data), COLLECTOR_TIME_MAX)?;
            }
            let evidence = evidence.to_cbor();
            match evidence.len() {
                0..=AGENT_EVIDENCE_LEN_MAX => Ok(ResponseBody::Evidence(evidence)),
                len => Err(AgentError::TooLong(len)),
            }
        }
        RequestBody::Shutdown => {
            // PID 1 of busybox and systemd both understand SIGUSR2/SIGTERM differently; the command is the common way.
            let _ = std::process::Command::new("poweroff").spawn();
            Ok(ResponseBody::Ok)
        }
    }
}
