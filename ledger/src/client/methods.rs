//! One method for each of the ledger's (see the table in [`crate::api`]).

use candid::{Nat, Principal};
use icrc_ledger_types::icrc1::account::Account;
use icrc_ledger_types::icrc1::transfer::{TransferArg, TransferError};
use icrc_ledger_types::icrc2::allowance::{Allowance, AllowanceArgs};
use icrc_ledger_types::icrc2::approve::{ApproveArgs, ApproveError};
use icrc_ledger_types::icrc2::transfer_from::{TransferFromArgs, TransferFromError};

use super::{Arguments::One, Client, ClientError, NOTHING};
use crate::api::{
    Amount, CheckIn, Confirmation, Contract, ContractId, Digest32, EvidenceRecord, ExtendArgs, HeartbeatArgs,
    HostDelegation, HostEvidenceArgs, HostInfo, HostVerified, Invariants, LedgerInfo, Match, Offering,
    OfferingId, OfferingSpec, PenaliseArgs, Penalty, ProviderProfile, RefuseArgs, RentArgs, Reputation,
    Request, Rewards, SubmitEvidenceArgs, TimeNs, VmGoneArgs, WhyNot,
};

/// What anyone may read.
impl Client {
    /// What a client must know of the ledger.
    pub async fn info(&self) -> Result<LedgerInfo, ClientError> {
        self.query("ledger_info", NOTHING).await
    }

    /// The main account's balance.
    pub async fn balance(&self, owner: Principal) -> Result<Amount, ClientError> {
        self.balance_of(Account {
            owner,
            subaccount: None,
        })
        .await
    }

    /// An account's balance (`icrc1_balance_of`).
    pub async fn balance_of(&self, account: Account) -> Result<Amount, ClientError> {
        let method = "icrc1_balance_of";
        amount(method, &self.query::<_, Nat>(method, One(account)).await?)
    }

    /// What `spender` may take from `account`, and until when (`icrc2_allowance`).
    pub async fn allowance(
        &self,
        account: Account,
        spender: Account,
    ) -> Result<(Amount, Option<TimeNs>), ClientError> {
        let method = "icrc2_allowance";
        let answer: Allowance = self
            .query(method, One(AllowanceArgs { account, spender }))
            .await?;
        Ok((amount(method, &answer.allowance)?, answer.expires_at))
    }

    /// Offerings that fit, best first.
    pub async fn match_offerings(&self, request: Request) -> Result<Vec<Match>, ClientError> {
        self.query_result("match_offerings", One(request)).await
    }

    /// Offerings that don't fit, each with every reason.
    pub async fn why_not(&self, request: Request) -> Result<Vec<WhyNot>, ClientError> {
        self.query_result("why_not", One(request)).await
    }

    /// One contract.
    pub async fn contract(&self, id: ContractId) -> Result<Contract, ClientError> {
        self.query_result("contract", One(id)).await
    }

    /// The last verified evidence of a contract.
    pub async fn evidence(&self, id: ContractId) -> Result<EvidenceRecord, ClientError> {
        self.query_result("evidence", One(id)).await
    }

    /// Every contract of a host that is not yet released.
    pub async fn host_contracts(&self, host: Principal) -> Result<Vec<Contract>, ClientError> {
        self.query("host_contracts", One(host)).await
    }

    /// One host.
    pub async fn host(&self, host: Principal) -> Result<HostInfo, ClientError> {
        self.query_result("host", One(host)).await
    }

    /// All hosts.
    pub async fn hosts(&self) -> Result<Vec<HostInfo>, ClientError> {
        self.query("hosts", NOTHING).await
    }

    /// The last verified evidence of a host.
    pub async fn host_evidence(&self, host: Principal) -> Result<EvidenceRecord, ClientError> {
        self.query_result("host_evidence", One(host)).await
    }

    /// Every contract of a developer or provider.
    pub async fn account_contracts(&self, account: Principal) -> Result<Vec<Contract>, ClientError> {
        self.query("account_contracts", One(account)).await
    }

    /// Somebody's reputation.
    pub async fn reputation(&self, account: Principal) -> Result<Reputation, ClientError> {
        self.query("reputation", One(account)).await
    }

    /// The reward block that runs now.
    pub async fn rewards(&self) -> Result<Rewards, ClientError> {
        self.query("rewards", NOTHING).await
    }

    /// All offerings.
    pub async fn offerings(&self) -> Result<Vec<Offering>, ClientError> {
        self.query("offerings", NOTHING).await
    }

    /// The books, computed anew.
    pub async fn invariants(&self) -> Result<Invariants, ClientError> {
        self.query("invariants", NOTHING).await
    }
}

/// What an account does for itself.
impl Client {
    /// Moves tokens; the answer is the block's index (`icrc1_transfer`).
    pub async fn transfer(&self, transfer: TransferArg) -> Result<u64, ClientError> {
        let method = "icrc1_transfer";
        let index: Result<Nat, TransferError> = self.update(method, One(transfer)).await?;
        amount(method, &index.map_err(ClientError::Transfer)?)
    }

    /// Lets another account spend from the caller's, in place of what it might before; the answer is the block's index
    /// (`icrc2_approve`).
    pub async fn approve(&self, approval: ApproveArgs) -> Result<u64, ClientError> {
        let method = "icrc2_approve";
        let index: Result<Nat, ApproveError> = self.update(method, One(approval)).await?;
        amount(method, &index.map_err(ClientError::Approve)?)
    }

