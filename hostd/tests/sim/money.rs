//! The ledger of the simulated world: the contract's states and money as the real one keeps them, nothing more.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use candid::Principal;
use hostd::ports::{LedgerCallError, LedgerPort};
use ledger::api::{
    Amount, AtRest, Confirmation, Contract, ContractId, ContractState, DCT, Digest32, EndReason, Escrow,
    EvidenceRecord, Grade, HeartbeatArgs, HostDelegation, HostEvidenceArgs, HostInfo, HostVerified, ImageRef,
    LedgerError, LedgerInfo, OfferingId, OfferingSpec, PortRequest, Quota, RentArgs, Request, Rewards,
    SubmitEvidenceArgs, TcbFloor, Transport, VmKind,
};
use sha2::{Digest as _, Sha256};

use super::{Fuse, State, World};

pub struct SimLedger {
    pub world: Arc<World>,
    pub fuse: Arc<Fuse>,
}

/// A paid request for a small VM.
pub fn request(id: ContractId, developer: u8) -> Contract {
    let key = Principal::from_slice(&[developer, 1]);
    Contract {
        id,
        salt: id,
        developer: key,
        provider: Principal::from_slice(&[200, 1]),
        host: Principal::from_slice(&[201, 1]),
        args: RentArgs {
            request: Request {
                max_price_per_hour: DCT,
                vcpus: 1,
                memory_mib: 256,
                storage_gib: Quota::Limited(1),
                bandwidth_mbps: Quota::Unlimited,
                min_provider_reputation: 0,
                period_s: 3600,
                kind: VmKind::Plain,
                min_grade: Grade::HostSigned,
                at_rest: AtRest::Any,
                gpus: 0,
                region: None,
            },
            offering: 1,
            image: ImageRef {
                manifest: Digest32::from_slice(&[9; 32]).unwrap(),
                url: "file:///image".into(),
            },
            ssh_public_keys: vec!["ssh-ed25519 AAAA test".into()],
            user_data: b"#!/bin/sh\ntrue\n".to_vec(),
            tls_name: None,
            ports: vec![PortRequest {
                transport: Transport::Tcp,
                port: 22,
            }],
            allowed_measurements: Vec::new(),
            min_tcb: TcbFloor::default(),
            max_total: 10 * DCT,
            memo: 0,
        },
        state: ContractState::Requested,
        deadline: None,
        created_at: 1,
        active_since: None,
        ended_at: None,
        price_per_hour: DCT,
        period_s: 3600,
        escrow: Escrow {
            funded: DCT,
            held: DCT,
            ..Escrow::default()
        },
        nonce: None,
        grade: Grade::Unconfirmed,
        endpoint: None,
        refusals: Vec::new(),
        released: false,
    }
}

impl State {
    pub fn rent(&mut self, contract: Contract) {
        self.height += 1;
        self.contracts.insert(contract.id, contract);
    }

    /// Ends a contract; what wasn't earned is refunded.
    pub fn end(&mut self, id: ContractId, reason: EndReason) {
        self.height += 1;
        let contract = self.contracts.get_mut(&id).unwrap();
        let earned = if contract.active_since.is_some() {
            contract.escrow.held / 10
        } else {
            0
        };
        contract.escrow.released += earned;
        contract.escrow.refunded += contract.escrow.held - earned;
        contract.escrow.held = 0;
        contract.state = ContractState::Ended(reason);
    }

    /// What the simulated guest hands out for a nonce.
    pub fn evidence(contract: ContractId, nonce: Digest32) -> Vec<u8> {
        Sha256::digest([contract.0, nonce.0].concat()).to_vec()
    }
}

fn wrong(state: ContractState, needs: &str) -> LedgerError {
    LedgerError::WrongState {
        state: format!("{state:?}"),
        needs: needs.to_owned(),
    }
}

impl SimLedger {
    /// One call: the process may die before it, or after it without having heard the answer.
    async fn call<T>(
        &self,
        call: &'static str,
        work: impl FnOnce(&mut State) -> Result<T, LedgerError> + Send,
    ) -> Result<T, LedgerCallError> {
        self.fuse.moment().await;
        let result = self.read(call, |state| self.world_change(state, work));
        self.world.changed.notify_waiters();
        self.fuse.moment().await;
        result
    }

