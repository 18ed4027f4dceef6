//! The whole way of a host's evidence: a real TPM (swtpm) that was extended as firmware extends it, hostd's quotes, a real
//! ledger node, and the grade that comes of it.

#![cfg(feature = "tpm")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use attestation::sim::{BootImage, ReferenceSigner};
use attestation::tpm::{AttestationKey, TpmDevice};
use attestation::{CpuEvidence, Evidence, GuestKeys};
use hostd::host_evidence::HostEvidence;
use hostd::ports::{EvidenceAsk, LedgerPort};
use hostd::wiring::Ledger;
use ledger::api::*;
use ledger::client::{Client, ClientConfig, Key, KeyKind};
use ledger::node::{self, Node};
use ledger::protocol::{Genesis, InitialBalance};

/// The ledger's clock runs so many times as fast: its minute between two nonces is a tenth of a second.
const RATE: u32 = 600;
const IMAGE: &str = "provider-os 1.0 (plain)";

/// A TPM that is powered; killed when it goes out of scope.
struct Swtpm {
    process: Child,
    port: u16,
}

impl Swtpm {
    /// Powers the TPM of `state`: its PCRs are as after a reset.
    fn start(state: &Path) -> Self {
        std::fs::create_dir_all(state).unwrap();
        let bind = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        // Its protocol wants the control port right behind the TPM's.
        let port = (0..100)
            .filter_map(|_| bind(0).ok()?.local_addr().ok())
            .map(|address| address.port())
            .find(|port| *port < u16::MAX && bind(port + 1).is_ok())
            .unwrap();
        let address = |port: u16| format!("type=tcp,port={port},bindaddr=127.0.0.1");
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--tpmstate"])
            .arg(format!("dir={}", state.display()))
            .args(["--server", &address(port), "--ctrl", &address(port + 1)])
            .args(["--flags", "not-need-init,startup-clear"])
            .stdout(Stdio::null())
            .spawn()
            .expect("swtpm (Debian package swtpm) must be installed");
        let tpm = Self { process, port };
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port + 1)).is_err() {
            assert!(Instant::now() < deadline, "swtpm doesn't listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        tpm
    }

    fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    /// Measures `digest` into a PCR, as firmware does: `TPM2_PCR_Extend` with an empty password.
    fn extend(&self, pcr: u32, digest: &[u8]) {
        let mut command = vec![0x80, 0x02, 0, 0, 0, 65, 0, 0, 0x01, 0x82];
        command.extend(pcr.to_be_bytes());
        command.extend([0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0]);
        command.extend([0, 0, 0, 1, 0, 0x0b]);
        command.extend(digest);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(&command).unwrap();
        let mut answer = [0; 19];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[6..10], [0; 4], "TPM2_PCR_Extend");
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A host that booted something.
struct Booted {
    _tpm: Swtpm,
    evidence: HostEvidence,
}

struct Setting {
    folder: tempfile::TempDir,
    references: PathBuf,
    developer: Client,
    host_client: Client,
    host: Ledger,
    offering: OfferingId,
    memo: u64,
    _node: tokio::task::JoinHandle<Result<(), node::NodeError>>,
}

fn new_key() -> Key {
    Key::from_pem(&Key::generate(KeyKind::Ed25519).unwrap()).unwrap()
}

impl Setting {
    async fn new(image: &BootImage) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let signer = ReferenceSigner::create().unwrap();
        let references = folder.path().join("references");
        std::fs::create_dir(&references).unwrap();
        let signed: serde_json::Value = serde_json::from_slice(&signer.sign(IMAGE, image).unwrap()).unwrap();
        let list = serde_json::json!([signed]).to_string();
        std::fs::write(references.join("os_1.0.references.json"), list).unwrap();

        let [developer, provider, host] = [new_key(), new_key(), new_key()];
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let mut genesis = Genesis::demo("host evidence", RATE, now);
        genesis.host_images.keys = vec![signer.public_pem().unwrap()];
        genesis.balances.push(InitialBalance {
            owner: developer.principal(),
            amount: 1_000 * DCT,
            reason: "the test's money".into(),
        });
        let dir = folder.path().join("ledger");
        node::init(&dir, &genesis, "http://127.0.0.1:1").unwrap();
        let node = Node::open(dir).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (canister_id, root_key) = (node.canister_id(), node.root_key().to_vec());
        let serving = tokio::spawn(node.serve(listener, std::future::pending::<()>()));
        let client = |key: &Key| {
            Client::connect(ClientConfig {
                url: url.clone(),
                canister_id,
                root_key: root_key.clone(),
                key: key.clone(),
            })
            .unwrap()
        };

        // The provider names the key that hostd shows.
        let tpm = Swtpm::start(&folder.path().join("tpm"));
        let ak = TpmDevice::open(&tpm.tcti()).unwrap().attestation_key().unwrap();
        let name = AttestationKey::parse(&ak).unwrap().name().unwrap().to_vec();
        let delegation = provider
            .sign_host_delegation(HostStatement {
                ledger: canister_id,
                profile: ProviderProfile {
                    name: "Provider".into(),
                    domain: "p.example".into(),
                    contact: "ops@p.example".into(),
                    legal_contract: Bytes([9; 32]),
                },
                host: host.principal(),
                expires_at: u64::MAX,
                attestation_key: Some(Bytes::from_slice(&name).unwrap()),
            })
            .unwrap();
        let (developer, host_client) = (client(&developer), client(&host));
        developer.register_developer().await.unwrap();
        host_client.register_host(delegation).await.unwrap();
        let offering = host_client.publish_offering(spec()).await.unwrap();
        Self {
            folder,
            references,
            developer,
            host: Ledger::new(client(&host)),
            host_client,
            offering,
            memo: 0,
            _node: serving,
        }
    }

    /// Boots `image` on the machine whose TPM is `tpm`.
    fn boot(&self, tpm: &str, image: &BootImage) -> Booted {
        let (tpm, boot) = (Swtpm::start(&self.folder.path().join(tpm)), image.boot());
        for (pcr, digest) in boot.measured() {
            tpm.extend(pcr, &digest);
        }
        let log = self.folder.path().join("binary_bios_measurements");
        std::fs::write(&log, boot.log()).unwrap();
        let none = self.folder.path().join("none");
        let device = hostd::wiring::tpm(&tpm.tcti(), &log, &none).unwrap();
        Booted {
            evidence: HostEvidence::new(Some(device), vec![self.references.clone()]),
            _tpm: tpm,
        }
    }

    /// What hostd does after its start, a ledger's minute after the last time.
    async fn attest(&self, booted: &Booted) -> Result<(), String> {
        tokio::time::sleep(Duration::from_millis(120)).await;
        let host = self.host_client.principal();
        let renewed = booted.evidence.renew(&self.host, host, true).await;
        renewed.map(|_| ()).map_err(|trouble| trouble.to_string())
    }

    async fn grade(&self) -> Grade {
        let now = self.developer.info().await.unwrap().now;
        let host = self.developer.host(self.host_client.principal()).await.unwrap();
        host.grade(now)
    }

    async fn accepted(&mut self, least: Grade) -> ContractId {
        self.memo += 1;
        let args = rent_args(self.offering, least, self.memo);
        let id = self.developer.rent(args).await.unwrap();
        self.host_client.accept(id).await.unwrap();
        id
    }

    /// The contract's evidence, as hostd sends it.
    async fn confirm(&self, booted: &Booted, id: ContractId) -> Result<Confirmation, String> {
        let contract = self.host.contract(id).await.unwrap();
        let ask = EvidenceAsk {
            ledger: self.developer.canister_id().as_slice().to_vec(),
            contract: id,
            nonce: self.host.contract_nonce(id).await.unwrap(),
        };
        let evidence = Evidence {
            cpu: CpuEvidence::None,
            guest_keys: GuestKeys {
                wireguard: Some(id.0),
                ..GuestKeys::default()
            },
        };
        let args = SubmitEvidenceArgs {
            contract: id,
            evidence: booted.evidence.attach(&contract, &ask, evidence.to_cbor()).await,
            endpoint: Endpoint {
                address: "203.0.113.1".into(),
                names: Vec::new(),
                ports: Vec::new(),
            },
        };
        let submitted = self.host.submit_evidence(&args).await;
        submitted.map_err(|error| error.to_string())
    }
}

