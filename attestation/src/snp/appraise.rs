//! Whether we like what an authentic report says.

use std::fmt::Display;

use super::authenticate::Authentic;
use super::report::{PLATFORM_BITS, POLICY_BITS};
use super::{Product, TcbFloor, TcbVersion};
use crate::Policy;
use crate::compare::{NOT_ASKED, among, one};
use crate::result::{Check, Reason};

const DEBUG: u64 = 1 << 19;
const MIGRATE_MA: u64 = 1 << 18;

/// Ids of all checks that are made of an authentic report, so that a report which can't be appraised names them too.
pub(crate) const CHECKS: [&str; 20] = [
    "appraise.report-data",
    "appraise.host-data",
    "appraise.measurement",
    "appraise.debug",
    "appraise.migration",
    "appraise.policy-bits",
    "appraise.platform-info",
    "appraise.vmpl",
    "appraise.family-id",
    "appraise.image-id",
    "appraise.id-key",
    "appraise.author-key",
    "appraise.chip",
    "appraise.product",
    "appraise.tcb-consistent",
    "appraise.tcb-floor",
    "appraise.firmware",
    "appraise.mitigations",
    "appraise.contract-id",
    "appraise.settings",
];

/// Compares an authentic report with a policy: every check, whatever came before it.
pub fn appraise(authentic: &Authentic, policy: &Policy) -> Vec<Check> {
    let report = authentic.report();
    let product = authentic.product();
    let mut checks = vec![
        one(
            "appraise.report-data",
            Reason::ReportDataMismatch,
            policy.report_data,
            report.report_data(),
        ),
        one(
            "appraise.host-data",
            Reason::HostDataMismatch,
            policy.host_data,
            report.host_data(),
        ),
        among(
            "appraise.measurement",
            Reason::MeasurementMismatch,
            &policy.allowed_measurements,
            report.measurement(),
        ),
        flag(
            "appraise.debug",
            Reason::DebugAllowed,
            policy.allow_debug,
            report.policy() & DEBUG != 0,
            "debugging",
        ),
        flag(
            "appraise.migration",
            Reason::MigrateMaAllowed,
            policy.allow_migration,
            report.policy() & MIGRATE_MA != 0,
            "migration",
        ),
        bits(
            "appraise.policy-bits",
            Reason::PolicyBitsMissing,
            (policy.required_policy_bits, 0),
            report.policy(),
            &POLICY_BITS,
        ),
        bits(
            "appraise.platform-info",
            Reason::PlatformInfoMismatch,
            (policy.required_platform_bits, policy.forbidden_platform_bits),
            report.platform_info(),
            &PLATFORM_BITS,
        ),
        Check::of(
            "appraise.vmpl",
            report.vmpl() <= policy.max_vmpl,
            Reason::VmplTooLow,
            format!("at most {}", policy.max_vmpl),
            report.vmpl(),
        ),
        one(
            "appraise.family-id",
            Reason::FamilyIdMismatch,
            policy.family_id,
            report.family_id(),
        ),
        one(
            "appraise.image-id",
            Reason::ImageIdMismatch,
            policy.image_id,
            report.image_id(),
        ),
        among(
            "appraise.id-key",
            Reason::IdKeyDigestMismatch,
            &policy.allowed_id_keys,
            report.id_key_digest(),
        ),
        among(
            "appraise.author-key",
            Reason::AuthorKeyDigestMismatch,
            &policy.allowed_author_keys,
            report.author_key_digest(),
        ),
        among(
            "appraise.chip",
            Reason::ChipNotAllowed,
            &policy.allowed_chips,
            report.chip_id(),
        ),
    ];
    checks.push(product_check(authentic, policy));
    checks.extend(tcb_checks(authentic, product, policy));
    checks.push(firmware(authentic, policy));
    checks.push(mitigations(authentic, policy));
    checks
}

/// What a careful reader should know.
pub(crate) fn warnings(authentic: &Authentic) -> Vec<String> {
    let mut warnings = Vec::new();
    if authentic.product() == Product::Milan {
        warnings.push(
            "Milan: the root of a chip's keys can be extracted by software (arXiv 2605.12990), so a host with a \
             broken chip can sign anything; refuse the product if that matters"
                .to_owned(),
        );
    }
    if authentic.report().platform_info() >> PLATFORM_BITS.len() != 0 {
        warnings.push("the report has platform bits that this verifier doesn't know".to_owned());
    }
    warnings
}

fn flag(id: &'static str, reason: Reason, allowed: bool, set: bool, what: &str) -> Check {
    let found = if set {
        format!("{what} allowed by the guest policy")
    } else {
        format!("no {what}")
    };
    let expected = if allowed {
        "either".to_owned()
    } else {
        format!("no {what}")
    };
    Check::of(id, allowed || !set, reason, expected, found)
}

