//! The NoCloud seed: a small FAT image, label `CIDATA`, that tells a VM who it is.
//!
//! | file | holds |
//! |---|---|
//! | `meta-data` | instance id (= contract id), host name, SSH public keys, and `decent-cloud`: contract, salt, TLS names |
//! | `user-data` | the tenant's bytes, verbatim |
//! | `network-config` | version 2: one interface matched by MAC, a /32 address, an on-link default route, name servers |
//!
//! Format: cloud-init's NoCloud data source and its networking config version 2. The two YAML files are written in a
//! fixed block style, one item per line, every string in double quotes and free of `"`, `\` and control characters
//! ([`Seed::new`] refuses the rest), so that a guest without a YAML parser can read them with `sed`. The same input
//! gives the same bytes: no clock, no random volume id.
//!
//! Nothing here is secret and nothing here is measured. But a confidential VM knows its contract id from the launch
//! (`HOST_DATA`), and the id is a digest of the salt, the keys and the user data (`attestation::contract_id`): it powers
//! off when those found here don't give that id. So they must be the contract's, the keys in its order.

mod fat;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ledger::api::{ContractId, Digest32, USER_DATA_MAX};

/// Most SSH keys in one seed (the ledger's own bound).
pub const SSH_KEYS_MAX: usize = 16;
/// Longest SSH key line, bytes: an RSA key of 16,384 bits fits.
pub const SSH_KEY_BYTES_MAX: usize = 4096;
/// Most TLS names.
pub const TLS_NAMES_MAX: usize = 16;
/// Most name servers.
pub const NAMESERVERS_MAX: usize = 4;

/// Key types that are accepted; DSA is too weak, certificates and unknown types can't be checked here.
const SSH_KEY_TYPES: [&str; 7] = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// What a seed is made from, unchecked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedSpec {
    /// The contract: becomes the instance id.
    pub contract: ContractId,
    /// The contract's salt.
    pub salt: Digest32,
    /// OpenSSH public keys, one a line, `type base64 [comment]`.
    pub public_keys: Vec<String>,
    /// DNS names that are routed to the VM; the guest makes its certificate for them.
    pub tls_names: Vec<String>,
    /// The tenant's user data.
    pub user_data: Vec<u8>,
    /// The one network interface.
    pub network: SeedNetwork,
}

/// The VM's end of its tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedNetwork {
    /// `02:00:00:00:00:05`.
    pub mac: String,
    /// The VM's address; the prefix is always /32.
    pub address: Ipv4Addr,
    /// Reached directly on the link although no prefix covers it.
    pub gateway: Ipv4Addr,
    /// Name servers.
    pub nameservers: Vec<Ipv4Addr>,
    /// MTU, if it isn't the default.
    pub mtu: Option<u16>,
}

/// Why a seed can't be made. `field` names the request's field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeedError {
    /// Too much of it.
    #[error("{field}: {found} given, at most {max} allowed")]
    TooMany {
        /// Which field.
        field: &'static str,
        /// How many or how many bytes.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// Not an OpenSSH public key.
    #[error("ssh_public_keys[{index}]: {why}")]
    SshKey {
        /// Which one, from 0.
        index: usize,
        /// What is wrong.
        why: String,
    },
    /// Not a DNS name.
    #[error(
        "tls_names: {name:?} is not a DNS name (labels of a-z, 0-9 and inner hyphens, 1–63 each, 253 in all, at least two)"
    )]
    Name {
        /// As given.
        name: String,
    },
    /// Not a usable interface.
    #[error("network: {why}")]
    Network {
        /// What is wrong.
        why: String,
    },
    /// The image could not be built (a fault of ours: inputs are bounded to fit).
    #[error("cannot build the seed's file system: {0}")]
    Image(String),
}

/// A checked seed. Holding one proves that every field is inside its bounds and safe to write into the YAML files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed(SeedSpec);

impl Seed {
    /// Checks everything.
    pub fn new(spec: SeedSpec) -> Result<Self, SeedError> {
        at_most("user_data", spec.user_data.len(), USER_DATA_MAX)?;
        at_most("ssh_public_keys", spec.public_keys.len(), SSH_KEYS_MAX)?;
        at_most("tls_names", spec.tls_names.len(), TLS_NAMES_MAX)?;
        at_most(
            "network.nameservers",
            spec.network.nameservers.len(),
            NAMESERVERS_MAX,
        )?;
        for (index, key) in spec.public_keys.iter().enumerate() {
            check_ssh_key(key).map_err(|why| SeedError::SshKey { index, why })?;
        }
        if let Some(name) = spec.tls_names.iter().find(|name| !is_dns_name(name)) {
            return Err(SeedError::Name { name: name.clone() });
        }
        check_network(&spec.network).map_err(|why| SeedError::Network { why })?;
        Ok(Self(spec))
    }

