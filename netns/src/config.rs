//! What an operator sets: the `[network]` table of `hostd.toml`. Unknown keys are refused.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::names::{IfName, Prefix, Slot, UserName};

/// Settings of one [`Network`](crate::Network).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What the names of all our kernel objects begin with.
    #[serde(default)]
    pub prefix: Prefix,
    /// The interface towards the internet, in the host's namespace.
    pub wan: IfName,
    /// The address that tenants' names point to and that port leases are told with. Behind a router that forwards
    /// everything it may be the router's.
    pub public_ip4: Ipv4Addr,
    /// Where VMs get their addresses from: the VM in slot `n` has the network's address plus `n`.
    #[serde(default)]
    pub tenant_net: TenantNet,
    /// Public ports that may be leased.
    #[serde(default)]
    pub lease_ports: PortRange,
    /// Resolvers that VMs are told about and may ask, even where they have a private address.
    #[serde(default)]
    pub nameservers: Vec<Ipv4Addr>,
    /// Networks that VMs must not reach, beyond the private and special ones that are always refused: the address of the
    /// machine's BMC, the provider's other servers.
    #[serde(default)]
    pub deny: Vec<Ipv4Net>,
    /// Open flows that one VM may have towards the internet; more are refused, so that no VM fills the connection table.
    #[serde(default = "flows_default")]
    pub flows_per_vm: u32,
    /// Ingress by name on ports 443 and 80. Without it there are port leases only.
    #[serde(default)]
    pub haproxy: Option<HaproxyConfig>,
}

/// 262,144 entries is the kernel's usual limit: room for 64 VMs that all use theirs up.
fn flows_default() -> u32 {
    4096
}

/// How HAProxy is found and run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HaproxyConfig {
    /// The program.
    #[serde(default = "haproxy_binary")]
    pub binary: PathBuf,
    /// Folder for its configuration, map and runtime socket; absolute, made if absent. Its path must be short (a unix
    /// socket's path has 107 bytes).
    pub run_dir: PathBuf,
    /// Who starts it.
    #[serde(default)]
    pub manage: Manage,
    /// Port for TLS, routed by SNI to port 443 of the VM.
    #[serde(default = "https_port")]
    pub https_port: u16,
    /// Port for plain HTTP, routed by the `Host` header to port 80 of the VM.
    #[serde(default = "http_port")]
    pub http_port: u16,
    /// The user (and group) that it runs as once its sockets are open. The Debian package makes this one.
    #[serde(default)]
    pub user: UserName,
    /// Connections that HAProxy carries at once, all tenants together (each costs about 4 kB and 2 file descriptors; HAProxy
    /// refuses to start if the limit of open files doesn't allow them).
    #[serde(default = "haproxy_connections")]
    pub max_connections: u32,
}

fn haproxy_binary() -> PathBuf {
    PathBuf::from("/usr/sbin/haproxy")
}

fn https_port() -> u16 {
    443
}

fn http_port() -> u16 {
    80
}

fn haproxy_connections() -> u32 {
    8_000
}

/// Who starts HAProxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Manage {
    /// We do, as a daemon that outlives us; we find it again by its runtime socket.
    #[default]
    Spawn,
    /// Somebody else (a systemd unit) runs it with the configuration that we write; we only change routes.
    External,
}

/// Why a setting was refused. The text of each names the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not `a.b.c.d/len`.
    #[error(
        "{0:?} is not an IPv4 network: write address/length, like 100.64.0.0/16, with no bits behind the length"
    )]
    Net(String),
    /// Wrong size for tenants.
    #[error("`tenant_net` = {0}: its length must be 10 to 16, so that each of 65,534 slots has an address")]
    TenantNetLength(Ipv4Net),
    /// Not `first-last`.
    #[error(
        "{0:?} is not a range of ports: write first-last, like 20000-29999, with first ≥ 1024 and first ≤ last"
    )]
    Ports(String),
    /// The wan interface looks like ours.
    #[error(
        "`wan` = {wan}: names that begin with {prefix}- or {prefix}_t are tenants'; take another `prefix`"
    )]
    WanIsOurs {
        /// The interface.
        wan: IfName,
        /// The prefix.
        prefix: Prefix,
    },
    /// The public address is in the tenants' network.
    #[error("`public_ip4` = {0} lies in `tenant_net`: give tenants another network")]
    PublicInTenantNet(Ipv4Addr),
    /// A port of HAProxy's is also for lease.
    #[error("`haproxy` listens on port {0}, which `lease_ports` has too: take it out of one of them")]
    PortTwice(u16),
    /// Bad folder for HAProxy.
    #[error(
        "`haproxy.run_dir` = {0}: must be an absolute path of at most 80 bytes, of A-Z a-z 0-9 / - _ . only"
    )]
    RunDir(PathBuf),
    /// A number out of its bounds.
    #[error("`{key}` = {value}: must be {bounds}")]
    Bounds {
        /// Which.
        key: &'static str,
        /// What was given.
        value: u64,
        /// What is allowed.
        bounds: &'static str,
    },
}

