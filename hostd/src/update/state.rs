//! What an update is at, and what follows from what is seen. Pure; the journal keeps it.
//!
//! ```text
//!           stage            all there         apply              other version runs      marked good
//! Idle ────────────▶ Staging ────────▶ Staged ───────▶ Applying ──────────────────▶ Trial ───────────▶ Idle (good)
//!  ▲                    │ failed,        │  rebooted by     │ same boot: reboot failed   │
//!  └────────────────────┘ hostd ended    │  somebody else   └──▶ Staged                  │ the old version runs
//!                                        └─────────────────────────────────▶ Trial       └──▶ Idle (returned)
//! ```

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Version;

/// Where an update is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "phase", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Phase {
    /// Nothing is under way.
    #[default]
    Idle,
    /// The free slot is being filled.
    Staging {
        /// With which version.
        #[schema(value_type = String)]
        version: Version,
        /// Since when, ms since the Unix epoch.
        since_ms: i64,
    },
    /// The next boot tries it.
    Staged {
        /// Which version.
        #[schema(value_type = String)]
        version: Version,
        /// Since when, ms since the Unix epoch.
        since_ms: i64,
    },
    /// The machine reboots into it.
    Applying {
        /// Which version.
        #[schema(value_type = String)]
        version: Version,
        /// The version that ran when the reboot was ordered.
        #[schema(value_type = String)]
        from: Version,
        /// The boot in which the reboot was ordered.
        boot_id: String,
        /// Since when, ms since the Unix epoch.
        since_ms: i64,
    },
    /// It runs, and isn't marked good yet.
    Trial {
        /// Which version.
        #[schema(value_type = String)]
        version: Version,
        /// The version before.
        #[schema(value_type = Option<String>)]
        from: Option<Version>,
        /// Since when, ms since the Unix epoch.
        since_ms: i64,
    },
}

/// How an update ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The version runs and is marked good.
    Good,
    /// It didn't prove itself, and the machine returned to the version before.
    Returned,
    /// It was never booted.
    Failed,
    /// An operator went back from it.
    TakenBack,
}

/// The last update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    /// Which version.
    #[schema(value_type = String)]
    pub version: Version,
    /// How.
    pub outcome: Outcome,
    /// Why, for people.
    pub why: String,
    /// When, ms since the Unix epoch.
    pub at_ms: i64,
}

/// What the journal keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct State {
    /// Where the update is.
    pub phase: Phase,
    /// The newest version that was ever marked good here: nothing older is installed unless the operator insists.
    pub highest_good: Option<Version>,
    /// How the last update ended.
    pub last: Option<Ended>,
}

/// Whether the running image proved itself, by systemd-bless-boot(8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    /// Its tries aren't counted, or it is marked good.
    Good,
    /// It isn't marked yet.
    OnTrial,
}

/// The machine as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The running version.
    pub running: Version,
    /// This boot (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// Whether the running version proved itself.
    pub trial: Trial,
}

impl State {
    /// What follows from what is seen when hostd starts, and again while a version is on trial. Nothing else decides how
    /// an update ended: after any crash this says what is so.
    pub fn settle(mut self, seen: &Seen, starting: bool, now_ms: i64) -> Self {
        let running = &seen.running;
        let ended = |version: &Version, outcome, why: String| {
            Some(Ended {
                version: version.clone(),
                outcome,
                why,
                at_ms: now_ms,
            })
        };
        let trial = |version: &Version, from: Option<Version>, since_ms| Phase::Trial {
            version: version.clone(),
            from,
            since_ms,
        };
        self.phase = match self.phase {
            Phase::Staging { version, .. } if starting => {
                let why = "hostd ended while the slot was being filled; stage it again".to_owned();
                self.last = ended(&version, Outcome::Failed, why);
                Phase::Idle
            }
            Phase::Staged { version, .. } if version == *running => trial(&version, None, now_ms),
            Phase::Applying { version, boot_id, .. } if boot_id == seen.boot_id && starting => {
                Phase::Staged {
                    version,
                    since_ms: now_ms,
                }
            }
            Phase::Applying { version, from, .. } if version == *running => {
                trial(&version, Some(from), now_ms)
            }
            Phase::Applying { version, boot_id, .. } if boot_id != seen.boot_id => {
                self.last = ended(&version, Outcome::Returned, returned(&version, running));
                Phase::Idle
            }
            Phase::Trial { version, .. } if version != *running => {
                self.last = ended(&version, Outcome::Returned, returned(&version, running));
                Phase::Idle
            }
            other => other,
        };
        if seen.trial == Trial::Good {
            if let Phase::Trial { version, .. } = &self.phase {
                self.last = ended(
                    version,
                    Outcome::Good,
                    format!("{version} runs and is marked good"),
                );
                self.phase = Phase::Idle;
            }
            // After an override the newest good version stays what it was.
            if self
                .highest_good
                .as_ref()
                .is_none_or(|known| known.is_older_than(running))
            {
                self.highest_good = Some(running.clone());
            }
        }
        self
    }

    /// Why `version` must not be installed; `None`: it may.
    pub fn refusal(&self, version: &Version, running: &Version, allow_older: bool) -> Option<String> {
        if version == running {
            return Some(format!("{version} runs already"));
        }
        let newest = match &self.highest_good {
            Some(good) if running.is_older_than(good) => good,
            _ => running,
        };
        (version.is_older_than(newest) && !allow_older).then(|| {
            format!(
                "{version} is older than {newest}, which was good here: an older image may have faults that are known and \
                 mended since; --allow-older installs it all the same, and the log says so"
            )
        })
    }
}

fn returned(version: &Version, running: &Version) -> String {
    format!("{version} was booted and didn't prove itself; the machine returned to {running}")
}
