//! Tenant networks of one host: namespaces with taps, port leases, ingress by name.
//!
//! The door is [`Network`]: [`Network::converge`] makes the kernel and HAProxy be a [`Desired`].

mod config;
mod desired;
mod effects;
mod error;
mod ingress;
mod names;
mod network;
mod plan;
mod rules;

pub use config::{Config, ConfigError, HaproxyConfig, Ipv4Net, Manage, PortRange, TenantNet};
pub use desired::{Desired, DesiredFault, Lease, Route, Transport, VmNet};
pub use error::{ConvergeError, Failure, NetError, Scope};
pub use names::{
    DnsName, GATEWAY, GATEWAY_MAC, IfName, Mac, NameError, Prefix, Slot, TenantId, UPLINK_HOST, UserName, mac,
};
pub use network::{Changes, Counters, Ended, Network, Rendered, render};
pub use plan::{Observed, Plan, plan};
