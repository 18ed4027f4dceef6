//! One contract's actor: the only task that changes it.
//!
//! A loop of three lines: look (ledger's word, journal, process), decide ([`decide::next`]), do. What is done is a
//! journal write or one step; a step's line is on disk before the machine changes and again when it is done. Two writes
//! that follow each other without a change to the machine in between (a step is done, the next one starts) are one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ledger::api::{Contract, ContractId, LedgerError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep};

use super::decide::{self, Action, Desired, View};
use super::{CommandError, Ctx};
use crate::journal::{Change, JournalError, Record, Removal, Step};
use crate::ports::LedgerCallError;

/// How long a ledger may take to hear that the machine goes down.
const LAST_WORD: Duration = Duration::from_secs(10);

/// What the supervisor tells an actor.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) desired: Desired,
    pub(super) contract: Option<Arc<Contract>>,
}

/// An operator's word to one actor.
pub enum Command {
    /// End the contract.
    End {
        /// Why, for the developer.
        why: String,
        /// Answered when the journal has it.
        answer: oneshot::Sender<Result<(), CommandError>>,
    },
    /// The machine goes down: end the contract and stop its VM, whether the ledger answers or not.
    PowerOff {
        /// Answered when the VM has stopped and the ledger was asked to note it.
        answer: oneshot::Sender<()>,
    },
}

impl Command {
    pub(super) fn refuse(self, error: CommandError) {
        match self {
            Self::End { answer, .. } => drop(answer.send(Err(error))), // whoever asked may have gone
            Self::PowerOff { answer } => drop(answer.send(())),        // nothing runs here
        }
    }
}

/// Why a step isn't done.
#[derive(Debug)]
pub(super) enum StepError {
    /// It may pass by itself: again, until the step's deadline.
    Transient(String),
    /// The ledger doesn't answer: again, for as long as the ledger's own deadlines let the contract stand.
    LedgerDown(String),
    /// The ledger says that the contract has moved on: look again.
    Moved,
    /// Something more important happened: look again.
    Interrupted,
    /// No use trying again.
    Failed(String),
    /// This host can't take the contract.
    Refused(Vec<String>),
    /// The journal failed.
    Journal(JournalError),
}

impl From<JournalError> for StepError {
    fn from(error: JournalError) -> Self {
        Self::Journal(error)
    }
}

impl From<LedgerCallError> for StepError {
    fn from(error: LedgerCallError) -> Self {
        match &error {
            LedgerCallError::Unreachable { .. } => Self::LedgerDown(error.to_string()),
            LedgerCallError::Refused {
                answer: LedgerError::WrongState { .. },
                ..
            } => Self::Moved,
            LedgerCallError::Refused {
                answer: LedgerError::EvidenceRefused { reasons, .. },
                ..
            } => Self::Failed(format!("the ledger refused the evidence: {}", reasons.join("; "))),
            LedgerCallError::Refused { .. } => Self::Failed(error.to_string()),
        }
    }
}

pub(super) struct Actor {
    pub(super) ctx: Arc<Ctx>,
    pub(super) id: ContractId,
    told: watch::Receiver<Told>,
    commands: mpsc::Receiver<Command>,
    /// Taken from the queue while a step ran; handled next.
    waiting: Option<Command>,
    /// The ledger's word, from the list or from a question of our own.
    desired: Desired,
    /// The journal's record as it is on disk.
    record: Option<Record>,
    /// A step whose start this very process has just written: nothing of it can be on the machine.
    fresh: Option<Step>,
    /// Steps whose effect this very process has brought about. What others are in the journal may have been undone by a
    /// reboot since: networks, bound devices and opened disks don't survive one.
    pub(super) here: BTreeSet<Step>,
    /// The step under way and when it must be done.
    deadline: Option<(Step, Instant)>,
    pause: Duration,
}

impl Actor {
    pub(super) fn new(
        ctx: Arc<Ctx>,
        id: ContractId,
        told: watch::Receiver<Told>,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        let pause = ctx.timing.retry_min;
        let desired = told.borrow().desired;
        Self {
            ctx,
            id,
            told,
            commands,
            waiting: None,
            desired,
            record: None,
            fresh: None,
            here: BTreeSet::new(),
            deadline: None,
            pause,
        }
    }

    pub(super) fn record(&self) -> &Record {
        self.record
            .as_ref()
            .expect("steps run only on open contracts; `decide` opens first")
    }

