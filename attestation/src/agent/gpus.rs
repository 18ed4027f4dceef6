//! The GPUs' evidence, from a program of its own.
//!
//! Only the guest sees a GPU that it was given, and only NVIDIA's `libnvidia-ml.so` gets at its report. The agent is
//! static and can't load libraries, so it starts a collector (`attest-gpu`, cargo feature `gpu`), which an image has
//! only where it has the driver:
//!
//! ```text
//! stdin  = nonce, 32 bytes
//! stdout = CBOR [* [report: bytes, [* certificate: bytes (DER)]]]
//! ```
//!
//! and exit code 0; anything else is an error, told by the last line of stderr. A collector that hangs, as drivers do, is
//! killed.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::AGENT_EVIDENCE_LEN_MAX;
use crate::EvidenceError;
use crate::composite::gpus_from_cbor;
use crate::nvidia::GpuEvidence;

/// How long a collector may take: a GPU signs in about a second, and there may be twelve devices.
pub const COLLECTOR_TIME_MAX: Duration = Duration::from_secs(60);
const STDERR_LEN_MAX: u64 = 64 * 1024;
const REASON_LEN_MAX: usize = 300;

/// No evidence of the GPUs.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// It can't be run.
    #[error("cannot run the GPU collector {0}: {1}")]
    Run(PathBuf, std::io::Error),
    /// It hangs.
    #[error("the GPU collector gave no answer in {0:?}")]
    Hangs(Duration),
    /// It failed.
    #[error("the GPU collector failed ({0}): {1}")]
    Failed(ExitStatus, String),
    /// It says too much.
    #[error("the GPU collector wrote more than {AGENT_EVIDENCE_LEN_MAX} bytes")]
    TooLong,
    /// What it says is no evidence.
    #[error("what the GPU collector wrote: {0}")]
    Malformed(#[from] EvidenceError),
}

/// The evidence of all GPUs over `nonce` ([`crate::gpu_nonce`]), by `program`, which is killed when it takes longer than
/// `within`.
pub fn collect(
    program: &Path,
    nonce: &[u8; 32],
    within: Duration,
) -> Result<Vec<GpuEvidence>, CollectorError> {
    let failed = |why| CollectorError::Run(program.to_owned(), why);
    let deadline = Instant::now() + within;
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that doesn't read it says why.
        let _ = stdin.write_all(nonce);
    }
    let stdout = read_all(child.stdout.take(), AGENT_EVIDENCE_LEN_MAX as u64 + 1);
    let stderr = read_all(child.stderr.take(), STDERR_LEN_MAX);
    let ended = stdout.recv_timeout(within).ok().and_then(|output| {
        let status = wait_until(&mut child, deadline)?;
        Some((output, status))
    });
    let Some((output, status)) = ended else {
        let _ = child.kill();
        let _ = child.wait();
        return Err(CollectorError::Hangs(within));
    };
    if output.len() > AGENT_EVIDENCE_LEN_MAX {
        return Err(CollectorError::TooLong);
    }
    if !status.success() {
        // A grandchild may hold the pipe open.
        let said = stderr.recv_timeout(Duration::from_secs(1)).unwrap_or_default();
        return Err(CollectorError::Failed(status, last_line(&said)));
    }
    Ok(gpus_from_cbor(&output)?)
}

/// Reads a pipe to its end, or to its first `max` bytes, in a thread of its own.
fn read_all(pipe: Option<impl Read + Send + 'static>, max: u64) -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut content = Vec::new();
        if let Some(pipe) = pipe {
            // What came before an error counts; the exit code tells the rest.
            let _ = pipe.take(max).read_to_end(&mut content);
        }
        let _ = send.send(content);
    });
    receive
}

fn wait_until(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            Ok(None) | Err(_) => return None,
        }
    }
}

fn last_line(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let line = said.trim_end().lines().next_back().unwrap_or("it says nothing");
    line.chars().take(REASON_LEN_MAX).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::composite::gpus_to_cbor;

    /// A collector in shell; `answer` is a file beside it with two GPUs, whose reports begin with `nonce`.
    fn collected(script: &str, within: Duration) -> Result<Vec<GpuEvidence>, CollectorError> {
        let dir = tempfile::tempdir().unwrap();
        let gpus = [1, 2].map(|n| GpuEvidence::new(vec![n; 5000], vec![vec![0x30, n]; 5]));
        fs::write(dir.path().join("answer"), gpus_to_cbor(&gpus)).unwrap();
        let program = dir.path().join("collector");
        let body = format!("#!/bin/sh\ncd {}\n{script}\n", dir.path().display());
        fs::write(&program, body).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let asked = collect(&program, &[0x6e; 32], within);
        if let Ok(found) = &asked {
            assert_eq!(found, &gpus);
        }
        asked
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn the_collector_gets_the_nonce_and_its_answer_is_read() {
        // Fails unless exactly the nonce comes, and then the end.
        let script =
            "[ \"$(cat)\" = nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn ] || exit 9\necho chatter >&2\ncat answer";
        assert_eq!(collected(script, LONG).unwrap().len(), 2);
    }

    #[test]
    fn every_way_in_which_it_fails_has_its_reason() {
        let says = |script| collected(script, LONG).unwrap_err().to_string();
        assert_eq!(
            says("cat answer; echo first >&2; echo no driver >&2; exit 3"),
            "the GPU collector failed (exit status: 3): no driver"
        );
        assert_eq!(
            says("exit 1"),
            "the GPU collector failed (exit status: 1): it says nothing"
        );
        assert!(says("kill -9 $$").contains("signal: 9"));
        assert!(says("head -c 20 answer").starts_with("what the GPU collector wrote: malformed evidence"));
        assert!(says("cat answer answer").starts_with("what the GPU collector wrote: "));
        assert!(
            says(":").starts_with("what the GPU collector wrote: "),
            "nothing is not no GPUs"
        );
        assert_eq!(
            says("head -c 500000 /dev/zero"),
            "the GPU collector wrote more than 491520 bytes"
        );
        let error = collect(Path::new("/nonexistent"), &[0; 32], LONG).unwrap_err();
        assert!(matches!(error, CollectorError::Run(..)), "{error}");
    }

    #[test]
    fn one_that_hangs_is_killed() {
        for script in ["exec sleep 1000", "cat answer; exec >&-; exec sleep 1000"] {
            let start = Instant::now();
            let error = collected(script, Duration::from_millis(300)).unwrap_err();
            assert!(matches!(error, CollectorError::Hangs(_)), "{script}: {error}");
            assert!(start.elapsed() < Duration::from_secs(10), "{script}");
        }
    }
}
