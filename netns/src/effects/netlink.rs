//! The little of netlink (linux/netlink.h) that no crate here speaks: one request, its answers, their attributes.

use rtnetlink::sys::{Socket, SocketAddr};

const NLM_F_REQUEST: u16 = 1;
/// Asks for an acknowledgement, which ends the answer.
pub(crate) const NLM_F_ACK: u16 = 4;
/// Asks for everything; the answer has an end mark.
pub(crate) const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// A blocking netlink socket.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// In the namespace that the thread stands in.
    pub(crate) fn open(protocol: isize) -> std::io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends one request and collects the payloads of the answer, up to its end.
    pub(crate) fn ask(&mut self, kind: u16, flags: u16, payload: &[u8]) -> std::io::Result<Vec<Vec<u8>>> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(16 + payload.len()).map_err(std::io::Error::other)?;
        let mut message = Vec::with_capacity(16 + payload.len());
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(payload);
        self.socket.send(&message, 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while let Some((kind, sequence, body, next)) = split_message(rest) {
                rest = next;
                match kind {
                    _ if sequence != self.sequence => {} // the late end of an earlier answer
                    NLMSG_DONE => return Ok(answers),
                    NLMSG_ERROR => {
                        let code = body
                            .get(..4)
                            .and_then(|b| b.try_into().ok())
                            .map_or(0, i32::from_ne_bytes);
                        return match code {
                            0 => Ok(answers),
                            _ => Err(std::io::Error::from_raw_os_error(-code)),
                        };
                    }
                    _ => answers.push(body.to_vec()),
                }
            }
        }
    }
}

/// Type, sequence number and payload of the first message, and what follows it.
fn split_message(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let header = bytes.get(..16)?;
    let length = u32::from_ne_bytes(header[..4].try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(header[4..6].try_into().ok()?);
    let sequence = u32::from_ne_bytes(header[8..12].try_into().ok()?);
    let body = bytes.get(16..length)?;
    Some((
        kind,
        sequence,
        body,
        bytes.get(length.next_multiple_of(4)..).unwrap_or_default(),
    ))
}

/// The attributes of a message: type and the whole of each, header included.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff; // without nested and byte-order bits
        let whole = bytes.get(..length).filter(|_| length >= 4)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, whole))
    })
}

/// The first attribute of a type, with its header, ready to go into a request.
pub(crate) fn attribute_with_header(bytes: &[u8], wanted: u16) -> Option<Vec<u8>> {
    let (_, whole) = attributes(bytes).find(|(kind, _)| *kind == wanted)?;
    let mut padded = whole.to_vec();
    padded.resize(whole.len().next_multiple_of(4), 0);
    Some(padded)
}

/// The payload of the first attribute of a type.
pub(crate) fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(kind, _)| *kind == wanted)
        .and_then(|(_, whole)| whole.get(4..))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = split_message(&bytes);
            let _ = attributes(&bytes).count();
            let _ = attribute_with_header(&bytes, 1);
        }
    }
}
