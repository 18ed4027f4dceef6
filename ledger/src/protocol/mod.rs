//! The protocol: the Decent Cloud paper's rules as a deterministic state machine over blocks.
//!
//! No I/O, no clock, no randomness, no panics, checked arithmetic: time and caller come in as arguments, and the same
//! genesis and commands give the same state, replies and block hashes everywhere. docs/protocol.md lists
//! rule → section → decision → test.
//!
//! ```text
//! Genesis ──▶ State::new ──▶ State
//!                              │ apply(caller, Command, now) / call(caller, method, candid, now)
//!                              │   1. tick: every overdue deadline, in order
//!                              │   2. the rules read and write through a Txn beside the state
//!                              │   3. all of it is absorbed, or none
//!                              ▼
//!                        take_blocks() ──▶ the node makes them durable, then answers
//!                        replay(block) ◀── at start-up
//! ```
//!
//! | module | of |
//! |---|---|
//! | [`genesis`] | what a ledger starts with |
//! | [`block`] | the hash chain and its canonical bytes |
//! | [`command`] | updates, replies and queries by name, in Candid |
//! | `state` | tables, derived indices, apply and replay |
//! | `txn` | one command's changes beside the state |
//! | `token` | ICRC-1, ICRC-2 |
//! | `icrc3` | the token's block log |
//! | `registry` | providers, developers, hosts, heartbeats |
//! | `offering` | offerings, prices, matching, why not |
//! | `contract` | rent → accept → evidence → active → end |
//! | `evidence` | the door to the verifier |
//! | `settlement` | escrow, accrual, fee, refunds |
//! | `reputation` | earning and spending it |
//! | `rewards` | minting: block rewards, check-ins |
//! | `books` | invariants |
//! | `query`, `text` | answers; checks of texts from outside |
//!
//! Always true after every block: supply = Σ balances; per contract funded = held + released + refunded and its escrow
//! account holds exactly `held`; every contract that hasn't ended has a deadline.
//!
//! Not here: governance, TDX, host quotes (the ledger issue).

pub mod block;
mod books;
pub mod command;
mod contract;
mod evidence;
pub mod genesis;
mod host_evidence;
mod icrc3;
mod offering;
mod query;
mod registry;
mod reputation;
mod rewards;
mod settlement;
mod state;
#[cfg(test)]
mod tests;
mod text;
mod token;
mod txn;

use candid::Principal;

pub use block::{Block, BlockError};
pub use command::{Command, MethodKind, Reject, Reply, method_kind};
pub use contract::REFUSALS_MAX;
pub use genesis::{Der, Genesis, GenesisError, InitialBalance, Parameters};
pub use state::{ReplayError, State};

use crate::api::LedgerError;

impl txn::Txn<'_> {
    /// The one place where commands meet rules.
    fn execute(&mut self, caller: Principal, command: &Command) -> Result<Reply, LedgerError> {
        match command {
            Command::Tick => Err(txn::not_allowed("only the ledger itself does that")),
            Command::Transfer(args) => Ok(Reply::Transfer(self.transfer(caller, args))),
            Command::Approve(args) => Ok(Reply::Approve(self.approve(caller, args))),
            Command::TransferFrom(args) => Ok(Reply::TransferFrom(self.transfer_from(caller, args))),
            Command::RegisterProvider(profile) => self.register_provider(caller, profile).map(done),
            Command::RegisterDeveloper => self.register_developer(caller).map(done),
            Command::RegisterHost(delegation) => self.register_host(caller, delegation).map(done),
            Command::RetireHost(host) => self.retire_host(caller, *host).map(done),
            Command::PublishOffering(spec) => self.publish_offering(caller, spec).map(Reply::Offering),
            Command::WithdrawOffering(id) => self.withdraw_offering(caller, *id).map(done),
            Command::Rent(args) => self.rent(caller, args).map(Reply::Contract),
            Command::RentAll(nodes) => self.rent_all(caller, nodes).map(Reply::Contracts),
            Command::Accept(id) => self.accept(caller, id).map(done),
            Command::Refuse(args) => self.refuse(caller, args).map(done),
            Command::ContractNonce(id) => self.contract_nonce(caller, id).map(Reply::Nonce),
            Command::SubmitEvidence(args) => self.submit_evidence(caller, args).map(Reply::Confirmed),
            Command::Extend(args) => self
                .extend(caller, args)
                .map(|contract| Reply::Now(Box::new(contract))),
            Command::Cancel(id) => self
                .cancel(caller, id)
                .map(|contract| Reply::Now(Box::new(contract))),
            Command::VmGone(args) => self.vm_gone(caller, args).map(done),
            Command::Released(id) => self.released(caller, id).map(done),
            Command::Heartbeat(args) => self.heartbeat(caller, args).map(done),
            Command::HostNonce => self.host_nonce(caller).map(Reply::Nonce),
            Command::SubmitHostEvidence(args) => {
                self.submit_host_evidence(caller, args).map(Reply::HostVerified)
            }
            Command::Settle(id) => self
                .settle(caller, id)
                .map(|contract| Reply::Now(Box::new(contract))),
            Command::CheckIn => self.check_in(caller).map(Reply::CheckedIn),
            Command::Penalise(args) => self.penalise(caller, args).map(Reply::Penalised),
        }
    }
}

fn done((): ()) -> Reply {
    Reply::Done
}
