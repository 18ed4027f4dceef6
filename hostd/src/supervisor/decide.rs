//! What to do next for one contract: the whole decision, without a single effect.
//!
//! ```text
//!             Requested, Accepted                all steps done
//!   (nothing) ───── Open ─────▶ provisioning ───────────────────▶ running
//!                                   │  a step failed, or             │  the ledger: ended · the VM ended
//!                                   │  the ledger: ended             │  · the operator ended it
//!                                   ▼                                ▼
//!                                removing: tell the ledger → stop → wipe → release → (ledger: released) → finished
//! ```
//!
//! | in the journal | true then                                        | after a crash                                   |
//! |----------------|--------------------------------------------------|-------------------------------------------------|
//! | nothing        | the machine has nothing of it                    | open it again when the ledger shows it          |
//! | provisioning   | each step before the next one is done            | check the started one, go on                    |
//! | running        | a VMM process is recorded                        | adopt it by boot id, pid and start time         |
//! | removing       | destruction is allowed                           | remove on, first step that isn't done           |
//! | finished       | the machine has nothing of it, the ledger knows  | nothing to do                                   |
//!
//! What ends a contract is a fact: from the ledger (it ended), from the kernel (its VMM process is gone), from the
//! operator. Doubt (no answer from the ledger, a ledger that doesn't know the contract, a VM that we don't find in the
//! journal) makes it degraded, which is shown and reported, and changes nothing.

use ledger::api::{ContractState, EndReason};

use crate::journal::{Record, Removal, Step};

/// What the ledger says of a contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Desired {
    /// It hasn't answered since hostd started.
    Unheard,
    /// It answered, and doesn't know it.
    Unknown,
    /// Paid; waits for this host.
    Requested,
    /// Taken; waits for evidence.
    Accepted,
    /// Its clock runs.
    Active,
    /// Over, and this host has not said that it released everything.
    Ended(EndReason),
    /// Over and released.
    Released,
}

impl Desired {
    /// Of a contract as the ledger shows it.
    pub fn of(state: ContractState, released: bool) -> Self {
        match (state, released) {
            (ContractState::Requested, _) => Self::Requested,
            (ContractState::Accepted, _) => Self::Accepted,
            (ContractState::Active, _) => Self::Active,
            (ContractState::Ended(reason), false) => Self::Ended(reason),
            (ContractState::Ended(_), true) => Self::Released,
        }
    }

    /// Whether the ledger has said that the contract is over.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Ended(_) | Self::Released)
    }
}

/// What the machine shows of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vm {
    /// The journal has no process of it.
    NotStarted,
    /// Exactly the recorded process lives.
    Alive,
    /// The recorded process has ended, or the machine has booted since.
    Gone,
}

/// How far a removal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The ledger said it itself: nothing to tell.
    NotNeeded,
    /// It must be told.
    Owed,
    /// It has been told.
    Given,
}

/// What the journal and the machine show, as far as the decision needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The journal doesn't have the contract.
    Nothing,
    /// It is being set up; the step is the first that isn't done.
    Provisioning {
        /// Next.
        step: Step,
        /// The VM.
        vm: Vm,
    },
    /// Every step is done.
    Running {
        /// The VM.
        vm: Vm,
    },
    /// It is being removed.
    Removing {
        /// What the ledger must hear.
        word: Word,
        /// First removal step that isn't done; `None`: the machine has nothing of it any more.
        step: Option<Step>,
    },
    /// Nothing left to do here.
    Finished,
}

impl View {
    /// Of a record. `alive` says whether the recorded process lives.
    pub fn of(record: Option<&Record>, alive: impl FnOnce() -> bool) -> Self {
        let Some(record) = record else {
            return Self::Nothing;
        };
        if record.finished_ms.is_some() {
            return Self::Finished;
        }
        if let Some(removal) = &record.removal {
            let word = match (removal.tell(), record.told) {
                (None, _) => Word::NotNeeded,
                (Some(_), false) => Word::Owed,
                (Some(_), true) => Word::Given,
            };
            return Self::Removing {
                word,
                step: record.next_of(&Step::REMOVAL),
            };
        }
        let vm = match &record.process {
            None => Vm::NotStarted,
            Some(_) if alive() => Vm::Alive,
            Some(_) => Vm::Gone,
        };
        match record.next_of(&Step::PROVISIONING) {
            Some(step) => Self::Provisioning { step, vm },
            None => Self::Running { vm },
        }
    }
}

