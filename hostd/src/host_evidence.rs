//! What this host itself shows: quotes of its TPM, for the ledger's grade `host-verified`.
//!
//! Two kinds, each over a nonce of the ledger. The host's own evidence says which hosts can be matched; it is made at the
//! start, when half of its time is over, and when the ledger doesn't count it any more (another key was delegated, an
//! image refused). A plain contract's evidence gets a quote of its own, bound to that contract, where its grade rests on
//! one. Beside the quote go the signed reference values of the image that runs: files that come with the image and its
//! updates.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use attestation::tpm::{AttestationKey, TpmEvidence};
use attestation::{Binding, Bundle, Composite, HostBinding, host_qualifying_data};
use candid::Principal;
use ledger::api::{Contract, Grade, HostEvidenceArgs, HostInfo, LedgerInfo, VmKind};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::config::HostEvidenceConfig;
use crate::ports::{EvidenceAsk, LedgerCallError, LedgerPort, QuotePort};
use crate::supervisor::Ctx;
use crate::surface::Registration;

/// Between two looks at what the ledger counts, and after a refusal; the ledger gives one nonce a minute.
const LOOK: Duration = Duration::from_secs(65);
const SECOND: u64 = 1_000_000_000;
/// After a failure that may be over soon.
const AGAIN: Duration = Duration::from_secs(10);
/// Files of reference values that are read: two versions have about ten.
const FILES_MAX: usize = 64;
const FILE_LEN_MAX: u64 = 256 * 1024;

/// What the ledger makes of this host's evidence, as it showed last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostTrust {
    /// Whether plain VMs can be confirmed as host-verified now.
    pub verified: bool,
    /// The image that the ledger found this host to run.
    pub image: Option<String>,
    /// Until when that counts: the ledger's clock, ms since the Unix epoch.
    pub until_ms: Option<i64>,
    /// The attestation key of this host's TPM, as `decent host delegate --attestation-key` takes it.
    pub attestation_key: Option<String>,
    /// Why there is no better grade.
    pub trouble: Option<String>,
}

/// Makes this host's evidence, or does nothing.
pub struct HostEvidence {
    tpm: Option<Arc<dyn QuotePort>>,
    references: Vec<PathBuf>,
    /// A `std` mutex: held for a few instructions, never over an `.await`.
    shown: Mutex<HostTrust>,
}

/// Why this host's evidence isn't verified; a sentence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Trouble {
    /// The ledger doesn't answer, or refuses.
    #[error(transparent)]
    Ledger(#[from] LedgerCallError),
    /// The TPM doesn't.
    #[error("the TPM gave no quote: {0}")]
    Tpm(String),
    /// The provider hasn't named this TPM's key.
    #[error("{0}")]
    Delegation(String),
}

impl HostEvidence {
    /// One without a TPM.
    pub fn off() -> Self {
        Self::new(None, Vec::new())
    }

    /// `references`: files of signed reference values, or folders of such.
    pub fn new(tpm: Option<Arc<dyn QuotePort>>, references: Vec<PathBuf>) -> Self {
        Self {
            tpm,
            references,
            shown: Mutex::default(),
        }
    }

    /// As the config has it; the error is a sentence.
    pub fn open(config: &HostEvidenceConfig) -> Result<Self, String> {
        let tpm = match &config.tpm {
            Some(tcti) => Some(crate::wiring::tpm(
                tcti,
                &config.firmware_log,
                &config.userspace_log,
            )?),
            None => None,
        };
        Ok(Self::new(tpm, config.references.clone()))
    }

    /// Whether there is a TPM to quote.
    pub fn is_on(&self) -> bool {
        self.tpm.is_some()
    }

    /// What the ledger makes of it; `None`: there is no TPM.
    pub fn trust(&self) -> Option<HostTrust> {
        self.is_on().then(|| self.shown().clone())
    }

    fn shown(&self) -> std::sync::MutexGuard<'_, HostTrust> {
        self.shown.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    async fn quote(&self, tpm: &dyn QuotePort, data: [u8; 32]) -> Result<TpmEvidence, Trouble> {
        let evidence = tpm.quote(data).await.map_err(Trouble::Tpm)?;
        let name = AttestationKey::parse(&evidence.ak)
            .ok()
            .and_then(|key| Some(format!("name:{}", hex::encode(key.name()?))));
        self.shown().attestation_key = name;
        Ok(evidence)
    }

    /// Shows the ledger what this host runs, if it must know (`at_start`: this may be another boot) or doesn't know it
    /// well enough; says when to look again.
    pub async fn renew(
        &self,
        ledger: &dyn LedgerPort,
        host: Principal,
        at_start: bool,
    ) -> Result<Duration, Trouble> {
        let Some(tpm) = &self.tpm else {
            return Ok(LOOK);
        };
        let (info, view) = (ledger.info().await?, ledger.host(host).await?);
        self.show(&view, &info);
        let left = view.verified.as_ref().map_or(0, |verified| {
            let half = info.host_images.valid_s.saturating_mul(SECOND / 2);
            verified.until.saturating_sub(info.now).saturating_sub(half)
        });
        if left > 0 && !at_start {
            let wall = Duration::from_nanos(left / u64::from(info.clock_rate.max(1)));
            return Ok(LOOK.min(wall.max(Duration::from_secs(1))));
        }
        if view.attestation_key.is_none() {
            // The key is shown, so that the provider can name it.
            self.quote(&**tpm, [0; 32]).await?;
            let why = "the provider's delegation names no attestation key; sign one with `decent host delegate \
                       --attestation-key` and the key shown here";
            return Err(Trouble::Delegation(why.to_owned()));
        }
        let nonce = ledger.host_nonce().await?;
        let binding = HostBinding {
            ledger: info.ledger.as_slice(),
            host: host.as_slice(),
            nonce: nonce.0,
        };
        let evidence = self.quote(&**tpm, binding.qualifying_data()).await?;
        let evidence = self.bundle(evidence.to_cbor()).await;
        let verified = ledger
            .submit_host_evidence(&HostEvidenceArgs { evidence })
            .await?;
        tracing::info!(image = verified.image, "the ledger verified what this host runs");
        let view = HostInfo {
            verified: Some(verified),
            refusals: Vec::new(),
            ..view
        };
        self.show(&view, &info);
        Ok(LOOK)
    }

