//! Updates of the appliance: systemd-sysupdate(8) fills the slot that isn't running, systemd-boot tries it three times,
//! and only an image that proves itself stays (systemd's "Automatic Boot Assessment"). hostd says when, and remembers.
//!
//! | part | who |
//! |---|---|
//! | is the folder the owner's? (OpenPGP, SHA-256) | systemd-pull, with the keyring of the running image |
//! | may this version follow? (nothing older than what was good) | [`State::refusal`] |
//! | when may the machine reboot? | the operator, or `[update] apply` |
//! | does it work? | `hostd update healthy`, called by decent-cloud-healthy.service |
//! | back to the old one | systemd-boot's counter; a reboot by decent-cloud-return.service |
//!
//! Every step is in the journal before the machine changes. After a crash [`State::settle`] says what is so from the
//! running version and the boot id alone.

mod state;
mod version;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ledger::api::UpdateNotice;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};
use utoipa::ToSchema;

pub use self::state::{Ended, Outcome, Phase, Seen, State, Trial};
pub use self::version::{Version, VersionError};
use crate::config::{ApplyPolicy, UpdateConfig};
use crate::journal::{Journal, JournalError, now_ms};

/// Between two looks whether the running image was marked good, or the host is empty.
const LOOK: Duration = Duration::from_secs(10);
/// From the start to the first look for a new version, and after a failed one.
const FIRST_CHECK: Duration = Duration::from_secs(120);

/// Whether a text may be `[update] source`: it goes into systemd's configuration, where some characters mean something.
pub fn is_source(text: &str) -> bool {
    (text.starts_with("https://") || text.starts_with('/'))
        && text.len() <= 1024
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !br#"%"'\"#.contains(&byte))
        && !text.split('/').any(|part| part == "..")
}

/// Something of the machine's slots failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SlotError(pub String);

/// Hears each line of what a tool says.
pub type Tell = Arc<dyn Fn(&str) + Send + Sync>;

/// The two slots and the firmware's loader.
#[async_trait]
pub trait Slots: Send + Sync {
    /// What runs.
    async fn seen(&self) -> Result<Seen, SlotError>;
    /// The versions that the source offers whole and signed, newest first.
    async fn available(&self) -> Result<Vec<Version>, SlotError>;
    /// Fills the slot that isn't running, and has the next boot try it. `tell` hears what goes on.
    async fn install(&self, version: &Version, tell: Tell) -> Result<(), SlotError>;
    /// The versions that the loader could start beside `running`, newest first.
    async fn others(&self, running: &Version) -> Result<Vec<Version>, SlotError>;
    /// Has the loader prefer any other version to this one.
    async fn mark_bad(&self, version: &Version) -> Result<(), SlotError>;
    /// Orders the reboot; answers before it happens.
    async fn reboot(&self) -> Result<(), SlotError>;
}

/// Why an order about updates wasn't followed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UpdateError {
    /// It may not be now, or never.
    #[error("{0}")]
    Refused(String),
    /// The machine couldn't.
    #[error(transparent)]
    Slots(#[from] SlotError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// What `hostd update status` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UpdateStatus {
    /// The running version.
    #[schema(value_type = String)]
    pub running: Version,
    /// Whether it is on trial: not marked good yet.
    pub on_trial: bool,
    /// Where the update is.
    pub phase: Phase,
    /// What systemd-sysupdate said last, while the slot is being filled.
    pub doing: Option<String>,
    /// The newest version that was good here.
    #[schema(value_type = Option<String>)]
    pub highest_good: Option<Version>,
    /// How the last update ended.
    pub last: Option<Ended>,
    /// Where updates come from; `None`: nowhere yet.
    pub source: Option<String>,
    /// When the machine reboots for an update by itself.
    pub apply: ApplyPolicy,
    /// Whether an image is good here without a ledger.
    pub offline: bool,
}

/// What `hostd update check` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Checked {
    /// The running version.
    #[schema(value_type = String)]
    pub running: Version,
    /// What the source offers, newest first.
    #[schema(value_type = Vec<String>)]
    pub available: Vec<Version>,
    /// What `stage` would install; `None`: nothing.
    #[schema(value_type = Option<String>)]
    pub candidate: Option<Version>,
}

/// The updates of one machine.
pub struct Updater {
    config: UpdateConfig,
    slots: Option<Arc<dyn Slots>>,
    journal: Journal,
    /// Held by whoever changes the state.
    turn: Mutex<()>,
    doing: watch::Sender<Option<String>>,
}

