//! integration
pub mod libvirt_harness;
pub mod tiny_guest;
