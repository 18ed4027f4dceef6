//! The keeper of endorsements: the makers' certificates, revocation lists and collateral that guests' evidence needs, so
//! that no guest needs the Internet.
//!
//! ```text
//! guest's evidence ──▶ complete ──▶ bundle: evidence + endorsements ──▶ ledger
//!                         │ what isn't in the folder is fetched, within a time limit
//!                         ▼
//!                 <state_dir>/endorsements ◀── refresh, every hour: what ends within two days is renewed
//! ```
//!
//! What the machine itself tells ([`own`]) is there before the first guest; the rest is named by the first evidence, and
//! there from then on. What evidence can't wait for is got after it went, for the next. Nothing here is trusted by the ledger: every document is its maker's word, signed. If a
//! maker can't be reached the evidence goes without, and the ledger says whether that will do.

pub mod own;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use attestation::fetch::{Document, Event, FetchError, Fetcher, Found, Outcome, Sources};
use attestation::{AnyEvidence, Bundle, Endorsements, Roots};
use ledger::api::EVIDENCE_MAX;
use tokio::sync::Notify;

use crate::config::EndorsementsConfig;
use crate::doctor::EndorsementFact;

/// What ends sooner is renewed, seconds: AMD's and Intel's lists are good for weeks.
const AHEAD: u64 = 2 * 24 * 3600;
/// Between two looks at what ends.
const REFRESH: Duration = Duration::from_secs(3600);
/// What a guest's evidence waits for its endorsements at most. The contract's own deadline runs meanwhile.
const COMPLETE_WITHIN: Duration = Duration::from_secs(30);
/// Documents that are kept current; a machine needs about ten.
const WANTED_MAX: usize = 256;
/// Documents that are got after the evidence that needs them went.
const LATE_MAX: usize = 32;
const WANTED: &str = "wanted.json";

/// Keeps endorsements, or does nothing.
#[derive(Debug)]
pub struct Keeper {
    fetcher: Option<Fetcher>,
    /// Over the same folder, asking nobody.
    offline: Option<Fetcher>,
    folder: PathBuf,
    /// What the machine needs whatever comes.
    own: Vec<Document>,
    /// What evidence needed and was got, the latest last. A `std` mutex: held for a few instructions, never over an
    /// `.await`.
    wanted: Mutex<Vec<Document>>,
    /// What evidence couldn't wait for.
    late: Mutex<Vec<Document>>,
    /// There is something late.
    wake: Notify,
}

