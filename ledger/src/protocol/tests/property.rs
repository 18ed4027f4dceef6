//! Random sequences of commands by everybody, sensible and not: the books always hold, a refused command changes
//! nothing (both checked by `World::apply` after each step), and replaying the blocks gives the same state.

use icrc_ledger_types::icrc1::account::Account;
use icrc_ledger_types::icrc1::transfer::TransferArg;
use icrc_ledger_types::icrc2::approve::ApproveArgs;
use icrc_ledger_types::icrc2::transfer_from::TransferFromArgs;
use proptest::prelude::*;

use super::*;

/// One step; numbers choose among what exists by then.
#[derive(Clone, Debug)]
enum Step {
    Pass(u64),
    Rent {
        who: u8,
        vcpus: u32,
        memory_mib: u64,
        period_s: u64,
        max_total: u64,
        name: u8,
        memo: u64,
    },
    Contract {
        who: u8,
        which: u8,
        what: u8,
    },
    Extend {
        who: u8,
        which: u8,
        period_s: u64,
        memo: u64,
    },
    Transfer {
        who: u8,
        to: u8,
        amount: u64,
        created: Option<u64>,
    },
    Approve {
        who: u8,
        spender: u8,
        amount: u64,
        expires: Option<u64>,
    },
    Spend {
        who: u8,
        from: u8,
        to: u8,
        amount: u64,
    },
    Publish {
        vm_hour: u64,
        vcpus: u32,
    },
    Heartbeat {
        draining: bool,
    },
    CheckIn {
        who: u8,
    },
    Penalise {
        who: u8,
        which: u8,
        amount: u64,
        memo: u64,
    },
}

fn seconds() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..120u64, 3 => 0..20_000u64, 1 => any::<u64>()]
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..5u8;
    prop_oneof![
        2 => prop_oneof![9 => 0..4_000u64, 1 => 0..1_000_000u64].prop_map(Step::Pass),
        3 => (who.clone(), 0..6u32, 0..6_000u64, seconds(), prop_oneof![any::<u64>(), Just(u64::MAX)], 0..4u8, 0..6u64)
            .prop_map(|(who, vcpus, memory_mib, period_s, max_total, name, memo)| {
                Step::Rent { who, vcpus, memory_mib, period_s, max_total, name, memo }
            }),
        10 => (who.clone(), any::<u8>(), 0..9u8).prop_map(|(who, which, what)| Step::Contract { who, which, what }),
        2 => (who.clone(), any::<u8>(), seconds(), 0..4u64)
            .prop_map(|(who, which, period_s, memo)| Step::Extend { who, which, period_s, memo }),
        2 => (who.clone(), 0..8u8, prop_oneof![0..100_000u64, any::<u64>()], any::<Option<u64>>())
            .prop_map(|(who, to, amount, created)| Step::Transfer { who, to, amount, created }),
        2 => (who.clone(), 0..8u8, prop_oneof![0..100_000u64, any::<u64>()], any::<Option<u64>>())
            .prop_map(|(who, spender, amount, expires)| Step::Approve { who, spender, amount, expires }),
        3 => (who.clone(), 0..8u8, 0..8u8, prop_oneof![0..100_000u64, any::<u64>()])
            .prop_map(|(who, from, to, amount)| Step::Spend { who, from, to, amount }),
        1 => (0..3u64, 1..9u32).prop_map(|(vm_hour, vcpus)| Step::Publish { vm_hour, vcpus }),
        1 => any::<bool>().prop_map(|draining| Step::Heartbeat { draining }),
        2 => who.clone().prop_map(|who| Step::CheckIn { who }),
        2 => (who, any::<u8>(), prop_oneof![0..1_000_000u64, any::<u64>()], 0..3u64)
            .prop_map(|(who, which, amount, memo)| Step::Penalise { who, which, amount, memo }),
    ]
}

