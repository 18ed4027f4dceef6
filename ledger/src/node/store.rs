//! The durable log: one append-only file, one record per group commit, one `fdatasync` per record.
//!
//! A file and not SQLite, because all this needs is to append and, at start-up, to read everything in order: an append
//! is one write and one sync, where a database in WAL mode writes its log, an index and, later, the pages again; and
//! what a torn write may look like is decided here and not two layers below.
//!
//! A record is
//!
//! ```text
//! "DCL1" ‖ payload length (u32, little-endian) ‖ SHA-256 of the record before it ‖ first 8 bytes of SHA-256 of all that
//! payload (CBOR of `Record`)
//! SHA-256 of header ‖ payload
//! ```
//!
//! so that a record can't be moved, left out or exchanged unseen. What was written is only answered after the sync;
//! therefore a record that ends with the file before its length says so was never answered, and is dropped (kept beside
//! the log, for curiosity). Anything else that doesn't fit is damage: the node says where and doesn't start.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use candid::Principal;
use ic_transport_types::RejectCode;
use ic_transport_types::RejectResponse;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use sha2::{Digest, Sha256};

use super::certify::Outcome;

const MAGIC: &[u8; 4] = b"DCL1";
const HEADER: usize = 4 + 4 + 32 + 8;
const TRAILER: usize = 32;

/// The largest payload: a full group commit stays far below it.
pub(crate) const PAYLOAD_MAX: usize = 64 * 1024 * 1024;

/// What one group commit makes durable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// New blocks, oldest first.
    pub(crate) blocks: Vec<ByteBuf>,
    /// What was answered, so that a request is executed once even when the node dies in between.
    pub(crate) answers: Vec<Answer>,
}

/// The answer to one call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// The request's id.
    #[serde(with = "serde_bytes")]
    pub(crate) request: Vec<u8>,
    /// Who asked.
    pub(crate) sender: Principal,
    /// Until when the request may come again, nanoseconds of the wall clock.
    pub(crate) expiry: u64,
    /// The reply; empty for a reject.
    pub(crate) reply: ByteBuf,
    /// The reject.
    pub(crate) reject: Option<(u8, String, Option<String>)>,
}

impl Answer {
    pub(crate) fn new(request: &[u8], sender: Principal, expiry: u64, outcome: &Outcome) -> Self {
        let (reply, reject) = match outcome {
            Outcome::Replied(reply) => (ByteBuf::from(reply.clone()), None),
            Outcome::Rejected(reject) => (
                ByteBuf::new(),
                Some((
                    reject.reject_code as u8,
                    reject.reject_message.clone(),
                    reject.error_code.clone(),
                )),
            ),
        };
        Self {
            request: request.to_vec(),
            sender,
            expiry,
            reply,
            reject,
        }
    }

    pub(crate) fn outcome(self) -> Outcome {
        match self.reject {
            None => Outcome::Replied(self.reply.into_vec()),
            Some((code, reject_message, error_code)) => Outcome::Rejected(RejectResponse {
                reject_code: RejectCode::try_from(u64::from(code)).unwrap_or(RejectCode::SysFatal),
                reject_message,
                error_code,
            }),
        }
    }
}

/// What is wrong with the log.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system says no.
    #[error("cannot use {path}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The log holds something that was never written like that.
    #[error(
        "{path} is damaged at byte {offset}: {why}. Up to there it is sound ({records} records). Restore the file from \
         a copy; or, to lose everything from that byte on, which may include answered calls: \
         `truncate -s {offset} {path}`"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What doesn't fit.
        why: String,
        /// Sound records before it.
        records: u64,
    },
}

/// The log, open for appending.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    file: File,
    tip: [u8; 32],
    /// Bytes in the file.
    pub(crate) size: u64,
}

/// What was found at the end of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tail {
    /// A whole record, or nothing at all.
    Clean,
    /// So many bytes of a record whose write was cut off. Nothing of it was answered.
    Torn {
        /// Its beginning.
        offset: u64,
        /// Its length.
        bytes: u64,
    },
}

