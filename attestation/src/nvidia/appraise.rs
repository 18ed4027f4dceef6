//! Whether an authentic report says what the policy asks for; its measurements are for [`super::measurement`].

use super::authenticate::Authentic;
use super::policy::{GpuPolicy, Version};
use crate::Policy;
use crate::result::{Check, Reason};
use crate::show;

/// The lines that [`appraise`] and the comparison of measurements give.
pub(super) const CHECKS: [&str; 6] = [
    "appraise.report-data",
    "appraise.device",
    "appraise.debug",
    "appraise.cc-mode",
    "appraise.tcb-floor",
    "appraise.measurement",
];

/// Everything but the measurements. `nonce`: what the caller knows that the request must hold.
pub(super) fn appraise(authentic: &Authentic, nonce: Option<[u8; 32]>, policy: &Policy) -> Vec<Check> {
    vec![
        freshness(authentic, nonce, policy),
        device(authentic, &policy.gpu),
        debug(authentic, &policy.gpu),
        cc_mode(authentic, &policy.gpu),
        driver(authentic, &policy.gpu),
    ]
}

/// The nonce of the binding, of the policy's GPU part, or the first half of the policy's report data.
fn freshness(authentic: &Authentic, nonce: Option<[u8; 32]>, policy: &Policy) -> Check {
    const ID: &str = "appraise.report-data";
    let found = show::hex(authentic.report().nonce());
    let same = |nonce: [u8; 32]| {
        Check::of(
            ID,
            nonce == authentic.report().nonce(),
            Reason::NonceMismatch,
            show::hex(nonce),
            &found,
        )
    };
    if let Some(nonce) = nonce.or(policy.gpu.nonce) {
        return same(nonce);
    }
    match policy.report_data.as_ref().map(|data| data.split_at(32)) {
        None => Check::not_checked(ID, "no nonce was expected", found),
        Some((nonce, rest)) if rest.iter().all(|b| *b == 0) => {
            same(nonce.try_into().expect("`split_at` gave 32 bytes"))
        }
        Some((nonce, rest)) => {
            let expected = format!("{} {}", show::hex(nonce), show::hex(rest));
            Check::of(ID, false, Reason::NonceMismatch, expected, found)
        }
    }
}

fn device(authentic: &Authentic, policy: &GpuPolicy) -> Check {
    const ID: &str = "appraise.device";
    let ueid = &authentic.device().ueid;
    match &policy.devices {
        None => Check::not_checked(ID, "any device of NVIDIA's will do", ueid),
        Some(devices) => {
            let expected = format!("one of {} devices", devices.len());
            Check::of(ID, devices.contains(ueid), Reason::ChipNotAllowed, expected, ueid)
        }
    }
}

fn debug(authentic: &Authentic, policy: &GpuPolicy) -> Check {
    const ID: &str = "appraise.debug";
    let says = authentic
        .device()
        .firmware
        .as_ref()
        .and_then(|firmware| firmware.debug);
    match says {
        None => Check::not_checked(
            ID,
            "the certificate doesn't say whether the firmware may be debugged",
            "",
        ),
        Some(debug) => {
            let found = if debug {
                "firmware that may be debugged"
            } else {
                "no debugging"
            };
            let expected = if policy.allow_debug {
                "anything"
            } else {
                "no debugging"
            };
            Check::of(
                ID,
                policy.allow_debug || !debug,
                Reason::DebugAllowed,
                expected,
                found,
            )
        }
    }
}

fn cc_mode(authentic: &Authentic, policy: &GpuPolicy) -> Check {
    const ID: &str = "appraise.cc-mode";
    let mode = authentic.report().opaque().cc_mode();
    let found = mode.map_or_else(|| "the device doesn't say".to_owned(), |mode| format!("{mode:?}"));
    match &policy.cc_modes {
        None => Check::not_checked(ID, "no mode was asked for", found),
        Some(modes) => {
            let holds = mode.is_some_and(|mode| modes.contains(&mode));
            Check::of(
                ID,
                holds,
                Reason::CcModeMismatch,
                format!("one of {modes:?}"),
                found,
            )
        }
    }
}

fn driver(authentic: &Authentic, policy: &GpuPolicy) -> Check {
    const ID: &str = "appraise.tcb-floor";
    let found = authentic.report().opaque().driver_version();
    let Some(floor) = &policy.min_driver else {
        return Check::not_checked(ID, "no least driver version was given", found.unwrap_or_default());
    };
    match found {
        None => Check::not_checked(ID, "a switch has no driver version", ""),
        Some(found) => {
            let holds = Version::parse(found).is_some_and(|version| version >= *floor);
            Check::of(ID, holds, Reason::TcbTooLow, format!("at least {floor}"), found)
        }
    }
}
