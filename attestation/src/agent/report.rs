//! Where a guest gets its report or quote from.
//!
//! | platform | asked first | and then |
//! |---|---|---|
//! | SEV-SNP | configfs-tsm | `/dev/sev-guest`, with the host's certificate table |
//! | TDX | `/dev/tdx_guest` and the host's quote service over vsock (milliseconds) | configfs-tsm (about a second) |
//! | simulated | the simulator's virtio-serial port | |
//!
//! Whatever answers, the report must be over what was asked. If nothing does, the error names what each of them said.
//! A TD's firmware leaves its event log where ACPI's CCEL table says; the kernel shows it as a file.
//!
//! [`Platform`] decides whom to ask: a VM whose memory is protected never asks a port that its host gave it.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha384};

use super::device::{self, SEV_GUEST, TD_REPORT_LEN, TDX_GUEST};
use super::platform::{Platform, PlatformError};
use super::table::Table;
use super::tsm::{self, TSM, TsmReport};
use super::{Deframer, frame, quote_service, simulator};
use crate::evidence::EVENT_LOG_LEN_MAX;
use crate::snp::Report;
use crate::{CpuEvidence, tdx};

const CCEL: &str = "/sys/firmware/acpi/tables/data/CCEL";
/// How many bytes of a CCEL area's padding are kept: the last record's data may end with the same byte.
const CCEL_PADDING: usize = 64;
/// `REPORTMACSTRUCT.REPORTTYPE.TYPE` of a TD's report (Intel 348551, TDREPORT_STRUCT; all offsets are its).
const TD_REPORT_TYPE: u8 = 0x81;