impl Store {
    /// Makes an empty log. Refuses to overwrite one.
    pub(crate) fn create(path: &Path) -> Result<(), StoreError> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        file.and_then(|file| file.sync_all())
            .map_err(|source| StoreError::Io {
                path: path.to_owned(),
                source,
            })
    }

    /// Opens the log, gives each record to `each`, and cuts off a torn tail (keeping it in `<log>.torn`).
    pub(crate) fn open<E: From<StoreError>>(
        path: &Path,
        each: impl FnMut(Record) -> Result<(), E>,
    ) -> Result<(Self, Tail), E> {
        let io = |source| StoreError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(io)?;
        let Scan { tip, end, tail } = scan(&mut file, path, each)?;
        if let Tail::Torn { offset, bytes } = tail {
            let mut torn = Vec::new();
            file.seek(SeekFrom::Start(offset)).map_err(io)?;
            (&file).take(bytes).read_to_end(&mut torn).map_err(io)?;
            std::fs::write(path.with_extension("torn"), &torn).map_err(io)?;
            file.set_len(end).and_then(|()| file.sync_all()).map_err(io)?;
        }
        file.seek(SeekFrom::Start(end)).map_err(io)?;
        Ok((
            Self {
                path: path.to_owned(),
                file,
                tip,
                size: end,
            },
            tail,
        ))
    }

    /// Reads the log without changing anything.
    pub(crate) fn read<E: From<StoreError>>(
        path: &Path,
        each: impl FnMut(Record) -> Result<(), E>,
    ) -> Result<Tail, E> {
        let mut file = File::open(path).map_err(|source| StoreError::Io {
            path: path.to_owned(),
            source,
        })?;
        Ok(scan(&mut file, path, each)?.tail)
    }

    /// Appends a record and waits until it is on the medium. After an error the state of the file is unknown: the
    /// caller must stop and let start-up find out (a second `fsync` may report success for lost pages).
    pub(crate) fn append(&mut self, record: &Record) -> Result<(), StoreError> {
        let io = |source| StoreError::Io {
            path: self.path.clone(),
            source,
        };
        let payload = serde_cbor::to_vec(record).map_err(|error| io(std::io::Error::other(error)))?;
        let (frame, tip) = frame(&payload, self.tip)
            .ok_or_else(|| io(std::io::Error::other("a record larger than the log's limit")))?;
        self.file
            .write_all(&frame)
            .and_then(|()| self.file.sync_data())
            .map_err(io)?;
        self.tip = tip;
        self.size += frame.len() as u64;
        Ok(())
    }
}

/// A record as it lies in the file, and its hash.
fn frame(payload: &[u8], before: [u8; 32]) -> Option<(Vec<u8>, [u8; 32])> {
    let length = u32::try_from(payload.len())
        .ok()
        .filter(|_| payload.len() <= PAYLOAD_MAX)?;
    let mut bytes = Vec::with_capacity(HEADER + payload.len() + TRAILER);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&before);
    let check = Sha256::digest(&bytes);
    bytes.extend_from_slice(&check[..8]);
    bytes.extend_from_slice(payload);
    let sum: [u8; 32] = Sha256::digest(&bytes).into();
    bytes.extend_from_slice(&sum);
    Some((bytes, sum))
}

struct Scan {
    tip: [u8; 32],
    end: u64,
    tail: Tail,
}

