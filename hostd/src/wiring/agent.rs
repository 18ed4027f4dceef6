//! Asks the agent in a VM for evidence.
//!
//! Everything behind the socket is the tenant's: it may be silent, babble, send a length of 1 GiB, or never stop. So a
//! frame has at most 512 KiB (`attestation::agent`), one ask reads at most [`READ_MAX`] bytes in all, and the caller's
//! time limit covers connecting, writing and reading.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use attestation::agent::{Deframer, Request, RequestBody, Response, ResponseBody, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::ports::{AgentError, AgentPort, EvidenceAsk};
use crate::vmm::AgentChannel;

/// Bytes that one ask reads at most: old answers and noise before the one we want.
const READ_MAX: usize = 2 * 1024 * 1024;

/// The longest line that Cloud Hypervisor answers to `CONNECT`.
const CONNECT_LINE_MAX: usize = 64;

/// Real guest agents.
pub struct GuestAgent {
    next_id: AtomicU64,
}

impl Default for GuestAgent {
    fn default() -> Self {
        // A virtio-serial port may hold answers to questions of a hostd before this one: start somewhere else each time.
        let start = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            next_id: AtomicU64::new(start.as_nanos() as u64),
        }
    }
}

fn silent(what: &str, error: &std::io::Error) -> AgentError {
    AgentError::Silent(format!("{what}: {error}"))
}

impl GuestAgent {
    async fn open(channel: &AgentChannel) -> Result<UnixStream, AgentError> {
        let connect = async |path: &Path| {
            UnixStream::connect(path)
                .await
                .map_err(|e| silent("cannot connect", &e))
        };
        match channel {
            AgentChannel::Serial(path) => connect(path).await,
            AgentChannel::Vsock { socket, port } => {
                let mut stream = connect(socket).await?;
                let hello = format!("CONNECT {port}\n");
                stream
                    .write_all(hello.as_bytes())
                    .await
                    .map_err(|e| silent("cannot write", &e))?;
                let mut line = Vec::new();
                // Byte by byte: what follows the line is the agent's.
                while line.last() != Some(&b'\n') {
                    let byte = stream
                        .read_u8()
                        .await
                        .map_err(|e| silent("nobody listens on the vsock port", &e))?;
                    line.push(byte);
                    if line.len() > CONNECT_LINE_MAX {
                        return Err(AgentError::Garbage("the vsock proxy's answer is too long".into()));
                    }
                }
                if line.starts_with(b"OK ") {
                    Ok(stream)
                } else {
                    Err(AgentError::Silent("the vsock proxy refused the port".into()))
                }
            }
        }
    }

    async fn ask(&self, channel: &AgentChannel, ask: &EvidenceAsk) -> Result<Vec<u8>, AgentError> {
        let mut stream = Self::open(channel).await?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let body = RequestBody::Evidence {
            ledger: ask.ledger.clone(),
            contract: ask.contract.0,
            nonce: ask.nonce.0,
        };
        let request = frame(&Request { id, body }.to_cbor());
        stream
            .write_all(&request)
            .await
            .map_err(|e| silent("cannot write", &e))?;
        let mut deframer = Deframer::new();
        let (mut read, mut noise) = (0, None);
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let count = stream
                .read(&mut buffer)
                .await
                .map_err(|e| silent("cannot read", &e))?;
            if count == 0 {
                return Err(noise.unwrap_or_else(|| AgentError::Silent("it closed the connection".into())));
            }
            read += count;
            deframer.push(&buffer[..count]);
            while let Some(content) = deframer.next_frame() {
                let response = content
                    .map_err(|e| e.to_string())
                    .and_then(|content| Response::from_cbor(&content).map_err(|e| e.to_string()));
                match response {
                    Ok(response) if response.id != id => {} // to somebody else's question
                    Ok(Response {
                        body: ResponseBody::Evidence(evidence),
                        ..
                    }) => return Ok(evidence),
                    Ok(Response {
                        body: ResponseBody::Error(text),
                        ..
                    }) => return Err(AgentError::Reported(text)),
                    Ok(_) => {
                        return Err(AgentError::Garbage(
                            "an answer to another kind of question".into(),
                        ));
                    }
                    Err(why) => noise = Some(AgentError::Garbage(why)), // the deframer finds the next magic
                }
            }
            if read > READ_MAX {
                return Err(AgentError::Garbage(format!(
                    "{read} bytes and no answer among them"
                )));
            }
        }
    }
}

