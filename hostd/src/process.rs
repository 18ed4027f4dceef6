//! Which process is which, and when it ends.
//!
//! A pid alone names nothing: it is reused, and after a reboot everything is. `boot id + pid + start time` names one
//! process for ever. The end of a process is learnt from a pidfd (readable once the process has ended), never by
//! polling: the kernel wakes us within microseconds.

use std::fs;
use std::io;

use async_trait::async_trait;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::ports::ProcessPort;
use crate::vmm::VmmProcess;

/// This boot's id (`/proc/sys/kernel/random/boot_id`).
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// When a process started: field 22 of `/proc/<pid>/stat`, in clock ticks since boot. `None`: no such process, or it
/// is a zombie (it has ended; only its parent hasn't looked).
pub fn start_time(pid: i32) -> Option<u64> {
    parse_start_time(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// proc_pid_stat(5). The second field is the program's name in brackets and may hold blanks and brackets itself, so the
/// fields are counted from the last bracket.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?; // field 3
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok() // field 22
}

/// The machine's real processes.
pub struct Processes {
    boot_id: String,
}

impl Processes {
    /// Reads this boot's id.
    pub fn new() -> io::Result<Self> {
        Ok(Self { boot_id: boot_id()? })
    }

    /// A pidfd that is proven to be that process: opened first, compared afterwards, so that a pid reused in between
    /// is noticed.
    fn open(&self, process: &VmmProcess) -> Option<rustix::fd::OwnedFd> {
        if process.boot_id != self.boot_id {
            return None;
        }
        let fd = pidfd_open(Pid::from_raw(process.pid)?, PidfdFlags::NONBLOCK).ok()?;
        (start_time(process.pid)? == process.start_time).then_some(fd)
    }
}

#[async_trait]
impl ProcessPort for Processes {
    fn is_alive(&self, process: &VmmProcess) -> bool {
        process.boot_id == self.boot_id && start_time(process.pid) == Some(process.start_time)
    }

    async fn exited(&self, process: &VmmProcess) {
        let Some(fd) = self.open(process) else { return };
        #[expect(
            unsafe_code,
            reason = "registering an fd with epoll; tokio has no safe call for it any more"
        )]
        // SAFETY: the fd must stay open and be the same until it is deregistered. `fd` is an `OwnedFd` that nobody else
        // holds; `AsyncFd` owns it from here on and deregisters it before it drops it.
        let fd = match unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) } {
            Ok(fd) => fd,
            Err(error) => {
                // Only when the runtime has no I/O driver or fds ran out. Not knowing isn't "ended".
                tracing::error!(%error, pid = process.pid, "cannot watch a VMM process; its end will be noticed late");
                while self.is_alive(process) {
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
                return;
            }
        };
        if let Err(error) = fd.readable().await {
            tracing::error!(%error, pid = process.pid, "watching a VMM process failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    fn observed(child: &std::process::Child) -> VmmProcess {
        let pid = i32::try_from(child.id()).unwrap();
        VmmProcess {
            adapter: "test".into(),
            boot_id: boot_id().unwrap(),
            pid,
            start_time: start_time(pid).unwrap(),
            control: String::new(),
        }
    }

    #[test]
    fn the_start_time_is_found_behind_any_program_name() {
        let tail = " S 1 2 3 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 123456 7 8";
        for (name, stat, want) in [
            ("plain", format!("42 (sleep){tail}"), Some(123_456)),
            (
                "brackets and blanks",
                format!("42 (a) (b ) c){tail}"),
                Some(123_456),
            ),
            (
                "a zombie has ended",
                format!("42 (sleep){}", tail.replace(" S ", " Z ")),
                None,
            ),
            ("cut short", "42 (sleep) S 1 2".to_owned(), None),
            ("nothing", String::new(), None),
        ] {
            assert_eq!(parse_start_time(&stat), want, "{name}");
        }
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_seen_within_100_ms_and_another_boot_or_start_time_is_never_it() {
        let mut child = Command::new("sleep")
            .arg("60")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let process = observed(&child);
        let processes = Processes::new().unwrap();
        assert!(processes.is_alive(&process));
        assert!(!processes.is_alive(&VmmProcess {
            start_time: process.start_time + 1,
            ..process.clone()
        }));
        assert!(!processes.is_alive(&VmmProcess {
            boot_id: "another".into(),
            ..process.clone()
        }));
        // Watching what isn't there returns at once.
        processes
            .exited(&VmmProcess {
                start_time: 1,
                ..process.clone()
            })
            .await;

        let watch = processes.exited(&process);
        tokio::pin!(watch);
        tokio::time::timeout(Duration::from_millis(50), &mut watch)
            .await
            .expect_err("it still runs");
        child.kill().unwrap();
        let killed = Instant::now();
        tokio::time::timeout(Duration::from_secs(5), watch)
            .await
            .expect("its end is seen");
        assert!(
            killed.elapsed() < Duration::from_millis(100),
            "seen after {:?}",
            killed.elapsed()
        );
        child.wait().unwrap();
        assert!(!processes.is_alive(&process));
    }
}
