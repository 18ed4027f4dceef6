//! What DNS said about one name, and what follows. Pure.

use std::fmt;
use std::time::Duration;

use candid::Principal;
use ledger::api::ContractId;
use ledger::name_proof;

/// Definite answers in a row without the record that take a route away: one may come from a server that lags behind.
pub const MISSES: u8 = 3;

/// What a look-up brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The texts of all TXT records there; none if there are none. A definite answer.
    Texts(Vec<String>),
    /// No answer that says anything: time-out, SERVFAIL, no name server.
    Failed(String),
}

/// How often names are looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// First pause while a name isn't proved; doubles each time.
    pub retry_min: Duration,
    /// Longest pause while it isn't.
    pub retry_max: Duration,
    /// Pause once it is.
    pub recheck: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            retry_min: Duration::from_secs(5),
            retry_max: Duration::from_secs(300),
            recheck: Duration::from_secs(3600),
        }
    }
}

/// What keeps a name from being routed, or from being looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// There is no record of ours.
    Missing,
    /// The records there name others.
    Others(Vec<Principal>),
    /// The look-up failed.
    NoAnswer(String),
    /// Proved, but the same name leads to another contract of this host.
    Taken(ContractId),
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("DNS has no such TXT record"),
            Self::Others(others) => {
                let others: Vec<_> = others.iter().take(3).map(Principal::to_text).collect();
                write!(
                    f,
                    "the TXT record there names another developer ({})",
                    others.join(", ")
                )
            }
            Self::NoAnswer(why) => write!(f, "DNS doesn't answer: {why}"),
            Self::Taken(holder) => write!(
                f,
                "it is proved, but leads to contract {} of this host for as long as that lives",
                holder.short()
            ),
        }
    }
}

/// What follows from an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing changes.
    Stay,
    /// The name is to be routed.
    Route,
    /// The route is to go.
    Withdraw,
}

/// One name of one contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Proof {
    proved: bool,
    /// Looks since it was last (not) proved.
    tries: u32,
    /// Definite answers in a row without the record, while it is proved.
    misses: u8,
    lack: Option<Lack>,
}

impl Proof {
    /// As the journal has it.
    pub(super) fn new(proved: bool) -> Self {
        Self {
            proved,
            tries: 0,
            misses: 0,
            lack: None,
        }
    }

    /// Takes an answer in. `holder`: the other contract of this host that the name leads to now.
    pub(super) fn hear(
        &mut self,
        answer: &Answer,
        developer: Principal,
        holder: Option<ContractId>,
    ) -> Verdict {
        self.tries = self.tries.saturating_add(1);
        let named: Vec<Principal> = match answer {
            Answer::Texts(texts) => texts
                .iter()
                .filter_map(|text| name_proof::developer_of(text))
                .collect(),
            Answer::Failed(why) => {
                self.lack = Some(Lack::NoAnswer(why.clone()));
                return Verdict::Stay; // whether it is proved or not
            }
        };
        if named.contains(&developer) {
            self.misses = 0;
            self.lack = None;
            return match (self.proved, holder) {
                (true, _) => Verdict::Stay,
                (false, Some(holder)) => {
                    self.lack = Some(Lack::Taken(holder));
                    Verdict::Stay
                }
                (false, None) => {
                    *self = Self::new(true);
                    Verdict::Route
                }
            };
        }
        self.lack = Some(if named.is_empty() {
            Lack::Missing
        } else {
            Lack::Others(named)
        });
        if !self.proved {
            return Verdict::Stay;
        }
        self.misses += 1;
        if self.misses < MISSES {
            return Verdict::Stay;
        }
        self.proved = false;
        self.misses = 0;
        self.tries = 1;
        Verdict::Withdraw
    }

    /// For people; `None`: all is well.
    pub(super) fn lack(&self) -> Option<String> {
        let lack = self.lack.as_ref()?;
        Some(match self.misses {
            0 => lack.to_string(),
            misses => format!("{lack} ({misses} of {MISSES} answers in a row that end the route)"),
        })
    }

