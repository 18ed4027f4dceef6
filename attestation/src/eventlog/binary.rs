//! The binary log of the firmware: `TCG_PCR_EVENT2` records behind a `TCG_PCR_EVENT` that names their algorithms.

use super::HashAlg;

/// The longest log that is read, in bytes. Real ones have 10 to 300 KiB; a CCEL area up to 1 MiB.
pub const LOG_LEN_MAX: usize = 4 * 1024 * 1024;
const ALGORITHMS_MAX: usize = 8;
const SPEC_ID: &[u8; 16] = b"Spec ID Event03\0";
const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";
/// Types of events that say something about the log and are in no register.
const EV_NO_ACTION: u32 = 3;
const NO_EVENT: u32 = 0xffff_ffff;

/// A log in the crypto-agile format. Holding one proves that every record is whole, that each has exactly one digest for
/// each algorithm that the log's head names, and that nothing is left over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLog<'a> {
    algorithms: Vec<HashAlg>,
    events: Vec<Event<'a>>,
    startup_locality: u8,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The register: a PCR's number, or in CCEL the measurement register's (1 to 4: RTMR0 to RTMR3).
    pub register: u32,
    /// `TCG_EVENTTYPE` (PC Client Platform Firmware Profile, table "Events").
    pub kind: u32,
    /// What the firmware says about it.
    pub data: &'a [u8],
    digests: Vec<(HashAlg, &'a [u8])>,
}

/// Why bytes are no event log. `at`: where in the log, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EventLogError {
    /// Longer than [`LOG_LEN_MAX`].
    #[error("an event log of {len} bytes (at most {LOG_LEN_MAX})")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// It ends inside a record.
    #[error("the event log ends inside the record at byte {at}")]
    Truncated {
        /// Where the record begins.
        at: usize,
    },
    /// It doesn't begin with a Spec ID event of the crypto-agile format.
    #[error("not a crypto-agile event log (TCG PC Client): {what}")]
    Head {
        /// What is wrong.
        what: &'static str,
    },
    /// A record that breaks the format's rules.
    #[error("event log record at byte {at}: {what}")]
    Record {
        /// Where the record begins.
        at: usize,
        /// What is wrong.
        what: &'static str,
    },
}

impl<'a> EventLog<'a> {
    /// Reads a log that ends where the bytes end, as `binary_bios_measurements` of the kernel.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, EventLogError> {
        read(bytes, Padding::No)
    }

    /// Reads a log in an area of fixed size, as ACPI's CCEL table names one: behind the last record everything is `FF`
    /// (or `00`, on some firmware).
    pub fn parse_padded(bytes: &'a [u8]) -> Result<Self, EventLogError> {
        read(bytes, Padding::Allowed)
    }

    /// The algorithms of which every event has a digest.
    pub fn algorithms(&self) -> &[HashAlg] {
        &self.algorithms
    }

    /// The records behind the head, in the order they were measured.
    pub fn events(&self) -> &[Event<'a>] {
        &self.events
    }

    /// The locality from which the TPM was started: PCR 0 begins with it (Part 1, "Platform Configuration Registers").
    pub fn startup_locality(&self) -> u8 {
        self.startup_locality
    }
}

impl<'a> Event<'a> {
    /// Whether it only says something about the log: such an event is in no register.
    pub fn is_no_action(&self) -> bool {
        self.kind == EV_NO_ACTION
    }

