//! The measurements of a report against reference manifests.
//!
//! The best of the genuine manifests that fit is compared: each of its active measurements must be in the report, with
//! one of its values. Genuine ones for other versions are set aside. A forged one can't be: what it says of itself, also
//! for which driver it is, means nothing. So where a manifest is wanting, and forged ones were given, that is refused;
//! where none is wanting they are only named.

use serde_json::{Value, json};

use super::authenticate::{Authentic, revocation};
use super::claims::passed;
use super::opaque::field;
use super::report::Report;
use super::rim::{Authenticity, Golden, Rim};
use crate::result::{Check, Reason, Trust};
use crate::roots::Roots;
use crate::show;
use crate::x509::find_path;
use crate::{Endorsements, Policy};

const ID: &str = "appraise.measurement";
/// This index of a manifest counts only while the first video decoder is in use.
const NVDEC0_INDEX: u8 = 35;
/// That many faulty manifests are named.
const FAULTY_MAX: usize = 8;
const SUPPLIED: [&str; 3] = [
    "rim.supplied.signature",
    "rim.supplied.chain",
    "rim.supplied.dates",
];

/// What comparing gave.
pub(super) struct Comparison {
    pub(super) checks: Vec<Check>,
    /// What the manifests used rest on; `None`: none was used.
    pub(super) trust: Option<Trust>,
    /// As NVIDIA's claims have it.
    pub(super) claims: Value,
    pub(super) warnings: Vec<String>,
}

/// What a manifest can be for.
struct Role {
    name: &'static str,
    ids: [&'static str; 4],
    version: String,
}

/// A manifest with what is known about its authenticity.
struct Judged<'a> {
    rim: &'a Rim,
    authenticity: Authenticity,
}

/// A measurement that isn't one of a manifest's values.
struct Mismatch<'a> {
    role: &'static str,
    golden: &'a Golden,
    found: Option<&'a [u8]>,
}