    /// Until the contract is finished.
    pub(super) async fn run(mut self) -> Result<(), JournalError> {
        self.record = self.ctx.journal.record(self.id).await?;
        loop {
            if self.told.has_changed().unwrap_or(false) {
                self.desired = self.told.borrow_and_update().desired;
            }
            if let Some(command) = self.waiting.take() {
                self.obey(command).await?;
            }
            let view = self.view();
            let action = decide::next(self.desired, view);
            self.show(&action);
            match action {
                Action::Rest if view == View::Finished => return Ok(()),
                Action::Rest if view == View::Nothing && self.desired != Desired::Unheard => return Ok(()),
                Action::Rest | Action::Degraded(_) => self.rest().await,
                Action::Open => self.open().await?,
                Action::Remove(removal) => self.mark(removal).await?,
                Action::Do(step) => self.step(step).await?,
                Action::Tell => self.tell().await?,
                Action::TellReleased => self.tell_released().await?,
                Action::Finish => self.finish().await?,
            }
        }
    }

    fn view(&self) -> View {
        let process = self.record.as_ref().and_then(|record| record.process.as_ref());
        View::of(self.record.as_ref(), || {
            process.is_some_and(|process| self.ctx.host.processes.is_alive(process))
        })
    }

    fn show(&self, action: &Action) {
        let activity = match action {
            Action::Rest => match self.view() {
                View::Running { .. } => "running".to_owned(),
                _ => "waiting for the ledger".to_owned(),
            },
            Action::Degraded(_) => "degraded".to_owned(),
            Action::Open => "opening".to_owned(),
            Action::Do(step) => step.name().to_owned(),
            Action::Remove(_) => "removing".to_owned(),
            Action::Tell | Action::TellReleased => "telling the ledger".to_owned(),
            Action::Finish => "finishing".to_owned(),
        };
        let degraded = match action {
            Action::Degraded(doubt) => Some(doubt.text().to_owned()),
            _ => None,
        };
        self.ctx.show(self.id, |live| {
            if degraded.is_some() && live.degraded != degraded {
                tracing::warn!(contract = %self.id, why = degraded.as_deref(), "degraded");
            }
            (live.desired, live.activity, live.degraded) = (self.desired, activity, degraded);
        });
    }

    fn show_error(&self, error: Option<String>) {
        if let Some(why) = &error {
            tracing::warn!(contract = %self.id, why, "tried again later");
        }
        self.ctx.show(self.id, |live| live.last_error = error);
    }

