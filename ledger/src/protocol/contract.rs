//! The life of a contract [5.3].
//!
//! | state | entered when | left when | money |
//! |---|---|---|---|
//! | `Requested` | `rent` was paid | the host accepts → `Accepted`, refuses → `Ended(Refused)`; `cancel`; accept timeout | all in escrow; all back on leaving to `Ended` |
//! | `Accepted` | the host accepted | evidence verified → `Active`; `vm_gone`, `refuse`, `cancel`; confirm timeout (grows with memory) | the same |
//! | `Active` | evidence verified: the clock starts | `cancel`, `vm_gone`; the paid period is over | accrues by the second; the rest back at the end |
//! | `Ended` | see above | never; the host says `released` when it has let go of everything | none in escrow |
//!
//! Each call may come twice (a lost answer, a crash): what is done already is answered again and costs nothing.

use std::collections::BTreeSet;

use candid::Principal;

use super::block::hash;
use super::command::encode;
use super::evidence;
use super::offering::{check_request, needs_verified_host, price_of, price_per_hour};
use super::settlement::SECOND;
use super::state::Record;
use super::text;
use super::txn::{Txn, invalid, not_allowed, not_found, overflow};
use crate::api::{
    Bytes, Confirmation, Contract, ContractId, ContractState, Digest32, EVIDENCE_MAX, EndReason, Endpoint,
    Escrow, EvidenceRecord, ExtendArgs, Grade, LedgerError, RefuseArgs, RentArgs, SubmitEvidenceArgs,
    TcbFloor, TimeNs, USER_DATA_MAX, VmGoneArgs, VmKind,
};

/// Refused submissions of evidence after which a contract takes no more.
pub const REFUSALS_MAX: u32 = 32;

/// Nodes of one request.
const NODES_MAX: usize = 64;

const SSH_KEYS_MAX: usize = 16;
const PORTS_MAX: usize = 16;
const MEASUREMENTS_MAX: usize = 64;

fn check_args(args: &RentArgs) -> Result<(), LedgerError> {
    text::url(&args.image.url).map_err(|why| invalid("image.url", why))?;
    if args.ssh_public_keys.len() > SSH_KEYS_MAX {
        return Err(invalid("ssh_public_keys", format!("at most {SSH_KEYS_MAX}")));
    }
    for (i, key) in args.ssh_public_keys.iter().enumerate() {
        text::ssh_key(key).map_err(|why| invalid(&format!("ssh_public_keys[{i}]"), why))?;
    }
    if args.user_data.len() > USER_DATA_MAX {
        let why = format!("{} bytes; at most {USER_DATA_MAX}", args.user_data.len());
        return Err(invalid("user_data", why));
    }
    if args.ports.len() > PORTS_MAX {
        return Err(invalid("ports", format!("at most {PORTS_MAX}")));
    }
    for (i, port) in args.ports.iter().enumerate() {
        if port.port == 0 || args.ports.iter().take(i).any(|other| other == port) {
            return Err(invalid(&format!("ports[{i}]"), "from 1 to 65535, each once"));
        }
    }
    if args.allowed_measurements.len() > MEASUREMENTS_MAX {
        return Err(invalid(
            "allowed_measurements",
            format!("at most {MEASUREMENTS_MAX}"),
        ));
    }
    if args.request.kind == VmKind::Plain {
        if !args.allowed_measurements.is_empty() || args.min_tcb != TcbFloor::default() {
            let why = "a plain VM can't be measured: ask for a confidential kind, or leave measurements and TCB out";
            return Err(invalid("allowed_measurements", why));
        }
    } else if args.allowed_measurements.is_empty() {
        let why = "name at least one launch measurement (`attest measure snp` computes it from the image)";
        return Err(invalid("allowed_measurements", why));
    }
    Ok(())
}

/// The digest of what the VM is to be set up with.
pub(super) fn settings_of(args: &RentArgs) -> [u8; 32] {
    attestation::settings_digest(args.ssh_public_keys.iter().map(String::as_str), &args.user_data)
}

