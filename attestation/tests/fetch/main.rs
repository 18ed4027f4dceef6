//! Endorsements are fetched from services that behave like the makers', bad habits included; all of them on loopback.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod server;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime};

use attestation::fetch::{
    Document, Event, FetchError, Fetcher, Found, Outcome, Patience, PckCa, Sources, needed,
};
use attestation::nvidia::GpuEvidence;
use attestation::sim::tdx::{CrlOf, FMSPC, Td, TdxPlatform};
use attestation::sim::{CrlIssuer, Gpu, GpuFacts, Launch, OcspSigner, OcspStatus, Platform, RimFacts};
use attestation::snp::{Product, VekKind};
use attestation::{AnyEvidence, Endorsements, Policy, Requirement, Roots, Verdict, verify_any};
use server::{Reply, Server};

/// 2026-09-01.
const AT: u64 = 1_788_220_800;
const DAY: u64 = 24 * 3600;
/// Times of a CRL around [`AT`] that ends in two days.
const CRL: [&str; 2] = ["260830000000Z", "260903000000Z"];
const LONG: [&str; 2] = ["240101000000Z", "490101000000Z"];

static SNP: LazyLock<(Platform, CrlIssuer)> = LazyLock::new(|| Platform::create_with_crls().unwrap());

fn report() -> Vec<u8> {
    let launch = Launch {
        measurement: [1; 48],
        host_data: [2; 32],
        policy: 0x3_0000,
    };
    SNP.0.report(&launch, &[3; 64]).unwrap()
}

fn pem(certificates: &[&[u8]]) -> String {
    use der::pem::{LineEnding, encode_string};
    let block = |der: &&[u8]| encode_string("CERTIFICATE", LineEnding::LF, der).unwrap();
    certificates.iter().map(block).collect()
}

fn vectors() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

