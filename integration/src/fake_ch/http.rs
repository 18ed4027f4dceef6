//! As much of HTTP/1.1 as `micro_http` speaks, with file descriptors that come beside a request.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;

/// The real one's limit lies at 51,200 bytes of body; this is only against a runaway test.
const REQUEST_MAX: usize = 1 << 20;

/// One request.
pub(super) struct Request {
    pub method: String,
    pub path: String,
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

/// One answer.
pub(super) enum Answer {
    /// 204.
    NoContent,
    /// A status and nothing else.
    Empty(u16),
    /// A status and a body.
    Json(u16, Value),
    /// 200, and then the process ends.
    Last,
    /// Bytes that are no HTTP.
    Raw(Vec<u8>),
    /// A body of 1 GiB that never ends.
    Endless,
}

/// Answers requests until the client goes away.
pub(super) fn serve(mut stream: UnixStream, mut answer: impl FnMut(Request) -> Answer) -> io::Result<()> {
    let mut bytes = Vec::new();
    let mut fds = Vec::new();
    while let Some(request) = read(&stream, &mut bytes, &mut fds)? {
        send(&mut stream, answer(request))?;
    }
    Ok(())
}

fn read(stream: &UnixStream, bytes: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> io::Result<Option<Request>> {
    loop {
        if let Some((method, path, start, length)) = head(bytes)
            && bytes.len() >= start + length
        {
            let body = bytes[start..start + length].to_vec();
            bytes.drain(..start + length);
            return Ok(Some(Request {
                method,
                path,
                body,
                fds: std::mem::take(fds),
            }));
        }
        if bytes.len() > REQUEST_MAX || receive(stream, bytes, fds)? == 0 {
            return Ok(None);
        }
    }
}

fn receive(stream: &UnixStream, bytes: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut chunk = [0; 16 * 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut chunk)];
    let got = recvmsg(stream.as_fd(), &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    bytes.extend_from_slice(&chunk[..got]);
    Ok(got)
}

/// Method, path, where the body starts and how long it is.
fn head(bytes: &[u8]) -> Option<(String, String, usize, usize)> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let (method, uri) = (words.next()?.to_owned(), words.next()?);
    let path = uri.strip_prefix("http://localhost").unwrap_or(uri).to_owned();
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0);
    Some((method, path, end + 4, length))
}

fn send(stream: &mut UnixStream, answer: Answer) -> io::Result<()> {
    const HEAD: &str = "Server: Cloud Hypervisor API\r\nConnection: keep-alive\r\n";
    match answer {
        Answer::NoContent => stream.write_all(format!("HTTP/1.1 204 \r\n{HEAD}\r\n").as_bytes()),
        Answer::Empty(status) => stream.write_all(
            format!(
                "HTTP/1.1 {status} \r\n{HEAD}Content-Type: application/json\r\nContent-Length: 0\r\n\r\n"
            )
            .as_bytes(),
        ),
        Answer::Json(status, body) => {
            let body = body.to_string();
            let length = body.len();
            stream.write_all(
                format!(
                    "HTTP/1.1 {status} \r\n{HEAD}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
                )
                .as_bytes(),
            )
        }
        Answer::Last => {
            stream.write_all(format!("HTTP/1.1 200 \r\n{HEAD}Content-Length: 0\r\n\r\n").as_bytes())?;
            std::process::exit(0)
        }
        Answer::Raw(bytes) => stream.write_all(&bytes),
        Answer::Endless => {
            stream
                .write_all(format!("HTTP/1.1 200 \r\n{HEAD}Content-Length: 1073741824\r\n\r\n").as_bytes())?;
            loop {
                stream.write_all(&[b' '; 4096])?;
            }
        }
    }
}
