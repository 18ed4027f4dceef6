//! nftables: what the rules are, as text and as a model that can be compared with what the kernel shows. Pure.
//!
//! The rules themselves never change while hostd runs. What changes are elements of sets and maps, so that a packet costs
//! the same with one tenant and with a thousand, and so that a new lease is one element and not a new rule.
//!
//! ```text
//!   VM ── tap ──▶ [guard: is it who it says?] ── up0 ══ veth ══ dc-… ──▶ [host: sources, egress] ── wan
//!         │              tenant's namespace                              host's namespace      │
//!   VM ◀──┴── [guard: limits] ◀── up0 ══ veth ══ dc-… ◀── [host: leases, nothing unasked] ◀────┘
//! ```
//!
//! **Guard** (one per tenant namespace, constant size): a frame from a tap passes only with the MAC and the IPv4 address of
//! that tap's VM; ARP only speaks for that pair. Everything else is dropped before it is looked at: IPv6 (VMs have none),
//! DHCP (nobody would answer; addresses come from the NoCloud seed), router advertisements. VMs of one tenant reach each
//! other. The namespace itself answers pings, at most 20 a second. Bandwidth is limited here, by nft `limit` objects: they
//! need no qdisc, exist wherever nftables does, and belong to the same transaction. They police (drop what is too much)
//! rather than shape (delay it).
//!
//! **Host**: an address must come from its own tenant's veth. Towards the internet everything but private and special
//! networks, `deny`, and other tenants; resolvers on port 53 even if private. Towards the host: pings and HAProxy's two
//! ports. From outside: only what a lease forwards, or answers. A lease also works from inside (hairpin), with the host's
//! address as the sender. Open flows per VM are counted and bounded in both directions. A TCP flow begins with a SYN: one
//! whose entry was deleted doesn't come back to life with its next packet, but gets a reset.
//!
//! Rules match interfaces by `<prefix>-*`, so an interface that appears before its elements is closed. Traffic that isn't
//! about tenants is left alone (`policy accept`), whatever else runs on the host.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::config::Config;
use crate::desired::{Desired, Transport, VmNet};
use crate::names::{UPLINK_IN_TENANT, mac};

/// Networks that no VM may reach: private, shared, link-local (metadata services!), loopback, benchmarking, multicast,
/// reserved (RFC 6890).
const PRIVATE: &[&str] = &[
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/3",
];

/// Elements of the sets and maps that change, by the set's name; `limits` stands for the limit objects.
/// An element is written as nft does, without quotes: `dc-abc . 100.64.0.7`, `20022 : 100.64.0.7 . 22`.
pub(crate) type Elements = BTreeMap<String, BTreeSet<String>>;

/// What the kernel shows of one table (or a group of tables with one name).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// Not there.
    Absent,
    /// There, but its rules aren't the ones we would write.
    Changed,
    /// Our rules, with these elements.
    Ours(Elements),
}

/// A set or map whose elements change.
pub(crate) struct Variable {
    pub(crate) family: &'static str,
    pub(crate) name: &'static str,
    /// `set` or `map`.
    kind: &'static str,
    /// nft type.
    of: &'static str,
}

pub(crate) const HOST: &[Variable] = &[
    Variable {
        family: "inet",
        name: "sources",
        kind: "set",
        of: "ifname . ipv4_addr",
    },
    Variable {
        family: "inet",
        name: "leases_tcp",
        kind: "map",
        of: "inet_service : ipv4_addr . inet_service",
    },
    Variable {
        family: "inet",
        name: "leases_udp",
        kind: "map",
        of: "inet_service : ipv4_addr . inet_service",
    },
];

pub(crate) const GUARD: &[Variable] = &[
    Variable {
        family: "inet",
        name: "vms",
        kind: "set",
        of: "ifname . ether_addr . ipv4_addr",
    },
    Variable {
        family: "inet",
        name: "limit_sent",
        kind: "map",
        of: "ifname : limit",
    },
    Variable {
        family: "inet",
        name: "limit_received",
        kind: "map",
        of: "ifname : limit",
    },
    Variable {
        family: "arp",
        name: "arp_vms",
        kind: "set",
        of: "ifname . ether_addr . ipv4_addr",
    },
];

/// Sets that the kernel fills by itself.
pub(crate) const DYNAMIC: &[&str] = &["flows_out", "flows_in"];

/// Pseudo set for the limit objects.
pub(crate) const LIMITS: &str = "limits";

