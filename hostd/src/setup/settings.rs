//! `provider-seed.toml`: what a provider decides, parsed once into typed and bounded values.
//!
//! Sections that hostd.toml has too are of its own types. Everything else about hostd.toml (paths, sockets, the key) the
//! image decides. The commented example is `hostd/provider-seed.example.toml`; a test keeps it valid.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ledger::api::HostDelegation;
use netns::{IfName, Ipv4Net, PortRange, TenantNet};
use serde::Deserialize;

use crate::config::{
    Config, DeadlineConfig, EndorsementsConfig, Fault, LibvirtConfig, NamesConfig, OfferingConfig,
    UpdateConfig, VmmConfig, line_of, toml_fault,
};
use crate::storage::{Scheme, StorageConfig};

/// The largest file that is read, bytes.
pub const SETTINGS_MAX: usize = 64 * 1024;

/// The example, with comments.
pub const EXAMPLE: &str = include_str!("../../provider-seed.example.toml");

/// Most addresses, gateways, VLANs.
const MANY: usize = 16;
/// Most bonds, name servers, ports of a bond.
const SOME: usize = 8;

/// The whole file. Holding one proves that a valid hostd.toml comes out of it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// As it was written.
    pub text: String,
    /// As it was understood.
    pub file: SettingsFile,
}

/// What stands in the file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingsFile {
    /// Of the format: 1.
    pub version: u32,
    /// This machine.
    pub host: HostSettings,
    /// Which ledger.
    pub ledger: LedgerSettings,
    /// The way to the Internet.
    #[serde(default)]
    pub network: NetworkSettings,
    /// The tenants' networks.
    #[serde(default)]
    pub tenants: TenantSettings,
    /// What is sold.
    pub offering: OfferingConfig,
    /// As in hostd.toml.
    #[serde(default)]
    pub names: NamesConfig,
    /// As in hostd.toml.
    #[serde(default)]
    pub endorsements: EndorsementsConfig,
    /// As in hostd.toml.
    #[serde(default)]
    pub vmm: VmmConfig,
    /// As in hostd.toml.
    #[serde(default)]
    pub deadlines: DeadlineConfig,
    /// As in hostd.toml.
    #[serde(default)]
    pub update: UpdateConfig,
    /// Where images may come from; the rest of hostd.toml's is the image's own.
    #[serde(default)]
    pub images: ImageSettings,
}

/// `[images]`: where tenants' images may be fetched from, as in hostd.toml's `[storage]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageSettings {
    /// How.
    pub allow_schemes: BTreeSet<Scheme>,
    /// Whether from loopback, private and link-local addresses: a mirror of the provider's own.
    pub allow_private_addresses: bool,
}

impl Default for ImageSettings {
    fn default() -> Self {
        let StorageConfig {
            allow_schemes,
            allow_private_addresses,
            ..
        } = StorageConfig::default();
        Self {
            allow_schemes,
            allow_private_addresses,
        }
    }
}

/// `[host]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSettings {
    /// For people.
    pub name: String,
    /// Confidential kinds are simulated here.
    #[serde(default)]
    pub test_platform: bool,
}

/// `[ledger]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerSettings {
    /// Where.
    pub url: String,
    /// Canister id, text form.
    pub canister_id: String,
    /// The pinned root key: DER, hexadecimal.
    pub root_key: String,
    /// The provider's delegation for this host, Base64 of the file that `decent` writes.
    pub delegation: Option<String>,
}

/// `[network]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkSettings {
    /// Towards the Internet; default: the only Ethernet port.
    pub uplink: Option<Port>,
    /// Ask for an address; default: if none is given.
    pub dhcp: Option<bool>,
    /// Fixed addresses.
    pub addresses: Vec<Address>,
    /// Default routes.
    pub gateways: Vec<IpAddr>,
    /// Resolvers.
    pub nameservers: Vec<IpAddr>,
    /// Of the uplink and what it stands on.
    pub mtu: Option<u16>,
    /// That tenants' names point to; default: the first fixed IPv4 address.
    pub public_ip4: Option<Ipv4Addr>,
    /// Several ports as one.
    pub bond: Vec<Bond>,
    /// Virtual networks (802.1Q).
    pub vlan: Vec<Vlan>,
}

