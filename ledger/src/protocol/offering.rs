//! Offerings, and which of them fit a request [5.3].
//!
//! A host has at most one offering: publishing another spec replaces it, under a new number, so that whoever matched
//! the old one finds it gone instead of changed. What is free is the published capacity less every contract that the
//! host hasn't released; it is computed for each answer and never counted up and down.
//!
//! Matches are ordered by price, then by the provider's reputation (highest first), then by number; the first 100 are told.

use std::cmp::Reverse;

use candid::Principal;

use super::genesis::SUPPLY_MAX;
use super::state::{Record, State, StoredOffering};
use super::text;
use super::txn::{Txn, invalid, not_allowed, not_found};
use crate::api::{
    Amount, AtRest, Capacity, Grade, LedgerError, Match, Mismatch, Offering, OfferingId, OfferingSpec,
    PriceList, Quota, Request, TimeNs, VmKind, WhyNot,
};

/// Offerings of one answer: what a page shows, and a reply carries.
const ANSWER_MAX: usize = 100;

/// Price per hour of exactly this request; `None`: it doesn't fit 64 bits. Storage without a limit isn't metered: the
/// provider who publishes `Unlimited` sells it with the VM.
pub(super) fn price_per_hour(prices: &PriceList, request: &Request) -> Option<Amount> {
    let storage = match request.storage_gib {
        Quota::Limited(gib) => gib,
        Quota::Unlimited => 0,
    };
    [
        (prices.vcpu_hour, u64::from(request.vcpus)),
        (prices.memory_gib_hour, request.memory_mib.div_ceil(1024)),
        (prices.storage_gib_hour, storage),
        (prices.gpu_hour, u64::from(request.gpus)),
    ]
    .into_iter()
    .try_fold(prices.vm_hour, |sum, (price, units)| {
        sum.checked_add(price.checked_mul(units)?)
    })
}

/// Price of `seconds` at `per_hour`: the whole is rounded down, so that parts never add up to more.
pub(super) fn price_of(per_hour: Amount, seconds: u64) -> Option<Amount> {
    Amount::try_from(u128::from(per_hour).checked_mul(u128::from(seconds))? / 3600).ok()
}

/// What makes a request one that no offering could ever meet, or that contradicts itself.
pub(super) fn check_request(request: &Request, period_max_s: u64) -> Result<(), LedgerError> {
    if request.max_price_per_hour == 0 {
        return Err(invalid("max_price_per_hour", "must be above 0: nothing is free"));
    }
    if !(1..=4096).contains(&request.vcpus) {
        return Err(invalid("vcpus", "from 1 to 4096"));
    }
    if !(64..=1 << 30).contains(&request.memory_mib) {
        return Err(invalid("memory_mib", "from 64 MiB to 1 PiB"));
    }
    if matches!(request.storage_gib, Quota::Limited(gib) if !(1..=1 << 30).contains(&gib)) {
        return Err(invalid("storage_gib", "from 1 GiB to 1 EiB, or unlimited"));
    }
    if request.bandwidth_mbps == Quota::Limited(0) {
        return Err(invalid("bandwidth_mbps", "at least 1 Mbit/s, or unlimited"));
    }
    if !(1..=period_max_s).contains(&request.period_s) {
        return Err(invalid("period_s", format!("from 1 second to {period_max_s}")));
    }
    if let Some(region) = &request.region {
        text::words(region, 1, 64).map_err(|why| invalid("region", why))?;
    }
    if request.kind == VmKind::Plain && request.min_grade == Grade::HardwareVerified {
        let why = "a plain VM is never hardware-verified; ask for kind sev-snp, or a lower grade";
        return Err(invalid("min_grade", why));
    }
    Ok(())
}

