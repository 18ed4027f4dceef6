//! A simulated machine and ledger behind hostd's ports, and a daemon life that can be cut at any point.
//!
//! [`World`] is what survives a crash: the ledger, VMs, disks, networks. A [`Life`] is one run of hostd on it. Its
//! [`Fuse`] counts every moment at which a real process could die (before and after each journal write and each effect,
//! and in the middle of a launch); when it blows, nothing of that life happens any more, as after `kill -9`.
//!
//! The world keeps a list of what must never happen; tests end with `violations() == []`.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(unreachable_pub, reason = "a module of tests has no outside")]
#![allow(clippy::unwrap_used, reason = "tests may")]

pub mod machine;
pub mod money;

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hostd::allocator::Capacity;
use hostd::config::UpdateConfig;
use hostd::config::{Config, DeadlineConfig};
use hostd::events::Events;
use hostd::journal::Journal;
use hostd::names::{Names, Pace, prove};
use hostd::ports::Host;
use hostd::storage::{StorageConfig, Store};
use hostd::supervisor::spec::HostFacts;
use hostd::supervisor::{Ctx, Handle, NetKeeper, Timing, supervise};
use hostd::surface::metrics::Metrics;
use hostd::surface::money::Accounts;
use hostd::surface::{self, App, Registration};
use hostd::update::Updater;
use hostd::vmm::{Vmm, VmmProcess};
use ledger::api::{Bytes, Contract, ContractId, ContractState};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;

/// What the guest agents of this world do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// Evidence as asked.
    Honest,
    /// Never answers.
    Silent,
    /// Answers what isn't the protocol.
    Garbage,
    /// Evidence that the ledger refuses.
    Forged,
}

#[derive(Clone, Debug)]
pub struct SimVm {
    pub process: VmmProcess,
    /// Half started.
    pub partial: bool,
}

/// Everything that survives hostd.
pub struct State {
    pub now: u64,
    pub height: u64,
    pub contracts: BTreeMap<ContractId, Contract>,
    pub ledger_down: bool,
    /// The machine is being shut down: VMs may be stopped without the ledger's knowledge.
    pub going_down: bool,
    pub guest: Guest,
    pub launch_fails: bool,
    /// HAProxy is away; all else of the network works.
    pub ingress_down: bool,
    pub boot: u32,
    pub next_pid: i32,
    pub vms: BTreeMap<ContractId, SimVm>,
    pub disks: BTreeSet<ContractId>,
    pub seeds: BTreeSet<ContractId>,
    pub network: netns::Desired,
    /// TXT records; `None`: the name's servers fail.
    pub dns: BTreeMap<String, Option<Vec<String>>>,
    pub violations: Vec<String>,
    pub told: Vec<(ContractId, String)>,
}

pub struct World {
    state: Mutex<State>,
    pub changed: Notify,
    pub dir: tempfile::TempDir,
}

/// When this life of hostd ends.
pub struct Fuse {
    count: AtomicUsize,
    cut: usize,
    dead: AtomicBool,
    blown: Notify,
}

impl Fuse {
    fn new(cut: usize) -> Arc<Self> {
        Arc::new(Self {
            count: AtomicUsize::new(0),
            cut,
            dead: AtomicBool::new(false),
            blown: Notify::new(),
        })
    }

    fn alive(&self) -> bool {
        if self.dead.load(Ordering::SeqCst) || self.count.fetch_add(1, Ordering::SeqCst) >= self.cut {
            self.dead.store(true, Ordering::SeqCst);
            self.blown.notify_waiters();
            return false;
        }
        true
    }

    /// One moment at which the process may die. It never comes back from that.
    pub async fn moment(&self) {
        if !self.alive() {
            pending::<()>().await;
        }
    }

    pub fn moments(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    pub fn is_blown(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// Dead from now on, whatever the count.
    pub fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
        self.blown.notify_waiters();
    }
}

pub const NEVER: usize = usize::MAX;

impl State {
    /// A reason, which the ledger takes as a short line only.
    pub fn hear(&mut self, id: ContractId, reason: &str) {
        if reason.chars().count() > 500 || reason.chars().any(char::is_control) {
            self.violations
                .push(format!("the ledger would refuse the reason {reason:?}"));
        }
        self.told.push((id, reason.to_owned()));
    }
}

impl World {
    pub fn new() -> Arc<Self> {
        // On tmpfs where there is one: thousands of lives, each with its fsyncs.
        let dir = tempfile::Builder::new()
            .prefix("hostd-sim-")
            .tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        Arc::new(Self {
            state: Mutex::new(State {
                now: 1_000_000_000,
                height: 1,
                contracts: BTreeMap::new(),
                ledger_down: false,
                going_down: false,
                guest: Guest::Honest,
                launch_fails: false,
                ingress_down: false,
                boot: 1,
                next_pid: 100,
                vms: BTreeMap::new(),
                disks: BTreeSet::new(),
                seeds: BTreeSet::new(),
                network: netns::Desired::default(),
                dns: BTreeMap::new(),
                violations: Vec::new(),
                told: Vec::new(),
            }),
            changed: Notify::new(),
            dir,
        })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Changes the world, and wakes whoever waits for it.
    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let value = change(&mut self.state());
        self.changed.notify_waiters();
        value
    }

