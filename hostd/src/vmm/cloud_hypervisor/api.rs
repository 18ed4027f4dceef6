//! Talking to one Cloud Hypervisor over its unix socket, every call with a deadline and a bound.
//!
//! The crate `cloud-hypervisor-client` makes the calls it can. Four go by hand over the same socket: `vm.create` (fields
//! that the crate's types lack), `vm.add-net` (a file descriptor travels with it), `vm.info` (compared as it is, with
//! fields that the crate doesn't know) and `vm.counters` (the crate reads them as `i64`; v53 shows 2⁶⁴−1 for "none yet").
//!
//! The VMM is what a tenant attacks, so its answers are read with a limit: the crate's own client would read for ever.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use cloud_hypervisor_client::apis::configuration::Configuration;
use cloud_hypervisor_client::apis::{DefaultApi, DefaultApiClient, Error};
use cloud_hypervisor_client::models::VmResize;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use crate::vmm::VmmError;

/// The longest answer: `vm.info` of a VM with 16 disks and 8 GPUs is under 64 KiB.
const ANSWER_MAX: usize = 1 << 20;
/// How much of an error answer is kept.
const ERROR_MAX: usize = 2000;

/// What `vmm.ping` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ping {
    pub version: String,
    pub pid: i64,
    pub features: Vec<String>,
}

/// One Cloud Hypervisor.
pub(super) struct Api {
    socket: PathBuf,
    client: DefaultApiClient<Connector>,
}

impl Api {
    pub(super) fn new(socket: &Path) -> Self {
        let connector = Connector {
            socket: socket.to_owned(),
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build(connector);
        let client = DefaultApiClient::new(Arc::new(Configuration::with_client(client)));
        Self {
            socket: socket.to_owned(),
            client,
        }
    }

    pub(super) async fn ping(&self, within: Duration) -> Result<Ping, VmmError> {
        let answer = timed("vmm.ping", within, self.client.vmm_ping_get()).await?;
        Ok(Ping {
            version: answer.version,
            pid: answer.pid.unwrap_or_default(),
            features: answer.features.unwrap_or_default(),
        })
    }

    pub(super) async fn create(&self, config: &Value, within: Duration) -> Result<(), VmmError> {
        self.send("vm.create", "PUT", Some(config), None, within)
            .await
            .map(drop)
    }

    pub(super) async fn add_net(
        &self,
        config: &Value,
        tap: BorrowedFd<'_>,
        within: Duration,
    ) -> Result<(), VmmError> {
        self.send("vm.add-net", "PUT", Some(config), Some(tap), within)
            .await
            .map(drop)
    }

    /// State and configuration.
    pub(super) async fn info(&self, within: Duration) -> Result<(String, Value), VmmError> {
        let mut info = self.send("vm.info", "GET", None, None, within).await?;
        let state = info.get("state").and_then(Value::as_str).map(str::to_owned);
        match (state, info.get_mut("config").map(Value::take)) {
            (Some(state), Some(config)) => Ok((state, config)),
            _ => Err(refused("vm.info", "the answer has no state or no config")),
        }
    }

    pub(super) async fn counters(&self, within: Duration) -> Result<Value, VmmError> {
        self.send("vm.counters", "GET", None, None, within).await
    }

    pub(super) async fn boot(&self, within: Duration) -> Result<(), VmmError> {
        timed("vm.boot", within, self.client.boot_vm()).await
    }

    pub(super) async fn power_button(&self, within: Duration) -> Result<(), VmmError> {
        timed("vm.power-button", within, self.client.power_button_vm()).await
    }

    pub(super) async fn shutdown(&self, within: Duration) -> Result<(), VmmError> {
        timed("vm.shutdown", within, self.client.shutdown_vm()).await
    }

    pub(super) async fn delete(&self, within: Duration) -> Result<(), VmmError> {
        timed("vm.delete", within, self.client.delete_vm()).await
    }

    pub(super) async fn shutdown_vmm(&self, within: Duration) -> Result<(), VmmError> {
        timed("vmm.shutdown", within, self.client.shutdown_vmm()).await
    }

    pub(super) async fn resize(&self, resize: VmResize, within: Duration) -> Result<(), VmmError> {
        timed("vm.resize", within, self.client.vm_resize_put(resize)).await
    }

    async fn send(
        &self,
        call: &'static str,
        method: &str,
        body: Option<&Value>,
        fd: Option<BorrowedFd<'_>>,
        within: Duration,
    ) -> Result<Value, VmmError> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = format!(
            "{method} /api/v1/{call} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let exchange = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            let sent = match fd {
                Some(fd) => send_with_fd(&stream, request.as_bytes(), fd).await?,
                None => 0,
            };
            stream.write_all(&request.as_bytes()[sent..]).await?;
            read_answer(&mut stream).await
        };
        let (status, body) = match tokio::time::timeout(within, exchange).await {
            Err(_) => return Err(VmmError::Timeout { call, after: within }),
            Ok(Err(error)) => return Err(refused(call, &error.to_string())),
            Ok(Ok(answer)) => answer,
        };
        match status {
            200 => {
                serde_json::from_slice(&body).map_err(|error| refused(call, &format!("not JSON: {error}")))
            }
            201..=299 => Ok(Value::Null),
            _ => Err(refused(call, &error_text(status, &body))),
        }
    }
}

