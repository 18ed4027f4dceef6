//! Whether the kernel believes its clock (some NTP client steers it).
#![expect(unsafe_code, reason = "adjtimex(2) has no safe wrapper in nix")]

use std::io;

use crate::inventory::Probe;

/// Asks the kernel, changes nothing.
pub(super) fn synchronized() -> Probe<bool> {
    // SAFETY: `timex` is a plain C struct of integers (and padding), for which all zeros is a valid value.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live `timex` of ours that the kernel fills and doesn't keep; `modes` is 0, so nothing
    // is set and no privilege is needed.
    let state = unsafe { libc::adjtimex(&mut timex) };
    if state < 0 {
        return Probe::Unknown(format!("adjtimex: {}", io::Error::last_os_error()));
    }
    Probe::Known(state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0)
}
