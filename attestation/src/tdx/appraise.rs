//! Whether we like what an authentic quote says.

use super::authenticate::Authentication;
use super::quote::{ATTRIBUTE_BITS, Quote, TdReport};
use super::tcb::{Level, TcbStatus};
use crate::Policy;
use crate::compare::{NOT_ASKED, among, one};
use crate::result::{Check, Reason};
use crate::show;

const DEBUG: u64 = 1;
const PROFILING: u64 = 0b111 << 4;
const SERVICE_TD_EXT: u64 = 1 << 17;
const SEPT_VE_DISABLE: u64 = 1 << 28;
const MIGRATABLE: u64 = 1 << 29;
const PERFMON: u64 = 1 << 63;
/// Bits that must be zero (TDX module ABI 348551-008, table 3.23): 1–3, 7–15, 23–26, 32–61.
const RESERVED: u64 = 0x0e | 0xff80 | 0x0780_0000 | 0x3fff_ffff_0000_0000;
/// State that every TD has: x87 and SSE.
const XFAM_FIXED: u64 = 0b11;

/// Ids of all checks that [`appraise`] makes, so that a quote which can't be appraised names them too.
pub(super) const CHECKS: [&str; 17] = [
    "appraise.report-data",
    "appraise.host-data",
    "appraise.measurement",
    "appraise.rtmrs",
    "appraise.debug",
    "appraise.attributes",
    "appraise.service-td",
    "appraise.xfam",
    "appraise.mr-config-id",
    "appraise.mr-owner",
    "appraise.mr-owner-config",
    "appraise.mr-seam",
    "appraise.platform",
    "appraise.qe-identity",
    "appraise.tdx-module",
    "appraise.tcb-floor",
    "appraise.tcb-evaluation",
];

/// What of a TD's platform was found: the status, and which collateral said so.
pub(super) struct PlatformTcb {
    pub(super) level: Level,
    pub(super) evaluation_number: u32,
}

/// Compares an authentic quote with a policy and its platform with Intel's collateral: every check, whatever came before.
pub(super) fn appraise(
    quote: &Quote<'_>,
    authentication: &Authentication<'_>,
    policy: &Policy,
) -> (Vec<Check>, Option<PlatformTcb>) {
    let td = quote.body();
    let mut checks = vec![
        one(
            "appraise.report-data",
            Reason::ReportDataMismatch,
            policy.report_data,
            td.report_data(),
        ),
        one(
            "appraise.host-data",
            Reason::HostDataMismatch,
            policy.host_data.map(padded),
            td.mr_config_id(),
        ),
    ];
    checks.extend(measurements(&td, policy));
    checks.extend(attributes(&td, policy));
    let tdx = &policy.tdx;
    checks.extend([
        one(
            "appraise.mr-config-id",
            Reason::MrConfigMismatch,
            tdx.mr_config_id,
            td.mr_config_id(),
        ),
        one(
            "appraise.mr-owner",
            Reason::MrConfigMismatch,
            tdx.mr_owner,
            td.mr_owner(),
        ),
        one(
            "appraise.mr-owner-config",
            Reason::MrConfigMismatch,
            tdx.mr_owner_config,
            td.mr_owner_config(),
        ),
        among(
            "appraise.mr-seam",
            Reason::TdxModuleMismatch,
            &tdx.allowed_mr_seam,
            td.mr_seam(),
        ),
    ]);
    if let Some(platform) = &authentication.platform {
        checks.push(among(
            "appraise.platform",
            Reason::ChipNotAllowed,
            &tdx.allowed_ppids,
            platform.ppid,
        ));
    }
    let tcb = platform_tcb(quote, authentication, policy, &mut checks);
    (checks, tcb)
}

/// A contract's id as `MRCONFIGID` has it.
fn padded(id: [u8; 32]) -> [u8; 48] {
    let mut whole = [0; 48];
    whole[..32].copy_from_slice(&id);
    whole
}

/// What was in the TD's memory at its start, and what was measured since.
fn measurements(td: &TdReport<'_>, policy: &Policy) -> Vec<Check> {
    const ID: &str = "appraise.measurement";
    let whole = super::measurement(td.mr_td(), td.rtmrs());
    let mut checks = Vec::new();
    if policy.allowed_measurements.is_some() || policy.tdx.allowed_mr_td.is_none() {
        checks.push(among(
            ID,
            Reason::MeasurementMismatch,
            &policy.allowed_measurements,
            whole,
        ));
    }
    if policy.tdx.allowed_mr_td.is_some() {
        checks.push(among(
            ID,
            Reason::MeasurementMismatch,
            &policy.tdx.allowed_mr_td,
            td.mr_td(),
        ));
    }
    let all = policy.tdx.allowed_rtmrs.iter().zip(td.rtmrs());
    let asked = all.clone().filter(|(allowed, _)| allowed.is_some());
    checks
        .extend(asked.map(|(allowed, found)| among("appraise.rtmrs", Reason::RtmrMismatch, allowed, found)));
    if all.clone().all(|(allowed, _)| allowed.is_none()) {
        checks.push(Check::not_checked("appraise.rtmrs", NOT_ASKED, ""));
    }
    checks
}

