//! Tests of the rules. Everything goes through a [`World`], which checks after each command that the invariants hold,
//! that a refused command changed nothing, and at the end that replaying the blocks gives the same state.

mod chain;
mod contract;
mod evidence;
mod host_evidence;
mod icrc3;
mod matching;
mod property;
mod registry;
mod rent;
mod reputation;
mod rewards;
mod snp;
mod token;

use candid::Principal;

use super::settlement::SECOND;
use super::text::tests::ed25519_line;
use super::txn::account;
use super::{Block, Command, Genesis, InitialBalance, Reply, State};
use crate::api::*;
use crate::crypto;

pub(super) const START_S: u64 = 1_790_000_000;
pub(super) const HOUR: u64 = 3600;

pub(super) struct World {
    pub(super) state: State,
    pub(super) now: TimeNs,
    pub(super) blocks: Vec<Block>,
    pub(super) developer: Principal,
    pub(super) other: Principal,
    pub(super) provider: Principal,
    pub(super) host: Principal,
    pub(super) offering: OfferingId,
    memo: u64,
}

pub(super) fn principal(name: &str) -> Principal {
    Principal::self_authenticating(name)
}

pub(super) fn ledger() -> Principal {
    Principal::from_slice(&[0, 0, 0, 0, 0, 0, 0, 7, 1, 1])
}

pub(super) fn provider_key(seed: u8) -> ic_ed25519::PrivateKey {
    ic_ed25519::PrivateKey::deserialize_raw_32(&[seed; 32])
}

pub(super) fn genesis() -> Genesis {
    let mut genesis = Genesis::demo("test", 1, START_S);
    for name in ["developer", "other"] {
        genesis.balances.push(InitialBalance {
            owner: principal(name),
            amount: 1_000 * DCT,
            reason: "a test's developer".into(),
        });
    }
    genesis
}

pub(super) fn profile(domain: &str) -> ProviderProfile {
    ProviderProfile {
        name: "Test Provider".into(),
        domain: domain.into(),
        contact: "ops@provider.example".into(),
        legal_contract: Digest32::from_slice(&[9; 32]).unwrap(),
    }
}

/// A delegation to `host`, signed by provider `seed`.
pub(super) fn delegation(seed: u8, host: Principal, domain: &str) -> HostDelegation {
    let statement = HostStatement {
        ledger: ledger(),
        profile: profile(domain),
        host,
        expires_at: (START_S + 30 * 86_400) * SECOND,
        attestation_key: None,
    };
    sign(seed, statement)
}

pub(super) fn sign(seed: u8, statement: HostStatement) -> HostDelegation {
    let key = provider_key(seed);
    let message = crypto::host_delegation_message(&statement).unwrap();
    HostDelegation {
        statement,
        provider_key: key.public_key().serialize_rfc8410_der(),
        signature: key.sign_message(&message).to_vec(),
    }
}

pub(super) fn spec() -> OfferingSpec {
    OfferingSpec {
        title: "A machine".into(),
        region: "eu-ch".into(),
        kinds: vec![VmKind::Plain, VmKind::SevSnp],
        capacity: Capacity {
            vcpus: 8,
            memory_mib: 16_384,
            storage_gib: 100,
            gpus: 0,
        },
        storage_per_vm: Quota::Limited(50),
        bandwidth_mbps: Quota::Unlimited,
        gpu_model: None,
        at_rest: AtRest::Any,
        best_grade: Grade::HardwareVerified,
        test_platform: false,
        prices: PriceList {
            vm_hour: 7,
            vcpu_hour: DCT,
            memory_gib_hour: DCT / 2,
            storage_gib_hour: DCT / 100,
            gpu_hour: 0,
        },
        min_developer_reputation: 0,
        max_period_s: 100 * HOUR,
    }
}

pub(super) fn request() -> Request {
    Request {
        max_price_per_hour: 10 * DCT,
        vcpus: 2,
        memory_mib: 2_048,
        storage_gib: Quota::Limited(10),
        bandwidth_mbps: Quota::Limited(100),
        min_provider_reputation: 0,
        period_s: 10 * HOUR,
        kind: VmKind::Plain,
        min_grade: Grade::HostSigned,
        at_rest: AtRest::Any,
        gpus: 0,
        region: None,
    }
}

/// 2 vCPUs, 2 GiB, 10 GiB: 2 + 1 + 0.1 DCT and 7 base units an hour.
pub(super) const PRICE: Amount = 3_100_000_007;

pub(super) fn rent_args(offering: OfferingId) -> RentArgs {
    RentArgs {
        request: request(),
        offering,
        image: ImageRef {
            manifest: Digest32::from_slice(&[3; 32]).unwrap(),
            url: "https://images.example/manifest.json".into(),
        },
        ssh_public_keys: vec![ed25519_line(1)],
        user_data: b"#cloud-config\n".to_vec(),
        tls_name: None,
        ports: vec![PortRequest {
            transport: Transport::Tcp,
            port: 22,
        }],
        allowed_measurements: Vec::new(),
        min_tcb: TcbFloor::default(),
        max_total: 1_000 * DCT,
        memo: 0,
    }
}

impl World {
    /// Registered developers `developer` and `other`, a provider with one host and one offering.
    pub(super) fn new() -> Self {
        Self::with(genesis())
    }

