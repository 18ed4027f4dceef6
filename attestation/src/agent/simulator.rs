//! The simulator's wire: a virtio-serial port ([`SIMULATOR_PORT`]) behind which a simulated SNP chip answers.
//!
//! In the agent's frames, `[1, report data]` is answered by `[1, report, certificate table]`. Real machines have no such
//! port, and a VM whose memory is protected never asks it ([`super::platform`]).

use minicbor::Decoder;

use crate::cbor::Writer;

/// Name of the port.
pub const SIMULATOR_PORT: &str = "org.decentcloud.snp-sim.0";
const REPORT: u64 = 1;

/// The guest's side: asks for a report.
pub fn question(report_data: &[u8; 64]) -> Vec<u8> {
    let mut question = Writer::default();
    question.array(2).uint(REPORT).bytes(report_data);
    question.into_bytes()
}

/// The guest's side: report and certificate table of an answer.
pub fn read_answer(content: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut d = Decoder::new(content);
    if d.array().ok()? != Some(3) || d.u64().ok()? != REPORT {
        return None;
    }
    Some((d.bytes().ok()?.to_vec(), d.bytes().ok()?.to_vec()))
}

/// The simulator's side: the report data that a guest asks about.
pub fn read_question(content: &[u8]) -> Option<[u8; 64]> {
    let mut d = Decoder::new(content);
    if d.array().ok()? != Some(2) || d.u64().ok()? != REPORT {
        return None;
    }
    d.bytes().ok()?.try_into().ok()
}

/// The simulator's side: its answer.
pub fn answer(report: &[u8], table: &[u8]) -> Vec<u8> {
    let mut answer = Writer::default();
    answer.array(3).uint(REPORT).bytes(report).bytes(table);
    answer.into_bytes()
}