fn attributes(td: &TdReport<'_>, policy: &Policy) -> Vec<Check> {
    let (bits, tdx) = (td.attributes(), &policy.tdx);
    let debug = bits & DEBUG != 0;
    let debug = Check::of(
        "appraise.debug",
        policy.allow_debug || !debug,
        Reason::DebugTd,
        if policy.allow_debug {
            "either"
        } else {
            "no debugging"
        },
        if debug {
            "the TD may be debugged by its host"
        } else {
            "no debugging"
        },
    );

    let mut required = tdx.required_attributes;
    let mut forbidden = RESERVED;
    for (allowed, bit) in [
        (tdx.allow_perfmon, PERFMON),
        (tdx.allow_profiling, PROFILING),
        (policy.allow_migration, MIGRATABLE),
    ] {
        if !allowed {
            forbidden |= bit;
        }
    }
    if !tdx.allow_sept_ve {
        required |= SEPT_VE_DISABLE;
    }
    let (missing, surplus) = (required & !bits, forbidden & bits);
    let mut faults = Vec::new();
    if missing != 0 {
        faults.push(format!("{} missing", names(missing)));
    }
    if surplus != 0 {
        faults.push(format!("{} set", names(surplus)));
    }
    faults.push(format!("{bits:#x}"));
    let expected = format!(
        "set: {}; clear: reserved bits and {}",
        names(required),
        names(forbidden & !RESERVED)
    );
    let holds = missing == 0 && surplus == 0;
    let attributes = Check::of(
        "appraise.attributes",
        holds,
        Reason::TdAttributes,
        expected,
        faults.join(": "),
    );

    let now = td.current_service_td().filter(|hash| *hash != [0; 48]);
    let bound = td.mr_service_td().filter(|hash| *hash != [0; 48]).or(now);
    let present = bound.is_some() || bits & SERVICE_TD_EXT != 0;
    let found = match bound {
        Some(hash) => show::hex(hash),
        None if present => "the attribute SERVTD_EXT".to_owned(),
        None => "none".to_owned(),
    };
    let service_td = Check::of(
        "appraise.service-td",
        tdx.allow_service_td || !present,
        Reason::ServiceTdPresent,
        if tdx.allow_service_td { "any" } else { "none" },
        found,
    );

    let xfam = td.xfam();
    let found = format!("{xfam:#x}");
    let xfam = match tdx.allowed_xfam {
        Some(allowed) => {
            let holds = xfam & !(allowed | XFAM_FIXED) == 0;
            Check::of(
                "appraise.xfam",
                holds,
                Reason::TdAttributes,
                format!("no bits outside {allowed:#x}"),
                found,
            )
        }
        None => Check::not_checked("appraise.xfam", NOT_ASKED, found),
    };
    vec![debug, attributes, service_td, xfam]
}

fn names(bits: u64) -> String {
    let name = |bit: u32| match ATTRIBUTE_BITS.iter().find(|(known, _)| *known == bit) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("bit {bit}"),
    };
    let names: Vec<String> = (0..64).filter(|bit| bits >> bit & 1 == 1).map(name).collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// What Intel's collateral says about the quoting enclave, the TDX module and the platform's TCB.
