//! The main job as a demo and a test, the simulators, fault injection, benchmarks.
//!
//! | module | for |
//! |---|---|
//! | [`main_job`] | a paid contract becomes a verified, reachable VM and is settled: `make demo` and `tests/main_job.rs` |
//! | [`sim`] | the simulated SEV-SNP platform and the QEMU wrapper that stands in for the silicon |
//! | [`fake_ch`] | a fake Cloud Hypervisor with the real one's habits |
//! | [`libvirt_harness`] | a private libvirtd |
//! | [`tiny_guest`] | the smallest guest that boots and powers off |

pub mod fake_ch;
pub mod libvirt_harness;
pub mod main_job;
pub mod sim;
pub mod tiny_guest;