    /// Every VM and every network ends; disks stay; the machine boots again.
    pub fn power_cycle(&self) {
        self.change(|state| {
            state.boot += 1;
            state.vms.clear();
            state.network = netns::Desired::default();
        });
    }

    /// A VM ends by itself.
    pub fn crash_vm(&self, id: ContractId) {
        self.change(|state| state.vms.remove(&id));
    }

    pub fn contract(&self, id: ContractId) -> Contract {
        self.state().contracts[&id].clone()
    }

    /// Waits for a condition; panics with what the world shows if it doesn't come about.
    pub async fn until(&self, what: &str, condition: impl Fn(&State) -> bool) {
        self.until_or(what, condition, || false).await;
    }

    /// As `until`; also ends when `or` holds.
    pub async fn until_or(&self, what: &str, condition: impl Fn(&State) -> bool, or: impl Fn() -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let changed = self.changed.notified();
            if or() || condition(&self.state()) {
                return;
            }
            if tokio::time::Instant::now() > deadline {
                let state = self.state();
                let contracts: Vec<_> = state
                    .contracts
                    .values()
                    .map(|c| (c.id.short(), c.state, c.released))
                    .collect();
                panic!(
                    "never came: {what}\ncontracts {contracts:?}\nvms {:?} disks {:?} violations {:?}",
                    state.vms, state.disks, state.violations
                );
            }
            let _ = tokio::time::timeout(Duration::from_millis(2), changed).await;
        }
    }

    /// What must never be there at the end: anything of a contract that is over, and every broken rule.
    pub fn leftovers(&self) -> Vec<String> {
        let state = self.state();
        let mut left = state.violations.clone();
        let over = |id: &ContractId| {
            state
                .contracts
                .get(id)
                .is_none_or(|contract| matches!(contract.state, ContractState::Ended(_)))
        };
        left.extend(
            state
                .vms
                .keys()
                .filter(|id| over(id))
                .map(|id| format!("VM of {}", id.short())),
        );
        left.extend(
            state
                .disks
                .iter()
                .filter(|id| over(id))
                .map(|id| format!("disk of {}", id.short())),
        );
        left.extend(
            state
                .seeds
                .iter()
                .filter(|id| over(id))
                .map(|id| format!("seed of {}", id.short())),
        );
        let living = state.contracts.keys().filter(|id| !over(id)).count();
        if state.network.vms.len() > living {
            left.push(format!(
                "{} networks for {living} contracts",
                state.network.vms.len()
            ));
        }
        for contract in state.contracts.values().filter(|contract| over(&contract.id)) {
            let escrow = contract.escrow;
            if escrow.funded != escrow.held + escrow.released + escrow.refunded || escrow.held != 0 {
                left.push(format!("money of {}: {escrow:?}", contract.id.short()));
            }
            if !contract.released {
                left.push(format!("{} was never released", contract.id.short()));
            }
        }
        if let Ok(entries) = std::fs::read_dir(self.dir.path().join("run")) {
            left.extend(
                entries
                    .flatten()
                    .filter(|_| living == 0)
                    .map(|e| format!("folder {:?}", e.file_name())),
            );
        }
        left
    }
}

pub fn id(n: u8) -> ContractId {
    let mut bytes = [n; 32];
    bytes[31] = 0xee;
    Bytes(bytes)
}

/// One run of hostd.
pub struct Life {
    pub world: Arc<World>,
    pub fuse: Arc<Fuse>,
    pub journal: Journal,
    pub ctx: Arc<Ctx>,
    pub handle: Handle,
    tasks: JoinSet<()>,
}

pub fn capacity() -> Capacity {
    Capacity {
        vcpus: 256,
        memory_mib: 256 * 1024,
        hugepages_2m: None,
        storage_gib: 4096,
        slots: 1..=65534,
        lease_ports: 20000..=29999,
        gpus: Vec::new(),
    }
}

pub fn deadlines() -> DeadlineConfig {
    DeadlineConfig {
        launch_s: 10,
        launch_per_gib_s: 0,
        boot_s: 10,
        boot_per_gib_s: 0,
        disk_s: 10,
        graceful_stop_s: 1,
    }
}

impl Life {
    /// Starts hostd on the world; it dies at its `cut`-th moment.
    pub async fn start(world: &Arc<World>, cut: usize) -> Self {
        Self::start_with(world, cut, capacity(), deadlines()).await
    }

