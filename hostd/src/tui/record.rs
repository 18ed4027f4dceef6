//! Events as a file: one JSON object a line, so that what somebody saw can be seen again.
//!
//! A recorded file holds what the daemon said and which keys were pressed: contracts, prices, the guests' console. No
//! keys of tenants or of the host: the API doesn't say them.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::TuiError;
use super::state::Timed;

/// Longest file: an hour at an answer a second, 64 KiB each, is below.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Writes events.
pub(super) struct Recorder {
    path: PathBuf,
    file: File,
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> TuiError {
    let path = path.to_owned();
    move |source| TuiError::File { path, source }
}

impl Recorder {
    pub(super) fn create(path: &Path) -> Result<Self, TuiError> {
        let mut options = File::options();
        let file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path);
        Ok(Self {
            file: file.map_err(failed(path))?,
            path: path.to_owned(),
        })
    }

    pub(super) fn write(&mut self, timed: &Timed) -> Result<(), TuiError> {
        let line = serde_json::to_string(timed).map_err(|error| TuiError::Json(error.to_string()))?;
        self.file
            .write_all((line + "\n").as_bytes())
            .map_err(failed(&self.path))
    }
}

/// Reads a recorded file.
pub(super) fn read(path: &Path) -> Result<Vec<Timed>, TuiError> {
    let file = File::open(path).map_err(failed(path))?;
    let mut events = Vec::new();
    for (number, line) in (1..).zip(BufReader::new(file.take(FILE_BYTES_MAX)).lines()) {
        let line = line.map_err(failed(path))?;
        let event = serde_json::from_str(&line).map_err(|error| TuiError::Line {
            path: path.to_owned(),
            line: number,
            why: error.to_string(),
        })?;
        events.push(event);
    }
    Ok(events)
}
