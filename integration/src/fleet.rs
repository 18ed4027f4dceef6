//! A host for many VMs and many deaths: a world of its own with a real `ledgerd` and a real `hostd` whose VMs are the
//! fake Cloud Hypervisor's ([`crate::fake_ch`]): real processes, sockets, disks, taps and namespaces, no guest. The crash
//! test and the benchmarks run on it.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use std::time::Duration;
//! use integration::fleet::{Fleet, Options};
//!
//! let mut fleet = Fleet::start(&Options::new("dcfl", "target/debug".into()))?; // ledger, developer, image; no hostd yet
//! fleet.start_hostd(None)?;
//! fleet.wait_offering(Duration::from_secs(30))?;
//! let ids = fleet.rent(10)?; // at once; for more than 16 see `Options::storage_gib`
//! fleet.wait_active(&ids, Duration::from_secs(120))?;
//! println!("{} KiB, {}", fleet.hostd_rss_kib()?, fleet.metrics()?);
//! fleet.kill_hostd()?;
//! fleet.start_hostd(None)?; // adopts them
//! fleet.cancel(&ids)?;
//! fleet.wait_released(&ids, Duration::from_secs(120))?;
//! assert!(fleet.leftovers()?.is_empty());
//! fleet.remove()
//! # }
//! ```

mod developer;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use attestation::sim::Platform;
use candid::Principal;
use hostd::surface::model::Status;
use ledger::api::{
    Amount, AtRest, Bytes, Contract, ContractId, ContractState, DCT, Grade, HostStatement, ImageRef,
    Invariants, OfferingId, OfferingSpec, ProviderProfile, Quota, RentArgs, Request, TcbFloor, VmKind,
};
use ledger::client::{ClientFile, Key, KeyKind};
use ledger::protocol::{Der, Genesis, InitialBalance};
use sha2::{Digest, Sha256};

use crate::main_job::world::{self, HOST_ADDRESS, Place, WAN_ADDRESS, World};
use crate::tiny_guest;
use developer::Developer;

/// How often something is looked at while waiting for it.
const LOOK: Duration = Duration::from_millis(20);

/// What a fleet is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// What all names start with; at most 6 characters.
    pub prefix: String,
    /// Folder of this project's programs.
    pub programs: PathBuf,
    /// Another hostd than the one in that folder.
    pub hostd: Option<PathBuf>,
    /// Where hostd looks for its VMM, if not in that folder.
    pub vmm: Option<PathBuf>,
    /// The ledger's clock runs so many times as fast as the wall clock.
    pub clock_rate: u32,
    /// GiB of the file system for disks: an ext4 in a sparse file. Disks are reserved there as they are on a real host, and
    /// since nobody writes to them, it takes a few MiB, however little is free around it.
    pub storage_gib: u32,
    /// Whether hostd runs a HAProxy for names of VMs.
    pub ingress: bool,
    /// Words for the guests' kernel command line, e.g. `fake.boot=300ms` (table in [`crate::fake_ch`]).
    pub cmdline: String,
    /// Lines added to hostd's configuration, e.g. a `[deadlines]` section.
    pub more_config: String,
}

impl Options {
    /// Without ingress, on a ledger with the wall clock's pace.
    pub fn new(prefix: &str, programs: PathBuf) -> Self {
        Self {
            prefix: prefix.to_owned(),
            programs,
            hostd: None,
            vmm: None,
            clock_rate: 1,
            storage_gib: 17, // what the file system takes for itself, and 16 disks
            ingress: false,
            cmdline: "console=hvc0".to_owned(),
            more_config: String::new(),
        }
    }
}

/// When hostd shall die: at its N-th journal write (from 1), before or after it is on disk. Needs a hostd that was built
/// with the feature `fault-injection`; any other lives on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DieAt {
    /// Which write of the process.
    pub write: u32,
    /// Whether it is still to be committed.
    pub before: bool,
}

/// See the module.
pub struct Fleet {
    /// The stage.
    pub world: World,
    developer: Developer,
    hostd: PathBuf,
    config: PathBuf,
    image: ImageRef,
    offering: Option<OfferingId>,
    next_memo: u64,
}