/// Why a contract is degraded: something is wrong, and ending it is not ours to decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The ledger says it is active; the journal has never seen it, or not so far.
    NotInJournal,
    /// The journal has it; the ledger says it doesn't exist.
    LedgerForgot,
}

impl Doubt {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::NotInJournal => {
                "the ledger says that this contract is active, but this host's journal doesn't have its VM; was the \
                 journal replaced? If the VM is really gone, say so: hostd vm end CONTRACT --reason …"
            }
            Self::LedgerForgot => {
                "the ledger doesn't know this contract; is it another ledger, or one that was restored? The VM runs on. \
                 To end it: hostd vm end CONTRACT --reason …"
            }
        }
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing until something changes.
    Rest,
    /// Nothing but show and report it.
    Degraded(Doubt),
    /// Write the contract into the journal.
    Open,
    /// Run a step of provisioning or removal.
    Do(Step),
    /// Write the removal mark.
    Remove(Removal),
    /// Tell the ledger why it ends.
    Tell,
    /// Tell the ledger that nothing of it is left here, then finish.
    TellReleased,
    /// Nothing is left, and the ledger knows: close it in the journal.
    Finish,
}

/// The decision. One match; each arm with its reason.
pub fn next(desired: Desired, view: View) -> Action {
    use Desired::{Accepted, Active, Ended, Released, Requested, Unheard, Unknown};
    match (view, desired) {
        (View::Finished, Ended(_)) => Action::TellReleased, // the ledger forgot, or never heard it
        (View::Finished, _) => Action::Rest,

        // Accepted without a record: no clock runs and no VM can be there that the journal doesn't know; set it up.
        (View::Nothing, Requested | Accepted) => Action::Open,
        // Over before it began here: open it, so that whatever bears its name is removed by the one way there is.
        (View::Nothing, Ended(_)) => Action::Open,
        (View::Nothing, Active) => Action::Degraded(Doubt::NotInJournal),
        (View::Nothing, Unheard | Unknown | Released) => Action::Rest,

        // The ledger's word that it is over ends everything that is not yet being removed.
        (View::Provisioning { .. } | View::Running { .. }, Ended(reason)) => {
            Action::Remove(Removal::Ended { reason })
        }
        (View::Provisioning { .. } | View::Running { .. }, Released) => Action::Remove(Removal::Released),

        // A VM that has ended is a fact, whether the ledger answers or not.
        (View::Provisioning { vm: Vm::Gone, .. } | View::Running { vm: Vm::Gone }, _) => {
            Action::Remove(Removal::VmGone {
                why: "its VMM process has ended".into(),
            })
        }
        (View::Provisioning { .. } | View::Running { .. }, Unknown) => Action::Degraded(Doubt::LedgerForgot),
        (View::Running { .. }, _) => Action::Rest,
        // It may be over already: don't build on what may have to go. Nothing is lost by waiting.
        (View::Provisioning { .. }, Unheard) => Action::Rest,
        // A crash between the ledger's answer and the journal's line: the step's check finds it done.
        (
            View::Provisioning {
                step: Step::Confirm, ..
            },
            Active,
        ) => Action::Do(Step::Confirm),
        (View::Provisioning { .. }, Active) => Action::Degraded(Doubt::NotInJournal),
        (View::Provisioning { step, .. }, Requested | Accepted) => Action::Do(step),

        // Removing. The ledger hears first (accrual stops at once), the machine is cleared next; but the disk goes only
        // when the ledger knows that the contract is over.
        (View::Removing { word: Word::Owed, .. }, Unheard | Unknown | Requested | Accepted | Active) => {
            Action::Tell
        }
        (View::Removing { step: Some(step), .. }, _) => Action::Do(step),
        (View::Removing { step: None, .. }, Ended(_)) => Action::TellReleased,
        (View::Removing { step: None, .. }, Released | Unknown) => Action::Finish,
        // Told, but the list that shows it hasn't come yet.
        (View::Removing { step: None, .. }, Unheard | Requested | Accepted | Active) => Action::Rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DESIRED: [Desired; 7] = [
        Desired::Unheard,
        Desired::Unknown,
        Desired::Requested,
        Desired::Accepted,
        Desired::Active,
        Desired::Ended(EndReason::Cancelled),
        Desired::Released,
    ];

    fn short(action: &Action) -> String {
        match action {
            Action::Rest => "rest".into(),
            Action::Degraded(Doubt::NotInJournal) => "not-in-journal".into(),
            Action::Degraded(Doubt::LedgerForgot) => "ledger-forgot".into(),
            Action::Open => "open".into(),
            Action::Do(step) => step.name().into(),
            Action::Remove(Removal::Ended { .. }) => "rm:ended".into(),
            Action::Remove(Removal::Released) => "rm:released".into(),
            Action::Remove(Removal::VmGone { .. }) => "rm:gone".into(),
            Action::Remove(other) => format!("{other:?}"),
            Action::Tell => "tell".into(),
            Action::TellReleased => "tell-released".into(),
            Action::Finish => "finish".into(),
        }
    }

    /// The whole function as one table: rows are what the journal and the machine show, columns what the ledger says.
    #[test]
    fn the_whole_decision() {
        let provisioning = |step, vm| View::Provisioning { step, vm };
        let removing = |word, step| View::Removing { word, step };
        let rows = [
            ("nothing", View::Nothing),
            ("reserve", provisioning(Step::Reserve, Vm::NotStarted)),
            ("accept", provisioning(Step::Accept, Vm::NotStarted)),
            ("launch", provisioning(Step::Launch, Vm::NotStarted)),
            ("attest", provisioning(Step::Attest, Vm::Alive)),
            ("attest, vm gone", provisioning(Step::Attest, Vm::Gone)),
            ("confirm", provisioning(Step::Confirm, Vm::Alive)),
            ("running", View::Running { vm: Vm::Alive }),
            ("running, vm gone", View::Running { vm: Vm::Gone }),
            ("removing, owed, stop", removing(Word::Owed, Some(Step::Stop))),
            ("removing, owed, none", removing(Word::Owed, None)),
            ("removing, given, wipe", removing(Word::Given, Some(Step::Wipe))),
            ("removing, given, none", removing(Word::Given, None)),
            (
                "removing, ended, stop",
                removing(Word::NotNeeded, Some(Step::Stop)),
            ),
            ("removing, ended, none", removing(Word::NotNeeded, None)),
            ("finished", View::Finished),
        ];
        let mut table = format!("{:<24}", "");
        for head in [
            "unheard",
            "unknown",
            "requested",
            "accepted",
            "active",
            "ended",
            "released",
        ] {
            table.push_str(&format!("{head:<16}"));
        }
        for (name, view) in rows {
            table.push_str(&format!("\n{name:<24}"));
            for desired in DESIRED {
                table.push_str(&format!("{:<16}", short(&next(desired, view))));
            }
        }
        let table: Vec<_> = table.lines().map(str::trim_end).collect();
        insta::assert_snapshot!(table.join("\n"));
    }

    #[test]
    fn no_doubt_destroys_anything_and_no_disk_goes_before_the_ledger_knows() {
        let destroys = |action: &Action| {
            matches!(
                action,
                Action::Do(Step::Stop | Step::Wipe | Step::Release) | Action::Remove(_)
            )
        };
        for step in Step::PROVISIONING {
            for vm in [Vm::NotStarted, Vm::Alive] {
                for view in [
                    View::Nothing,
                    View::Provisioning { step, vm },
                    View::Running { vm },
                ] {
                    for desired in DESIRED.into_iter().filter(|desired| !desired.is_over()) {
                        let action = next(desired, view);
                        assert!(!destroys(&action), "{desired:?} {view:?}: {action:?}");
                    }
                }
            }
        }
        for desired in DESIRED.into_iter().filter(|desired| !desired.is_over()) {
            for step in Step::REMOVAL {
                let action = next(
                    desired,
                    View::Removing {
                        word: Word::Owed,
                        step: Some(step),
                    },
                );
                assert_eq!(action, Action::Tell, "{desired:?} {step}");
            }
        }
    }
}
