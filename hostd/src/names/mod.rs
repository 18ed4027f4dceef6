//! Names that tenants bring: proved by DNS, then routed.
//!
//! A contract may ask for a DNS name of its own beside the one derived from its id (`tls_name`). It is routed to the VM
//! when, and for as long as, DNS says that it is the developer's: a TXT record ([`ledger::name_proof`]) which this host
//! looks up. Nothing waits for that: the contract becomes active without it.
//!
//! ```text
//!               record found, name free here            3 answers in a row without the record
//!  not routed ───────────────────────────────▶ routed ───────────────────────────────────────▶ not routed
//!      ▲ looked up after 5 s, 10 s, … 5 min       ▲ looked up every hour; no answer changes nothing
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`proof`] | what one answer means for one name. Pure. |
//! | [`prover`] | the task that looks names up, writes what is proved into the journal, and has the network follow |
//!
//! What is proved stands in the journal (`own_name`), so a restart changes no route. Two contracts with the same name: the
//! first that was proved keeps it while it is here; the other says so. What a name is at is shown with its contract.

pub mod proof;
pub mod prover;

use std::collections::BTreeMap;
use std::sync::Mutex;

use ledger::api::{Contract, ContractId};
use ledger::name_proof;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

pub use self::proof::{Answer, Pace};
pub use self::prover::prove;

/// What a contract's own name is at, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OwnName {
    /// The name.
    pub name: String,
    /// Whether it leads to the VM.
    pub routed: bool,
    /// Where the TXT record must stand.
    pub record: String,
    /// What it must say.
    pub value: String,
    /// Why it isn't routed, or what keeps us from looking; `None`: all is well.
    pub why: Option<String>,
}

impl OwnName {
    /// Of a contract that asked for one. `why` is what the last look said.
    pub fn new(contract: &Contract, routed: bool, why: Option<String>) -> Option<Self> {
        let name = contract.args.tls_name.clone()?;
        Some(Self {
            record: name_proof::record_name(&name),
            value: name_proof::record_value(contract.developer),
            name,
            routed,
            why,
        })
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let Self {
            name, record, value, ..
        } = self;
        match (self.routed, &self.why) {
            (true, None) => format!("{name}: routed"),
            (true, Some(why)) => format!("{name}: routed, but {why}"),
            (false, why) => {
                let why = why.as_deref().unwrap_or("not looked up yet");
                format!("{name}: not routed: {why}; needed: {record} TXT \"{value}\"")
            }
        }
    }
}

/// What the actors tell the prover, and what it tells people.
#[derive(Debug, Default)]
pub struct Names {
    /// A contract with a name of its own came or went.
    changed: Notify,
    /// What isn't as wished. A `std` mutex: held for a few instructions, never over an `.await`.
    lacks: Mutex<BTreeMap<ContractId, String>>,
}

impl Names {
    /// Says that a contract's network came or went; the prover looks at the journal.
    pub fn changed(&self, contract: &Contract) {
        if contract.args.tls_name.is_some() {
            self.changed.notify_one();
        }
    }

    /// Why a contract's own name isn't routed, or isn't looked up.
    pub fn lack(&self, id: ContractId) -> Option<String> {
        self.lacks().get(&id).cloned()
    }

    fn lacks(&self) -> std::sync::MutexGuard<'_, BTreeMap<ContractId, String>> {
        self.lacks
            .lock()
            .expect("no code panics while it holds this lock")
    }
}