impl Variable {
    /// An element in the form that nft reads: names in quotes.
    fn quoted(&self, element: &str) -> String {
        let quote = |text: &str| format!("\"{text}\"");
        match (self.of, element.split_once(" : ")) {
            ("ifname : limit", Some((interface, limit))) => {
                format!("{} : {}", quote(interface), quote(limit))
            }
            (of, _) if of.starts_with("ifname") => match element.split_once(" . ") {
                Some((interface, rest)) => format!("{} . {rest}", quote(interface)),
                None => quote(element),
            },
            _ => element.to_owned(),
        }
    }

    /// `{ a, b }`, ready for nft.
    fn braces(&self, elements: &BTreeSet<String>) -> String {
        let all: Vec<String> = elements.iter().map(|element| self.quoted(element)).collect();
        format!("{{ {} }}", all.join(", "))
    }

    /// The definition inside a table.
    fn definition(&self, elements: &Elements) -> String {
        let mut text = format!("\t{} {} {{\n\t\ttype {}\n", self.kind, self.name, self.of);
        if let Some(elements) = elements.get(self.name).filter(|set| !set.is_empty()) {
            let _ = writeln!(text, "\t\telements = {}", self.braces(elements));
        }
        text + "\t}\n"
    }
}

/// Adds an element, and the set if it is new.
pub(crate) fn put(elements: &mut Elements, set: &str, element: String) {
    elements.entry(set.to_owned()).or_default().insert(element);
}

/// Elements of the host's table.
pub(crate) fn host_elements(config: &Config, desired: &Desired) -> Elements {
    let mut elements: Elements = HOST
        .iter()
        .map(|set| (set.name.to_owned(), BTreeSet::new()))
        .collect();
    for vm in desired.vms.values() {
        let uplink = config.prefix.uplink(&vm.tenant);
        put(
            &mut elements,
            "sources",
            format!("{uplink} . {}", config.ip4(vm.slot)),
        );
    }
    for lease in &desired.leases {
        let map = match lease.transport {
            Transport::Tcp => "leases_tcp",
            Transport::Udp => "leases_udp",
        };
        put(
            &mut elements,
            map,
            format!(
                "{} : {} . {}",
                lease.public_port,
                config.ip4(lease.slot),
                lease.vm_port
            ),
        );
    }
    elements
}

/// One transaction that makes the host's table, whatever was there before.
pub(crate) fn host_table(config: &Config, elements: &Elements) -> String {
    let table = config.prefix.host_table();
    let (prefix, wan, tenants) = (&config.prefix, &config.wan, config.tenant_net.net());
    let public = config.public_ip4;
    let flows = config.flows_per_vm;
    let private: Vec<String> = PRIVATE
        .iter()
        .map(|net| (*net).to_owned())
        .chain(config.deny.iter().map(ToString::to_string))
        .collect();
    let resolvers: Vec<String> = config.nameservers.iter().map(ToString::to_string).collect();
    let resolvers = match resolvers.is_empty() {
        true => String::new(),
        false => format!("\t\telements = {{ {} }}\n", resolvers.join(", ")),
    };
    let ingress = config.haproxy.as_ref().map_or(String::new(), |haproxy| {
        let ports = format!("tcp dport {{ {}, {} }}", haproxy.http_port, haproxy.https_port);
        format!(
            "\t\t{ports} add @flows_out {{ ip saddr ct count over {flows} }} counter name dropped_flows drop\n\
             \t\t{ports} accept\n"
        )
    });
    let sets: String = HOST.iter().map(|set| set.definition(elements)).collect();
    format!(
        r#"table inet {table}
delete table inet {table}
table inet {table} {{
	counter dropped_spoofed {{ }}
	counter dropped_private {{ }}
	counter dropped_flows {{ }}
	counter dropped_unasked {{ }}
{sets}	set private {{
		type ipv4_addr
		flags interval
		auto-merge
		elements = {{ {private} }}
	}}
	set resolvers {{
		type ipv4_addr
{resolvers}	}}
	set flows_out {{
		type ipv4_addr
		size 65535
		flags dynamic
	}}
	set flows_in {{
		type ipv4_addr
		size 65535
		flags dynamic
	}}
	chain raw {{
		type filter hook prerouting priority raw; policy accept;
		iifname "{prefix}-*" goto raw_from_tenant
		iifname "{prefix}_t*" drop
		iifname "{wan}" ip saddr {tenants} counter name dropped_spoofed drop
	}}
	chain raw_from_tenant {{
		iifname . ip saddr @sources accept
		counter name dropped_spoofed drop
	}}
	chain nat_in {{
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local goto leases
		ip daddr {public} goto leases
	}}
	chain leases {{
		dnat ip to tcp dport map @leases_tcp
		dnat ip to udp dport map @leases_udp
	}}
	chain nat_out {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname "{wan}" ip saddr {tenants} masquerade
		iifname "{prefix}-*" oifname "{prefix}-*" ct status dnat masquerade
	}}
	chain forward {{
		type filter hook forward priority filter; policy accept;
		iifname "{prefix}-*" goto forward_from_tenant
		oifname "{prefix}-*" goto forward_to_tenant
		ip daddr {tenants} drop
	}}
	chain forward_from_tenant {{
		ct state vmap {{ established : accept, related : accept, invalid : drop }}
		tcp flags & (fin | syn | rst | ack) != syn reject with tcp reset
		add @flows_out {{ ip saddr ct count over {flows} }} counter name dropped_flows drop
		oifname "{prefix}-*" ct status dnat accept
		oifname != "{wan}" drop
		ip daddr @resolvers meta l4proto {{ tcp, udp }} th dport 53 accept
		ip daddr @private counter name dropped_private drop
		accept
	}}
	chain forward_to_tenant {{
		ct state vmap {{ established : accept, related : accept, invalid : drop }}
		tcp flags & (fin | syn | rst | ack) != syn reject with tcp reset
		ct status dnat add @flows_in {{ ip daddr ct count over {flows} }} counter name dropped_flows drop
		ct status dnat accept
		counter name dropped_unasked drop
	}}
	chain input {{
		type filter hook input priority filter; policy accept;
		iifname "{prefix}-*" goto input_from_tenant
	}}
	chain input_from_tenant {{
		ct state established,related accept
		icmp type echo-request limit rate 20/second accept
{ingress}		drop
	}}
	chain output {{
		type filter hook output priority filter; policy accept;
		ip daddr {tenants} oifname != "{prefix}-*" reject
	}}
}}
"#,
        private = private.join(", "),
    )
}