fn header(pem: &str) -> String {
    percent_encoding::utf8_percent_encode(pem, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// Where AMD's service has the VCEK of the simulated chip.
fn vcek_path() -> String {
    let parts = SNP.0.to_parts();
    format!(
        "/vcek/v1/Genoa/{}?blSPL=10&teeSPL=00&snpSPL=23&ucodeSPL=84",
        hex::encode(parts.chip_id)
    )
}

const CHAIN: &str = "/vcek/v1/Genoa/cert_chain";
const CRL_PATH: &str = "/vcek/v1/Genoa/crl";

/// AMD's service for the simulated chip.
async fn kds(crl: [&str; 2]) -> Server {
    let server = Server::start().await;
    let [vcek, ask, ark] = <[Vec<u8>; 3]>::try_from(SNP.0.certificates()).unwrap();
    server.tell(&vcek_path(), vec![Reply::ok(vcek)]);
    server.tell(CHAIN, vec![Reply::ok(pem(&[&ask, &ark]))]);
    server.tell(CRL_PATH, vec![Reply::ok(SNP.1.crl(&[], crl[0], crl[1]).unwrap())]);
    server
}

fn sources(server: &Server) -> Sources {
    let url = Some(server.url.as_str());
    Sources::new(url, url, url, url).unwrap()
}

fn roots(der: &[u8]) -> Roots {
    Roots::pinned().with_test_root(der).unwrap()
}

async fn complete(fetcher: &Fetcher, evidence: &AnyEvidence, at: u64) -> Vec<Found> {
    let mut heard = 0;
    let mut hear = |event: Event<'_>| heard += usize::from(matches!(event, Event::Done(_)));
    let given = Endorsements::none();
    let (found, needs) = fetcher.complete(evidence, &given, at, DAY, &mut hear).await;
    assert_eq!(needs.gaps, Vec::<String>::new());
    assert_eq!(heard, found.len(), "progress hears of each document once");
    found
}

fn outcomes(found: &[Found]) -> Vec<&Outcome> {
    found.iter().map(|found| &found.outcome).collect()
}

#[tokio::test]
async fn an_snp_report_alone_gets_all_it_needs_and_asks_once() {
    let server = kds(CRL).await;
    let folder = tempfile::tempdir().unwrap();
    let evidence = AnyEvidence::parse(&report()).unwrap();
    let fetcher = Fetcher::new(folder.path(), Some(sources(&server)), roots(SNP.0.root())).unwrap();

    let found = complete(&fetcher, &evidence, AT).await;
    assert_eq!(outcomes(&found), [&Outcome::Fetched; 3], "{found:?}");
    assert_eq!(server.asked(), [CHAIN, CRL_PATH, vcek_path().as_str()]);
    let policy = Policy {
        required: [Requirement::Revocation].into(),
        ..Policy::default()
    };
    let endorsements = fetcher.endorsements(&found);
    let result = verify_any(&evidence, &endorsements, &roots(SNP.0.root()), &policy, AT);
    assert_eq!(result.verdict, Verdict::Verified, "{result}");

    let again = complete(&fetcher, &evidence, AT).await;
    assert_eq!(outcomes(&again), [&Outcome::Kept; 3], "{again:?}");
    assert_eq!(server.asked(), [""; 0]);

    // The CRL ends within a day: it is renewed ahead of that, and only it.
    let renewed = complete(&fetcher, &evidence, AT + DAY + DAY / 2).await;
    assert_eq!(
        renewed
            .iter()
            .filter(|found| found.outcome == Outcome::Fetched)
            .count(),
        1
    );
    assert_eq!(server.asked(), [CRL_PATH]);

    // Two guests at once don't take each other's files away.
    let both = tempfile::tempdir().unwrap();
    let fetcher = Fetcher::new(both.path(), Some(sources(&server)), roots(SNP.0.root())).unwrap();
    let (one, other) = tokio::join!(
        complete(&fetcher, &evidence, AT),
        complete(&fetcher, &evidence, AT)
    );
    assert!(one.iter().chain(&other).all(Found::is_there), "{one:?} {other:?}");
    assert_eq!(std::fs::read_dir(both.path()).unwrap().count(), 3);

    let offline = Fetcher::new(folder.path(), None, roots(SNP.0.root())).unwrap();
    let found = complete(&offline, &evidence, AT + DAY + DAY / 2).await;
    assert_eq!(outcomes(&found), [&Outcome::Kept; 3], "{found:?}");
    let late = complete(&offline, &evidence, AT + 3 * DAY).await;
    let missing = Outcome::Missing(FetchError::Offline);
    assert_eq!(outcomes(&late), [&Outcome::Kept, &missing, &Outcome::Kept]);
}

#[tokio::test]
async fn a_bad_answer_is_named_and_never_takes_a_good_ones_place() {
    let server = kds(CRL).await;
    let folder = tempfile::tempdir().unwrap();
    let evidence = AnyEvidence::parse(&report()).unwrap();
    let fetcher = Fetcher::new(folder.path(), Some(sources(&server)), roots(SNP.0.root())).unwrap();
    complete(&fetcher, &evidence, AT).await;
    let good = std::fs::read(crl_file(folder.path())).unwrap();

    let (other, other_crls) = Platform::create_with_crls().unwrap();
    let forged = other_crls.crl(&[], CRL[0], "260930000000Z").unwrap();
    let stale = SNP.1.crl(&[], "260701000000Z", "260801000000Z").unwrap();
    let mut truncated = good.clone();
    truncated.truncate(good.len() - 1);
    for (what, reply, why) in [
        (
            "an HTML page with 200",
            Reply::ok("<html>maintenance</html>"),
            "not a CRL",
        ),
        ("a truncated CRL", Reply::ok(truncated), "not a CRL"),
        ("nothing", Reply::ok(""), "not a CRL"),
        (
            "somebody else's CRL",
            Reply::ok(forged),
            "not a CRL signed by ARK-Genoa",
        ),
        (
            "a certificate",
            Reply::ok(other.certificates().remove(0)),
            "not a CRL",
        ),
        (
            "last month's CRL",
            Reply::ok(stale),
            "it was valid until 2026-07-31T23:59:59Z",
        ),
        ("a flood", Reply::Flood, "far too long"),
        ("gone", Reply::status(404), "doesn't have it"),
        ("forbidden", Reply::status(403), "answers 403"),
        (
            "another place",
            Reply::Give(
                302,
                vec![("location", format!("{}elsewhere", server.url))],
                Vec::new(),
            ),
            "answers 302",
        ),
    ] {
        server.tell(CRL_PATH, vec![reply]);
        let found = complete(&fetcher, &evidence, AT + DAY + DAY / 2).await;
        let Outcome::Stale(error) = &found[1].outcome else {
            panic!("{what}: {found:?}")
        };
        assert!(error.to_string().contains(why), "{what}: {error}");
        assert_eq!(std::fs::read(crl_file(folder.path())).unwrap(), good, "{what}");
    }
    assert!(!server.asked().contains(&"/elsewhere".to_owned()));

    // A file that somebody changed is no good file: it is fetched anew.
    std::fs::write(crl_file(folder.path()), b"x").unwrap();
    server.tell(CRL_PATH, vec![Reply::ok(good.clone())]);
    let found = complete(&fetcher, &evidence, AT).await;
    assert_eq!(found[1].outcome, Outcome::Fetched);
    assert_eq!(std::fs::read(crl_file(folder.path())).unwrap(), good);
}

fn crl_file(folder: &Path) -> std::path::PathBuf {
    let document = Document::AmdCrl {
        product: Product::Genoa,
        vek: VekKind::Vcek,
    };
    folder.join(document.file_name())
}

#[tokio::test]
async fn a_vcek_must_be_the_chips_own_at_its_own_tcb() {
    let server = kds(CRL).await;
    let evidence = AnyEvidence::parse(&report()).unwrap();
    let other = Platform::create().unwrap();
    for (what, reply, why) in [
        (
            "another chip's",
            other.certificates().remove(0),
            "of another chip",
        ),
        ("the intermediate", SNP.0.certificates().remove(1), "not a VCEK"),
        (
            "a truncated one",
            SNP.0.certificates().remove(0)[..700].to_vec(),
            "not a certificate",
        ),
        (
            "a captive portal's page",
            b"<html>log in</html>".to_vec(),
            "not a certificate",
        ),
        (
            "one of AMD's for a Milan",
            std::fs::read(vectors().join("snp/milan-v3-msft/vek.der")).unwrap(),
            "of another chip",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let fetcher = Fetcher::new(folder.path(), Some(sources(&server)), roots(SNP.0.root())).unwrap();
        server.tell(&vcek_path(), vec![Reply::ok(reply)]);
        let found = complete(&fetcher, &evidence, AT).await;
        let Outcome::Missing(error) = &found[2].outcome else {
            panic!("{what}: {found:?}")
        };
        assert!(error.to_string().contains(why), "{what}: {error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "{what}");
    }
    // The right one, but nobody trusts its root.
    let folder = tempfile::tempdir().unwrap();
    server.tell(&vcek_path(), vec![Reply::ok(SNP.0.certificates().remove(0))]);
    let fetcher = Fetcher::new(folder.path(), Some(sources(&server)), Roots::pinned()).unwrap();
    let found = complete(&fetcher, &evidence, AT).await;
    assert!(found.iter().all(|found| !found.is_there()), "{found:?}");
}

#[tokio::test]
async fn a_busy_server_is_asked_again_but_not_for_ever() {
    let server = kds(CRL).await;
    let evidence = AnyEvidence::parse(&report()).unwrap();
    let vcek = SNP.0.certificates().remove(0);
    let busy = Reply::Give(429, vec![("retry-after", "0".to_owned())], Vec::new());
    server.tell(&vcek_path(), vec![busy.clone(), busy.clone(), Reply::ok(vcek)]);
    let folder = tempfile::tempdir().unwrap();
    let fetcher = Fetcher::new(folder.path(), Some(sources(&server)), roots(SNP.0.root())).unwrap();
    let found = complete(&fetcher, &evidence, AT).await;
    assert_eq!(found[2].outcome, Outcome::Fetched);
    assert_eq!(server.asked().len(), 5);

    let folder = tempfile::tempdir().unwrap();
    let fetcher = Fetcher::new(folder.path(), Some(sources(&server)), roots(SNP.0.root())).unwrap();
    server.tell(&vcek_path(), vec![busy]);
    let found = complete(&fetcher, &evidence, AT).await;
    let Outcome::Missing(FetchError::Refused { status: 429, .. }) = &found[2].outcome else {
        panic!("{found:?}")
    };
    assert_eq!(server.asked().len(), 2 + 4, "four attempts, not more");
}

/// Both forms of RFC 9110, 10.2.3: what a server asks for is done, or it is left alone.
#[tokio::test]
async fn a_server_is_left_alone_for_as_long_as_it_wants() {
    let server = kds(CRL).await;
    let evidence = AnyEvidence::parse(&report()).unwrap();
    let vcek = SNP.0.certificates().remove(0);
    let busy = |when: String| Reply::Give(503, vec![("retry-after", when)], Vec::new());
    let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3));
    for (when, waits) in [("1".to_owned(), 1), (soon, 1)] {
        server.tell(&vcek_path(), vec![busy(when.clone()), Reply::ok(vcek.clone())]);
        let folder = tempfile::tempdir().unwrap();
        let fetcher = Fetcher::new(folder.path(), Some(sources(&server)), roots(SNP.0.root())).unwrap();
        let mut pauses = Vec::new();
        let mut hear = |event: Event<'_>| {
            if let Event::Waits { pause, error, .. } = event {
                assert!(
                    error.to_string().contains("answers 503, and to ask again in"),
                    "{error}"
                );
                pauses.push(pause);
            }
        };
        let began = Instant::now();
        let given = Endorsements::none();
        let (found, _) = fetcher.complete(&evidence, &given, AT, DAY, &mut hear).await;
        assert_eq!(found[2].outcome, Outcome::Fetched, "{when}");
        assert_eq!(pauses.len(), waits);
        assert!(
            began.elapsed() >= pauses[0] && pauses[0] <= Duration::from_secs(3),
            "{pauses:?}"
        );
    }

    // An hour is more than anybody waits: it isn't asked again, neither then nor sooner.
    server.asked();
    let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3600));
    for when in ["3600".to_owned(), later] {
        server.tell(&vcek_path(), vec![busy(when)]);
        let folder = tempfile::tempdir().unwrap();
        let fetcher = Fetcher::new(folder.path(), Some(sources(&server)), roots(SNP.0.root())).unwrap();
        let found = complete(&fetcher, &evidence, AT).await;
        let Outcome::Missing(error) = &found[2].outcome else {
            panic!("{found:?}")
        };
        assert!(error.to_string().contains("ask again in 3"), "{error}");
        assert_eq!(server.asked().len(), 3, "once each");
        // Nor is it asked for anything else.
        let again = complete(&fetcher, &evidence, AT + 2 * DAY).await;
        let outcomes: Vec<String> = again.iter().map(|found| format!("{:?}", found.outcome)).collect();
        assert!(
            outcomes[1].contains("Busy") && outcomes[2].contains("Busy"),
            "{outcomes:?}"
        );
        assert_eq!(server.asked().len(), 0);
    }
}