    pub async fn start_with(
        world: &Arc<World>,
        cut: usize,
        capacity: Capacity,
        deadlines: DeadlineConfig,
    ) -> Self {
        let fuse = Fuse::new(cut);
        let probe = {
            let fuse = fuse.clone();
            Arc::new(move |_| fuse.alive())
        };
        let journal = Journal::open_with(&world.dir.path().join("journal.db"), probe).unwrap();
        let machine = Arc::new(machine::Machine {
            world: world.clone(),
            fuse: fuse.clone(),
        });
        let vmm: Arc<dyn Vmm> = machine.clone();
        let host = Host {
            ledger: Arc::new(money::SimLedger {
                world: world.clone(),
                fuse: fuse.clone(),
            }),
            net: machine.clone(),
            taps: machine.clone(),
            storage: machine.clone(),
            devices: machine.clone(),
            vmms: vec![vmm],
            agent: machine.clone(),
            processes: machine.clone(),
        };
        let facts = Arc::new(HostFacts {
            ledger: vec![1, 2, 3],
            domain: "provider.example".into(),
            address: "203.0.113.1".parse().unwrap(),
            vm_dir: world.dir.path().join("run"),
            uid_base: 0,
            hugepages: false,
            default_disk_gib: 5,
            disk_gib_max: None,
            bandwidth_mbps_max: None,
            no_encryption: Some("simulated".into()),
            nameservers: vec!["9.9.9.9".parse().unwrap()],
            routes: true,
        });
        let timing = Timing {
            retry_min: Duration::from_millis(1),
            retry_max: Duration::from_millis(20),
            agent_poll: Duration::from_millis(2),
            agent_ask: Duration::from_secs(1),
            long_poll: Duration::from_millis(50),
            network_look: Duration::from_secs(60),
        };
        let (net, keeper) = NetKeeper::new(
            journal.clone(),
            host.net.clone(),
            facts.clone(),
            timing.network_look,
        );
        let support = vec![host.vmms[0].support().await];
        let ctx = Arc::new(Ctx {
            host,
            journal: journal.clone(),
            net,
            facts,
            capacity,
            support: Mutex::new(support),
            deadlines,
            timing,
            launches: Semaphore::new(8),
            live: Mutex::default(),
            endorsements: hostd::endorsements::Keeper::off(),
            host_evidence: hostd::host_evidence::HostEvidence::off(),
            names: Names::default(),
            metrics: Metrics::default(),
            heartbeat_now: Notify::new(),
        });
        let (handle, run) = supervise(ctx.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(keeper);
        let pace = Pace {
            retry_min: Duration::from_millis(1),
            retry_max: Duration::from_millis(20),
            recheck: Duration::from_millis(30),
        };
        tasks.spawn(prove(ctx.clone(), machine, pace));
        tasks.spawn(async move {
            let _ = run.await; // `Gone`: the fuse has blown inside the journal
        });
        Self {
            world: world.clone(),
            fuse,
            journal,
            ctx,
            handle,
            tasks,
        }
    }

    /// `kill -9`: nothing of this life happens any more.
    pub async fn kill(mut self) {
        self.fuse.kill();
        self.tasks.shutdown().await;
        drop(self);
        tokio::task::yield_now().await;
    }

    /// Waits for a condition or this life's end, whichever comes first.
    pub async fn until(&self, what: &str, condition: impl Fn(&State) -> bool) {
        self.world
            .until_or(what, condition, || self.fuse.is_blown())
            .await;
    }
}

/// The API of a life on its socket, until it is dropped.
pub struct Served {
    pub socket: std::path::PathBuf,
    server: JoinSet<()>,
}

impl Served {
    /// Nobody answers any more.
    pub async fn stop(mut self) {
        self.server.shutdown().await;
    }
}

/// Serves a life's API. `started_ms` is what it says of its start.
pub async fn serve(world: &Arc<World>, life: &Life, started_ms: i64) -> Served {
    let socket = world.dir.path().join("hostd.sock");
    let (_, registration) = watch::channel(Registration {
        registered: true,
        offering: Some(1),
        trouble: None,
    });
    let events = Events::default();
    events.add("info", "hostd is up");
    let update = Updater::new(UpdateConfig::default(), None, life.journal.clone());
    let app = App {
        update: Arc::new(update),
        ctx: life.ctx.clone(),
        handle: life.handle.clone(),
        config: Config::parse(include_str!("../../hostd.example.toml")).unwrap(),
        inventory: hostd::inventory::take(world.dir.path()),
        started_ms,
        host_principal: "aaaaa-aa".into(),
        registration,
        store: Store::open(StorageConfig {
            dir: world.dir.path().join("storage"),
            ..StorageConfig::default()
        })
        .unwrap(),
        provider: money::request(id(1), 1).provider,
        accounts: Accounts::default(),
        events,
    };
    let listener = surface::listen(&socket, None).unwrap();
    let mut server = JoinSet::new();
    server.spawn(async move {
        let _ = axum::serve(listener, surface::router(Arc::new(app))).await;
    });
    Served { socket, server }
}
