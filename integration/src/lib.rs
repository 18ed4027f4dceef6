//! The main job as a demo and a test, the simulators, fault injection, benchmarks.
//!
//! | module | for |
//! |---|---|
//! | [`main_job`] | a paid contract becomes a verified, reachable VM and is settled: `make demo` and `tests/main_job.rs` |
//! | [`sim`] | the simulated SEV-SNP platform and the QEMU wrapper that stands in for the silicon |
//! | [`fake_ch`] | a fake Cloud Hypervisor with the real one's habits |
//! | [`fleet`] | a ledger and a hostd on fake VMs, for many VMs and many deaths: crash tests and benchmarks |
//! | [`libvirt_harness`] | a private libvirtd |
//! | [`timeline`] | a contract's way from payment to Active, split by step |
//! | [`tiny_guest`] | the smallest guest that boots and powers off |

pub mod dns;
pub mod fake_ch;
pub mod fleet;
pub mod libvirt_harness;
pub mod main_job;
pub mod sim;
pub mod timeline;
pub mod tiny_guest;
