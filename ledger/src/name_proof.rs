//! How a developer proves that a DNS name is theirs: by a TXT record, as in ACME's DNS-01 (RFC 8555 8.4).
//!
//! `_decent-cloud.<name>. TXT "developer=<principal>"` says that this developer may have the name routed to their VMs.
//! Whoever can write the record has the name. It holds for all contracts of the developer, at any provider, and is no
//! secret: principals are public. The hosts look it up; the ledger has no part in it.

use candid::Principal;

/// The label in front of the name.
pub const LABEL: &str = "_decent-cloud";

/// What stands in front of the principal.
const KEY: &str = "developer=";

/// The longest name that can be proved: the record's own name has 253 bytes at most (RFC 1035 2.3.4).
pub const NAME_BYTES_MAX: usize = 253 - LABEL.len() - 1;

/// Where the record stands.
pub fn record_name(name: &str) -> String {
    format!("{LABEL}.{name}")
}

/// What it says.
pub fn record_value(developer: Principal) -> String {
    format!("{KEY}{developer}")
}

/// Whom a TXT record at that place names, if it is one of ours; other records may stand beside it.
pub fn developer_of(value: &str) -> Option<Principal> {
    Principal::from_text(value.trim().strip_prefix(KEY)?.trim()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_whom_it_was_written_for_and_nothing_else_names_anybody() {
        let developer = Principal::self_authenticating([1; 44]);
        let value = record_value(developer);
        assert_eq!(developer_of(&value), Some(developer));
        assert_eq!(developer_of(&format!(" {value} ")), Some(developer));
        assert_eq!(record_name("shop.example"), "_decent-cloud.shop.example");
        let text = developer.to_text();
        for other in [
            "",
            "v=spf1 -all",
            "developer=",
            "developer=me",
            &text,
            &format!("provider={text}"),
            &format!("{value}x"),
            &format!("x{value}"),
        ] {
            assert_eq!(developer_of(other), None, "{other:?}");
        }
    }
}