/// Sends the beginning of a request with a file descriptor attached; returns how many bytes went.
async fn send_with_fd(stream: &UnixStream, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    loop {
        stream.writable().await?;
        let sent = stream.try_io(Interest::WRITABLE, || {
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fds = [fd];
            if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
                return Err(io::Error::other("no room for a file descriptor"));
            }
            let slices = [io::IoSlice::new(bytes)];
            sendmsg(stream.as_fd(), &slices, &mut control, SendFlags::NOSIGNAL).map_err(Into::into)
        });
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

/// Reads one HTTP answer: status and body.
async fn read_answer(stream: &mut UnixStream) -> io::Result<(u16, Vec<u8>)> {
    let mut bytes = Vec::with_capacity(4096);
    loop {
        if let Some(answer) = parse_answer(&bytes)? {
            return Ok(answer);
        }
        if bytes.len() >= ANSWER_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the answer is longer than 1 MiB",
            ));
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the connection ended before the answer",
            ));
        }
    }
}

/// RFC 9112, as far as Cloud Hypervisor's `micro_http` speaks it: a status line, headers, and a body whose length is
/// given (none for 204). `None`: more must be read.
fn parse_answer(bytes: &[u8]) -> io::Result<Option<(u16, Vec<u8>)>> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    if !b"HTTP/1.".starts_with(&bytes[..bytes.len().min(7)]) {
        return Err(bad("the answer isn't HTTP"));
    }
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| bad("the answer's head isn't text"))?;
    let mut lines = head.split("\r\n");
    let status: u16 = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|code| code.parse().ok())
        .filter(|code| (200..600).contains(code))
        .ok_or_else(|| bad("the answer has no status"))?;
    let mut length = 0_usize;
    for line in lines {
        let Some((name, value)) = line.split_once(':') else {
            return Err(bad("a header without a colon"));
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value
                .trim()
                .parse()
                .map_err(|_| bad("the length isn't a number"))?;
        }
    }
    if length > ANSWER_MAX {
        return Err(bad("the answer says that it is longer than 1 MiB"));
    }
    let body = &bytes[end + 4..];
    Ok((body.len() >= length).then(|| (status, body[..length].to_vec())))
}

async fn timed<T>(
    call: &'static str,
    within: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, VmmError> {
    match tokio::time::timeout(within, work).await {
        Err(_) => Err(VmmError::Timeout { call, after: within }),
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(Error::Api(error))) => Err(refused(
            call,
            &error_text(error.code.as_u16(), error.body.as_bytes()),
        )),
        Ok(Err(error)) => {
            // The crate's Display leaves out the causes, and those tell what happened.
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(next) = cause {
                text = format!("{text}: {next}");
                cause = next.source();
            }
            Err(refused(call, &text))
        }
    }
}

