//! A TDX quote from Intel's quote generation service (QGS) on the host, over vsock.
//!
//! The kernel's own way to a quote (configfs-tsm) waits for the host in steps of a second; a direct question takes
//! milliseconds. The messages are those of Intel's `qgs_msg_lib` 1.x, as `libtdx_attest` sends them, all little-endian
//! but for the length in front:
//!
//! ```text
//! frame    = u32 BE length ‖ message
//! message  = major u16 ‖ minor u16 ‖ type u32 ‖ size of the message u32 ‖ error u32 ‖ body
//! request  = type 0: report size u32 ‖ id list size u32 (0: the service chooses) ‖ TDREPORT
//! response = type 1: selected id size u32 ‖ quote size u32 ‖ selected id ‖ quote
//! ```
//!
//! The host answers whatever it likes: lengths are bounded, and what comes is no more than a claim until somebody
//! verified it.

use std::io::{self, Read, Write};
use std::time::Duration;

use vsock::{VMADDR_CID_HOST, VsockStream};

use super::device::TD_REPORT_LEN;

/// Where Intel's service listens unless it is told otherwise (`/etc/qgs.conf`).
pub(super) const QGS_PORT: u32 = 4050;
const VERSION: [u16; 2] = [1, 1];
const GET_QUOTE_REQUEST: u32 = 0;
const GET_QUOTE_RESPONSE: u32 = 1;
const HEADER: usize = 16;
/// Quotes have about 5 KiB.
const MESSAGE_LEN_MAX: u32 = 64 * 1024;
/// For each read and write.
const PATIENCE: Duration = Duration::from_secs(5);

