//! What a host itself runs: its TPM's quote over a nonce of this ledger, judged against signed reference values of known
//! images.
//!
//! A host asks for a nonce, quotes, and submits. What was verified counts for `host_images.valid_s` after the nonce was
//! made: then the host can't be matched for `host-verified` any more until it shows evidence again. The last submission
//! decides: evidence that is refused takes back what an earlier one proved. Each nonce is good for one submission, and a
//! host gets one a minute.
//!
//! This says which hosts can be matched and extended. A contract that asks for `host-verified` needs more: a quote of the
//! same key over the contract's own nonce, when it is confirmed.

use candid::Principal;

use super::evidence::Judge;
use super::settlement::SECOND;
use super::state::{Host, State};
use super::txn::{Txn, invalid, not_allowed, not_found, overflow};
use crate::api::{
    Digest32, EVIDENCE_MAX, EvidenceRecord, HostEvidenceArgs, HostInfo, HostVerified, LedgerError, TimeNs,
};
use crate::protocol::block::hash;

/// Between two nonces for one host.
const NONCE_EVERY: TimeNs = 60 * SECOND;

impl Txn<'_> {
    pub(super) fn host_nonce(&mut self, caller: Principal) -> Result<Digest32, LedgerError> {
        let host = self.delegated_host(caller)?;
        if host.attestation_key.is_none() {
            return Err(not_allowed(
                "the provider's delegation names no attestation key: sign one with `decent host delegate --attestation-key`",
            ));
        }
        let fresh = host
            .nonce_at
            .is_some_and(|at| self.now < at.saturating_add(NONCE_EVERY));
        match host.nonce {
            Some(nonce) if fresh => return Ok(nonce),
            None if fresh => return Err(not_allowed("a host gets one nonce a minute; ask again then")),
            _ => {}
        }
        // The tip was unknown to anybody before the last block; no two blocks have the same.
        let nonce = hash(&[b"\x11decent-host-nonce", &self.state.tip().0, caller.as_slice()]);
        let host = Host {
            nonce: Some(nonce),
            nonce_at: Some(self.now),
            ..host
        };
        self.hosts.put(caller, host);
        Ok(nonce)
    }

    pub(super) fn submit_host_evidence(
        &mut self,
        caller: Principal,
        args: &HostEvidenceArgs,
    ) -> Result<HostVerified, LedgerError> {
        let mut host = self.delegated_host(caller)?;
        if let (Some(verified), Some(known)) = (&host.verified, self.host_evidence.get(&caller))
            && known.evidence == args.evidence
        {
            return Ok(verified.clone()); // a lost answer is given again
        }
        if args.evidence.len() > EVIDENCE_MAX {
            let why = format!("{} bytes; at most {EVIDENCE_MAX}", args.evidence.len());
            return Err(invalid("evidence", why));
        }
        let (Some(nonce), Some(nonce_at)) = (host.nonce, host.nonce_at) else {
            return Err(not_allowed(
                "call host_nonce first, and bind the quote to the nonce; each is good once",
            ));
        };
        host.nonce = None;
        let judge = Judge {
            genesis: &self.state.genesis,
            ledger: self.state.ledger,
            attestation_key: host.attestation_key,
            now: self.now,
        };
        match judge.host(caller, &nonce, &args.evidence) {
            Err(refusal) => {
                host.verified = None;
                host.refusals = refusal.reasons.clone();
                self.hosts.put(caller, host);
                Err(LedgerError::EvidenceRefused {
                    reasons: refusal.reasons,
                    result: refusal.result,
                })
            }
            Ok(appraised) => {
                let valid = self.state.genesis.host_images.valid_s.checked_mul(SECOND);
                let until = valid.and_then(|valid| nonce_at.checked_add(valid));
                let verified = HostVerified {
                    image: appraised.image,
                    at: self.now,
                    until: until.ok_or_else(|| overflow("host_images.valid_s"))?,
                };
                host.verified = Some(verified.clone());
                host.refusals = Vec::new();
                self.hosts.put(caller, host);
                self.host_evidence.put(
                    caller,
                    EvidenceRecord {
                        evidence: args.evidence.clone(),
                        nonce,
                        at: self.now,
                        confirmation: appraised.confirmation,
                    },
                );
                Ok(verified)
            }
        }
    }
}

impl State {
    /// `host`.
    pub fn host_info(&self, id: &Principal) -> Result<HostInfo, LedgerError> {
        let host = self
            .hosts
            .get(id)
            .ok_or_else(|| not_found(format!("host {id}")))?;
        Ok(info(*id, host))
    }

    /// `hosts`, by principal.
    pub fn host_infos(&self) -> Vec<HostInfo> {
        self.hosts.iter().map(|(id, host)| info(*id, host)).collect()
    }

    /// `host_evidence`: the last that was verified.
    pub fn host_evidence(&self, id: &Principal) -> Result<EvidenceRecord, LedgerError> {
        let record = self.host_evidence.get(id).cloned();
        record.ok_or_else(|| not_found(format!("verified evidence of host {id}")))
    }
}

fn info(id: Principal, host: &Host) -> HostInfo {
    HostInfo {
        host: id,
        provider: host.provider,
        version: host.version.clone(),
        draining: host.draining,
        heard_at: host.heard_at,
        delegated_until: host.delegated_until,
        attestation_key: host.attestation_key,
        verified: host.verified.clone(),
        refusals: host.refusals.clone(),
        update: host.update.clone(),
    }
}