impl Keeper {
    /// One that adds nothing to evidence.
    pub fn off() -> Self {
        Self {
            fetcher: None,
            offline: None,
            folder: PathBuf::new(),
            own: Vec::new(),
            wanted: Mutex::default(),
            late: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// Over a folder below `state_dir`. `own`: what evidence of this machine will need ([`own::documents`]). The error is a
    /// sentence.
    pub fn open(config: &EndorsementsConfig, state_dir: &Path, own: Vec<Document>) -> Result<Self, String> {
        let sources = config.sources().map_err(|e| e.to_string())?;
        let mut roots = Roots::pinned();
        if let Some(path) = &config.test_root {
            let root = std::fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
            roots = roots.with_test_root(&root).map_err(|e| e.to_string())?;
        }
        Self::with(Some(sources).filter(|_| config.fetch), state_dir, roots, own)
    }

    /// `sources`: `None` fetches nothing and uses what the folder has. `roots`: who must have signed.
    fn with(
        sources: Option<Sources>,
        state_dir: &Path,
        roots: Roots,
        own: Vec<Document>,
    ) -> Result<Self, String> {
        let folder = state_dir.join("endorsements");
        let offline = Fetcher::new(&folder, None, roots.clone()).map_err(|e| e.to_string())?;
        let fetcher = match Fetcher::new(&folder, sources, roots.clone()) {
            Ok(fetcher) => fetcher,
            Err(error) => {
                tracing::warn!(%error, "endorsements are not fetched");
                Fetcher::new(&folder, None, roots).map_err(|e| e.to_string())?
            }
        };
        // A file that can't be read costs a fetch ahead of time: the next evidence names its documents again.
        let wanted = std::fs::read(folder.join(WANTED)).ok();
        let wanted = wanted.and_then(|json| serde_json::from_slice::<Vec<Document>>(&json).ok());
        Ok(Self {
            fetcher: Some(fetcher),
            offline: Some(offline),
            folder,
            own,
            wanted: Mutex::new(wanted.unwrap_or_default()),
            late: Mutex::default(),
            wake: Notify::new(),
        })
    }

    /// A guest's evidence with what it needs, as the ledger takes both; the evidence alone if it needs nothing, or if
    /// nothing could be got in time.
    pub async fn complete(&self, evidence: Vec<u8>) -> Vec<u8> {
        self.complete_at(evidence, now(), COMPLETE_WITHIN).await
    }

    async fn complete_at(&self, evidence: Vec<u8>, at: u64, within: Duration) -> Vec<u8> {
        let (Some(fetcher), Some(offline)) = (&self.fetcher, &self.offline) else {
            return evidence;
        };
        let Ok(parsed) = AnyEvidence::parse(&evidence) else {
            return evidence;
        };
        let mut hear = tell;
        let given = Endorsements::none();
        let completing = fetcher.complete(&parsed, &given, at, 0, &mut hear);
        let (found, needs) = match tokio::time::timeout(within, completing).await {
            Ok(all) => all,
            Err(_) => {
                tracing::warn!("the makers' services are too slow: evidence goes with what is here");
                let (found, needs) = offline.complete(&parsed, &given, at, 0, &mut |_| ()).await;
                self.get_later(&found);
                (found, needs)
            }
        };
        for gap in needs.gaps {
            tracing::warn!(gap, "a guest's evidence lacks what nobody can be asked for");
        }
        self.want(&found);
        bundle(evidence, &found)
    }

    fn get_later(&self, found: &[Found]) {
        let missing = found.iter().filter(|found| !found.is_there());
        let missing = missing.map(|found| found.document.clone());
        let mut late = lock(&self.late);
        late.extend(missing);
        late.dedup();
        late.truncate(LATE_MAX);
        self.wake.notify_one();
    }

    /// Remembers across restarts what was got; a guest can name whatever it likes, and makers publish only what is theirs.
    fn want(&self, found: &[Found]) {
        let mut wanted = lock(&self.wanted);
        let before = wanted.clone();
        let there = found.iter().filter(|found| found.is_there());
        for found in there.filter(|found| !self.own.contains(&found.document)) {
            wanted.retain(|document| *document != found.document);
            wanted.push(found.document.clone());
        }
        let oldest = wanted.len().saturating_sub(WANTED_MAX);
        wanted.drain(..oldest);
        if *wanted == before {
            return;
        }
        let written = serde_json::to_vec(&*wanted)
            .map_err(std::io::Error::from)
            .and_then(|json| {
                std::fs::create_dir_all(&self.folder)?;
                std::fs::write(self.folder.join(WANTED), json)
            });
        if let Err(error) = written {
            tracing::warn!(%error, "the list of endorsements can't be kept");
        }
    }

    /// Renews what ends soon, and gets what is missing.
    async fn refresh(&self, at: u64) -> Vec<Found> {
        let late = std::mem::take(&mut *lock(&self.late));
        let found = self.each(self.fetcher.as_ref(), &late, at, AHEAD).await;
        self.want(&found);
        found
    }

    /// What ought to be there, and whether it is, for the doctor; asks nobody.
    pub async fn look(&self) -> Vec<EndorsementFact> {
        let found = self.each(self.offline.as_ref(), &[], now(), 0).await;
        let fact = |found: &Found| EndorsementFact {
            document: found.document.to_string(),
            there: found.is_there(),
            until: found.until,
        };
        found.iter().map(fact).collect()
    }

    async fn each(&self, fetcher: Option<&Fetcher>, late: &[Document], at: u64, ahead: u64) -> Vec<Found> {
        let wanted = lock(&self.wanted).clone();
        let late = late.iter().filter(|document| !wanted.contains(document));
        let mut all = Vec::new();
        let Some(fetcher) = fetcher else {
            return all;
        };
        let documents: Vec<Document> = self.own.iter().chain(&wanted).chain(late).cloned().collect();
        for document in documents {
            let found = fetcher.get(document, &all, at, ahead, &mut tell).await;
            all.push(found);
        }
        all
    }
}

/// Keeps what was ever needed current, for as long as the process runs.
pub async fn keep(ctx: std::sync::Arc<crate::supervisor::Ctx>) {
    let mut ticks = tokio::time::interval(REFRESH);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = ctx.endorsements.wake.notified() => {}
        }
        ctx.endorsements.refresh(now()).await;
    }
}

fn tell(event: Event<'_>) {
    let found = match event {
        Event::Done(found) => found,
        Event::Waits {
            document,
            error,
            pause,
        } => {
            tracing::info!(%document, %error, ?pause, "a maker's service is asked again");
            return;
        }
    };
    let document = &found.document;
    match &found.outcome {
        Outcome::Kept | Outcome::Missing(FetchError::Offline) => {}
        Outcome::Fetched => tracing::info!(%document, "endorsement fetched"),
        Outcome::Unkept(error) => tracing::warn!(%document, %error, "an endorsement can't be kept"),
        Outcome::Stale(error) => {
            tracing::warn!(%document, %error, "an endorsement that ends soon can't be renewed")
        }
        Outcome::Missing(error) => tracing::warn!(%document, %error, "an endorsement is missing"),
    }
}

