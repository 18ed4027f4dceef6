//! Steps 1 and 2: the ledger with its people, the host with its offering.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use candid::Principal;
use ledger::api::{DCT, LedgerInfo, Offering};
use ledger::protocol::{Der, Genesis, InitialBalance};
use serde::Deserialize;

use super::Job;
use super::host_runs;
use super::world::{HOST_ADDRESS, Place, WAN_ADDRESS};
use crate::dns;
use crate::libvirt_harness;

/// The demo ledger's clock runs so many times as fast as the wall clock.
pub const CLOCK_RATE: u32 = 60;
/// Where the simulated chip's maker has its key service, as the host sees it.
const KDS_ADDRESS: &str = "127.0.0.1:8410";

/// Names of VMs live below this (RFC 6761: never a real domain).
pub const DOMAIN: &str = "vm.provider.test";

/// Somebody with a key.
pub struct Party {
    /// For people.
    pub name: &'static str,
    /// The private key, PEM.
    pub key: PathBuf,
    /// Who they are to the ledger.
    pub principal: Principal,
}

/// The ledger, and who takes part.
pub struct Ledger {
    /// What clients need to know: URL, canister id, pinned root key.
    pub client: PathBuf,
    /// Its id.
    pub id: Principal,
    /// The root that the simulated SNP platform's chain ends in.
    pub test_root: PathBuf,
    /// The provider; its key stays on its own machine.
    pub provider: Party,
    /// Rents first.
    pub alice: Party,
    /// Rents second.
    pub bob: Party,
}

/// The host machine.
pub struct Host {
    /// hostd's configuration.
    pub config: PathBuf,
    /// Its principal.
    pub principal: Principal,
}

#[derive(Deserialize)]
struct NewKey {
    principal: Principal,
}

impl Job {
    /// Step 1.
    pub(super) fn start_ledger(&mut self) -> Result<Ledger> {
        let started = Instant::now();
        self.report.heading(
            "step 1",
            "a fresh durable ledger; keys for a provider and two developers",
        );
        let chip = self.world.path("snp-sim");
        self.run({
            let mut command = self.program(Place::Host, "snp-sim-qemu")?;
            command.arg("init").arg(&chip);
            command
        })?;
        let test_root = chip.join("ark.der");
        let [provider, alice, bob] = ["provider", "alice", "bob"].map(|name| self.new_key(name));
        let (provider, alice, bob) = (provider?, alice?, bob?);

        let image_key = host_runs::sign_references(&self.world.path("references"))?;
        let genesis_file = self.world.path("genesis.toml");
        fs::write(
            &genesis_file,
            toml::to_string(&genesis(&[&alice, &bob], &test_root, image_key)?)?,
        )?;
        let (dir, listen) = (self.world.path("ledger"), format!("{WAN_ADDRESS}:8080"));
        self.run({
            let mut command = self.program(Place::Internet, "ledgerd")?;
            command
                .arg("init")
                .arg("--genesis")
                .arg(&genesis_file)
                .arg("--dir")
                .arg(&dir);
            command.args(["--url", &format!("http://{listen}")]);
            command
        })?;
        let mut node = self.program(Place::Internet, "ledgerd")?;
        node.arg("run").arg("--dir").arg(&dir).args(["--listen", &listen]);
        self.world.start("ledgerd", node)?;

        let client = dir.join("client.toml");
        let info: LedgerInfo = self.wait("the ledger to answer", Duration::from_secs(20), |job| {
            Ok(job
                .json(job.decent_at(&client, &alice, &["--json", "info"])?)
                .ok())
        })?;
        ensure!(
            info.demo && info.clock_rate == CLOCK_RATE,
            "this is not the demo's ledger: {info:?}"
        );
        self.report.say(&format!(
            "ledger {} “{}”: DEMO, its clock runs {}× as fast, it trusts {} test root",
            info.ledger,
            info.name,
            info.clock_rate,
            info.test_roots.len()
        ));
        let ledger = Ledger {
            client,
            id: info.ledger,
            test_root,
            provider,
            alice,
            bob,
        };
        for developer in [&ledger.alice, &ledger.bob] {
            self.run(self.decent(&ledger, developer, &["developer", "register"])?)?;
        }
        let balance = self.run(self.decent(&ledger, &ledger.alice, &["balance"])?)?;
        self.report.say(balance.trim());
        self.report.done(
            "1",
            "ledger up; money of the developers from the named demo genesis",
            started.elapsed(),
        );
        Ok(ledger)
    }

