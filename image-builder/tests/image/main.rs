//! The provider's image in a real machine: OVMF with secure boot, swtpm, QEMU without hardware virtualization.
//!
//! Run by `make test-image`, which builds two images first and names them: `DC_IMAGE`, and `DC_IMAGE_AGAIN`, built at
//! another time into another directory; `IMAGE_BUILDER_CACHE` holds QEMU. One machine runs at a time.
#![expect(clippy::unwrap_used, reason = "all of it is a test")]

mod boot;
mod device;
mod firstboot;
mod inside;
mod install;
mod machine;
mod operator;
mod provider;
mod update;