impl Updater {
    /// `slots`: `None` where the system isn't the appliance.
    pub fn new(config: UpdateConfig, slots: Option<Arc<dyn Slots>>, journal: Journal) -> Self {
        Self {
            config,
            slots,
            journal,
            turn: Mutex::new(()),
            doing: watch::Sender::new(None),
        }
    }

    fn slots(&self) -> Result<&Arc<dyn Slots>, UpdateError> {
        self.slots.as_ref().ok_or_else(|| {
            UpdateError::Refused(
                "this isn't the appliance: its system is updated by its distribution, and hostd with it"
                    .into(),
            )
        })
    }

    fn source(&self) -> Result<&str, UpdateError> {
        self.config.source.as_deref().ok_or_else(|| {
            UpdateError::Refused(
                "no source of updates: say `source = \"https://…\"`, or a folder, in [update] of hostd.toml"
                    .into(),
            )
        })
    }

    /// Where the update is; `None`: this isn't the appliance.
    pub async fn status(&self) -> Result<Option<UpdateStatus>, UpdateError> {
        let Some(slots) = &self.slots else {
            return Ok(None);
        };
        let seen = slots.seen().await?;
        let state = self.journal.update().await?;
        Ok(Some(UpdateStatus {
            running: seen.running,
            on_trial: seen.trial == Trial::OnTrial,
            phase: state.phase,
            doing: self.doing.borrow().clone(),
            highest_good: state.highest_good,
            last: state.last,
            source: self.config.source.clone(),
            apply: self.config.apply,
            offline: self.config.offline,
        }))
    }

    /// What the source offers.
    pub async fn check(&self) -> Result<Checked, UpdateError> {
        let slots = self.slots()?;
        self.source()?;
        let running = slots.seen().await?.running;
        let state = self.journal.update().await?;
        let available = slots.available().await?;
        let candidate = available
            .iter()
            .find(|version| state.refusal(version, &running, false).is_none())
            .cloned();
        Ok(Checked {
            running,
            available,
            candidate,
        })
    }

    /// Begins to fill the free slot, with `version` or the newest, and returns it; the work goes on by itself.
    pub async fn stage(
        self: &Arc<Self>,
        version: Option<Version>,
        allow_older: bool,
    ) -> Result<Version, UpdateError> {
        let slots = self.slots()?.clone();
        let checked = self.check().await?;
        let turn = self.turn.lock().await;
        let mut state = self.journal.update().await?;
        let seen = slots.seen().await?;
        match &state.phase {
            Phase::Idle | Phase::Staged { .. } => {}
            Phase::Staging { version, .. } => {
                return Err(UpdateError::Refused(format!("{version} is being staged")));
            }
            Phase::Applying { version, .. } => {
                return Err(UpdateError::Refused(format!(
                    "the machine reboots into {version}"
                )));
            }
            Phase::Trial { version, .. } => return Err(on_trial(version)),
        }
        // The other slot holds the only version that is known to work.
        if seen.trial == Trial::OnTrial {
            return Err(on_trial(&seen.running));
        }
        let version = match version {
            Some(version) if checked.available.contains(&version) => version,
            Some(version) => {
                return Err(UpdateError::Refused(format!(
                    "the source doesn't offer {version}; it has {}",
                    list(&checked.available)
                )));
            }
            None => checked.candidate.ok_or_else(|| {
                UpdateError::Refused(format!(
                    "there is nothing newer than {}; the source has {}",
                    checked.running,
                    list(&checked.available)
                ))
            })?,
        };
        if let Some(why) = state.refusal(&version, &seen.running, allow_older) {
            return Err(UpdateError::Refused(why));
        }
        if state.refusal(&version, &seen.running, false).is_some() {
            tracing::warn!(%version, running = %seen.running, "the operator's word: an older image is installed");
        }
        state.phase = Phase::Staging {
            version: version.clone(),
            since_ms: now_ms(),
        };
        self.journal.set_update(&state).await?;
        drop(turn);
        let (updater, wanted) = (self.clone(), version.clone());
        tokio::spawn(async move { updater.fill(slots, wanted).await });
        Ok(version)
    }

