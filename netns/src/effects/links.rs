//! Links, addresses, routes and neighbours of one namespace, by rtnetlink.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::{Error, Handle, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};
use tokio::runtime::Runtime;

use crate::effects::worker::os;
use crate::error::NetError;
use crate::names::{IfName, Mac};
use crate::network::Counters;

/// Names a failed request.
fn nl(what: impl Into<String>) -> impl FnOnce(Error) -> NetError {
    let what = what.into();
    move |source| NetError::Netlink { what, source }
}

/// A link as seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    /// `IFF_UP`.
    pub(crate) up: bool,
    pub(crate) mac: Option<Mac>,
    /// Of a veth: the other end's index, in its own namespace.
    pub(crate) peer: Option<u32>,
    pub(crate) kind: Kind,
    pub(crate) alias: Option<String>,
    pub(crate) counters: Counters,
}

/// Kinds of links that we make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Veth,
    Tap,
    Other,
}

/// A route as seen (main table).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RouteSeen {
    /// `None`: default.
    pub(crate) to: Option<(Ipv4Addr, u8)>,
    pub(crate) via: Option<Ipv4Addr>,
    pub(crate) index: u32,
}

/// All that a namespace has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inventory {
    pub(crate) links: BTreeMap<String, Link>,
    pub(crate) addresses: BTreeSet<(u32, Ipv4Addr, u8)>,
    pub(crate) routes: BTreeSet<RouteSeen>,
    pub(crate) neighbours: BTreeSet<(u32, Ipv4Addr, Mac)>,
}

/// A netlink socket in one namespace.
pub(crate) struct Links<'a> {
    runtime: &'a Runtime,
    handle: Handle,
}

impl<'a> Links<'a> {
    /// In the namespace that the thread stands in; it stays there when the thread goes elsewhere.
    pub(crate) fn here(runtime: &'a Runtime) -> Result<Self, NetError> {
        let _inside = runtime.enter();
        let (connection, handle, _) = rtnetlink::new_connection().map_err(os("open a netlink socket"))?;
        runtime.spawn(connection);
        Ok(Self { runtime, handle })
    }

    /// Everything there is.
    pub(crate) fn inventory(&self) -> Result<Inventory, NetError> {
        self.runtime.block_on(async {
            Ok(Inventory {
                links: self.all_links().await?,
                addresses: self.addresses().await?,
                routes: self.routes().await?,
                neighbours: self.neighbours().await?,
            })
        })
    }

    /// The links only.
    pub(crate) fn links(&self) -> Result<BTreeMap<String, Link>, NetError> {
        self.runtime.block_on(self.all_links())
    }

    async fn all_links(&self) -> Result<BTreeMap<String, Link>, NetError> {
        let messages: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(nl("list links"))?;
        Ok(messages.iter().filter_map(link).collect())
    }

