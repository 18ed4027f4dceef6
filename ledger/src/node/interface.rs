//! The Candid text of the ledger's interface, made from the Rust types: `candid:service` in the state tree, and
//! `ledgerd interface`.

use candid::types::internal::{FuncMode, Function, TypeContainer, TypeInner};
use candid::{CandidType, Nat, Principal};
use icrc_ledger_types::icrc::generic_metadata_value::MetadataValue;
use icrc_ledger_types::icrc1::account::Account;
use icrc_ledger_types::icrc1::transfer::{TransferArg, TransferError};
use icrc_ledger_types::icrc2::allowance::{Allowance, AllowanceArgs};
use icrc_ledger_types::icrc2::approve::{ApproveArgs, ApproveError};
use icrc_ledger_types::icrc2::transfer_from::{TransferFromArgs, TransferFromError};
use icrc_ledger_types::icrc3::archive::{GetArchivesArgs, GetArchivesResult};
use icrc_ledger_types::icrc3::blocks::{
    GetBlocksRequest, GetBlocksResult, ICRC3DataCertificate, SupportedBlockType,
};

use crate::api::{
    CheckIn, Confirmation, Contract, ContractId, Digest32, EvidenceRecord, ExtendArgs, HeartbeatArgs,
    HostDelegation, HostEvidenceArgs, HostInfo, HostVerified, Invariants, LedgerError, LedgerInfo, Match,
    Offering, OfferingId, OfferingSpec, PenaliseArgs, Penalty, ProviderProfile, RefuseArgs, RentArgs,
    Reputation, Request, Rewards, SubmitEvidenceArgs, VmGoneArgs, WhyNot,
};

/// An entry of `icrc1_supported_standards`.
#[derive(CandidType)]
struct SupportedStandard {
    name: String,
    url: String,
}

/// Collects methods with their types.
struct Service {
    types: TypeContainer,
    methods: Vec<(String, candid::types::Type)>,
}

impl Service {
    fn add(
        &mut self,
        name: &str,
        modes: Vec<FuncMode>,
        args: Vec<candid::types::Type>,
        ret: candid::types::Type,
    ) {
        let function = TypeInner::Func(Function {
            modes,
            args,
            rets: vec![ret],
        });
        self.methods.push((name.to_owned(), function.into()));
    }

    fn read<R: CandidType>(&mut self, name: &str) {
        let ret = self.types.add::<R>();
        self.add(name, vec![FuncMode::Query], vec![], ret);
    }

    fn query<A: CandidType, R: CandidType>(&mut self, name: &str) {
        let (arg, ret) = (self.types.add::<A>(), self.types.add::<R>());
        self.add(name, vec![FuncMode::Query], vec![arg], ret);
    }

    fn update<A: CandidType, R: CandidType>(&mut self, name: &str) {
        let (arg, ret) = (self.types.add::<A>(), self.types.add::<Result<R, LedgerError>>());
        self.add(name, vec![], vec![arg], ret);
    }
}