    async fn fill(&self, slots: Arc<dyn Slots>, version: Version) {
        tracing::info!(%version, "an update is being staged");
        let doing = self.doing.clone();
        let tell: Tell = Arc::new(move |line| drop(doing.send_replace(Some(line.to_owned()))));
        let result = slots.install(&version, tell).await;
        let _turn = self.turn.lock().await;
        self.doing.send_replace(None);
        let Ok(mut state) = self.journal.update().await else {
            return; // hostd ends; the next one settles it
        };
        state.phase = match result {
            Ok(()) => {
                tracing::info!(%version, "staged: the next boot tries it");
                Phase::Staged {
                    version,
                    since_ms: now_ms(),
                }
            }
            Err(error) => {
                tracing::warn!(%version, %error, "the update can't be staged");
                state.last = Some(Ended {
                    version,
                    outcome: Outcome::Failed,
                    why: error.to_string(),
                    at_ms: now_ms(),
                });
                Phase::Idle
            }
        };
        if let Err(error) = self.journal.set_update(&state).await {
            tracing::error!(%error, "the journal can't keep that");
        }
    }

    /// Reboots into the staged version. `vms`: contracts that run here; `tell` is awaited before the reboot, so that the
    /// ledger hears of it.
    pub async fn apply(
        &self,
        vms: u64,
        force_with_vms: bool,
        tell: impl Future<Output = ()>,
    ) -> Result<Version, UpdateError> {
        let slots = self.slots()?;
        let _turn = self.turn.lock().await;
        let mut state = self.journal.update().await?;
        let Phase::Staged { version, .. } = state.phase.clone() else {
            return Err(UpdateError::Refused(
                "nothing is staged; `hostd update stage` does that".into(),
            ));
        };
        empty(vms, force_with_vms)?;
        let seen = slots.seen().await?;
        let running = seen.running;
        state.phase = Phase::Applying {
            version: version.clone(),
            from: running.clone(),
            boot_id: seen.boot_id,
            since_ms: now_ms(),
        };
        self.journal.set_update(&state).await?;
        tell.await;
        tracing::warn!(%version, vms, "the machine reboots into the update");
        // The loader starts the newest version that isn't bad: an older one needs its help.
        let prepared = match version.is_older_than(&running) {
            true => slots.mark_bad(&running).await,
            false => Ok(()),
        };
        let rebooted = match prepared {
            Ok(()) => slots.reboot().await,
            error => error,
        };
        if let Err(error) = rebooted {
            state.phase = Phase::Staged {
                version,
                since_ms: now_ms(),
            };
            self.journal.set_update(&state).await?;
            return Err(error.into());
        }
        Ok(version)
    }

    /// Goes back to the other slot's version, and reboots; returns that version.
    pub async fn roll_back(
        &self,
        reason: &str,
        vms: u64,
        force_with_vms: bool,
        tell: impl Future<Output = ()>,
    ) -> Result<Version, UpdateError> {
        let slots = self.slots()?;
        let _turn = self.turn.lock().await;
        let mut state = self.journal.update().await?;
        if let Phase::Staging { version, .. } | Phase::Staged { version, .. } = &state.phase {
            return Err(UpdateError::Refused(format!(
                "the other slot holds {version}, not the version before; there is no way back"
            )));
        }
        let seen = slots.seen().await?;
        let others = slots.others(&seen.running).await?;
        let Some(back) = others.into_iter().next() else {
            return Err(UpdateError::Refused(
                "the other slot is empty; there is no way back".into(),
            ));
        };
        empty(vms, force_with_vms)?;
        tracing::warn!(from = %seen.running, to = %back, reason, "the operator's word: back to the version before");
        state.phase = Phase::Idle;
        state.last = Some(Ended {
            version: seen.running.clone(),
            outcome: Outcome::TakenBack,
            why: reason.to_owned(),
            at_ms: now_ms(),
        });
        self.journal.set_update(&state).await?;
        slots.mark_bad(&seen.running).await?;
        tell.await;
        slots.reboot().await?;
        Ok(back)
    }

    /// Writes down what became of the last boot, when hostd starts.
    pub async fn settle(&self, starting: bool) -> Result<(), UpdateError> {
        let Some(slots) = &self.slots else {
            return Ok(());
        };
        let _turn = self.turn.lock().await;
        let before = self.journal.update().await?;
        let after = before.clone().settle(&slots.seen().await?, starting, now_ms());
        if after != before {
            if let (Some(last), true) = (&after.last, after.last != before.last) {
                match last.outcome {
                    Outcome::Good => tracing::info!(version = %last.version, "the update is good"),
                    _ => tracing::error!(version = %last.version, why = last.why, "the update failed"),
                }
            }
            self.journal.set_update(&after).await?;
        }
        Ok(())
    }