/// One transaction that removes the host's table if it is there.
pub(crate) fn host_table_removal(config: &Config) -> String {
    let table = config.prefix.host_table();
    format!("table inet {table}\ndelete table inet {table}\n")
}

/// One transaction that turns the elements `from` into `to`; `None` if they are the same.
pub(crate) fn host_edit(config: &Config, from: &Elements, to: &Elements) -> Option<String> {
    let table = config.prefix.host_table();
    let (mut removals, mut additions) = (String::new(), String::new());
    let none = BTreeSet::new();
    for set in HOST {
        let (old, new) = (
            from.get(set.name).unwrap_or(&none),
            to.get(set.name).unwrap_or(&none),
        );
        for (verb, text, from, to) in [
            ("delete", &mut removals, old, new),
            ("add", &mut additions, new, old),
        ] {
            let differ: BTreeSet<String> = from.difference(to).cloned().collect();
            if !differ.is_empty() {
                let _ = writeln!(
                    text,
                    "{verb} element {} {table} {} {}",
                    set.family,
                    set.name,
                    set.braces(&differ)
                );
            }
        }
    }
    let edit = removals + &additions;
    (!edit.is_empty()).then_some(edit)
}

/// Elements of a tenant's guard.
pub(crate) fn guard_elements(config: &Config, vms: &[&VmNet]) -> Elements {
    let mut elements: Elements = GUARD
        .iter()
        .map(|set| (set.name.to_owned(), BTreeSet::new()))
        .collect();
    elements.insert(LIMITS.to_owned(), BTreeSet::new());
    for vm in vms {
        let tap = config.prefix.tap(vm.slot);
        let pair = format!("{tap} . {} . {}", mac(vm.slot), config.ip4(vm.slot));
        put(&mut elements, "vms", pair.clone());
        put(&mut elements, "arp_vms", pair);
        if let Some(mbps) = vm.bandwidth_mbps {
            for direction in ["sent", "received"] {
                let limit = format!("{direction}{}", vm.slot);
                put(
                    &mut elements,
                    &format!("limit_{direction}"),
                    format!("{tap} : {limit}"),
                );
                put(&mut elements, LIMITS, limit_element(&limit, rate(mbps), BURST));
            }
        }
    }
    elements
}

/// Bytes per second.
pub(crate) fn rate(mbps: u32) -> u64 {
    u64::from(mbps) * 125_000
}

/// Bytes let through beyond the rate: one large offloaded segment. The kernel's bucket holds this and one second's worth
/// (nft_limit.c: `nsecs * (rate + burst) / rate`), so a VM that was idle may send for a second at full speed.
pub(crate) const BURST: u64 = 65_536;

/// How a limit object stands in [`Elements`].
pub(crate) fn limit_element(name: &str, rate: u64, burst: u64) -> String {
    format!("{name} {rate} {burst}")
}

/// One transaction that makes a tenant's guard, whatever was there before.
pub(crate) fn guard(config: &Config, vms: &[&VmNet]) -> String {
    guard_with(config, &guard_elements(config, vms))
}

