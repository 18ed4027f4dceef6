//! The token's log, read as a stranger would: by the standard alone.

use std::collections::BTreeMap;

use candid::{Nat, Principal};
use icrc_ledger_types::icrc::generic_value::{ICRC3Value, Value};
use icrc_ledger_types::icrc1::account::Account;
use icrc_ledger_types::icrc1::transfer::{Memo, TransferArg};
use icrc_ledger_types::icrc2::approve::ApproveArgs;
use icrc_ledger_types::icrc2::transfer_from::TransferFromArgs;
use icrc_ledger_types::icrc3::blocks::GetBlocksRequest;
use icrc_ledger_types::{icrc3, icrc107};

use super::*;

fn range(start: u64, length: u64) -> GetBlocksRequest {
    GetBlocksRequest {
        start: start.into(),
        length: length.into(),
    }
}

fn map(value: &ICRC3Value) -> &BTreeMap<String, ICRC3Value> {
    match value {
        ICRC3Value::Map(map) => map,
        other => panic!("no map: {other}"),
    }
}

fn number(value: &ICRC3Value) -> u64 {
    match value {
        ICRC3Value::Nat(number) => u64::try_from(&number.0).unwrap(),
        other => panic!("no number: {other}"),
    }
}

fn account_of(value: &ICRC3Value) -> Account {
    let ICRC3Value::Array(parts) = value else {
        panic!("no account: {value}");
    };
    let parts: Vec<&[u8]> = parts
        .iter()
        .map(|part| match part {
            ICRC3Value::Blob(bytes) => bytes.as_slice(),
            other => panic!("no bytes: {other}"),
        })
        .collect();
    Account {
        owner: Principal::from_slice(parts[0]),
        subaccount: parts.get(1).map(|bytes| (*bytes).try_into().unwrap()),
    }
}

/// Every block in order; the chain of hashes and the standard's schemas are checked on the way.
pub(super) fn blocks(state: &State) -> Vec<ICRC3Value> {
    let mut found: Vec<ICRC3Value> = Vec::new();
    loop {
        let answer = state.token_blocks(&[range(found.len() as u64, u64::MAX)]);
        assert!(answer.archived_blocks.is_empty());
        if answer.blocks.is_empty() {
            assert_eq!(answer.log_length, Nat::from(found.len()));
            break;
        }
        for one in answer.blocks {
            assert_eq!(one.id, Nat::from(found.len()));
            let parent = found
                .last()
                .map(|before| ICRC3Value::Blob(before.clone().hash().to_vec().into()));
            assert_eq!(map(&one.block).get("phash"), parent.as_ref());
            let block = Value::from(one.block.clone());
            let valid = match map(&one.block).get("btype") {
                None => icrc3::schema::validate(&block),
                Some(_) => icrc107::schema::validate(&block),
            };
            assert!(valid.is_ok(), "{}: {valid:?}", one.block);
            found.push(one.block);
        }
    }
    let (index, hash) = state.token_tip();
    assert_eq!(
        (index, hash.0),
        (found.len() as u64 - 1, found.last().unwrap().clone().hash())
    );
    found
}

/// Balances as the log alone gives them, by the standards' evaluation model.
fn reckon(blocks: &[ICRC3Value]) -> BTreeMap<Account, u64> {
    let mut balances: BTreeMap<Account, u64> = BTreeMap::new();
    let mut collector = None;
    for block in blocks {
        let block = map(block);
        let tx = map(&block["tx"]);
        if block.contains_key("btype") {
            collector = Some(account_of(&tx["fee_collector"]));
            continue;
        }
        let fee = block.get("fee").or(tx.get("fee")).map_or(0, number);
        let amount = |tx: &BTreeMap<String, ICRC3Value>| number(&tx["amt"]);
        let mut take = |account: Account, amount: u64| {
            let held = balances.entry(account).or_default();
            *held = held.checked_sub(amount).unwrap();
        };
        match &tx["op"] {
            ICRC3Value::Text(op) if op == "xfer" => {
                take(account_of(&tx["from"]), amount(tx) + fee);
                *balances.entry(account_of(&tx["to"])).or_default() += amount(tx);
            }
            ICRC3Value::Text(op) if op == "mint" => {
                *balances.entry(account_of(&tx["to"])).or_default() += amount(tx);
            }
            ICRC3Value::Text(op) if op == "burn" => take(account_of(&tx["from"]), amount(tx) + fee),
            ICRC3Value::Text(op) if op == "approve" => take(account_of(&tx["from"]), fee),
            other => panic!("an operation of no standard: {other}"),
        }
        if fee > 0 {
            *balances.entry(collector.unwrap()).or_default() += fee;
        }
    }
    balances.retain(|_, amount| *amount > 0);
    balances
}

