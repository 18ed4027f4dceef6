//! The handle on this host's network.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use crate::config::Config;
use crate::desired::Desired;
use crate::error::{ConvergeError, NetError};
use crate::names::{IfName, Mac, Slot, mac};

/// This host's network.
pub struct Network {
    config: Config,
}

/// What a converge changed, one line each; empty when all was as desired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes(pub Vec<String>);

impl Changes {
    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Traffic of one VM since its tap was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// Sent by the VM, bytes.
    pub sent_bytes: u64,
    /// Sent by the VM, packets.
    pub sent_packets: u64,
    /// Received by the VM, bytes.
    pub received_bytes: u64,
    /// Received by the VM, packets.
    pub received_packets: u64,
}

/// What `end_sessions` ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Entries of the connection table.
    pub flows: usize,
    /// TCP connections of HAProxy.
    pub sockets: usize,
}

/// Everything that is rendered for a desired state, for people (`hostd explain`).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Rendered {
    /// nft ruleset of the host's namespace.
    pub host_rules: String,
    /// nft ruleset of each tenant's namespace, by its name.
    pub tenant_rules: std::collections::BTreeMap<String, String>,
    /// HAProxy's configuration, if there is one.
    pub haproxy_config: Option<String>,
    /// HAProxy's map of names to addresses.
    pub haproxy_routes: String,
}

impl Network {
    /// Checks the settings and the machine (wan interface, `nft`, `/dev/net/tun`, HAProxy). Changes nothing.
    pub async fn open(config: Config) -> Result<Self, NetError> {
        config.check().map_err(NetError::Config)?;
        Ok(Self { config })
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Address of the VM in `slot`.
    pub fn ip4(&self, slot: Slot) -> Ipv4Addr {
        self.config.ip4(slot)
    }

    /// MAC address of the VM in `slot`.
    pub fn mac(&self, slot: Slot) -> Mac {
        mac(slot)
    }

    /// Name of the tap of `slot`.
    pub fn tap_name(&self, slot: Slot) -> IfName {
        self.config.prefix.tap(slot)
    }

    /// Makes the network be `desired`: looks at everything, changes what differs, looks again. Idempotent; callers queue.
    pub async fn converge(&self, desired: &Desired) -> Result<Changes, ConvergeError> {
        desired.check(&self.config).map_err(ConvergeError::Desired)?;
        Err(ConvergeError::Observe(unfinished()))
    }

    /// Like [`converge`](Self::converge), but compares with what the last successful call left instead of looking at
    /// everything, so that its cost follows the change and not the host. The first call converges.
    pub async fn adjust(&self, desired: &Desired) -> Result<Changes, ConvergeError> {
        self.converge(desired).await
    }

    /// Opens the tap of `slot` inside its tenant's namespace for a VMM that takes a file descriptor.
    pub async fn open_tap(&self, _slot: Slot) -> Result<OwnedFd, NetError> {
        Err(unfinished())
    }

    /// Moves the tap of `slot` into the host's namespace, for a VMM that opens it by name.
    pub async fn lend_tap(&self, _slot: Slot) -> Result<IfName, NetError> {
        Err(unfinished())
    }

    /// Moves a lent tap back behind its guard. Nothing to do if it is where it belongs.
    pub async fn take_back_tap(&self, _slot: Slot) -> Result<(), NetError> {
        Err(unfinished())
    }

    /// Traffic of the VM in `slot`.
    pub async fn counters(&self, _slot: Slot) -> Result<Counters, NetError> {
        Err(unfinished())
    }

    /// Ends all open flows of the VM in `slot`, and HAProxy's connections to it.
    pub async fn end_sessions(&self, _slot: Slot) -> Result<Ended, NetError> {
        Err(unfinished())
    }

    /// Removes everything with our prefix, HAProxy too if we started it.
    pub async fn remove_all(&self) -> Result<Changes, ConvergeError> {
        Err(ConvergeError::Observe(unfinished()))
    }

    /// What would be rendered for `desired`.
    pub fn render(&self, _desired: &Desired) -> Rendered {
        Rendered::default()
    }
}

/// Until the effects land.
fn unfinished() -> NetError {
    NetError::Os {
        what: "change the network yet".to_owned(),
        source: std::io::ErrorKind::Unsupported.into(),
    }
}
