//! Ends what is open: entries of the connection table (ctnetlink) and TCP connections of this host (sock_diag), in the
//! namespace that the thread stands in. The messages are small enough to write by hand
//! (linux/netfilter/nfnetlink_conntrack.h, linux/inet_diag.h).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use rtnetlink::sys::protocols::{NETLINK_NETFILTER, NETLINK_SOCK_DIAG};

use crate::desired::Transport;
use crate::effects::netlink::{NLM_F_ACK, NLM_F_DUMP, Netlink, attribute, attribute_with_header};
use crate::effects::worker::os;
use crate::error::NetError;
use crate::network::Ended;

/// `NFNL_SUBSYS_CTNETLINK << 8` and the message in it.
const CT_GET: u16 = 0x101;
const CT_DELETE: u16 = 0x102;
/// Attributes of an entry.
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
/// Attributes of a tuple and of its halves.
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
/// `nfgenmsg` of IPv4.
const NFGEN: [u8; 4] = [libc::AF_INET as u8, 0, 0, 0];

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// All TCP states but LISTEN (10).
const NOT_LISTENING: u32 = 0xfff & !(1 << 10);

/// What to end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Doomed {
    /// Flows that came in by these leased ports.
    pub(crate) ports: BTreeSet<(Transport, u16)>,
    /// Everything from and to these VMs.
    pub(crate) vms: BTreeSet<Ipv4Addr>,
    /// This host's own TCP connections to these VMs (HAProxy's), not what is forwarded to them.
    pub(crate) proxied: BTreeSet<Ipv4Addr>,
}

/// Ends it.
pub(crate) fn end(doomed: &Doomed) -> Result<Ended, NetError> {
    let flows = match doomed.vms.is_empty() && doomed.ports.is_empty() {
        true => 0,
        false => end_conntrack(doomed).map_err(os("end entries of the connection table"))?,
    };
    let proxied: BTreeSet<Ipv4Addr> = doomed.vms.union(&doomed.proxied).copied().collect();
    let sockets = match proxied.is_empty() {
        true => 0,
        false => end_sockets(&proxied).map_err(os("end TCP connections to a VM"))?,
    };
    Ok(Ended { flows, sockets })
}

fn end_conntrack(doomed: &Doomed) -> std::io::Result<usize> {
    let mut netlink = Netlink::open(NETLINK_NETFILTER)?;
    let mut ended = 0;
    for entry in netlink.ask(CT_GET, NLM_F_DUMP, &NFGEN)? {
        let attributes = entry.get(NFGEN.len()..).unwrap_or_default();
        if !doomed_entry(attributes, doomed) {
            continue;
        }
        let mut request = NFGEN.to_vec();
        for wanted in [CTA_TUPLE_ORIG, CTA_ID] {
            request.extend(attribute_with_header(attributes, wanted).unwrap_or_default());
        }
        match netlink.ask(CT_DELETE, NLM_F_ACK, &request) {
            Ok(_) => ended += 1,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {} // it ended by itself
            Err(error) => return Err(error),
        }
    }
    Ok(ended)
}

/// Whether an entry is to be ended.
fn doomed_entry(attributes: &[u8], doomed: &Doomed) -> bool {
    let original = attribute(attributes, CTA_TUPLE_ORIG)
        .map(Tuple::read)
        .unwrap_or_default();
    let reply = attribute(attributes, CTA_TUPLE_REPLY)
        .map(Tuple::read)
        .unwrap_or_default();
    let ends = [
        original.source,
        original.destination,
        reply.source,
        reply.destination,
    ];
    let leased = match (original.transport(), original.port) {
        // Translated: the reply doesn't come from the address that was asked.
        (Some(transport), Some(port)) => {
            doomed.ports.contains(&(transport, port)) && original.destination != reply.source
        }
        _ => false,
    };
    leased || ends.into_iter().flatten().any(|ip4| doomed.vms.contains(&ip4))
}

/// One direction of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tuple {
    source: Option<Ipv4Addr>,
    destination: Option<Ipv4Addr>,
    protocol: Option<u8>,
    port: Option<u16>,
}

impl Tuple {
    fn read(bytes: &[u8]) -> Self {
        let address = |which| -> Option<Ipv4Addr> {
            let bytes: [u8; 4] = attribute(attribute(bytes, CTA_TUPLE_IP)?, which)?
                .try_into()
                .ok()?;
            Some(bytes.into())
        };
        let protocol = attribute(bytes, CTA_TUPLE_PROTO);
        Self {
            source: address(CTA_IP_V4_SRC),
            destination: address(CTA_IP_V4_DST),
            protocol: protocol.and_then(|p| attribute(p, CTA_PROTO_NUM)?.first().copied()),
            port: protocol.and_then(|p| {
                Some(u16::from_be_bytes(
                    attribute(p, CTA_PROTO_DST_PORT)?.try_into().ok()?,
                ))
            }),
        }
    }

