//! The handle on this host's network: one lock, one worker thread at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};

use tokio::sync::Mutex;
use tracing::{debug, info, warn};

use crate::config::{Config, Manage};
use crate::desired::Desired;
use crate::effects::apply::{apply, make_tap};
use crate::effects::flows::{self, Doomed};
use crate::effects::nft::References;
use crate::effects::observe::{Place, find_tap, observe, taps_possible};
use crate::effects::tap;
use crate::effects::worker::{self, Worker, os};
use crate::error::{ConvergeError, Failure, NetError, Scope};
use crate::ingress;
use crate::names::{IfName, Mac, Slot, TenantId, mac};
use crate::plan::{Observed, Plan, StopProxy, Tenant, plan, plan_change, plan_removal};
use crate::rules;

/// This host's network. Cheap to share behind an `Arc`; calls that change something wait for each other.
///
/// "The host's namespace" is the one of the thread that called [`Network::open`], or the one given to
/// [`Network::open_in`]. Dropping it changes nothing: the network goes on without us.
pub struct Network {
    config: Arc<Config>,
    host: Arc<OwnedFd>,
    references: Arc<References>,
    /// The last desired state that somebody asked for. A std mutex: held to copy the pointer only.
    asked: std::sync::Mutex<Arc<Desired>>,
    /// A tokio mutex: it is held while a worker thread works.
    state: Mutex<State>,
    /// Held by the worker thread of a call that changes something. When such a call is dropped half-way, `state` is free, but
    /// its worker still works; the next one waits for it here.
    gate: Arc<std::sync::Mutex<()>>,
}

/// What we remember between calls. All of it can be lost: the kernel knows.
#[derive(Default)]
struct State {
    /// Whether what was asked for last was reached, so that the next change can start from there.
    reached: bool,
    /// Taps that we moved to the host's namespace for a VMM.
    lent: BTreeSet<Slot>,
}

/// What a converge changed, one line each; empty when all was as desired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes(pub Vec<String>);

impl Changes {
    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Traffic of one VM since its tap was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// Sent by the VM, bytes.
    pub sent_bytes: u64,
    /// Sent by the VM, packets.
    pub sent_packets: u64,
    /// Received by the VM, bytes.
    pub received_bytes: u64,
    /// Received by the VM, packets.
    pub received_packets: u64,
}

/// What `end_sessions` ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Entries of the connection table.
    pub flows: usize,
    /// TCP connections of HAProxy.
    pub sockets: usize,
}

/// Everything that is rendered for a desired state, for people (`hostd explain`).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Rendered {
    /// nft ruleset of the host's namespace.
    pub host_rules: String,
    /// nft ruleset of each tenant's namespace, by its name.
    pub tenant_rules: std::collections::BTreeMap<String, String>,
    /// HAProxy's configuration, if there is one.
    pub haproxy_config: Option<String>,
    /// HAProxy's map of names to addresses.
    pub haproxy_routes: String,
}

impl Network {
    /// Checks the settings and the machine (rights, wan interface, nft, taps). Changes nothing that lasts.
    pub async fn open(config: Config) -> Result<Self, NetError> {
        let host = File::open("/proc/thread-self/ns/net").map_err(os("open our own network namespace"))?;
        Self::open_in(config, host.into()).await
    }

