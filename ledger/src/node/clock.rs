//! Two clocks. The *wall* clock says how old a request or a certificate is. The *ledger's* clock says when things
//! happen in the protocol; in a demo it may run faster, and `ledgerd` says so when it starts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::api::TimeNs;

/// Nanoseconds of the wall clock since the Unix epoch; 0 for a machine that believes it is before 1970.
pub(crate) fn wall() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// Turns wall time into ledger time: `start + (wall − wall_start) × rate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clock {
    /// The ledger's time at its start.
    pub(crate) start: TimeNs,
    /// The wall clock when the ledger was made.
    pub(crate) wall_start: u64,
    /// The ledger's seconds in a second; at least 1.
    pub(crate) rate: u32,
}

impl Clock {
    /// The ledger's time at a moment of the wall clock. Saturates; never before the start.
    pub(crate) fn at(&self, wall: u64) -> TimeNs {
        let passed = wall
            .saturating_sub(self.wall_start)
            .saturating_mul(u64::from(self.rate));
        self.start.saturating_add(passed)
    }

    /// How long from `wall` until the ledger's clock shows `time`; zero if it already does.
    pub(crate) fn until(&self, time: TimeNs, wall: u64) -> Duration {
        let missing = time.saturating_sub(self.at(wall));
        Duration::from_nanos(missing.div_ceil(u64::from(self.rate.max(1))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ledger_time_is_wall_time_at_the_rate() {
        let clock = Clock {
            start: 1_000,
            wall_start: 50,
            rate: 60,
        };
        for (wall, time) in [
            (50, 1_000),
            (51, 1_060),
            (49, 1_000),
            (0, 1_000),
            (u64::MAX, u64::MAX),
        ] {
            assert_eq!(clock.at(wall), time, "wall {wall}");
        }
        assert_eq!(
            clock.until(1_061, 50),
            Duration::from_nanos(2),
            "rounded up, so that it is time then"
        );
        assert_eq!(clock.until(1_000, 51), Duration::ZERO);
    }
}