    pub(super) fn with(genesis: Genesis) -> Self {
        let mut world = Self::empty(genesis);
        world.ok(world.developer, Command::RegisterDeveloper);
        world.ok(world.other, Command::RegisterDeveloper);
        let delegation = delegation(1, world.host, "p.example");
        world.ok(world.host, Command::RegisterHost(delegation));
        world.offering = world.publish(world.host, spec());
        world
    }

    pub(super) fn empty(genesis: Genesis) -> Self {
        Self {
            state: State::new(genesis, ledger()).unwrap(),
            now: START_S * SECOND,
            blocks: Vec::new(),
            developer: principal("developer"),
            other: principal("other"),
            provider: Principal::self_authenticating(provider_key(1).public_key().serialize_rfc8410_der()),
            host: principal("host"),
            offering: 0,
            memo: 0,
        }
    }

    pub(super) fn apply(&mut self, caller: Principal, command: Command) -> Result<Reply, LedgerError> {
        let mut ticked = self.state.clone();
        ticked.tick(self.now);
        let result = self.state.apply(caller, command.clone(), self.now);
        match &result {
            Err(LedgerError::EvidenceRefused { .. }) => {
                assert_eq!(
                    ticked.balances, self.state.balances,
                    "refused evidence moves no money"
                );
            }
            Err(_) | Ok(Reply::Transfer(Err(_))) => {
                assert_eq!(ticked, self.state, "a refused {command:?} changed something");
            }
            Ok(_) => {}
        }
        assert_eq!(
            self.state.invariants().violations,
            Vec::<String>::new(),
            "after {command:?}"
        );
        self.blocks.extend(self.state.take_blocks());
        result
    }

    #[track_caller]
    pub(super) fn ok(&mut self, caller: Principal, command: Command) -> Reply {
        let shown = format!("{command:?}");
        self.apply(caller, command)
            .unwrap_or_else(|error| panic!("{shown}: {error}"))
    }

    /// The command is refused, in words that contain `words`.
    #[track_caller]
    pub(super) fn refused(&mut self, caller: Principal, command: Command, words: &str) {
        let shown = format!("{command:?}");
        let error = self.apply(caller, command).expect_err(&shown).to_string();
        assert!(error.contains(words), "{error:?} doesn't contain {words:?}");
    }

    /// The command is answered and makes no block.
    #[track_caller]
    pub(super) fn again(&mut self, caller: Principal, command: Command) -> Reply {
        let before = self.state.clone();
        let reply = self.ok(caller, command);
        assert_eq!(before, self.state, "a repeated command changed something");
        reply
    }

    pub(super) fn publish(&mut self, host: Principal, spec: OfferingSpec) -> OfferingId {
        let Reply::Offering(id) = self.ok(host, Command::PublishOffering(spec)) else {
            panic!()
        };
        id
    }

    pub(super) fn rent_with(
        &mut self,
        change: impl FnOnce(&mut RentArgs),
    ) -> Result<ContractId, LedgerError> {
        self.memo += 1;
        let mut args = RentArgs {
            memo: self.memo,
            ..rent_args(self.offering)
        };
        change(&mut args);
        match self.apply(self.developer, Command::Rent(args))? {
            Reply::Contract(id) => Ok(id),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn rent(&mut self) -> ContractId {
        self.rent_with(|_| ()).unwrap()
    }

    pub(super) fn accepted(&mut self) -> ContractId {
        let id = self.rent();
        self.ok(self.host, Command::Accept(id));
        id
    }

    pub(super) fn active(&mut self) -> ContractId {
        let id = self.accepted();
        self.ok(self.host, Command::ContractNonce(id));
        self.ok(self.host, self.plain_evidence(&id));
        id
    }

    pub(super) fn plain_evidence(&self, id: &ContractId) -> Command {
        let evidence = attestation::Evidence {
            cpu: attestation::CpuEvidence::None,
            guest_keys: attestation::GuestKeys {
                wireguard: Some(id.0),
                ..Default::default()
            },
        };
        Command::SubmitEvidence(SubmitEvidenceArgs {
            contract: *id,
            evidence: evidence.to_cbor(),
            endpoint: endpoint(&self.derived_name(id)),
        })
    }

    pub(super) fn derived_name(&self, id: &ContractId) -> String {
        format!("{}.p.example", id.short())
    }

    pub(super) fn contract(&self, id: &ContractId) -> Contract {
        self.state.contract(self.developer, id).unwrap()
    }

    pub(super) fn money(&self, who: Principal) -> Amount {
        self.state.balance(&account(who))
    }

    /// Time passes; overdue deadlines are pushed.
    pub(super) fn pass(&mut self, seconds: u64) {
        self.now += seconds * SECOND;
        self.state.tick(self.now);
        assert_eq!(self.state.invariants().violations, Vec::<String>::new());
        self.blocks.extend(self.state.take_blocks());
    }

    /// Replays the blocks over the genesis, each through its bytes; and the token's log gives every balance.
    #[track_caller]
    pub(super) fn assert_replay(&self) {
        let mut again = State::new(self.state.genesis().clone(), ledger()).unwrap();
        for block in &self.blocks {
            again
                .replay(&Block::from_bytes(&block.to_bytes()).unwrap())
                .unwrap();
        }
        assert_eq!(again, self.state);
        icrc3::assert_log(&self.state);
    }
}

pub(super) fn endpoint(name: &str) -> Endpoint {
    Endpoint {
        address: "203.0.113.1".into(),
        names: vec![name.to_owned()],
        ports: vec![LeasedPort {
            transport: Transport::Tcp,
            public_port: 20_022,
            vm_port: 22,
        }],
    }
}
