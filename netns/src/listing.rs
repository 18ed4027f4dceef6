//! Reading what `nft` lists, and comparing it with what we would write. Pure.
//!
//! The rules are compared with a *reference*: the listing of our own rules without elements, made by the same nft on the same
//! kernel in a scratch namespace. The elements are compared by value. So nothing depends on how a version words things.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::config::Config;
use crate::error::NetError;
use crate::rules::{
    DYNAMIC, Elements, GUARD, HOST, LIMITS, Table, Variable, guard_with, host_table, limit_element, put,
};

/// Which tables to look at in a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// The host's.
    Host,
    /// A tenant's guard.
    Guard,
}

impl Which {
    /// What an empty one looks like to nft: loaded into a scratch namespace and listed there, it is the reference that
    /// listings are compared with. So the comparison holds with every version of nft, however it words things.
    pub(crate) fn reference(self, config: &Config) -> String {
        match self {
            Self::Host => host_table(config, &Elements::new()),
            Self::Guard => guard_with(config, &Elements::new()),
        }
    }

    fn variables(self) -> &'static [Variable] {
        match self {
            Self::Host => HOST,
            Self::Guard => GUARD,
        }
    }

    fn table(self, config: &Config) -> String {
        match self {
            Self::Host => config.prefix.host_table(),
            Self::Guard => "guard".to_owned(),
        }
    }
}

/// A listing taken apart: what never changes, and the elements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    /// Everything but elements, handles and counts.
    pub(crate) constant: Vec<String>,
    /// The elements.
    pub(crate) elements: Elements,
}

/// Reads `nft -j list ruleset`. `None`: the table isn't there.
pub(crate) fn read_listing(which: Which, config: &Config, json: &str) -> Result<Option<Listing>, NetError> {
    let unreadable = |why: String| NetError::Answer { from: "nft", why };
    let document: Value = serde_json::from_str(json).map_err(|error| unreadable(error.to_string()))?;
    let items = document["nftables"]
        .as_array()
        .ok_or_else(|| unreadable("no `nftables` in it".to_owned()))?;
    let wanted = which.table(config);
    let mut listing = Listing::default();
    listing.elements.extend(
        which
            .variables()
            .iter()
            .map(|set| (set.name.to_owned(), BTreeSet::new())),
    );
    if which == Which::Guard {
        listing.elements.insert(LIMITS.to_owned(), BTreeSet::new());
    }
    let (mut rules, mut found) = (Vec::new(), false);
    for item in items {
        let Some((kind, body)) = item.as_object().and_then(|object| object.iter().next()) else {
            continue;
        };
        let (kind, mut body) = (kind.as_str(), body.clone());
        let name = body["name"].as_str().unwrap_or_default().to_owned();
        let table = if kind == "table" {
            &name
        } else {
            body["table"].as_str().unwrap_or_default()
        };
        if table != wanted {
            continue;
        }
        found = true;
        let Some(fields) = body.as_object_mut() else {
            continue;
        };
        fields.remove("handle");
        match kind {
            "set" | "map" => {
                let elements = fields.remove("elem").unwrap_or(Value::Array(Vec::new()));
                let mut elements: Vec<String> =
                    elements.as_array().into_iter().flatten().map(element).collect();
                if let Some(set) = listing.elements.get_mut(&name) {
                    set.extend(elements);
                } else if !DYNAMIC.contains(&name.as_str()) {
                    elements.sort();
                    fields.insert("elem".to_owned(), Value::from(elements));
                }
            }
            "limit" if which == Which::Guard => {
                // nft writes 65536 bytes as 64 kbytes.
                let bytes = |number: &str, unit: &str| {
                    let factor = match fields.get(unit).and_then(Value::as_str) {
                        Some("kbytes") => 1 << 10,
                        Some("mbytes") => 1 << 20,
                        _ => 1,
                    };
                    fields
                        .get(number)
                        .and_then(Value::as_u64)
                        .unwrap_or_default()
                        .saturating_mul(factor)
                };
                let (rate, burst) = (bytes("rate", "rate_unit"), bytes("burst", "burst_unit"));
                put(&mut listing.elements, LIMITS, limit_element(&name, rate, burst));
                continue;
            }
            "counter" => {
                fields.remove("packets");
                fields.remove("bytes");
            }
            _ => {}
        }
        let text = format!("{kind} {body}");
        if kind == "rule" {
            rules.push(text)
        } else {
            listing.constant.push(text)
        }
    }
    listing.constant.sort(); // the order of sets and chains means nothing
    listing.constant.extend(rules); // the order of rules does
    Ok(found.then_some(listing))
}

/// An element of a set or map as nft writes it, without quotes.
fn element(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(pair) => pair.iter().map(element).collect::<Vec<_>>().join(" : "),
        Value::Object(object) => match (object.get("concat"), object.get("elem")) {
            (Some(Value::Array(parts)), _) => parts.iter().map(element).collect::<Vec<_>>().join(" . "),
            (_, Some(inner)) => element(&inner["val"]),
            _ => value.to_string(),
        },
        other => other.to_string(),
    }
}

/// Judges a listing by the reference.
pub(crate) fn judge(listing: Option<Listing>, reference: &Listing) -> Table {
    match listing {
        None => Table::Absent,
        Some(listing) if listing.constant != reference.constant => Table::Changed,
        Some(listing) => Table::Ours(listing.elements),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{BURST, rate};

    fn config() -> Config {
        let mut config = Config::new("wan0".parse().unwrap(), [203, 0, 113, 1].into());
        config.nameservers = vec![[192, 168, 1, 1].into()];
        config.deny = vec!["198.51.100.0/24".parse().unwrap()];
        config.haproxy = Some(toml::from_str("run_dir = \"/run/dc\"").unwrap());
        config
    }

    #[test]
    fn listings_are_read_in_any_unit_and_one_that_is_not_nfts_is_an_error() {
        for json in ["", "{}", "[]", "{\"nftables\": 7}", "{\"nftables\": ["] {
            assert!(read_listing(Which::Host, &config(), json).is_err(), "{json}");
        }
        // Limits of every size read back as they were written.
        for mbps in [1, 8, 1_000, 1_024, 400_000] {
            let (rate, unit) = match rate(mbps) {
                rate if rate % (1 << 20) == 0 => (rate >> 20, "mbytes"),
                rate if rate % (1 << 10) == 0 => (rate >> 10, "kbytes"),
                rate => (rate, "bytes"),
            };
            let json = format!(
                r#"{{"nftables": [{{"limit": {{"table": "guard", "name": "sent1", "rate": {rate}, "rate_unit": "{unit}",
                "per": "second", "burst": 64, "burst_unit": "kbytes"}}}}]}}"#
            );
            let listing = read_listing(Which::Guard, &config(), &json).unwrap().unwrap();
            assert_eq!(
                listing.elements[LIMITS],
                BTreeSet::from([limit_element("sent1", crate::rules::rate(mbps), BURST)])
            );
        }
        let odd = r#"{"nftables": [7, {}, {"table": {"name": "dc_host"}}, {"set": {"table": "dc_host", "name": "sources", "elem": 7}}]}"#;
        assert!(read_listing(Which::Host, &config(), odd).unwrap().is_some());
    }
}