/// Evidence and endorsements within what the ledger takes: the largest are left out first.
fn bundle(evidence: Vec<u8>, found: &[Found]) -> Vec<u8> {
    let mut endorsements: Vec<Vec<u8>> = found
        .iter()
        .flat_map(Found::contents)
        .map(<[u8]>::to_vec)
        .collect();
    endorsements.sort_by_key(Vec::len);
    while !endorsements.is_empty() {
        let bundle = Bundle {
            evidence: evidence.clone(),
            endorsements: endorsements.clone(),
        };
        let cbor = bundle.to_cbor();
        if cbor.len() <= EVIDENCE_MAX {
            return cbor;
        }
        let bytes = endorsements.pop().map(|left_out| left_out.len());
        tracing::warn!(
            bytes,
            "an endorsement doesn't fit beside the evidence and is left out"
        );
    }
    evidence
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Unix seconds.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use attestation::sim::{Launch, Platform};
    use attestation::snp::{Product, VekKind};
    use attestation::{
        CpuEvidence, Endorsements, Evidence, GuestKeys, Policy, Requirement, Verdict, verify_any,
    };

    /// 2026-09-01.
    const AT: u64 = 1_788_220_800;

    /// AMD's service for one simulated chip; its CRL ends on the third of September, and later ones on the thirtieth.
    async fn service(platform: &Platform, crls: [Vec<u8>; 2]) -> (Sources, Arc<AtomicUsize>) {
        use base64::Engine;
        let [vcek, ask, ark] = <[Vec<u8>; 3]>::try_from(platform.certificates()).unwrap();
        let pem = |der: &Vec<u8>| {
            let body = base64::engine::general_purpose::STANDARD.encode(der);
            format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
        };
        let chain = (pem(&ask) + &pem(&ark)).into_bytes();
        let crl_path = "/vcek/v1/Genoa/crl".to_owned();
        let chip = hex::encode(platform.to_parts().chip_id);
        let fixed = BTreeMap::from([
            ("/vcek/v1/Genoa/cert_chain".to_owned(), chain),
            (format!("/vcek/v1/Genoa/{chip}"), vcek),
        ]);
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        let app = axum::Router::new().fallback(move |request: axum::extract::Request| {
            counter.fetch_add(1, Ordering::SeqCst);
            let path = request.uri().path().to_owned();
            let fresh = counter.load(Ordering::SeqCst) > 3;
            let crl = (path == crl_path).then(|| crls[usize::from(fresh)].clone());
            let content = crl.or_else(|| fixed.get(&path).cloned());
            async move { content.ok_or(axum::http::StatusCode::NOT_FOUND) }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let url = Some(url.as_str());
        (Sources::new(url, url, url, url).unwrap(), asked)
    }

    /// A VM's, without certificates.
    fn evidence(platform: &Platform) -> Vec<u8> {
        let launch = Launch {
            measurement: [1; 48],
            host_data: [2; 32],
            policy: 0x3_0000,
        };
        let cpu = CpuEvidence::SevSnp {
            report: platform.report(&launch, &[3; 64]).unwrap(),
            certificates: Vec::new(),
        };
        Evidence {
            cpu,
            guest_keys: GuestKeys::default(),
        }
        .to_cbor()
    }

    #[tokio::test]
    async fn a_report_without_certificates_reaches_the_ledger_with_all_it_needs() {
        let (platform, issuer) = Platform::create_with_crls().unwrap();
        let crls =
            ["260903000000Z", "260930000000Z"].map(|end| issuer.crl(&[], "260830000000Z", end).unwrap());
        let (sources, asked) = service(&platform, crls).await;
        let roots = || Roots::pinned().with_test_root(platform.root()).unwrap();
        let state = tempfile::tempdir().unwrap();
        let evidence = evidence(&platform);

        let keeper = Keeper::with(Some(sources.clone()), state.path(), roots(), Vec::new()).unwrap();
        let sent = keeper.complete_at(evidence.clone(), AT, COMPLETE_WITHIN).await;
        assert_eq!(asked.load(Ordering::SeqCst), 3);
        let bundle = Bundle::from_cbor(&sent).unwrap();
        assert_eq!(bundle.evidence, evidence);
        let mut endorsements = Endorsements::none();
        bundle.add_to(&mut endorsements).unwrap();
        let policy = Policy {
            required: [Requirement::Revocation].into(),
            ..Policy::default()
        };
        let parsed = AnyEvidence::parse(&bundle.evidence).unwrap();
        let result = verify_any(&parsed, &endorsements, &roots(), &policy, AT);
        assert_eq!(result.verdict, Verdict::Verified, "{result}");

        // Another daemon over the same folder knows what to keep current: only the CRL ends soon.
        let keeper = Keeper::with(Some(sources), state.path(), roots(), Vec::new()).unwrap();
        let found = keeper.refresh(AT + 3600).await;
        let fetched: Vec<bool> = found
            .iter()
            .map(|found| found.outcome == Outcome::Fetched)
            .collect();
        assert_eq!(fetched, [false, true, false], "{found:?}");
        assert_eq!(asked.load(Ordering::SeqCst), 4);

        // And the next guest waits for nobody.
        let offline = Keeper::with(None, state.path(), roots(), Vec::new()).unwrap();
        let sent = offline
            .complete_at(evidence.clone(), AT + 20 * 24 * 3600, COMPLETE_WITHIN)
            .await;
        assert_eq!(Bundle::from_cbor(&sent).unwrap().endorsements.len(), 3);

        // With nothing at hand the evidence goes alone.
        let empty = tempfile::tempdir().unwrap();
        let keeper = Keeper::with(None, empty.path(), roots(), Vec::new()).unwrap();
        assert_eq!(
            keeper.complete_at(evidence.clone(), AT, COMPLETE_WITHIN).await,
            evidence
        );
        let list = empty.path().join("endorsements").join(WANTED);
        assert!(!list.exists(), "what nobody has isn't asked for every hour");
        assert_eq!(Keeper::off().complete(evidence.clone()).await, evidence);
        // What is no evidence passes through: the ledger refuses it.
        let keeper = Keeper::with(None, state.path(), roots(), Vec::new()).unwrap();
        assert_eq!(
            keeper.complete_at(b"noise".to_vec(), AT, COMPLETE_WITHIN).await,
            b"noise"
        );
    }

    #[tokio::test]
    async fn what_the_machine_needs_by_itself_is_there_before_the_first_guest() {
        let (platform, issuer) = Platform::create_with_crls().unwrap();
        let crls = ["260930000000Z"; 2].map(|end| issuer.crl(&[], "260830000000Z", end).unwrap());
        let (sources, asked) = service(&platform, crls).await;
        let roots = || Roots::pinned().with_test_root(platform.root()).unwrap();
        let evidence = evidence(&platform);
        let AnyEvidence::Vm(parsed) = AnyEvidence::parse(&evidence).unwrap() else {
            panic!("a VM's evidence")
        };
        let CpuEvidence::SevSnp { report, .. } = &parsed.vm.cpu else {
            panic!("an SNP report")
        };
        let report = attestation::snp::Report::parse(report).unwrap();
        let (product, vek) = (Product::Genoa, VekKind::Vcek);
        let own = vec![
            Document::AmdChain { product, vek },
            Document::AmdCrl { product, vek },
            Document::vcek(product, &report.chip_id(), report.reported_tcb(product)),
        ];
        let state = tempfile::tempdir().unwrap();

        // Nobody can be asked: the doctor names what is missing, though no guest has needed it.
        let alone = Keeper::with(None, state.path(), roots(), own.clone()).unwrap();
        assert!(alone.look().await.iter().all(|fact| !fact.there));
        assert_eq!(alone.look().await.len(), 3);

        let keeper = Keeper::with(Some(sources), state.path(), roots(), own).unwrap();
        keeper.refresh(AT).await;
        assert_eq!(asked.load(Ordering::SeqCst), 3);
        let sent = keeper.complete_at(evidence, AT, COMPLETE_WITHIN).await;
        assert_eq!(Bundle::from_cbor(&sent).unwrap().endorsements.len(), 3);
        assert_eq!(
            asked.load(Ordering::SeqCst),
            3,
            "the first guest waits for nobody"
        );
    }

    #[tokio::test]
    async fn what_evidence_cannot_wait_for_is_got_for_the_next() {
        let (platform, issuer) = Platform::create_with_crls().unwrap();
        let crls = ["260930000000Z"; 2].map(|end| issuer.crl(&[], "260830000000Z", end).unwrap());
        let (sources, asked) = service(&platform, crls).await;
        let roots = Roots::pinned().with_test_root(platform.root()).unwrap();
        let evidence = evidence(&platform);
        let state = tempfile::tempdir().unwrap();
        let keeper = Keeper::with(Some(sources), state.path(), roots, Vec::new()).unwrap();
        let sent = keeper.complete_at(evidence.clone(), AT, Duration::ZERO).await;
        assert_eq!(sent, evidence, "it goes alone");
        let woken = tokio::time::timeout(Duration::ZERO, keeper.wake.notified()).await;
        assert!(woken.is_ok(), "and the rest is got now, not in an hour");
        assert_eq!(keeper.refresh(AT).await.len(), 3);
        let before = asked.load(Ordering::SeqCst);
        let sent = keeper.complete_at(evidence, AT, COMPLETE_WITHIN).await;
        assert_eq!(Bundle::from_cbor(&sent).unwrap().endorsements.len(), 3);
        assert_eq!(asked.load(Ordering::SeqCst), before);
    }
}
