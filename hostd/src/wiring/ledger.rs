//! The ledger through its typed client.

use std::time::Duration;

use ::ledger::api::{
    Amount, Confirmation, Contract, ContractId, Digest32, EvidenceRecord, HeartbeatArgs, HostDelegation,
    HostEvidenceArgs, HostInfo, HostVerified, LedgerInfo, OfferingId, OfferingSpec, RefuseArgs, Rewards,
    SubmitEvidenceArgs, VmGoneArgs,
};
use ::ledger::client::{Client, ClientError};
use async_trait::async_trait;
use candid::Principal;
use tokio::time::timeout;

use crate::ports::{LedgerCallError, LedgerPort};

/// The longest that any call but the long-poll may take. The client's own limits are shorter; this one is for the case
/// that they fail us, since an actor that waits forever is a contract that nobody looks after.
const CALL: Duration = Duration::from_secs(120);

/// The ledger as this host.
pub struct Ledger(Client);

impl Ledger {
    /// Over a client that signs with the host's key.
    pub fn new(client: Client) -> Self {
        Self(client)
    }
}

fn sort(call: &'static str, error: ClientError) -> LedgerCallError {
    match error {
        ClientError::Refused(answer) => LedgerCallError::Refused { call, answer },
        // An answer that isn't authentic, or that we can't read, is no answer.
        other => LedgerCallError::Unreachable {
            call,
            why: super::chain(&other),
        },
    }
}

async fn call<T>(
    name: &'static str,
    within: Duration,
    work: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, LedgerCallError> {
    match timeout(within, work).await {
        Ok(result) => result.map_err(|error| sort(name, error)),
        Err(_) => Err(LedgerCallError::Unreachable {
            call: name,
            why: format!("no answer in {within:?}"),
        }),
    }
}

#[async_trait]
impl LedgerPort for Ledger {
    async fn info(&self) -> Result<LedgerInfo, LedgerCallError> {
        call("ledger_info", CALL, self.0.info()).await
    }

    async fn register_host(&self, delegation: &HostDelegation) -> Result<(), LedgerCallError> {
        call("register_host", CALL, self.0.register_host(delegation.clone())).await
    }

    async fn publish_offering(&self, spec: &OfferingSpec) -> Result<OfferingId, LedgerCallError> {
        call("publish_offering", CALL, self.0.publish_offering(spec.clone())).await
    }

    async fn wait(&self, after: u64, within: Duration) -> Result<u64, LedgerCallError> {
        call("wait", within + CALL, self.0.wait(after, within)).await
    }

    async fn host_contracts(&self) -> Result<Vec<Contract>, LedgerCallError> {
        call("host_contracts", CALL, self.0.host_contracts(self.0.principal())).await
    }

    async fn contract(&self, id: ContractId) -> Result<Contract, LedgerCallError> {
        call("contract", CALL, self.0.contract(id)).await
    }

    async fn accept(&self, id: ContractId) -> Result<(), LedgerCallError> {
        call("accept", CALL, self.0.accept(id)).await
    }

    async fn refuse(&self, id: ContractId, reason: &str) -> Result<(), LedgerCallError> {
        let args = RefuseArgs {
            contract: id,
            reason: reason.to_owned(),
        };
        call("refuse", CALL, self.0.refuse(args)).await
    }

    async fn contract_nonce(&self, id: ContractId) -> Result<Digest32, LedgerCallError> {
        call("contract_nonce", CALL, self.0.contract_nonce(id)).await
    }

    async fn submit_evidence(&self, args: &SubmitEvidenceArgs) -> Result<Confirmation, LedgerCallError> {
        call("submit_evidence", CALL, self.0.submit_evidence(args.clone())).await
    }

    async fn vm_gone(&self, id: ContractId, reason: &str) -> Result<(), LedgerCallError> {
        let args = VmGoneArgs {
            contract: id,
            reason: reason.to_owned(),
        };
        call("vm_gone", CALL, self.0.vm_gone(args)).await
    }

    async fn released(&self, id: ContractId) -> Result<(), LedgerCallError> {
        call("released", CALL, self.0.released(id)).await
    }

    async fn balance(&self, account: Principal) -> Result<Amount, LedgerCallError> {
        call("icrc1_balance_of", CALL, self.0.balance(account)).await
    }

    async fn rewards(&self) -> Result<Rewards, LedgerCallError> {
        call("rewards", CALL, self.0.rewards()).await
    }

    async fn reputation(&self, account: Principal) -> Result<u64, LedgerCallError> {
        let reputation = call("reputation", CALL, self.0.reputation(account)).await?;
        Ok(reputation.score)
    }

    async fn evidence(&self, id: ContractId) -> Result<EvidenceRecord, LedgerCallError> {
        call("evidence", CALL, self.0.evidence(id)).await
    }

    async fn host(&self, host: Principal) -> Result<HostInfo, LedgerCallError> {
        call("host", CALL, self.0.host(host)).await
    }

    async fn host_nonce(&self) -> Result<Digest32, LedgerCallError> {
        call("host_nonce", CALL, self.0.host_nonce()).await
    }

    async fn submit_host_evidence(&self, args: &HostEvidenceArgs) -> Result<HostVerified, LedgerCallError> {
        let submitting = self.0.submit_host_evidence(args.clone());
        call("submit_host_evidence", CALL, submitting).await
    }

    async fn heartbeat(&self, args: &HeartbeatArgs) -> Result<(), LedgerCallError> {
        call("heartbeat", CALL, self.0.heartbeat(args.clone())).await
    }
}
