//! What a child process gets of this one's descriptors: nothing but what it was given.
//!
//! Rust's own files close themselves at `exec`; those that C libraries open (tpm2-tss opens the TPM) do not. A VMM or
//! HAProxy that was started meanwhile would keep such a descriptor for as long as it lives.
#![expect(
    unsafe_code,
    reason = "what runs between fork and exec is outside the language's guarantees"
)]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Has the child close every descriptor above 2 when it starts its program: `close_range(2)`, Linux 5.11 or newer.
pub fn close_descriptors(command: &mut Command) -> &mut Command {
    let close = || {
        let flags = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
        // SAFETY: the call takes numbers only, and marks descriptors of this process, which is the child.
        match unsafe { libc::close_range(3, libc::c_uint::MAX, flags) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec only what is async-signal-safe may run: this is one system call, and reading `errno`.
    unsafe { command.pre_exec(close) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn a_child_gets_no_descriptor_that_a_library_left_open() {
        let left_open = tempfile::tempfile().unwrap();
        nix::fcntl::fcntl(
            &left_open,
            nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
        )
        .unwrap();
        let path = format!("/proc/self/fd/{}", left_open.as_raw_fd());
        let has_it = |command: &mut Command| command.arg("-e").arg(&path).status().unwrap().success();
        assert!(has_it(&mut Command::new("test")));
        assert!(!has_it(close_descriptors(&mut Command::new("test"))));
    }
}
