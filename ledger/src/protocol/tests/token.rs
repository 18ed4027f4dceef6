//! ICRC-1 and ICRC-2.

use candid::Nat;
use icrc_ledger_types::icrc1::account::Account;
use icrc_ledger_types::icrc1::transfer::{Memo, TransferArg, TransferError};
use icrc_ledger_types::icrc2::approve::{ApproveArgs, ApproveError};
use icrc_ledger_types::icrc2::transfer_from::{TransferFromArgs, TransferFromError};

use super::*;
use crate::protocol::settlement::escrow_account;

fn transfer(to: Account, amount: u64) -> TransferArg {
    TransferArg {
        from_subaccount: None,
        to,
        fee: None,
        created_at_time: None,
        memo: None,
        amount: amount.into(),
    }
}

fn send(world: &mut World, args: TransferArg) -> Result<Nat, TransferError> {
    match world.ok(world.developer, Command::Transfer(args)) {
        Reply::Transfer(result) => result,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_transfer_moves_the_amount_and_the_fee() {
    let mut world = World::new();
    let sub = Account {
        owner: principal("x"),
        subaccount: Some([5; 32]),
    };
    let index = world.state.token_tip().0 + 1;
    assert_eq!(send(&mut world, transfer(sub, 7)), Ok(index.into()));
    assert_eq!(world.state.balance(&sub), 7);
    assert_eq!(world.money(world.developer), 1_000 * DCT - 7 - 10_000);
    assert_eq!(world.money(world.state.genesis().fees_wallet), 10_000);
    // To oneself, and nothing at all: only the fee.
    let own = account(world.developer);
    send(&mut world, transfer(own, 1)).unwrap();
    send(&mut world, transfer(sub, 0)).unwrap();
    assert_eq!(world.money(world.developer), 1_000 * DCT - 7 - 30_000);
    // The zero subaccount is the default one.
    let zero = Account {
        owner: principal("y"),
        subaccount: Some([0; 32]),
    };
    send(&mut world, transfer(zero, 3)).unwrap();
    assert_eq!(world.money(principal("y")), 3);
    world.assert_replay();
}

#[test]
fn refusals_are_the_standards_own() {
    let mut world = World::new();
    let to = account(principal("x"));
    let all = world.money(world.developer);
    let escrow = escrow_account(ledger(), &Digest32::from_slice(&[1; 32]).unwrap());
    let short = Err(TransferError::InsufficientFunds { balance: all.into() });
    assert_eq!(send(&mut world, transfer(to, all)), short);
    assert_eq!(send(&mut world, transfer(to, u64::MAX)), short);
    let huge = TransferArg {
        amount: Nat::from(u128::MAX) * 1000u32,
        ..transfer(to, 1)
    };
    assert_eq!(send(&mut world, huge), short);
    let fee = TransferArg {
        fee: Some(1u8.into()),
        ..transfer(to, 1)
    };
    assert_eq!(
        send(&mut world, fee),
        Err(TransferError::BadFee {
            expected_fee: 10_000u32.into()
        })
    );
    for args in [
        transfer(escrow, 1),
        transfer(account(Principal::anonymous()), 1),
        TransferArg {
            memo: Some(Memo::from(vec![0; 65])),
            ..transfer(to, 1)
        },
    ] {
        assert!(matches!(
            send(&mut world, args),
            Err(TransferError::GenericError { .. })
        ));
    }
    // Somebody with an empty account.
    let nobody = principal("nobody");
    let reply = world.ok(nobody, Command::Transfer(transfer(to, 0)));
    assert_eq!(
        reply,
        Reply::Transfer(Err(TransferError::InsufficientFunds { balance: 0u8.into() }))
    );
    world.refused(
        Principal::anonymous(),
        Command::Transfer(transfer(to, 1)),
        "anonymous",
    );
    world.refused(
        ledger(),
        Command::Transfer(transfer(to, 1)),
        "only the ledger itself",
    );
}

#[test]
fn a_transfer_to_the_minting_account_burns_without_a_fee() {
    let mut world = World::new();
    let supply = world.state.supply();
    let minting = world.state.minting_account();
    send(&mut world, transfer(minting, 10_000)).unwrap();
    assert_eq!(world.state.supply(), supply - 10_000);
    assert_eq!(world.money(world.developer), 1_000 * DCT - 10_000);
    let fee = TransferArg {
        fee: Some(10_000u32.into()),
        ..transfer(minting, 10_000)
    };
    assert_eq!(
        send(&mut world, fee),
        Err(TransferError::BadFee {
            expected_fee: 0u8.into()
        })
    );
    let none = send(&mut world, transfer(minting, 0));
    assert_eq!(
        none,
        Err(TransferError::BadBurn {
            min_burn_amount: 1u8.into()
        })
    );
    let zero = Account {
        owner: ledger(),
        subaccount: Some([0; 32]),
    };
    send(&mut world, transfer(zero, 5)).unwrap();
    assert_eq!(world.state.supply(), supply - 10_005);
    world.assert_replay();
}

#[test]
fn the_same_transfer_within_the_window_is_a_duplicate() {
    let mut world = World::new();
    let created = world.now;
    let args = |to: Account| TransferArg {
        created_at_time: Some(created),
        ..transfer(to, 1)
    };
    let to = account(principal("x"));
    let first = send(&mut world, args(to)).unwrap();
    let duplicate = Err(TransferError::Duplicate { duplicate_of: first });
    assert_eq!(send(&mut world, args(to)), duplicate);
    let zero = Account {
        subaccount: Some([0; 32]),
        ..to
    };
    send(&mut world, args(zero))
        .expect("the same account written otherwise is another transfer (icrc1-test-runner)");
    let memo = TransferArg {
        memo: Some(Memo::from(1)),
        ..args(to)
    };
    send(&mut world, memo).unwrap();
    send(&mut world, transfer(to, 1)).unwrap(); // without created_at_time: never deduplicated
    send(&mut world, transfer(to, 1)).unwrap();
    world.pass(24 * HOUR + 120);
    assert_eq!(
        send(&mut world, args(to)),
        duplicate,
        "still within window and drift"
    );
    world.pass(1);
    assert_eq!(send(&mut world, args(to)), Err(TransferError::TooOld));
    send(&mut world, transfer(to, 1)).unwrap();
    assert!(world.state.transfers.is_empty(), "what is too old is forgotten");
    world.assert_replay();
}

#[test]
fn created_at_time_at_its_edges_is_answered() {
    let mut world = World::new();
    let to = account(principal("x"));
    for (created, expected) in [
        (
            u64::MAX,
            Some(TransferError::CreatedInFuture {
                ledger_time: world.now,
            }),
        ),
        (
            world.now + 121 * SECOND,
            Some(TransferError::CreatedInFuture {
                ledger_time: world.now,
            }),
        ),
        (world.now + 120 * SECOND, None),
        (0, Some(TransferError::TooOld)),
    ] {
        let args = TransferArg {
            created_at_time: Some(created),
            ..transfer(to, 1)
        };
        assert_eq!(send(&mut world, args).err(), expected, "{created}");
    }
}

const FEE: u64 = 10_000;

fn approval(spender: Account, amount: u64) -> ApproveArgs {
    ApproveArgs {
        from_subaccount: None,
        spender,
        amount: amount.into(),
        expected_allowance: None,
        expires_at: None,
        fee: None,
        memo: None,
        created_at_time: None,
    }
}

fn approve(world: &mut World, args: ApproveArgs) -> Result<Nat, ApproveError> {
    match world.ok(world.developer, Command::Approve(args)) {
        Reply::Approve(result) => result,
        other => panic!("{other:?}"),
    }
}

fn spending(from: Account, to: Account, amount: u64) -> TransferFromArgs {
    TransferFromArgs {
        spender_subaccount: None,
        from,
        to,
        amount: amount.into(),
        fee: None,
        memo: None,
        created_at_time: None,
    }
}

fn spend(world: &mut World, spender: Principal, args: TransferFromArgs) -> Result<Nat, TransferFromError> {
    match world.ok(spender, Command::TransferFrom(args)) {
        Reply::TransferFrom(result) => result,
        other => panic!("{other:?}"),
    }
}

fn allowed(world: &World, from: Account, spender: Account) -> u64 {
    world.state.allowance(&from, &spender, world.now).0
}

#[test]
fn a_spender_takes_what_was_approved_fees_included_and_no_more() {
    let mut world = World::new();
    let (from, to, shop) = (
        account(world.developer),
        account(principal("x")),
        principal("shop"),
    );
    let spender = account(shop);
    let fees = world.state.genesis().fees_wallet;
    approve(&mut world, approval(spender, 100_000)).unwrap();
    assert_eq!(world.money(world.developer), 1_000 * DCT - FEE);
    assert_eq!(allowed(&world, from, spender), 100_000);
    spend(&mut world, shop, spending(from, to, 30_000)).unwrap();
    assert_eq!(world.money(to.owner), 30_000);
    assert_eq!(world.money(world.developer), 1_000 * DCT - 30_000 - 2 * FEE);
    assert_eq!(world.money(fees), 2 * FEE);
    assert_eq!(allowed(&world, from, spender), 60_000);
    // The fee counts: 50,001 and 10,000 are one too many.
    let short = Err(TransferFromError::InsufficientAllowance {
        allowance: 60_000u32.into(),
    });
    assert_eq!(spend(&mut world, shop, spending(from, to, 50_001)), short);
    let huge = TransferFromArgs {
        amount: Nat::from(u128::MAX) * 1000u32,
        ..spending(from, to, 1)
    };
    assert_eq!(spend(&mut world, shop, huge), short);
    // Another subaccount of the spender is another spender; of the owner, another account.
    let other = TransferFromArgs {
        spender_subaccount: Some([1; 32]),
        ..spending(from, to, 1)
    };
    let none = Err(TransferFromError::InsufficientAllowance {
        allowance: 0u8.into(),
    });
    assert_eq!(spend(&mut world, shop, other), none);
    let other = Account {
        subaccount: Some([1; 32]),
        ..from
    };
    assert_eq!(spend(&mut world, shop, spending(other, to, 1)), none);
    spend(&mut world, shop, spending(from, to, 50_000)).unwrap();
    assert_eq!(allowed(&world, from, spender), 0);
    assert!(
        world.state.allowances.is_empty(),
        "nothing is kept of what is spent"
    );
    assert_eq!(spend(&mut world, shop, spending(from, to, 0)), none);
    // One's own needs nobody's word.
    let own = world.developer;
    spend(&mut world, own, spending(from, to, 1)).unwrap();
    world.assert_replay();
}

#[test]
fn an_allowance_is_no_promise_and_may_burn() {
    let mut world = World::new();
    let (from, shop) = (account(world.developer), principal("shop"));
    let spender = account(shop);
    let everything = ApproveArgs {
        amount: Nat::from(u128::MAX) * 1000u32,
        ..approval(spender, 0)
    };
    approve(&mut world, everything).unwrap();
    assert_eq!(allowed(&world, from, spender), u64::MAX);
    let all = world.money(world.developer);
    let to = account(principal("x"));
    let short = Err(TransferFromError::InsufficientFunds { balance: all.into() });
    assert_eq!(spend(&mut world, shop, spending(from, to, all)), short);
    assert_eq!(
        allowed(&world, from, spender),
        u64::MAX,
        "a refusal takes nothing"
    );
    let minting = world.state.minting_account();
    let supply = world.state.supply();
    spend(&mut world, shop, spending(from, minting, 7)).unwrap();
    assert_eq!(world.state.supply(), supply - 7);
    assert_eq!(allowed(&world, from, spender), u64::MAX - 7);
    let nothing = spend(&mut world, shop, spending(from, minting, 0));
    assert_eq!(
        nothing,
        Err(TransferFromError::BadBurn {
            min_burn_amount: 1u8.into()
        })
    );
    // Not into escrow, and not out of it.
    let escrow = escrow_account(ledger(), &Digest32::from_slice(&[1; 32]).unwrap());
    let into = spend(&mut world, shop, spending(from, escrow, 1));
    assert!(
        matches!(into, Err(TransferFromError::GenericError { .. })),
        "{into:?}"
    );
    let out = spend(&mut world, shop, spending(escrow, to, 1));
    assert_eq!(
        out,
        Err(TransferFromError::InsufficientAllowance {
            allowance: 0u8.into()
        })
    );
    world.assert_replay();
}

#[test]
fn approvals_replace_expire_and_are_refused_in_the_standards_words() {
    let mut world = World::new();
    let (from, shop) = (account(world.developer), principal("shop"));
    let spender = account(shop);
    approve(&mut world, approval(spender, 5)).unwrap();
    let expecting = |expected: u64, amount: u64| ApproveArgs {
        expected_allowance: Some(expected.into()),
        ..approval(spender, amount)
    };
    assert_eq!(
        approve(&mut world, expecting(4, 9)),
        Err(ApproveError::AllowanceChanged {
            current_allowance: 5u8.into()
        })
    );
    approve(&mut world, expecting(5, 50_000)).unwrap();
    assert_eq!(allowed(&world, from, spender), 50_000);
    // Until a time; the moment itself is too late.
    let end = world.now + HOUR * SECOND;
    let until = |end: u64| ApproveArgs {
        expires_at: Some(end),
        ..approval(spender, 60_000)
    };
    approve(&mut world, until(end)).unwrap();
    assert_eq!(
        world.state.allowance(&from, &spender, world.now),
        (60_000, Some(end))
    );
    world.pass(HOUR);
    let to = account(principal("x"));
    assert_eq!(
        spend(&mut world, shop, spending(from, to, 1)),
        Err(TransferFromError::InsufficientAllowance {
            allowance: 0u8.into()
        })
    );
    let now = world.now;
    assert_eq!(
        approve(&mut world, until(now)),
        Err(ApproveError::Expired { ledger_time: now })
    );
    approve(&mut world, expecting(0, 7)).unwrap();
    approve(&mut world, approval(spender, 0)).unwrap();
    assert!(world.state.allowances.is_empty());

    let created = ApproveArgs {
        created_at_time: Some(world.now),
        ..approval(spender, 9)
    };
    let first = approve(&mut world, created.clone()).unwrap();
    assert_eq!(
        approve(&mut world, created),
        Err(ApproveError::Duplicate { duplicate_of: first })
    );
    for args in [
        approval(from, 1),
        ApproveArgs {
            memo: Some(Memo::from(vec![0; 65])),
            ..approval(spender, 1)
        },
    ] {
        assert!(matches!(
            approve(&mut world, args),
            Err(ApproveError::GenericError { .. })
        ));
    }
    let fee = ApproveArgs {
        fee: Some(1u8.into()),
        ..approval(spender, 1)
    };
    assert_eq!(
        approve(&mut world, fee),
        Err(ApproveError::BadFee {
            expected_fee: FEE.into()
        })
    );
    let poor = world.ok(principal("nobody"), Command::Approve(approval(spender, 1)));
    assert_eq!(
        poor,
        Reply::Approve(Err(ApproveError::InsufficientFunds { balance: 0u8.into() }))
    );
    world.assert_replay();
}