impl NetworkSettings {
    /// Whether the uplink asks for an address.
    pub fn dhcp(&self) -> bool {
        self.dhcp.unwrap_or(self.addresses.is_empty())
    }

    /// The address that tenants' names point to.
    pub fn public(&self) -> Option<Ipv4Addr> {
        self.public_ip4.or_else(|| {
            self.addresses.iter().find_map(|address| match address.ip {
                IpAddr::V4(ip) => Some(ip),
                IpAddr::V6(_) => None,
            })
        })
    }
}

/// `[[network.bond]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bond {
    /// Of the interface that is made.
    pub name: IfName,
    /// How the ports share the work.
    #[serde(default)]
    pub mode: BondMode,
    /// Its ports.
    pub ports: Vec<Port>,
}

/// How the ports of a bond share the work: the kernel's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum BondMode {
    /// Link aggregation; the switch must know of it.
    #[default]
    #[serde(rename = "802.3ad")]
    Lacp,
    /// One works, the others wait.
    #[serde(rename = "active-backup")]
    ActiveBackup,
    /// By a digest of the addresses; the switch must know of it.
    #[serde(rename = "balance-xor")]
    BalanceXor,
}

impl fmt::Display for BondMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lacp => "802.3ad",
            Self::ActiveBackup => "active-backup",
            Self::BalanceXor => "balance-xor",
        })
    }
}

/// `[[network.vlan]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vlan {
    /// Of the interface that is made.
    pub name: IfName,
    /// 1–4094.
    pub id: u16,
    /// The bond or port below it.
    pub on: Port,
}

/// An interface: by its name, or by the address that its maker gave it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub enum Port {
    /// `enp1s0`
    Name(IfName),
    /// `aa:bb:cc:dd:ee:ff`, lower case.
    Mac(String),
}

impl TryFrom<String> for Port {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let octets: Vec<&str> = text.split(':').collect();
        let hexadecimal = |octet: &&str| octet.len() == 2 && octet.bytes().all(|b| b.is_ascii_hexdigit());
        if octets.len() == 6 && octets.iter().all(hexadecimal) {
            return Ok(Self::Mac(text.to_ascii_lowercase()));
        }
        IfName::from_str(&text)
            .map(Self::Name)
            .map_err(|error| format!("{error}; or write the port's MAC address, as aa:bb:cc:dd:ee:ff"))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name.as_str()),
            Self::Mac(mac) => f.write_str(mac),
        }
    }
}

/// An interface's address with the length of its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Bits of the network.
    pub length: u8,
}

impl TryFrom<String> for Address {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.split_once('/')
            .and_then(|(ip, length)| Some((ip.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?)))
            .filter(|(ip, length)| (1..=if ip.is_ipv4() { 32 } else { 128 }).contains(length))
            .filter(|(ip, _)| !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback())
            .map(|(ip, length)| Self { ip, length })
            .ok_or_else(|| format!("{text:?} is not an address with a length, such as 203.0.113.10/24"))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.length)
    }
}

impl Address {
    /// Whether `other` is in its network.
    fn reaches(&self, other: IpAddr) -> bool {
        let bits = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => (u128::from(u32::from(ip)), 32),
            IpAddr::V6(ip) => (u128::from(ip), 128),
        };
        let ((ours, width), (theirs, their_width)) = (bits(self.ip), bits(other));
        width == their_width
            && (ours ^ theirs)
                .checked_shr(width - u32::from(self.length))
                .unwrap_or(0)
                == 0
    }
}

/// `[tenants]`: see `[network]` of hostd.toml.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TenantSettings {
    /// VM addresses.
    pub tenant_net: TenantNet,
    /// Public ports that may be leased.
    pub lease_ports: PortRange,
    /// Resolvers that VMs are told; default: the IPv4 ones of `[network]`.
    pub nameservers: Option<Vec<Ipv4Addr>>,
    /// What VMs must not reach.
    pub deny: Vec<Ipv4Net>,
    /// Names of tenants on ports 443 and 80.
    pub ingress: bool,
}

impl Default for TenantSettings {
    fn default() -> Self {
        Self {
            tenant_net: TenantNet::default(),
            lease_ports: PortRange::default(),
            nameservers: None,
            deny: Vec::new(),
            ingress: true,
        }
    }
}

/// Marks of a private key: PEM labels, and names that other tools give to one.
const SECRETS: [&str; 8] = [
    "PRIVATE KEY",
    "provider_key",
    "private_key",
    "secret_key",
    "mnemonic",
    "seed_phrase",
    "provider.pem",
    "password",
];

