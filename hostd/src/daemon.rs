//! The daemon: puts the parts together, keeps them running, and goes without touching a VM.
//!
//! Start: config → lock → journal → inventory → adapters → network, storage, ledger → actors (adoption) → socket → ready.
//! Beside the supervisor run: registration and offering (kept true as the file system fills), heartbeats, the network's
//! keeper, the prover of tenants' names, the keepers of endorsements and of the host's own evidence, upkeep (unknown objects are listed, unused images go). SIGTERM and SIGINT end the process; VMs run on.

mod offering;
mod upkeep;

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ledger::api::HostDelegation;
use ledger::client::{Client, ClientConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;

pub use self::offering::offering_spec;
pub use self::upkeep::tell_ledger;
use crate::allocator::Capacity;
use crate::config::{Adapter, Config};
use crate::doctor;
use crate::endorsements::{self, Keeper};
use crate::events::Events;
use crate::host_evidence::{self, HostEvidence};
use crate::hostkey;
use crate::inventory::{self, Inventory};
use crate::journal::{Journal, JournalError, Probe, now_ms};
use crate::names::{self, Names};
use crate::ports::{Host, LedgerPort};
use crate::process::Processes;
use crate::storage::{EncryptionSupport, Store};
use crate::supervisor::spec::HostFacts;
use crate::supervisor::{Ctx, NetKeeper, Timing, supervise};
use crate::surface::metrics::Metrics;
use crate::surface::money::Accounts;
use crate::surface::{self, App, Registration};
use crate::update::Updater;
use crate::vmm::cloud_hypervisor::{CloudHypervisor, CloudHypervisorConfig};
use crate::vmm::libvirt::{AccelChoice, Libvirt, LibvirtConfig};
use crate::vmm::{Vmm, VmmSupport};
use crate::wiring::{Dns, GuestAgent, Ledger, Storage, TenantNetworks, Vfio, chain};
use crate::wiring::{Places, SystemdSlots};

/// hostd can't start, or can't go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A file or folder.
    #[error("cannot {what} {}", .path.display())]
    File {
        /// What we tried.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Two daemons on one journal.
    #[error("another hostd runs with state_dir {}", .0.display())]
    Running(PathBuf),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Something of the config that only shows on this machine.
    #[error("{key}: {why}")]
    Config {
        /// `section.key`.
        key: &'static str,
        /// What is wrong, and what would help.
        why: String,
    },
    /// Tenant networks.
    #[error("the tenant network can't be opened: {0}")]
    Network(String),
    /// Storage.
    #[error("the storage can't be opened: {0}")]
    Storage(String),
    /// The socket of the API.
    #[error("the API's server ended")]
    Api(#[source] std::io::Error),
}

fn file_error(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> DaemonError {
    let path = path.to_owned();
    move |source| DaemonError::File { what, path, source }
}

fn make_dir(path: &Path, mode: u32) -> Result<(), DaemonError> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(file_error("make", path))
}

/// Held while the process lives; the kernel drops it with the process, however that ends.
fn lock(state_dir: &Path) -> Result<File, DaemonError> {
    let path = state_dir.join("lock");
    let file = File::create(&path).map_err(file_error("make", &path))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(DaemonError::Running(state_dir.to_owned())),
        Err(error) => Err(file_error("lock", &path)(error.into())),
    }
}

/// The adapters that the config names, preferred first.
pub fn adapters(config: &Config) -> Vec<Arc<dyn Vmm>> {
    config
        .vmm
        .prefer
        .iter()
        .map(|adapter| -> Arc<dyn Vmm> {
            match adapter {
                Adapter::CloudHypervisor => {
                    let wanted = &config.vmm.cloud_hypervisor;
                    let binary = wanted.binary.clone().unwrap_or_else(|| "cloud-hypervisor".into());
                    let mut settings = CloudHypervisorConfig::new(binary);
                    settings.assume_kvm = wanted.assume_kvm;
                    settings.boot_base = Duration::from_secs(config.deadlines.launch_s);
                    Arc::new(CloudHypervisor::new(settings))
                }
                Adapter::Libvirt => Arc::new(Libvirt::new(LibvirtConfig {
                    uri: config.vmm.libvirt.uri.clone(),
                    emulator: config.vmm.libvirt.emulator.clone(),
                    accel: AccelChoice::Auto,
                    test_platform: config.host.test_platform,
                })),
            }
        })
        .collect()
}

/// The ledger's client with the host's key, and its principal.
pub fn connect(config: &Config) -> Result<(Client, String), DaemonError> {
    let ledger = &config.ledger;
    let wrong = |key: &'static str| move |why: String| DaemonError::Config { key, why };
    let root_key = match (&ledger.root_key, &ledger.root_key_file) {
        (Some(hexadecimal), _) => {
            hex::decode(hexadecimal).map_err(|e| wrong("ledger.root_key")(e.to_string()))?
        }
        (None, Some(path)) => {
            let bytes = fs::read(path).map_err(file_error("read", path))?;
            match std::str::from_utf8(&bytes)
                .ok()
                .and_then(|text| hex::decode(text.trim()).ok())
            {
                Some(der) => der,
                None => bytes,
            }
        }
        (None, None) => return Err(wrong("ledger.root_key")("must be pinned".into())),
    };
    let key =
        hostkey::read(&ledger.host_key, &ledger.tpm).map_err(|e| wrong("ledger.host_key")(chain(&e)))?;
    let principal = key.principal().to_text();
    let canister_id = candid::Principal::from_text(&ledger.canister_id)
        .map_err(|e| wrong("ledger.canister_id")(e.to_string()))?;
    let client = Client::connect(ClientConfig {
        url: ledger.url.clone(),
        canister_id,
        root_key,
        key,
    })
    .map_err(|e| wrong("ledger.url")(chain(&e)))?;
    Ok((client, principal))
}

/// The provider's delegation: Candid, as `decent` writes it.
fn delegation(config: &Config, host: &str) -> Result<HostDelegation, DaemonError> {
    let path = &config.ledger.delegation;
    let bytes = fs::read(path).map_err(file_error("read", path))?;
    let wrong = |why: String| DaemonError::Config {
        key: "ledger.delegation",
        why,
    };
    let delegation: HostDelegation = candid::decode_one(&bytes).map_err(|e| {
        wrong(format!(
            "{} isn't a host delegation ({e}); make one with `decent`",
            path.display()
        ))
    })?;
    let named = delegation.statement.host.to_text();
    if named != host {
        return Err(wrong(format!(
            "it is for host {named}, but ledger.host_key is {host}'s key"
        )));
    }
    if delegation.statement.ledger.to_text() != config.ledger.canister_id {
        return Err(wrong(format!(
            "it is for ledger {}, not for this one",
            delegation.statement.ledger
        )));
    }
    Ok(delegation)
}

/// All that this host may promise: the inventory, and the config's word in place of it.
pub fn capacity(config: &Config, inventory: &Inventory, storage_bytes: u64) -> Capacity {
    let over = &config.offering.capacity;
    let total_mib = inventory.memory.total_bytes.known().copied().unwrap_or(0) / (1 << 20);
    // A tenth and half a GiB stay with the host: kernel, page tables, VMMs, HAProxy, hostd.
    let memory_mib = over
        .memory_mib
        .unwrap_or((total_mib - total_mib / 10).saturating_sub(512));
    let pool = inventory
        .hugepages
        .iter()
        .filter(|pool| pool.size_kib == 2048)
        .map(|pool| pool.total)
        .sum();
    let gpus = inventory
        .gpus
        .iter()
        .filter(|gpu| gpu.is_for_sale())
        .map(|gpu| gpu.pci.address.clone());
    let usable = storage_bytes.saturating_sub(config.storage.keep_free_bytes);
    Capacity {
        vcpus: over.vcpus.unwrap_or(inventory.cpu.threads),
        memory_mib,
        hugepages_2m: config.vmm.hugepages.then_some(pool),
        storage_gib: over.storage_gib.unwrap_or(usable >> 30),
        slots: 1..=65534,
        lease_ports: config.network.lease_ports.ports(),
        gpus: gpus.take(over.gpus.map_or(usize::MAX, |n| n as usize)).collect(),
    }
}

/// Why disks can't be encrypted here, if they can't.
fn no_encryption(support: &EncryptionSupport) -> Option<String> {
    match support {
        EncryptionSupport::Luks2 => None,
        EncryptionSupport::Unavailable { reasons } => Some(reasons.join("; ")),
    }
}

/// Test builds with the feature `fault-injection` die by SIGKILL at the N-th journal write, before or after it is on disk:
/// `HOSTD_DIE_AT_WRITE=N:before|after`.
#[cfg(feature = "fault-injection")]
fn probe() -> Probe {
    use std::sync::atomic::{AtomicU64, Ordering};

    use crate::journal::Moment;
    let asked = std::env::var("HOSTD_DIE_AT_WRITE").ok();
    let asked = asked.as_deref().and_then(|text| text.split_once(':'));
    let Some((Ok(at), moment)) = asked.map(|(n, moment)| (n.parse::<u64>(), moment.to_owned())) else {
        return Arc::new(|_| true);
    };
    let count = AtomicU64::new(0);
    Arc::new(move |now| {
        let here = match now {
            Moment::BeforeCommit => "before",
            Moment::AfterCommit => "after",
        };
        if here == moment && count.fetch_add(1, Ordering::SeqCst) + 1 == at {
            let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL);
        }
        true
    })
}

