//! Tenant networks of one host: namespaces with taps, port leases, ingress by name.
//!
//! The door is [`Network`]: [`Network::converge`] makes the kernel and HAProxy be a [`Desired`].

mod config;
mod desired;
mod error;
mod names;
mod network;

pub use config::{Config, ConfigError, HaproxyConfig, Ipv4Net, Manage, PortRange, TenantNet};
pub use desired::{Desired, DesiredFault, Lease, Route, Transport, VmNet};
pub use error::{ConvergeError, Failure, NetError, Scope};
pub use names::{DnsName, GATEWAY, GATEWAY_MAC, IfName, Mac, NameError, Prefix, Slot, TenantId, mac};
pub use network::{Changes, Counters, Ended, Network, Rendered};