fn scan<E: From<StoreError>>(
    file: &mut File,
    path: &Path,
    mut each: impl FnMut(Record) -> Result<(), E>,
) -> Result<Scan, E> {
    let io = |source| StoreError::Io {
        path: path.to_owned(),
        source,
    };
    let length = file.metadata().map_err(io)?.len();
    let mut reader = std::io::BufReader::with_capacity(1 << 20, file);
    let (mut tip, mut end, mut records) = ([0u8; 32], 0u64, 0u64);
    loop {
        let left = length - end;
        let damaged = |why: &str| StoreError::Damaged {
            path: path.to_owned(),
            offset: end,
            why: why.to_owned(),
            records,
        };
        let torn = Tail::Torn {
            offset: end,
            bytes: left,
        };
        if left == 0 {
            return Ok(Scan {
                tip,
                end,
                tail: Tail::Clean,
            });
        }
        if left < HEADER as u64 {
            return Ok(Scan { tip, end, tail: torn });
        }
        let mut bytes = vec![0; HEADER];
        reader.read_exact(&mut bytes).map_err(io)?;
        let check = Sha256::digest(&bytes[..HEADER - 8]);
        if &bytes[..4] != MAGIC || bytes[HEADER - 8..] != check[..8] {
            return Err(damaged("the record's header is not one").into());
        }
        if bytes[8..40] != tip {
            return Err(damaged("the record does not follow the one before it").into());
        }
        let size = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
        if size > PAYLOAD_MAX {
            return Err(damaged("the record is larger than any that is written").into());
        }
        let whole = HEADER + size + TRAILER;
        if left < whole as u64 {
            return Ok(Scan { tip, end, tail: torn });
        }
        bytes.resize(HEADER + size, 0);
        reader.read_exact(&mut bytes[HEADER..]).map_err(io)?;
        let mut sum = [0; TRAILER];
        reader.read_exact(&mut sum).map_err(io)?;
        if Sha256::digest(&bytes).as_slice() != sum {
            return Err(damaged(
                "the record's checksum is wrong. If this is the last record and the machine lost power, it was \
                 being written and nothing of it was answered",
            )
            .into());
        }
        let record = serde_cbor::from_slice(&bytes[HEADER..]).map_err(|error| damaged(&error.to_string()))?;
        each(record)?;
        tip = sum;
        end += whole as u64;
        records += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u8) -> Record {
        Record {
            blocks: vec![ByteBuf::from(vec![number; 40])],
            answers: vec![Answer::new(
                &[number; 32],
                Principal::anonymous(),
                7,
                &Outcome::rejected(RejectCode::CanisterError, "IC0503", "no"),
            )],
        }
    }

    fn read(path: &Path) -> Result<(Vec<Record>, Tail), StoreError> {
        let mut records = Vec::new();
        let tail = Store::read(path, |record| {
            records.push(record);
            Ok::<_, StoreError>(())
        })?;
        Ok((records, tail))
    }

    fn three(path: &Path) -> Vec<u64> {
        Store::create(path).unwrap();
        let (mut store, tail) = Store::open(path, |_| Ok::<_, StoreError>(())).unwrap();
        assert_eq!(tail, Tail::Clean);
        (0..3)
            .map(|number| {
                store.append(&record(number)).unwrap();
                store.size
            })
            .collect()
    }

    #[test]
    fn a_cut_at_any_byte_of_the_last_record_loses_that_record_only() {
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("blocks.log");
        let ends = three(&whole);
        let bytes = std::fs::read(&whole).unwrap();
        for cut in ends[1]..ends[2] {
            let path = dir.path().join("cut.log");
            std::fs::write(&path, &bytes[..usize::try_from(cut).unwrap()]).unwrap();
            let (mut store, tail) = Store::open(&path, |_| Ok::<_, StoreError>(())).unwrap();
            if cut == ends[1] {
                assert_eq!(tail, Tail::Clean);
            } else {
                assert_eq!(
                    tail,
                    Tail::Torn {
                        offset: ends[1],
                        bytes: cut - ends[1]
                    }
                );
            }
            store.append(&record(9)).unwrap();
            let (records, tail) = read(&path).unwrap();
            assert_eq!(
                (records, tail),
                (vec![record(0), record(1), record(9)], Tail::Clean),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_named_and_never_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("blocks.log");
        let ends = three(&whole);
        let bytes = std::fs::read(&whole).unwrap();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            let path = dir.path().join("bad.log");
            std::fs::write(&path, &bad).unwrap();
            let error = Store::open(&path, |_| Ok::<_, StoreError>(())).unwrap_err();
            let start = [0, ends[0], ends[1]]
                .into_iter()
                .rfind(|start| *start <= at as u64)
                .unwrap();
            assert!(
                matches!(error, StoreError::Damaged { offset, .. } if offset == start),
                "byte {at}: {error}"
            );
        }
    }

    #[test]
    fn records_left_out_or_exchanged_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blocks.log");
        let ends: Vec<usize> = three(&path)
            .into_iter()
            .map(|end| usize::try_from(end).unwrap())
            .collect();
        let bytes = std::fs::read(&path).unwrap();
        let (one, two, three) = (&bytes[..ends[0]], &bytes[ends[0]..ends[1]], &bytes[ends[1]..]);
        for parts in [
            [one, three].concat(),
            [two, one, three].concat(),
            [one, one].concat(),
        ] {
            std::fs::write(&path, parts).unwrap();
            assert!(matches!(read(&path), Err(StoreError::Damaged { .. })));
        }
    }
}