    /// Step 2.
    pub(super) fn start_host(&mut self, ledger: &Ledger) -> Result<Host> {
        let started = Instant::now();
        self.report.heading(
            "step 2",
            "hostd takes stock, registers the provider's host, publishes its offering",
        );
        let key = self.new_key("host")?;
        let profile = self.world.path("profile.toml");
        fs::write(
            &profile,
            format!(
                "name = \"Demo Provider Ltd\"\ndomain = \"{DOMAIN}\"\ncontact = \"ops@provider.test\"\n\
                 legal_contract = \"{}\"\n",
                "5e".repeat(32)
            ),
        )?;
        let attestation_key = self.power_tpm()?;
        let delegation = self.world.path("delegation");
        self.run({
            let mut command = self.decent(ledger, &ledger.provider, &["host", "delegate"])?;
            command
                .args(["--host-key", &key.principal.to_text()])
                .args(["--attestation-key", &attestation_key])
                .arg("--profile")
                .arg(&profile);
            command.arg("--out").arg(&delegation);
            command
        })?;
        dns::serve(&mut self.world, &[])?; // the internet's DNS: nobody has a name yet
        let libvirt = self.start_libvirt()?;
        let mut kds = self.program(Place::Host, "snp-sim-qemu")?;
        kds.arg("kds").arg(self.world.path("snp-sim")).arg(KDS_ADDRESS);
        self.world.start("kds", kds)?;
        let config = self.write_hostd_config(ledger, &key, &delegation, &libvirt)?;
        self.start_hostd(&config)?;
        let offering: Offering =
            self.wait("the offering to be published", Duration::from_secs(60), |job| {
                let offerings: Vec<Offering> =
                    job.json(job.decent(ledger, &ledger.alice, &["--json", "offerings"])?)?;
                Ok(offerings.into_iter().next())
            })?;
        let stock = self.run(self.hostd(&["inventory"])?)?;
        self.report.say(stock.trim_end());
        ensure!(
            offering.host == key.principal,
            "the offering is of host {}",
            offering.host
        );
        ensure!(
            offering.spec.test_platform,
            "the offering must say that its SNP platform is simulated"
        );
        self.report.say(&format!(
            "offering {}: {:?}, {:?}",
            offering.id, offering.spec.kinds, offering.free
        ));
        self.report.done(
            "2",
            "inventory taken, host registered, offering published",
            started.elapsed(),
        );
        Ok(Host {
            config,
            principal: key.principal,
        })
    }

    /// Starts hostd, the first time or again.
    pub(super) fn start_hostd(&mut self, config: &Path) -> Result<()> {
        let mut command = self.program(Place::Host, "hostd")?;
        command.arg("run").arg("--config").arg(config);
        self.world.start("hostd", command)
    }

    /// `decent` as `party`, on the internet's side.
    pub fn decent(&self, ledger: &Ledger, party: &Party, args: &[&str]) -> Result<Command> {
        self.decent_at(&ledger.client, party, args)
    }

    fn decent_at(&self, client: &Path, party: &Party, args: &[&str]) -> Result<Command> {
        let mut command = self.program(Place::Internet, "decent")?;
        command
            .arg("--ledger")
            .arg(client)
            .arg("--key")
            .arg(&party.key)
            .args(args);
        Ok(command)
    }

    /// An operator's command on the host.
    pub fn hostd(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.program(Place::Host, "hostd")?;
        command
            .arg("--socket")
            .arg(self.world.path("run/hostd.sock"))
            .args(args);
        Ok(command)
    }

    fn new_key(&self, name: &'static str) -> Result<Party> {
        let key = self.world.path(&format!("{name}.pem"));
        let mut command = self.program(Place::Internet, "decent")?;
        command.args(["--json", "key", "new", "--out"]).arg(&key);
        let NewKey { principal } = self.json(command)?;
        Ok(Party { name, key, principal })
    }

