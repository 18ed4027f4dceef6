//! What the tests have in common: a ledger, people with keys, and a host that the client plays.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use candid::Principal;
use ledger::api::{
    AtRest, Capacity, Contract, ContractState, DCT, Endpoint, Grade, HostDelegation, LeasedPort, OfferingId,
    OfferingSpec, PriceList, Quota, SubmitEvidenceArgs, Transport, VmKind,
};
use ledger::client::{Client, ClientFile, Key};
use ledger::protocol::{Genesis, InitialBalance};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A ledger of its own for one test; its process dies with this.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) node: Option<Child>,
    pub(crate) address: SocketAddr,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop_node();
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let address = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let mut world = Self {
            dir: tempfile::tempdir().unwrap(),
            node: None,
            address,
        };
        let mut genesis = Genesis::demo("cli", 60, 1_790_000_000);
        for name in ["provider", "host", "dev"] {
            let made: Value = world.json(&["key", "new", "--out", &world.text(name)]);
            let openssl = ["pkey", "-noout", "-in", &world.text(name)];
            assert!(Command::new("openssl").args(openssl).status().unwrap().success());
            let principal = Principal::from_text(made["principal"].as_str().unwrap()).unwrap();
            if name == "dev" {
                genesis.balances.push(InitialBalance {
                    owner: principal,
                    amount: 100 * DCT,
                    reason: "test".into(),
                });
            }
        }
        std::fs::write(world.path("genesis.toml"), toml::to_string(&genesis).unwrap()).unwrap();
        let made = Command::new(env!("CARGO_BIN_EXE_ledgerd"))
            .args([
                "init",
                "--genesis",
                &world.text("genesis.toml"),
                "--dir",
                &world.text("ledger"),
            ])
            .args(["--url", &format!("http://{address}")])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        world.start_node();
        world
    }

    pub(crate) fn start_node(&mut self) {
        let node = Command::new(env!("CARGO_BIN_EXE_ledgerd"))
            .args([
                "run",
                "--dir",
                &self.text("ledger"),
                "--listen",
                &self.address.to_string(),
            ])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.node = Some(node);
        let end = Instant::now() + Duration::from_secs(20);
        while !self.decent("dev", &["info"]).status.success() {
            assert!(Instant::now() < end, "ledgerd doesn't come up");
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    pub(crate) fn stop_node(&mut self) {
        if let Some(mut node) = self.node.take() {
            let _ = node.kill();
            let _ = node.wait();
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub(crate) fn decent_command(&self, who: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_decent"));
        command
            .args([
                "--ledger",
                &self.text("ledger/client.toml"),
                "--key",
                &self.text(who),
            ])
            .args(args)
            .env_remove("DECENT_LEDGER")
            .env_remove("DECENT_KEY");
        command
    }

    pub(crate) fn decent(&self, who: &str, args: &[&str]) -> Output {
        self.decent_command(who, args).output().unwrap()
    }

    /// stdout of a command that must succeed.
    pub(crate) fn page(&self, who: &str, args: &[&str]) -> String {
        let output = self.decent(who, args);
        assert!(
            output.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn json_as<T: DeserializeOwned>(&self, who: &str, args: &[&str]) -> T {
        let page = self.page(who, &[&["--json"], args].concat());
        serde_json::from_str(&page).unwrap_or_else(|error| panic!("{args:?}: {error}: {page}"))
    }

    pub(crate) fn json<T: DeserializeOwned>(&self, args: &[&str]) -> T {
        self.json_as("dev", args)
    }

    /// Exit code and stderr of a command that must fail.
    pub(crate) fn fails(&self, who: &str, args: &[&str]) -> (i32, String) {
        let output = self.decent(who, args);
        assert!(!output.status.success(), "{args:?} succeeded");
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    }

    pub(crate) fn client(&self, who: &str) -> Client {
        let key = Key::read(&self.path(who)).unwrap();
        Client::connect(
            ClientFile::read(&self.path("ledger/client.toml"))
                .unwrap()
                .with_key(key),
        )
        .unwrap()
    }
}

/// A `decent` that tells on stderr what happens; killed at the latest when this is dropped.
pub(crate) struct Waiting {
    pub(crate) child: Child,
    pub(crate) lines: std::io::Lines<std::io::BufReader<std::process::ChildStderr>>,
}

impl Waiting {
    pub(crate) fn start(mut command: Command) -> Self {
        use std::io::BufRead;
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Reads until a line holds `text`; `decent` ends by itself when the ledger is gone.
    pub(crate) fn tells(&mut self, text: &str, told: &mut String) {
        for line in self.lines.by_ref() {
            let line = line.unwrap();
            told.push_str(&line);
            told.push('\n');
            if line.contains(text) {
                return;
            }
        }
        panic!("{text:?} was never told: {told}");
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn offering() -> OfferingSpec {
    OfferingSpec {
        title: "a small machine".into(),
        region: "test".into(),
        kinds: vec![VmKind::Plain],
        capacity: Capacity {
            vcpus: 4,
            memory_mib: 8_192,
            storage_gib: 100,
            gpus: 0,
        },
        storage_per_vm: Quota::Unlimited,
        bandwidth_mbps: Quota::Unlimited,
        gpu_model: None,
        at_rest: AtRest::Any,
        best_grade: Grade::HostSigned,
        test_platform: false,
        prices: PriceList {
            vm_hour: DCT / 100,
            vcpu_hour: DCT / 100,
            memory_gib_hour: DCT / 100,
            storage_gib_hour: DCT / 1_000,
            gpu_hour: 0,
        },
        min_developer_reputation: 0,
        max_period_s: 30 * 86_400,
    }
}

pub(crate) const REQUEST: [&str; 8] = [
    "--vcpus",
    "1",
    "--memory-mib",
    "1024",
    "--storage-gib",
    "10",
    "--period",
    "2h",
];

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// The provider delegates; the host registers and publishes.
pub(crate) fn offer(world: &World, runtime: &tokio::runtime::Runtime, host: &Client) -> OfferingId {
    std::fs::write(
        world.path("profile.toml"),
        format!(
            "name = 'P Ltd'\ndomain = 'p.example'\ncontact = 'ops@p.example'\nlegal_contract = '{}'\n",
            "5e".repeat(32)
        ),
    )
    .unwrap();
    let (profile, out) = (world.text("profile.toml"), world.text("delegation"));
    for host_key in [host.principal().to_text(), world.text("host")] {
        world.page(
            "provider",
            &[
                "host",
                "delegate",
                "--host-key",
                &host_key,
                "--profile",
                &profile,
                "--out",
                &out,
            ],
        );
    }
    let delegation: HostDelegation = candid::decode_one(&std::fs::read(&out).unwrap()).unwrap();
    assert_eq!(delegation.statement.host, host.principal());
    runtime.block_on(host.register_host(delegation)).unwrap();
    runtime.block_on(host.publish_offering(offering())).unwrap()
}

pub(crate) const SSH_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEzKCDFMVGzvUAf3vFyI4jsaTIAFYXhYyVHOq1SeoUc8 dev\n";

/// Waits as a host does until somebody rents.
pub(crate) fn requested(runtime: &tokio::runtime::Runtime, host: &Client) -> Contract {
    runtime.block_on(async {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let seen = host.info().await.unwrap().height;
            let contracts = host.host_contracts(host.principal()).await.unwrap();
            if let Some(contract) = contracts
                .into_iter()
                .find(|one| one.state == ContractState::Requested)
            {
                return contract;
            }
            assert!(Instant::now() < end, "the host never sees the contract");
            host.wait(seen, Duration::from_secs(5)).await.unwrap();
        }
    })
}

/// A plain VM's word.
pub(crate) fn evidence() -> attestation::Evidence {
    attestation::Evidence {
        cpu: attestation::CpuEvidence::None,
        guest_keys: attestation::GuestKeys {
            wireguard: Some([7; 32]),
            ..Default::default()
        },
    }
}

/// Where the host leads to it.
pub(crate) fn endpoint() -> Endpoint {
    Endpoint {
        address: "203.0.113.1".into(),
        names: vec![],
        ports: vec![LeasedPort {
            transport: Transport::Tcp,
            public_port: 20_022,
            vm_port: 22,
        }],
    }
}

/// Does as a host what makes a contract active.
pub(crate) fn confirm(runtime: &tokio::runtime::Runtime, host: &Client, contract: &Contract) {
    runtime.block_on(async {
        host.accept(contract.id).await.unwrap();
        host.contract_nonce(contract.id).await.unwrap();
        let submission = SubmitEvidenceArgs {
            contract: contract.id,
            evidence: evidence().to_cbor(),
            endpoint: Endpoint {
                ports: vec![],
                ..endpoint()
            },
        };
        host.submit_evidence(submission).await.unwrap();
    });
}
