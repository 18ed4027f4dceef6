//! configfs-tsm: the kernel's own way to a report (Linux 6.7 and newer; `Documentation/ABI/testing/
//! configfs-tsm-report`).
//!
//! A folder made under `/sys/kernel/config/tsm/report` is one request. Three things about it are easy to get wrong:
//!
//! - A write to `inblob` takes effect when the file is closed, and whether it did is not told. So `generation` is
//!   compared: it counts each option written, and must stand where our writes bring it, before and after the reads.
//! - A guest below an SVSM may not ask for level 0: `privlevel` (decimal text) is set to `privlevel_floor`.
//! - `EBUSY`, `EAGAIN` and `EINTR` mean "later": TDX has one quote in flight at a time.
//!
//! `service_provider` and `manifestblob` (an SVSM's services, such as its virtual TPM) aren't asked for: the verifier
//! has no use for a manifest.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

/// Where requests are made.
pub(super) const TSM: &str = "/sys/kernel/config/tsm/report";
/// The longest answer that is read; the kernel's own bounds are 16 and 32 KiB.
const BLOB_LEN_MAX: u64 = 64 * 1024;
const TRIES_MAX: u32 = 8;
const PAUSE: Duration = Duration::from_millis(25);

/// What the kernel answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TsmReport {
    /// `sev_guest`, `tdx_guest`, …: says what the report is.
    pub(super) provider: String,
    /// `outblob`.
    pub(super) report: Vec<u8>,
    /// `auxblob`: for SNP the host's certificate table.
    pub(super) auxiliary: Vec<u8>,
}