    fn world_change<T>(
        &self,
        state: &mut State,
        work: impl FnOnce(&mut State) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        state.now += 1;
        work(state)
    }

    fn read<T>(
        &self,
        call: &'static str,
        work: impl FnOnce(&mut State) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerCallError> {
        let mut state = self.world.state();
        if state.ledger_down {
            return Err(LedgerCallError::Unreachable {
                call,
                why: "simulated".into(),
            });
        }
        work(&mut state).map_err(|answer| LedgerCallError::Refused { call, answer })
    }
}

fn find(state: &mut State, id: ContractId) -> Result<&mut Contract, LedgerError> {
    state.contracts.get_mut(&id).ok_or_else(|| LedgerError::NotFound {
        what: format!("contract {id}"),
    })
}

#[async_trait]
impl LedgerPort for SimLedger {
    async fn info(&self) -> Result<LedgerInfo, LedgerCallError> {
        self.read("ledger_info", |state| {
            Ok(LedgerInfo {
                name: "simulated".into(),
                ledger: Principal::from_slice(&[1, 2, 3]),
                demo: true,
                clock_rate: 1,
                now: state.now,
                test_roots: Vec::new(),
                height: state.height,
                tip: Digest32::from_slice(&[0; 32]).unwrap(),
                fee_bps: 200,
                dao_bps: 5000,
                transfer_fee: 1,
                host_images: Default::default(),
                min_tcb: Default::default(),
            })
        })
    }

    async fn balance(&self, _: Principal) -> Result<Amount, LedgerCallError> {
        self.read("icrc1_balance_of", |_| Ok(12 * DCT))
    }

    async fn reputation(&self, _: Principal) -> Result<u64, LedgerCallError> {
        self.read("reputation", |_| Ok(3 * DCT))
    }

    async fn rewards(&self) -> Result<Rewards, LedgerCallError> {
        self.read("rewards", |_| {
            Ok(Rewards {
                block: 7,
                ends_at: 8 * 600_000_000_000,
                reward: 50 * DCT,
                pool: 50 * DCT,
                fee: DCT / 2,
                participants: 2,
                weights: 4,
                own_weight: Some(1),
                minted: 0,
                cap: 21_000_000 * DCT,
                halves_at: 210_000 * 600_000_000_000,
            })
        })
    }

    async fn evidence(&self, id: ContractId) -> Result<EvidenceRecord, LedgerCallError> {
        self.read("evidence", |state| {
            let contract = find(state, id)?;
            let (grade, at) = (contract.grade, contract.active_since);
            let at = at.ok_or_else(|| LedgerError::NotFound {
                what: format!("evidence of {id}"),
            })?;
            Ok(EvidenceRecord {
                evidence: vec![1],
                nonce: id,
                at,
                confirmation: Confirmation {
                    grade,
                    trust: "test-root".into(),
                    result:
                        r#"{"checks":[{"id":"report-data","outcome":"passed","expected":"00","found":"00"}]}"#
                            .into(),
                },
            })
        })
    }

    async fn host(&self, host: Principal) -> Result<HostInfo, LedgerCallError> {
        let what = format!("host {host}");
        self.read("host", |_| Err(LedgerError::NotFound { what: what.clone() }))
    }

    async fn host_nonce(&self) -> Result<Digest32, LedgerCallError> {
        self.read("host_nonce", |_| Ok(Digest32::from_slice(&[8; 32]).unwrap()))
    }

    async fn submit_host_evidence(&self, _: &HostEvidenceArgs) -> Result<HostVerified, LedgerCallError> {
        self.read("submit_host_evidence", |_| {
            Err(LedgerError::NotAllowed {
                why: "simulated".into(),
            })
        })
    }

    async fn register_host(&self, _: &HostDelegation) -> Result<(), LedgerCallError> {
        Ok(())
    }

    async fn publish_offering(&self, _: &OfferingSpec) -> Result<OfferingId, LedgerCallError> {
        Ok(1)
    }

    async fn wait(&self, after: u64, timeout: Duration) -> Result<u64, LedgerCallError> {
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            let changed = self.world.changed.notified();
            let height = self.read("wait", |state| Ok(state.height))?;
            if height > after || tokio::time::Instant::now() >= deadline {
                return Ok(height);
            }
            let _ = tokio::time::timeout_at(deadline, changed).await;
        }
    }

