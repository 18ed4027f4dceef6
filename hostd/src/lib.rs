//! hostd: contracts in, VMs out.
pub mod inventory;
pub mod seed;
pub mod storage;
pub mod vmm;