    /// The digest of `algorithm`.
    pub fn digest(&self, algorithm: HashAlg) -> Option<&'a [u8]> {
        let found = self.digests.iter().find(|(alg, _)| *alg == algorithm);
        found.map(|(_, digest)| *digest)
    }

    /// Whether the digest is the one of the data, so that a log which replays proves the data, too.
    pub fn data_is_measured(&self, algorithm: HashAlg) -> bool {
        let digest = algorithm.digest(&[self.data]);
        !self.is_no_action() && digest.is_some() && digest.as_deref() == self.digest(algorithm)
    }

    /// The type's name in the specification, without `EV_`; nothing for unknown ones.
    pub fn kind_name(&self) -> Option<&'static str> {
        Some(match self.kind {
            0x0000_0000 => "PREBOOT_CERT",
            0x0000_0001 => "POST_CODE",
            0x0000_0003 => "NO_ACTION",
            0x0000_0004 => "SEPARATOR",
            0x0000_0005 => "ACTION",
            0x0000_0006 => "EVENT_TAG",
            0x0000_0007 => "S_CRTM_CONTENTS",
            0x0000_0008 => "S_CRTM_VERSION",
            0x0000_0009 => "CPU_MICROCODE",
            0x0000_000a => "PLATFORM_CONFIG_FLAGS",
            0x0000_000b => "TABLE_OF_DEVICES",
            0x0000_000c => "COMPACT_HASH",
            0x0000_000d => "IPL",
            0x0000_000e => "IPL_PARTITION_DATA",
            0x0000_000f => "NONHOST_CODE",
            0x0000_0010 => "NONHOST_CONFIG",
            0x0000_0011 => "NONHOST_INFO",
            0x0000_0012 => "OMIT_BOOT_DEVICE_EVENTS",
            0x8000_0001 => "EFI_VARIABLE_DRIVER_CONFIG",
            0x8000_0002 => "EFI_VARIABLE_BOOT",
            0x8000_0003 => "EFI_BOOT_SERVICES_APPLICATION",
            0x8000_0004 => "EFI_BOOT_SERVICES_DRIVER",
            0x8000_0005 => "EFI_RUNTIME_SERVICES_DRIVER",
            0x8000_0006 => "EFI_GPT_EVENT",
            0x8000_0007 => "EFI_ACTION",
            0x8000_0008 => "EFI_PLATFORM_FIRMWARE_BLOB",
            0x8000_0009 => "EFI_HANDOFF_TABLES",
            0x8000_000a => "EFI_PLATFORM_FIRMWARE_BLOB2",
            0x8000_000b => "EFI_HANDOFF_TABLES2",
            0x8000_000c => "EFI_VARIABLE_BOOT2",
            0x8000_000d => "EFI_GPT_EVENT2",
            0x8000_0010 => "EFI_HCRTM_EVENT",
            0x8000_00e0 => "EFI_VARIABLE_AUTHORITY",
            0x8000_00e1 => "EFI_SPDM_FIRMWARE_BLOB",
            0x8000_00e2 => "EFI_SPDM_FIRMWARE_CONFIG",
            _ => return None,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Padding {
    No,
    Allowed,
}

fn read(bytes: &[u8], padding: Padding) -> Result<EventLog<'_>, EventLogError> {
    if bytes.len() > LOG_LEN_MAX {
        return Err(EventLogError::TooLong { len: bytes.len() });
    }
    let mut cursor = Cursor {
        bytes,
        at: 0,
        record: 0,
    };
    let algorithms = read_head(&mut cursor)?;
    let mut log = EventLog {
        algorithms,
        events: Vec::new(),
        startup_locality: 0,
    };
    loop {
        let rest = &bytes[cursor.at..];
        let all = |byte: u8| rest.iter().all(|b| *b == byte);
        if rest.is_empty() || padding == Padding::Allowed && (all(0xff) || all(0)) {
            return Ok(log);
        }
        let event = read_event(&mut cursor, &log.algorithms)?;
        if event.is_no_action() && event.register == 0 && event.data.starts_with(STARTUP_LOCALITY) {
            let record = |what| EventLogError::Record {
                at: cursor.record,
                what,
            };
            // Part 1: a TPM starts at locality 0, 3, or 4 (H-CRTM), before anything is in PCR 0.
            let [locality @ (0 | 3 | 4)] = event.data[STARTUP_LOCALITY.len()..] else {
                return Err(record("a startup locality other than 0, 3 or 4"));
            };
            if log.events.iter().any(|e| e.register == 0 && !e.is_no_action()) {
                return Err(record("a startup locality behind events of PCR 0"));
            }
            log.startup_locality = locality;
        }
        log.events.push(event);
    }
}

/// The first record: the old format with a SHA-1 of zeros, whose data is `TCG_EfiSpecIDEvent`.
fn read_head(cursor: &mut Cursor<'_>) -> Result<Vec<HashAlg>, EventLogError> {
    let head = |what| EventLogError::Head { what };
    cursor.u32()?; // the register means nothing here: 0, or 1 in CCEL logs
    if cursor.u32()? != EV_NO_ACTION {
        return Err(head("the first event isn't EV_NO_ACTION"));
    }
    cursor.take(20)?;
    let len = cursor.u32()?;
    let data = cursor.take(to_usize(len))?;
    let mut spec = Cursor {
        bytes: data,
        at: 0,
        record: 0,
    };
    let truncated = |_| head("a Spec ID event that is cut off");
    if spec.take(SPEC_ID.len()).map_err(truncated)? != SPEC_ID {
        return Err(head("no `Spec ID Event03`; logs of TPM 1.2 have only SHA-1"));
    }
    spec.take(8).map_err(truncated)?; // platform class, version, errata, size of UINTN
    let count = to_usize(spec.u32().map_err(truncated)?);
    if !(1..=ALGORITHMS_MAX).contains(&count) {
        return Err(head("the number of digest algorithms isn't 1 to 8"));
    }
    let mut algorithms = Vec::with_capacity(count);
    for _ in 0..count {
        let id = spec.u16().map_err(truncated)?;
        let size = spec.u16().map_err(truncated)?;
        let algorithm = HashAlg::from_id(id).ok_or(head("an unknown digest algorithm"))?;
        if algorithm.size() != usize::from(size) {
            return Err(head("a digest size that isn't its algorithm's"));
        }
        if algorithms.contains(&algorithm) {
            return Err(head("a digest algorithm twice"));
        }
        algorithms.push(algorithm);
    }
    let vendor_len = spec.take(1).map_err(truncated)?[0];
    spec.take(usize::from(vendor_len)).map_err(truncated)?;
    if spec.at != data.len() {
        return Err(head("bytes behind the vendor's part"));
    }
    Ok(algorithms)
}

fn read_event<'a>(cursor: &mut Cursor<'a>, algorithms: &[HashAlg]) -> Result<Event<'a>, EventLogError> {
    let at = cursor.at;
    cursor.record = at;
    let record = |what| EventLogError::Record { at, what };
    let register = cursor.u32()?;
    if register == NO_EVENT {
        return Err(record("the log goes on behind its end mark"));
    }
    let kind = cursor.u32()?;
    let count = to_usize(cursor.u32()?);
    if count != algorithms.len() {
        return Err(record(
            "the number of digests isn't the one that the log's head names",
        ));
    }
    let mut digests: Vec<(HashAlg, &[u8])> = Vec::with_capacity(count);
    for _ in 0..count {
        let algorithm = HashAlg::from_id(cursor.u16()?).filter(|alg| algorithms.contains(alg));
        let algorithm = algorithm.ok_or(record(
            "a digest of an algorithm that the log's head doesn't name",
        ))?;
        if digests.iter().any(|(alg, _)| *alg == algorithm) {
            return Err(record("two digests of one algorithm"));
        }
        digests.push((algorithm, cursor.take(algorithm.size())?));
    }
    let len = to_usize(cursor.u32()?);
    let data = cursor.take(len)?;
    Ok(Event {
        register,
        kind,
        data,
        digests,
    })
}

fn to_usize(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// Reads little-endian numbers and slices; every end of the bytes is an error that names the record.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    record: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], EventLogError> {
        let end = self.at.checked_add(len);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or(EventLogError::Truncated { at: self.record })?;
        self.at += len;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, EventLogError> {
        let bytes = self.take(2)?;
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, EventLogError> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
}
