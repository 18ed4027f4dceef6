//! How a host asks the agent in a VM for evidence: the wire between them. No I/O here.
//!
//! Over the virtio-serial port `org.decentcloud.agent.0` or vsock port 4040, in both directions:
//!
//! ```text
//! frame    = "DCA1" ‖ u32 BE length (at most 512 KiB) ‖ CBOR
//! request  = [id: uint, 0]                                              Hello
//!          / [id, 1, ledger: bytes ≤ 29, contract: 32 bytes, nonce: 32 bytes]   Evidence
//!          / [id, 2]                                                    Shutdown
//! response = [id, 0]                                                    Ok
//!          / [id, 1, evidence: bytes]                                   Evidence (CBOR of crate::Composite, host left out)
//!          / [id, 2, version: text, platform: text]                     Hello
//!          / [id, 3, message: text ≤ 1 KiB]                             Error
//! ```
//!
//! A virtio-serial port has no connections: whoever opens it may find the tail of an old answer. So a reader looks for
//! the magic, takes bounded frames only, and the host ignores answers to questions it didn't ask ([`Deframer`]).

#[cfg(feature = "agent")]
mod device;
mod frame;
#[cfg(feature = "agent")]
pub mod gpus;
#[cfg(feature = "agent")]
pub mod platform;
#[cfg(feature = "agent")]
mod quote_service;
#[cfg(feature = "agent")]
pub mod report;
#[cfg(feature = "agent")]
pub mod serve;
pub mod simulator;
pub mod table;
#[cfg(feature = "agent")]
mod tsm;

use minicbor::Decoder;

pub use frame::{Deframer, FRAME_LEN_MAX, FrameError, MAGIC, frame};

use crate::cbor::Writer;

/// Name of the virtio-serial port that the agent serves.
pub const AGENT_PORT: &str = "org.decentcloud.agent.0";
/// The vsock port that the agent listens on.
pub const VSOCK_PORT: u32 = 4040;
/// The longest evidence that an agent sends, in bytes: room for a VM with a full board of GPUs and NVSwitches.
pub const AGENT_EVIDENCE_LEN_MAX: usize = 480 * 1024;
/// The longest error message, in bytes.
pub const ERROR_LEN_MAX: usize = 1024;
const LEDGER_LEN_MAX: usize = 29;
const TEXT_LEN_MAX: usize = 64;

/// A question to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Comes back in the answer.
    pub id: u64,
    /// What is asked.
    pub body: RequestBody,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestBody {
    /// Who is there?
    Hello,
    /// Evidence, bound to this.
    Evidence {
        /// Canister id bytes of the ledger, 1 to 29.
        ledger: Vec<u8>,
        /// Contract id.
        contract: [u8; 32],
        /// The ledger's nonce.
        nonce: [u8; 32],
    },
    /// Shut the VM down in order.
    Shutdown,
}

/// An answer of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The question's.
    pub id: u64,
    /// The answer.
    pub body: ResponseBody,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResponseBody {
    /// Done.
    Ok,
    /// CBOR of [`crate::Composite`] without its host, not yet read.
    Evidence(Vec<u8>),
    /// Who is there.
    Hello {
        /// The agent's version.
        version: String,
        /// `sev-snp`, `tdx` or `none`.
        platform: String,
    },
    /// Why not; printable, at most [`ERROR_LEN_MAX`] bytes.
    Error(String),
}

/// A frame's content that is no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message of the guest agent: {what} (byte {at})")]
pub struct WireError {
    at: usize,
    what: &'static str,
}

impl Request {
    /// The CBOR of this request; [`frame`] puts it on the wire.
    pub fn to_cbor(&self) -> Vec<u8> {
        let mut cbor = Writer::default();
        match &self.body {
            RequestBody::Hello => cbor.array(2).uint(self.id).uint(0),
            RequestBody::Evidence {
                ledger,
                contract,
                nonce,
            } => cbor
                .array(5)
                .uint(self.id)
                .uint(1)
                .bytes(ledger)
                .bytes(contract)
                .bytes(nonce),
            RequestBody::Shutdown => cbor.array(2).uint(self.id).uint(2),
        };
        cbor.into_bytes()
    }