impl Fleet {
    /// Starts the ledger, registers a developer with money, and prepares image and hostd's configuration.
    /// hostd itself doesn't run yet.
    pub fn start(options: &Options) -> Result<Self> {
        let mut world = World::new(&options.prefix, &options.programs)?;
        let keys = ["developer", "provider", "host"]
            .map(|name| Key::create(KeyKind::Ed25519, &world.path(&format!("{name}.pem"))));
        let [developer, provider, host] = keys;
        let (developer, provider, host) = (developer?, provider?, host?);
        let client = start_ledger(&mut world, options, &developer)?;
        let delegation = provider.sign_host_delegation(HostStatement {
            ledger: client.canister_id,
            profile: ProviderProfile {
                name: "Fleet Provider".to_owned(),
                domain: "vm.provider.test".to_owned(),
                contact: "ops@provider.test".to_owned(),
                legal_contract: Bytes([0x5e; 32]),
            },
            host: host.principal(),
            expires_at: u64::MAX,
            attestation_key: None,
        })?;
        fs::write(world.path("delegation"), candid::encode_one(&delegation)?)?;
        let image = write_image(&world, &options.cmdline)?;
        make_storage(&world, options.storage_gib)?;
        let config = write_config(&world, options, &client)?;
        let netns = Path::new("/run/netns").join(world.netns(Place::Internet));
        let developer = Developer::start(&netns, client.with_key(developer))?;
        let hostd = match &options.hostd {
            Some(path) => path.clone(),
            None => world.program("hostd")?,
        };
        let fleet = Self {
            world,
            developer,
            hostd,
            config,
            image,
            offering: None,
            next_memo: 1,
        };
        wait_for("the ledger to answer", Duration::from_secs(30), || {
            Ok(fleet
                .developer
                .call(|client| async move { client.info().await })
                .ok())
        })?;
        fleet
            .developer
            .call(|client| async move { client.register_developer().await })?;
        Ok(fleet)
    }

    /// Starts hostd, the first time or again; its log goes on in `hostd.log`.
    pub fn start_hostd(&mut self, die_at: Option<DieAt>) -> Result<()> {
        let mut command = self.world.command(Place::Host, &self.hostd);
        command.arg("run").arg("--config").arg(&self.config);
        match die_at {
            None => command.env_remove("HOSTD_DIE_AT_WRITE"),
            Some(DieAt { write, before }) => {
                let moment = if before { "before" } else { "after" };
                command.env("HOSTD_DIE_AT_WRITE", format!("{write}:{moment}"))
            }
        };
        self.world.start("hostd", command)
    }

    /// Kills hostd with SIGKILL; its VMs live on.
    pub fn kill_hostd(&mut self) -> Result<()> {
        self.world.kill("hostd")
    }

    /// How hostd ended by itself, if it did; it may be started again then.
    pub fn hostd_ended(&mut self) -> Result<Option<ExitStatus>> {
        self.world.ended("hostd")
    }

    /// Waits until hostd's offering can be matched.
    pub fn wait_offering(&mut self, within: Duration) -> Result<OfferingId> {
        let developer = &self.developer;
        let id = wait_for("the offering to be published", within, || {
            let offerings = developer.call(|client| async move { client.offerings().await })?;
            Ok(offerings.first().map(|offering| offering.id))
        })
        .with_context(|| format!("hostd's log ends:\n{}", self.world.log_tail("hostd", 20)))?;
        self.offering = Some(id);
        Ok(id)
    }

    /// Waits until hostd's API answers.
    pub fn wait_hostd(&self, within: Duration) -> Result<Status> {
        wait_for("hostd's API", within, || Ok(self.status().ok()))
            .with_context(|| format!("hostd's log ends:\n{}", self.world.log_tail("hostd", 20)))
    }

    /// Rents `count` small plain VMs for an hour, all at once; they are paid when this returns.
    pub fn rent(&mut self, count: u32) -> Result<Vec<ContractId>> {
        let offering = self.offering()?;
        let orders: Vec<RentArgs> = (self.next_memo..self.next_memo + u64::from(count))
            .map(|memo| order(offering, self.image.clone(), memo))
            .collect();
        self.next_memo += u64::from(count);
        self.developer
            .each(orders, |client, order| async move { client.rent(order).await })
    }