/// The `.did` text.
pub fn interface() -> String {
    let mut s = Service {
        types: TypeContainer::new(),
        methods: Vec::new(),
    };
    s.read::<String>("icrc1_name");
    s.read::<String>("icrc1_symbol");
    s.read::<u8>("icrc1_decimals");
    s.read::<Nat>("icrc1_fee");
    s.read::<Vec<(String, MetadataValue)>>("icrc1_metadata");
    s.read::<Nat>("icrc1_total_supply");
    s.read::<Option<Account>>("icrc1_minting_account");
    s.read::<Vec<SupportedStandard>>("icrc1_supported_standards");
    s.query::<Account, Nat>("icrc1_balance_of");
    let (arg, ret) = (
        s.types.add::<TransferArg>(),
        s.types.add::<Result<Nat, TransferError>>(),
    );
    s.add("icrc1_transfer", vec![], vec![arg], ret);
    s.query::<AllowanceArgs, Allowance>("icrc2_allowance");
    let (arg, ret) = (
        s.types.add::<ApproveArgs>(),
        s.types.add::<Result<Nat, ApproveError>>(),
    );
    s.add("icrc2_approve", vec![], vec![arg], ret);
    let (arg, ret) = (
        s.types.add::<TransferFromArgs>(),
        s.types.add::<Result<Nat, TransferFromError>>(),
    );
    s.add("icrc2_transfer_from", vec![], vec![arg], ret);

    s.query::<GetArchivesArgs, GetArchivesResult>("icrc3_get_archives");
    s.query::<Vec<GetBlocksRequest>, GetBlocksResult>("icrc3_get_blocks");
    s.read::<Option<ICRC3DataCertificate>>("icrc3_get_tip_certificate");
    s.read::<Vec<SupportedBlockType>>("icrc3_supported_block_types");

    s.read::<LedgerInfo>("ledger_info");
    s.read::<Vec<Offering>>("offerings");
    s.read::<Invariants>("invariants");
    s.query::<Request, Result<Vec<Match>, LedgerError>>("match_offerings");
    s.query::<Request, Result<Vec<WhyNot>, LedgerError>>("why_not");
    s.query::<ContractId, Result<Contract, LedgerError>>("contract");
    s.query::<ContractId, Result<EvidenceRecord, LedgerError>>("evidence");
    s.query::<Principal, Vec<Contract>>("host_contracts");
    s.query::<Principal, Result<HostInfo, LedgerError>>("host");
    s.read::<Vec<HostInfo>>("hosts");
    s.query::<Principal, Result<EvidenceRecord, LedgerError>>("host_evidence");
    s.query::<Principal, Vec<Contract>>("account_contracts");
    s.query::<Principal, Reputation>("reputation");
    s.read::<Rewards>("rewards");

    s.update::<ProviderProfile, ()>("register_provider");
    let ret = s.types.add::<Result<(), LedgerError>>();
    s.add("register_developer", vec![], vec![], ret);
    s.update::<HostDelegation, ()>("register_host");
    s.update::<OfferingSpec, OfferingId>("publish_offering");
    s.update::<Principal, ()>("retire_host");
    s.update::<OfferingId, ()>("withdraw_offering");
    s.update::<RentArgs, ContractId>("rent");
    s.update::<Vec<RentArgs>, Vec<ContractId>>("rent_all");
    s.update::<ContractId, ()>("accept");
    s.update::<RefuseArgs, ()>("refuse");
    s.update::<ContractId, Digest32>("contract_nonce");
    s.update::<SubmitEvidenceArgs, Confirmation>("submit_evidence");
    s.update::<ExtendArgs, Contract>("extend");
    s.update::<ContractId, Contract>("cancel");
    s.update::<VmGoneArgs, ()>("vm_gone");
    s.update::<ContractId, ()>("released");
    s.update::<HeartbeatArgs, ()>("heartbeat");
    let ret = s.types.add::<Result<Digest32, LedgerError>>();
    s.add("host_nonce", vec![], vec![], ret);
    s.update::<HostEvidenceArgs, HostVerified>("submit_host_evidence");
    s.update::<ContractId, Contract>("settle");
    let ret = s.types.add::<Result<CheckIn, LedgerError>>();
    s.add("check_in", vec![], vec![], ret);
    s.update::<PenaliseArgs, Penalty>("penalise");

    s.methods.sort_by(|a, b| a.0.cmp(&b.0));
    let service = TypeInner::Service(s.methods).into();
    candid::pretty::candid::compile(&s.types.env, &Some(service))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{MethodKind, method_kind};

    #[test]
    fn the_typescript_clients_interface_is_this_one() {
        let file = include_str!("../../../typescript/decent.did");
        assert!(
            file.trim() == interface().trim(),
            "typescript/decent.did is out of date: ledgerd interface > typescript/decent.did"
        );
    }

    #[test]
    fn every_method_of_the_text_is_one_of_the_protocol_and_of_the_same_kind() {
        // The service is printed one method a line, or broken over several; a method's name is indented by two.
        let text = interface();
        let service = text.split_once("service :").unwrap().1;
        let starts: Vec<usize> = service
            .match_indices("\n  ")
            .map(|(at, _)| at + 1)
            .filter(|at| service[at + 2..].starts_with(|c: char| c.is_ascii_lowercase()))
            .collect();
        for (number, start) in starts.iter().enumerate() {
            let end = starts.get(number + 1).copied().unwrap_or(service.len());
            let method = service[*start..end]
                .trim()
                .trim_end_matches('}')
                .trim()
                .trim_end_matches(';');
            let name = method.split(':').next().unwrap().trim();
            let kind = if method.ends_with("query") {
                MethodKind::Query
            } else {
                MethodKind::Update
            };
            assert_eq!(method_kind(name), Some(kind), "{method}");
        }
        let all = crate::protocol::command::all_methods().count();
        assert_eq!(starts.len(), all, "{service}");
    }
}