#[cfg(not(feature = "fault-injection"))]
fn probe() -> Probe {
    Arc::new(|_| true)
}

/// Runs until SIGTERM or SIGINT. `events` is where the log goes beside journald.
pub async fn run(config: Config, events: Events) -> Result<(), DaemonError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Api)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Api)?;
    // Each VMM has a user of its own, who gets through to what is his.
    make_dir(&config.host.state_dir, 0o711)?;
    make_dir(&config.host.run_dir, 0o755)?;
    let _lock = lock(&config.host.state_dir)?;
    let journal = Journal::open_with(&config.host.state_dir.join("journal.db"), probe())?;
    let inventory = inventory::take(Path::new("/"));
    warn_of_own_mounts();
    let (client, principal) = connect(&config)?;
    let delegation = delegation(&config, &principal)?;
    let host_id = delegation.statement.host;
    let provider =
        ledger::crypto::principal_of(&delegation.provider_key).map_err(|e| DaemonError::Config {
            key: "ledger.delegation",
            why: format!("the provider's key: {e}"),
        })?;
    let store = Store::open(config.storage.clone()).map_err(|e| DaemonError::Storage(chain(&e)))?;
    let network = netns::Network::open(config.network.clone()).await;
    let network = Arc::new(TenantNetworks::new(Arc::new(
        network.map_err(|e| DaemonError::Network(chain(&e)))?,
    )));
    let vmms = adapters(&config);
    let support = crate::vmm::support(&vmms).await;
    let total = store
        .space()
        .await
        .map_err(|e| DaemonError::Storage(chain(&e)))?
        .total_bytes;
    let capacity = capacity(&config, &inventory, total);
    let facts = Arc::new(HostFacts {
        ledger: client.canister_id().as_slice().to_vec(),
        domain: delegation.statement.profile.domain.to_ascii_lowercase(),
        address: config.network.public_ip4,
        vm_dir: config.host.run_dir.join("vm"),
        uid_base: config.vmm.uid_base,
        hugepages: config.vmm.hugepages,
        default_disk_gib: config.offering.default_disk_gib,
        disk_gib_max: config.offering.storage_per_vm_gib,
        bandwidth_mbps_max: config.offering.bandwidth_mbps,
        no_encryption: no_encryption(store.at_rest()),
        nameservers: config.network.nameservers.clone(),
        routes: config.network.haproxy.is_some(),
    });
    let ledger: Arc<dyn LedgerPort> = Arc::new(Ledger::new(client));
    let host = Host {
        ledger,
        net: network.clone(),
        taps: network,
        storage: Arc::new(Storage::new(store.clone())),
        devices: Arc::new(Vfio::new(Path::new("/sys"))),
        vmms,
        agent: Arc::new(GuestAgent::default()),
        processes: Arc::new(Processes::new().map_err(file_error("read", Path::new("/proc")))?),
    };
    let timing = Timing::default();
    let (net, keeper) = NetKeeper::new(
        journal.clone(),
        host.net.clone(),
        facts.clone(),
        timing.network_look,
    );
    let cpus = std::thread::available_parallelism().map_or(2, usize::from);
    // A simulated platform's maker may have no service.
    let endorsements = match config.host.test_platform && config.endorsements.test_root.is_none() {
        true => Keeper::off(),
        false => {
            let own = endorsements::own::documents(&inventory, config.endorsements.fmspc);
            let opened = Keeper::open(&config.endorsements, &config.host.state_dir, own);
            opened.map_err(|why| DaemonError::Config {
                key: "endorsements",
                why,
            })?
        }
    };
    let host_evidence = HostEvidence::open(&config.host_evidence).map_err(|why| DaemonError::Config {
        key: "host_evidence.tpm",
        why,
    })?;
    let ctx = Arc::new(Ctx {
        host,
        journal,
        net,
        facts,
        capacity,
        support: std::sync::Mutex::new(support),
        deadlines: config.deadlines,
        timing,
        launches: Semaphore::new(config.vmm.parallel_launches.unwrap_or(cpus.max(2))),
        live: std::sync::Mutex::default(),
        names: Names::default(),
        endorsements,
        host_evidence,
        metrics: Metrics::default(),
        heartbeat_now: Notify::new(),
    });
    let heartbeat_every = Duration::from_secs(config.host.heartbeat_s);
    let (registration_sender, registration) = watch::channel(Registration::default());
    let (handle, supervisor) = supervise(ctx.clone());
    let listener = surface::listen(&config.host.socket(), config.host.socket_group.as_deref());
    let listener = listener.map_err(file_error("listen on", &config.host.socket()))?;
    let slots = inventory.boot.image.as_ref().and_then(|image| {
        let slots = SystemdSlots::new(image, Places::of_the_appliance(&config))?;
        Some(Arc::new(slots) as Arc<dyn crate::update::Slots>)
    });
    let update = Arc::new(Updater::new(config.update.clone(), slots, ctx.journal.clone()));
    if let Err(error) = update.settle(true).await {
        tracing::warn!(%error, "what became of the last update isn't known");
    }
    let app = Arc::new(App {
        ctx: ctx.clone(),
        handle,
        config,
        inventory,
        started_ms: now_ms(),
        host_principal: principal,
        registration,
        store: store.clone(),
        provider,
        accounts: Accounts::default(),
        events,
        update,
    });

    let mut tasks = JoinSet::new();
    tasks.spawn(keeper);
    if app.ctx.facts.routes {
        let dns = Arc::new(Dns::new(app.config.names.nameservers.clone()));
        tasks.spawn(names::prove(ctx.clone(), dns, app.config.names.pace()));
    }
    tasks.spawn(offering::offer(
        ctx.clone(),
        delegation,
        app.clone(),
        heartbeat_every,
        registration_sender,
    ));
    tasks.spawn(upkeep::updates(ctx.clone(), app.update.clone()));
    tasks.spawn(upkeep::heartbeats(
        ctx.clone(),
        app.update.clone(),
        heartbeat_every,
        app.registration.clone(),
    ));
    tasks.spawn(endorsements::keep(ctx.clone()));
    tasks.spawn(host_evidence::keep(
        ctx.clone(),
        host_id,
        app.registration.clone(),
    ));
    tasks.spawn(upkeep::watchdog(ctx.clone()));
    tasks.spawn(upkeep::tidy(ctx, store));
    let server = axum::serve(listener, surface::router(app));
    let supervisor = tokio::spawn(supervisor);
    upkeep::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!("hostd is up");
    let result = tokio::select! {
        ended = supervisor => match ended {
            Ok(Err(error)) => Err(error.into()),
            Ok(Ok(())) | Err(_) => Err(JournalError::Gone.into()),
        },
        served = server => Err(DaemonError::Api(served.err().unwrap_or_else(|| std::io::ErrorKind::BrokenPipe.into()))),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    upkeep::notify(&[sd_notify::NotifyState::Stopping]);
    match &result {
        Ok(()) => tracing::info!("hostd stops; VMs run on"),
        Err(error) => tracing::error!(error = chain(error), "hostd stops; VMs run on"),
    }
    result
}

