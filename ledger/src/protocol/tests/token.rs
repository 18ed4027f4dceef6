//! ICRC-1.

use candid::Nat;
use icrc_ledger_types::icrc1::account::Account;
use icrc_ledger_types::icrc1::transfer::{Memo, TransferArg, TransferError};

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
    let height = world.state.height();
    assert_eq!(send(&mut world, transfer(sub, 7)), Ok(height.into()));
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
