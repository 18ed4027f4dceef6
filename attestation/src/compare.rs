//! Comparing what evidence says with the reference values that a caller gave.

use crate::result::{Check, Reason};
use crate::show;
use crate::{GuestKeys, Policy};

/// Why a check that needs a reference value wasn't made.
pub(crate) const NOT_ASKED: &str = "no reference value was given";

/// Compares with the one value that was given, if one was.
pub(crate) fn one<const N: usize>(
    id: &'static str,
    reason: Reason,
    expected: Option<[u8; N]>,
    found: [u8; N],
) -> Check {
    match expected {
        Some(expected) => Check::of(
            id,
            expected == found,
            reason,
            show::hex(expected),
            show::hex(found),
        ),
        None => Check::not_checked(id, NOT_ASKED, show::hex(found)),
    }
}

/// Looks the value up in the list that was given, if one was; an empty list allows nothing.
pub(crate) fn among<const N: usize>(
    id: &'static str,
    reason: Reason,
    allowed: &Option<Vec<[u8; N]>>,
    found: [u8; N],
) -> Check {
    let found_hex = show::hex(found);
    match allowed {
        Some(allowed) => {
            let expected = allowed.iter().map(show::hex).collect::<Vec<_>>().join(" or ");
            let expected = if expected.is_empty() {
                "none is allowed".to_owned()
            } else {
                expected
            };
            Check::of(id, allowed.contains(&found), reason, expected, found_hex)
        }
        None => Check::not_checked(id, NOT_ASKED, found_hex),
    }
}

/// Compares the expected launch binding with the contract id that salt and settings give: then the launch speaks of the
/// settings, too.
pub(crate) fn contract_id(policy: &Policy) -> Check {
    const ID: &str = "appraise.contract-id";
    match (policy.host_data, policy.salt, policy.settings) {
        (_, None, _) => Check::not_checked(ID, "no salt was given: the id may stand for any settings", ""),
        (Some(id), Some(salt), Some(settings)) => {
            let derived = crate::contract_id(&salt, &settings);
            let (expected, found) = (show::hex(derived), show::hex(id));
            Check::of(ID, derived == id, Reason::ContractIdMismatch, expected, found)
        }
        (_, Some(_), _) => {
            let why = "a salt needs the contract's id (host_data) and its settings beside it";
            Check::missing(ID, Reason::ReferenceMissing, why)
        }
    }
}

/// Compares what the VM says it was set up with. The report binds that only through `REPORT_DATA`, which must therefore
/// be asked for, too.
pub(crate) fn settings(keys: &GuestKeys, policy: &Policy) -> Check {
    const ID: &str = "appraise.settings";
    let found = keys.settings.map(show::hex).unwrap_or_default();
    match (policy.settings, keys.settings) {
        (None, _) => Check::not_checked(ID, "no settings were given to compare with", found),
        (Some(_), None) => {
            let why = "the evidence doesn't say which SSH keys and user data the VM was set up with";
            Check::missing(ID, Reason::SettingsMissing, why)
        }
        (Some(_), Some(_)) if policy.report_data.is_none() => {
            let why = "REPORT_DATA binds the settings, and no value was given to compare it with";
            Check::missing(ID, Reason::ReferenceMissing, why)
        }
        (Some(expected), Some(settings)) => Check::of(
            ID,
            expected == settings,
            Reason::SettingsMismatch,
            show::hex(expected),
            found,
        ),
    }
}