/// In the words of `LedgerError::WrongState`.
fn state_name(state: ContractState) -> String {
    match state {
        ContractState::Requested => "requested".to_owned(),
        ContractState::Accepted => "accepted".to_owned(),
        ContractState::Active => "active".to_owned(),
        ContractState::Ended(reason) => format!("ended ({reason:?})"),
    }
}

fn wrong_state<T>(contract: &Contract, needs: &str) -> Result<T, LedgerError> {
    Err(LedgerError::WrongState {
        state: state_name(contract.state),
        needs: needs.to_owned(),
    })
}

fn after(start: TimeNs, seconds: u64) -> Result<TimeNs, LedgerError> {
    let span = seconds.checked_mul(SECOND).ok_or_else(|| overflow("period_s"))?;
    start.checked_add(span).ok_or_else(|| overflow("period_s"))
}

impl Txn<'_> {
    fn record(&self, id: &ContractId) -> Result<Record, LedgerError> {
        self.contracts
            .get(id)
            .cloned()
            .ok_or_else(|| not_found(format!("contract {id}")))
    }

    pub(super) fn record_of_host(&self, caller: Principal, id: &ContractId) -> Result<Record, LedgerError> {
        let record = self.record(id)?;
        if record.contract.host != caller {
            return Err(not_allowed("only the contract's host may do that"));
        }
        Ok(record)
    }

    fn record_of_developer(&self, caller: Principal, id: &ContractId) -> Result<Record, LedgerError> {
        let record = self.record(id)?;
        if record.contract.developer != caller {
            return Err(not_allowed("only the contract's developer may do that"));
        }
        Ok(record)
    }

    /// A wanted DNS name must be one, and neither one that the host gives (it, or what lies under the domain of its
    /// provider) nor a derived name of any contract, present or to come. Wanting a name gives no right to it, here or
    /// elsewhere: the host routes it when its owner's DNS says so ([`crate::name_proof`]), so nobody can take a name away
    /// from its owner by being first.
    fn check_tls_name(&self, name: &str, own_domain: &str) -> Result<(), LedgerError> {
        text::dns_name(name).map_err(|why| invalid("tls_name", why))?;
        if text::is_under(name, own_domain) {
            let why = format!(
                "{own_domain} is the provider's own domain: the name <contract>.{own_domain} comes by itself, others \
                 aren't given"
            );
            return Err(invalid("tls_name", why));
        }
        let derived = name.split_once('.').is_some_and(|(label, domain)| {
            label.len() == 8
                && label.bytes().all(|b| b.is_ascii_hexdigit())
                && self.state.index.domains.contains_key(domain)
        });
        if derived || self.state.index.names.contains_key(name) {
            let why = "a name that a provider gives to one of its contracts; it can't be chosen";
            return Err(invalid("tls_name", why));
        }
        Ok(())
    }

    /// Several nodes in one request [5.3]: all of them, or none and nothing paid.
    pub(super) fn rent_all(
        &mut self,
        developer: Principal,
        nodes: &[RentArgs],
    ) -> Result<Vec<ContractId>, LedgerError> {
        if nodes.is_empty() || nodes.len() > NODES_MAX {
            let why = format!("{}; 1 to {NODES_MAX} in one request", nodes.len());
            return Err(invalid("nodes", why));
        }
        let memos: BTreeSet<u64> = nodes.iter().map(|node| node.memo).collect();
        if memos.len() < nodes.len() {
            return Err(invalid("memo", "each node has a memo of its own"));
        }
        nodes.iter().map(|node| self.rent(developer, node)).collect()
    }

    pub(super) fn rent(&mut self, developer: Principal, args: &RentArgs) -> Result<ContractId, LedgerError> {
        if self.developers.get(&developer).is_none() {
            return Err(not_allowed(
                "only a registered developer may rent; call register_developer first",
            ));
        }
        let digest = hash(&[b"\x0bdecent-rent", &encode(args)]);
        if let Some((known, id)) = self.memos.get(&(developer, args.memo)) {
            if *known == digest {
                return Ok(*id);
            }
            let why = format!(
                "used for contract {id} with other arguments; choose another memo for another contract"
            );
            return Err(invalid("memo", why));
        }
        check_request(&args.request, self.state.genesis.parameters.period_max_s)?;
        check_args(args)?;
        let stored = self.offerings.get(&args.offering).cloned().ok_or_else(|| {
            not_found(format!(
                "offering {} (withdrawn or replaced? match again)",
                args.offering
            ))
        })?;
        let offering = self.offering(args.offering, &stored);
        let reasons = self
            .state
            .mismatches(&offering, &args.request, Some(developer), self.now);
        if !reasons.is_empty() {
            return Err(LedgerError::DoesNotFit { reasons });
        }
        let domain = self
            .providers
            .get(&stored.provider)
            .map(|p| p.profile.domain.clone())
            .unwrap_or_default();
        if let Some(name) = &args.tls_name {
            self.check_tls_name(name, &domain)?;
        }
        let price = price_per_hour(&stored.spec.prices, &args.request).ok_or_else(|| overflow("price"))?;
        let total = price_of(price, args.request.period_s).ok_or_else(|| overflow("price"))?;
        if total == 0 {
            let why = format!(
                "the price of {} s rounds to 0; rent for longer",
                args.request.period_s
            );
            return Err(invalid("period_s", why));
        }
        if total > args.max_total {
            let why = format!(
                "the period costs {total}, more than the {} allowed",
                args.max_total
            );
            return Err(invalid("max_total", why));
        }
        let (id, salt, derived_name) = self.new_id(developer, args, &digest, &domain)?;
        let contract = Contract {
            id,
            salt,
            developer,
            provider: stored.provider,
            host: stored.host,
            args: args.clone(),
            state: ContractState::Requested,
            deadline: Some(after(self.now, self.state.genesis.parameters.accept_timeout_s)?),
            created_at: self.now,
            active_since: None,
            ended_at: None,
            price_per_hour: price,
            period_s: args.request.period_s,
            escrow: Escrow::default(),
            nonce: None,
            grade: Grade::Unconfirmed,
            endpoint: None,
            refusals: Vec::new(),
            released: false,
        };
        let mut record = Record {
            contract,
            derived_name,
            evidence: None,
            refused: 0,
            extensions: Default::default(),
            reputation: 0,
            penalties: Default::default(),
        };
        self.fund(&mut record, total)?;
        self.contracts.put(id, record);
        self.memos.put((developer, args.memo), (digest, id));
        Ok(id)
    }

    /// An id that nobody could have chosen, the salt that it is made with, and a derived name that is free.
    fn new_id(
        &self,
        developer: Principal,
        args: &RentArgs,
        digest: &Digest32,
        domain: &str,
    ) -> Result<(ContractId, Digest32, String), LedgerError> {
        let tip = self.state.tip();
        let settings = settings_of(args);
        for attempt in 0..1000u32 {
            let parts: [&[u8]; 6] = [
                b"\x0fdecent-contract",
                &tip.0,
                &encode(&self.state.ledger),
                &encode(&developer),
                &digest.0,
                &attempt.to_be_bytes(),
            ];
            let salt = hash(&parts);
            let id = Bytes(attestation::contract_id(&salt.0, &settings));
            let name = format!("{}.{domain}", id.short());
            let taken = self.contracts.written().any(|record| record.derived_name == name);
            if !taken && !self.state.index.names.contains_key(&name) && self.contracts.get(&id).is_none() {
                return Ok((id, salt, name));
            }
        }
        Err(invalid("memo", "no free name for the contract; try again"))
    }

    pub(super) fn accept(&mut self, caller: Principal, id: &ContractId) -> Result<(), LedgerError> {
        let mut record = self.record_of_host(caller, id)?;
        match record.contract.state {
            ContractState::Requested => {}
            ContractState::Accepted | ContractState::Active => return Ok(()),
            ContractState::Ended(_) => return wrong_state(&record.contract, "a requested one"),
        }
        self.delegated_host(caller)?;
        let parameters = &self.state.genesis.parameters;
        let gib = record.contract.args.request.memory_mib.div_ceil(1024);
        let timeout = parameters
            .confirm_timeout_per_gib_s
            .checked_mul(gib)
            .and_then(|t| t.checked_add(parameters.confirm_timeout_base_s))
            .ok_or_else(|| overflow("confirm timeout"))?;
        record.contract.state = ContractState::Accepted;
        record.contract.deadline = Some(after(self.now, timeout)?);
        self.contracts.put(*id, record);
        Ok(())
    }

    pub(super) fn refuse(&mut self, caller: Principal, args: &RefuseArgs) -> Result<(), LedgerError> {
        let mut record = self.record_of_host(caller, &args.contract)?;
        text::words(&args.reason, 0, 500).map_err(|why| invalid("reason", why))?;
        match record.contract.state {
            ContractState::Requested | ContractState::Accepted => {}
            ContractState::Ended(EndReason::Refused) => return Ok(()),
            _ => return wrong_state(&record.contract, "one that isn't confirmed yet"),
        }
        record.contract.refusals = vec![format!("refused by the host: {}", args.reason)];
        // Before acceptance the host has reserved nothing; after it, it says `released` when all is gone.
        record.contract.released = record.contract.state == ContractState::Requested;
        self.end(&mut record, EndReason::Refused, self.now)?;
        self.contracts.put(args.contract, record);
        Ok(())
    }

    pub(super) fn vm_gone(&mut self, caller: Principal, args: &VmGoneArgs) -> Result<(), LedgerError> {
        let mut record = self.record_of_host(caller, &args.contract)?;
        text::words(&args.reason, 0, 500).map_err(|why| invalid("reason", why))?;
        match record.contract.state {
            ContractState::Accepted | ContractState::Active => {}
            ContractState::Requested => return wrong_state(&record.contract, "an accepted one; use refuse"),
            ContractState::Ended(_) => return Ok(()),
        }
        record.contract.refusals = vec![format!("the host reports the VM gone: {}", args.reason)];
        self.end(&mut record, EndReason::VmGone, self.now)?;
        self.contracts.put(args.contract, record);
        Ok(())
    }

    pub(super) fn released(&mut self, caller: Principal, id: &ContractId) -> Result<(), LedgerError> {
        let mut record = self.record_of_host(caller, id)?;
        if !matches!(record.contract.state, ContractState::Ended(_)) {
            return wrong_state(&record.contract, "one that has ended");
        }
        if !record.contract.released {
            record.contract.released = true;
            self.contracts.put(*id, record);
        }
        Ok(())
    }

    pub(super) fn contract_nonce(
        &mut self,
        caller: Principal,
        id: &ContractId,
    ) -> Result<Digest32, LedgerError> {
        let mut record = self.record(id)?;
        if caller != record.contract.host && caller != record.contract.developer {
            return Err(not_allowed("only the contract's host or developer may do that"));
        }
        if record.contract.state != ContractState::Accepted {
            return wrong_state(&record.contract, "an accepted one");
        }
        if let Some(nonce) = record.contract.nonce {
            return Ok(nonce);
        }
        // The tip was unknown to anybody before the last block; no two blocks have the same.
        let nonce = hash(&[b"\x0cdecent-nonce", &self.state.tip().0, &id.0]);
        record.contract.nonce = Some(nonce);
        self.contracts.put(*id, record);
        Ok(nonce)
    }

    fn check_endpoint(record: &Record, endpoint: &Endpoint) -> Result<(), LedgerError> {
        text::address(&endpoint.address).map_err(|why| invalid("endpoint.address", why))?;
        let args = &record.contract.args;
        for (i, name) in endpoint.names.iter().enumerate() {
            let own = *name == record.derived_name || args.tls_name.as_ref() == Some(name);
            if !own || endpoint.names.iter().take(i).any(|other| other == name) {
                let why = format!("{name:?} is not a name of this contract, or is there twice");
                return Err(invalid("endpoint.names", why));
            }
        }
        for (i, port) in endpoint.ports.iter().enumerate() {
            let asked = args
                .ports
                .iter()
                .any(|p| p.transport == port.transport && p.port == port.vm_port);
            let twice = endpoint
                .ports
                .iter()
                .take(i)
                .any(|other| (other.transport, other.vm_port) == (port.transport, port.vm_port));
            if !asked || twice || port.public_port == 0 {
                let why = format!(
                    "port {} was not asked for, is there twice, or has public port 0",
                    port.vm_port
                );
                return Err(invalid("endpoint.ports", why));
            }
        }
        Ok(())
    }

    pub(super) fn submit_evidence(
        &mut self,
        caller: Principal,
        args: &SubmitEvidenceArgs,
    ) -> Result<Confirmation, LedgerError> {
        let mut record = self.record_of_host(caller, &args.contract)?;
        if let (ContractState::Active, Some(known)) = (record.contract.state, &record.evidence)
            && known.evidence == args.evidence
        {
            return Ok(known.confirmation.clone());
        }
        if record.contract.state != ContractState::Accepted {
            return wrong_state(&record.contract, "an accepted one");
        }
        self.delegated_host(caller)?;
        if args.evidence.len() > EVIDENCE_MAX {
            return Err(invalid(
                "evidence",
                format!("{} bytes; at most {EVIDENCE_MAX}", args.evidence.len()),
            ));
        }
        Self::check_endpoint(&record, &args.endpoint)?;
        let Some(nonce) = record.contract.nonce else {
            return wrong_state(
                &record.contract,
                "a nonce first: call contract_nonce, and bind the evidence to it",
            );
        };
        if record.refused >= REFUSALS_MAX {
            return wrong_state(
                &record.contract,
                "fewer refused submissions: no more are taken for this contract",
            );
        }
        match self.appraise(&record.contract, &nonce, &args.evidence) {
            Err(refusal) => {
                record.refused = record.refused.saturating_add(1);
                record.contract.refusals = refusal.reasons.clone();
                self.contracts.put(args.contract, record);
                Err(LedgerError::EvidenceRefused {
                    reasons: refusal.reasons,
                    result: refusal.result,
                })
            }
            Ok(appraised) => {
                if let Some(chip) = appraised.chip {
                    self.chips.put(chip, caller);
                }
                let contract = &mut record.contract;
                contract.state = ContractState::Active;
                contract.active_since = Some(self.now);
                contract.deadline = Some(after(self.now, contract.period_s)?);
                contract.nonce = None;
                contract.grade = appraised.confirmation.grade;
                contract.endpoint = Some(args.endpoint.clone());
                contract.refusals = appraised.host_refusals;
                record.evidence = Some(EvidenceRecord {
                    evidence: args.evidence.clone(),
                    nonce,
                    at: self.now,
                    confirmation: appraised.confirmation.clone(),
                });
                self.contracts.put(args.contract, record);
                Ok(appraised.confirmation)
            }
        }
    }

    /// What the evidence proves, by itself and beside what other hosts have proved.
    fn appraise(
        &self,
        contract: &Contract,
        nonce: &Digest32,
        bytes: &[u8],
    ) -> Result<evidence::Appraised, evidence::Refusal> {
        let host = self.hosts.get(&contract.host);
        let judge = evidence::Judge {
            genesis: &self.state.genesis,
            ledger: self.state.ledger,
            attestation_key: host.and_then(|host| host.attestation_key),
            now: self.now,
        };
        let appraised = judge.contract(contract, nonce, bytes)?;
        match appraised.chip.and_then(|chip| self.chips.get(&chip)) {
            Some(host) if *host != contract.host => Err(evidence::Refusal {
                reasons: vec![format!(
                    "chip-id: this chip has confirmed contracts of another host, {host}"
                )],
                result: appraised.confirmation.result,
            }),
            _ => Ok(appraised),
        }
    }

    pub(super) fn extend(&mut self, caller: Principal, args: &ExtendArgs) -> Result<Contract, LedgerError> {
        let mut record = self.record_of_developer(caller, &args.contract)?;
        if let Some(period_s) = record.extensions.get(&args.memo) {
            if *period_s == args.period_s {
                return Ok(record.contract);
            }
            return Err(invalid(
                "memo",
                format!("used for an extension by {period_s} s; choose another"),
            ));
        }
        let ContractState::Active = record.contract.state else {
            return wrong_state(&record.contract, "an active one");
        };
        if args.period_s == 0 {
            return Err(invalid("period_s", "at least 1 second"));
        }
        let host = self.hosts.get(&record.contract.host);
        if host.is_none_or(|host| host.draining || host.delegated_until <= self.now) {
            return Err(not_allowed(
                "the host takes no new periods: it is being drained, or its delegation has expired",
            ));
        }
        let verified = host.and_then(|host| host.verified.as_ref());
        if needs_verified_host(&record.contract.args.request)
            && verified.is_none_or(|verified| verified.until <= self.now)
        {
            return Err(not_allowed(
                "the contract asks for host-verified, and the ledger has no current evidence of its host",
            ));
        }
        // Paying what has accrued first keeps the books simple to read: one step, one line of history.
        self.pay_accrued(&mut record, self.now)?;
        let contract = &mut record.contract;
        let period = contract
            .period_s
            .checked_add(args.period_s)
            .ok_or_else(|| overflow("period_s"))?;
        let deadline = after(contract.active_since.unwrap_or(self.now), period)?;
        let ahead = deadline.saturating_sub(self.now) / SECOND;
        if ahead > self.state.genesis.parameters.period_max_s {
            let most = self.state.genesis.parameters.period_max_s;
            return Err(invalid(
                "period_s",
                format!("{ahead} s would be paid ahead; at most {most}"),
            ));
        }
        let whole = price_of(contract.price_per_hour, period).ok_or_else(|| overflow("price"))?;
        let total = whole
            .checked_sub(contract.escrow.funded)
            .ok_or_else(|| overflow("price"))?;
        if total == 0 {
            return Err(invalid(
                "period_s",
                "the price of the extension rounds to 0; extend by more",
            ));
        }
        if total > args.max_total {
            let why = format!(
                "the extension costs {total}, more than the {} allowed",
                args.max_total
            );
            return Err(invalid("max_total", why));
        }
        contract.period_s = period;
        contract.deadline = Some(deadline);
        record.extensions.insert(args.memo, args.period_s);
        self.fund(&mut record, total)?;
        let contract = record.contract.clone();
        self.contracts.put(args.contract, record);
        Ok(contract)
    }

    pub(super) fn cancel(&mut self, caller: Principal, id: &ContractId) -> Result<Contract, LedgerError> {
        let mut record = self.record_of_developer(caller, id)?;
        match record.contract.state {
            ContractState::Ended(EndReason::Cancelled) => return Ok(record.contract),
            ContractState::Ended(_) => return wrong_state(&record.contract, "one that hasn't ended"),
            _ => {}
        }
        self.end(&mut record, EndReason::Cancelled, self.now)?;
        let contract = record.contract.clone();
        self.contracts.put(*id, record);
        Ok(contract)
    }

    pub(super) fn settle(&mut self, caller: Principal, id: &ContractId) -> Result<Contract, LedgerError> {
        let mut record = self.record(id)?;
        let before = record.contract.escrow;
        if record.contract.state == ContractState::Active {
            self.pay_accrued(&mut record, self.now)?;
        }
        let contract = record.contract.clone();
        if contract.escrow != before {
            self.contracts.put(*id, record);
        }
        Ok(super::query::seen_by(caller, contract))
    }
}
