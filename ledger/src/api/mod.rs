//! The Candid types and method names that the ledger speaks: one definition for the protocol, the node, the client,
//! hostd and `decent`.
//!
//! Amounts are in the token's smallest unit (10⁻⁹ DCT), times in nanoseconds of the *ledger's* clock since the Unix
//! epoch, durations in seconds. Sections in brackets are those of the Decent Cloud paper.
//!
//! | method | kind | who may call |
//! |---|---|---|
//! | `icrc1_*` | query, update | anyone; a transfer moves the caller's own tokens |
//! | `icrc2_*` | query, update | anyone; a spender moves what was approved |
//! | `ledger_info()` | query | anyone |
//! | `register_provider(ProviderProfile)`, `register_developer()` | update | the account itself |
//! | `register_host(HostDelegation)` | update | the host key that the delegation names |
//! | `publish_offering(OfferingSpec)`, `withdraw_offering(nat64)` | update | the host, for itself |
//! | `retire_host(principal)` | update | its provider |
//! | `match_offerings(Request)`, `why_not(Request)` | query | anyone |
//! | `rent(RentArgs)` | update | a developer; money goes to escrow |
//! | `rent_all(vec RentArgs)` | update | a developer; all of them or none |
//! | `accept(ContractId)`, `refuse(RefuseArgs)` | update | the contract's host |
//! | `contract_nonce(ContractId)` | update | the contract's host or developer |
//! | `submit_evidence(SubmitEvidenceArgs)` | update | the contract's host |
//! | `extend(ExtendArgs)`, `cancel(ContractId)` | update | the contract's developer |
//! | `vm_gone(VmGoneArgs)`, `released(ContractId)`, `heartbeat(HeartbeatArgs)` | update | the contract's host |
//! | `settle(ContractId)` | update | anyone: pushes an overdue step, pays what has accrued |
//! | `host_nonce()`, `submit_host_evidence(HostEvidenceArgs)` | update | the host, for itself |
//! | `check_in()` | update | a provider: takes part in the reward block that runs |
//! | `penalise(PenaliseArgs)` | update | a side of the contract |
//! | `contract(ContractId)` → `Contract`, `evidence(ContractId)` → `EvidenceRecord` | query | anyone |
//! | `host_contracts(principal)` → every contract of that host that is not yet `released` | query | the host |
//! | `host(principal)` → `HostInfo`, `hosts()`, `host_evidence(principal)` → `EvidenceRecord` | query | anyone |
//! | `account_contracts(principal)`, `reputation(principal)`, `rewards()`, `offerings()`, `invariants()` | query | anyone |
//!
//! Every update answers `Result<T, LedgerError>` (Candid `variant { Ok; Err }`), and so do the queries that can miss:
//!
//! | T | methods |
//! |---|---|
//! | `()` | `register_*`, `retire_host`, `withdraw_offering`, `accept`, `refuse`, `vm_gone`, `released`, `heartbeat` |
//! | `OfferingId`, `ContractId`, `Digest32`, `Confirmation` | `publish_offering`, `rent`, `contract_nonce`, `submit_evidence` |
//! | `Contract` (as it is now) | `extend`, `cancel`, `settle` |
//! | `Digest32`, `HostVerified` | `host_nonce`, `submit_host_evidence` |
//! | `CheckIn`, `Penalty` | `check_in`, `penalise` |
//! | `Vec<Match>`, `Vec<WhyNot>`, `Contract`, `EvidenceRecord` | queries `match_offerings`, `why_not`, `contract`, `evidence` |
//! | `HostInfo`, `EvidenceRecord` | queries `host`, `host_evidence` |
//!
//! The other queries answer plainly: `LedgerInfo`, `Vec<Contract>`, `Vec<HostInfo>`, `Reputation`, `Rewards`, `Vec<Offering>`, `Invariants`.
//! Enum variants are renamed one by one: `candid`'s derive doesn't know serde's `rename_all`, and a type that names its
//! variants otherwise than its decoder can't be read back.
//! Beside the standard interface a node offers `GET /dc/v1/wait?after=HEIGHT&timeout_ms=N`: it answers
//! `{"height": H}` as soon as H > HEIGHT, or at the timeout. It is a hint to query again, never a fact.

mod books;
mod contract;
mod error;
mod market;
mod registry;
mod reward;

