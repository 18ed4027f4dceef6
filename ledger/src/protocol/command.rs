//! The update methods as typed commands, their replies, and how both look in Candid.

use candid::de::{DecoderConfig, IDLDeserialize};
use candid::{CandidType, Nat, Principal};
use icrc_ledger_types::icrc1::transfer::{TransferArg, TransferError};
use icrc_ledger_types::icrc2::approve::{ApproveArgs, ApproveError};
use icrc_ledger_types::icrc2::transfer_from::{TransferFromArgs, TransferFromError};
use serde::Deserialize;

use super::block::ARGUMENT_MAX;
use crate::api::{
    CheckIn, Confirmation, Contract, ContractId, Digest32, ExtendArgs, HeartbeatArgs, HostDelegation,
    HostEvidenceArgs, HostVerified, LedgerError, OfferingId, OfferingSpec, PenaliseArgs, Penalty,
    ProviderProfile, RefuseArgs, RentArgs, SubmitEvidenceArgs, Ticked, VmGoneArgs,
};

/// The method name of `Command::Tick` in blocks; no caller can say it.
pub(crate) const TICK: &str = "tick";

/// One update. `tick` comes from the ledger itself and has no outside name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Pushes every overdue deadline.
    Tick,
    /// `icrc1_transfer`.
    Transfer(TransferArg),
    /// `icrc2_approve`.
    Approve(ApproveArgs),
    /// `icrc2_transfer_from`.
    TransferFrom(TransferFromArgs),
    /// `register_provider`.
    RegisterProvider(ProviderProfile),
    /// `register_developer`.
    RegisterDeveloper,
    /// `register_host`.
    RegisterHost(HostDelegation),
    /// `retire_host`.
    RetireHost(Principal),
    /// `publish_offering`.
    PublishOffering(OfferingSpec),
    /// `withdraw_offering`.
    WithdrawOffering(OfferingId),
    /// `rent`.
    Rent(RentArgs),
    /// `rent_all`.
    RentAll(Vec<RentArgs>),
    /// `accept`.
    Accept(ContractId),
    /// `refuse`.
    Refuse(RefuseArgs),
    /// `contract_nonce`.
    ContractNonce(ContractId),
    /// `submit_evidence`.
    SubmitEvidence(SubmitEvidenceArgs),
    /// `extend`.
    Extend(ExtendArgs),
    /// `cancel`.
    Cancel(ContractId),
    /// `vm_gone`.
    VmGone(VmGoneArgs),
    /// `released`.
    Released(ContractId),
    /// `heartbeat`.
    Heartbeat(HeartbeatArgs),
    /// `host_nonce`.
    HostNonce,
    /// `submit_host_evidence`.
    SubmitHostEvidence(HostEvidenceArgs),
    /// `settle`.
    Settle(ContractId),
    /// `check_in`.
    CheckIn,
    /// `penalise`.
    Penalise(PenaliseArgs),
}

/// The answer to a command; each method has one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `tick`.
    Ticked(Ticked),
    /// `icrc1_transfer`: index of the block, or the standard's error.
    Transfer(Result<Nat, TransferError>),
    /// `icrc2_approve`: the same.
    Approve(Result<Nat, ApproveError>),
    /// `icrc2_transfer_from`: the same.
    TransferFrom(Result<Nat, TransferFromError>),
    /// Done; nothing to tell.
    Done,
    /// `publish_offering`.
    Offering(OfferingId),
    /// `rent`.
    Contract(ContractId),
    /// `rent_all`.
    Contracts(Vec<ContractId>),
    /// `contract_nonce`, `host_nonce`.
    Nonce(Digest32),
    /// `submit_host_evidence`.
    HostVerified(HostVerified),
    /// `submit_evidence`.
    Confirmed(Confirmation),
    /// `extend`, `cancel`, `settle`: the contract as it is now.
    Now(Box<Contract>),
    /// `check_in`.
    CheckedIn(CheckIn),
    /// `penalise`.
    Penalised(Penalty),
}

/// Whether a method changes the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodKind {
    /// It doesn't.
    Query,
    /// It may.
    Update,
}

/// The call can't be understood; it isn't a `LedgerError`, since the method's own reply type is unknown or unreachable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// No such method.
    #[error("the ledger has no {kind:?} method {method:?}")]
    UnknownMethod {
        /// As called.
        method: String,
        /// As called.
        kind: MethodKind,
    },
    /// The argument isn't Candid of the method's type.
    #[error("the argument of {method} can't be read: {why}")]
    Malformed {
        /// Which method.
        method: String,
        /// What is wrong with it.
        why: String,
    },
}