    /// Watches the trial, and follows `[update] apply`. `vms` says how many contracts run here, `tell` tells the ledger.
    pub async fn keep<V, T>(self: Arc<Self>, vms: impl Fn() -> V + Send, tell: impl Fn() -> T + Send)
    where
        V: Future<Output = Option<u64>> + Send,
        T: Future<Output = ()> + Send,
    {
        if self.slots.is_none() {
            return;
        }
        let mut next_check = tokio::time::Instant::now() + FIRST_CHECK;
        loop {
            if let Err(error) = self.settle(false).await {
                tracing::debug!(%error, "the update can't be looked at");
            }
            if self.config.apply != ApplyPolicy::Never && self.config.source.is_some() {
                let phase = self.journal.update().await.map(|state| state.phase);
                match phase {
                    Ok(Phase::Idle) if tokio::time::Instant::now() >= next_check => {
                        next_check = tokio::time::Instant::now() + Duration::from_secs(self.config.check_s);
                        match self.automatic().await {
                            Ok(()) => {}
                            Err(error) => tracing::warn!(%error, "no update"),
                        }
                    }
                    Ok(Phase::Staged { since_ms, .. }) => {
                        let count = vms().await;
                        let waited = now_ms().saturating_sub(since_ms) / 1000;
                        let due = self.config.apply == ApplyPolicy::Now
                            && waited >= i64::try_from(self.config.notice_s).unwrap_or(i64::MAX);
                        if let (Some(count), true) = (count, count == Some(0) || due)
                            && let Err(error) = self.apply(count, due, tell()).await
                        {
                            tracing::warn!(%error, "the update isn't applied");
                        }
                    }
                    _ => {}
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Stages what is new, but nothing that failed here before.
    async fn automatic(self: &Arc<Self>) -> Result<(), UpdateError> {
        let state = self.journal.update().await?;
        let Some(candidate) = self.check().await?.candidate else {
            return Ok(());
        };
        let failed = state.last.is_some_and(|last| {
            last.version == candidate && matches!(last.outcome, Outcome::Returned | Outcome::TakenBack)
        });
        if !failed {
            self.stage(Some(candidate), false).await?;
        }
        Ok(())
    }

    /// What the ledger is told; `None`: this isn't the appliance.
    pub async fn notice(&self) -> Option<UpdateNotice> {
        let running = self.slots.as_ref()?.seen().await.ok()?.running;
        let state = self.journal.update().await.ok()?;
        let (next, window_ms) = match &state.phase {
            Phase::Idle | Phase::Trial { .. } => (None, None),
            Phase::Staging { version, .. } => (Some(version), None),
            Phase::Staged { version, since_ms } => {
                let notice_ms = i64::try_from(self.config.notice_s.saturating_mul(1000)).unwrap_or(i64::MAX);
                let due = (self.config.apply == ApplyPolicy::Now).then(|| since_ms.saturating_add(notice_ms));
                (Some(version), due)
            }
            Phase::Applying {
                version, since_ms, ..
            } => (Some(version), Some(*since_ms)),
        };
        let returned = state
            .last
            .filter(|last| last.outcome == Outcome::Returned)
            .map(|last| last.version.to_string());
        Some(UpdateNotice {
            running: running.to_string(),
            next: next.map(ToString::to_string),
            away_from: window_ms.map(|ms| u64::try_from(ms).unwrap_or(0).saturating_mul(1_000_000)),
            returned,
        })
    }
}

fn on_trial(version: &Version) -> UpdateError {
    UpdateError::Refused(format!(
        "{version} is on trial and the other slot holds the way back; wait until it is marked good"
    ))
}

fn empty(vms: u64, force_with_vms: bool) -> Result<(), UpdateError> {
    match vms > 0 && !force_with_vms {
        true => Err(UpdateError::Refused(format!(
            "{vms} contracts run here, and a reboot ends them: `hostd drain` and wait, or --force-with-vms"
        ))),
        false => Ok(()),
    }
}

fn list(versions: &[Version]) -> String {
    match versions {
        [] => "none".into(),
        _ => versions
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    }
}

#[cfg(test)]
mod tests;