fn spec() -> OfferingSpec {
    OfferingSpec {
        title: "A machine".into(),
        region: "test".into(),
        kinds: vec![VmKind::Plain],
        capacity: Capacity {
            vcpus: 64,
            memory_mib: 1 << 20,
            storage_gib: 1000,
            gpus: 0,
        },
        storage_per_vm: Quota::Limited(50),
        bandwidth_mbps: Quota::Unlimited,
        gpu_model: None,
        at_rest: AtRest::Any,
        best_grade: Grade::HostVerified,
        test_platform: false,
        prices: PriceList {
            vm_hour: DCT / 100,
            vcpu_hour: 0,
            memory_gib_hour: 0,
            storage_gib_hour: 0,
            gpu_hour: 0,
        },
        min_developer_reputation: 0,
        max_period_s: 86_400,
    }
}

fn rent_args(offering: OfferingId, min_grade: Grade, memo: u64) -> RentArgs {
    RentArgs {
        request: Request {
            max_price_per_hour: DCT,
            vcpus: 1,
            memory_mib: 256,
            storage_gib: Quota::Limited(1),
            bandwidth_mbps: Quota::Unlimited,
            min_provider_reputation: 0,
            period_s: 3600,
            kind: VmKind::Plain,
            min_grade,
            at_rest: AtRest::Any,
            gpus: 0,
            region: None,
        },
        offering,
        image: ImageRef {
            manifest: Bytes([3; 32]),
            url: "https://images.example/manifest.json".into(),
        },
        ssh_public_keys: Vec::new(),
        user_data: Vec::new(),
        tls_name: None,
        ports: Vec::new(),
        allowed_measurements: Vec::new(),
        min_tcb: TcbFloor::default(),
        max_total: DCT,
        memo,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_host_booted_decides_the_grade_of_its_plain_contracts() {
    let good = BootImage::named("1.0");
    let mut s = Setting::new(&good).await;
    assert_eq!(s.grade().await, Grade::HostSigned);
    let booted = s.boot("tpm", &good);
    s.attest(&booted).await.unwrap();
    assert_eq!(s.grade().await, Grade::HostVerified);
    let trust = booted.evidence.trust().unwrap();
    assert_eq!((trust.verified, trust.image.as_deref()), (true, Some(IMAGE)));
    let id = s.accepted(Grade::HostVerified).await;
    let confirmation = s.confirm(&booted, id).await.unwrap();
    assert_eq!(
        (confirmation.grade, confirmation.trust.as_str()),
        (Grade::HostVerified, "policy")
    );
    drop(booted);

    // The machine boots something else, by one byte; another TPM sits in it; nobody signed for the image.
    type Change = fn(&mut BootImage);
    let table: &[(&str, Change, &str, &str)] = &[
        ("tpm", |i| i.loader[0] ^= 1, "PCR 4 of", "the boot loader"),
        ("tpm", |i| i.kernel[0] ^= 1, "PCR 11 of", "the kernel"),
        ("tpm", |i| i.initrd[0] ^= 1, "PCR 11 of", "the initrd"),
        (
            "tpm",
            |i| i.cmdline = i.cmdline.replace("roothash=", "roothash=1"),
            "PCR 11 of",
            "the root",
        ),
        (
            "tpm",
            |i| i.cmdline.push_str(" x"),
            "PCR 11 of",
            "the command line",
        ),
        (
            "tpm",
            |i| i.extra_cmdline = Some("x".into()),
            "PCR 12 of",
            "added to the command line",
        ),
        (
            "tpm",
            |i| i.secure_boot = false,
            "SecureBootOff",
            "without Secure Boot",
        ),
        (
            "tpm",
            |i| *i = BootImage::named("1.0 debug"),
            "PCR 11 of",
            "the debug profile",
        ),
        ("other", |_| (), "AkMismatch", "another TPM"),
    ];
    for (tpm, change, reason, what) in table {
        let booted = s.boot("tpm", &good);
        s.attest(&booted).await.unwrap();
        drop(booted);
        let (asked, word) = (
            s.accepted(Grade::HostVerified).await,
            s.accepted(Grade::HostSigned).await,
        );
        let mut image = good.clone();
        change(&mut image);
        let booted = s.boot(tpm, &image);
        let refused = s.confirm(&booted, asked).await.unwrap_err();
        assert!(refused.contains(reason), "{what}: {refused}");
        let refused = s.attest(&booted).await.unwrap_err();
        assert!(refused.contains(reason), "{what}: {refused}");
        assert_eq!(s.grade().await, Grade::HostSigned, "{what}");
        let confirmation = s.confirm(&booted, word).await.unwrap();
        assert_eq!(confirmation.grade, Grade::HostSigned, "{what}");
        let not_matched = s
            .developer
            .rent(rent_args(s.offering, Grade::HostVerified, 1_000))
            .await;
        assert!(
            not_matched.unwrap_err().to_string().contains("host-signed"),
            "{what}"
        );
    }
}