#[async_trait]
impl AgentPort for GuestAgent {
    async fn evidence(
        &self,
        channel: &AgentChannel,
        ask: &EvidenceAsk,
        within: Duration,
    ) -> Result<Vec<u8>, AgentError> {
        let evidence = match timeout(within, self.ask(channel, ask)).await {
            Ok(evidence) => evidence?,
            Err(_) => return Err(AgentError::Silent(format!("no answer in {within:?}"))),
        };
        // Parsed, not believed: the ledger verifies. But what isn't evidence at all needn't travel there.
        // The host's own quote is not the guest's to give.
        match attestation::Composite::from_cbor(&evidence) {
            Ok(composite) if composite.host.is_some() => Err(AgentError::Garbage(
                "its evidence has a host's quote, which no guest can give".into(),
            )),
            Ok(_) => Ok(evidence),
            Err(error) => Err(AgentError::Garbage(format!(
                "what it calls evidence isn't: {error}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use ledger::api::Bytes;
    use tokio::net::UnixListener;

    use super::*;

    /// A guest that answers the first request with `answer(id)` and keeps the connection open.
    async fn asked(answer: impl FnOnce(u64) -> Vec<u8> + Send + 'static) -> Result<Vec<u8>, AgentError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let guest = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut deframer = Deframer::new();
            let mut buffer = [0; 1024];
            let request = loop {
                let count = stream.read(&mut buffer).await.unwrap();
                deframer.push(&buffer[..count]);
                if let Some(content) = deframer.next_frame() {
                    break Request::from_cbor(&content.unwrap()).unwrap();
                }
            };
            let _ = stream.write_all(&answer(request.id)).await; // hostd may have had enough
            std::future::pending::<()>().await;
        });
        let ask = EvidenceAsk {
            ledger: vec![1],
            contract: Bytes([2; 32]),
            nonce: Bytes([3; 32]),
        };
        let channel = AgentChannel::Serial(path);
        let result = GuestAgent::default()
            .evidence(&channel, &ask, Duration::from_millis(400))
            .await;
        guest.abort();
        result
    }

    fn composite() -> attestation::Composite {
        let guest_keys = attestation::GuestKeys::default();
        let cpu = attestation::CpuEvidence::None;
        attestation::Evidence { cpu, guest_keys }.into()
    }

    fn evidence() -> Vec<u8> {
        composite().to_cbor()
    }

    fn answer(id: u64, body: ResponseBody) -> Vec<u8> {
        frame(&Response { id, body }.to_cbor())
    }

    #[tokio::test]
    async fn evidence_is_found_behind_noise_and_old_answers() {
        let got = asked(|id| {
            let mut bytes = b"noise DCA1".to_vec();
            bytes.extend(answer(id.wrapping_sub(1), ResponseBody::Evidence(vec![1, 2, 3])));
            bytes.extend(answer(id, ResponseBody::Evidence(evidence())));
            bytes
        });
        assert_eq!(got.await.unwrap(), evidence());
    }

    #[tokio::test]
    async fn a_full_board_of_gpus_fits_and_a_host_quote_from_a_guest_does_not_pass() {
        let mut full = composite();
        // 8 GPUs and 4 switches, each with the longest report and chain that NVML gives.
        let gpu = attestation::nvidia::GpuEvidence::new(vec![1; 8192], vec![vec![0x30; 1024]; 5]);
        full.gpus = vec![gpu; 12];
        let bytes = full.to_cbor();
        let (sent, want) = (bytes.clone(), bytes);
        let got = asked(|id| answer(id, ResponseBody::Evidence(sent))).await;
        assert_eq!(got.unwrap(), want);

        let mut forged = composite();
        forged.host = Some(attestation::tpm::TpmEvidence::default());
        let bytes = forged.to_cbor();
        let error = asked(|id| answer(id, ResponseBody::Evidence(bytes))).await;
        assert!(matches!(error, Err(AgentError::Garbage(_))), "{error:?}");
    }

    #[tokio::test]
    async fn every_kind_of_bad_answer_is_an_error_in_time() {
        let silent = asked(|_| Vec::new()).await.unwrap_err();
        assert!(matches!(&silent, AgentError::Silent(_)), "{silent}");
        let gib = asked(|_| {
            [
                b"DCA1".to_vec(),
                (1u32 << 30).to_be_bytes().to_vec(),
                vec![0; 4096],
            ]
            .concat()
        })
        .await;
        assert!(gib.is_err(), "{gib:?}");
        let flood = asked(|_| vec![b'x'; 3 * 1024 * 1024]).await.unwrap_err();
        assert!(matches!(&flood, AgentError::Garbage(_)), "{flood}");
        let wrong = asked(|id| answer(id, ResponseBody::Evidence(vec![0xff; 10])))
            .await
            .unwrap_err();
        assert!(matches!(&wrong, AgentError::Garbage(_)), "{wrong}");
        let reported = asked(|id| answer(id, ResponseBody::Error("no chip".into())))
            .await
            .unwrap_err();
        assert_eq!(reported.to_string(), "the guest agent reports: no chip");
        let other = asked(|id| answer(id, ResponseBody::Ok)).await.unwrap_err();
        assert!(matches!(&other, AgentError::Garbage(_)), "{other}");
    }
}