fn check_spec(spec: &OfferingSpec, genesis: &super::genesis::Genesis) -> Result<(), LedgerError> {
    text::words(&spec.title, 1, 200).map_err(|why| invalid("title", why))?;
    text::words(&spec.region, 1, 64).map_err(|why| invalid("region", why))?;
    let mut kinds = spec.kinds.clone();
    kinds.sort();
    kinds.dedup();
    if kinds.is_empty() || kinds.len() != spec.kinds.len() {
        return Err(invalid("kinds", "at least one, each once"));
    }
    let c = &spec.capacity;
    if c.vcpus == 0 || c.memory_mib < 64 || c.memory_mib > 1 << 40 || c.storage_gib > 1 << 40 {
        return Err(invalid(
            "capacity",
            "at least 1 vCPU and 64 MiB, at most 2^40 MiB of memory and GiB of storage",
        ));
    }
    match &spec.gpu_model {
        Some(model) => text::words(model, 1, 100).map_err(|why| invalid("gpu_model", why))?,
        None if c.gpus > 0 => return Err(invalid("gpu_model", "name the model of the GPUs offered")),
        None => {}
    }
    let confidential = kinds.iter().any(|kind| *kind != VmKind::Plain);
    if spec.best_grade == Grade::Unconfirmed {
        return Err(invalid(
            "best_grade",
            "at least host-signed: an unconfirmed contract is never paid",
        ));
    }
    if spec.best_grade == Grade::HardwareVerified && !confidential {
        return Err(invalid(
            "best_grade",
            "hardware-verified needs a confidential kind among the kinds",
        ));
    }
    if spec.test_platform && genesis.test_roots.is_empty() {
        return Err(invalid(
            "test_platform",
            "this ledger's genesis names no test root: no test platform can be verified",
        ));
    }
    if spec.storage_per_vm == Quota::Limited(0) || spec.bandwidth_mbps == Quota::Limited(0) {
        return Err(invalid(
            "storage_per_vm, bandwidth_mbps",
            "at least 1, or unlimited",
        ));
    }
    let p = &spec.prices;
    let prices = [
        p.vm_hour,
        p.vcpu_hour,
        p.memory_gib_hour,
        p.storage_gib_hour,
        p.gpu_hour,
    ];
    if prices.iter().all(|price| *price == 0) {
        return Err(invalid(
            "prices",
            "all are 0: nothing could be paid, confirmed or earned",
        ));
    }
    if prices.iter().any(|price| *price > SUPPLY_MAX) {
        return Err(invalid("prices", "above 21 million DCT an hour"));
    }
    if !(1..=genesis.parameters.period_max_s).contains(&spec.max_period_s) {
        return Err(invalid(
            "max_period_s",
            format!("from 1 to {}", genesis.parameters.period_max_s),
        ));
    }
    Ok(())
}

impl Txn<'_> {
    pub(super) fn publish_offering(
        &mut self,
        caller: Principal,
        spec: &OfferingSpec,
    ) -> Result<OfferingId, LedgerError> {
        let mut host = self.delegated_host(caller)?;
        check_spec(spec, &self.state.genesis)?;
        if let Some(id) = host.offering {
            if self
                .offerings
                .get(&id)
                .is_some_and(|offering| offering.spec == *spec)
            {
                return Ok(id);
            }
            self.offerings.remove(id);
        }
        let id = self.counters.next_offering;
        self.counters.next_offering = id
            .checked_add(1)
            .ok_or_else(|| super::txn::overflow("offering"))?;
        let offering = StoredOffering {
            provider: host.provider,
            host: caller,
            spec: spec.clone(),
        };
        self.offerings.put(id, offering);
        host.offering = Some(id);
        self.hosts.put(caller, host);
        Ok(id)
    }

    pub(super) fn withdraw_offering(&mut self, caller: Principal, id: OfferingId) -> Result<(), LedgerError> {
        let mut host = self.host(caller)?;
        let offering = self
            .offerings
            .get(&id)
            .ok_or_else(|| not_found(format!("offering {id}")))?;
        if offering.host != caller {
            return Err(not_allowed(
                "only the host that published the offering may withdraw it",
            ));
        }
        self.offerings.remove(id);
        host.offering = None;
        self.hosts.put(caller, host);
        Ok(())
    }
}

impl Txn<'_> {
    /// The offering as it is after what this command has rented already.
    pub(super) fn offering(&self, id: OfferingId, stored: &StoredOffering) -> Offering {
        let mut offering = self.state.offering(id, stored);
        for Record { contract, .. } in self.contracts.written() {
            if contract.host == stored.host && !self.state.contracts.contains_key(&contract.id) {
                offering.free = offering.free.without(&contract.args.request);
            }
        }
        offering
    }
}

impl State {
    /// What the host's published capacity leaves after every contract that it hasn't released.
    pub(super) fn free(&self, host: Principal, capacity: &Capacity) -> Capacity {
        let ids = self.index.unreleased.get(&host).into_iter().flatten();
        let records = ids.filter_map(|id| self.contracts.get(id));
        records.fold(*capacity, |free, record| {
            free.without(&record.contract.args.request)
        })
    }