impl Settings {
    /// Checks a file. Every fault has its line.
    pub fn parse(bytes: &[u8]) -> Result<Self, Vec<Fault>> {
        let whole = |why: &str| {
            vec![Fault {
                line: 0,
                key: String::new(),
                why: why.to_owned(),
            }]
        };
        if bytes.len() > SETTINGS_MAX {
            return Err(whole("is larger than 64 KiB: this is no provider-seed.toml"));
        }
        let Ok(text) = std::str::from_utf8(bytes) else {
            return Err(whole("is not text (UTF-8)"));
        };
        // An editor's byte order mark, and its line ends, are no fault.
        let text = text
            .strip_prefix('\u{feff}')
            .unwrap_or(text)
            .replace("\r\n", "\n");
        let secrets: Vec<Fault> = secrets(&text).collect();
        if !secrets.is_empty() {
            return Err(secrets);
        }
        let file: SettingsFile = toml::from_str(&text).map_err(|error| vec![toml_fault(&text, &error)])?;
        let settings = Self { text, file };
        let mut faults = settings.faults();
        if faults.is_empty() {
            // What only hostd.toml's own checks know. Any name will do for an uplink that is found on the machine.
            let uplink = match &settings.file.network.uplink {
                Some(Port::Name(name)) => name.clone(),
                _ => "eth0".parse().expect("a valid name"),
            };
            if let Err(found) = Config::parse(&settings.hostd_toml(&uplink)) {
                faults.extend(found.into_iter().map(|fault| settings.here(fault)));
            }
        }
        if faults.is_empty() {
            Ok(settings)
        } else {
            Err(faults)
        }
    }

    /// The delegation that stands in the file.
    pub fn delegation(&self) -> Option<Vec<u8>> {
        let text = self.file.ledger.delegation.as_deref()?;
        decode_delegation(text).ok()
    }