/// The log is a chain of valid blocks, and gives every balance.
#[track_caller]
pub(super) fn assert_log(state: &State) {
    assert_eq!(reckon(&blocks(state)), state.balances);
}

/// A block's fields but for parent and time, as text.
fn fields(block: &ICRC3Value) -> String {
    let mut block = map(block).clone();
    block.remove("phash");
    block.remove("ts");
    ICRC3Value::Map(block).to_string()
}

/// The standard's own vectors (ICRC-3, HASHINGVALUES.md).
#[test]
fn hashes_of_values_are_the_standards() {
    let blob = |hex: &str| ICRC3Value::Blob(hex::decode(hex).unwrap().into());
    let nat = |number: u64| ICRC3Value::Nat(number.into());
    let text = |text: &str| ICRC3Value::Text(text.to_owned());
    let account = |fourth: &str| {
        blob(&format!(
            "00ab{fourth}ef0012340056789a00bcdef000012345678900abcdef01"
        ))
    };
    let map = [
        ("from", account("cd")),
        ("to", account("0d")),
        ("amount", nat(42)),
        ("created_at", nat(1_699_218_263)),
        ("memo", nat(0)),
    ];
    let map = map.map(|(key, value)| (key.to_owned(), value));
    for (value, wanted) in [
        (
            nat(42),
            "684888c0ebb17f374298b65ee2807526c066094c701bcc7ebbe1c1095f494fc1",
        ),
        (
            ICRC3Value::Int((-42).into()),
            "de5a6f78116eca62d7fc5ce159d23ae6b889b365a1739ad2cf36f925a140d0cc",
        ),
        (
            text("Hello, World!"),
            "dffd6021bb2bd5b0af676290809ec3a53191dd81c7f70a4b28688a362182986f",
        ),
        (
            blob("01020304"),
            "9f64a747e1b97f131fabb6b447296c9b6f0201e79fb3c5356e6c77e89b6a806a",
        ),
        (
            ICRC3Value::Array(vec![nat(3), text("foo"), blob("0506")]),
            "514a04011caa503990d446b7dec5d79e19c221ae607fb08b2848c67734d468d6",
        ),
        (
            ICRC3Value::Map(map.into()),
            "c56ece650e1de4269c5bdeff7875949e3e2033f85b2d193c2ff4f7f78bdcfc75",
        ),
    ] {
        assert_eq!(hex::encode(value.clone().hash()), wanted, "{value}");
    }
}

#[test]
fn a_new_ledgers_log_names_the_fee_collector_and_who_begins_with_money() {
    let state = State::new(genesis(), ledger()).unwrap();
    let blocks = blocks(&state);
    assert_eq!(blocks.len(), 3);
    assert_eq!(map(&blocks[0])["btype"], ICRC3Value::Text("107feecol".into()));
    assert!(
        blocks
            .iter()
            .all(|block| number(&map(block)["ts"]) == START_S * SECOND)
    );
    assert_log(&state);
}

