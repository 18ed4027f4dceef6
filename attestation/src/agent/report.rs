//! Where a guest gets its report or quote from: the kernel's configfs-tsm (Linux 6.7 and newer; `Documentation/ABI/
//! testing/configfs-tsm-report`), or, in a simulated VM, the simulator's virtio-serial port. No ioctl, no `unsafe`.
//!
//! A TD's firmware leaves its event log where ACPI's CCEL table says; the kernel shows it as a file.
//!
//! [`Platform`] decides whom to ask: a VM whose memory is protected never asks a port that its host gave it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use minicbor::Decoder;

use super::platform::{Platform, PlatformError};
use super::{Deframer, SIMULATOR_PORT, frame};
use crate::CpuEvidence;
use crate::cbor::Writer;
use crate::evidence::EVENT_LOG_LEN_MAX;
use crate::snp::Report;

const TSM: &str = "/sys/kernel/config/tsm/report";
const CCEL: &str = "/sys/firmware/acpi/tables/data/CCEL";
/// How many bytes of a CCEL area's padding are kept: the last record's data may end with the same byte.
const CCEL_PADDING: usize = 64;
/// One entry of the certificate table of an extended guest request (AMD 56421, GHCB, 4.1.8.1): GUID, offset, length.
const TABLE_ENTRY: usize = 24;

/// The simulator's one message.
const SIMULATOR_REPORT: u64 = 1;

/// Where reports come from in this VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportSource {
    /// The kernel.
    ConfigfsTsm,
    /// The simulator's port.
    Simulator,
}

/// No report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The kernel or the port gave an error.
    #[error("cannot {what}: {why}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        why: io::Error,
    },
    /// Another kind of platform.
    #[error("the kernel's report provider is {0:?}; this agent knows sev_guest and tdx_guest")]
    Provider(String),
    /// A quote comes by way of the host, so inside the VM it says nothing before somebody verified it.
    #[error("this is a TDX guest, and this image can't read MRCONFIGID from the TDX module yet")]
    LaunchOfTdx,
    /// Unknown whom to ask.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// The answer is not one.
    #[error("the platform's answer is malformed")]
    Malformed,
}

/// What this VM's launch was bound to: `HOST_DATA` of a fresh report. `None`: an ordinary VM, of which nobody knows.
///
/// The report's signature isn't checked. On SEV-SNP none is needed: kernel and chip speak over a channel whose key the
/// launch gave to this VM alone (AMD 56860, guest messages), so the host can drop an answer, but can't make one.
pub fn host_data() -> Result<Option<[u8; 32]>, ReportError> {
    let source = match Platform::detect()? {
        Platform::SevSnp => ReportSource::ConfigfsTsm,
        Platform::Tdx => return Err(ReportError::LaunchOfTdx),
        Platform::Simulated => ReportSource::Simulator,
        Platform::Plain => return Ok(None),
    };
    let question = [0; 64];
    let CpuEvidence::SevSnp { report, .. } = source.report(&question)? else {
        return Err(ReportError::Malformed);
    };
    let report = Report::parse(&report).map_err(|_| ReportError::Malformed)?;
    if report.report_data() != question {
        return Err(ReportError::Malformed);
    }
    Ok(Some(report.host_data()))
}

impl ReportSource {
    /// Whom a VM of this kind asks; `None`: nobody, it is an ordinary one.
    pub fn of(platform: Platform) -> Option<Self> {
        match platform {
            Platform::SevSnp | Platform::Tdx => Some(Self::ConfigfsTsm),
            Platform::Simulated => Some(Self::Simulator),
            Platform::Plain => None,
        }
    }

    /// A report or quote over `report_data`, with the certificates or the event log that belong to it.
    pub fn report(self, report_data: &[u8; 64]) -> Result<CpuEvidence, ReportError> {
        match self {
            Self::ConfigfsTsm => configfs(Path::new(TSM), Path::new(CCEL), report_data),
            Self::Simulator => {
                let (report, table) = simulator(report_data)?;
                let certificates = certificates(&table);
                Ok(CpuEvidence::SevSnp { report, certificates })
            }
        }
    }
}

fn io(what: &'static str) -> impl Fn(io::Error) -> ReportError {
    move |why| ReportError::Io { what, why }
}

/// An entry of configfs-tsm; removed when dropped.
struct Entry(PathBuf);

impl Drop for Entry {
    fn drop(&mut self) {
        // Nothing depends on it: a leftover entry costs a few bytes.
        let _ = fs::remove_dir(&self.0);
    }
}

