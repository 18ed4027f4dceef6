//! What the daemon said last.

use serde::{Deserialize, Serialize};

use crate::doctor::{Report, Severity};
use crate::events::{KEPT, LogEvent};
use crate::inventory::Inventory;
use crate::surface::model::{ContractLine, EventList, EvidenceView, Explanation, Money, Status, VmInfo};
use crate::update::{Outcome, Phase};

/// Everything that the screen is made of. A part is `None` until the daemon has told it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// The connection.
    pub link: Link,
    /// The host at a glance.
    pub status: Option<Status>,
    /// Contracts on this host.
    pub contracts: Vec<ContractLine>,
    /// What it earns.
    pub money: Option<Money>,
    /// The machine.
    pub inventory: Option<Inventory>,
    /// What is wrong with it.
    pub doctor: Option<Report>,
    /// The log's last events, oldest first.
    pub log: Option<EventList>,
    /// The contract that is looked at.
    pub detail: Option<Detail>,
}

/// Whether the daemon answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Link {
    /// Not asked yet.
    #[default]
    Waiting,
    /// It answers.
    Up,
    /// It doesn't; what is shown is what it said last.
    Lost {
        /// Why.
        why: String,
        /// Since when, ms since the Unix epoch.
        since_ms: i64,
    },
}

/// One contract, in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Detail {
    /// Its id.
    pub id: String,
    /// Steps, configs, how it is reached; or why the daemon doesn't tell.
    pub explanation: Result<Box<Explanation>, String>,
    /// Its VM's counters.
    pub vm: Option<VmInfo>,
    /// The end of its console log, as the guest wrote it.
    pub console: Result<String, String>,
    /// What the ledger found in its evidence.
    pub evidence: Option<EvidenceView>,
}

/// A thing that the operator should know at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// How bad.
    pub severity: Severity,
    /// One sentence.
    pub text: String,
}

impl Model {
    /// What the operator should know at once, the worst first. Empty when all is well.
    pub fn alerts(&self) -> Vec<Alert> {
        let mut alerts = Vec::new();
        let mut add = |severity, text: String| alerts.push(Alert { severity, text });
        if let Link::Lost { why, .. } = &self.link {
            add(
                Severity::Fail,
                format!("hostd doesn't answer; VMs run on. Shown is what it said last. {why}"),
            );
        }
        if let Some(status) = &self.status {
            for why in &status.not_ready {
                let meant = status.draining && (why.contains("drains") || why.starts_with("maintenance"));
                add(if meant { Severity::Warn } else { Severity::Fail }, why.clone());
            }
            if let Some(update) = &status.update {
                match &update.phase {
                    Phase::Idle => {}
                    phase => add(
                        Severity::Info,
                        format!("update: {}", crate::cli::update::phase(phase)),
                    ),
                }
                if let Some(last) = update.last.as_ref().filter(|last| last.outcome != Outcome::Good) {
                    add(Severity::Warn, format!("update: {}", last.why));
                }
            }
            if status.contracts.degraded > 0 {
                add(
                    Severity::Warn,
                    format!("{} contracts degraded", status.contracts.degraded),
                );
            }
            if !status.quarantine.is_empty() {
                let count = status.quarantine.len();
                add(
                    Severity::Warn,
                    format!("{count} unknown objects in quarantine; see hostd status"),
                );
            }
            if status.test_platform {
                add(
                    Severity::Info,
                    "test platform: confidential kinds are simulated".into(),
                );
            }
        }
        if self
            .inventory
            .as_ref()
            .is_some_and(|inventory| inventory.boot.on_trial)
        {
            add(
                Severity::Warn,
                "this image is on trial: it isn't marked good yet".into(),
            );
        }
        if let Some(report) = &self.doctor {
            let fails = report
                .walk()
                .into_iter()
                .filter(|(_, f)| f.severity == Severity::Fail);
            let fails: Vec<&str> = fails.map(|(_, finding)| finding.id.as_str()).collect();
            if !fails.is_empty() {
                add(
                    Severity::Fail,
                    format!("doctor: {} failed ({}); press 5", fails.len(), fails.join(", ")),
                );
            }
        }
        alerts.sort_by_key(|alert| std::cmp::Reverse(alert.severity));
        alerts
    }

    /// Takes in what is new in the log.
    pub(super) fn add_log(&mut self, list: EventList) {
        match &mut self.log {
            Some(log) if log.started_ms == list.started_ms => {
                let last = log.events.last().map_or(0, |event| event.number);
                log.events
                    .extend(list.events.into_iter().filter(|event| event.number > last));
                let surplus = log.events.len().saturating_sub(KEPT);
                log.events.drain(..surplus);
            }
            log => *log = Some(list),
        }
    }

    /// The log's events, oldest first.
    pub fn events(&self) -> &[LogEvent] {
        self.log.as_ref().map_or(&[], |log| &log.events)
    }
}
