//! The event log of a TD's firmware (CCEL) against the run-time measurement registers of its quote.

use crate::eventlog::{EventLog, HashAlg};
use crate::result::{Check, Reason};
use crate::show;

const ID: &str = "appraise.event-log";

/// Replays what was given. Of several logs, one that fits is enough; of none that fits, the first is told about.
pub(super) fn check<'a>(mut logs: impl Iterator<Item = &'a [u8]>, rtmrs: [[u8; 48]; 4]) -> Check {
    let Some(first) = logs.next() else {
        return Check::not_checked(ID, "no event log was given", "");
    };
    let first = one(first, rtmrs);
    if !first.is_failed() {
        return first;
    }
    logs.map(|log| one(log, rtmrs))
        .find(|check| !check.is_failed())
        .unwrap_or(first)
}

fn one(log: &[u8], rtmrs: [[u8; 48]; 4]) -> Check {
    let malformed = |what: String| Check::of(ID, false, Reason::Malformed, "an event log (CCEL)", what);
    let log = match EventLog::parse_padded(log) {
        Ok(log) => log,
        Err(e) => return malformed(e.to_string()),
    };
    // Register n of a CCEL is RTMR n - 1; 0 is MRTD, which nothing extends (UEFI 2.10, 38.4.1).
    let replayed = match log.replay(HashAlg::Sha384) {
        Ok(replayed) => replayed,
        Err(e) => return malformed(e.to_string()),
    };
    if let Some(register) = replayed.keys().find(|register| !(1..=4).contains(*register)) {
        return malformed(format!("an event for register {register}; a TD has 1 to 4"));
    }
    let mut differing = Vec::new();
    let mut unexplained = Vec::new();
    for (register, quoted) in (1..).zip(rtmrs) {
        match replayed.get(&register) {
            Some(value) if *value == quoted => {}
            Some(value) => differing.push(format!("rtmr{} {}", register - 1, show::hex(value))),
            None if quoted == [0; 48] => {}
            None => unexplained.push(format!("rtmr{}", register - 1)),
        }
    }
    let expected = "a log that replays to the quoted registers";
    let found = match (differing.is_empty(), unexplained.is_empty()) {
        (false, _) => format!("replays to {}", differing.join(", ")),
        (true, true) => format!("{} events replay to the quoted registers", log.events().len()),
        // Software of the TD extends registers later, and has logs of its own.
        (true, false) => format!("it replays; nothing in it is about {}", unexplained.join(", ")),
    };
    Check::of(ID, differing.is_empty(), Reason::RtmrMismatch, expected, found)
}