fn platform_tcb(
    quote: &Quote<'_>,
    authentication: &Authentication<'_>,
    policy: &Policy,
    checks: &mut Vec<Check>,
) -> Option<PlatformTcb> {
    const NO_IDENTITY: &str = "there is no genuine and current identity of the quoting enclave";
    const NO_INFO: &str = "there is no genuine and current TCB info for the platform";
    let qe_level = match authentication.qe_identity {
        Some(identity) => {
            let faults = identity.faults(&quote.qe_report);
            let svn = quote.qe_report.isv_svn();
            let found = if faults.is_empty() {
                format!("TD_QE with SVN {svn}")
            } else {
                faults.join("; ")
            };
            let expected = "the quoting enclave that Intel names";
            checks.push(Check::of(
                "appraise.qe-identity",
                faults.is_empty(),
                Reason::QeIdentityMismatch,
                expected,
                found,
            ));
            identity.level(svn)
        }
        None => {
            checks.push(Check::not_checked("appraise.qe-identity", NO_IDENTITY, ""));
            None
        }
    };
    let (Some((head, info)), Some(platform)) = (authentication.tcb_info, &authentication.platform) else {
        let ids = [
            "appraise.tdx-module",
            "appraise.tcb-floor",
            "appraise.tcb-evaluation",
        ];
        checks.extend(ids.map(|id| Check::not_checked(id, NO_INFO, "")));
        return None;
    };
    let td = quote.body();
    let svn = td.tee_tcb_svn();
    let module = info.check_module(&svn, td.mr_signer_seam(), td.seam_attributes());
    let holds = module.is_ok();
    let found = module.unwrap_or_else(|what| what);
    checks.push(Check::of(
        "appraise.tdx-module",
        holds,
        Reason::TdxModuleMismatch,
        "a TDX module of Intel's",
        found,
    ));

    let numbers = [
        Some(head.tcb_evaluation_data_number),
        authentication.qe_identity.map(|qe| qe.tcb_evaluation_data_number),
    ];
    let evaluation_number = numbers.into_iter().flatten().min().unwrap_or_default();
    let current = td
        .tee_tcb_svn2()
        .map(|svn| info.level(platform.svn, &svn))
        .transpose();
    let level = info
        .level(platform.svn, &svn)
        .and_then(|launch| Ok((launch, current?)));
    let Some(identity) = authentication.qe_identity else {
        checks.push(Check::not_checked("appraise.tcb-floor", NO_IDENTITY, ""));
        return None;
    };
    let level = level.and_then(|(launch, current)| {
        let qe = qe_level.ok_or_else(|| {
            format!(
                "no level of {} for SVN {}",
                identity.id,
                quote.qe_report.isv_svn()
            )
        })?;
        let launch = launch.with_component(&qe);
        Ok(match current {
            Some(current) => launch.with_current(&current.with_component(&qe)),
            None => launch,
        })
    });
    let accepted: Vec<String> = policy
        .tdx
        .accepted_status
        .iter()
        .map(ToString::to_string)
        .collect();
    let expected = accepted.join(" or ");
    let tcb = match level {
        Ok(level) => {
            let status = level.status;
            let found = match level.advisories.as_slice() {
                [] => status.to_string(),
                advisories => format!("{status} ({})", advisories.join(", ")),
            };
            // No policy makes up for keys that Intel no longer vouches for.
            let holds = policy.tdx.accepted_status.contains(&status) && status != TcbStatus::Revoked;
            checks.push(Check::of(
                "appraise.tcb-floor",
                holds,
                status.reason(),
                expected,
                found,
            ));
            if !policy.tdx.refused_advisories.is_empty() {
                let refused: Vec<&str> = level
                    .advisories
                    .iter()
                    .filter(|advisory| policy.tdx.refused_advisories.contains(*advisory))
                    .map(String::as_str)
                    .collect();
                let found = if refused.is_empty() {
                    "none of them".to_owned()
                } else {
                    refused.join(", ")
                };
                let list: Vec<&str> = policy.tdx.refused_advisories.iter().map(String::as_str).collect();
                let expected = format!("none of {}", list.join(", "));
                checks.push(Check::of(
                    "appraise.advisories",
                    refused.is_empty(),
                    Reason::AdvisoryRefused,
                    expected,
                    found,
                ));
            }
            Some(PlatformTcb {
                level,
                evaluation_number,
            })
        }
        Err(what) => {
            checks.push(Check::of(
                "appraise.tcb-floor",
                false,
                Reason::TcbUnrecognised,
                expected,
                what,
            ));
            None
        }
    };
    const ID: &str = "appraise.tcb-evaluation";
    checks.push(match policy.tdx.min_evaluation_number {
        Some(min) => {
            let holds = evaluation_number >= min;
            Check::of(
                ID,
                holds,
                Reason::TcbTooLow,
                format!("at least {min}"),
                evaluation_number,
            )
        }
        None => Check::not_checked(ID, NOT_ASKED, evaluation_number),
    });
    tcb
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attribute_bit_is_known_or_reserved() {
        for bit in 0..64 {
            let known = ATTRIBUTE_BITS.iter().any(|(known, _)| *known == bit) || (18..=22).contains(&bit);
            assert_eq!(RESERVED >> bit & 1 == 0, known, "bit {bit}");
        }
    }
}
