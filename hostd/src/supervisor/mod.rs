//! The supervisor: makes the machine have what the ledger's contracts ask, and nothing else.
//!
//! ```text
//!  ledger ──long-poll──▶ watcher ──list──▶ supervisor ──watch(Told)──▶ actor (one for each contract)
//!  surface ────────────── Command ───────▶     │ ──────mpsc(4)───────▶   │ decide::next → step → journal
//!  pidfd ────────────────────────────────────────────────────────────▶   │
//!                                              ◀──────── ends ───────────┘
//! ```
//! Level-triggered: the list is fetched whole and each actor gets what the ledger says now; what it said in between
//! doesn't matter. An actor alone changes its contract; the supervisor only starts actors and passes words on.
//! Dropping the supervisor stops all actors where they are, which is what a crash does too; the next start goes on.

mod actor;
pub mod decide;
mod keeper;
mod provision;
mod removal;
pub mod spec;
mod watcher;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ledger::api::{Contract, ContractId, VmKind};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;

pub use self::actor::Command;
use self::actor::{Actor, Told};
use self::decide::Desired;
pub use self::keeper::NetKeeper;
use self::spec::HostFacts;
pub use self::watcher::{LedgerSight, Snapshot};
use crate::allocator::{Capacity, Refusal};
use crate::config::DeadlineConfig;
use crate::endorsements::Keeper;
use crate::host_evidence::HostEvidence;
use crate::journal::{Journal, JournalError};
use crate::names::Names;
use crate::ports::{Host, StorageError};
use crate::surface::metrics::Metrics;
use crate::vmm::{Vmm, VmmSupport};

/// Commands that wait for one actor; operators type, so a few are plenty.
const COMMANDS: usize = 4;

/// How patient hostd is. The daemon uses the default; tests are in a hurry.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// First pause after a failure that may pass.
    pub retry_min: Duration,
    /// Longest pause.
    pub retry_max: Duration,
    /// Between two asks of a guest agent that is silent.
    pub agent_poll: Duration,
    /// One ask of a guest agent.
    pub agent_ask: Duration,
    /// One long-poll of the ledger.
    pub long_poll: Duration,
    /// Between two full looks at the network.
    pub network_look: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            retry_min: Duration::from_millis(250),
            retry_max: Duration::from_secs(30),
            agent_poll: Duration::from_millis(200),
            agent_ask: Duration::from_secs(20),
            long_poll: Duration::from_secs(25),
            network_look: Duration::from_secs(300),
        }
    }
}

/// What a contract's actor is at, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// What the ledger says.
    pub desired: Desired,
    /// What is being done, in a word or two.
    pub activity: String,
    /// Something is wrong that hostd may not decide by itself.
    pub degraded: Option<String>,
    /// The last thing that failed and is being tried again.
    pub last_error: Option<String>,
}

/// What all actors share.
pub struct Ctx {
    /// The world.
    pub host: Host,
    /// Memory.
    pub journal: Journal,
    /// Networks.
    pub net: NetKeeper,
    /// What all contracts of this host share.
    pub facts: Arc<HostFacts>,
    /// All that the host may promise.
    pub capacity: Capacity,
    /// What each of `host.vmms` can host, in the same order. A `std` mutex, as `live`.
    pub support: Mutex<Vec<VmmSupport>>,
    /// Deadlines of steps.
    pub deadlines: DeadlineConfig,
    /// Patience.
    pub timing: Timing,
    /// Launches at the same time.
    pub launches: Semaphore,
    /// What each actor is at. A `std` mutex: held for a few instructions, never over an `.await`.
    pub live: Mutex<BTreeMap<ContractId, Live>>,
    /// Names that tenants bring.
    pub names: Names,
    /// What evidence needs beside itself.
    pub endorsements: Keeper,
    /// What this host itself shows.
    pub host_evidence: HostEvidence,
    /// Counts and times.
    pub metrics: Metrics,
    /// Woken when the ledger should hear something before the next heartbeat is due.
    pub heartbeat_now: Notify,
}

impl Ctx {
    /// The preferred adapter that can host the kind, or why there is none.
    pub fn adapter_for(&self, kind: VmKind) -> Result<Arc<dyn Vmm>, Refusal> {
        let mut whys = Vec::new();
        for (vmm, support) in self.adapters() {
            match support.kinds.iter().find(|(k, _)| *k == kind) {
                Some((_, Ok(()))) => return Ok(vmm),
                Some((_, Err(why))) => whys.push(format!("{}: {why}", vmm.name())),
                None => {}
            }
        }
        let why = if whys.is_empty() {
            "no adapter knows it".to_owned()
        } else {
            whys.join("; ")
        };
        Err(Refusal::Kind {
            kind: spec::kind_name(kind),
            why,
        })
    }

    /// Each adapter with what it can host, as far as is known.
    pub fn adapters(&self) -> Vec<(Arc<dyn Vmm>, VmmSupport)> {
        let support = self
            .support
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        self.host.vmms.iter().cloned().zip(support).collect()
    }