    /// Reads a frame's content.
    pub fn from_cbor(cbor: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader(Decoder::new(cbor));
        let len = r.array()?;
        let id = r.uint("an id")?;
        let body = match (r.uint("a kind")?, len) {
            (0, 2) => RequestBody::Hello,
            (1, 5) => RequestBody::Evidence {
                ledger: r
                    .bytes(1..=LEDGER_LEN_MAX, "a ledger's id has 1 to 29 bytes")?
                    .to_vec(),
                contract: r.bytes32("a contract's id has 32 bytes")?,
                nonce: r.bytes32("a nonce has 32 bytes")?,
            },
            (2, 2) => RequestBody::Shutdown,
            _ => return Err(r.error("an unknown request")),
        };
        r.end(cbor)?;
        Ok(Self { id, body })
    }
}

impl Response {
    /// The CBOR of this response; [`frame`] puts it on the wire. A longer error text is cut.
    pub fn to_cbor(&self) -> Vec<u8> {
        let mut cbor = Writer::default();
        match &self.body {
            ResponseBody::Ok => cbor.array(2).uint(self.id).uint(0),
            ResponseBody::Evidence(evidence) => cbor.array(3).uint(self.id).uint(1).bytes(evidence),
            ResponseBody::Hello { version, platform } => {
                cbor.array(4).uint(self.id).uint(2).text(version).text(platform)
            }
            ResponseBody::Error(message) => {
                let end = message.floor_char_boundary(ERROR_LEN_MAX);
                cbor.array(3).uint(self.id).uint(3).text(&message[..end])
            }
        };
        cbor.into_bytes()
    }

    /// Reads a frame's content. Control characters in texts from the guest are replaced.
    pub fn from_cbor(cbor: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader(Decoder::new(cbor));
        let len = r.array()?;
        let id = r.uint("an id")?;
        let body = match (r.uint("a kind")?, len) {
            (0, 2) => ResponseBody::Ok,
            (1, 3) => ResponseBody::Evidence(
                r.bytes(0..=AGENT_EVIDENCE_LEN_MAX, "evidence is at most 480 KiB long")?
                    .to_vec(),
            ),
            (2, 4) => ResponseBody::Hello {
                version: r.text(TEXT_LEN_MAX)?,
                platform: r.text(TEXT_LEN_MAX)?,
            },
            (3, 3) => ResponseBody::Error(r.text(ERROR_LEN_MAX)?),
            _ => return Err(r.error("an unknown response")),
        };
        r.end(cbor)?;
        Ok(Self { id, body })
    }
}

struct Reader<'b>(Decoder<'b>);

impl<'b> Reader<'b> {
    fn error(&self, what: &'static str) -> WireError {
        WireError {
            at: self.0.position(),
            what,
        }
    }

    fn array(&mut self) -> Result<u64, WireError> {
        self.0
            .array()
            .ok()
            .flatten()
            .ok_or_else(|| self.error("expected an array of known length"))
    }

    fn uint(&mut self, what: &'static str) -> Result<u64, WireError> {
        self.0.u64().map_err(|_| self.error(what))
    }

    fn bytes(
        &mut self,
        lengths: std::ops::RangeInclusive<usize>,
        what: &'static str,
    ) -> Result<&'b [u8], WireError> {
        self.0
            .bytes()
            .ok()
            .filter(|bytes| lengths.contains(&bytes.len()))
            .ok_or_else(|| self.error(what))
    }

    fn bytes32(&mut self, what: &'static str) -> Result<[u8; 32], WireError> {
        self.bytes(32..=32, what)?
            .try_into()
            .map_err(|_| self.error(what))
    }

    fn text(&mut self, max: usize) -> Result<String, WireError> {
        let text = self.0.str().ok().filter(|text| text.len() <= max);
        let text = text.ok_or_else(|| self.error("expected a short text"))?;
        Ok(text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect())
    }

    fn end(&self, cbor: &[u8]) -> Result<(), WireError> {
        if self.0.position() == cbor.len() {
            Ok(())
        } else {
            Err(self.error("bytes behind the message"))
        }
    }
}
