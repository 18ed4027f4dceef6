//! Names and addresses. Everything here is a checked type or a pure function of a [`Slot`] and the [`Config`](crate::Config).
//!
//! | Object                                   | Name                                   | Lives in             |
//! |------------------------------------------|----------------------------------------|----------------------|
//! | namespace of a tenant                    | `<prefix>-t-<tenant>`                  | `/run/netns`         |
//! | veth, the host's end                     | `<prefix>-<start of tenant>`, 15 bytes | the host's namespace |
//! | veth, the tenant's end                   | `up0`                                  | the tenant's         |
//! | tap of a VM                              | `<prefix>_t<slot>`                     | the tenant's         |
//! | nft table                                | `inet <prefix>_host`, `arp <prefix>_host` | the host's        |
//! | nft tables                               | `inet guard`, `arp guard`              | the tenant's         |
//!
//! `-` after the prefix means "a tenant's", `_` means "a VM's": with the prefix `dc`, rules that say `dc-*` hold for
//! every tenant there is or will be, so an interface that no set knows yet is closed, not open.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Number of a VM on this host, from 1 to 65534. Every name and address of the VM's network follows from it.
pub type Slot = u16;

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not an interface name.
    #[error("{0:?} is not an interface name: 1 to 15 of A-Z a-z 0-9 - _ ., starting with a letter")]
    Interface(String),
    /// Not a prefix.
    #[error("{0:?} can't be a prefix: 1 to 6 of a-z 0-9, starting with a letter")]
    Prefix(String),
    /// Not a tenant id.
    #[error("{0:?} is not a tenant id: 1 to 40 of a-z 0-9")]
    Tenant(String),
    /// Not a user name.
    #[error("{0:?} is not a user name: 1 to 31 of a-z 0-9 - _, starting with a letter or _")]
    User(String),
    /// Not a DNS name.
    #[error("{name:?} is not a DNS name: {why}")]
    Dns {
        /// What was given, cut to 300 bytes.
        name: String,
        /// The rule it breaks.
        why: &'static str,
    },
}