    /// Asks the adapters what they can host now: one may have been too busy at hostd's start.
    pub async fn ask_adapters(&self) {
        let found = crate::vmm::support(&self.host.vmms).await;
        *self.support.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }

    /// The adapter of that name.
    pub fn adapter_named(&self, name: &str) -> Option<Arc<dyn Vmm>> {
        self.host.vmms.iter().find(|vmm| vmm.name() == name).cloned()
    }

    /// GiB of storage that can be promised now, in all.
    pub async fn storage_gib(&self) -> Result<u64, StorageError> {
        Ok(self.capacity.storage_gib_in(self.host.storage.space().await?))
    }

    /// Changes what is shown of a contract.
    fn show(&self, id: ContractId, change: impl FnOnce(&mut Live)) {
        let mut live = self.live.lock().expect("no code panics while it holds this lock");
        change(live.entry(id).or_insert_with(|| Live {
            desired: Desired::Unheard,
            activity: "starting".into(),
            degraded: None,
            last_error: None,
        }));
    }

    /// What all actors are at.
    pub fn live(&self) -> BTreeMap<ContractId, Live> {
        self.live
            .lock()
            .expect("no code panics while it holds this lock")
            .clone()
    }
}

/// A word to the supervisor.
enum Word {
    Command(ContractId, Command),
    PowerOff(oneshot::Sender<()>),
}

/// Why an operator's command was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No such contract here.
    #[error("contract {0} isn't on this host")]
    NotHere(ContractId),
    /// Its actor has its hands full.
    #[error("the contract's queue is full; try again in a moment")]
    Busy,
    /// hostd stops.
    #[error("hostd is stopping")]
    Stopping,
    /// It can't be done now.
    #[error("{0}")]
    Refused(String),
}

/// A handle to the supervisor.
#[derive(Clone)]
pub struct Handle {
    words: mpsc::Sender<Word>,
    /// What the ledger said last.
    pub sight: watch::Receiver<LedgerSight>,
}

impl Handle {
    /// Ends a contract by the operator's explicit word. Answers when the journal has it.
    pub async fn end(&self, id: ContractId, why: String) -> Result<(), CommandError> {
        let (answer, wait) = oneshot::channel();
        self.words
            .send(Word::Command(id, Command::End { why, answer }))
            .await
            .map_err(|_| CommandError::Stopping)?;
        wait.await.map_err(|_| CommandError::Stopping)?
    }

    /// The machine goes down: ends every contract, each VM within its deadline, and takes up nothing new. Answers when
    /// no VM runs any more and the ledger was asked to note it.
    pub async fn power_off(&self) -> Result<(), CommandError> {
        let (answer, wait) = oneshot::channel();
        self.words
            .send(Word::PowerOff(answer))
            .await
            .map_err(|_| CommandError::Stopping)?;
        wait.await.map_err(|_| CommandError::Stopping)
    }
}

struct ActorHandle {
    told: watch::Sender<Told>,
    commands: mpsc::Sender<Command>,
}

/// Runs until the journal is gone (an error) or the future is dropped. The handle works from the start.
pub fn supervise(ctx: Arc<Ctx>) -> (Handle, impl Future<Output = Result<(), JournalError>> + Send) {
    let (words, queue) = mpsc::channel(64); // operators and the CLI only
    let (sight_sender, sight) = watch::channel(LedgerSight::default());
    let handle = Handle {
        words,
        sight: sight.clone(),
    };
    let watcher = watcher::watch(ctx.host.ledger.clone(), ctx.timing, sight_sender);
    (handle, run(ctx, queue, sight, watcher))
}

struct Supervisor {
    ctx: Arc<Ctx>,
    actors: BTreeMap<ContractId, ActorHandle>,
    /// The machine goes down: nothing new is taken up.
    powering_off: bool,
    tasks: JoinSet<(ContractId, Result<(), JournalError>)>,
}

async fn run(
    ctx: Arc<Ctx>,
    mut words: mpsc::Receiver<Word>,
    mut sight: watch::Receiver<LedgerSight>,
    watcher: impl Future<Output = ()> + Send + 'static,
) -> Result<(), JournalError> {
    let mut supervisor = Supervisor {
        ctx,
        actors: BTreeMap::new(),
        powering_off: false,
        tasks: JoinSet::new(),
    };
    // Adoption: every open contract gets its actor before the ledger is even asked; VMs that ended are seen at once.
    for record in supervisor.ctx.journal.open_records().await? {
        supervisor.start(
            record.id,
            Told {
                desired: Desired::Unheard,
                contract: None,
            },
        );
    }
    let mut background = JoinSet::new();
    background.spawn(watcher);
    loop {
        tokio::select! {
            changed = sight.changed() => {
                if changed.is_err() {
                    return Ok(()); // the watcher ends only with the runtime
                }
                let snapshot = sight.borrow_and_update().contracts.clone();
                if let Some(snapshot) = snapshot {
                    supervisor.take(&snapshot).await?;
                }
            }
            Some(ended) = supervisor.tasks.join_next() => supervisor.ended(ended)?,
            word = words.recv() => match word {
                Some(Word::Command(id, command)) => supervisor.pass(id, command),
                Some(Word::PowerOff(answer)) => {
                    let stopped = supervisor.power_off();
                    background.spawn(async move {
                        stopped.await;
                        let _ = answer.send(()); // systemd may have lost patience
                    });
                }
                None => std::future::pending().await, // no handles any more; contracts go on
            },
        }
    }
}