fn configfs(tsm: &Path, ccel: &Path, report_data: &[u8; 64]) -> Result<CpuEvidence, ReportError> {
    let entry = Entry(tsm.join("dc-agent"));
    match fs::create_dir(&entry.0) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(io("create a report entry")(e)),
        _ => {}
    }
    fs::write(entry.0.join("inblob"), report_data).map_err(io("write the report data"))?;
    let provider = fs::read_to_string(entry.0.join("provider")).map_err(io("read the provider"))?;
    let outblob = || fs::read(entry.0.join("outblob")).map_err(io("read the report"));
    match provider.trim() {
        "sev_guest" => {
            let report = outblob()?;
            // Hosts that give no certificates have an empty table; the verifier's caller then brings them.
            let table = fs::read(entry.0.join("auxblob")).unwrap_or_default();
            let certificates = certificates(&table);
            Ok(CpuEvidence::SevSnp { report, certificates })
        }
        "tdx_guest" => {
            let quote = outblob()?;
            // Firmware without measured boot has no log; then the registers stand for themselves.
            let event_log = fs::read(ccel).ok().map(without_padding);
            let event_log = event_log.filter(|log| (1..=EVENT_LOG_LEN_MAX).contains(&log.len()));
            Ok(CpuEvidence::Tdx { quote, event_log })
        }
        other => Err(ReportError::Provider(other.to_owned())),
    }
}

/// A CCEL area without most of the `FF` behind its last record: it has 64 KiB and more, mostly empty.
fn without_padding(mut area: Vec<u8>) -> Vec<u8> {
    let used = area
        .iter()
        .rposition(|byte| *byte != 0xff)
        .map_or(0, |last| last + 1);
    area.truncate(if used == 0 { 0 } else { used + CCEL_PADDING });
    area
}

/// Opens a virtio-serial port by its name, waiting until it appears or `within` has passed.
pub fn open_port(name: &str, within: Duration) -> io::Result<File> {
    let path = Path::new("/dev/virtio-ports").join(name);
    let deadline = Instant::now() + within;
    loop {
        match OpenOptions::new().read(true).write(true).open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(50));
            }
            other => return other,
        }
    }
}

/// The simulator's wire: `[1, report_data]` is answered by `[1, report, certificate table]`, in the agent's frames.
fn simulator(report_data: &[u8; 64]) -> Result<(Vec<u8>, Vec<u8>), ReportError> {
    let mut port =
        open_port(SIMULATOR_PORT, Duration::from_secs(1)).map_err(io("open the simulator's port"))?;
    let mut question = Writer::default();
    question.array(2).uint(SIMULATOR_REPORT).bytes(report_data);
    port.write_all(&frame(&question.into_bytes()))
        .map_err(io("ask the simulator"))?;
    let (mut frames, mut buffer) = (Deframer::new(), [0; 4096]);
    loop {
        match frames.next_frame() {
            Some(Ok(content)) => return sim_answer(&content).ok_or(ReportError::Malformed),
            Some(Err(_)) => continue,
            None => {}
        }
        let len = port.read(&mut buffer).map_err(io("read from the simulator"))?;
        if len == 0 {
            return Err(io("read from the simulator")(io::ErrorKind::UnexpectedEof.into()));
        }
        frames.push(&buffer[..len]);
    }
}

/// The simulator's side: the report data that a guest asks about.
pub fn simulator_question(content: &[u8]) -> Option<[u8; 64]> {
    let mut d = Decoder::new(content);
    if d.array().ok()? != Some(2) || d.u64().ok()? != SIMULATOR_REPORT {
        return None;
    }
    d.bytes().ok()?.try_into().ok()
}

/// The simulator's side: its answer.
pub fn simulator_answer(report: &[u8], table: &[u8]) -> Vec<u8> {
    let mut answer = Writer::default();
    answer.array(3).uint(SIMULATOR_REPORT).bytes(report).bytes(table);
    answer.into_bytes()
}

fn sim_answer(content: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut d = Decoder::new(content);
    if d.array().ok()? != Some(3) || d.u64().ok()? != SIMULATOR_REPORT {
        return None;
    }
    Some((d.bytes().ok()?.to_vec(), d.bytes().ok()?.to_vec()))
}