/// Makes a text newtype go through its `FromStr` in serde and show itself as text.
macro_rules! text_type {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl $name {
            /// As text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

/// Name of a network interface: 1 to 15 of `A-Z a-z 0-9 - _ .`, starting with a letter (Linux allows more; we need no more).
///
/// Holding one proves that it is safe as a file name, as an nft word in quotes, and as an argument that can't pass for an
/// option. It doesn't prove that such an interface exists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IfName(String);

text_type!(IfName);

impl FromStr for IfName {
    type Err = NameError;
    fn from_str(name: &str) -> Result<Self, NameError> {
        let word = name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        let letter = name.starts_with(|c: char| c.is_ascii_alphabetic());
        if !(1..=15).contains(&name.len()) || !word || !letter {
            return Err(NameError::Interface(name.chars().take(40).collect()));
        }
        Ok(Self(name.to_owned()))
    }
}

/// What the names of all objects of one [`Network`](crate::Network) begin with: 1 to 6 of `a-z 0-9`, a letter first.
///
/// Two networks with different prefixes on one machine never touch each other's objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix(String);

text_type!(Prefix);

impl FromStr for Prefix {
    type Err = NameError;
    fn from_str(name: &str) -> Result<Self, NameError> {
        let word = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !(1..=6).contains(&name.len()) || !word || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Err(NameError::Prefix(name.chars().take(40).collect()));
        }
        Ok(Self(name.to_owned()))
    }
}

impl Default for Prefix {
    fn default() -> Self {
        Self("dc".to_owned())
    }
}

impl Prefix {
    /// Name of a tenant's namespace, as `ip netns` shows it.
    pub fn namespace(&self, tenant: &TenantId) -> String {
        format!("{self}-t-{tenant}")
    }

    /// The tenant whose namespace this is, if it is one of ours.
    pub fn tenant_of_namespace(&self, name: &str) -> Option<TenantId> {
        name.strip_prefix(self.as_str())?
            .strip_prefix("-t-")?
            .parse()
            .ok()
    }

    /// The host's end of a tenant's veth: as much of the tenant id as fits. [`Desired::check`](crate::Desired::check)
    /// refuses two tenants whose ids begin alike that far.
    pub fn uplink(&self, tenant: &TenantId) -> IfName {
        let room = 15 - self.0.len() - 1;
        let start: String = tenant.0.chars().take(room).collect();
        IfName(format!("{self}-{start}"))
    }

    /// Whether an interface of the host's namespace is the host's end of a tenant's veth.
    pub fn is_uplink(&self, name: &str) -> bool {
        name.strip_prefix(self.as_str())
            .is_some_and(|rest| rest.starts_with('-'))
    }

    /// The tap of a VM; the same wherever the tap is lent to.
    pub fn tap(&self, slot: Slot) -> IfName {
        IfName(format!("{self}_t{slot}"))
    }

    /// The VM whose tap this is, if it is one of ours.
    pub fn slot_of_tap(&self, name: &str) -> Option<Slot> {
        let slot = name
            .strip_prefix(self.as_str())?
            .strip_prefix("_t")?
            .parse()
            .ok()?;
        (self.tap(slot).as_str() == name).then_some(slot)
    }

    /// Name of the host's nft tables.
    pub fn host_table(&self) -> String {
        format!("{self}_host")
    }
}

/// Who a tenant is, as far as the network cares: 1 to 40 of `a-z 0-9`.
///
/// It names the tenant's namespace, so two tenants with one id share a network. Make it with [`TenantId::of`], whose 160
/// bits nobody can hit on purpose. Of these 60 reach the interface name with the default prefix, 5 less per letter more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantId(String);

text_type!(TenantId);

impl TenantId {
    /// The id of an account: base 32 of the first 20 bytes of SHA-256 over `account` (for a ledger's principal: its bytes).
    pub fn of(account: &[u8]) -> Self {
        use sha2::Digest as _;
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let digest = sha2::Sha256::digest(account);
        let (mut bits, mut held, mut text) = (0u32, 0u32, String::with_capacity(32));
        for byte in &digest[..20] {
            bits = bits << 8 | u32::from(*byte);
            held += 8;
            while held >= 5 {
                held -= 5;
                text.push(char::from(ALPHABET[(bits >> held & 31) as usize]));
            }
            bits &= (1 << held) - 1;
        }
        Self(text)
    }
}

impl FromStr for TenantId {
    type Err = NameError;
    fn from_str(name: &str) -> Result<Self, NameError> {
        let word = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !(1..=40).contains(&name.len()) || !word {
            return Err(NameError::Tenant(name.chars().take(60).collect()));
        }
        Ok(Self(name.to_owned()))
    }
}

/// A host name as certificates and SNI carry it (RFC 1123): at least two labels of 1 to 63 of `a-z 0-9 -` that neither begin
/// nor end with `-`, at most 253 bytes, last label not all digits (that would be an address). Parsing turns capitals into
/// small letters and drops one final dot. No wildcards, no underscores; other scripts come as `xn--`.
///
/// Holding one proves that it can stand in a map file and in a command of HAProxy's runtime socket. It doesn't prove that
/// anybody owns the name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DnsName(String);

text_type!(DnsName);

impl FromStr for DnsName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let refuse = |why| {
            Err(NameError::Dns {
                name: text.chars().take(300).collect(),
                why,
            })
        };
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if name.is_empty() || name.len() > 253 {
            return refuse("it must have 1 to 253 bytes");
        }
        if !name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        {
            return refuse("only letters, digits, '-' and '.' can stand in it");
        }
        for label in name.split('.') {
            if !(1..=63).contains(&label.len()) {
                return refuse("each part between dots must have 1 to 63 bytes");
            }
            if label.starts_with('-') || label.ends_with('-') {
                return refuse("no part between dots can begin or end with '-'");
            }
        }
        match name.rsplit_once('.') {
            None => refuse("it must have at least two parts, like vm.example.org"),
            Some((_, last)) if last.bytes().all(|b| b.is_ascii_digit()) => {
                refuse("the last part can't be a number")
            }
            Some(_) => Ok(Self(name)),
        }
    }
}

/// Name of a user of this machine, as Debian makes them: 1 to 31 of `a-z 0-9 - _`, starting with a letter or `_`. It doesn't
/// prove that there is such a user.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserName(String);

text_type!(UserName);

impl Default for UserName {
    fn default() -> Self {
        Self("haproxy".to_owned())
    }
}

impl FromStr for UserName {
    type Err = NameError;
    fn from_str(name: &str) -> Result<Self, NameError> {
        let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        let first = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
        if !(1..=31).contains(&name.len()) || !name.bytes().all(word) || !first {
            return Err(NameError::User(name.chars().take(40).collect()));
        }
        Ok(Self(name.to_owned()))
    }
}

/// MAC address of a VM's network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// MAC address of the VM in `slot`: locally administered, the same on every host (VMs of two hosts never share a link).
pub fn mac(slot: Slot) -> Mac {
    let [high, low] = slot.to_be_bytes();
    Mac([0x02, 0xdc, 0, 0, high, low])
}

/// The gateway's MAC address on every tap.
pub const GATEWAY_MAC: Mac = Mac([0xfe, 0, 0, 0, 0, 1]);

/// MAC address of the host's end of a tenant's veth.
pub(crate) const UPLINK_HOST_MAC: Mac = Mac([0xfe, 0, 0, 0, 0, 2]);