const QUERIES: &[&str] = &[
    "icrc1_name",
    "icrc1_symbol",
    "icrc1_decimals",
    "icrc1_fee",
    "icrc1_metadata",
    "icrc1_total_supply",
    "icrc1_minting_account",
    "icrc1_balance_of",
    "icrc1_supported_standards",
    "icrc2_allowance",
    "icrc3_get_archives",
    "icrc3_get_blocks",
    "icrc3_get_tip_certificate",
    "icrc3_supported_block_types",
    "ledger_info",
    "match_offerings",
    "why_not",
    "contract",
    "evidence",
    "host_contracts",
    "host",
    "hosts",
    "host_evidence",
    "account_contracts",
    "reputation",
    "rewards",
    "offerings",
    "invariants",
];

const UPDATES: &[&str] = &[
    "icrc1_transfer",
    "icrc2_approve",
    "icrc2_transfer_from",
    "register_provider",
    "register_developer",
    "register_host",
    "retire_host",
    "publish_offering",
    "withdraw_offering",
    "rent",
    "rent_all",
    "accept",
    "refuse",
    "contract_nonce",
    "submit_evidence",
    "extend",
    "cancel",
    "vm_gone",
    "released",
    "heartbeat",
    "host_nonce",
    "submit_host_evidence",
    "settle",
    "check_in",
    "penalise",
];

/// What the method is; `None`: there is none of that name.
pub fn method_kind(method: &str) -> Option<MethodKind> {
    if QUERIES.contains(&method) {
        Some(MethodKind::Query)
    } else if UPDATES.contains(&method) {
        Some(MethodKind::Update)
    } else {
        None
    }
}

/// Reads one Candid argument with bounded effort: cost and skipping are limited, whatever the bytes say.
pub(crate) fn decode<T: CandidType + for<'a> Deserialize<'a>>(
    method: &str,
    argument: &[u8],
) -> Result<T, Reject> {
    read(method, argument, |de| de.get_value())
}

fn nothing(method: &str, argument: &[u8]) -> Result<(), Reject> {
    read(method, argument, |_| Ok(()))
}