/// No report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Nobody gives one; what each that was asked said.
    #[error("no report from {}", Named(.0))]
    NoSource(Vec<(&'static str, String)>),
    /// The launch was bound to something that is no contract id.
    #[error("MRCONFIGID of this TD is no contract id: {0}, where the last 16 bytes should be zeroes")]
    NoContract(String),
    /// Unknown whom to ask.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// The answer is not one.
    #[error("{0}")]
    Malformed(&'static str),
}

struct Named<'a>(&'a [(&'static str, String)]);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.0.iter().map(|(source, why)| format!("{source} ({why})"));
        f.write_str(&parts.collect::<Vec<_>>().join(", nor from "))
    }
}

/// Everything that may answer in a VM; tests put others in its place.
trait Sources {
    fn tsm(&self, report_data: &[u8; 64]) -> Result<TsmReport, String>;
    /// Report and certificate table.
    fn sev_guest(&self, report_data: &[u8; 64]) -> Result<(Vec<u8>, Vec<u8>), String>;
    fn tdx_guest(&self, report_data: &[u8; 64]) -> Result<[u8; TD_REPORT_LEN], String>;
    fn quote_service(&self, td_report: &[u8; TD_REPORT_LEN]) -> Result<Vec<u8>, String>;
    fn simulator(&self, report_data: &[u8; 64]) -> Result<(Vec<u8>, Vec<u8>), String>;
    /// The CCEL area.
    fn event_log(&self) -> Option<Vec<u8>>;
}

/// This VM.
struct ThisMachine;

impl Sources for ThisMachine {
    fn tsm(&self, report_data: &[u8; 64]) -> Result<TsmReport, String> {
        tsm::report(Path::new(TSM), report_data).map_err(|e| e.to_string())
    }

    fn sev_guest(&self, report_data: &[u8; 64]) -> Result<(Vec<u8>, Vec<u8>), String> {
        device::snp_report(report_data).map_err(|e| e.to_string())
    }

    fn tdx_guest(&self, report_data: &[u8; 64]) -> Result<[u8; TD_REPORT_LEN], String> {
        device::td_report(report_data).map_err(|e| e.to_string())
    }

    fn quote_service(&self, td_report: &[u8; TD_REPORT_LEN]) -> Result<Vec<u8>, String> {
        quote_service::quote(td_report).map_err(|e| e.to_string())
    }

    fn simulator(&self, report_data: &[u8; 64]) -> Result<(Vec<u8>, Vec<u8>), String> {
        ask_simulator(report_data).map_err(|e| e.to_string())
    }

    fn event_log(&self) -> Option<Vec<u8>> {
        fs::read(CCEL).ok()
    }
}

/// The evidence of this VM's CPU over `report_data`, with the certificates or the event log that belong to it.
pub fn cpu_evidence(platform: Platform, report_data: &[u8; 64]) -> Result<CpuEvidence, ReportError> {
    evidence_of(&ThisMachine, platform, report_data)
}

/// The contract id that the launch of this VM was bound to: `HOST_DATA`, or `MRCONFIGID` less its padding. `None`: an
/// ordinary VM, of which nobody knows.
///
/// No signature is checked, because none is needed. On SEV-SNP, kernel and chip speak over a channel whose key the launch
/// gave to this VM alone (AMD 56860, guest messages), so the host can drop an answer, but can't make one. On TDX the
/// answer is the TDX module's own, to a TDCALL that never leaves the CPU; quotes, which come by way of the host, are of
/// no use here.
pub fn launched_for() -> Result<Option<[u8; 32]>, ReportError> {
    contract_in(&ThisMachine, Platform::detect()?)
}

fn contract_in(sources: &impl Sources, platform: Platform) -> Result<Option<[u8; 32]>, ReportError> {
    let question = [0; 64];
    match platform {
        Platform::Plain => Ok(None),
        Platform::SevSnp | Platform::Simulated => {
            let CpuEvidence::SevSnp { report, .. } = evidence_of(sources, platform, &question)? else {
                return Err(ReportError::Malformed(
                    "an SNP guest got something else than a report",
                ));
            };
            let report = Report::parse(&report);
            let report = report.map_err(|_| ReportError::Malformed("the report is malformed"))?;
            Ok(Some(report.host_data()))
        }
        Platform::Tdx => {
            let report = sources
                .tdx_guest(&question)
                .map_err(|why| ReportError::NoSource(vec![(TDX_GUEST, why)]))?;
            let config = mr_config_id(&report, &question)?;
            match config.split_first_chunk() {
                Some((contract, padding)) if padding.iter().all(|byte| *byte == 0) => Ok(Some(*contract)),
                _ => Err(ReportError::NoContract(hex::encode(config))),
            }
        }
    }
}

/// `MRCONFIGID` of a TDREPORT that is whole: of a TD, over what was asked, and its parts belong together.
fn mr_config_id(report: &[u8; TD_REPORT_LEN], question: &[u8; 64]) -> Result<[u8; 48], ReportError> {
    let malformed = ReportError::Malformed;
    let (mac, td_info) = (&report[..256], &report[512..]);
    if mac[0] != TD_REPORT_TYPE {
        return Err(malformed("the TDREPORT isn't one of a TD"));
    }
    if mac[128..192] != question[..] {
        return Err(malformed("the TDREPORT answers another question"));
    }
    // TEE_INFO_HASH is under the MAC, TDINFO_STRUCT only by way of it.
    if mac[80..128] != Sha384::digest(td_info)[..] {
        return Err(malformed("TEE_INFO_HASH of the TDREPORT isn't of its TDINFO"));
    }
    // Behind ATTRIBUTES, XFAM and MRTD.
    td_info[64..112]
        .try_into()
        .map_err(|_| malformed("the TDREPORT is too short"))
}

fn evidence_of(
    sources: &impl Sources,
    platform: Platform,
    report_data: &[u8; 64],
) -> Result<CpuEvidence, ReportError> {
    type Source<'a> = (&'static str, &'a dyn Fn() -> Result<CpuEvidence, String>);
    let tsm = || from_tsm(sources.tsm(report_data)?, sources);
    let sev_guest = || sources.sev_guest(report_data).map(snp);
    let quote_service = || {
        let report = sources
            .tdx_guest(report_data)
            .map_err(|why| format!("{TDX_GUEST}: {why}"))?;
        Ok(td(sources.quote_service(&report)?, sources))
    };
    let simulator = || sources.simulator(report_data).map(snp);
    const TSM: &str = "configfs-tsm";
    let ways: &[Source<'_>] = match platform {
        Platform::SevSnp => &[(TSM, &tsm), (SEV_GUEST, &sev_guest)],
        Platform::Tdx => &[("the host's quote service", &quote_service), (TSM, &tsm)],
        Platform::Simulated => &[("the simulator", &simulator)],
        Platform::Plain => return Ok(CpuEvidence::None),
    };
    let mut failed = Vec::new();
    for (source, ask) in ways {
        match ask().and_then(|evidence| answers(evidence, platform, report_data)) {
            Ok(evidence) => return Ok(evidence),
            Err(why) => failed.push((*source, why)),
        }
    }
    Err(ReportError::NoSource(failed))
}

/// The evidence, if it is of this platform and over what was asked.
fn answers(evidence: CpuEvidence, platform: Platform, question: &[u8; 64]) -> Result<CpuEvidence, String> {
    let answered = match (&evidence, platform) {
        (CpuEvidence::SevSnp { report, .. }, Platform::SevSnp | Platform::Simulated) => {
            Report::parse(report).ok().map(|report| report.report_data())
        }
        (CpuEvidence::Tdx { quote, .. }, Platform::Tdx) => tdx::report_data(quote),
        _ => return Err("evidence of another platform".to_owned()),
    };
    match answered {
        Some(data) if data == *question => Ok(evidence),
        Some(_) => Err("its report answers another question".to_owned()),
        None => Err("its report is malformed".to_owned()),
    }
}

fn from_tsm(answer: TsmReport, sources: &impl Sources) -> Result<CpuEvidence, String> {
    match answer.provider.as_str() {
        "sev_guest" => Ok(snp((answer.report, answer.auxiliary))),
        "tdx_guest" => Ok(td(answer.report, sources)),
        other => Err(format!("its provider is {other:?}, not sev_guest or tdx_guest")),
    }
}

/// Hosts that give no certificates have an empty table; the verifier's caller then brings them.
fn snp((report, table): (Vec<u8>, Vec<u8>)) -> CpuEvidence {
    let Table { certificates, faults } = Table::parse(&table);
    for fault in faults {
        eprintln!("attest: the host's certificate table: {fault}");
    }
    CpuEvidence::SevSnp { report, certificates }
}

/// Firmware without measured boot has no log; then the registers stand for themselves.
fn td(quote: Vec<u8>, sources: &impl Sources) -> CpuEvidence {
    let event_log = sources.event_log().map(without_padding);
    let event_log = event_log.filter(|log| (1..=EVENT_LOG_LEN_MAX).contains(&log.len()));
    CpuEvidence::Tdx { quote, event_log }
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

fn ask_simulator(report_data: &[u8; 64]) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut port = open_port(simulator::SIMULATOR_PORT, Duration::from_secs(1))?;
    port.write_all(&frame(&simulator::question(report_data)))?;
    let (mut frames, mut buffer) = (Deframer::new(), [0; 4096]);
    loop {
        match frames.next_frame() {
            Some(Ok(content)) => {
                return simulator::read_answer(&content).ok_or(io::ErrorKind::InvalidData.into());
            }
            Some(Err(_)) => continue,
            None => {}
        }
        let len = port.read(&mut buffer)?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        frames.push(&buffer[..len]);
    }
}

#[cfg(test)]
mod tests;