/// Named network namespaces are bind mounts. In a mount namespace of our own they would go with this process, and the next
/// hostd would not find the networks of running VMs.
fn warn_of_own_mounts() {
    let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    if let (Some(ours), Some(first)) = (of("self"), of("1"))
        && ours != first
    {
        tracing::warn!(
            "hostd runs in a mount namespace of its own: tenants' networks will not survive its restart. Take options \
             such as PrivateTmp and ProtectSystem out of its unit; in a network namespace start it with `nsenter --net`, \
             not with `ip netns exec`"
        );
    }
}

/// What the doctor needs beside what it finds out by itself. `domain`: the running daemon's; `None`: there is none.
pub fn doctor_inputs(
    config: &Config,
    vmms: Vec<(String, VmmSupport)>,
    ledger: doctor::LedgerFact,
    encryption: EncryptionSupport,
    storage: inventory::Probe<crate::storage::Space>,
    domain: Option<&str>,
    endorsements: Vec<doctor::EndorsementFact>,
) -> doctor::Inputs {
    let ledger_host = url::Url::parse(&config.ledger.url)
        .ok()
        .and_then(|url| url.host_str().map(str::to_owned));
    // A name like those that tenants get: a wildcard record must lead it here.
    let tenants = domain
        .filter(|_| config.network.haproxy.is_some())
        .map(|domain| format!("hostd-doctor.{domain}"));
    let mut tool_paths = std::collections::BTreeMap::new();
    if let Some(haproxy) = &config.network.haproxy {
        tool_paths.insert("haproxy".to_owned(), haproxy.binary.clone());
    }
    if let Some(binary) = &config.vmm.cloud_hypervisor.binary {
        tool_paths.insert("cloud-hypervisor".to_owned(), binary.clone());
    }
    doctor::Inputs {
        root: "/".into(),
        wants: doctor::Wants {
            kinds: config
                .offering
                .kinds
                .iter()
                .flatten()
                .map(|kind| (*kind).into())
                .collect(),
            gpus: config.offering.capacity.gpus.is_some_and(|n| n > 0),
            encryption: false,
            hugepages: config.vmm.hugepages,
            reserve_hugepages_mib: config.vmm.reserve_hugepages_mib,
            test_platform: config.host.test_platform,
        },
        tool_paths,
        vmms,
        ledger,
        storage,
        encryption,
        running: domain.is_some(),
        ingress_ports: config
            .network
            .haproxy
            .iter()
            .flat_map(|h| [h.https_port, h.http_port])
            .collect(),
        lease_ports: config.network.lease_ports.ports(),
        public_ip4: config.network.public_ip4,
        dns_names: ledger_host
            .into_iter()
            .map(|name| (name, None))
            .chain(tenants.map(|name| (name, Some(config.network.public_ip4))))
            .collect(),
        endorsements,
    }
}

/// Asks the ledger who it is, for the doctor.
pub async fn ledger_fact(config: &Config, ledger: &dyn LedgerPort) -> doctor::LedgerFact {
    let url = config.ledger.url.clone();
    let asked = std::time::Instant::now();
    match tokio::time::timeout(Duration::from_secs(10), ledger.info()).await {
        Err(_) => doctor::LedgerFact::Unreachable {
            url,
            why: "no answer in 10 s".into(),
        },
        Ok(Err(error)) => doctor::LedgerFact::Unreachable {
            url,
            why: error.to_string(),
        },
        Ok(Ok(info)) => {
            let skew = i128::from(now_ms()) - i128::from(info.now / 1_000_000);
            doctor::LedgerFact::Reachable {
                url,
                round_trip_ms: u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX),
                name: info.name,
                demo: info.demo,
                test_roots: info.test_roots.len(),
                skew_ms: (info.clock_rate == 1).then(|| i64::try_from(skew).unwrap_or(i64::MAX)),
            }
        }
    }
}
