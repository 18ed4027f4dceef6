//! Who is who: providers, developers and hosts [5.1, 5.4].
//!
//! Every registration is the caller's own signed call, so nobody can repeat another's and have it charged; repeating
//! one's own changes and costs nothing. A host acts by a key of its own, which its provider, whose key stays offline,
//! has signed for: for this ledger, until a time. After that time the host can wind its contracts down (`refuse`,
//! `vm_gone`, `released`, `heartbeat`), and do nothing new.

use candid::Principal;

use super::state::{Host, Provider};
use super::text;
use super::txn::{Txn, account, invalid, not_allowed};
use crate::api::{Amount, HeartbeatArgs, HostDelegation, LedgerError, ProviderProfile, TimeNs};
use crate::crypto;

/// A heartbeat that says nothing new is written down after so long.
const HEARTBEAT_EVERY: TimeNs = 60 * 1_000_000_000;

/// The most contracts that a heartbeat may call degraded.
const DEGRADED_MAX: usize = 10_000;

fn check_profile(profile: &ProviderProfile) -> Result<(), LedgerError> {
    text::words(&profile.name, 1, 200).map_err(|why| invalid("profile.name", why))?;
    text::words(&profile.contact, 1, 200).map_err(|why| invalid("profile.contact", why))?;
    text::dns_name(&profile.domain).map_err(|why| invalid("profile.domain", why))?;
    if profile.domain.len() > 240 {
        return Err(invalid(
            "profile.domain",
            "at most 240 bytes: contracts get names under it",
        ));
    }
    Ok(())
}

