//! Taps: the two ioctls of `/dev/net/tun` that netlink doesn't have (linux/if_tun.h).
#![expect(unsafe_code, reason = "a tap is made and attached by ioctl only")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use crate::effects::worker::os;
use crate::error::NetError;
use crate::names::{IfName, Slot};

mod raw {
    nix::ioctl_write_ptr_bad!(
        /// `TUNSETIFF`: attaches the file to the interface named in the request, which it makes if there is none.
        tun_set_iff,
        libc::TUNSETIFF,
        libc::ifreq
    );
    nix::ioctl_write_int_bad!(
        /// `TUNSETPERSIST`: whether the interface outlives the file.
        tun_set_persist,
        libc::TUNSETPERSIST
    );
}

/// Attaches a new file to the tap `name` of the namespace that the thread stands in, and makes the tap if it is absent:
/// one queue, no packet information, with a virtio-net header, as VMMs want it.
fn attach(name: &IfName) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    // SAFETY: ifreq is a plain C struct (an array of bytes and a union of integers and addresses); all zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
        *to = from.cast_signed(); // an IfName has at most 15 bytes: the 16th stays 0
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16; // 0x5002 fits
    // SAFETY: the descriptor is open, and the request is a valid ifreq that lives through the call. The kernel reads it and
    // writes the name and flags back into the same 40 bytes. `request` isn't used afterwards.
    unsafe { raw::tun_set_iff(file.as_raw_fd(), &raw const request) }?;
    Ok(file)
}

/// Makes a tap that stays. One that is there already and attached to nobody is kept as it is.
pub(crate) fn make(name: &IfName) -> Result<(), NetError> {
    let what = || format!("make the tap {name} (is the kernel module tun loaded?)");
    let file = attach(name).map_err(os(what()))?;
    // SAFETY: the descriptor is open and attached to a tap; the argument is an integer, no memory is touched.
    unsafe { raw::tun_set_persist(file.as_raw_fd(), 1) }.map_err(|errno| os(what())(errno.into()))?;
    Ok(())
}

/// Opens a tap for a VMM. The caller has seen that it exists.
pub(crate) fn open(name: &IfName, slot: Slot) -> Result<OwnedFd, NetError> {
    match attach(name) {
        Ok(file) => Ok(file.into()),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Err(NetError::TapBusy(slot)),
        Err(error) => Err(os(format!("open the tap {name}"))(error)),
    }
}

/// Whether the device for making taps is there.
pub(crate) fn device_present() -> Result<(), NetError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map(drop)
        .map_err(os("open /dev/net/tun (`modprobe tun` makes it, if we are root)"))
}