impl Config {
    /// Settings with only what has no default.
    pub fn new(wan: IfName, public_ip4: Ipv4Addr) -> Self {
        Self {
            prefix: Prefix::default(),
            wan,
            public_ip4,
            tenant_net: TenantNet::default(),
            lease_ports: PortRange::default(),
            nameservers: Vec::new(),
            deny: Vec::new(),
            flows_per_vm: flows_default(),
            haproxy: None,
        }
    }

    /// Every reason why this can't work, not only the first. [`Network::open`](crate::Network::open) asks too.
    pub fn check(&self) -> Result<(), Vec<ConfigError>> {
        let mut faults = Vec::new();
        let wan = self.wan.as_str();
        if self.prefix.is_uplink(wan) || wan.starts_with(&format!("{}_t", self.prefix)) {
            faults.push(ConfigError::WanIsOurs {
                wan: self.wan.clone(),
                prefix: self.prefix.clone(),
            });
        }
        if self.tenant_net.0.contains(self.public_ip4) {
            faults.push(ConfigError::PublicInTenantNet(self.public_ip4));
        }
        let mut bounds = |key, value: u64, low: u64, high: u64, bounds| {
            if !(low..=high).contains(&value) {
                faults.push(ConfigError::Bounds { key, value, bounds });
            }
        };
        bounds(
            "flows_per_vm",
            self.flows_per_vm.into(),
            16,
            1_000_000,
            "16 to 1000000",
        );
        bounds(
            "nameservers (count)",
            self.nameservers.len() as u64,
            0,
            8,
            "at most 8",
        );
        bounds("deny (count)", self.deny.len() as u64, 0, 256, "at most 256");
        if let Some(haproxy) = &self.haproxy {
            bounds(
                "haproxy.max_connections",
                haproxy.max_connections.into(),
                100,
                1_000_000,
                "100 to 1000000",
            );
            bounds(
                "haproxy.https_port",
                haproxy.https_port.into(),
                1,
                65535,
                "1 to 65535",
            );
            bounds(
                "haproxy.http_port",
                haproxy.http_port.into(),
                1,
                65535,
                "1 to 65535",
            );
            for port in [haproxy.https_port, haproxy.http_port] {
                if self.lease_ports.contains(port) {
                    faults.push(ConfigError::PortTwice(port));
                }
            }
            if haproxy.https_port == haproxy.http_port {
                faults.push(ConfigError::PortTwice(haproxy.http_port));
            }
            if !is_plain_path(&haproxy.run_dir) {
                faults.push(ConfigError::RunDir(haproxy.run_dir.clone()));
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    /// Address of the VM in `slot`.
    pub fn ip4(&self, slot: Slot) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.tenant_net.0.address()) + u32::from(slot)) // length ≤ 16: 16 free bits
    }

    /// The VM that has this address, if it is one of ours.
    pub fn slot_of(&self, ip4: Ipv4Addr) -> Option<Slot> {
        u16::try_from(u32::from(ip4).checked_sub(u32::from(self.tenant_net.0.address()))?).ok()
    }
}

/// A path that needs no quoting in HAProxy's configuration or on its runtime socket, and leaves room for a file name in
/// the 107 bytes of a unix socket.
fn is_plain_path(path: &std::path::Path) -> bool {
    path.is_absolute()
        && path.to_str().is_some_and(|text| {
            text.len() <= 80
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'_' | b'.'))
        })
}

/// An IPv4 network in the form `a.b.c.d/len`; no bits of the address are set behind the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Net {
    address: Ipv4Addr,
    length: u8,
}

impl Ipv4Net {
    /// First address.
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// Bits that all its addresses share.
    pub fn length(self) -> u8 {
        self.length
    }

    /// Whether an address is in it.
    pub fn contains(self, ip4: Ipv4Addr) -> bool {
        let differ = u32::from(self.address) ^ u32::from(ip4);
        differ.checked_shr(32 - u32::from(self.length)).unwrap_or(0) == 0
    }
}

impl fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Ipv4Net {
    type Err = ConfigError;
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let refuse = || ConfigError::Net(text.chars().take(40).collect());
        let (address, length) = text.split_once('/').ok_or_else(refuse)?;
        let address: Ipv4Addr = address.parse().map_err(|_| refuse())?;
        let length: u8 = length.parse().map_err(|_| refuse())?;
        let host_bits = u32::MAX.checked_shr(length.into()).unwrap_or(0);
        if length > 32 || u32::from(address) & host_bits != 0 {
            return Err(refuse());
        }
        Ok(Self { address, length })
    }
}

