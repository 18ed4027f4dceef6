//! From settings to what the machine reads: hostd.toml, and systemd-networkd's files. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use netns::IfName;
use toml::{Table, Value};

use super::settings::{Bond, BondMode, NetworkSettings, Port, Settings, Vlan};

/// Sections that go into hostd.toml as they stand.
const AS_THEY_ARE: [&str; 5] = ["offering", "names", "endorsements", "deadlines", "update"];

/// VMMs' users: above those of the system and of containers.
const UID_BASE: i64 = 700_000;

/// Where the host's key is.
pub const HOST_KEY: &str = "/etc/hostd/host.pem";
/// Where the delegation is.
pub const DELEGATION: &str = "/etc/hostd/delegation";

impl Settings {
    /// hostd.toml, with `uplink` as the interface towards the Internet.
    pub fn hostd_toml(&self, uplink: &IfName) -> String {
        let file = &self.file;
        let text = |value: &str| Value::String(value.to_owned());
        let list = |values: Vec<String>| Value::Array(values.into_iter().map(Value::String).collect());
        let table = |entries: Vec<(&str, Value)>| {
            Value::Table(
                entries
                    .into_iter()
                    .map(|(key, value)| (key.to_owned(), value))
                    .collect(),
            )
        };
        let mut whole = Table::new();
        let mut put = |section: &str, value| whole.insert(section.to_owned(), value);
        put(
            "host",
            table(vec![
                ("name", text(&file.host.name)),
                ("state_dir", text("/var/lib/hostd")),
                ("run_dir", text("/run/hostd")),
                ("test_platform", Value::Boolean(file.host.test_platform)),
            ]),
        );
        put(
            "ledger",
            table(vec![
                ("url", text(&file.ledger.url)),
                ("canister_id", text(&file.ledger.canister_id)),
                ("root_key", text(&file.ledger.root_key)),
                ("host_key", text(HOST_KEY)),
                ("delegation", text(DELEGATION)),
            ]),
        );
        let nameservers = match &file.tenants.nameservers {
            Some(given) => given.iter().map(ToString::to_string).collect(),
            None => (file.network.nameservers.iter().filter(|ip| ip.is_ipv4()))
                .map(ToString::to_string)
                .collect(),
        };
        let mut network = vec![
            ("wan", text(uplink.as_str())),
            (
                "tenant_net",
                Value::try_from(file.tenants.tenant_net).expect("a text"),
            ),
            ("lease_ports", text(&file.tenants.lease_ports.to_string())),
            ("nameservers", list(nameservers)),
            (
                "deny",
                list(file.tenants.deny.iter().map(ToString::to_string).collect()),
            ),
        ];
        if let Some(public) = file.network.public() {
            network.push(("public_ip4", text(&public.to_string())));
        }
        if file.tenants.ingress {
            let haproxy = vec![
                ("run_dir", text("/run/hostd/haproxy")),
                ("manage", text("external")),
            ];
            network.push(("haproxy", table(haproxy)));
        }
        put("network", table(network));
        let images = &file.images;
        put(
            "storage",
            table(vec![
                ("dir", text("/var/lib/hostd/storage")),
                (
                    "allow_schemes",
                    Value::try_from(&images.allow_schemes).expect("a list of words"),
                ),
                (
                    "allow_private_addresses",
                    Value::Boolean(images.allow_private_addresses),
                ),
            ]),
        );
        // What the host runs is shown to the ledger by its TPM; the image brings its own reference values.
        let references = list(vec!["/boot/decent-cloud".to_owned()]);
        put(
            "host_evidence",
            table(vec![
                ("tpm", text(&crate::config::default_tpm())),
                ("references", references),
            ]),
        );
        // Parsed once already, so it is a table.
        let given: Table = toml::from_str(&self.text).unwrap_or_default();
        for section in AS_THEY_ARE {
            if let Some(value) = given.get(section) {
                put(section, value.clone());
            }
        }
        let mut vmm = given
            .get("vmm")
            .and_then(Value::as_table)
            .cloned()
            .unwrap_or_default();
        vmm.entry("uid_base").or_insert(Value::Integer(UID_BASE));
        put("vmm", Value::Table(vmm));
        format!(
            "# Made by `hostd setup` from provider-seed.toml at each boot: changes here are lost.\n\n{whole}"
        )
    }

    /// The machine's name in the network: what is left of the name for people.
    pub fn host_name(&self) -> String {
        let mut name = String::new();
        for c in self.file.host.name.chars() {
            if c.is_ascii_alphanumeric() {
                name.push(c.to_ascii_lowercase());
            } else if !name.is_empty() && !name.ends_with('-') {
                name.push('-');
            }
        }
        name.truncate(63);
        let name = name.trim_end_matches('-');
        if name.is_empty() { "decent-cloud" } else { name }.to_owned()
    }
}