pub use books::{HostImages, Invariants, LedgerInfo, ProductFloors, Reputation, ReputationChange};
pub use contract::{
    Confirmation, Contract, ContractState, EndReason, Endpoint, Escrow, EvidenceRecord, ExtendArgs, ImageRef,
    LeasedPort, PortRequest, RefuseArgs, RentArgs, SubmitEvidenceArgs, TcbFloor, Transport, VmGoneArgs,
};
pub use error::LedgerError;
pub use market::{
    AtRest, Capacity, Grade, Match, Mismatch, Offering, OfferingSpec, PriceList, Quota, Request, VmKind,
    WhyNot,
};
pub use registry::{
    HeartbeatArgs, HostDelegation, HostEvidenceArgs, HostInfo, HostStatement, HostVerified, ProviderProfile,
    UpdateNotice,
};
pub use reward::{CheckIn, Payout, PenaliseArgs, Penalty, Rewards, Ticked};

pub use crate::bytes::{Bytes, BytesError};

/// Tokens in the smallest unit: 10⁻⁹ DCT. The whole supply is below 2⁵⁵, so `u64` holds every sum of balances.
pub type Amount = u64;

/// Nanoseconds of the ledger's clock since the Unix epoch.
pub type TimeNs = u64;

/// Names one contract. 32 bytes, so that it fits SNP's `HOST_DATA` as it is (DESIGN: bindings).
pub type ContractId = Bytes<32>;

/// SHA-256.
pub type Digest32 = Bytes<32>;

/// An SNP launch digest (AMD 56860, `MEASUREMENT`) or a TDX MRTD: SHA-384.
pub type Measurement = Bytes<48>;

/// What a TPM names a key by (TPM 2.0 Part 1, "Names"), with SHA-256: 00 0b and the digest of its public area.
pub type TpmName = Bytes<34>;

/// Numbers an offering, in order of publication.
pub type OfferingId = u64;

/// Decimals of DCT (ICRC-1 `icrc1_decimals`) [5.4].
pub const DECIMALS: u8 = 9;

/// One DCT in its smallest unit.
pub const DCT: Amount = 1_000_000_000;

/// The largest cloud-init user data of a contract, in bytes.
pub const USER_DATA_MAX: usize = 64 * 1024;

/// The largest evidence that `submit_evidence` takes, in bytes: room for a VM with a full board of GPUs.
pub const EVIDENCE_MAX: usize = 512 * 1024;

#[cfg(test)]
mod tests {
    use candid::CandidType;
    use serde::{Deserialize, Serialize};

    use super::*;

    #[test]
    fn every_variant_survives_candid_and_has_its_kebab_name_in_json() {
        fn both<T>(value: T, name: &str)
        where
            T: CandidType + Serialize + for<'a> Deserialize<'a> + PartialEq + std::fmt::Debug,
        {
            assert_eq!(
                candid::decode_one::<T>(&candid::encode_one(&value).unwrap()).unwrap(),
                value
            );
            let json = serde_json::to_string(&value).unwrap();
            assert!(json.contains(name), "{json}");
            assert_eq!(serde_json::from_str::<T>(&json).unwrap(), value);
        }
        both(VmKind::Plain, "plain");
        both(VmKind::SevSnp, "sev-snp");
        both(VmKind::Tdx, "tdx");
        both(Grade::Unconfirmed, "unconfirmed");
        both(Grade::HostSigned, "host-signed");
        both(Grade::HostVerified, "host-verified");
        both(Grade::HardwareVerified, "hardware-verified");
        both(Quota::Unlimited, "unlimited");
        both(Quota::Limited(3), "limited");
        both(AtRest::Any, "any");
        both(AtRest::Encrypted, "encrypted");
        both(Transport::Tcp, "tcp");
        both(Transport::Udp, "udp");
        both(ContractState::Requested, "requested");
        both(ContractState::Accepted, "accepted");
        both(ContractState::Active, "active");
        both(ContractState::Ended(EndReason::Refused), "refused");
        both(ContractState::Ended(EndReason::AcceptTimeout), "accept-timeout");
        both(ContractState::Ended(EndReason::ConfirmTimeout), "confirm-timeout");
        both(ContractState::Ended(EndReason::Cancelled), "cancelled");
        both(ContractState::Ended(EndReason::PeriodOver), "period-over");
        both(ContractState::Ended(EndReason::VmGone), "vm-gone");
        let refused: Result<(), LedgerError> = Err(LedgerError::EvidenceRefused {
            reasons: vec!["r".into()],
            result: "{}".into(),
        });
        both(refused, "EvidenceRefused");
    }
}