    /// Somebody's reputation, base units.
    pub(super) fn score(&self, who: &Principal) -> u64 {
        self.reputations.get(who).map_or(0, |reputation| reputation.score)
    }

    pub(super) fn offering(&self, id: OfferingId, stored: &StoredOffering) -> Offering {
        Offering {
            id,
            provider: stored.provider,
            host: stored.host,
            provider_name: self
                .providers
                .get(&stored.provider)
                .map(|p| p.profile.name.clone())
                .unwrap_or_default(),
            provider_reputation: self.score(&stored.provider),
            free: self.free(stored.host, &stored.spec.capacity),
            spec: stored.spec.clone(),
        }
    }

    /// Every reason why the offering doesn't fit; none: it does. `developer`: whose reputation counts, if known.
    pub(super) fn mismatches(
        &self,
        offering: &Offering,
        request: &Request,
        developer: Option<Principal>,
        now: TimeNs,
    ) -> Vec<Mismatch> {
        let (spec, free) = (&offering.spec, &offering.free);
        let mut reasons = Vec::new();
        let mut check = |fits: bool, field: &str, wanted: String, offered: String| {
            if !fits {
                reasons.push(Mismatch {
                    field: field.to_owned(),
                    wanted,
                    offered,
                });
            }
        };
        let price = price_per_hour(&spec.prices, request);
        check(
            price.is_some_and(|price| price <= request.max_price_per_hour),
            "max_price_per_hour",
            format!("at most {}", request.max_price_per_hour),
            price.map_or("more than 64 bits".to_owned(), |price| price.to_string()),
        );
        check(
            request.vcpus <= free.vcpus,
            "vcpus",
            request.vcpus.to_string(),
            format!("{} free", free.vcpus),
        );
        check(
            request.memory_mib <= free.memory_mib,
            "memory_mib",
            format!("{} MiB", request.memory_mib),
            format!("{} MiB free", free.memory_mib),
        );
        let (stored, per_vm) = (request.storage_gib, spec.storage_per_vm);
        check(
            within(stored, per_vm),
            "storage_gib",
            quota(stored, "GiB"),
            format!("{} per VM", quota(per_vm, "GiB")),
        );
        if let Quota::Limited(gib) = stored {
            check(
                gib <= free.storage_gib,
                "storage_gib",
                format!("{gib} GiB"),
                format!("{} GiB free", free.storage_gib),
            );
        }
        check(
            within(request.bandwidth_mbps, spec.bandwidth_mbps),
            "bandwidth_mbps",
            quota(request.bandwidth_mbps, "Mbit/s"),
            quota(spec.bandwidth_mbps, "Mbit/s"),
        );
        check(
            offering.provider_reputation >= request.min_provider_reputation,
            "min_provider_reputation",
            request.min_provider_reputation.to_string(),
            offering.provider_reputation.to_string(),
        );
        check(
            request.period_s <= spec.max_period_s,
            "period_s",
            format!("{} s", request.period_s),
            format!("at most {} s", spec.max_period_s),
        );
        let kinds = spec
            .kinds
            .iter()
            .map(|kind| kind_name(*kind))
            .collect::<Vec<_>>()
            .join(", ");
        check(
            spec.kinds.contains(&request.kind),
            "kind",
            kind_name(request.kind).to_owned(),
            kinds,
        );
        check(
            request.min_grade <= spec.best_grade,
            "min_grade",
            grade_name(request.min_grade).to_owned(),
            format!("at best {}", grade_name(spec.best_grade)),
        );
        check(
            request.kind != VmKind::Tdx,
            "kind",
            kind_name(VmKind::Tdx).to_owned(),
            "this ledger can't verify TDX evidence yet".to_owned(),
        );
        if needs_verified_host(request) {
            let verified = self
                .hosts
                .get(&offering.host)
                .and_then(|host| host.verified.as_ref());
            check(
                verified.is_some_and(|verified| now < verified.until),
                "min_grade",
                grade_name(request.min_grade).to_owned(),
                match verified {
                    Some(_) => "host-signed: the host's evidence is too old".to_owned(),
                    None => "host-signed: the ledger hasn't verified what the host runs".to_owned(),
                },
            );
        }
        check(
            request.at_rest == AtRest::Any || spec.at_rest == AtRest::Encrypted,
            "at_rest",
            "encrypted".to_owned(),
            "not encrypted".to_owned(),
        );
        check(
            request.gpus <= free.gpus,
            "gpus",
            request.gpus.to_string(),
            format!("{} free", free.gpus),
        );
        if let Some(region) = &request.region {
            check(
                *region == spec.region,
                "region",
                region.clone(),
                spec.region.clone(),
            );
        }
        if let Some(developer) = developer {
            let score = self.score(&developer);
            check(
                score >= spec.min_developer_reputation,
                "developer_reputation",
                format!("yours is {score}"),
                format!("at least {}", spec.min_developer_reputation),
            );
        }
        match self.hosts.get(&offering.host) {
            Some(host) => {
                check(
                    !host.draining,
                    "host",
                    "takes contracts".into(),
                    "its operator drains it".into(),
                );
                let counts = host.delegated_until > now;
                check(
                    counts,
                    "host",
                    "may act for its provider".into(),
                    "its delegation has expired".into(),
                );
            }
            None => check(false, "host", "registered".into(), "not registered".into()),
        }
        reasons
    }