    /// libvirtd in the host's namespace; returns its URI.
    fn start_libvirt(&mut self) -> Result<String> {
        let cache = libvirt_harness::shared_cache()?;
        let layout = libvirt_harness::Layout::prepare(&self.world.path("libvirt"), Some(&cache))?;
        let mut command = self.world.command(Place::Host, layout.program());
        command.args(layout.args());
        self.world.start("libvirtd", command)?;
        layout.wait_ready(Duration::from_secs(60))?;
        Ok(layout.uri())
    }

    fn write_hostd_config(
        &self,
        ledger: &Ledger,
        key: &Party,
        delegation: &Path,
        libvirt: &str,
    ) -> Result<PathBuf> {
        #[derive(Deserialize)]
        struct ClientFile {
            url: String,
            canister_id: String,
            root_key: String,
        }
        let client: ClientFile = toml::from_str(&fs::read_to_string(&ledger.client)?)
            .with_context(|| format!("cannot read {}", ledger.client.display()))?;
        let dir = self.world.dir().display().to_string();
        let text = format!(
            r#"[host]
name = "demo-host"
state_dir = "{dir}/state"
run_dir = "{dir}/run"
socket = "{dir}/run/hostd.sock"
test_platform = true
heartbeat_s = 5

[ledger]
url = "{url}"
canister_id = "{canister}"
root_key = "{root_key}"
host_key = "{host_key}"
delegation = "{delegation}"

[network]
prefix = "{prefix}"
wan = "wan0"
public_ip4 = "{HOST_ADDRESS}"
tenant_net = "100.64.0.0/16"
lease_ports = "20000-20999"
nameservers = ["{HOST_ADDRESS}"]
deny = []

[network.haproxy]
binary = "/usr/sbin/haproxy"
run_dir = "{dir}/run/haproxy"
manage = "spawn"
https_port = 443
http_port = 80

[endorsements]
kds = "http://{KDS_ADDRESS}/"
test_root = "{dir}/snp-sim/ark.der"

[host_evidence]
tpm = "{tpm}"
references = ["{dir}/references"]
firmware_log = "{log}"
userspace_log = "{dir}/no-systemd.log"

[names]
nameservers = ["{WAN_ADDRESS}"]
retry_max_s = 1

[storage]
dir = "{dir}/storage"
allow_schemes = ["file"]

[vmm]
prefer = ["cloud-hypervisor", "libvirt"]

[vmm.libvirt]
uri = "{libvirt}"
emulator = "{emulator}"

[offering]
title = "Demo VMs under software emulation"
region = "test"
max_period_s = 2592000
min_developer_reputation = 0

[offering.prices]
vm_hour = 10_000_000
vcpu_hour = 5_000_000
memory_gib_hour = 2_000_000
storage_gib_hour = 50_000
gpu_hour = 0

[offering.capacity]
vcpus = 4
memory_mib = 4096
storage_gib = 8
"#,
            url = client.url,
            tpm = host_runs::TCTI,
            log = self.firmware_log().display(),
            canister = client.canister_id,
            root_key = client.root_key,
            host_key = key.key.display(),
            delegation = delegation.display(),
            prefix = self.world.prefix(),
            emulator = self.world.path("snp-sim").join(crate::sim::EMULATOR).display(),
        );
        let path = self.world.path("hostd.toml");
        fs::write(&path, text)?;
        Ok(path)
    }
}

/// The demo's genesis: the paper's numbers, a fast clock, money out of nothing for the developers, a test root.
fn genesis(developers: &[&Party], test_root: &Path, image_key: String) -> Result<Genesis> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let mut genesis = Genesis::demo("Decent Cloud demo", CLOCK_RATE, now);
    genesis.balances = developers
        .iter()
        .map(|developer| InitialBalance {
            owner: developer.principal,
            amount: 100 * DCT,
            reason: format!("demo: play money for {}", developer.name),
        })
        .collect();
    let root = fs::read(test_root).with_context(|| format!("cannot read {}", test_root.display()))?;
    genesis.test_roots = vec![Der(root)];
    genesis.host_images.keys = vec![image_key];
    Ok(genesis)
}
