//! Images of the provider OS: the host's own ([`appliance`]), and tenant images, the small systems that rented VMs boot.
//!
//! `image-builder tenant` turns a strict `tenant.toml` ([`config`]) and Debian's packages ([`apt`]) into a directory
//! that hostd can launch and a verifier can measure: `vmlinuz`, `initrd`, `OVMF.fd` and `manifest.json`
//! ([`manifest`]). The file system of the image is a value in memory ([`tree`]) until it is written as an initrd
//! ([`cpio`]); [`modules`] picks kernel modules, [`elf`] looks into binaries, [`tenant`] holds the whole plan.
//!
//! [`guest`] is the other side: it runs inside the image and reads the NoCloud seed. The feature `builder` holds
//! everything for the build machine, the feature `guest` the part for the image, so that the guest's binary stays small.

#[cfg(feature = "builder")]
mod applets;
#[cfg(feature = "builder")]
pub mod appliance;
#[cfg(feature = "builder")]
pub mod apt;
#[cfg(feature = "builder")]
pub mod config;
#[cfg(feature = "builder")]
pub mod cpio;
#[cfg(feature = "builder")]
pub mod download;
#[cfg(feature = "builder")]
pub mod elf;
#[cfg(feature = "guest")]
pub mod guest;
#[cfg(feature = "builder")]
pub mod manifest;
#[cfg(feature = "builder")]
pub mod modules;
#[cfg(feature = "builder")]
pub mod progress;
#[cfg(feature = "builder")]
pub mod tenant;
#[cfg(feature = "builder")]
pub mod tree;
