//! What can be asked, typed and over the wire. Queries change nothing, and see nothing that isn't public, but for
//! `user_data`, which only a contract's host and developer get.

use candid::Principal;
use icrc_ledger_types::icrc1::account::Account;
use icrc_ledger_types::icrc2::allowance::{Allowance, AllowanceArgs};
use icrc_ledger_types::icrc3::archive::{GetArchivesArgs, GetArchivesResult};
use icrc_ledger_types::icrc3::blocks::{GetBlocksRequest, ICRC3DataCertificate};
use serde::{Deserialize, Serialize};

use super::command::{MethodKind, Reject, decode, encode};
use super::icrc3::supported_block_types;
use super::state::State;
use super::token::{NAME, SYMBOL};
use super::txn::not_found;
use crate::api::{
    Contract, ContractId, DECIMALS, EvidenceRecord, LedgerError, LedgerInfo, Offering, Reputation, Request,
    TimeNs,
};

/// The contract as `caller` may see it.
pub(super) fn seen_by(caller: Principal, mut contract: Contract) -> Contract {
    if caller != contract.host && caller != contract.developer {
        contract.args.user_data = Vec::new();
    }
    contract
}

/// ICRC-1's answer to `icrc1_supported_standards`.
#[derive(candid::CandidType, Serialize, Deserialize)]
struct Standard {
    name: String,
    url: String,
}

impl State {
    /// `ledger_info`.
    pub fn info(&self, now: TimeNs) -> LedgerInfo {
        let parameters = &self.genesis.parameters;
        LedgerInfo {
            name: self.genesis.name.clone(),
            ledger: self.ledger,
            demo: self.genesis.demo,
            clock_rate: self.genesis.clock_rate,
            now: now.max(self.time()),
            test_roots: self.genesis.test_root_digests(),
            height: self.height(),
            tip: self.tip(),
            fee_bps: parameters.fee_bps,
            dao_bps: parameters.dao_bps,
            transfer_fee: parameters.transfer_fee,
            host_images: self.genesis.host_images.clone(),
            min_tcb: self.genesis.min_tcb,
        }
    }

    /// `contract`.
    pub fn contract(&self, caller: Principal, id: &ContractId) -> Result<Contract, LedgerError> {
        let record = self
            .contracts
            .get(id)
            .ok_or_else(|| not_found(format!("contract {id}")))?;
        Ok(seen_by(caller, record.contract.clone()))
    }

    /// `evidence`: the last that was verified.
    pub fn evidence(&self, id: &ContractId) -> Result<EvidenceRecord, LedgerError> {
        let record = self
            .contracts
            .get(id)
            .ok_or_else(|| not_found(format!("contract {id}")))?;
        record
            .evidence
            .clone()
            .ok_or_else(|| not_found(format!("verified evidence of contract {id}")))
    }

    /// `host_contracts`: what the host hasn't released, by id.
    pub fn host_contracts(&self, caller: Principal, host: &Principal) -> Vec<Contract> {
        let ids = self.index.unreleased.get(host).into_iter().flatten();
        ids.filter_map(|id| self.contract(caller, id).ok()).collect()
    }

    /// `account_contracts`: as developer or provider, oldest first.
    pub fn account_contracts(&self, caller: Principal, owner: &Principal) -> Vec<Contract> {
        let ids = self.index.of_account.get(owner).into_iter().flatten();
        ids.filter_map(|(_, id)| self.contract(caller, id).ok()).collect()
    }

    /// `reputation`.
    pub fn reputation(&self, who: &Principal) -> Reputation {
        self.reputations.get(who).cloned().unwrap_or(Reputation {
            score: 0,
            history: Vec::new(),
        })
    }

    /// `offerings`, by number.
    pub fn offerings(&self) -> Vec<Offering> {
        self.offerings
            .iter()
            .map(|(id, stored)| self.offering(*id, stored))
            .collect()
    }

    /// A query as it came over the wire; the answer is Candid.
    pub fn query(
        &self,
        caller: Principal,
        method: &str,
        argument: &[u8],
        now: TimeNs,
    ) -> Result<Vec<u8>, Reject> {
        let now = now.max(self.time());
        Ok(match method {
            "icrc1_name" => encode(&NAME),
            "icrc1_symbol" => encode(&SYMBOL),
            "icrc1_decimals" => encode(&DECIMALS),
            "icrc1_fee" => encode(&candid::Nat::from(self.genesis.parameters.transfer_fee)),
            "icrc1_metadata" => encode(&self.metadata()),
            "icrc1_total_supply" => encode(&candid::Nat::from(self.supply())),
            "icrc1_minting_account" => encode(&Some(self.minting_account())),
            "icrc1_balance_of" => {
                let account: Account = decode(method, argument)?;
                encode(&candid::Nat::from(self.balance(&account)))
            }
            "icrc1_supported_standards" => encode(&["ICRC-1", "ICRC-2", "ICRC-3"].map(|name| Standard {
                name: name.to_owned(),
                url: format!("https://github.com/dfinity/ICRC-1/tree/main/standards/{name}"),
            })),
            "icrc2_allowance" => {
                let args: AllowanceArgs = decode(method, argument)?;
                let (allowance, expires_at) = self.allowance(&args.account, &args.spender, now);
                encode(&Allowance {
                    allowance: allowance.into(),
                    expires_at,
                })
            }
            "icrc3_get_blocks" => {
                encode(&self.token_blocks(&decode::<Vec<GetBlocksRequest>>(method, argument)?))
            }
            "icrc3_get_archives" => {
                decode::<GetArchivesArgs>(method, argument)?;
                encode(&GetArchivesResult::new())
            }
            "icrc3_supported_block_types" => encode(&supported_block_types()),
            // Only who signs can: the node answers it for queries. Elsewhere there is no certificate.
            "icrc3_get_tip_certificate" => encode(&None::<ICRC3DataCertificate>),
            "ledger_info" => encode(&self.info(now)),
            "match_offerings" => {
                encode(&self.match_offerings(caller, &decode::<Request>(method, argument)?, now))
            }
            "why_not" => encode(&self.why_not(caller, &decode::<Request>(method, argument)?, now)),
            "contract" => encode(&self.contract(caller, &decode(method, argument)?)),
            "evidence" => encode(&self.evidence(&decode(method, argument)?)),
            "host_contracts" => encode(&self.host_contracts(caller, &decode(method, argument)?)),
            "host" => encode(&self.host_info(&decode(method, argument)?)),
            "hosts" => encode(&self.host_infos()),
            "host_evidence" => encode(&self.host_evidence(&decode(method, argument)?)),
            "account_contracts" => encode(&self.account_contracts(caller, &decode(method, argument)?)),
            "reputation" => encode(&self.reputation(&decode(method, argument)?)),
            "rewards" => encode(&self.rewards(caller, now)),
            "offerings" => encode(&self.offerings()),
            "invariants" => encode(&self.invariants()),
            _ => {
                return Err(Reject::UnknownMethod {
                    method: method.to_owned(),
                    kind: MethodKind::Query,
                });
            }
        })
    }
}