    /// Rents one small plain VM that is to have a name of its own.
    pub fn rent_named(&mut self, name: &str) -> Result<ContractId> {
        let offering = self.offering()?;
        let mut order = order(offering, self.image.clone(), self.next_memo);
        order.tls_name = Some(name.to_owned());
        self.next_memo += 1;
        self.developer
            .call(|client| async move { client.rent(order).await })
    }

    /// What hostd offers now.
    pub fn offered(&self) -> Result<OfferingSpec> {
        let offerings = self
            .developer
            .call(|client| async move { client.offerings().await })?;
        let offering = offerings.into_iter().next().context("nothing is offered")?;
        Ok(offering.spec)
    }

    fn offering(&self) -> Result<OfferingId> {
        self.offering
            .context("nothing is offered yet: call wait_offering first")
    }

    /// Who the developer is.
    pub fn developer(&self) -> Result<Principal> {
        self.developer
            .call(|client| async move { Ok(client.principal()) })
    }

    /// Cancels contracts, all at once; answers how they are then.
    pub fn cancel(&self, ids: &[ContractId]) -> Result<Vec<Contract>> {
        self.developer
            .each(ids.to_vec(), |client, id| async move { client.cancel(id).await })
    }

    /// A contract as the ledger has it.
    pub fn contract(&self, id: ContractId) -> Result<Contract> {
        self.developer
            .call(move |client| async move { client.contract(id).await })
    }

    /// All contracts of the developer.
    pub fn contracts(&self) -> Result<Vec<Contract>> {
        self.developer.call(|client| async move {
            let me = client.principal();
            client.account_contracts(me).await
        })
    }

    /// What the developer has.
    pub fn balance(&self) -> Result<Amount> {
        self.developer.call(|client| async move {
            let me = client.principal();
            client.balance(me).await
        })
    }

    /// The ledger's books, computed anew.
    pub fn invariants(&self) -> Result<Invariants> {
        self.developer
            .call(|client| async move { client.invariants().await })
    }

    /// Waits until all these contracts are active. One that ended is an error at once.
    pub fn wait_active(&self, ids: &[ContractId], within: Duration) -> Result<()> {
        self.wait_all("active", ids, within, |contract| match contract.state {
            ContractState::Active => Ok(true),
            ContractState::Ended(reason) => {
                bail!(
                    "contract {} ended ({reason:?}): {:?}",
                    contract.id,
                    contract.refusals
                )
            }
            _ => Ok(false),
        })
    }

    /// Waits until the host has let go of all these contracts.
    pub fn wait_released(&self, ids: &[ContractId], within: Duration) -> Result<()> {
        self.wait_all("released", ids, within, |contract| Ok(contract.released))
    }

    fn wait_all(
        &self,
        what: &str,
        ids: &[ContractId],
        within: Duration,
        done: impl Fn(&Contract) -> Result<bool>,
    ) -> Result<()> {
        let mut open: Vec<ContractId> = ids.to_vec();
        wait_for(&format!("{} contracts to be {what}", ids.len()), within, || {
            let mut left = Vec::new();
            for contract in self.contracts()? {
                if open.contains(&contract.id) && !done(&contract)? {
                    left.push(contract.id);
                }
            }
            open = left;
            Ok(open.is_empty().then_some(()))
        })
        .with_context(|| format!("hostd's log ends:\n{}", self.world.log_tail("hostd", 20)))
    }

    /// `GET path` on hostd's socket; the body of a 200.
    pub fn get(&self, path: &str) -> Result<String> {
        let mut stream = UnixStream::connect(self.world.path("run/hostd.sock"))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: hostd\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(16 * 1024 * 1024).read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.lines().next().unwrap_or_default();
        ensure!(status.contains(" 200 "), "GET {path}: {status}: {body}");
        Ok(body.to_owned())
    }

    /// hostd's own view of itself.
    pub fn status(&self) -> Result<Status> {
        Ok(serde_json::from_str(&self.get("/v1/status")?)?)
    }

    /// hostd's metrics, in OpenMetrics text.
    pub fn metrics(&self) -> Result<String> {
        self.get("/metrics")
    }