    /// Until the next look. `spread` (any number that differs from contract to contract) keeps the looks of many names apart.
    pub(super) fn pause(&self, pace: &Pace, spread: u8) -> Duration {
        let part = f64::from(spread) / 255.0;
        match (self.proved, &self.lack) {
            // Proved before a restart: some time within the hour.
            (true, None) if self.tries == 0 => pace.recheck.mul_f64(part),
            (true, None) => pace.recheck.mul_f64(0.9 + 0.2 * part),
            (true, Some(_)) => pace.retry_max.min(pace.recheck),
            (false, _) if self.tries == 0 => Duration::ZERO,
            (false, _) => pace
                .retry_min
                .saturating_mul(1 << (self.tries - 1).min(20))
                .min(pace.retry_max),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn who(n: u8) -> Principal {
        Principal::self_authenticating([n; 44])
    }

    fn texts(of: &[u8]) -> Answer {
        let mut texts = vec!["v=spf1 -all".to_owned()];
        texts.extend(of.iter().map(|n| name_proof::record_value(who(*n))));
        Answer::Texts(texts)
    }

    fn failed() -> Answer {
        Answer::Failed("SERVFAIL".into())
    }

    #[test]
    fn a_name_is_routed_by_its_developers_record_only_and_only_if_nobody_here_has_it() {
        let other = ledger::api::Bytes([7; 32]);
        for (answer, holder, want, says) in [
            (
                Answer::Texts(vec![]),
                None,
                Verdict::Stay,
                Some("no such TXT record"),
            ),
            (texts(&[]), None, Verdict::Stay, Some("no such TXT record")),
            (texts(&[2]), None, Verdict::Stay, Some("names another developer")),
            (failed(), None, Verdict::Stay, Some("SERVFAIL")),
            (
                texts(&[2, 1]),
                Some(other),
                Verdict::Stay,
                Some("leads to contract 07070707"),
            ),
            (texts(&[2, 1]), None, Verdict::Route, None),
        ] {
            let mut proof = Proof::new(false);
            assert_eq!(proof.hear(&answer, who(1), holder), want, "{answer:?}");
            match (proof.lack(), says) {
                (None, None) => {}
                (Some(lack), Some(says)) => assert!(lack.contains(says), "{lack}"),
                other => panic!("{answer:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn three_definite_answers_in_a_row_take_a_route_away_and_failures_never_do() {
        let rows: [(&[Answer], Verdict); 5] = [
            (&[texts(&[]), texts(&[2]), texts(&[])], Verdict::Withdraw),
            (&[texts(&[]), texts(&[])], Verdict::Stay),
            (
                &[texts(&[]), texts(&[]), texts(&[1]), texts(&[]), texts(&[])],
                Verdict::Stay,
            ),
            (&[texts(&[]), texts(&[]), failed(), texts(&[])], Verdict::Withdraw),
            (
                &[failed(), failed(), failed(), failed(), failed(), failed()],
                Verdict::Stay,
            ),
        ];
        for (answers, want) in rows {
            let mut proof = Proof::new(true);
            let verdicts: Vec<_> = answers.iter().map(|a| proof.hear(a, who(1), None)).collect();
            let (last, before) = verdicts.split_last().unwrap();
            assert_eq!(*last, want, "{answers:?}");
            assert!(before.iter().all(|v| *v == Verdict::Stay), "{answers:?}");
            assert!(proof.lack().is_some());
        }
    }

    #[test]
    fn looks_grow_rare_while_a_name_is_not_proved_and_stay_rare_once_it_is() {
        let pace = Pace::default();
        let mut proof = Proof::new(false);
        let mut pauses = vec![proof.pause(&pace, 9).as_secs()];
        for _ in 0..9 {
            proof.hear(&texts(&[]), who(1), None);
            pauses.push(proof.pause(&pace, 9).as_secs());
        }
        assert_eq!(pauses, [0, 5, 10, 20, 40, 80, 160, 300, 300, 300]);
        proof.hear(&texts(&[1]), who(1), None);
        let recheck = proof.pause(&pace, 9).as_secs();
        proof.hear(&texts(&[1]), who(1), None);
        assert!(recheck <= 3600 && (3240..=3960).contains(&proof.pause(&pace, 9).as_secs()));
        proof.hear(&texts(&[]), who(1), None);
        assert_eq!(proof.pause(&pace, 9).as_secs(), 300, "in doubt: sooner");
    }

    proptest! {
        /// Whatever comes, a route follows a record of the developer, and only a third definite answer ends it.
        #[test]
        fn the_state_follows_the_answers(answers in proptest::collection::vec(0..4u8, 0..60)) {
            let (mut proof, mut routed, mut misses) = (Proof::new(false), false, 0);
            for answer in answers {
                let (answer, hit, definite) = match answer {
                    0 => (texts(&[1]), true, true),
                    1 => (texts(&[2]), false, true),
                    2 => (texts(&[]), false, true),
                    _ => (failed(), false, false),
                };
                let verdict = proof.hear(&answer, who(1), None);
                misses = if hit { 0 } else if definite && routed { misses + 1 } else { misses };
                let want = match (routed, hit, misses) {
                    (false, true, _) => Verdict::Route,
                    (true, _, 3..) => Verdict::Withdraw,
                    _ => Verdict::Stay,
                };
                prop_assert_eq!(verdict, want);
                match verdict {
                    Verdict::Route => routed = true,
                    Verdict::Withdraw => (routed, misses) = (false, 0),
                    Verdict::Stay => {}
                }
                prop_assert!(proof.pause(&Pace::default(), 255) <= Duration::from_secs(3960));
            }
        }
    }
}