    /// A fault of hostd.toml as one of this file.
    fn here(&self, fault: Fault) -> Fault {
        let key = match fault.key.as_str() {
            "network.wan" => "network.uplink".to_owned(),
            "network.public_ip4" => fault.key,
            key => match key.strip_prefix("network.") {
                Some(rest) => format!("tenants.{rest}"),
                None => fault.key,
            },
        };
        Fault {
            line: line_of(&self.text, &key),
            key,
            why: fault.why,
        }
    }

    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut check = |ok: bool, key: &str, why: &str| {
            if !ok {
                faults.push(Fault {
                    line: line_of(&self.text, key),
                    key: key.to_owned(),
                    why: why.to_owned(),
                });
            }
        };
        let file = &self.file;
        check(
            file.version == 1,
            "version",
            "must be 1: this hostd knows no other format",
        );
        let delegation = file.ledger.delegation.as_deref().map(decode_delegation);
        if let Some(Err(why)) = delegation {
            check(false, "ledger.delegation", &why);
        }
        // The root is measured and read-only, the state can't be executed: programs come from the image alone.
        let vmm = &file.vmm;
        for (key, program) in [
            ("vmm.cloud_hypervisor.binary", &vmm.cloud_hypervisor.binary),
            ("vmm.libvirt.emulator", &vmm.libvirt.emulator),
        ] {
            check(
                program.as_ref().is_none_or(|path| path.starts_with("/usr")),
                key,
                "must be a program of the image, below /usr",
            );
        }
        check(
            vmm.libvirt.uri == LibvirtConfig::default().uri,
            "vmm.libvirt.uri",
            "can't be changed: libvirt is the image's own",
        );
        let network = &file.network;
        for (key, count, most) in [
            ("network.addresses", network.addresses.len(), MANY),
            ("network.gateways", network.gateways.len(), MANY),
            ("network.nameservers", network.nameservers.len(), SOME),
            ("network.bond", network.bond.len(), SOME),
            ("network.vlan", network.vlan.len(), MANY),
        ] {
            check(
                count <= most,
                key,
                &format!("has {count}, at most {most} are allowed"),
            );
        }
        check(
            network.dhcp() || !network.addresses.is_empty(),
            "network.dhcp",
            "without DHCP give `addresses`",
        );
        check(
            network.dhcp() || !network.gateways.is_empty(),
            "network.gateways",
            "fixed addresses need a gateway: without one there is no way to the ledger",
        );
        for gateway in &network.gateways {
            let link_local = matches!(gateway, IpAddr::V6(ip) if ip.is_unicast_link_local());
            check(
                link_local || network.addresses.iter().any(|address| address.reaches(*gateway)),
                "network.gateways",
                &format!("{gateway} is in the network of none of `addresses`"),
            );
        }
        check(
            network.public().is_some(),
            "network.public_ip4",
            "give the address that tenants' names point to: with DHCP it can't be known before",
        );
        check(
            network.mtu.is_none_or(|mtu| (1280..=9216).contains(&mtu)),
            "network.mtu",
            "must be 1280–9216 bytes",
        );
        let mut made = BTreeSet::new();
        let mut taken = BTreeSet::new();
        for (key, name) in (network.bond.iter().map(|bond| ("network.bond", &bond.name)))
            .chain(network.vlan.iter().map(|vlan| ("network.vlan", &vlan.name)))
        {
            check(
                made.insert(name.as_str()),
                key,
                &format!("{name} stands there twice"),
            );
        }
        for bond in &network.bond {
            check(
                (1..=SOME).contains(&bond.ports.len()),
                "network.bond",
                &format!("{}: a bond has 1 to {SOME} ports", bond.name),
            );
            for port in &bond.ports {
                check(
                    taken.insert(port.to_string()),
                    "network.bond",
                    &format!("{port} is in two bonds, or twice in one"),
                );
                check(
                    !made.contains(port.to_string().as_str()),
                    "network.bond",
                    &format!("{port} is no port: a bond stands on ports"),
                );
            }
        }
        for vlan in &network.vlan {
            check(
                (1..=4094).contains(&vlan.id),
                "network.vlan",
                &format!("{}: `id` must be 1–4094", vlan.name),
            );
            let on = vlan.on.to_string();
            check(
                !taken.contains(&on) && network.vlan.iter().all(|other| other.name.as_str() != on),
                "network.vlan",
                &format!("{}: `on` must be a bond, or a port that is in no bond", vlan.name),
            );
        }
        let uplink = network.uplink.as_ref().map(ToString::to_string);
        check(
            uplink.as_ref().is_none_or(|uplink| !taken.contains(uplink)),
            "network.uplink",
            "is a port of a bond: name the bond",
        );
        check(
            uplink.is_some() || made.is_empty(),
            "network.uplink",
            "with bonds or VLANs, say which interface leads to the Internet",
        );
        faults
    }
}

/// Every line that looks like it holds a secret.
fn secrets(text: &str) -> impl Iterator<Item = Fault> + '_ {
    text.lines().enumerate().filter_map(|(number, line)| {
        // A comment may speak of keys; a PEM block isn't less of a secret there.
        let code = line.split('#').next().unwrap_or_default().to_ascii_lowercase();
        let found = line.contains("PRIVATE KEY-----")
            || SECRETS.iter().any(|mark| code.contains(&mark.to_ascii_lowercase()));
        found.then(|| Fault {
            line: number + 1,
            key: String::new(),
            why: "looks like a private key or another secret. NO KEY OF YOURS BELONGS ON THE HOST: take it out, wipe this \
                  medium, and if it was a real key make a new one; the host only needs the delegation that \
                  `decent host delegate` signs"
                .to_owned(),
        })
    })
}

/// The file that `decent` writes, out of Base64.
fn decode_delegation(text: &str) -> Result<Vec<u8>, String> {
    let text: String = text.split_whitespace().collect();
    let bytes = BASE64_STANDARD
        .decode(text)
        .map_err(|error| format!("isn't Base64 ({error}); `hostd seed init --delegation FILE` writes it"))?;
    parse_delegation(&bytes)?;
    Ok(bytes)
}

/// The largest delegation that is read: a profile's texts are bounded by the ledger.
pub(crate) const DELEGATION_MAX: usize = 16 * 1024;

/// What `decent host delegate` wrote.
pub(crate) fn parse_delegation(bytes: &[u8]) -> Result<HostDelegation, String> {
    if bytes.len() > DELEGATION_MAX {
        return Err("is larger than any delegation".to_owned());
    }
    candid::decode_one(bytes)
        .map_err(|error| format!("isn't a delegation as `decent host delegate` writes it ({error})"))
}
