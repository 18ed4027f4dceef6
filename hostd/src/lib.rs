//! hostd: contracts in, VMs out.
pub mod vmm;
