//! hostd: contracts in, VMs out. The daemon of one provider's machine.
//!
//! # Vocabulary
//! A *contract* is a paid request with an id; the *ledger* says which contracts this host has and where each stands
//! (`desired`), the machine shows what runs (`observed`), the *journal* holds what hostd has started and done.
//! A *step* is one change to the machine with a check and an undo. A *slot* numbers the VM on this host; every name and
//! address derives from it or from the contract id.
//!
//! # Map
//! ```text
//!  ledger ◀──── wiring::ledger ──┐                        ┌── surface (HTTP on a unix socket) ◀── cli
//!                                ▼                        ▼
//!  ports ◀── Host ── supervisor: one actor per contract ──── journal (SQLite; allocator inside)
//!    ▲                 decide::next(desired, view) → Action
//!    │
//!  wiring::{network, storage, agent} · vmm::{cloud_hypervisor, libvirt} · process (pidfd)
//! ```
//! Read in this order: [`ports`] (what is outside), [`journal`] (what is remembered), `supervisor::decide` (what is done
//! when), `supervisor::actor` (how).
//!
//! # Always true
//! 1. The journal has a step's line on disk before the machine changes.
//! 2. One task changes a contract (but for its proved name, which [`names`] alone writes); capacity is given out inside the
//!    journal's transaction.
//! 3. Nothing is killed, wiped or freed without a `removal` mark in the journal, and the mark comes from the ledger, from
//!    the operator, from a step that failed before the contract was active, or from a VM that ended by itself.
//! 4. VMs outlive hostd: stopping or killing hostd touches none.

pub mod allocator;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod doctor;
pub mod endorsements;
pub mod events;
pub mod host_evidence;
pub mod hostkey;
pub mod hugepages;
pub mod install;
pub mod inventory;
pub mod journal;
pub mod names;
pub mod ports;
pub mod process;
pub mod seed;
pub mod setup;
pub mod storage;
pub mod supervisor;
pub mod surface;
pub mod tui;
pub mod update;
pub mod vmm;
pub mod wiring;