pub(crate) fn guard_with(config: &Config, elements: &Elements) -> String {
    let prefix = &config.prefix;
    let sets = |family| -> String {
        GUARD
            .iter()
            .filter(|set| set.family == family)
            .map(|set| set.definition(elements))
            .collect()
    };
    let mut limits = String::new();
    for limit in elements.get(LIMITS).into_iter().flatten() {
        let mut words = limit.split(' ');
        if let (Some(name), Some(rate), Some(burst)) = (words.next(), words.next(), words.next()) {
            let _ = writeln!(
                limits,
                "\tlimit {name} {{ rate over {rate} bytes/second burst {burst} bytes; }}"
            );
        }
    }
    format!(
        r#"table inet guard
delete table inet guard
table arp guard
delete table arp guard
table inet guard {{
	counter dropped_spoofed {{ }}
{limits}{inet_sets}	chain raw {{
		type filter hook prerouting priority raw; policy drop;
		iifname "{UPLINK_IN_TENANT}" accept
		iifname . ether saddr . ip saddr @vms accept
		counter name dropped_spoofed
	}}
	chain forward {{
		type filter hook forward priority filter; policy drop;
		limit name iifname map @limit_sent drop
		limit name oifname map @limit_received drop
		iifname "{UPLINK_IN_TENANT}" oifname "{prefix}_t*" accept
		iifname "{prefix}_t*" oifname "{UPLINK_IN_TENANT}" accept
		iifname "{prefix}_t*" oifname "{prefix}_t*" accept
	}}
	chain input {{
		type filter hook input priority filter; policy drop;
		iifname "{prefix}_t*" icmp type echo-request limit rate 20/second accept
	}}
}}
table arp guard {{
{arp_sets}	chain input {{
		type filter hook input priority filter; policy drop;
		iifname "{UPLINK_IN_TENANT}" accept
		iifname . ether saddr . arp saddr ip @arp_vms iifname . arp saddr ether . arp saddr ip @arp_vms accept
	}}
}}
"#,
        inet_sets = sets("inet"),
        arp_sets = sets("arp"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::Lease;

    fn config() -> Config {
        let mut config = Config::new("wan0".parse().unwrap(), [203, 0, 113, 1].into());
        config.nameservers = vec![[192, 168, 1, 1].into()];
        config.deny = vec!["198.51.100.0/24".parse().unwrap()];
        config.haproxy = Some(toml::from_str("run_dir = \"/run/dc\"").unwrap());
        config
    }

    fn desired() -> Desired {
        let vm = |slot, tenant: &str, bandwidth_mbps| {
            (
                slot,
                VmNet {
                    slot,
                    tenant: tenant.parse().unwrap(),
                    bandwidth_mbps,
                },
            )
        };
        let lease = |transport, public_port, slot, vm_port| Lease {
            transport,
            public_port,
            slot,
            vm_port,
        };
        Desired {
            vms: BTreeMap::from([
                vm(1, "alice", Some(100)),
                vm(2, "bob", None),
                vm(300, "alice", None),
            ]),
            leases: BTreeSet::from([
                lease(Transport::Tcp, 20_022, 1, 22),
                lease(Transport::Udp, 20_022, 2, 51_820),
                lease(Transport::Tcp, 20_023, 300, 22),
            ]),
            routes: BTreeMap::from([("a.example".parse().unwrap(), 1)]),
        }
    }

    #[test]
    fn host_ruleset() {
        let (config, desired) = (config(), desired());
        insta::assert_snapshot!(host_table(&config, &host_elements(&config, &desired)));
    }

    #[test]
    fn guard_ruleset() {
        let (config, desired) = (config(), desired());
        let vms = &desired.tenants()[&"alice".parse::<crate::names::TenantId>().unwrap()];
        insta::assert_snapshot!(guard(&config, vms));
    }

    #[test]
    fn an_edit_holds_only_what_differs_and_removes_before_it_adds() {
        let (config, before) = (config(), desired());
        let mut after = before.clone();
        after.leases.remove(&Lease {
            transport: Transport::Tcp,
            public_port: 20_022,
            slot: 1,
            vm_port: 22,
        });
        after.leases.insert(Lease {
            transport: Transport::Tcp,
            public_port: 20_022,
            slot: 2,
            vm_port: 22,
        });
        after.vms.remove(&300);
        after.leases.remove(&Lease {
            transport: Transport::Tcp,
            public_port: 20_023,
            slot: 300,
            vm_port: 22,
        });
        let (from, to) = (host_elements(&config, &before), host_elements(&config, &after));
        insta::assert_snapshot!(host_edit(&config, &from, &to).unwrap());
        assert_eq!(host_edit(&config, &from, &from), None);
    }
}