    /// Like [`open`](Self::open), with another namespace as the host's.
    pub async fn open_in(config: Config, host: OwnedFd) -> Result<Self, NetError> {
        config.check().map_err(NetError::Config)?;
        let (config, host) = (Arc::new(config), Arc::new(host));
        let references = worker::run(Arc::clone(&config), Arc::clone(&host), |worker| {
            let wan = worker.config.wan.as_str();
            if worker.links()?.find(wan)?.is_none() {
                return Err(NetError::NoWan(wan.to_owned()));
            }
            taps_possible()?;
            References::make(&worker.config)
        });
        let references = Arc::new(references.await?);
        Ok(Self {
            config,
            host,
            references,
            asked: std::sync::Mutex::default(),
            state: Mutex::new(State::default()),
            gate: Arc::default(),
        })
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Address of the VM in `slot`.
    pub fn ip4(&self, slot: Slot) -> Ipv4Addr {
        self.config.ip4(slot)
    }

    /// MAC address of the VM in `slot`.
    pub fn mac(&self, slot: Slot) -> Mac {
        mac(slot)
    }

    /// Name of the tap of `slot`.
    pub fn tap_name(&self, slot: Slot) -> IfName {
        self.config.prefix.tap(slot)
    }

    /// Runs a job that only looks.
    async fn look_with<T, F>(&self, job: F) -> Result<T, NetError>
    where
        T: Send + 'static,
        F: FnOnce(&Worker) -> Result<T, NetError> + Send + 'static,
    {
        worker::run(Arc::clone(&self.config), Arc::clone(&self.host), job).await
    }

    /// Runs a job that changes something, or that must not see a change half done.
    async fn work<T, F>(&self, job: F) -> Result<T, NetError>
    where
        T: Send + 'static,
        F: FnOnce(&Worker) -> Result<T, NetError> + Send + 'static,
    {
        let gate = Arc::clone(&self.gate);
        self.look_with(move |worker| {
            let _alone = gate.lock().unwrap_or_else(PoisonError::into_inner); // it guards no data
            job(worker)
        })
        .await
    }

    /// The last desired state that somebody asked for.
    fn asked(&self) -> Arc<Desired> {
        Arc::clone(&self.asked.lock().unwrap_or_else(PoisonError::into_inner)) // a pointer is never half changed
    }

    /// The tenant that a slot should belong to.
    fn tenant_of(&self, slot: Slot) -> Option<TenantId> {
        self.asked().vms.get(&slot).map(|vm| vm.tenant.clone())
    }

    /// Looks at everything but the tenants that are known.
    async fn look(&self, state: &State, known: BTreeMap<TenantId, Tenant>) -> Result<Observed, NetError> {
        let (references, lent) = (Arc::clone(&self.references), state.lent.clone());
        self.work(move |worker| observe(worker, &references, &lent, &known))
            .await
    }

    /// Looks at everything that is ours.
    pub async fn observe(&self) -> Result<Observed, NetError> {
        let state = self.state.lock().await;
        self.look(&state, BTreeMap::new()).await
    }

    /// Makes the network be `desired`: looks at everything, changes what differs, looks again. Idempotent; safe after a
    /// crash at any point. One tenant's failure doesn't keep the others from being made.
    pub async fn converge(&self, desired: &Desired) -> Result<Changes, ConvergeError> {
        desired.check(&self.config).map_err(ConvergeError::Desired)?;
        let mut state = self.state.lock().await;
        state.reached = false;
        let observed = self
            .look(&state, BTreeMap::new())
            .await
            .map_err(ConvergeError::Observe)?;
        let steps = plan(&self.config, &observed, desired);
        let (nothing, touched) = (steps.is_empty(), steps.touches());
        let changes = self.follow(&mut state, steps, desired).await?;
        if nothing {
            state.reached = true;
            return Ok(changes);
        }
        // The second look catches the kernel, or somebody else, doing something that we didn't ask for.
        let known = observed
            .tenants
            .into_iter()
            .filter(|(tenant, _)| !touched.contains(tenant))
            .collect();
        let after = self.look(&state, known).await.map_err(ConvergeError::Observe)?;
        let remaining = plan(&self.config, &after, desired);
        if !remaining.is_empty() {
            return Err(ConvergeError::Remaining {
                remaining: remaining.lines(),
            });
        }
        state.reached = true;
        Ok(changes)
    }

    /// Like [`converge`](Self::converge), but compares with what the last successful call left instead of looking at
    /// everything, so that its cost follows the change and not the size of the host. What others changed meanwhile, it
    /// doesn't see; call `converge` now and then. The first call, and one after a failure, converges.
    pub async fn adjust(&self, desired: &Desired) -> Result<Changes, ConvergeError> {
        desired.check(&self.config).map_err(ConvergeError::Desired)?;
        let mut state = self.state.lock().await;
        if !std::mem::take(&mut state.reached) {
            drop(state);
            return self.converge(desired).await;
        }
        let before = self.asked();
        let steps = plan_change(&self.config, &before, desired, &state.lent);
        let changes = self.follow(&mut state, steps, desired).await?;
        state.reached = true;
        Ok(changes)
    }

    /// Like [`converge`](Self::converge), but stops after `steps` steps, as if the process had died there. For tests.
    #[doc(hidden)]
    pub async fn converge_cut_off(&self, desired: &Desired, steps: usize) -> Result<Changes, ConvergeError> {
        let mut state = self.state.lock().await;
        state.reached = false;
        let observed = self
            .look(&state, BTreeMap::new())
            .await
            .map_err(ConvergeError::Observe)?;
        let mut plan = plan(&self.config, &observed, desired);
        plan.0.truncate(steps);
        self.follow(&mut state, plan, desired).await
    }

    /// Does the steps, one after the other. After a failure, later steps of the same scope are left out; after one of the
    /// host's, all are: its rules are what closes everything else.
    async fn follow(
        &self,
        state: &mut State,
        steps: Plan,
        desired: &Desired,
    ) -> Result<Changes, ConvergeError> {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(desired.clone());
        state.lent.retain(|slot| desired.vms.contains_key(slot));
        if steps.is_empty() {
            return Ok(Changes::default());
        }
        let moved = steps.moves_namespaces();
        let routes = match steps.concerns_proxy() {
            true => ingress::routes(&self.config, desired),
            false => BTreeMap::new(),
        };
        let work = self.work(move |worker| {
            let (mut changes, mut failures) = (Changes::default(), Vec::<Failure>::new());
            for step in &steps.0 {
                let scope = step.scope();
                if failures
                    .iter()
                    .any(|failure| failure.scope == scope || failure.scope == Scope::Host)
                {
                    warn!(%step, "left out after an earlier failure");
                    continue;
                }
                match apply(worker, step, &routes) {
                    Ok(()) => {
                        debug!(%step, "done");
                        changes.0.push(step.to_string());
                    }
                    Err(error) => {
                        warn!(%step, %error, "failed");
                        failures.push(Failure { scope, error });
                    }
                }
            }
            Ok((changes, failures))
        });
        let done = work.await;
        if moved {
            self.references.forget();
        }
        let (changes, failures) = done.map_err(ConvergeError::Observe)?;
        if failures.is_empty() {
            info!(steps = changes.0.len(), "network changed");
            Ok(changes)
        } else {
            Err(ConvergeError::Incomplete { failures })
        }
    }

    /// Removes everything with our prefix; HAProxy too if we are the ones who start it, else only its routes. What stays is
    /// `ip_forward`, which others may need by now.
    pub async fn remove_all(&self) -> Result<Changes, ConvergeError> {
        let mut state = self.state.lock().await;
        *state = State::default();
        let stop = match self.config.haproxy.as_ref().map(|haproxy| haproxy.manage) {
            Some(Manage::External) => StopProxy::No,
            Some(Manage::Spawn) | None => StopProxy::Yes,
        };
        let observed = self
            .look(&state, BTreeMap::new())
            .await
            .map_err(ConvergeError::Observe)?;
        let changes = self
            .follow(
                &mut state,
                plan_removal(&self.config, &observed, stop),
                &Desired::default(),
            )
            .await?;
        let after = self
            .look(&state, BTreeMap::new())
            .await
            .map_err(ConvergeError::Observe)?;
        let remaining = plan_removal(&self.config, &after, stop);
        if !remaining.is_empty() {
            return Err(ConvergeError::Remaining {
                remaining: remaining.lines(),
            });
        }
        Ok(changes)
    }

    /// Opens the tap of `slot` inside its tenant's namespace, for a VMM that takes a file descriptor: no packet
    /// information, one queue, virtio-net header on.
    pub async fn open_tap(&self, slot: Slot) -> Result<OwnedFd, NetError> {
        let _alone = self.state.lock().await;
        let (name, guess) = (self.tap_name(slot), self.tenant_of(slot));
        self.work(move |worker| match find_tap(worker, slot, guess.as_ref())? {
            Place::Home(tenant) => worker.inside(&tenant, || tap::open(&name, slot)),
            Place::Host(_) => tap::open(&name, slot), // lent: the caller wants it where it is
            Place::Nowhere => Err(NetError::NoTap(slot)),
        })
        .await
    }

    /// Moves the tap of `slot` into the host's namespace, for a VMM that opens it by name, and returns the name. Nothing
    /// passes there: the host's rules drop what comes from it. Take it back when the VMM has opened it.
    pub async fn lend_tap(&self, slot: Slot) -> Result<IfName, NetError> {
        let mut state = self.state.lock().await;
        let (name, guess) = (self.tap_name(slot), self.tenant_of(slot));
        state.lent.insert(slot); // before it moves: a converge in between must not fetch it
        let moved = self.work(move |worker| match find_tap(worker, slot, guess.as_ref())? {
            Place::Home(tenant) => worker.inside(&tenant, || {
                let links = worker.links()?;
                let link = links.find(name.as_str())?.ok_or(NetError::NoTap(slot))?;
                links.send(link.index, worker.host_fd())
            }),
            Place::Host(_) => Ok(()),
            Place::Nowhere => Err(NetError::NoTap(slot)),
        });
        match moved.await {
            Ok(()) => Ok(self.tap_name(slot)),
            Err(error) => {
                state.lent.remove(&slot);
                state.reached = false;
                Err(error)
            }
        }
    }

    /// Moves a lent tap back behind its guard, with its addresses; the VMM that has it open notices nothing. Nothing to do
    /// if it is where it belongs. Works after a restart too: the tap carries its tenant's id.
    pub async fn take_back_tap(&self, slot: Slot) -> Result<(), NetError> {
        let mut state = self.state.lock().await;
        let guess = self.tenant_of(slot);
        let moved = self.work(move |worker| match find_tap(worker, slot, guess.as_ref())? {
            Place::Home(_) => Ok(()),
            Place::Host(alias) => match guess.or(alias) {
                Some(tenant) => make_tap(worker, &tenant, slot),
                None => Err(NetError::NoTap(slot)),
            },
            Place::Nowhere => Err(NetError::NoTap(slot)),
        });
        let result = moved.await;
        match result {
            Ok(()) => {
                state.lent.remove(&slot);
            }
            Err(_) => state.reached = false,
        }
        result
    }

    /// Traffic of the VM in `slot` since its tap was made. Survives restarts of ours and changes of the rules.
    pub async fn counters(&self, slot: Slot) -> Result<Counters, NetError> {
        let (name, guess) = (self.tap_name(slot), self.tenant_of(slot));
        self.look_with(move |worker| {
            let here = || worker.links()?.find(name.as_str())?.ok_or(NetError::NoTap(slot));
            let link = match find_tap(worker, slot, guess.as_ref())? {
                Place::Home(tenant) => worker.inside(&tenant, here)?,
                Place::Host(_) => here()?,
                Place::Nowhere => return Err(NetError::NoTap(slot)),
            };
            Ok(link.counters)
        })
        .await
    }

    /// Traffic of every VM, by slot: one look per namespace, for billing and metrics.
    pub async fn all_counters(&self) -> Result<BTreeMap<Slot, Counters>, NetError> {
        self.look_with(|worker| {
            let mut all = BTreeMap::new();
            for (tenant, live) in worker.namespaces()? {
                if live {
                    let links = match worker.inside(&tenant, || worker.links()?.links()) {
                        Err(_) if !worker.is_live(&tenant) => continue, // removed meanwhile
                        links => links?,
                    };
                    let slot = |name: &str| worker.config.prefix.slot_of_tap(name);
                    all.extend(
                        links
                            .iter()
                            .filter_map(|(name, link)| Some((slot(name)?, link.counters))),
                    );
                }
            }
            Ok(all)
        })
        .await
    }

    /// Ends all open flows of the VM in `slot`: entries of the connection table, and HAProxy's connections to it.
    pub async fn end_sessions(&self, slot: Slot) -> Result<Ended, NetError> {
        let doomed = Doomed {
            vms: BTreeSet::from([self.ip4(slot)]),
            ..Doomed::default()
        };
        self.look_with(move |_| flows::end(&doomed)).await
    }

    /// Everything that is generated for `desired`, for people. Pure.
    pub fn render(&self, desired: &Desired) -> Rendered {
        render(&self.config, desired)
    }
}

/// Everything that is generated for `desired`, for people. Pure.
pub fn render(config: &Config, desired: &Desired) -> Rendered {
    let tenants = desired.tenants().into_iter();
    Rendered {
        host_rules: rules::host_table(config, &rules::host_elements(config, desired)),
        tenant_rules: tenants
            .map(|(tenant, vms)| (config.prefix.namespace(tenant), rules::guard(config, &vms)))
            .collect(),
        haproxy_config: config
            .haproxy
            .as_ref()
            .map(|haproxy| ingress::haproxy_config(haproxy).0),
        haproxy_routes: ingress::routes_file(&ingress::routes(config, desired)),
    }
}