impl Supervisor {
    fn start(&mut self, id: ContractId, told: Told) {
        let (told, told_watch) = watch::channel(told);
        let (commands, queue) = mpsc::channel(COMMANDS);
        let actor = Actor::new(self.ctx.clone(), id, told_watch, queue);
        self.actors.insert(id, ActorHandle { told, commands });
        self.tasks.spawn(async move { (id, actor.run().await) });
    }

    /// Gives every actor what the ledger says now.
    async fn take(&mut self, snapshot: &[Contract]) -> Result<(), JournalError> {
        let listed: BTreeSet<ContractId> = snapshot.iter().map(|contract| contract.id).collect();
        for contract in snapshot {
            let told = Told {
                desired: Desired::of(contract.state, contract.released),
                contract: Some(Arc::new(contract.clone())),
            };
            match self.actors.get(&contract.id) {
                Some(actor) => {
                    actor.told.send_if_modified(|now| {
                        let changed = now.desired != told.desired || now.contract.is_none();
                        *now = told;
                        changed
                    });
                }
                None if self.powering_off => {} // waits on the ledger for the next start
                None => self.start(contract.id, told),
            }
        }
        // Not listed: released, or not known to this ledger. Rare, so each is asked for by name.
        for (id, actor) in self.actors.iter().filter(|(id, _)| !listed.contains(id)) {
            let told = match self.ctx.host.ledger.contract(*id).await {
                Ok(contract) => Told {
                    desired: Desired::of(contract.state, contract.released),
                    contract: Some(Arc::new(contract)),
                },
                Err(error) if matches!(error.answer(), Some(ledger::api::LedgerError::NotFound { .. })) => {
                    Told {
                        desired: Desired::Unknown,
                        contract: None,
                    }
                }
                Err(_) => continue, // asked again with the next list
            };
            actor.told.send_if_modified(|now| {
                let changed = now.desired != told.desired;
                *now = told;
                changed
            });
        }
        Ok(())
    }

    fn ended(
        &mut self,
        ended: Result<(ContractId, Result<(), JournalError>), tokio::task::JoinError>,
    ) -> Result<(), JournalError> {
        match ended {
            Ok((id, result)) => {
                self.actors.remove(&id);
                match result {
                    Ok(()) => {
                        self.ctx
                            .live
                            .lock()
                            .expect("no code panics while it holds this lock")
                            .remove(&id);
                        Ok(())
                    }
                    Err(JournalError::Gone) => Err(JournalError::Gone),
                    Err(error) => {
                        tracing::error!(contract = %id, %error, "this contract can't be looked after any more");
                        self.ctx.show(id, |live| live.degraded = Some(error.to_string()));
                        Ok(())
                    }
                }
            }
            Err(error) if error.is_panic() => {
                // A bug. Its contract's state is in the journal; a fresh process looks at it with fresh eyes.
                tracing::error!(%error, "an actor panicked; hostd stops, VMs run on");
                Err(JournalError::Gone)
            }
            Err(_) => Ok(()),
        }
    }

    /// Tells every actor that the machine goes down; the future ends when all have stopped their VMs.
    fn power_off(&mut self) -> impl Future<Output = ()> + Send + use<> {
        self.powering_off = true;
        tracing::warn!(
            contracts = self.actors.len(),
            "the machine goes down; VMs are stopped"
        );
        let queues: Vec<_> = self.actors.values().map(|actor| actor.commands.clone()).collect();
        async move {
            let mut answers = Vec::with_capacity(queues.len());
            for queue in queues {
                let (answer, wait) = oneshot::channel();
                // An actor that has ended has no VM.
                if queue.send(Command::PowerOff { answer }).await.is_ok() {
                    answers.push(wait);
                }
            }
            for answer in answers {
                let _ = answer.await; // dropped: the actor has ended
            }
        }
    }

    fn pass(&self, id: ContractId, command: Command) {
        match self.actors.get(&id) {
            None => command.refuse(CommandError::NotHere(id)),
            Some(actor) => {
                if let Err(error) = actor.commands.try_send(command) {
                    match error {
                        mpsc::error::TrySendError::Full(command) => command.refuse(CommandError::Busy),
                        mpsc::error::TrySendError::Closed(command) => {
                            command.refuse(CommandError::NotHere(id))
                        }
                    }
                }
            }
        }
    }
}