/// No report.
#[derive(Debug, thiserror::Error)]
pub(super) enum TsmError {
    #[error("{attribute}: {why}")]
    Io { attribute: &'static str, why: io::Error },
    #[error("{attribute}: not a number")]
    Number { attribute: &'static str },
    #[error("somebody else writes to the same request, or the kernel drops what is written to it")]
    Conflict,
    #[error("more than {BLOB_LEN_MAX} bytes in {attribute}")]
    TooLong { attribute: &'static str },
}

impl TsmError {
    /// Whether it may be otherwise a moment later.
    fn passes(&self) -> bool {
        match self {
            Self::Conflict => true,
            Self::Io { why, .. } => matches!(
                why.kind(),
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy
            ),
            Self::Number { .. } | Self::TooLong { .. } => false,
        }
    }
}

/// The attributes of one request.
pub(super) trait Attributes {
    /// At most one byte more than [`BLOB_LEN_MAX`].
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// In one write, as configfs wants it.
    fn write(&self, name: &str, value: &[u8]) -> io::Result<()>;
}

/// A request of the kernel's; removed when dropped.
struct Folder(PathBuf);

impl Folder {
    /// One of our own, so that nobody else's settings can get between: configfs-tsm has a request per asker for this.
    fn create(tsm: &Path) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        loop {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = tsm.join(format!("attest-{}-{n}", std::process::id()));
            match fs::create_dir(&path) {
                // Left by an agent that was killed.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made.map(|()| Self(path)),
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing depends on it: a leftover request costs a few bytes.
        let _ = fs::remove_dir(&self.0);
    }
}

impl Attributes for Folder {
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        File::open(self.0.join(name))?
            .take(BLOB_LEN_MAX + 1)
            .read_to_end(&mut content)?;
        Ok(content)
    }

    fn write(&self, name: &str, value: &[u8]) -> io::Result<()> {
        OpenOptions::new()
            .write(true)
            .open(self.0.join(name))?
            .write_all(value)
    }
}

/// A report over `report_data`, by a new request under `tsm`.
pub(super) fn report(tsm: &Path, report_data: &[u8; 64]) -> Result<TsmReport, TsmError> {
    let request = Folder::create(tsm).map_err(|why| TsmError::Io {
        attribute: "a new request",
        why,
    })?;
    ask(&request, report_data, PAUSE)
}

/// Asks until there is an answer, for as long as what stands against it may pass.
fn ask(request: &impl Attributes, report_data: &[u8; 64], pause: Duration) -> Result<TsmReport, TsmError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match ask_once(request, report_data) {
            Err(error) if error.passes() && tries < TRIES_MAX => thread::sleep(pause * tries),
            other => return other,
        }
    }
}

fn ask_once(request: &impl Attributes, report_data: &[u8; 64]) -> Result<TsmReport, TsmError> {
    let mut generation = number(request, "generation")?;
    let mut set = |attribute, value: &[u8]| {
        let why = |why| TsmError::Io { attribute, why };
        request.write(attribute, value).map_err(why)?;
        generation = generation.wrapping_add(1);
        Ok(())
    };
    match number(request, "privlevel_floor") {
        Ok(0) => {}
        Ok(floor) => set("privlevel", floor.to_string().as_bytes())?,
        // TDX has no levels.
        Err(TsmError::Io { why, .. }) if why.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    set("inblob", report_data)?;
    if number(request, "generation")? != generation {
        // The kernel takes no more writes before somebody reads: this clears it.
        let _ = request.read("outblob");
        return Err(TsmError::Conflict);
    }
    let provider = String::from_utf8_lossy(&blob(request, "provider")?)
        .trim()
        .to_owned();
    let report = blob(request, "outblob")?;
    let auxiliary = match blob(request, "auxblob") {
        Err(TsmError::Io { .. }) => Vec::new(),
        other => other?,
    };
    if number(request, "generation")? != generation {
        return Err(TsmError::Conflict);
    }
    Ok(TsmReport {
        provider,
        report,
        auxiliary,
    })
}

fn blob(request: &impl Attributes, attribute: &'static str) -> Result<Vec<u8>, TsmError> {
    let content = request
        .read(attribute)
        .map_err(|why| TsmError::Io { attribute, why })?;
    if content.len() as u64 > BLOB_LEN_MAX {
        return Err(TsmError::TooLong { attribute });
    }
    Ok(content)
}

/// A decimal number.
fn number(request: &impl Attributes, attribute: &'static str) -> Result<u64, TsmError> {
    let text = blob(request, attribute)?;
    std::str::from_utf8(&text)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .ok_or(TsmError::Number { attribute })
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::RefCell;

    use super::*;

    /// A request as the kernel keeps it (drivers/virt/coco/guest/report.c), with troubles to order.
    #[derive(Default)]
    struct Kernel(RefCell<State>);

    #[derive(Default)]
    struct State {
        floor: Option<u32>,
        level: u32,
        inblob: Vec<u8>,
        generation: u64,
        /// What writes to `inblob` are dropped in silence.
        dropped: u32,
        /// How many reads of `outblob` fail, and how.
        failing: (u32, i32),
        /// After how many reads of `outblob` somebody else writes, each time.
        intruder: bool,
        reads: u32,
    }

    impl Attributes for Kernel {
        fn read(&self, name: &str) -> io::Result<Vec<u8>> {
            let state = &mut *self.0.borrow_mut();
            match name {
                "generation" => Ok(format!("{}\n", state.generation).into_bytes()),
                "privlevel_floor" => state
                    .floor
                    .map(|floor| format!("{floor}\n").into_bytes())
                    .ok_or(io::ErrorKind::NotFound.into()),
                "provider" => Ok(b"sev_guest\n".to_vec()),
                "outblob" => {
                    state.reads += 1;
                    let (left, error) = &mut state.failing;
                    if *left > 0 {
                        *left -= 1;
                        return Err(io::Error::from_raw_os_error(*error));
                    }
                    if state.inblob.is_empty() || state.level < state.floor.unwrap_or(0) {
                        return Err(io::Error::from_raw_os_error(22));
                    }
                    let report = [b"report over ", state.inblob.as_slice()].concat();
                    if state.intruder {
                        state.generation += 1;
                    }
                    Ok(report)
                }
                "auxblob" => Ok(b"table".to_vec()),
                _ => Err(io::ErrorKind::NotFound.into()),
            }
        }

        fn write(&self, name: &str, value: &[u8]) -> io::Result<()> {
            let state = &mut *self.0.borrow_mut();
            match name {
                "privlevel" => {
                    let level: u32 = std::str::from_utf8(value).unwrap().parse().unwrap();
                    if state.floor.is_none_or(|floor| level < floor || level > 3) {
                        return Err(io::Error::from_raw_os_error(22));
                    }
                    state.level = level;
                }
                "inblob" if state.dropped > 0 => {
                    state.dropped -= 1;
                    return Ok(());
                }
                "inblob" => state.inblob = value.to_vec(),
                _ => return Err(io::ErrorKind::PermissionDenied.into()),
            }
            state.generation = state.generation.wrapping_add(1);
            Ok(())
        }
    }

    fn asked(state: State) -> (Result<TsmReport, TsmError>, u32) {
        let kernel = Kernel(RefCell::new(state));
        let report = ask(&kernel, &[7; 64], Duration::ZERO);
        (report, kernel.0.into_inner().reads)
    }

    #[test]
    fn the_report_is_over_the_data_at_the_lowest_level_that_the_guest_has() {
        for floor in [None, Some(0), Some(2)] {
            let (report, _) = asked(State {
                floor,
                generation: u64::MAX,
                ..State::default()
            });
            let report = report.unwrap();
            assert_eq!(
                report.report,
                [&b"report over "[..], &[7; 64]].concat(),
                "{floor:?}"
            );
            assert_eq!(report.provider, "sev_guest");
            assert_eq!(report.auxiliary, b"table");
        }
    }

    #[test]
    fn what_passes_is_waited_for_and_nothing_else_is() {
        for (errno, tries, passes) in [(16, 7, true), (4, 3, true), (11, 1, true), (16, 8, false)] {
            let (report, reads) = asked(State {
                failing: (tries, errno),
                ..State::default()
            });
            assert_eq!(report.is_ok(), passes, "errno {errno}, {tries} times");
            assert_eq!(reads, (tries + 1).min(TRIES_MAX), "errno {errno}, {tries} times");
        }
        for errno in [5, 22, 6] {
            let (report, reads) = asked(State {
                failing: (1, errno),
                ..State::default()
            });
            assert!(
                matches!(
                    report,
                    Err(TsmError::Io {
                        attribute: "outblob",
                        ..
                    })
                ),
                "{report:?}"
            );
            assert_eq!(reads, 1, "errno {errno}");
        }
    }

    #[test]
    fn a_write_that_is_dropped_or_somebody_elses_write_never_gives_a_report() {
        let (report, _) = asked(State {
            dropped: 2,
            ..State::default()
        });
        assert!(report.is_ok(), "asked again: {report:?}");
        for trouble in [
            State {
                dropped: 100,
                inblob: b"old question".to_vec(),
                ..State::default()
            },
            State {
                intruder: true,
                ..State::default()
            },
        ] {
            let (report, _) = asked(trouble);
            assert!(matches!(report, Err(TsmError::Conflict)), "{report:?}");
        }
    }

    #[test]
    fn requests_are_folders_of_their_own_and_gone_afterwards() {
        let tsm = tempfile::tempdir().unwrap();
        let request = Folder::create(tsm.path()).unwrap();
        let other = Folder::create(tsm.path()).unwrap();
        assert_ne!(request.0, other.0);
        // A plain file system makes no attributes; the kernel's writes must not make any either.
        assert_eq!(
            request.write("inblob", &[1]).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        fs::write(request.0.join("outblob"), vec![1; 70_000]).unwrap();
        let error = blob(&request, "outblob").unwrap_err();
        assert!(matches!(error, TsmError::TooLong { .. }), "{error}");
        fs::remove_file(request.0.join("outblob")).unwrap();
        drop((request, other));
        assert_eq!(fs::read_dir(tsm.path()).unwrap().count(), 0);
        // On a plain file system the request has no attributes: an error that names the first.
        let error = report(tsm.path(), &[0; 64]).unwrap_err();
        assert!(error.to_string().starts_with("generation: "), "{error}");
        let error = report(Path::new("/nonexistent"), &[0; 64]).unwrap_err();
        assert!(error.to_string().starts_with("a new request: "), "{error}");
    }
}