/// No quote.
#[derive(Debug, thiserror::Error)]
pub(super) enum QuoteServiceError {
    #[error("cannot {what}: {why}")]
    Io { what: &'static str, why: io::Error },
    #[error("it answers with error {0:#x}")]
    Service(u32),
    #[error("its answer is malformed: {0}")]
    Malformed(&'static str),
}

/// A quote over a TDREPORT from the host's service.
pub(super) fn quote(td_report: &[u8; TD_REPORT_LEN]) -> Result<Vec<u8>, QuoteServiceError> {
    let io = |what| move |why| QuoteServiceError::Io { what, why };
    let mut stream = VsockStream::connect_with_cid_port(VMADDR_CID_HOST, QGS_PORT).map_err(io("connect"))?;
    let patience = stream.set_read_timeout(Some(PATIENCE));
    patience
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
        .map_err(io("set a time limit"))?;
    ask(&mut stream, td_report)
}

fn ask(
    stream: &mut (impl Read + Write),
    td_report: &[u8; TD_REPORT_LEN],
) -> Result<Vec<u8>, QuoteServiceError> {
    let io = |what| move |why| QuoteServiceError::Io { what, why };
    stream.write_all(&request(td_report)).map_err(io("ask"))?;
    let mut len = [0; 4];
    stream.read_exact(&mut len).map_err(io("read"))?;
    let len = u32::from_be_bytes(len);
    if len > MESSAGE_LEN_MAX {
        return Err(QuoteServiceError::Malformed("it is too long"));
    }
    let mut message = vec![0; len as usize];
    stream.read_exact(&mut message).map_err(io("read"))?;
    quote_in(&message).map(<[u8]>::to_vec)
}

fn request(td_report: &[u8; TD_REPORT_LEN]) -> Vec<u8> {
    let body = 8 + TD_REPORT_LEN;
    let len = (HEADER + body) as u32;
    let mut frame = len.to_be_bytes().to_vec();
    frame.extend(VERSION.into_iter().flat_map(u16::to_le_bytes));
    for number in [GET_QUOTE_REQUEST, len, 0, TD_REPORT_LEN as u32, 0] {
        frame.extend(number.to_le_bytes());
    }
    frame.extend(td_report);
    frame
}

fn quote_in(message: &[u8]) -> Result<&[u8], QuoteServiceError> {
    let malformed = QuoteServiceError::Malformed;
    let (header, body) = message
        .split_at_checked(HEADER)
        .ok_or(malformed("it ends in its header"))?;
    let number =
        |from: &[u8], at: usize| u32::from_le_bytes([from[at], from[at + 1], from[at + 2], from[at + 3]]);
    if u16::from_le_bytes([header[0], header[1]]) != VERSION[0] {
        return Err(malformed("another major version"));
    }
    if number(header, 4) != GET_QUOTE_RESPONSE {
        return Err(malformed("another type of message"));
    }
    if number(header, 8) as usize != message.len() {
        return Err(malformed("its size isn't the frame's"));
    }
    match number(header, 12) {
        0 => {}
        error => return Err(QuoteServiceError::Service(error)),
    }
    let (sizes, rest) = body
        .split_at_checked(8)
        .ok_or(malformed("it ends before its sizes"))?;
    let (_, quote) = rest
        .split_at_checked(number(sizes, 0) as usize)
        .ok_or(malformed("the selected id is cut off"))?;
    if quote.len() != number(sizes, 4) as usize {
        return Err(malformed("the quote's size isn't what follows"));
    }
    if quote.is_empty() {
        return Err(malformed("an empty quote"));
    }
    Ok(quote)
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    /// A response of the service, in its frame.
    fn response(error: u32, id: &[u8], quote: &[u8]) -> Vec<u8> {
        let len = (HEADER + 8 + id.len() + quote.len()) as u32;
        let mut frame = len.to_be_bytes().to_vec();
        frame.extend([1, 0, 1, 0, 1, 0, 0, 0]);
        for number in [len, error, id.len() as u32, quote.len() as u32] {
            frame.extend(number.to_le_bytes());
        }
        frame.extend(id);
        frame.extend(quote);
        frame
    }

    /// What comes of a service that answers with these bytes and hangs up.
    fn asked(answer: Vec<u8>) -> Result<Vec<u8>, QuoteServiceError> {
        let (mut guest, mut host) = UnixStream::pair().unwrap();
        let service = thread::spawn(move || {
            let mut question = vec![0; 4 + 1048];
            host.read_exact(&mut question).unwrap();
            host.write_all(&answer).unwrap();
            question
        });
        let quote = ask(&mut guest, &[0x5a; TD_REPORT_LEN]);
        let question = service.join().unwrap();
        // The bytes that libtdx_attest sends for the same report.
        let mut want = vec![
            0, 0, 4, 0x18, 1, 0, 1, 0, 0, 0, 0, 0, 0x18, 4, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0,
        ];
        want.extend([0x5a; TD_REPORT_LEN]);
        assert_eq!(question, want);
        quote
    }

    #[test]
    fn the_service_is_asked_as_intels_library_asks_it() {
        assert_eq!(asked(response(0, b"", b"the quote")).unwrap(), b"the quote");
        assert_eq!(asked(response(0, &[7; 16], b"the quote")).unwrap(), b"the quote");
    }

    #[test]
    fn an_answer_that_is_none_is_refused_with_its_reason() {
        let good = response(0, b"id", b"the quote");
        let with = |at: usize, bytes: &[u8]| {
            let mut answer = good.clone();
            answer[at..at + bytes.len()].copy_from_slice(bytes);
            answer
        };
        for (answer, why) in [
            (response(0x12001, b"", b""), "it answers with error 0x12001"),
            (with(0, &[0xff; 4]), "its answer is malformed: it is too long"),
            (
                vec![0, 0, 0, 3, 1, 0, 1],
                "its answer is malformed: it ends in its header",
            ),
            (with(4, &[2]), "its answer is malformed: another major version"),
            (with(8, &[5]), "its answer is malformed: another type of message"),
            (
                with(12, &[0]),
                "its answer is malformed: its size isn't the frame's",
            ),
            (
                with(20, &[0xff; 4]),
                "its answer is malformed: the selected id is cut off",
            ),
            (
                with(24, &[8]),
                "its answer is malformed: the quote's size isn't what follows",
            ),
            (
                with(24, &[0xff; 4]),
                "its answer is malformed: the quote's size isn't what follows",
            ),
            (response(0, b"id", b""), "its answer is malformed: an empty quote"),
            (good[..30].to_vec(), "cannot read: failed to fill whole buffer"),
            (vec![0, 0], "cannot read: failed to fill whole buffer"),
        ] {
            let error = asked(answer).unwrap_err();
            assert_eq!(error.to_string(), why);
        }
        let mut short = response(0, b"", b"q");
        short.drain(20..); // a header and nothing behind it
        short[..4].copy_from_slice(&16u32.to_be_bytes());
        short[12..16].copy_from_slice(&16u32.to_le_bytes());
        let error = asked(short).unwrap_err();
        assert_eq!(
            error.to_string(),
            "its answer is malformed: it ends before its sizes"
        );
    }
}