    /// One link by name.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Link>, NetError> {
        let request = self.handle.link().get().match_name(name).execute();
        match self
            .runtime
            .block_on(async { std::pin::pin!(request).try_next().await })
        {
            Ok(message) => Ok(message.as_ref().and_then(link).map(|(_, link)| link)),
            Err(error) if is(&error, libc::ENODEV) => Ok(None),
            Err(error) => Err(nl(format!("look for link {name}"))(error)),
        }
    }

    async fn addresses(&self) -> Result<BTreeSet<(u32, Ipv4Addr, u8)>, NetError> {
        let messages: Vec<_> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(nl("list addresses"))?;
        let address = |message: &rtnetlink::packet_route::address::AddressMessage| {
            message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(ip4)) => {
                    Some((message.header.index, *ip4, message.header.prefix_len))
                }
                _ => None,
            })
        };
        Ok(messages.iter().filter_map(address).collect())
    }

    async fn routes(&self) -> Result<BTreeSet<RouteSeen>, NetError> {
        let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let messages: Vec<RouteMessage> = self
            .handle
            .route()
            .get(all)
            .execute()
            .try_collect()
            .await
            .map_err(nl("list routes"))?;
        Ok(messages.iter().filter_map(route).collect())
    }

    async fn neighbours(&self) -> Result<BTreeSet<(u32, Ipv4Addr, Mac)>, NetError> {
        let request = self
            .handle
            .neighbours()
            .get()
            .set_address_family(AddressFamily::Inet)
            .execute();
        let messages: Vec<_> = request.try_collect().await.map_err(nl("list neighbours"))?;
        let mut found = BTreeSet::new();
        for message in messages
            .iter()
            .filter(|message| message.header.state == NeighbourState::Permanent)
        {
            let (mut address, mut mac) = (None, None);
            for attribute in &message.attributes {
                match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(ip4)) => address = Some(*ip4),
                    NeighbourAttribute::LinkLayerAddress(bytes) => mac = mac_of(bytes),
                    _ => {}
                }
            }
            found.extend(
                address
                    .zip(mac)
                    .map(|(address, mac)| (message.header.ifindex, address, mac)),
            );
        }
        Ok(found)
    }

    /// Makes a veth, with one queue (the default, one per possible CPU, costs ten times the memory); the other end appears
    /// in another namespace.
    pub(crate) fn make_veth(
        &self,
        (name, mac): (&IfName, Mac),
        (peer, peer_mac): (&str, Mac),
        peer_namespace: RawFd,
    ) -> Result<(), NetError> {
        let one_queue = [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];
        let mut other = LinkMessageBuilder::<LinkUnspec>::new()
            .name(peer)
            .address(peer_mac.0.to_vec())
            .setns_by_fd(peer_namespace)
            .build();
        other.attributes.extend(one_queue.clone());
        let mut this = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Veth)
            .name(name.as_str())
            .address(mac.0.to_vec())
            .set_info_data(InfoData::Veth(InfoVeth::Peer(other)))
            .build();
        this.attributes.extend(one_queue);
        self.runtime
            .block_on(self.handle.link().add(this).execute())
            .map_err(nl(format!("make the veth {name}")))
    }

    /// Removes a link; absent is fine.
    pub(crate) fn remove(&self, name: &str) -> Result<bool, NetError> {
        let Some(link) = self.find(name)? else {
            return Ok(false);
        };
        match self
            .runtime
            .block_on(self.handle.link().del(link.index).execute())
        {
            Ok(()) => Ok(true),
            Err(error) if is(&error, libc::ENODEV) => Ok(false),
            Err(error) => Err(nl(format!("remove link {name}"))(error)),
        }
    }

    /// Moves a link to another namespace; it arrives there down and without addresses.
    pub(crate) fn send(&self, index: u32, namespace: RawFd) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(index).setns_by_fd(namespace).build();
        self.runtime
            .block_on(self.handle.link().set(message).execute())
            .map_err(nl("move a tap between namespaces"))
    }

    /// Sets a link's MAC address and note.
    pub(crate) fn dress(&self, index: u32, mac: Mac, alias: &str) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(index)
            .address(mac.0.to_vec())
            .alias(alias)
            .build();
        self.runtime
            .block_on(self.handle.link().set(message).execute())
            .map_err(nl("set a tap's MAC address"))
    }

    /// Sets a link up.
    pub(crate) fn up(&self, index: u32) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.runtime
            .block_on(self.handle.link().set(message).execute())
            .map_err(nl("set a link up"))
    }

    /// Adds an address of its own (/32); there already is fine.
    pub(crate) fn add_address(&self, index: u32, ip4: Ipv4Addr) -> Result<(), NetError> {
        let request = self.handle.address().add(index, ip4.into(), 32).replace();
        self.runtime
            .block_on(request.execute())
            .map_err(nl(format!("add address {ip4}")))
    }

    /// Adds a route to one address on a link, or changes it: directly, or by a gateway that is on the link.
    pub(crate) fn set_route(
        &self,
        index: u32,
        to: Option<Ipv4Addr>,
        via: Option<Ipv4Addr>,
        source: Option<Ipv4Addr>,
    ) -> Result<(), NetError> {
        let mut route = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index);
        route = match to {
            Some(to) => route.destination_prefix(to, 32),
            None => route,
        };
        route = match via {
            Some(via) => route.gateway(via).onlink(),
            None => route.scope(RouteScope::Link),
        };
        route = match source {
            Some(source) => route.pref_source(source),
            None => route,
        };
        let what = to.map_or("set a default route".to_owned(), |to| {
            format!("set the route to {to}")
        });
        self.runtime
            .block_on(self.handle.route().add(route.build()).replace().execute())
            .map_err(nl(what))
    }

    /// Removes the route to one address, whoever added it; absent is fine.
    pub(crate) fn remove_route(&self, index: u32, to: Ipv4Addr) -> Result<(), NetError> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .output_interface(index)
            .destination_prefix(to, 32)
            .protocol(RouteProtocol::Unspec)
            .scope(RouteScope::NoWhere)
            .build();
        match self.runtime.block_on(self.handle.route().del(route).execute()) {
            Err(error) if !is(&error, libc::ESRCH) => Err(nl(format!("remove the route to {to}"))(error)),
            _ => Ok(()),
        }
    }

    /// Fixes which MAC address an address has, so that no ARP can change it.
    pub(crate) fn set_neighbour(&self, index: u32, ip4: Ipv4Addr, mac: Mac) -> Result<(), NetError> {
        let request = self
            .handle
            .neighbours()
            .add(index, ip4.into())
            .state(NeighbourState::Permanent)
            .link_layer_address(&mac.0)
            .replace();
        self.runtime
            .block_on(request.execute())
            .map_err(nl(format!("fix the neighbour {ip4}")))
    }
}

/// Whether a request failed with this errno.
fn is(error: &Error, errno: i32) -> bool {
    matches!(error, Error::NetlinkError(message) if message.raw_code() == -errno)
}

fn mac_of(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok().map(Mac)
}

fn link(message: &LinkMessage) -> Option<(String, Link)> {
    let mut name = None;
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        mac: None,
        peer: None,
        kind: Kind::Other,
        alias: None,
        counters: Counters::default(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Address(bytes) => link.mac = mac_of(bytes),
            LinkAttribute::Link(index) => link.peer = Some(*index),
            LinkAttribute::IfAlias(text) => link.alias = Some(text.clone()),
            LinkAttribute::Stats64(stats) => {
                // What the link receives is what the VM sent.
                link.counters = Counters {
                    sent_bytes: stats.rx_bytes,
                    sent_packets: stats.rx_packets,
                    received_bytes: stats.tx_bytes,
                    received_packets: stats.tx_packets,
                };
            }
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(InfoKind::Veth) => link.kind = Kind::Veth,
                        LinkInfo::Kind(InfoKind::Tun) => link.kind = Kind::Tap,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    name.map(|name| (name, link))
}

fn route(message: &RouteMessage) -> Option<RouteSeen> {
    if message.header.address_family != AddressFamily::Inet || message.header.table != 254 {
        return None; // 254: RT_TABLE_MAIN
    }
    let (mut to, mut via, mut index) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip4)) => {
                to = Some((*ip4, message.header.destination_prefix_length));
            }
            RouteAttribute::Gateway(RouteAddress::Inet(ip4)) => via = Some(*ip4),
            RouteAttribute::Oif(oif) => index = Some(*oif),
            _ => {}
        }
    }
    index.map(|index| RouteSeen { to, via, index })
}