    /// `meta-data`.
    pub fn meta_data(&self) -> String {
        let id = self.0.contract;
        let mut out = format!("instance-id: \"{id}\"\nlocal-hostname: \"vm-{}\"\n", id.short());
        list(&mut out, "", "public-keys", &self.0.public_keys);
        out.push_str("decent-cloud:\n");
        line(&mut out, format_args!("  contract: \"{id}\""));
        line(&mut out, format_args!("  salt: \"{}\"", self.0.salt));
        list(&mut out, "  ", "tls_names", &self.0.tls_names);
        out
    }

    /// `network-config`, version 2.
    pub fn network_config(&self) -> String {
        let net = &self.0.network;
        let mut out = String::from("version: 2\nethernets:\n  eth0:\n    match:\n");
        line(&mut out, format_args!("      macaddress: \"{}\"", net.mac));
        line(&mut out, format_args!("    set-name: \"eth0\""));
        if let Some(mtu) = net.mtu {
            line(&mut out, format_args!("    mtu: {mtu}"));
        }
        list(&mut out, "    ", "addresses", &[format!("{}/32", net.address)]);
        // `0.0.0.0/0` and not `default`: cloud-init before 22.x knows only the former.
        out.push_str("    routes:\n      - to: \"0.0.0.0/0\"\n");
        line(&mut out, format_args!("        via: \"{}\"", net.gateway));
        out.push_str("        on-link: true\n");
        out.push_str("    nameservers:\n");
        list(&mut out, "      ", "addresses", &net.nameservers);
        out
    }

    /// The contract that this seed is for.
    pub fn contract(&self) -> ContractId {
        self.0.contract
    }

    /// The whole FAT image.
    pub fn image(&self) -> Result<Vec<u8>, SeedError> {
        fat::image(&[
            ("meta-data", self.meta_data().as_bytes()),
            ("network-config", self.network_config().as_bytes()),
            ("user-data", &self.0.user_data),
        ])
        .map_err(|e| SeedError::Image(e.to_string()))
    }
}

fn at_most(field: &'static str, found: usize, max: usize) -> Result<(), SeedError> {
    if found > max {
        Err(SeedError::TooMany { field, found, max })
    } else {
        Ok(())
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("writing to a String can't fail");
}

fn list<T: std::fmt::Display>(out: &mut String, indent: &str, key: &str, items: &[T]) {
    if items.is_empty() {
        line(out, format_args!("{indent}{key}: []"));
        return;
    }
    line(out, format_args!("{indent}{key}:"));
    for item in items {
        line(out, format_args!("{indent}  - \"{item}\""));
    }
}

/// `type base64 [comment]`, where the base64 holds the same type again (RFC 4253 section 6.6), all printable ASCII and
/// nothing that would end a quoted YAML string. Says nothing about the key's strength beyond its type.
fn check_ssh_key(line: &str) -> Result<(), String> {
    if line.len() > SSH_KEY_BYTES_MAX {
        return Err(format!("{} bytes; at most {SSH_KEY_BYTES_MAX}", line.len()));
    }
    if let Some(bad) = line
        .chars()
        .find(|c| !matches!(c, ' '..='~') || matches!(c, '"' | '\\'))
    {
        return Err(format!(
            "{bad:?} isn't allowed in a key line; give one key, printable ASCII, without quotes"
        ));
    }
    let mut words = line.split(' ');
    let (kind, data) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if !SSH_KEY_TYPES.contains(&kind) {
        return Err(format!(
            "{kind:?} is no accepted key type; use one of {}",
            SSH_KEY_TYPES.join(", ")
        ));
    }
    let blob = BASE64_STANDARD
        .decode(data)
        .map_err(|e| format!("the key's base64 is damaged: {e}"))?;
    let inner = blob
        .split_first_chunk::<4>()
        .and_then(|(length, rest)| rest.get(..u32::from_be_bytes(*length) as usize));
    if inner != Some(kind.as_bytes()) {
        return Err(format!("the key's data isn't that of a {kind} key"));
    }
    Ok(())
}

/// Lower-case host name of at least two labels (RFC 1123 section 2.1), no wildcard, no trailing dot, not an IP address.
fn is_dns_name(name: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    let last_is_a_number = name
        .rsplit('.')
        .next()
        .is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()));
    name.len() <= 253 && name.contains('.') && name.split('.').all(label) && !last_is_a_number
}

fn check_network(net: &SeedNetwork) -> Result<(), String> {
    let bytes: Vec<&str> = net.mac.split(':').collect();
    let hex2 = |b: &&str| b.len() == 2 && b.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    let multicast = || u8::from_str_radix(bytes[0], 16).is_ok_and(|b| b & 1 == 1);
    if bytes.len() != 6 || !bytes.iter().all(hex2) || multicast() {
        return Err(format!(
            "{:?} is not a unicast MAC address like 02:00:00:00:00:05",
            net.mac
        ));
    }
    for (what, address) in [("address", net.address), ("gateway", net.gateway)] {
        if address.is_unspecified()
            || address.is_loopback()
            || address.is_multicast()
            || address.is_broadcast()
        {
            return Err(format!("{what} {address} can't be that of a VM's link"));
        }
    }
    match net.mtu {
        Some(mtu) if mtu < 576 => Err(format!("MTU {mtu} is below IPv4's 576")),
        _ => Ok(()),
    }
}