    /// Moves tokens of an account that has approved the caller; the answer is the block's index (`icrc2_transfer_from`).
    pub async fn transfer_from(&self, transfer: TransferFromArgs) -> Result<u64, ClientError> {
        let method = "icrc2_transfer_from";
        let index: Result<Nat, TransferFromError> = self.update(method, One(transfer)).await?;
        amount(method, &index.map_err(ClientError::TransferFrom)?)
    }

    /// Registers the caller as a provider, or changes its profile.
    pub async fn register_provider(&self, profile: ProviderProfile) -> Result<(), ClientError> {
        self.update_result("register_provider", One(profile)).await
    }

    /// Ends a host key of the caller for ever; its contracts can be wound down.
    pub async fn retire_host(&self, host: Principal) -> Result<(), ClientError> {
        self.update_result("retire_host", One(host)).await
    }

    /// Registers the caller as a developer.
    pub async fn register_developer(&self) -> Result<(), ClientError> {
        self.update_result("register_developer", NOTHING).await
    }

    /// Rents: money goes to escrow, the contract's id comes back.
    pub async fn rent(&self, arguments: RentArgs) -> Result<ContractId, ClientError> {
        self.update_result("rent", One(arguments)).await
    }

    /// Several at once: all of them, or none. Idempotent by their memos.
    pub async fn rent_all(&self, nodes: Vec<RentArgs>) -> Result<Vec<ContractId>, ClientError> {
        self.update_result("rent_all", One(nodes)).await
    }

    /// Pays for more time.
    pub async fn extend(&self, arguments: ExtendArgs) -> Result<Contract, ClientError> {
        self.update_result("extend", One(arguments)).await
    }

    /// Ends a contract; unused escrow comes back.
    pub async fn cancel(&self, id: ContractId) -> Result<Contract, ClientError> {
        self.update_result("cancel", One(id)).await
    }

    /// Pushes an overdue step and pays what has accrued.
    pub async fn settle(&self, id: ContractId) -> Result<Contract, ClientError> {
        self.update_result("settle", One(id)).await
    }

    /// Takes part in the reward block that runs: providers.
    pub async fn check_in(&self) -> Result<CheckIn, ClientError> {
        self.update_result("check_in", NOTHING).await
    }

    /// Spends reputation to lower that of a contract's other side.
    pub async fn penalise(&self, arguments: PenaliseArgs) -> Result<Penalty, ClientError> {
        self.update_result("penalise", One(arguments)).await
    }
}

/// What a host does.
impl Client {
    /// Shows the provider's word that this host may act for it.
    pub async fn register_host(&self, delegation: HostDelegation) -> Result<(), ClientError> {
        self.update_result("register_host", One(delegation)).await
    }

    /// Publishes, or replaces, this host's offering.
    pub async fn publish_offering(&self, spec: OfferingSpec) -> Result<OfferingId, ClientError> {
        self.update_result("publish_offering", One(spec)).await
    }

    /// Takes an offering back.
    pub async fn withdraw_offering(&self, id: OfferingId) -> Result<(), ClientError> {
        self.update_result("withdraw_offering", One(id)).await
    }

    /// Takes a contract on.
    pub async fn accept(&self, id: ContractId) -> Result<(), ClientError> {
        self.update_result("accept", One(id)).await
    }

    /// Turns a contract down; everything is refunded.
    pub async fn refuse(&self, arguments: RefuseArgs) -> Result<(), ClientError> {
        self.update_result("refuse", One(arguments)).await
    }

    /// A fresh nonce that the next evidence must be bound to.
    pub async fn contract_nonce(&self, id: ContractId) -> Result<Digest32, ClientError> {
        self.update_result("contract_nonce", One(id)).await
    }

    /// Evidence for a contract; the ledger verifies it.
    pub async fn submit_evidence(&self, arguments: SubmitEvidenceArgs) -> Result<Confirmation, ClientError> {
        self.update_result("submit_evidence", One(arguments)).await
    }

    /// A fresh nonce that the host's next own evidence must be bound to.
    pub async fn host_nonce(&self) -> Result<Digest32, ClientError> {
        self.update_result("host_nonce", NOTHING).await
    }

    /// The host's own evidence; the ledger verifies it.
    pub async fn submit_host_evidence(
        &self,
        arguments: HostEvidenceArgs,
    ) -> Result<HostVerified, ClientError> {
        self.update_result("submit_host_evidence", One(arguments)).await
    }

    /// The VM is gone: accrual stops.
    pub async fn vm_gone(&self, arguments: VmGoneArgs) -> Result<(), ClientError> {
        self.update_result("vm_gone", One(arguments)).await
    }

    /// Everything of an ended contract is let go.
    pub async fn released(&self, id: ContractId) -> Result<(), ClientError> {
        self.update_result("released", One(id)).await
    }

    /// Still here.
    pub async fn heartbeat(&self, arguments: HeartbeatArgs) -> Result<(), ClientError> {
        self.update_result("heartbeat", One(arguments)).await
    }
}

/// A number of this ledger, where every amount is below 2⁶⁴.
fn amount(method: &'static str, number: &Nat) -> Result<u64, ClientError> {
    u64::try_from(number.0.clone()).map_err(|_| ClientError::Candid {
        method,
        why: format!("{number} is too large for this ledger"),
    })
}