/// The DER certificates of a certificate table, whatever their GUIDs say: the verifier sorts them.
fn certificates(table: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for entry in table.chunks_exact(TABLE_ENTRY) {
        if entry.iter().all(|b| *b == 0) {
            break;
        }
        let number =
            |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]) as usize;
        let (offset, len) = (number(16), number(20));
        let Some(der) = offset.checked_add(len).and_then(|end| table.get(offset..end)) else {
            break;
        };
        if der.first() == Some(&0x30) && found.len() < 4 {
            found.push(der.to_vec());
        }
    }
    found
}

/// A certificate table with these certificates: the VEK first, then its issuers.
pub fn certificate_table(certificates: &[Vec<u8>]) -> Vec<u8> {
    /// VCEK, ASK, ARK, as the GHCB specification names them.
    const GUIDS: [u128; 3] = [
        0x63da758d_e664_4564_adc5_f4b93be8accd,
        0x4ab7b379_bbac_4fe4_a02f_05aef327c782,
        0xc0b406a4_a803_4952_9743_3fb6014cd0ae,
    ];
    let mut offset = TABLE_ENTRY * (certificates.len().min(GUIDS.len()) + 1);
    let (mut table, mut bodies) = (Vec::new(), Vec::new());
    for (guid, der) in GUIDS.iter().zip(certificates) {
        table.extend(guid.to_be_bytes());
        table.extend((offset as u32).to_le_bytes());
        table.extend((der.len() as u32).to_le_bytes());
        bodies.extend_from_slice(der);
        offset += der.len();
    }
    table.extend([0; TABLE_ENTRY]);
    table.extend(bodies);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder in the shape of configfs-tsm, as far as a file system can be one: the entry is there already.
    fn tsm(provider: &str, files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let entry = folder.path().join("dc-agent");
        fs::create_dir(&entry).unwrap();
        fs::write(entry.join("provider"), format!("{provider}\n")).unwrap();
        for (name, content) in files {
            fs::write(entry.join(name), content).unwrap();
        }
        folder
    }

    #[test]
    fn the_kernels_provider_says_what_the_report_is() {
        let no_log = Path::new("/nonexistent");
        let table = certificate_table(&[vec![0x30, 1, 2]]);
        let snp = tsm("sev_guest", &[("outblob", b"report"), ("auxblob", &table)]);
        let want = CpuEvidence::SevSnp {
            report: b"report".to_vec(),
            certificates: vec![vec![0x30, 1, 2]],
        };
        assert_eq!(configfs(snp.path(), no_log, &[7; 64]).unwrap(), want);
        let asked = fs::read(snp.path().join("dc-agent/inblob")).unwrap();
        assert_eq!(asked, [7; 64]);

        let tdx = tsm("tdx_guest", &[("outblob", b"quote")]);
        let quote = b"quote".to_vec();
        let want = CpuEvidence::Tdx {
            quote: quote.clone(),
            event_log: None,
        };
        assert_eq!(configfs(tdx.path(), no_log, &[7; 64]).unwrap(), want);
        let log = tdx.path().join("CCEL");
        for (area, want) in [
            (
                [&b"log\xff"[..], &[0xff; 65536]].concat(),
                Some([&b"log"[..], &[0xff; 64]].concat()),
            ),
            (b"log".to_vec(), Some(b"log".to_vec())),
            (vec![0xff; 100], None),
            (vec![], None),
            (vec![1; EVENT_LOG_LEN_MAX + 1], None),
        ] {
            fs::write(&log, area).unwrap();
            let want = CpuEvidence::Tdx {
                quote: quote.clone(),
                event_log: want,
            };
            assert_eq!(configfs(tdx.path(), &log, &[7; 64]).unwrap(), want);
        }

        let arm = tsm("arm_cca_guest", &[("outblob", b"token")]);
        assert!(matches!(
            configfs(arm.path(), no_log, &[7; 64]),
            Err(ReportError::Provider(_))
        ));
        assert!(configfs(no_log, no_log, &[7; 64]).is_err());
    }

    #[test]
    fn a_certificate_table_gives_back_what_went_in_and_lies_are_cut_off() {
        let certificates_in = vec![vec![0x30, 1, 2], vec![0x30, 3], vec![0x30]];
        let table = certificate_table(&certificates_in);
        assert_eq!(certificates(&table), certificates_in);
        let mut lying = table.clone();
        lying[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(certificates(&lying), Vec::<Vec<u8>>::new());
        assert_eq!(certificates(&[]), Vec::<Vec<u8>>::new());
    }
}
