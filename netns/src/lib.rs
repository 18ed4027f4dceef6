//! Tenant networks of one host: namespaces with taps, port leases, ingress by name.
//!
//! The door is [`Network`]: [`Network::converge`] makes the kernel and HAProxy be a [`Desired`]; [`Network::adjust`] does so
//! for one change without looking at everything; [`render`] shows what would be generated.
//!
//! ```text
//!            Desired ──┐
//!   kernel ─observe─▶ Observed ─plan─▶ Plan ─apply─▶ kernel ─observe─▶ (compare again)
//!
//!   one tenant's namespace  dc-t-<tenant>                   the host's namespace
//!  ┌───────────────────────────────────────────────┐       ┌──────────────────────────────────────────┐
//!  │ VM ═ dc_t7 (169.254.1.1, fe:…:01) ─┐          │ veth  │                                          │
//!  │                                    ├─ up0 ════╪═══════╪═ dc-<tenant> ─┬─ rules: egress, leases ── wan
//!  │ VM ═ dc_t9 (169.254.1.1, fe:…:01) ─┘ .2.2     │       │ 169.254.2.1   └─ HAProxy: 443, 80        │
//!  │        guard: MAC, IPv4, ARP, bandwidth       │       │                                          │
//!  └───────────────────────────────────────────────┘       └──────────────────────────────────────────┘
//! ```
//!
//! # What holds
//! | From                   | To                                     |                                                      |
//! |------------------------|----------------------------------------|------------------------------------------------------|
//! | a VM                   | the internet                           | yes, from the host's address                         |
//! | a VM                   | private and special networks, `deny`   | no; resolvers on port 53 excepted                    |
//! | a VM                   | the host                               | pings, HAProxy's ports; nothing else                 |
//! | a VM                   | its tenant's other VMs                 | yes, inside their namespace                          |
//! | a VM                   | other tenants' VMs                     | no, except by their leases and names, like anybody   |
//! | anybody                | a VM                                   | by leases and names only                             |
//! | a VM, as somebody else | anywhere                               | no: MAC, IPv4 and ARP are tied to the tap            |
//! | a VM, by IPv6          | anywhere                               | no: VMs have no IPv6 in this version                 |
//! | a VM, by DHCP          | nobody answers                         | addresses are static, from the NoCloud seed          |
//!
//! A VM has `<tenant_net + slot>/32`, MAC `02:dc:00:00:<slot>`, the gateway 169.254.1.1 on link, MTU 1500. Behind a lease it
//! sees the caller's real address; behind HAProxy it sees 169.254.2.1.
//!
//! # At night
//! - Nothing here keeps a file of its own: what is true, the kernel and HAProxy's socket say. A killed process leaves at worst
//!   half a plan, and the next [`Network::converge`] finishes or removes it ([`plan`] tells why each order is safe).
//! - Objects are ours by their name ([`Prefix`]) and only those are ever changed. Look with `ip netns`, `ip -n dc-t-… addr`,
//!   `nft list table inet dc_host`, `ip netns exec dc-t-… nft list ruleset`.
//! - VMs, their flows and HAProxy outlive the process that made them. Only what loses its place in [`Desired`] is ended.
//! - A tap that a VMM must open by name is *lent* to the host's namespace and taken back while the VMM holds it open; in the
//!   host's namespace nothing passes it.
//!
//! Not here: who may have which name or port (the ledger and hostd), disks, VMs, certificates.
//!
//! # Map
//! `names` and `config` parse; `desired` is what comes in; `rules` (nftables) and `ingress` (HAProxy) render, `listing` reads nftables back; `plan` decides;
//! `effects` looks and does, on threads that step into namespaces; `network` ties them together under one lock.

mod config;
mod desired;
mod effects;
mod error;
mod ingress;
mod listing;
mod names;
mod network;
mod plan;
mod rules;
mod spawn;

pub use config::{Config, ConfigError, HaproxyConfig, Ipv4Net, Manage, PortRange, TenantNet};
pub use desired::{Desired, DesiredFault, Lease, Route, Transport, VmNet};
pub use error::{ConvergeError, Failure, NetError, Scope};
pub use names::{
    DnsName, GATEWAY, GATEWAY_MAC, IfName, Mac, NameError, Prefix, Slot, TenantId, UPLINK_HOST, UserName, mac,
};
pub use network::{Changes, Counters, Ended, Network, Rendered, render};
pub use plan::{Observed, Plan, plan};
pub use spawn::close_descriptors;