    fn transport(self) -> Option<Transport> {
        match self.protocol?.into() {
            libc::IPPROTO_TCP => Some(Transport::Tcp),
            libc::IPPROTO_UDP => Some(Transport::Udp),
            _ => None,
        }
    }
}

fn end_sockets(vms: &BTreeSet<Ipv4Addr>) -> std::io::Result<usize> {
    let mut netlink = Netlink::open(NETLINK_SOCK_DIAG)?;
    let mut ended = 0;
    for socket in netlink.ask(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &diag_request(&[0; 48]))? {
        // inet_diag_msg: family, state, timer, retrans, then inet_diag_sockid: ports (4), source (16), destination (16), …
        let Some(id) = socket.get(4..52) else { continue };
        let Ok(destination) = <[u8; 4]>::try_from(&id[20..24]) else {
            continue;
        };
        if !vms.contains(&Ipv4Addr::from(destination)) {
            continue;
        }
        match netlink.ask(SOCK_DESTROY, NLM_F_ACK, &diag_request(id)) {
            Ok(_) => ended += 1,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {} // it ended by itself
            Err(error) => return Err(error),
        }
    }
    Ok(ended)
}

/// `inet_diag_req_v2` of TCP over IPv4.
fn diag_request(id: &[u8]) -> Vec<u8> {
    let mut request = vec![libc::AF_INET as u8, libc::IPPROTO_TCP as u8, 0, 0];
    request.extend(NOT_LISTENING.to_ne_bytes());
    request.extend(id);
    request
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nest(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u16::try_from(payload.len() + 4).unwrap().to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn tuple(kind: u16, source: [u8; 4], destination: [u8; 4], protocol: u8, port: u16) -> Vec<u8> {
        let ip = [nest(CTA_IP_V4_SRC, &source), nest(CTA_IP_V4_DST, &destination)].concat();
        let proto = [
            nest(CTA_PROTO_NUM, &[protocol]),
            nest(CTA_PROTO_DST_PORT, &port.to_be_bytes()),
        ]
        .concat();
        nest(
            0x8000 | kind,
            &[
                nest(0x8000 | CTA_TUPLE_IP, &ip),
                nest(0x8000 | CTA_TUPLE_PROTO, &proto),
            ]
            .concat(),
        )
    }

    #[test]
    fn only_flows_of_the_doomed_are_ended() {
        const DEVELOPER: [u8; 4] = [203, 0, 113, 2];
        const HOST: [u8; 4] = [203, 0, 113, 1];
        const VM: [u8; 4] = [100, 64, 0, 7];
        let leased = [
            tuple(CTA_TUPLE_ORIG, DEVELOPER, HOST, 6, 20_022),
            tuple(CTA_TUPLE_REPLY, VM, DEVELOPER, 6, 5),
        ];
        let own = [
            tuple(CTA_TUPLE_ORIG, DEVELOPER, HOST, 6, 20_022),
            tuple(CTA_TUPLE_REPLY, HOST, DEVELOPER, 6, 5),
        ];
        let port = |transport, port| Doomed {
            ports: BTreeSet::from([(transport, port)]),
            ..Doomed::default()
        };
        let vm = |ip: [u8; 4]| Doomed {
            vms: BTreeSet::from([ip.into()]),
            ..Doomed::default()
        };
        for (row, entry, doomed, want) in [
            (
                "the leased port",
                leased.concat(),
                port(Transport::Tcp, 20_022),
                true,
            ),
            (
                "UDP of the same number",
                leased.concat(),
                port(Transport::Udp, 20_022),
                false,
            ),
            (
                "another port",
                leased.concat(),
                port(Transport::Tcp, 20_023),
                false,
            ),
            ("the VM behind it", leased.concat(), vm(VM), true),
            ("another VM", leased.concat(), vm([100, 64, 0, 8]), false),
            (
                "a service of the host itself on that port",
                own.concat(),
                port(Transport::Tcp, 20_022),
                false,
            ),
            ("nothing", Vec::new(), port(Transport::Tcp, 20_022), false),
        ] {
            assert_eq!(doomed_entry(&entry, &doomed), want, "{row}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Tuple::read(&bytes);
        }
    }
}