    fn show(&self, view: &HostInfo, info: &LedgerInfo) {
        let verified = view.grade(info.now) == Grade::HostVerified;
        let refusals = view.refusals.join("; ");
        let mut shown = self.shown();
        shown.verified = verified;
        shown.image = view.verified.as_ref().map(|verified| verified.image.clone());
        shown.until_ms = view
            .verified
            .as_ref()
            .and_then(|verified| i64::try_from(verified.until / 1_000_000).ok());
        shown.trouble = (!verified && !refusals.is_empty()).then_some(refusals);
    }

    /// A plain contract's evidence with a quote of its own, where its grade rests on one; else as it is. What goes wrong
    /// is the ledger's to refuse.
    pub async fn attach(&self, contract: &Contract, ask: &EvidenceAsk, evidence: Vec<u8>) -> Vec<u8> {
        let request = &contract.args.request;
        let wanted = request.min_grade > Grade::HostSigned || self.shown().verified;
        let (Some(tpm), VmKind::Plain, true) = (&self.tpm, request.kind, wanted) else {
            return evidence;
        };
        let Ok(composite) = Composite::from_cbor(&evidence) else {
            return evidence;
        };
        let binding = Binding {
            ledger: &ask.ledger,
            contract: ask.contract.0,
            nonce: ask.nonce.0,
        };
        let data = host_qualifying_data(&binding.report_data(&composite.vm.guest_keys));
        match self.quote(&**tpm, data).await {
            Ok(quote) => {
                let composite = Composite {
                    host: Some(quote),
                    ..composite
                };
                self.bundle(composite.to_cbor()).await
            }
            Err(error) => {
                tracing::warn!(contract = %ask.contract, %error, "the evidence goes without the host's quote");
                evidence
            }
        }
    }

    /// With the signed reference values of the image.
    async fn bundle(&self, evidence: Vec<u8>) -> Vec<u8> {
        let paths = self.references.clone();
        let read = tokio::task::spawn_blocking(move || references(&paths));
        let endorsements = read.await.unwrap_or_default();
        Bundle {
            evidence,
            endorsements,
        }
        .to_cbor()
    }
}

/// Every signed statement of the files and folders. A file holds one, or a list of them.
fn references(paths: &[PathBuf]) -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    for path in paths {
        match std::fs::read_dir(path) {
            Ok(entries) => {
                let entries = entries.flatten().map(|entry| entry.path());
                let mut json: Vec<PathBuf> = entries
                    .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
                    .collect();
                json.sort();
                files.extend(json);
            }
            Err(_) => files.push(path.clone()),
        }
    }
    let mut found = Vec::new();
    for file in files.iter().take(FILES_MAX) {
        match statements(file) {
            Ok(statements) => found.extend(statements),
            Err(why) => tracing::warn!(file = %file.display(), why, "no reference values"),
        }
    }
    found
}

fn statements(file: &Path) -> Result<Vec<Vec<u8>>, String> {
    use std::io::Read;
    let mut content = Vec::new();
    let opened = std::fs::File::open(file).map_err(|e| e.to_string())?;
    let read = opened.take(FILE_LEN_MAX + 1).read_to_end(&mut content);
    if read.map_err(|e| e.to_string())? as u64 > FILE_LEN_MAX {
        return Err(format!("more than {FILE_LEN_MAX} bytes"));
    }
    let json: serde_json::Value = serde_json::from_slice(&content).map_err(|e| e.to_string())?;
    // What is signed stands in a string: writing the JSON around it anew changes nothing.
    let all = match json {
        serde_json::Value::Array(all) => all,
        one => vec![one],
    };
    let mut known = attestation::Endorsements::none();
    all.into_iter()
        .map(|one| {
            let one = one.to_string().into_bytes();
            known.add(&one).map_err(|e| e.to_string())?;
            Ok(one)
        })
        .collect()
}

/// Keeps the ledger's knowledge of this host current, for as long as the process runs.
pub async fn keep(ctx: Arc<Ctx>, host: Principal, mut registration: watch::Receiver<Registration>) {
    if !ctx.host_evidence.is_on() {
        return;
    }
    // The ledger listens to registered hosts only.
    if registration.wait_for(|now| now.registered).await.is_err() {
        return;
    }
    let (mut told, mut at_start) = (String::new(), true);
    loop {
        let pause = match ctx.host_evidence.renew(&*ctx.host.ledger, host, at_start).await {
            Ok(pause) => {
                at_start = false;
                told.clear();
                pause
            }
            Err(trouble) => {
                let pause = match &trouble {
                    Trouble::Tpm(_) | Trouble::Ledger(LedgerCallError::Unreachable { .. }) => AGAIN,
                    Trouble::Ledger(_) | Trouble::Delegation(_) => LOOK,
                };
                let trouble = trouble.to_string();
                if told != trouble {
                    tracing::warn!(trouble, "the ledger doesn't count this host as verified");
                }
                ctx.host_evidence.shown().trouble = Some(trouble.clone());
                told = trouble;
                pause
            }
        };
        tokio::time::sleep(pause).await;
    }
}