/// An error body is a list of strings, outermost first, or an object with `error`, or something else (FACTS 2).
/// For people: nothing branches on it.
fn error_text(status: u16, body: &[u8]) -> String {
    let text = match serde_json::from_slice(body) {
        Ok(Value::Array(list)) => list
            .iter()
            .filter_map(Value::as_str)
            .collect::<Vec<_>>()
            .join(": "),
        Ok(Value::Object(object)) => object
            .get("error")
            .map(|e| e.as_str().map_or_else(|| e.to_string(), str::to_owned))
            .unwrap_or_default(),
        _ => String::from_utf8_lossy(body)
            .chars()
            .filter(|c| !c.is_control())
            .collect(),
    };
    format!("{status} {}", text.chars().take(ERROR_MAX).collect::<String>())
}

fn refused(call: &'static str, answer: &str) -> VmmError {
    VmmError::Refused {
        call,
        answer: answer.chars().take(ERROR_MAX).collect(),
    }
}

/// Connects the crate's client to the socket, whatever address it asks for.
#[derive(Clone)]
struct Connector {
    socket: PathBuf,
}

impl tower_service::Service<hyper::Uri> for Connector {
    type Response = Bounded;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Bounded>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: hyper::Uri) -> Self::Future {
        let socket = self.socket.clone();
        Box::pin(async move {
            let stream = UnixStream::connect(&socket).await?;
            Ok(Bounded {
                stream: TokioIo::new(stream),
                left: ANSWER_MAX,
            })
        })
    }
}

/// A connection for one call that gives at most [`ANSWER_MAX`] bytes.
struct Bounded {
    stream: TokioIo<UnixStream>,
    left: usize,
}

impl Connection for Bounded {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Bounded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut target: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left == 0 {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the answer is longer than 1 MiB",
            )));
        }
        let mut chunk = [0; 8192];
        let room = chunk.len().min(self.left).min(target.remaining());
        let mut buffer = hyper::rt::ReadBuf::new(&mut chunk[..room]);
        std::task::ready!(Pin::new(&mut self.stream).poll_read(context, buffer.unfilled()))?;
        let read = buffer.filled();
        self.left -= read.len();
        target.put_slice(read);
        Poll::Ready(Ok(()))
    }
}

impl Write for Bounded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_or_refused() {
        type Want = Option<Option<(u16, &'static str)>>;
        let table: [(&str, &str, Want); 10] = [
            ("nothing yet", "", Some(None)),
            ("a beginning", "HTTP/1.1 20", Some(None)),
            ("204", "HTTP/1.1 204 \r\nServer: x\r\n\r\n", Some(Some((204, "")))),
            (
                "a body",
                "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n{}",
                Some(Some((200, "{}"))),
            ),
            (
                "half a body",
                "HTTP/1.1 200 \r\ncontent-length: 3\r\n\r\n{}",
                Some(None),
            ),
            ("another protocol", "SSH-2.0-x\r\n", None),
            ("no status", "HTTP/1.1 x\r\n\r\n", None),
            (
                "a negative length",
                "HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n",
                None,
            ),
            (
                "1 GiB",
                "HTTP/1.1 200 \r\nContent-Length: 1073741824\r\n\r\n",
                None,
            ),
            ("a header that isn't", "HTTP/1.1 200 \r\nx\r\n\r\n", None),
        ];
        for (name, bytes, want) in table {
            let found = parse_answer(bytes.as_bytes()).ok();
            let want = want.map(|o| o.map(|(status, body)| (status, body.as_bytes().to_vec())));
            assert_eq!(found, want, "{name}");
        }
    }

    #[test]
    fn errors_are_readable_whatever_their_shape() {
        for (body, want) in [
            (r#"["outer","inner"]"#, "500 outer: inner"),
            (r#"{"error":"too big"}"#, "500 too big"),
            ("plain\u{1b}[2J text", "500 plain[2J text"),
            ("", "500 "),
        ] {
            assert_eq!(error_text(500, body.as_bytes()), want);
        }
        assert!(error_text(500, "x".repeat(100_000).as_bytes()).len() < 2100);
    }
}