/// What is said about one interface.
#[derive(Default)]
struct Interface {
    vlans: Vec<IfName>,
    bond: Option<IfName>,
}

/// systemd-networkd's files (systemd.netdev(5), systemd.network(5)): name and content.
pub fn networkd(network: &NetworkSettings, uplink: &IfName) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mtu = network
        .mtu
        .map(|mtu| format!("MTUBytes={mtu}\n"))
        .unwrap_or_default();
    for bond in &network.bond {
        files.insert(format!("05-{}.netdev", bond.name), bond_netdev(bond, &mtu));
    }
    for Vlan { name, id, .. } in &network.vlan {
        let text = format!("[NetDev]\nName={name}\nKind=vlan\n{mtu}\n[VLAN]\nId={id}\n");
        files.insert(format!("05-{name}.netdev"), text);
    }
    // The uplink by the name that was found for it, unless the settings say how it is known.
    let uplink = network
        .uplink
        .clone()
        .unwrap_or_else(|| Port::Name(uplink.clone()));
    let mut interfaces: BTreeMap<Port, Interface> = BTreeMap::new();
    interfaces.entry(uplink.clone()).or_default();
    for bond in &network.bond {
        interfaces.entry(Port::Name(bond.name.clone())).or_default();
        for port in &bond.ports {
            interfaces.entry(port.clone()).or_default().bond = Some(bond.name.clone());
        }
    }
    for vlan in &network.vlan {
        interfaces.entry(Port::Name(vlan.name.clone())).or_default();
        interfaces
            .entry(vlan.on.clone())
            .or_default()
            .vlans
            .push(vlan.name.clone());
    }
    for (port, interface) in &interfaces {
        let found_by = match port {
            Port::Name(name) => format!("Name={name}"),
            Port::Mac(mac) => format!("PermanentMACAddress={mac}"),
        };
        let mut text = format!("[Match]\n{found_by}\n\n");
        let is_uplink = *port == uplink;
        let required = if is_uplink { "yes" } else { "no" };
        let _ = write!(text, "[Link]\nRequiredForOnline={required}\n{mtu}\n[Network]\n");
        for vlan in &interface.vlans {
            let _ = writeln!(text, "VLAN={vlan}");
        }
        if let Some(bond) = &interface.bond {
            let _ = writeln!(text, "Bond={bond}");
        }
        if is_uplink {
            text.push_str(&addresses(network));
        } else {
            text.push_str("LinkLocalAddressing=no\n");
        }
        text.push_str("LLMNR=no\nMulticastDNS=no\n");
        let file = port.to_string().replace(':', "");
        files.insert(format!("10-{file}.network"), text);
    }
    // In place of the image's file of that name, by which every port asks for an address.
    files.insert(
        "80-uplink.network".to_owned(),
        "# The settings name the uplink: other ports are left alone.\n[Match]\nType=ether\nKind=!*\nName=en* eth*\n\n\
         [Link]\nUnmanaged=yes\n"
            .to_owned(),
    );
    files
}

fn bond_netdev(bond: &Bond, mtu: &str) -> String {
    let Bond { name, mode, .. } = bond;
    let lacp = match mode {
        BondMode::Lacp => "LACPTransmitRate=fast\nTransmitHashPolicy=layer3+4\n",
        BondMode::BalanceXor => "TransmitHashPolicy=layer3+4\n",
        BondMode::ActiveBackup => "",
    };
    format!("[NetDev]\nName={name}\nKind=bond\n{mtu}\n[Bond]\nMode={mode}\nMIIMonitorSec=100ms\n{lacp}")
}

fn addresses(network: &NetworkSettings) -> String {
    let mut text = format!("DHCP={}\n", if network.dhcp() { "yes" } else { "no" });
    for address in &network.addresses {
        let _ = writeln!(text, "Address={address}");
    }
    for gateway in &network.gateways {
        let _ = writeln!(text, "Gateway={gateway}");
    }
    for server in &network.nameservers {
        let _ = writeln!(text, "DNS={server}");
    }
    // Routers must not add addresses to what was written down; without IPv6 addresses they may give some.
    let fixed_ip6 = network.addresses.iter().any(|a| matches!(a.ip, IpAddr::V6(_)));
    if fixed_ip6 {
        text.push_str("IPv6AcceptRA=no\n");
    }
    text
}