#[test]
fn a_block_holds_what_the_caller_gave_and_nothing_else() {
    let mut world = World::new();
    let (developer, spender) = (world.developer, world.other);
    let sub = Account {
        owner: spender,
        subaccount: Some([5; 32]),
    };
    let now = world.now;
    let plain = TransferArg {
        from_subaccount: None,
        to: sub,
        fee: None,
        created_at_time: None,
        memo: None,
        amount: 7u8.into(),
    };
    let full = TransferArg {
        from_subaccount: Some([0; 32]),
        fee: Some(10_000u32.into()),
        created_at_time: Some(now),
        memo: Some(Memo::from(vec![1, 2])),
        ..plain.clone()
    };
    let burn = TransferArg {
        to: account(ledger()),
        fee: Some(0u8.into()),
        ..plain.clone()
    };
    let approve = ApproveArgs {
        from_subaccount: None,
        spender: account(spender),
        amount: Nat::from(u128::MAX),
        expected_allowance: Some(0u8.into()),
        expires_at: Some(now + HOUR * SECOND),
        fee: None,
        memo: None,
        created_at_time: None,
    };
    let by_spender = |to| TransferFromArgs {
        spender_subaccount: None,
        from: account(developer),
        to,
        amount: 9u8.into(),
        fee: None,
        memo: None,
        created_at_time: None,
    };
    let mut seen = Vec::new();
    for (caller, command) in [
        (developer, Command::Transfer(plain)),
        (developer, Command::Transfer(full)),
        (developer, Command::Transfer(burn)),
        (developer, Command::Approve(approve)),
        (spender, Command::TransferFrom(by_spender(sub))),
        (spender, Command::TransferFrom(by_spender(account(ledger())))),
    ] {
        let index = match world.ok(caller, command) {
            Reply::Transfer(Ok(index)) | Reply::Approve(Ok(index)) | Reply::TransferFrom(Ok(index)) => index,
            other => panic!("{other:?}"),
        };
        let index = u64::try_from(&index.0).unwrap();
        // The index that was answered is the block's.
        let answer = world.state.token_blocks(&[range(index, 1)]);
        assert_eq!(answer.log_length, Nat::from(index + 1));
        seen.push(fields(&answer.blocks[0].block));
    }
    insta::assert_snapshot!(seen.join("\n"));
    world.assert_replay();
}

/// Escrow, payout and refund are transfers of the log, so a contract's money is followed without knowing contracts.
#[test]
fn a_contracts_money_is_in_the_log() {
    let mut world = World::new();
    let before = world.state.token_tip().0;
    let id = world.rent();
    let escrow = Account {
        owner: ledger(),
        subaccount: Some(id.0),
    };
    let held = world.state.contract(world.developer, &id).unwrap().escrow.held;
    let log = blocks(&world.state);
    let funding = log.last().unwrap();
    assert_eq!(world.state.token_tip().0, before + 1);
    assert_eq!(account_of(&map(&map(funding)["tx"])["to"]), escrow);
    assert_eq!(number(&map(&map(funding)["tx"])["amt"]), held);
    assert!(!map(funding).contains_key("fee"));
    let developer = world.developer;
    world.ok(developer, Command::Cancel(id));
    assert_eq!(reckon(&blocks(&world.state)).get(&escrow), None);
    world.assert_replay();
}

#[test]
fn ranges_are_bounded_and_what_lies_behind_the_end_is_nothing() {
    let mut world = World::new();
    for amount in 0..1_200u32 {
        let to = account(principal("x"));
        let transfer = TransferArg {
            from_subaccount: None,
            to,
            fee: None,
            created_at_time: None,
            memo: None,
            amount: amount.into(),
        };
        let developer = world.developer;
        world
            .state
            .apply(developer, Command::Transfer(transfer), world.now)
            .unwrap();
    }
    let ids = |ranges: &[GetBlocksRequest]| -> Vec<u64> {
        let answer = world.state.token_blocks(ranges);
        answer
            .blocks
            .iter()
            .map(|block| u64::try_from(&block.id.0).unwrap())
            .collect()
    };
    assert_eq!(ids(&[range(0, 10_000)]).len(), 1_000);
    assert_eq!(ids(&[range(5, 2), range(3, 1), range(5, 1)]), [5, 6, 3, 5]);
    assert_eq!(ids(&[range(u64::MAX, u64::MAX), range(1_000_000, 5)]), [0u64; 0]);
    let huge = GetBlocksRequest {
        start: Nat::from(u128::MAX) * Nat::from(u128::MAX),
        length: Nat::from(1u8),
    };
    assert_eq!(ids(&[huge]), [0u64; 0]);
    let many: Vec<_> = (0..500).map(|_| range(0, 1)).collect();
    assert_eq!(ids(&many).len(), 100);
    assert_eq!(ids(&[]), [0u64; 0]);
    assert_log(&world.state);
}