    /// The first [`ANSWER_MAX`] that fit, cheapest first; then by reputation, highest first; then by number. What its price
    /// or its whole machine rules out is passed over at once; the rest is looked at in that order until the answer is full.
    pub fn match_offerings(
        &self,
        caller: Principal,
        request: &Request,
        now: TimeNs,
    ) -> Result<Vec<Match>, LedgerError> {
        check_request(request, self.genesis.parameters.period_max_s)?;
        let candidates = self.offerings.iter().filter_map(|(id, stored)| {
            let capacity = &stored.spec.capacity;
            let price = price_per_hour(&stored.spec.prices, request)?;
            let may_fit = price <= request.max_price_per_hour
                && request.vcpus <= capacity.vcpus
                && request.memory_mib <= capacity.memory_mib
                && request.gpus <= capacity.gpus;
            may_fit.then(|| (price, Reverse(self.score(&stored.provider)), *id, stored))
        });
        let mut candidates: Vec<_> = candidates.collect();
        candidates.sort_unstable_by_key(|(price, reputation, id, _)| (*price, *reputation, *id));
        let matches = candidates.into_iter().filter_map(|(price, _, id, stored)| {
            let offering = self.offering(id, stored);
            let total = price_of(price, request.period_s)?;
            let fits = self.mismatches(&offering, request, known(caller), now).is_empty();
            fits.then_some(Match {
                offering,
                price_per_hour: price,
                total,
            })
        });
        Ok(matches.take(ANSWER_MAX).collect())
    }

    /// The first [`ANSWER_MAX`] that don't fit, by number, each with every reason.
    pub fn why_not(
        &self,
        caller: Principal,
        request: &Request,
        now: TimeNs,
    ) -> Result<Vec<WhyNot>, LedgerError> {
        check_request(request, self.genesis.parameters.period_max_s)?;
        let all = self.offerings.iter().map(|(id, stored)| {
            let offering = self.offering(*id, stored);
            let reasons = self.mismatches(&offering, request, known(caller), now);
            WhyNot { offering, reasons }
        });
        Ok(all
            .filter(|why| !why.reasons.is_empty())
            .take(ANSWER_MAX)
            .collect())
    }
}

/// Whether the request's grade rests on what its host runs.
pub(super) fn needs_verified_host(request: &Request) -> bool {
    request.kind == VmKind::Plain && request.min_grade > Grade::HostSigned
}

/// Nobody's reputation is looked at when an anonymous caller only looks around.
fn known(caller: Principal) -> Option<Principal> {
    (caller != Principal::anonymous()).then_some(caller)
}

fn within(wanted: Quota, offered: Quota) -> bool {
    match (wanted, offered) {
        (_, Quota::Unlimited) => true,
        (Quota::Unlimited, Quota::Limited(_)) => false,
        (Quota::Limited(wanted), Quota::Limited(offered)) => wanted <= offered,
    }
}

fn quota(quota: Quota, unit: &str) -> String {
    match quota {
        Quota::Unlimited => "unlimited".to_owned(),
        Quota::Limited(n) => format!("{n} {unit}"),
    }
}

fn kind_name(kind: VmKind) -> &'static str {
    match kind {
        VmKind::Plain => "plain",
        VmKind::SevSnp => "sev-snp",
        VmKind::Tdx => "tdx",
    }
}

/// The grade's name as everywhere.
pub(super) fn grade_name(grade: Grade) -> &'static str {
    match grade {
        Grade::Unconfirmed => "unconfirmed",
        Grade::HostSigned => "host-signed",
        Grade::HostVerified => "host-verified",
        Grade::HardwareVerified => "hardware-verified",
    }
}