    /// hostd's process id.
    pub fn hostd_pid(&self) -> Result<u32> {
        self.world.pid("hostd")
    }

    /// hostd's resident memory, KiB.
    pub fn hostd_rss_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.hostd_pid()?))?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB"))
            .and_then(|kib| kib.trim().parse().ok())
            .context("no VmRSS in /proc")
    }

    /// Process ids of this fleet's VMMs.
    pub fn vmms(&self) -> Result<Vec<u32>> {
        let (needle, mut found) = (format!("{}/run/vm/", self.world.dir().display()), Vec::new());
        for entry in fs::read_dir("/proc")?.flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
                continue;
            };
            // A process may end between the two calls; the command line of a zombie is empty.
            let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&cmdline).contains(&needle) {
                found.push(pid);
            }
        }
        Ok(found)
    }

    /// What of any VM is on the host, seen from outside of hostd: VMMs, tenants' namespaces, links in the host's
    /// namespace, port forwards, files in `disks`, `keys` and `partial`, run folders. Empty when no VM is left.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        let mut found: Vec<String> = self.vmms()?.iter().map(|pid| format!("VMM {pid}")).collect();
        let prefix = self.world.prefix();
        let namespaces = world::run(Command::new("ip").args(["netns", "list"]))?;
        let tenant = format!("{prefix}-t-");
        found.extend(
            namespaces
                .lines()
                .filter(|line| line.starts_with(&tenant))
                .map(|line| format!("namespace {line}")),
        );
        let host = self.world.netns(Place::Host);
        let links = world::run(Command::new("ip").args(["-n", &host, "-o", "link", "show"]))?;
        found.extend(
            links
                .lines()
                .filter_map(|line| line.split(": ").nth(1))
                .filter(|name| name.starts_with(prefix))
                .map(|name| format!("link {name}")),
        );
        let rules = world::run(&mut {
            let mut nft = self.world.command(Place::Host, "nft");
            nft.args(["list", "ruleset"]);
            nft
        })?;
        found.extend(
            rules
                .lines()
                .filter(|line| line.contains("100.64."))
                .filter(|line| !line.contains("100.64.0.0/1"))
                .map(|line| format!("rule {}", line.trim())),
        );
        for folder in ["storage/disks", "storage/keys", "storage/partial", "run/vm"] {
            match fs::read_dir(self.world.path(folder)) {
                Ok(entries) => found.extend(
                    entries
                        .flatten()
                        .map(|entry| format!("file {}", entry.path().display())),
                ),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("cannot read {folder}")),
            }
        }
        Ok(found)
    }

    /// Ends everything and removes it; an error if something stays.
    pub fn remove(mut self) -> Result<()> {
        let left = self.world.remove()?;
        ensure!(left.is_empty(), "left behind: {}", left.join(", "));
        Ok(())
    }
}

/// Looks every 20 ms until there is an answer.
pub fn wait_for<T>(what: &str, within: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = probe()? {
            return Ok(answer);
        }
        ensure!(started.elapsed() < within, "{what}: not within {within:?}");
        thread::sleep(LOOK);
    }
}