fn read<T>(
    method: &str,
    argument: &[u8],
    value: impl FnOnce(&mut IDLDeserialize<'_>) -> candid::Result<T>,
) -> Result<T, Reject> {
    let malformed = |why: String| Reject::Malformed {
        method: method.to_owned(),
        why,
    };
    if argument.len() > ARGUMENT_MAX {
        return Err(malformed(format!(
            "{} bytes, at most {ARGUMENT_MAX}",
            argument.len()
        )));
    }
    let mut config = DecoderConfig::new();
    config
        .set_decoding_quota(20_000_000)
        .set_skipping_quota(50_000)
        .set_full_error_message(false);
    let mut de = IDLDeserialize::new_with_config(argument, &config).map_err(|e| malformed(e.to_string()))?;
    let value = value(&mut de).map_err(|e| malformed(e.to_string()))?;
    de.done().map_err(|e| malformed(e.to_string()))?;
    Ok(value)
}

/// Candid of one value. It can fail only where the writer does, and a `Vec` doesn't.
pub(crate) fn encode<T: CandidType>(value: &T) -> Vec<u8> {
    candid::encode_one(value).unwrap_or_default()
}

fn encode_nothing() -> Vec<u8> {
    candid::encode_args(()).unwrap_or_default()
}

impl Command {
    /// The command that a call of `method` means.
    pub fn decode(method: &str, argument: &[u8]) -> Result<Self, Reject> {
        Ok(match method {
            "icrc1_transfer" => Self::Transfer(decode(method, argument)?),
            "icrc2_approve" => Self::Approve(decode(method, argument)?),
            "icrc2_transfer_from" => Self::TransferFrom(decode(method, argument)?),
            "register_provider" => Self::RegisterProvider(decode(method, argument)?),
            "register_developer" => nothing(method, argument).map(|()| Self::RegisterDeveloper)?,
            "register_host" => Self::RegisterHost(decode(method, argument)?),
            "retire_host" => Self::RetireHost(decode(method, argument)?),
            "publish_offering" => Self::PublishOffering(decode(method, argument)?),
            "withdraw_offering" => Self::WithdrawOffering(decode(method, argument)?),
            "rent" => Self::Rent(decode(method, argument)?),
            "rent_all" => Self::RentAll(decode(method, argument)?),
            "accept" => Self::Accept(decode(method, argument)?),
            "refuse" => Self::Refuse(decode(method, argument)?),
            "contract_nonce" => Self::ContractNonce(decode(method, argument)?),
            "submit_evidence" => Self::SubmitEvidence(decode(method, argument)?),
            "extend" => Self::Extend(decode(method, argument)?),
            "cancel" => Self::Cancel(decode(method, argument)?),
            "vm_gone" => Self::VmGone(decode(method, argument)?),
            "released" => Self::Released(decode(method, argument)?),
            "heartbeat" => Self::Heartbeat(decode(method, argument)?),
            "host_nonce" => nothing(method, argument).map(|()| Self::HostNonce)?,
            "submit_host_evidence" => Self::SubmitHostEvidence(decode(method, argument)?),
            "settle" => Self::Settle(decode(method, argument)?),
            "check_in" => nothing(method, argument).map(|()| Self::CheckIn)?,
            "penalise" => Self::Penalise(decode(method, argument)?),
            _ => {
                return Err(Reject::UnknownMethod {
                    method: method.to_owned(),
                    kind: MethodKind::Update,
                });
            }
        })
    }

    /// Method name and canonical argument, as they stand in a block.
    pub fn encode(&self) -> (&'static str, Vec<u8>) {
        match self {
            Self::Tick => (TICK, Vec::new()),
            Self::Transfer(a) => ("icrc1_transfer", encode(a)),
            Self::Approve(a) => ("icrc2_approve", encode(a)),
            Self::TransferFrom(a) => ("icrc2_transfer_from", encode(a)),
            Self::RegisterProvider(a) => ("register_provider", encode(a)),
            Self::RegisterDeveloper => ("register_developer", encode_nothing()),
            Self::RegisterHost(a) => ("register_host", encode(a)),
            Self::RetireHost(a) => ("retire_host", encode(a)),
            Self::PublishOffering(a) => ("publish_offering", encode(a)),
            Self::WithdrawOffering(a) => ("withdraw_offering", encode(a)),
            Self::Rent(a) => ("rent", encode(a)),
            Self::RentAll(a) => ("rent_all", encode(a)),
            Self::Accept(a) => ("accept", encode(a)),
            Self::Refuse(a) => ("refuse", encode(a)),
            Self::ContractNonce(a) => ("contract_nonce", encode(a)),
            Self::SubmitEvidence(a) => ("submit_evidence", encode(a)),
            Self::Extend(a) => ("extend", encode(a)),
            Self::Cancel(a) => ("cancel", encode(a)),
            Self::VmGone(a) => ("vm_gone", encode(a)),
            Self::Released(a) => ("released", encode(a)),
            Self::Heartbeat(a) => ("heartbeat", encode(a)),
            Self::HostNonce => ("host_nonce", encode_nothing()),
            Self::SubmitHostEvidence(a) => ("submit_host_evidence", encode(a)),
            Self::Settle(a) => ("settle", encode(a)),
            Self::CheckIn => ("check_in", encode_nothing()),
            Self::Penalise(a) => ("penalise", encode(a)),
        }
    }
}

/// The Candid reply of an update.
pub fn encode_reply(result: &Result<Reply, LedgerError>) -> Vec<u8> {
    fn ok<T: CandidType>(value: T) -> Vec<u8> {
        encode(&Ok::<T, LedgerError>(value))
    }
    match result {
        // `()` stands for every T here: Candid's variant subtyping lets each client read `Err` as its own type.
        Err(error) => encode(&Err::<(), &LedgerError>(error)),
        Ok(Reply::Transfer(result)) => encode(result),
        Ok(Reply::Approve(result)) => encode(result),
        Ok(Reply::TransferFrom(result)) => encode(result),
        Ok(Reply::Done) => ok(()),
        Ok(Reply::Ticked(ticked)) => ok(ticked),
        Ok(Reply::Offering(id)) => ok(id),
        Ok(Reply::Contract(id)) => ok(id),
        Ok(Reply::Contracts(ids)) => ok(ids),
        Ok(Reply::Nonce(nonce)) => ok(nonce),
        Ok(Reply::HostVerified(verified)) => ok(verified),
        Ok(Reply::Confirmed(confirmation)) => ok(confirmation),
        Ok(Reply::Now(contract)) => ok(contract.as_ref()),
        Ok(Reply::CheckedIn(check_in)) => ok(check_in),
        Ok(Reply::Penalised(penalty)) => ok(penalty),
    }
}

/// The reply as a block commits to it: without the words for people (what a verifier says about evidence, a host's
/// reasons), which another version of the same rules may put otherwise.
pub(crate) fn committed_reply(result: &Result<Reply, LedgerError>) -> Vec<u8> {
    let mut result = result.clone();
    match &mut result {
        Ok(Reply::Confirmed(confirmation)) => confirmation.result.clear(),
        Ok(Reply::Now(contract)) => contract.refusals.clear(),
        Err(LedgerError::EvidenceRefused { reasons, result }) => {
            reasons.clear();
            result.clear();
        }
        _ => {}
    }
    encode_reply(&result)
}

/// Every method with its kind, for tests.
#[cfg(test)]
pub(crate) fn all_methods() -> impl Iterator<Item = (&'static str, MethodKind)> {
    let of = |kind| move |method: &&'static str| (*method, kind);
    QUERIES
        .iter()
        .map(of(MethodKind::Query))
        .chain(UPDATES.iter().map(of(MethodKind::Update)))
}