fn bits(
    id: &'static str,
    reason: Reason,
    (required, forbidden): (u64, u64),
    found: u64,
    table: &[(u32, &'static str)],
) -> Check {
    let name = |bit: u32| {
        table
            .iter()
            .find(|(b, _)| *b == bit)
            .map_or(format!("bit {bit}"), |(_, n)| (*n).to_owned())
    };
    let list = |value: u64| {
        let names: Vec<String> = (0..64).filter(|bit| value >> bit & 1 == 1).map(name).collect();
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(" ")
        }
    };
    if required == 0 && forbidden == 0 {
        return Check::not_checked(id, NOT_ASKED, format!("{found:#x}"));
    }
    let holds = found & required == required && found & forbidden == 0;
    let expected = format!("set: {}; clear: {}", list(required), list(forbidden));
    Check::of(id, holds, reason, expected, format!("{found:#x}"))
}

fn product_check(authentic: &Authentic, policy: &Policy) -> Check {
    let product = authentic.product();
    let kind_ok = policy.vek.is_none_or(|vek| vek == authentic.vek());
    if !kind_ok {
        let expected = format!("{:?}", policy.vek.unwrap_or(authentic.vek()));
        let found = format!("{:?}", authentic.vek());
        return Check::of(
            "appraise.product",
            false,
            Reason::VekKindMismatch,
            expected,
            found,
        );
    }
    let refused = policy
        .refused_products
        .iter()
        .map(|p| p.name())
        .collect::<Vec<_>>()
        .join(", ");
    let expected = if refused.is_empty() {
        "any".to_owned()
    } else {
        format!("not {refused}")
    };
    let holds = !policy.refused_products.contains(&product);
    Check::of(
        "appraise.product",
        holds,
        Reason::ProductRefused,
        expected,
        product,
    )
}

fn tcb_checks(authentic: &Authentic, product: Product, policy: &Policy) -> Vec<Check> {
    let report = authentic.report();
    let current = report.current_tcb(product);
    let (reported, committed, launch) = (
        report.reported_tcb(product),
        report.committed_tcb(product),
        report.launch_tcb(product),
    );
    let above = |name: &str, version: TcbVersion| {
        let parts: Vec<String> = version
            .parts_above(current)
            .iter()
            .map(ToString::to_string)
            .collect();
        (!parts.is_empty()).then(|| format!("{name} above current in {}", parts.join(", ")))
    };
    let odd: Vec<String> = [above("reported", reported), above("committed", committed)]
        .into_iter()
        .flatten()
        .collect();
    let expected = if policy.allow_inconsistent_tcb {
        "anything"
    } else {
        "reported and committed not above current"
    };
    let found = if odd.is_empty() {
        "consistent".to_owned()
    } else {
        odd.join("; ")
    };
    let consistent = odd.is_empty() || policy.allow_inconsistent_tcb;
    let mut checks = vec![Check::of(
        "appraise.tcb-consistent",
        consistent,
        Reason::InconsistentTcb,
        expected,
        found,
    )];
    let of_product = policy.product_tcb.get(&product).copied().unwrap_or_default();
    let floors = [
        ("reported", policy.min_tcb.reported.raised(of_product), reported),
        (
            "committed",
            policy.min_tcb.committed.raised(of_product),
            committed,
        ),
        ("launch", policy.min_tcb.launch.raised(of_product), launch),
    ];
    if floors.iter().all(|(_, floor, _)| floor.is_empty()) {
        let found = format!("reported {reported}");
        checks.push(Check::not_checked("appraise.tcb-floor", NOT_ASKED, found));
    }
    let asked = floors.into_iter().filter(|(_, floor, _)| !floor.is_empty());
    checks.extend(asked.map(|(name, floor, version)| floor_check(name, floor, version)));
    checks
}

fn floor_check(name: impl Display, floor: TcbFloor, version: TcbVersion) -> Check {
    let low: Vec<String> = floor
        .violations(version)
        .into_iter()
        .map(|(part, floor, found)| match found {
            Some(found) => format!("{part} {found} < {floor}"),
            None => format!("no {part}"),
        })
        .collect();
    let found = if low.is_empty() {
        version.to_string()
    } else {
        low.join(", ")
    };
    let expected = format!("{name}: at least {floor}");
    Check::of(
        "appraise.tcb-floor",
        low.is_empty(),
        Reason::TcbTooLow,
        expected,
        format!("{name}: {found}"),
    )
}

fn firmware(authentic: &Authentic, policy: &Policy) -> Check {
    const ID: &str = "appraise.firmware";
    let show = |[major, minor, build]: [u8; 3]| format!("{major}.{minor}.{build}");
    let (current, committed) = (
        authentic.report().current_firmware(),
        authentic.report().committed_firmware(),
    );
    let found = format!("current {}, committed {}", show(current), show(committed));
    match policy.min_firmware {
        Some(min) => {
            let holds = current >= min && committed >= min;
            Check::of(
                ID,
                holds,
                Reason::FirmwareTooOld,
                format!("at least {}", show(min)),
                found,
            )
        }
        None => Check::not_checked(ID, NOT_ASKED, found),
    }
}

fn mitigations(authentic: &Authentic, policy: &Policy) -> Check {
    const ID: &str = "appraise.mitigations";
    let required = policy.required_mitigations;
    let vectors = authentic.report().mitigations();
    let found = vectors.map_or(
        "no vectors before report version 5".to_owned(),
        |[launch, current]| format!("launch {launch:#x}, current {current:#x}"),
    );
    if required == 0 {
        return Check::not_checked(ID, NOT_ASKED, found);
    }
    let holds = vectors.is_some_and(|vectors| vectors.iter().all(|v| v & required == required));
    Check::of(
        ID,
        holds,
        Reason::MitigationMissing,
        format!("{required:#x} set at launch and now"),
        found,
    )
}