    /// Nothing to do until the ledger, the operator or the VM says something.
    async fn rest(&mut self) {
        let running = match self.view() {
            View::Running { .. } | View::Provisioning { .. } => {
                self.record.as_ref().and_then(|r| r.process.clone())
            }
            _ => None,
        };
        let ctx = self.ctx.clone();
        let exit = async move {
            match &running {
                Some(process) => ctx.host.processes.exited(process).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.told.changed() => match changed {
                Ok(()) => self.desired = self.told.borrow_and_update().desired,
                Err(_) => std::future::pending().await, // the supervisor is gone, and this task with it
            },
            command = self.commands.recv() => match command {
                Some(command) => self.waiting = Some(command),
                None => std::future::pending().await, // the supervisor is gone, and this task with it
            },
            () = exit => {}
        }
    }

    /// Waits before the next try, longer each time; the ledger's word or a command ends it early.
    async fn back_off(&mut self) {
        let pause = self.pause;
        self.pause = (pause * 2).min(self.ctx.timing.retry_max);
        let _ = self.interruptible(sleep(pause)).await; // either way: look again
    }

    /// Runs something that may be dropped at any point; stops it when the contract is over, an operator has a word, or
    /// the VM ends.
    pub(super) async fn interruptible<T>(&mut self, work: impl Future<Output = T>) -> Result<T, StepError> {
        if self.waiting.is_some() {
            return Err(StepError::Interrupted);
        }
        let removing = self
            .record
            .as_ref()
            .is_some_and(|record| record.removal.is_some());
        let process = self
            .record
            .as_ref()
            .and_then(|r| r.process.clone())
            .filter(|_| !removing);
        let processes = self.ctx.host.processes.clone();
        let exit = async move {
            match &process {
                Some(process) => processes.exited(process).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(work, exit);
        loop {
            tokio::select! {
                biased;
                value = &mut work => return Ok(value),
                () = &mut exit => return Err(StepError::Interrupted),
                changed = self.told.changed() => {
                    if changed.is_err() {
                        std::future::pending::<()>().await; // the supervisor is gone, and this task with it
                    }
                    let desired = self.told.borrow_and_update().desired;
                    let news = desired != self.desired && (desired.is_over() || removing);
                    self.desired = desired;
                    if news {
                        return Err(StepError::Interrupted);
                    }
                }
                command = self.commands.recv() => match command {
                    Some(command) => {
                        self.waiting = Some(command);
                        return Err(StepError::Interrupted);
                    }
                    None => std::future::pending().await,
                },
            }
        }
    }

    async fn write(&mut self, changes: Vec<Change>) -> Result<(), JournalError> {
        self.record = Some(self.ctx.journal.apply(self.id, changes).await?);
        Ok(())
    }

    async fn open(&mut self) -> Result<(), JournalError> {
        let contract = self.told.borrow().contract.clone();
        let Some(contract) = contract else {
            // `decide` opens only what a list showed.
            self.rest().await;
            return Ok(());
        };
        tracing::info!(contract = %self.id, developer = %contract.developer, state = ?contract.state, "contract seen");
        let mut changes = vec![Change::Open(Box::new((*contract).clone()))];
        if !self.desired.is_over() {
            changes.push(Change::Started(Step::Reserve));
            self.fresh = Some(Step::Reserve);
        }
        self.write(changes).await
    }

    async fn mark(&mut self, removal: Removal) -> Result<(), JournalError> {
        tracing::info!(contract = %self.id, ?removal, "the contract is removed from this host");
        self.fresh = None;
        self.deadline = None;
        self.pause = self.ctx.timing.retry_min;
        self.write(vec![Change::Removing(removal)]).await
    }

    async fn obey(&mut self, command: Command) -> Result<(), JournalError> {
        let (why, answer) = match command {
            Command::End { why, answer } => (why, answer),
            Command::PowerOff { answer } => {
                self.power_off().await?;
                let _ = answer.send(()); // systemd may have lost patience
                return Ok(());
            }
        };
        let result = match self.view() {
            View::Finished => Err(CommandError::Refused(
                "the contract is over and nothing of it is left here".into(),
            )),
            View::Removing { .. } => Err(CommandError::Refused(
                "the contract is being removed already".into(),
            )),
            View::Nothing if self.told.borrow().contract.is_none() => Err(CommandError::NotHere(self.id)),
            View::Nothing => {
                self.open().await?;
                self.mark(Removal::Operator { why }).await?;
                Ok(())
            }
            View::Provisioning { .. } | View::Running { .. } => {
                self.mark(Removal::Operator { why }).await?;
                Ok(())
            }
        };
        let _ = answer.send(result); // the operator may have gone
        Ok(())
    }

    /// The machine goes down. The ledger hears first, as always, but the guest's time to stop doesn't wait for its answer.
    async fn power_off(&mut self) -> Result<(), JournalError> {
        match self.view() {
            View::Nothing | View::Finished => return Ok(()),
            View::Provisioning { .. } | View::Running { .. } => {
                let why = "the machine is shut down".to_owned();
                self.mark(Removal::Operator { why }).await?;
            }
            View::Removing { .. } => {}
        }
        if decide::next(self.desired, self.view()) == Action::Tell {
            match tokio::time::timeout(LAST_WORD, self.tell()).await {
                Ok(told) => told?,
                // It may have been journalled just before; the next start tells it otherwise.
                Err(_) => self.record = self.ctx.journal.record(self.id).await?,
            }
        }
        if self.record().next_of(&Step::REMOVAL) == Some(Step::Stop) {
            self.step(Step::Stop).await?;
        }
        Ok(())
    }

    /// What is journalled together with a step's start: what the step's effect will be computed from.
    fn before(step: Step) -> Vec<Change> {
        match step {
            Step::Network => vec![Change::Network(true), Change::Started(step)],
            Step::Release => vec![Change::Network(false), Change::Started(step)],
            _ => vec![Change::Started(step)],
        }
    }

    fn following(step: Step) -> Option<Step> {
        let order: &[Step] = if Step::REMOVAL.contains(&step) {
            &Step::REMOVAL
        } else {
            &Step::PROVISIONING
        };
        let at = order.iter().position(|s| *s == step)?;
        order.get(at + 1).copied()
    }

    async fn step(&mut self, step: Step) -> Result<(), JournalError> {
        let mut fresh = self.fresh.take() == Some(step);
        if !fresh {
            fresh = !self.record().started(step);
            self.write(Self::before(step)).await?;
        }
        let deadline = match self.deadline {
            Some((of, at)) if of == step => at,
            _ => Instant::now() + self.allowed(step),
        };
        self.deadline = Some((step, deadline));
        let began = Instant::now();
        let outcome = match tokio::time::timeout_at(deadline, self.effect(step, fresh)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let last = self
                    .ctx
                    .live()
                    .get(&self.id)
                    .and_then(|live| live.last_error.clone());
                let last = last.map(|why| format!("; last: {why}")).unwrap_or_default();
                Err(StepError::Failed(format!(
                    "not done within {:?}{last}",
                    self.allowed(step)
                )))
            }
        };
        match outcome {
            Ok(mut changes) => {
                self.here.insert(step);
                changes.push(Change::Done(step));
                if let Some(next) = Self::following(step) {
                    changes.extend(Self::before(next));
                    self.fresh = Some(next);
                }
                self.settled();
                self.ctx.metrics.step_done(step, began.elapsed().as_secs_f64());
                tracing::info!(contract = %self.id, %step, "done");
                self.write(changes).await
            }
            Err(error) => {
                if !matches!(error, StepError::Interrupted | StepError::Moved) {
                    self.ctx.metrics.step_failed(step);
                }
                self.not_done(step, error).await
            }
        }
    }

    fn settled(&mut self) {
        self.deadline = None;
        self.pause = self.ctx.timing.retry_min;
        self.show_error(None);
    }

    async fn not_done(&mut self, step: Step, error: StepError) -> Result<(), JournalError> {
        let removing = Step::REMOVAL.contains(&step);
        match error {
            StepError::Journal(error) => return Err(error),
            StepError::Interrupted => self.record = self.ctx.journal.record(self.id).await?,
            StepError::Moved => self.ask_again().await,
            StepError::LedgerDown(why) => {
                self.deadline = None;
                self.show_error(Some(why));
                self.back_off().await;
            }
            StepError::Transient(why) => {
                self.show_error(Some(why));
                self.back_off().await;
            }
            // An undo is tried until it succeeds; meanwhile everybody can see that it doesn't.
            StepError::Failed(why) if removing => {
                tracing::error!(contract = %self.id, %step, why, "removal is stuck; it is tried again");
                self.write(vec![Change::Failed(step, why.clone())]).await?;
                self.deadline = None;
                self.show_error(Some(format!("{step}: {why}")));
                self.back_off().await;
            }
            StepError::Failed(why) => {
                tracing::warn!(contract = %self.id, %step, why, "failed; everything is undone");
                self.settled();
                let removal = Removal::StepFailed {
                    step,
                    why: why.clone(),
                };
                self.write(vec![Change::Failed(step, why), Change::Removing(removal)])
                    .await?;
            }
            StepError::Refused(reasons) => {
                tracing::info!(contract = %self.id, ?reasons, "refused");
                self.settled();
                let why = reasons.join("; ");
                self.write(vec![
                    Change::Failed(step, why),
                    Change::Removing(Removal::Refused { reasons }),
                ])
                .await?;
            }
        }
        Ok(())
    }

    /// Asks the ledger for this contract by name; its answer counts at once.
    pub(super) async fn ask_again(&mut self) {
        match self.ctx.host.ledger.contract(self.id).await {
            Ok(contract) => self.desired = Desired::of(contract.state, contract.released),
            Err(error) if matches!(error.answer(), Some(LedgerError::NotFound { .. })) => {
                self.desired = Desired::Unknown;
            }
            Err(error) => {
                self.show_error(Some(error.to_string()));
                self.back_off().await;
            }
        }
    }

    pub(super) fn desired(&self) -> Desired {
        self.desired
    }

    async fn tell(&mut self) -> Result<(), JournalError> {
        let reason = self
            .record()
            .removal
            .as_ref()
            .and_then(Removal::tell)
            .unwrap_or_default();
        let reason = one_line(&reason);
        let ledger = self.ctx.host.ledger.clone();
        let id = self.id;
        let result = async {
            match ledger.contract(id).await?.state {
                ledger::api::ContractState::Requested => ledger.refuse(id, &reason).await,
                ledger::api::ContractState::Accepted | ledger::api::ContractState::Active => {
                    ledger.vm_gone(id, &reason).await
                }
                ledger::api::ContractState::Ended(_) => Ok(()),
            }
        };
        match result.await.map_err(|error| (error.answer().cloned(), error)) {
            Ok(()) | Err((Some(LedgerError::NotFound { .. }), _)) => {
                tracing::info!(contract = %self.id, reason, "the ledger knows that it ends");
                self.settled();
                self.write(vec![Change::Told]).await?;
                self.ask_again().await;
            }
            Err((_, error)) => {
                self.show_error(Some(error.to_string()));
                self.back_off().await;
            }
        }
        Ok(())
    }

    async fn tell_released(&mut self) -> Result<(), JournalError> {
        match self.ctx.host.ledger.released(self.id).await {
            Ok(()) => {
                self.settled();
                self.desired = Desired::Released;
                self.finish().await
            }
            Err(error) => {
                let moved = matches!(
                    error.answer(),
                    Some(LedgerError::WrongState { .. } | LedgerError::NotFound { .. })
                );
                self.show_error(Some(error.to_string()));
                if moved {
                    self.ask_again().await;
                }
                self.back_off().await;
                Ok(())
            }
        }
    }

    async fn finish(&mut self) -> Result<(), JournalError> {
        if self.record().finished_ms.is_none() {
            tracing::info!(contract = %self.id, "nothing of the contract is left here");
            self.write(vec![Change::Finished]).await?;
        }
        Ok(())
    }
}

/// A reason as the ledger takes it: a line of at most 500 characters. A VMM's last words may be many lines.
fn one_line(reason: &str) -> String {
    let words = reason.split(|c: char| c.is_whitespace() || c.is_control());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    words.join(" ").chars().take(500).collect()
}
