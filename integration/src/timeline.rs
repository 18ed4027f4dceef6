//! One contract's way from payment to Active, split by step, from the times in hostd's journal.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hostd::journal::{Step, StepLine};

/// Steps that wait for others: the VMM, and the guest's boot. All the rest is hostd's own share and the ledger's.
const OF_OTHERS: [Step; 2] = [Step::Launch, Step::Attest];

/// Times of one contract, to the journal's millisecond.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// From payment until hostd began its first step.
    pub seen: Duration,
    /// How long each step took, in order.
    pub steps: BTreeMap<Step, Duration>,
    /// From payment until hostd knew that the ledger had confirmed.
    pub active: Duration,
}

impl Timeline {
    /// From what `hostd explain` says of a contract that was paid at `paid`; `None` until it is confirmed.
    pub fn new(paid: SystemTime, steps: &BTreeMap<Step, StepLine>) -> Option<Self> {
        let paid_ms = i64::try_from(paid.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()?;
        // hostd may hear of the contract before the developer does.
        let ms = |from: i64, to: i64| Duration::from_millis(u64::try_from(to - from).unwrap_or(0));
        let confirmed = steps.get(&Step::Confirm)?.ended_ms?;
        let first = steps.values().map(|line| line.started_ms).min()?;
        let took = |line: &StepLine| line.ended_ms.map(|ended| ms(line.started_ms, ended));
        Some(Self {
            seen: ms(paid_ms, first),
            steps: steps
                .iter()
                .filter_map(|(step, line)| Some((*step, took(line)?)))
                .collect(),
            active: ms(paid_ms, confirmed),
        })
    }

    /// Everything but the VMM's start and the guest's boot and evidence.
    pub fn own_share(&self) -> Duration {
        let others = OF_OTHERS.iter().filter_map(|step| self.steps.get(step)).sum();
        self.active.saturating_sub(others)
    }
}