    async fn host_contracts(&self) -> Result<Vec<Contract>, LedgerCallError> {
        self.read("host_contracts", |state| {
            Ok(state
                .contracts
                .values()
                .filter(|c| !c.released)
                .cloned()
                .collect())
        })
    }

    async fn contract(&self, id: ContractId) -> Result<Contract, LedgerCallError> {
        self.read("contract", |state| find(state, id).cloned())
    }

    async fn accept(&self, id: ContractId) -> Result<(), LedgerCallError> {
        self.call("accept", |state| {
            state.height += 1;
            let contract = find(state, id)?;
            match contract.state {
                ContractState::Requested => contract.state = ContractState::Accepted,
                ContractState::Accepted => {}
                other => return Err(wrong(other, "requested")),
            }
            Ok(())
        })
        .await
    }

    async fn refuse(&self, id: ContractId, reason: &str) -> Result<(), LedgerCallError> {
        self.call("refuse", |state| {
            let contract = find(state, id)?;
            if contract.state != ContractState::Requested {
                return Err(wrong(contract.state, "requested"));
            }
            contract.released = true;
            state.end(id, EndReason::Refused);
            state.hear(id, reason);
            Ok(())
        })
        .await
    }

    async fn contract_nonce(&self, id: ContractId) -> Result<Digest32, LedgerCallError> {
        self.call("contract_nonce", |state| {
            let now = state.now;
            let contract = find(state, id)?;
            if contract.state != ContractState::Accepted {
                return Err(wrong(contract.state, "accepted"));
            }
            let fresh =
                Digest32::from_slice(&Sha256::digest([&id.0[..], &now.to_be_bytes()[..]].concat())).unwrap();
            Ok(*contract.nonce.insert(fresh))
        })
        .await
    }

    async fn submit_evidence(&self, args: &SubmitEvidenceArgs) -> Result<Confirmation, LedgerCallError> {
        self.call("submit_evidence", |state| {
            let now = state.now;
            let contract = find(state, args.contract)?;
            if contract.state != ContractState::Accepted {
                return Err(wrong(contract.state, "accepted"));
            }
            let nonce = contract.nonce.ok_or_else(|| wrong(contract.state, "a nonce"))?;
            if args.evidence != State::evidence(args.contract, nonce) {
                contract.refusals = vec!["report_data differs".into()];
                return Err(LedgerError::EvidenceRefused {
                    reasons: vec!["report_data differs".into(), "measurement isn't allowed".into()],
                    result: "{}".into(),
                });
            }
            contract.state = ContractState::Active;
            contract.active_since = Some(now);
            contract.grade = Grade::HostSigned;
            contract.endpoint = Some(args.endpoint.clone());
            state.height += 1;
            Ok(Confirmation {
                grade: Grade::HostSigned,
                trust: "test-root".into(),
                result: "{}".into(),
            })
        })
        .await
    }

    async fn vm_gone(&self, id: ContractId, reason: &str) -> Result<(), LedgerCallError> {
        self.call("vm_gone", |state| {
            let end = match find(state, id)?.state {
                ContractState::Accepted => EndReason::ConfirmTimeout,
                ContractState::Active => EndReason::VmGone,
                other => return Err(wrong(other, "accepted or active")),
            };
            state.end(id, end);
            state.hear(id, reason);
            Ok(())
        })
        .await
    }

    async fn released(&self, id: ContractId) -> Result<(), LedgerCallError> {
        self.call("released", |state| {
            let contract = find(state, id)?;
            if !matches!(contract.state, ContractState::Ended(_)) {
                return Err(wrong(contract.state, "ended"));
            }
            contract.released = true;
            state.height += 1;
            if state.vms.contains_key(&id) || state.disks.contains(&id) || state.seeds.contains(&id) {
                state.violations.push(format!(
                    "{} was called released while the host held it",
                    id.short()
                ));
            }
            Ok(())
        })
        .await
    }

    async fn heartbeat(&self, _: &HeartbeatArgs) -> Result<(), LedgerCallError> {
        Ok(())
    }
}