/// Authenticates the manifests given, chooses the fitting ones, compares.
pub(super) fn compare(
    authentic: &Authentic,
    endorsements: &Endorsements,
    roots: &Roots,
    policy: &Policy,
    at: u64,
) -> Comparison {
    let rims = &endorsements.gpu.rims;
    let judged = rims.iter().flatten().map(|rim| Judged {
        rim,
        authenticity: rim.authenticate(SUPPLIED, roots, at),
    });
    let (genuine, forged): (Vec<_>, Vec<_>) = judged.partition(|judged| judged.authenticity.genuine);
    let mut checks = Vec::new();
    let (mut trust, mut mismatches, mut missing) = (None, Vec::new(), Vec::new());
    let mut used: Vec<(&Role, &Judged<'_>)> = Vec::new();
    let roles = roles(authentic);
    for role in &roles {
        match best(authentic, role, &genuine) {
            Some(judged) => {
                let lines = judged.authenticity.checks.iter().zip(role.ids);
                checks.extend(lines.map(|(check, id)| Check { id, ..check.clone() }));
                checks.push(revoked(role, judged.rim, endorsements, roots, policy, at));
                trust = Some(trust.map_or(judged.authenticity.trust, |trust: Trust| {
                    trust.and(judged.authenticity.trust)
                }));
                mismatches.extend(mismatches_of(authentic, role, judged.rim));
                used.push((role, judged));
            }
            None => {
                // So that whoever looks for what was changed sees it, too; it is refused already.
                let claimed = forged
                    .iter()
                    .filter(|judged| judged.rim.is_of_version(&role.version));
                mismatches.extend(claimed.flat_map(|judged| mismatches_of(authentic, role, judged.rim)));
                missing.push(format!("{} {}", role.name, role.version));
            }
        }
    }
    let faulty = faulty(endorsements, &forged);
    let mut warnings = Vec::new();
    if !missing.is_empty() {
        checks.extend(faulty);
    } else if !faulty.is_empty() {
        warnings.push("some of the manifests given aren't genuine; they weren't needed".to_owned());
    }
    if let Some(index) = conflict(&used) {
        let found = format!("both speak of measurement {index}");
        let expected = "manifests that don't overlap";
        checks.push(Check::of(
            "rim.conflict",
            false,
            Reason::RimConflict,
            expected,
            found,
        ));
    }
    checks.push(line(&used, &mismatches, &missing, rims.len()));
    let claims = claims(authentic.report(), &roles, &used, &mismatches, missing.is_empty());
    Comparison {
        checks,
        trust,
        claims,
        warnings,
    }
}

/// The line that says whether the measurements are NVIDIA's. `given`: how many manifests there were.
fn line(
    used: &[(&Role, &Judged<'_>)],
    mismatches: &[Mismatch<'_>],
    missing: &[String],
    given: usize,
) -> Check {
    let compared: usize = used.iter().map(|(_, judged)| judged.rim.active.len()).sum();
    if !mismatches.is_empty() {
        let shown: Vec<String> = mismatches.iter().take(FAULTY_MAX).map(Mismatch::shown).collect();
        let found = format!("{} others: {}", mismatches.len(), shown.join("; "));
        return Check::of(
            ID,
            false,
            Reason::MeasurementMismatch,
            "the manifests' values",
            found,
        );
    }
    if missing.is_empty() {
        let names: Vec<String> = used.iter().map(|(_, judged)| judged.rim.shown()).collect();
        let names = names.join(" and ");
        return Check::passed(
            ID,
            format!("{compared} measurements as in the manifests of {names}"),
        );
    }
    let missing = missing.join(" and ");
    let why = match given {
        0 => "no reference manifest (RIM) was given".to_owned(),
        given => format!("no genuine manifest for {missing} among the {given} given"),
    };
    let found = match compared {
        0 => String::new(),
        compared => format!("{compared} measurements match"),
    };
    Check::not_checked(ID, why, found)
}

/// What manifests this report needs: its driver's and its VBIOS's; a switch has no driver.
fn roles(authentic: &Authentic) -> Vec<Role> {
    let opaque = authentic.report().opaque();
    let role = |name, ids, version: Option<String>| version.map(|version| Role { name, ids, version });
    let driver = role(
        "driver",
        [
            "rim.driver.signature",
            "rim.driver.chain",
            "rim.driver.dates",
            "rim.driver.revocation",
        ],
        opaque.driver_version().map(str::to_owned),
    );
    let vbios = role(
        if opaque.is_switch() { "BIOS" } else { "VBIOS" },
        [
            "rim.vbios.signature",
            "rim.vbios.chain",
            "rim.vbios.dates",
            "rim.vbios.revocation",
        ],
        opaque.vbios_version(),
    );
    driver.into_iter().chain(vbios).collect()
}

/// A line for each manifest that can't be read or that NVIDIA didn't sign, with all that is wrong with it.
fn faulty(endorsements: &Endorsements, forged: &[Judged<'_>]) -> Vec<Check> {
    let unreadable = endorsements.gpu.rims.iter().filter_map(|rim| rim.as_ref().err());
    let unreadable = unreadable.map(|e| {
        Check::of(
            "rim.supplied.schema",
            false,
            Reason::RimMalformed,
            "a SWID tag of NVIDIA's",
            e,
        )
    });
    let failed = |judged: &Judged<'_>| {
        let failed: Vec<Check> = judged
            .authenticity
            .checks
            .iter()
            .filter(|check| check.is_failed())
            .cloned()
            .collect();
        failed
    };
    unreadable
        .take(FAULTY_MAX)
        .chain(forged.iter().take(FAULTY_MAX).flat_map(failed))
        .collect()
}

/// The genuine manifest for this role with the fewest faults: there may be reissued ones.
fn best<'j, 'a>(authentic: &Authentic, role: &Role, genuine: &'j [Judged<'a>]) -> Option<&'j Judged<'a>> {
    let chip = authentic.device().chip.as_str();
    let info = authentic.report().opaque().text(field::CHIP_INFO);
    let products: Vec<&str> = [chip].into_iter().chain(info).collect();
    let fitting = genuine
        .iter()
        .filter(|judged| judged.rim.fits(&products, &role.version));
    fitting.min_by_key(|judged| {
        (
            !judged.authenticity.is_good(),
            mismatches_of(authentic, role, judged.rim).count(),
        )
    })
}

fn revoked(
    role: &Role,
    rim: &Rim,
    endorsements: &Endorsements,
    roots: &Roots,
    policy: &Policy,
    at: u64,
) -> Check {
    let id = role.ids[3];
    let roots: Vec<_> = roots.of(crate::roots::RootKind::NvidiaRim).collect();
    match rim
        .certs()
        .split_first()
        .map(|(leaf, pool)| find_path(leaf, pool, &roots, at))
    {
        Some(Ok(path)) => revocation(id, &path.certs, endorsements, &policy.gpu, at),
        _ => Check::not_checked(id, "no chain", ""),
    }
}

fn mismatches_of<'a>(
    authentic: &'a Authentic,
    role: &Role,
    rim: &'a Rim,
) -> impl Iterator<Item = Mismatch<'a>> {
    let report = authentic.report();
    let role = role.name;
    let counts =
        |golden: &&Golden| golden.index != NVDEC0_INDEX || report.opaque().nvdec0_enabled() != Some(false);
    rim.active.iter().filter(counts).filter_map(move |golden| {
        let own = report
            .measurements()
            .iter()
            .find(|own| own.index == golden.index + 1);
        let found = own.map(|own| own.value.as_slice());
        let known = found.is_some_and(|found| golden.alternatives.iter().any(|value| value == found));
        (!known).then_some(Mismatch { role, golden, found })
    })
}

/// A measurement that two manifests speak of: which of them would be right?
fn conflict(used: &[(&Role, &Judged<'_>)]) -> Option<u8> {
    let [(_, one), (_, other)] = used else { return None };
    let indexes = |judged: &Judged<'_>| {
        judged
            .rim
            .active
            .iter()
            .map(|golden| golden.index)
            .collect::<Vec<_>>()
    };
    indexes(one)
        .into_iter()
        .find(|index| indexes(other).contains(index))
}

impl Mismatch<'_> {
    fn shown(&self) -> String {
        let found = self
            .found
            .map_or_else(|| "isn't in the report".to_owned(), show::hex);
        format!(
            "{} of the {} ({}) {found}",
            self.golden.index, self.role, self.golden.name
        )
    }

    fn claims(&self) -> Value {
        let golden = self
            .golden
            .alternatives
            .first()
            .map(Vec::as_slice)
            .unwrap_or_default();
        json!({
            "index": self.golden.index,
            "measurementSource": if self.role == "driver" { "Driver" } else { self.role },
            "goldenSize": golden.len(),
            "goldenValue": show::hex(golden),
            "runtimeSize": self.found.map_or(0, <[u8]>::len),
            "runtimeValue": self.found.map_or_else(|| "NA".to_owned(), show::hex),
        })
    }
}

fn claims(
    report: &Report,
    roles: &[Role],
    used: &[(&Role, &Judged<'_>)],
    mismatches: &[Mismatch<'_>],
    whole: bool,
) -> Value {
    let measres = match (mismatches.is_empty(), whole) {
        (false, _) => Some("fail"),
        (true, true) => Some("success"),
        (true, false) => None,
    };
    let mut claims = json!({
        "measres": measres,
        "secboot": (measres == Some("success")).then_some(true),
        "dbgstat": (measres == Some("success")).then_some("disabled"),
        "oemid": used.first().map(|(_, judged)| judged.rim.manufacturer.as_str()),
        "x-nvidia-mismatch-measurement-records":
            (!mismatches.is_empty()).then(|| mismatches.iter().map(Mismatch::claims).collect::<Vec<_>>()),
    });
    for role in roles {
        let rim = used
            .iter()
            .find(|(of, _)| of.name == role.name)
            .map(|(_, judged)| judged);
        let line = |n: usize| rim.and_then(|judged| judged.authenticity.checks.get(n));
        let prefix = format!(
            "{}-{}-rim",
            super::claims::prefix(report),
            role.name.to_lowercase()
        );
        for (name, value) in [
            ("fetched", json!(rim.is_some())),
            ("version-match", json!(rim.is_some())),
            ("signature-verified", json!(line(0).and_then(passed))),
            ("cert-valid", json!(line(2).and_then(passed))),
            ("tag-id", json!(rim.map(|judged| judged.rim.tag_id.as_str()))),
        ] {
            claims[format!("{prefix}-{name}")] = value;
        }
    }
    claims
}