/// MAC address of the tenant's end of its veth.
pub(crate) const UPLINK_TENANT_MAC: Mac = Mac([0xfe, 0, 0, 0, 0, 3]);

/// The gateway that every VM uses, on link; VMs never see another address of the host.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The host's address on every tenant's veth: what a VM sees as the peer of connections that HAProxy brings.
pub const UPLINK_HOST: Ipv4Addr = Ipv4Addr::new(169, 254, 2, 1);

/// The tenant namespace's address on its veth.
pub(crate) const UPLINK_TENANT: Ipv4Addr = Ipv4Addr::new(169, 254, 2, 2);

/// The tenant's end of its veth.
pub(crate) const UPLINK_IN_TENANT: &str = "up0";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names() {
        for (input, good) in [
            ("eth0", true),
            ("wan0.100", true),
            ("t23456789012345", true), // 15 bytes, the longest
            ("t234567890123456", false),
            ("", false),
            ("-j", false), // would reach a command as an option
            ("..", false),
            ("a/b", false),
            ("a b", false),
            ("a\"", false),
        ] {
            assert_eq!(input.parse::<IfName>().is_ok(), good, "input {input:?}");
        }
    }

    #[test]
    fn dns_names() {
        let long_label = format!("{}.org", "a".repeat(64));
        let long_name = format!("{}org", "abcdefgh.".repeat(28)); // 255 bytes
        for (input, want) in [
            ("a.example", Some("a.example")),
            ("A.Example.ORG.", Some("a.example.org")),
            ("xn--bcher-kva.example", Some("xn--bcher-kva.example")),
            ("1.2.3.4", None),
            ("localhost", None),
            ("*.example.org", None),
            ("a..b", None),
            (".a.b", None),
            ("-a.b", None),
            ("a-.b", None),
            ("a_b.c", None),
            ("a.b;shutdown frontend tls", None),
            ("a.b\nc.d", None),
            ("a.b ", None),
            ("bücher.example", None),
            ("", None),
            (".", None),
            (&long_label, None),
            (&long_name, None),
        ] {
            let got = input.parse::<DnsName>();
            assert_eq!(got.as_ref().ok().map(DnsName::as_str), want, "input {input:?}");
        }
    }

    #[test]
    fn every_name_derived_from_any_slot_and_tenant_is_an_interface_name_and_leads_back() {
        let prefix: Prefix = "abcdef".parse().unwrap();
        for slot in [1, 9, 10_000, 65_534] {
            let tap = prefix.tap(slot);
            assert_eq!(tap.as_str().parse::<IfName>().as_ref(), Ok(&tap));
            assert_eq!(prefix.slot_of_tap(tap.as_str()), Some(slot));
        }
        for tenant in ["x", "0123456789012345678901234567890123456789"] {
            let tenant: TenantId = tenant.parse().unwrap();
            let uplink = prefix.uplink(&tenant);
            assert_eq!(uplink.as_str().parse::<IfName>().as_ref(), Ok(&uplink));
            assert!(prefix.is_uplink(uplink.as_str()));
            assert_eq!(
                prefix.tenant_of_namespace(&prefix.namespace(&tenant)),
                Some(tenant)
            );
        }
    }

    #[test]
    fn a_namespace_that_only_shares_the_prefix_is_not_a_tenants() {
        let prefix: Prefix = "dcdemo".parse().unwrap();
        for name in [
            "dcdemo-host",
            "dcdemo-wan",
            "dcdemo-t-",
            "dcdemo-t-a-b",
            "dcdemo-tab",
        ] {
            assert_eq!(prefix.tenant_of_namespace(name), None, "{name}");
        }
    }

    #[test]
    fn names_of_others_are_not_taken_for_ours() {
        let prefix: Prefix = "dc".parse().unwrap();
        for name in ["dcx-t-abc", "dcx-abc", "d-abc", "eth0", "dc", "dcabc"] {
            assert!(!prefix.is_uplink(name), "{name}");
            assert_eq!(prefix.tenant_of_namespace(name), None, "{name}");
        }
        for name in [
            "dc_t07",
            "dc_t",
            "dc_t70000",
            "dc_t-1",
            "dc_t+1",
            "dcx_t7",
            "dc-t7",
        ] {
            assert_eq!(prefix.slot_of_tap(name), None, "{name}");
        }
    }

    #[test]
    fn tenant_ids_of_accounts_are_base32_of_their_sha256() {
        // printf alice | openssl dgst -sha256 -binary | head -c 20 | base32 | tr A-Z a-z
        assert_eq!(
            TenantId::of(b"alice").as_str(),
            "fpmansl7byak6gq7ymzi7j3dvetjoi6i"
        );
    }
}