#[tokio::test]
async fn a_slow_server_costs_a_bounded_time() {
    let server = kds(CRL).await;
    server.tell(CRL_PATH, vec![Reply::Drip]);
    let evidence = AnyEvidence::parse(&report()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let patience = Patience {
        request: Duration::from_millis(200),
        document: Duration::from_millis(1_500),
    };
    let fetcher = Fetcher::new(folder.path(), Some(sources(&server)), roots(SNP.0.root()))
        .and_then(|fetcher| fetcher.with_patience(patience))
        .unwrap();
    let began = Instant::now();
    let found = complete(&fetcher, &evidence, AT).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let Outcome::Missing(FetchError::Unreachable { why, .. }) = &found[1].outcome else {
        panic!("{found:?}")
    };
    assert!(why.contains("timed out"), "{why}");
    assert!(found[0].is_there() && found[2].is_there(), "the others came");
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_named() {
    let server = kds(CRL).await;
    let evidence = AnyEvidence::parse(&report()).unwrap();
    let place = tempfile::NamedTempFile::new().unwrap();
    let fetcher = Fetcher::new(place.path(), Some(sources(&server)), roots(SNP.0.root())).unwrap();
    let found = complete(&fetcher, &evidence, AT).await;
    assert_eq!(found.len(), 3);
    for found in &found {
        let Outcome::Unkept(FetchError::Local(why)) = &found.outcome else {
            panic!("{found:?}")
        };
        assert!(why.starts_with("cannot write"), "{why}");
        assert!(found.is_there() && found.files.is_empty());
    }
    // What came is used all the same.
    let endorsements = fetcher.endorsements(&found);
    let policy = Policy {
        required: [Requirement::Revocation].into(),
        ..Policy::default()
    };
    let result = verify_any(&evidence, &endorsements, &roots(SNP.0.root()), &policy, AT);
    assert_eq!(result.verdict, Verdict::Verified, "{result}");
}

#[test]
fn what_a_dead_process_left_half_written_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let old = SystemTime::now() - Duration::from_secs(2 * 3600);
    for (name, modified) in [
        ("a.1-0.new", old),
        ("b.2-0.new", SystemTime::now()),
        ("c.der", old),
    ] {
        let file = std::fs::File::create(path(name)).unwrap();
        file.set_modified(modified).unwrap();
    }
    Fetcher::new(folder.path(), None, Roots::pinned()).unwrap();
    let there = ["a.1-0.new", "b.2-0.new", "c.der"].map(|name| path(name).exists());
    assert_eq!(there, [false, true, true], "what may be in the making stays");
}

#[tokio::test]
async fn a_tdx_quote_gets_intels_collateral_with_its_signers() {
    let platform = TdxPlatform::create().unwrap();
    let [_, ca, root] = platform.chain().map(<[u8]>::to_vec);
    let dates = ["2026-08-20T00:00:00Z", "2026-09-20T00:00:00Z"];
    let tcb_info = platform.tcb_info(dates[0], dates[1]);
    let qe_identity = platform.qe_identity(dates[0], dates[1]);
    let crl = |of| platform.crl(of, &[], CRL[0], CRL[1]).unwrap();
    let (root_crl, pck_crl) = (crl(CrlOf::Root), crl(CrlOf::PckCa));
    // The signers' chain is in the library's own form of the collateral.
    let all = platform
        .collateral(&tcb_info, &qe_identity, &root_crl, &pck_crl)
        .unwrap();
    let all: serde_json::Value = serde_json::from_str(&all).unwrap();
    let signers = header(all["tcb_info_issuer_chain"].as_str().unwrap());
    let signed = |key: &str, document: &serde_json::Value| {
        let text = document.to_string();
        format!(
            "{{\"{key}\":{text},\"signature\":\"{}\"}}",
            platform.sign_text(&text).unwrap()
        )
    };
    let server = Server::start().await;
    let tcb = format!("/tdx/certification/v4/tcb?fmspc={}", hex::encode(FMSPC));
    let give =
        |name, chain: &str, body: String| Reply::Give(200, vec![(name, chain.to_owned())], body.into());
    server.tell(
        &tcb,
        vec![give(
            "TCB-Info-Issuer-Chain",
            &signers,
            signed("tcbInfo", &tcb_info),
        )],
    );
    server.tell(
        "/tdx/certification/v4/qe/identity",
        vec![give(
            "SGX-Enclave-Identity-Issuer-Chain",
            &signers,
            signed("enclaveIdentity", &qe_identity),
        )],
    );
    let crl_path = "/sgx/certification/v4/pckcrl?ca=platform&encoding=der";
    let ca_chain = header(&pem(&[&ca, &root]));
    server.tell(
        crl_path,
        vec![Reply::Give(
            200,
            vec![("SGX-PCK-CRL-Issuer-Chain", ca_chain)],
            pck_crl,
        )],
    );
    // As a PCCS gives it.
    server.tell(
        "/sgx/certification/v4/rootcacrl",
        vec![Reply::ok(hex::encode(&root_crl))],
    );

    let quote = platform.quote(&Td::default(), &[3; 64]).unwrap();
    let evidence = AnyEvidence::parse(&quote).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let fetcher = Fetcher::new(folder.path(), Some(sources(&server)), roots(platform.root())).unwrap();
    let found = complete(&fetcher, &evidence, AT).await;
    assert_eq!(outcomes(&found), [&Outcome::Fetched; 4], "{found:?}");
    let policy = Policy {
        required: [Requirement::Revocation].into(),
        ..Policy::default()
    };
    let result = verify_any(
        &evidence,
        &fetcher.endorsements(&found),
        &roots(platform.root()),
        &policy,
        AT,
    );
    assert_eq!(result.verdict, Verdict::Verified, "{result}");

    for (what, document, reply, why) in [
        (
            "re-serialised",
            Document::TcbInfo {
                fmspc: hex::encode(FMSPC),
            },
            give(
                "TCB-Info-Issuer-Chain",
                &signers,
                signed("tcbInfo", &tcb_info).replace(":20,", ": 20,"),
            ),
            "not signed by Intel",
        ),
        (
            "without its signers",
            Document::TcbInfo {
                fmspc: hex::encode(FMSPC),
            },
            Reply::ok(signed("tcbInfo", &tcb_info)),
            "certificates are missing",
        ),
        (
            "the enclave's identity",
            Document::TcbInfo {
                fmspc: hex::encode(FMSPC),
            },
            give(
                "TCB-Info-Issuer-Chain",
                &signers,
                signed("enclaveIdentity", &qe_identity),
            ),
            "not a TCB info",
        ),
    ] {
        server.tell(&tcb, vec![reply]);
        let folder = tempfile::tempdir().unwrap();
        let fetcher = Fetcher::new(folder.path(), Some(sources(&server)), roots(platform.root())).unwrap();
        let found = fetcher.get(document, &[], AT, DAY, &mut |_| ()).await;
        let Outcome::Missing(error) = &found.outcome else {
            panic!("{what}: {found:?}")
        };
        assert!(error.to_string().contains(why), "{what}: {error}");
    }
}

#[tokio::test]
async fn a_gpus_manifests_come_first_and_then_the_word_about_their_signers() {
    let gpu = Gpu::create(None).unwrap();
    let fresh = ["20260831000000Z", "20260902000000Z"];
    let server = Server::start().await;
    let rim = |version: &str, index: u8| {
        let facts = RimFacts {
            product: "GH100".to_owned(),
            version: version.to_owned(),
            measurements: vec![(index, true, vec![vec![index; 48]])],
        };
        use base64::Engine;
        let xml = base64::engine::general_purpose::STANDARD.encode(gpu.rim(&facts).unwrap());
        serde_json::json!({ "rim": xml }).to_string()
    };
    server.tell(
        "/v1/rim/NV_GPU_DRIVER_GH100_590.12",
        vec![Reply::ok(rim("590.12", 1))],
    );
    server.tell(
        "/v1/rim/NV_GPU_VBIOS_G520_0200_885_96009F0001",
        vec![Reply::ok(rim("96.00.9F.00.01", 3))],
    );
    // In the order in which the chain is asked about: the ROM, the provisioner, the identity, then the manifests' signer.
    let good = |index| {
        Reply::ok(
            gpu.ocsp(index, OcspStatus::Good, OcspSigner::Issuer, fresh)
                .unwrap(),
        )
    };
    server.tell("/", [1, 2, 3, 0].map(good).to_vec());

    let evidence = AnyEvidence::Gpu(vec![GpuEvidence::new(
        gpu.report(&GpuFacts::default()).unwrap(),
        gpu.chain(),
    )]);
    let folder = tempfile::tempdir().unwrap();
    let fetcher = Fetcher::new(folder.path(), Some(sources(&server)), roots(gpu.root())).unwrap();
    let found = complete(&fetcher, &evidence, AT).await;
    assert!(found.iter().all(Found::is_there), "{found:#?}");
    assert_eq!(server.bodies().len(), 4);
    let policy = Policy {
        required: [Requirement::Revocation, Requirement::Measurement].into(),
        ..Policy::default()
    };
    let result = verify_any(
        &evidence,
        &fetcher.endorsements(&found),
        &roots(gpu.root()),
        &policy,
        AT,
    );
    assert_eq!(result.verdict, Verdict::Verified, "{result}");
}

#[test]
fn what_is_asked_for_is_what_the_makers_document() {
    let urls = |path: &str| -> Vec<String> {
        let evidence = AnyEvidence::parse(&std::fs::read(vectors().join(path)).unwrap()).unwrap();
        let needs = needed(&evidence, &Endorsements::none(), None, &Roots::pinned(), AT);
        let url = |document: &Document| document.request(&Sources::default()).unwrap().url.to_string();
        needs.documents.iter().map(url).chain(needs.gaps).collect()
    };
    let turin = urls("snp/turin-v5-msft/report.bin");
    assert_eq!(turin[0], "https://kdsintf.amd.com/vcek/v1/Turin/cert_chain");
    assert_eq!(turin[1], "https://kdsintf.amd.com/vcek/v1/Turin/crl");
    let (path, query) = turin[2].split_once('?').unwrap();
    assert_eq!(
        path.rsplit('/').next().unwrap().len(),
        16,
        "eight bytes of chip id: {path}"
    );
    assert!(
        query.starts_with("fmcSPL=") && query.matches("SPL=").count() == 5,
        "{query}"
    );
    let genoa = urls("snp/genoa-v3-msft/report.bin");
    assert_eq!(
        genoa[2]
            .split_once('?')
            .unwrap()
            .0
            .rsplit('/')
            .next()
            .unwrap()
            .len(),
        128
    );

    let tdx = urls("tdx/tdx-v4-lunaldev-3ab56d67/quote.bin");
    assert!(
        tdx[0].starts_with("https://api.trustedservices.intel.com/tdx/certification/v4/tcb?fmspc="),
        "{tdx:?}"
    );
    assert_eq!(
        tdx[0].len(),
        "https://api.trustedservices.intel.com/tdx/certification/v4/tcb?fmspc=".len() + 12
    );
    assert_eq!(
        tdx[1..],
        [
            "https://api.trustedservices.intel.com/tdx/certification/v4/qe/identity",
            "https://api.trustedservices.intel.com/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
            "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
        ]
    );
}

#[test]
fn what_nobody_can_ask_for_is_a_gap() {
    for (path, gap) in [
        ("snp/milan-v2-virtee/report.bin", "doesn't say which product"),
        (
            "snp/milan-v3-aws-vlek-trustee-vmpl1/report.bin",
            "only the cloud provider has it",
        ),
        ("tdx/tdreport/lunal-tdreport.bin", "TDREPORT"),
    ] {
        let evidence = AnyEvidence::parse(&std::fs::read(vectors().join(path)).unwrap()).unwrap();
        let needs = needed(&evidence, &Endorsements::none(), None, &Roots::pinned(), AT);
        assert!(
            needs.gaps.iter().any(|found| found.contains(gap)),
            "{path}: {needs:?}"
        );
    }
}

/// A report of version 2 names no product: whoever asks does, or a certificate that is there.
#[test]
fn a_report_of_version_2_is_completed_by_what_is_known() {
    let read = |path: &str| std::fs::read(vectors().join(path)).unwrap();
    let evidence = AnyEvidence::parse(&read("snp/milan-v2-virtee/report.bin")).unwrap();
    let told = needed(
        &evidence,
        &Endorsements::none(),
        Some(Product::Milan),
        &Roots::pinned(),
        AT,
    );
    assert_eq!(told.gaps, [""; 0]);
    assert!(
        told.documents.iter().any(|document| matches!(
            document,
            Document::Vcek {
                product: Product::Milan,
                ..
            }
        )),
        "{told:?}"
    );
    let mut known = Endorsements::none();
    known.add(&read("snp/milan-v2-virtee/vek.der")).unwrap();
    let given = needed(&evidence, &known, None, &Roots::pinned(), AT);
    assert_eq!(given.gaps, [""; 0]);
    assert_eq!(given.documents.len(), 2, "chain and CRL: {given:?}");
}

#[test]
fn only_https_and_this_machine_are_asked() {
    for (url, why) in [
        ("http://kds.example.org/", "use https"),
        ("ftp://kds.example.org/", "use https"),
        ("kds.example.org", "not a URL"),
        ("https://kds.example.org/?a=b", "no query"),
    ] {
        let error = Sources::new(Some(url), None, None, None).unwrap_err();
        assert!(error.to_string().contains(why), "{url}: {error}");
    }
    let mirror = Sources::new(Some("https://mirror.example.org/kds"), None, None, None).unwrap();
    let document = Document::AmdCrl {
        product: Product::Milan,
        vek: VekKind::Vlek,
    };
    let url = document.request(&mirror).unwrap().url;
    assert_eq!(url.as_str(), "https://mirror.example.org/kds/vlek/v1/Milan/crl");
    let pccs = Sources::new(None, Some("https://pccs.example.org:8081"), None, None).unwrap();
    let url = |document: Document| document.request(&pccs).unwrap().url.to_string();
    assert_eq!(
        url(Document::IntelRootCrl),
        "https://pccs.example.org:8081/sgx/certification/v4/rootcacrl"
    );
    assert_eq!(
        url(Document::PckCrl { ca: PckCa::Processor }),
        "https://pccs.example.org:8081/sgx/certification/v4/pckcrl?ca=processor&encoding=der"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_fetches_and_then_verifies_and_names_what_is_missing() {
    let server = kds(LONG).await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("report.bin"), report()).unwrap();
    std::fs::write(path("root.der"), SNP.0.root()).unwrap();
    let attest = |args: &[&str]| -> Output {
        Command::new(env!("CARGO_BIN_EXE_attest"))
            .args(args)
            .output()
            .unwrap()
    };
    let (report, out, root) = (path("report.bin"), path("endorsements"), path("root.der"));
    let fetch = [
        "fetch",
        &report,
        "--out",
        &out,
        "--kds",
        &server.url,
        "--trust-root",
        &root,
    ];

    let offline = attest(&[&fetch[..], &["--offline"]].concat());
    assert_eq!(offline.status.code(), Some(2), "{offline:?}");
    assert!(
        String::from_utf8_lossy(&offline.stderr).contains("missing  AMD's vcek CRL for Genoa"),
        "{offline:?}"
    );
    assert_eq!(server.asked(), [""; 0]);

    let fetched = attest(&[&fetch[..], &["--json"]].concat());
    assert_eq!(fetched.status.code(), Some(0), "{fetched:?}");
    let json: serde_json::Value = serde_json::from_slice(&fetched.stdout).unwrap();
    assert_eq!(json["complete"], true);
    assert_eq!(json["documents"].as_array().unwrap().len(), 3);

    let verify = [
        "verify",
        &report,
        "--endorsements",
        &out,
        "--trust-root",
        &root,
        "--require",
        "revocation",
    ];
    let verified = attest(&verify);
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    assert_eq!(attest(&fetch).status.code(), Some(0));
    assert_eq!(server.asked().len(), 3, "the second time everything was there");
}