fn run(world: &mut World, contracts: &mut Vec<ContractId>, step: &Step) {
    let people = [
        world.developer,
        world.other,
        world.host,
        world.provider,
        principal("stranger"),
    ];
    let person = |n: u8| people[usize::from(n) % people.len()];
    let escrow = contracts.first().map(|id| Account {
        owner: ledger(),
        subaccount: Some(id.0),
    });
    let some_account = |n: u8| match n {
        5 => escrow.unwrap_or(account(ledger())),
        6 => account(ledger()),
        7 => Account {
            owner: people[1],
            subaccount: Some([1; 32]),
        },
        n => account(person(n)),
    };
    let pick = |which: u8| {
        contracts
            .get(usize::from(which) % contracts.len().max(1))
            .copied()
    };
    match step {
        Step::Pass(seconds) => world.pass(*seconds),
        Step::Rent {
            who,
            vcpus,
            memory_mib,
            period_s,
            max_total,
            name,
            memo,
        } => {
            let mut args = RentArgs {
                memo: *memo,
                max_total: *max_total,
                ..rent_args(world.offering)
            };
            args.request.vcpus = *vcpus;
            args.request.memory_mib = *memory_mib;
            args.request.period_s = *period_s;
            args.tls_name = (*name > 1).then(|| format!("n{name}.tenant.example"));
            // Every third time several at once.
            let more = RentArgs {
                memo: memo.wrapping_add(1),
                ..args.clone()
            };
            let command = match memo % 3 {
                0 => Command::RentAll(vec![args, more]),
                _ => Command::Rent(args),
            };
            let new = match world.apply(person(*who), command) {
                Ok(Reply::Contract(id)) => vec![id],
                Ok(Reply::Contracts(ids)) => ids,
                _ => Vec::new(),
            };
            for id in new {
                if !contracts.contains(&id) {
                    contracts.push(id);
                }
            }
        }
        Step::Contract { who, which, what } => {
            let Some(id) = pick(*which) else { return };
            // Mostly the one who may, so that sequences get somewhere.
            let (host, developer) = (world.host, world.contract(&id).developer);
            let or = |usual: Principal| if who % 5 == 4 { person(*which) } else { usual };
            let (caller, command) = match what {
                0 => (or(host), Command::Accept(id)),
                1 => (or(host), Command::ContractNonce(id)),
                2 | 3 => (or(host), world.plain_evidence(&id)),
                4 => (or(developer), Command::Cancel(id)),
                5 => (
                    or(host),
                    Command::VmGone(VmGoneArgs {
                        contract: id,
                        reason: "gone".into(),
                    }),
                ),
                6 => (or(host), Command::Released(id)),
                7 => (
                    or(host),
                    Command::Refuse(RefuseArgs {
                        contract: id,
                        reason: "no".into(),
                    }),
                ),
                _ => (person(*who), Command::Settle(id)),
            };
            let _ = world.apply(caller, command);
        }
        Step::CheckIn { who } => {
            let _ = world.apply(person(*who), Command::CheckIn);
        }
        Step::Penalise {
            who,
            which,
            amount,
            memo,
        } => {
            let Some(contract) = pick(*which) else { return };
            let args = PenaliseArgs {
                contract,
                amount: *amount,
                reason: "random".into(),
                memo: *memo,
            };
            let _ = world.apply(person(*who), Command::Penalise(args));
        }
        Step::Extend {
            who,
            which,
            period_s,
            memo,
        } => {
            let Some(id) = pick(*which) else { return };
            let caller = if *who == 4 {
                person(*who)
            } else {
                world.contract(&id).developer
            };
            let args = ExtendArgs {
                contract: id,
                period_s: *period_s,
                max_total: u64::MAX,
                memo: *memo,
            };
            let _ = world.apply(caller, Command::Extend(args));
        }
        Step::Transfer {
            who,
            to,
            amount,
            created,
        } => {
            let args = TransferArg {
                from_subaccount: None,
                to: some_account(*to),
                fee: None,
                created_at_time: *created,
                memo: None,
                amount: (*amount).into(),
            };
            let _ = world.apply(person(*who), Command::Transfer(args));
        }
        Step::Approve {
            who,
            spender,
            amount,
            expires,
        } => {
            let args = ApproveArgs {
                from_subaccount: None,
                spender: some_account(*spender),
                amount: (*amount).into(),
                expected_allowance: None,
                expires_at: *expires,
                fee: None,
                memo: None,
                created_at_time: None,
            };
            let _ = world.apply(person(*who), Command::Approve(args));
        }
        Step::Spend {
            who,
            from,
            to,
            amount,
        } => {
            let (spender, from) = (account(person(*who)), some_account(*from));
            let allowed = world.state.allowance(&from, &spender, world.now).0;
            let args = TransferFromArgs {
                spender_subaccount: None,
                from,
                to: some_account(*to),
                amount: (*amount).into(),
                fee: None,
                memo: None,
                created_at_time: None,
            };
            let reply = world.apply(person(*who), Command::TransferFrom(args));
            if let Ok(Reply::TransferFrom(Ok(_))) = reply
                && spender != from
            {
                let fee = world.state.genesis().parameters.transfer_fee;
                let burns = some_account(*to) == world.state.minting_account();
                let spent = if burns { *amount } else { *amount + fee };
                let left = world.state.allowance(&from, &spender, world.now).0;
                assert_eq!(
                    allowed.checked_sub(spent),
                    Some(left),
                    "more was spent than approved"
                );
            }
        }
        Step::Publish { vm_hour, vcpus } => {
            let mut spec = spec();
            spec.prices.vm_hour = *vm_hour;
            spec.capacity.vcpus = *vcpus;
            world.offering = world.publish(world.host, spec);
        }
        Step::Heartbeat { draining } => {
            let beat = HeartbeatArgs {
                version: "1".into(),
                degraded: Vec::new(),
                draining: *draining,
                update: None,
            };
            world.ok(world.host, Command::Heartbeat(beat));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn the_books_hold_after_every_step_and_replay_gives_the_same(steps in prop::collection::vec(step(), 1..80)) {
        // The host's delegation lives longer than any sequence.
        let mut world = World::new();
        let mut statement = delegation(1, world.host, "p.example").statement;
        statement.expires_at = u64::MAX;
        world.ok(world.host, Command::RegisterHost(sign(1, statement)));
        let mut contracts = Vec::new();
        for step in &steps {
            run(&mut world, &mut contracts, step);
        }
        world.assert_replay();
        // Every contract ends by itself, and nothing stays in escrow.
        world.pass(400 * 86_400 * 10);
        for id in &contracts {
            prop_assert!(matches!(world.contract(id).state, ContractState::Ended(_)));
            prop_assert_eq!(world.contract(id).escrow.held, 0);
        }
        world.assert_replay();
    }
}