impl Txn<'_> {
    fn charge(&mut self, who: Principal, fee: Amount) -> Result<(), LedgerError> {
        self.pay(account(who), account(self.state.genesis.fees_wallet), fee)
    }

    pub(super) fn register_provider(
        &mut self,
        owner: Principal,
        profile: &ProviderProfile,
    ) -> Result<(), LedgerError> {
        check_profile(profile)?;
        let known = self.providers.get(&owner).cloned();
        if known.as_ref().is_some_and(|known| known.profile == *profile) {
            return Ok(());
        }
        let domain = &profile.domain;
        for (taken, by) in &self.state.index.domains {
            if *by != owner && (text::is_under(domain, taken) || text::is_under(taken, domain)) {
                return Err(invalid(
                    "profile.domain",
                    format!("{taken} belongs to provider {by}"),
                ));
            }
        }
        // A domain must not swallow a name under which a tenant is being served.
        for (name, contract) in &self.state.index.names {
            let foreign = self
                .state
                .contracts
                .get(contract)
                .is_some_and(|r| r.contract.provider != owner);
            if foreign && text::is_under(name, domain) {
                return Err(invalid(
                    "profile.domain",
                    format!("{name} under it is in use by contract {contract}"),
                ));
            }
        }
        let registered_at = match known {
            Some(known) => known.registered_at,
            None => {
                self.charge(owner, self.state.genesis.parameters.provider_registration_fee)?;
                self.now
            }
        };
        self.providers.put(
            owner,
            Provider {
                profile: profile.clone(),
                registered_at,
            },
        );
        Ok(())
    }

    pub(super) fn register_developer(&mut self, who: Principal) -> Result<(), LedgerError> {
        if self.developers.get(&who).is_none() {
            self.charge(who, self.state.genesis.parameters.developer_registration_fee)?;
            self.developers.put(who, self.now);
        }
        Ok(())
    }

    pub(super) fn register_host(
        &mut self,
        caller: Principal,
        delegation: &HostDelegation,
    ) -> Result<(), LedgerError> {
        let statement = &delegation.statement;
        if statement.host != caller {
            return Err(not_allowed(
                "only the host key that the delegation names may register with it",
            ));
        }
        if statement.ledger != self.state.ledger {
            let why = format!(
                "the delegation is for ledger {}, this is {}",
                statement.ledger, self.state.ledger
            );
            return Err(invalid("statement.ledger", why));
        }
        if statement.expires_at <= self.now {
            return Err(invalid(
                "statement.expires_at",
                "the delegation has expired; the provider must sign a new one",
            ));
        }
        let provider = crypto::principal_of(&delegation.provider_key)
            .map_err(|error| invalid("provider_key", error.to_string()))?;
        let message = crypto::host_delegation_message(statement)
            .map_err(|error| invalid("statement", error.to_string()))?;
        crypto::verify(&delegation.provider_key, &message, &delegation.signature)
            .map_err(|error| invalid("signature", error.to_string()))?;
        if self.retired.get(&(provider, caller)).is_some() {
            return Err(not_allowed(
                "the provider has retired this host key; the host needs a new one, and a delegation for it",
            ));
        }
        if self.providers.get(&provider).is_none() {
            self.register_provider(provider, &statement.profile)?;
        }
        let host = match self.hosts.get(&caller) {
            Some(host) if host.provider != provider => {
                return Err(not_allowed(format!(
                    "this host key belongs to provider {} already",
                    host.provider
                )));
            }
            Some(host) if host.delegated_until >= statement.expires_at => return Ok(()),
            Some(host) => {
                let mut host = host.clone();
                host.delegated_until = statement.expires_at;
                if host.attestation_key != statement.attestation_key {
                    host.attestation_key = statement.attestation_key;
                    host.verified = None; // it was another TPM's
                }
                host
            }
            None => Host {
                provider,
                delegated_until: statement.expires_at,
                draining: false,
                version: String::new(),
                degraded: Default::default(),
                heard_at: self.now,
                update: None,
                offering: None,
                attestation_key: statement.attestation_key,
                nonce: None,
                nonce_at: None,
                verified: None,
                refusals: Vec::new(),
            },
        };
        self.hosts.put(caller, host);
        Ok(())
    }

    /// The key never acts for this provider again, whatever delegation it still has; its contracts can be wound down. Also
    /// for a key that has not registered yet, such as one whose delegation was lost on the way; that costs the transfer fee,
    /// since such keys could be made up without end.
    pub(super) fn retire_host(&mut self, caller: Principal, id: Principal) -> Result<(), LedgerError> {
        if self.providers.get(&caller).is_none() {
            return Err(not_allowed("only a registered provider has hosts"));
        }
        if self.retired.get(&(caller, id)).is_some() {
            return Ok(());
        }
        if let Some(host) = self.hosts.get(&id) {
            if host.provider != caller {
                return Err(not_allowed(format!(
                    "this host belongs to provider {}",
                    host.provider
                )));
            }
            let offered = host.offering;
            let host = Host {
                delegated_until: host.delegated_until.min(self.now),
                draining: true,
                offering: None,
                verified: None,
                ..host.clone()
            };
            self.hosts.put(id, host);
            if let Some(offering) = offered {
                self.offerings.remove(offering);
            }
        } else {
            self.charge(caller, self.state.genesis.parameters.transfer_fee)?;
        }
        self.retired.put((caller, id), self.now);
        Ok(())
    }

    pub(super) fn heartbeat(&mut self, caller: Principal, args: &HeartbeatArgs) -> Result<(), LedgerError> {
        let host = self.host(caller)?;
        text::words(&args.version, 0, 100).map_err(|why| invalid("version", why))?;
        if args.degraded.len() > DEGRADED_MAX {
            return Err(invalid("degraded", format!("at most {DEGRADED_MAX} contracts")));
        }
        for id in &args.degraded {
            self.record_of_host(caller, id)?;
        }
        if let Some(update) = &args.update {
            let versions = [
                Some(&update.running),
                update.next.as_ref(),
                update.returned.as_ref(),
            ];
            for version in versions.into_iter().flatten() {
                text::words(version, 1, 64).map_err(|why| invalid("update", why))?;
            }
        }
        let new = Host {
            update: args.update.clone(),
            draining: args.draining,
            version: args.version.clone(),
            degraded: args.degraded.iter().copied().collect(),
            ..host.clone()
        };
        if new != host || self.now >= host.heard_at.saturating_add(HEARTBEAT_EVERY) {
            self.hosts.put(
                caller,
                Host {
                    heard_at: self.now,
                    ..new
                },
            );
        }
        Ok(())
    }

    /// The registered host that the caller is, whether or not its delegation still counts.
    pub(super) fn host(&self, caller: Principal) -> Result<Host, LedgerError> {
        self.hosts
            .get(&caller)
            .cloned()
            .ok_or_else(|| not_allowed("only a registered host may do that; call register_host first"))
    }

    /// The host that the caller is, with a delegation that counts now.
    pub(super) fn delegated_host(&self, caller: Principal) -> Result<Host, LedgerError> {
        let host = self.host(caller)?;
        if host.delegated_until <= self.now {
            return Err(not_allowed(
                "the host's delegation has expired; have the provider sign a new one and call register_host",
            ));
        }
        Ok(host)
    }
}