fn order(offering: OfferingId, image: ImageRef, memo: u64) -> RentArgs {
    RentArgs {
        request: Request {
            max_price_per_hour: DCT,
            vcpus: 1,
            memory_mib: 64,
            storage_gib: Quota::Limited(1),
            bandwidth_mbps: Quota::Unlimited,
            min_provider_reputation: 0,
            period_s: 3600,
            kind: VmKind::Plain,
            min_grade: Grade::HostSigned,
            at_rest: AtRest::Any,
            gpus: 0,
            region: None,
        },
        offering,
        image,
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

fn start_ledger(world: &mut World, options: &Options, developer: &Key) -> Result<ClientFile> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let mut genesis = Genesis::demo("Decent Cloud fleet", options.clock_rate, now);
    genesis.balances = vec![InitialBalance {
        owner: developer.principal(),
        amount: 10_000 * DCT,
        reason: "a test's play money".to_owned(),
    }];
    // Nobody uses its chip here, but a ledger without a test root takes no test platform's offering.
    genesis.test_roots = vec![Der(Platform::create()?.root().to_vec())];
    let file = world.path("genesis.toml");
    fs::write(&file, toml::to_string(&genesis)?)?;
    let (dir, listen) = (world.path("ledger"), format!("{WAN_ADDRESS}:8080"));
    let mut init = world.command(Place::Internet, world.program("ledgerd")?);
    init.arg("init")
        .arg("--genesis")
        .arg(&file)
        .arg("--dir")
        .arg(&dir);
    world::run(init.args(["--url", &format!("http://{listen}")]))?;
    let mut node = world.command(Place::Internet, world.program("ledgerd")?);
    node.arg("run").arg("--dir").arg(&dir).args(["--listen", &listen]);
    world.start("ledgerd", node)?;
    Ok(ClientFile::read(&dir.join("client.toml"))?)
}

fn write_image(world: &World, cmdline: &str) -> Result<ImageRef> {
    let dir = world.path("image");
    fs::create_dir_all(&dir)?;
    let kernel = tiny_guest::kernel();
    fs::write(dir.join("vmlinuz"), &kernel)?;
    let manifest = serde_json::to_vec(&serde_json::json!({
        "version": 1,
        "name": "fleet",
        "kernel": {"file": "vmlinuz", "sha256": hex::encode(Sha256::digest(&kernel)), "size": kernel.len()},
        "cmdline": cmdline,
    }))?;
    let path = dir.join("manifest.json");
    fs::write(&path, &manifest)?;
    Ok(ImageRef {
        manifest: Bytes(Sha256::digest(&manifest).into()),
        url: format!("file://{}", path.display()),
    })
}

/// The world unmounts what is mounted in its folder, and the loop device ends with the mount.
fn make_storage(world: &World, gib: u32) -> Result<()> {
    let (file, dir) = (world.path("storage.img"), world.path("storage"));
    fs::create_dir_all(&dir)?;
    fs::File::create(&file)?.set_len(u64::from(gib) << 30)?;
    world::run(
        Command::new("mkfs.ext4")
            .args(["-q", "-F", "-m", "0", "-O", "^has_journal"])
            .args(["-E", "lazy_itable_init=1,nodiscard"])
            .arg(&file),
    )?;
    world::run(
        Command::new("mount")
            .args(["-o", "loop,noinit_itable"])
            .arg(&file)
            .arg(&dir),
    )?;
    Ok(())
}

fn write_config(world: &World, options: &Options, client: &ClientFile) -> Result<PathBuf> {
    let dir = world.dir().display();
    let fake = match &options.vmm {
        Some(path) => path.clone(),
        None => world.program("fake-cloud-hypervisor")?,
    };
    let haproxy = if options.ingress {
        format!(
            "[network.haproxy]\nbinary = \"/usr/sbin/haproxy\"\nrun_dir = \"{dir}/run/haproxy\"\nmanage = \"spawn\"\n\
             https_port = 443\nhttp_port = 80\n"
        )
    } else {
        String::new()
    };
    let text = format!(
        r#"[host]
name = "fleet-host"
state_dir = "{dir}/state"
run_dir = "{dir}/run"
test_platform = true
heartbeat_s = 5

[ledger]
url = "{url}"
canister_id = "{canister}"
root_key = "{root_key}"
host_key = "{dir}/host.pem"
delegation = "{dir}/delegation"

[network]
prefix = "{prefix}"
wan = "wan0"
public_ip4 = "{HOST_ADDRESS}"
tenant_net = "100.64.0.0/16"
lease_ports = "20000-20999"
nameservers = ["{HOST_ADDRESS}"]
deny = []

{haproxy}
[storage]
dir = "{dir}/storage"
allow_schemes = ["file"]
keep_free_bytes = 67108864

[vmm]
prefer = ["cloud-hypervisor"]

[vmm.cloud_hypervisor]
binary = "{fake}"
assume_kvm = true

[offering]
title = "VMs that are none"
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
vcpus = 1000
memory_mib = 1_000_000
storage_gib = 100_000

{more}
"#,
        url = client.url,
        canister = client.canister_id,
        root_key = hex::encode(&client.root_key),
        prefix = world.prefix(),
        fake = fake.display(),
        more = options.more_config,
    );
    let path = world.path("hostd.toml");
    fs::write(&path, text)?;
    Ok(path)
}