impl TryFrom<String> for Ipv4Net {
    type Error = ConfigError;
    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<Ipv4Net> for String {
    fn from(net: Ipv4Net) -> String {
        net.to_string()
    }
}

/// The network that VMs get addresses from: /10 to /16, so that the sum with any [`Slot`] stays inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Ipv4Net", into = "Ipv4Net")]
pub struct TenantNet(Ipv4Net);

impl TenantNet {
    /// As a network.
    pub fn net(self) -> Ipv4Net {
        self.0
    }
}

impl Default for TenantNet {
    /// 100.64.0.0/16, of the shared space for carriers' NAT (RFC 6598), which no LAN should use.
    fn default() -> Self {
        Self(Ipv4Net {
            address: Ipv4Addr::new(100, 64, 0, 0),
            length: 16,
        })
    }
}

impl TryFrom<Ipv4Net> for TenantNet {
    type Error = ConfigError;
    fn try_from(net: Ipv4Net) -> Result<Self, ConfigError> {
        if (10..=16).contains(&net.length) {
            Ok(Self(net))
        } else {
            Err(ConfigError::TenantNetLength(net))
        }
    }
}

impl From<TenantNet> for Ipv4Net {
    fn from(net: TenantNet) -> Ipv4Net {
        net.0
    }
}

/// Ports from `first` to `last`, both included; written `first-last`. None is below 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Lowest port.
    pub fn first(self) -> u16 {
        self.first
    }

    /// Highest port.
    pub fn last(self) -> u16 {
        self.last
    }

    /// Whether a port is in it.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// All its ports, lowest first.
    pub fn ports(self) -> std::ops::RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl Default for PortRange {
    /// 20000-29999: below Linux's own range for outgoing connections (32768 and up).
    fn default() -> Self {
        Self {
            first: 20_000,
            last: 29_999,
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = ConfigError;
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let ports = text
            .split_once('-')
            .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        match ports {
            Some((first, last)) if 1024 <= first && first <= last => Ok(Self { first, last }),
            _ => Err(ConfigError::Ports(text.chars().take(40).collect())),
        }
    }
}

impl TryFrom<String> for PortRange {
    type Error = ConfigError;
    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> String {
        range.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "wan = \"eth0\"\npublic_ip4 = \"203.0.113.1\"\n";

    #[test]
    fn the_least_config_has_working_defaults() {
        let config: Config = toml::from_str(LEAST).unwrap();
        assert_eq!(config.check(), Ok(()));
        assert_eq!(
            config,
            Config::new("eth0".parse().unwrap(), Ipv4Addr::new(203, 0, 113, 1))
        );
        assert_eq!(config.ip4(258), Ipv4Addr::new(100, 64, 1, 2));
        assert_eq!(config.slot_of(Ipv4Addr::new(100, 64, 1, 2)), Some(258));
        assert_eq!(config.slot_of(Ipv4Addr::new(100, 65, 1, 2)), None);
    }

    #[test]
    fn bad_settings_are_refused_with_the_key_in_the_text() {
        for (line, says) in [
            ("tenant_net = \"100.64.0.0/17\"", "10 to 16"),
            ("tenant_net = \"100.64.0.1/16\"", "no bits behind the length"),
            ("tenant_net = \"100.64.0.0/33\"", "not an IPv4 network"),
            ("lease_ports = \"29999-20000\"", "range of ports"),
            ("lease_ports = \"22-80\"", "range of ports"),
            ("lease_ports = \"20000-70000\"", "range of ports"),
            ("prefix = \"toolong\"", "can't be a prefix"),
            ("prefix = \"d-\"", "can't be a prefix"),
            ("gateway = \"10.0.0.1\"", "unknown field `gateway`"),
            ("flows_per_vm = 0", "flows_per_vm"),
            ("tenant_net = \"203.0.0.0/16\"", "lies in `tenant_net`"),
            ("haproxy = { run_dir = \"run\" }", "run_dir"),
            ("haproxy = { run_dir = \"/run/a b\" }", "run_dir"),
            ("haproxy = { run_dir = \"/run/dc\", https_port = 20443 }", "20443"),
            ("haproxy = { run_dir = \"/run/dc\", http_port = 443 }", "443"),
            (
                "haproxy = { run_dir = \"/run/dc\", manage = \"systemd\" }",
                "systemd",
            ),
        ] {
            let said = match toml::from_str::<Config>(&format!("{LEAST}{line}\n")) {
                Err(error) => error.to_string(),
                Ok(config) => {
                    let faults = config.check().expect_err(line);
                    faults
                        .iter()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()
                        .join("\n")
                }
            };
            assert!(said.contains(says), "{line}: {said}");
        }
        let mut config = Config::new("dc-lan".parse().unwrap(), Ipv4Addr::new(203, 0, 113, 1));
        assert!(matches!(
            config.check().unwrap_err()[..],
            [ConfigError::WanIsOurs { .. }]
        ));
        config.prefix = "ab".parse().unwrap();
        assert_eq!(config.check(), Ok(()));
    }

    #[test]
    fn networks_contain_their_addresses_only() {
        for (net, ip4, inside) in [
            ("0.0.0.0/0", [8, 8, 8, 8], true),
            ("10.0.0.0/8", [10, 255, 0, 1], true),
            ("10.0.0.0/8", [11, 0, 0, 0], false),
            ("192.0.2.7/32", [192, 0, 2, 7], true),
            ("192.0.2.7/32", [192, 0, 2, 6], false),
        ] {
            assert_eq!(
                net.parse::<Ipv4Net>().unwrap().contains(ip4.into()),
                inside,
                "{net} {ip4:?}"
            );
        }
    }
}
