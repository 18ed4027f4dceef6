//! Bad input to `rent`: a clear error, nothing reserved, nothing paid (`World::apply` compares the whole state).

use super::*;

#[test]
fn every_bad_field_is_named_and_nothing_is_paid() {
    type Change = fn(&mut RentArgs);
    let table: &[(&str, Change)] = &[
        ("max_price_per_hour", |a| a.request.max_price_per_hour = 0),
        ("vcpus", |a| a.request.vcpus = 0),
        ("vcpus", |a| a.request.vcpus = u32::MAX),
        ("memory_mib", |a| a.request.memory_mib = 63),
        ("memory_mib", |a| a.request.memory_mib = u64::MAX),
        ("storage_gib", |a| a.request.storage_gib = Quota::Limited(0)),
        ("storage_gib", |a| {
            a.request.storage_gib = Quota::Limited(u64::MAX)
        }),
        ("bandwidth_mbps", |a| a.request.bandwidth_mbps = Quota::Limited(0)),
        ("period_s", |a| a.request.period_s = 0),
        ("period_s", |a| a.request.period_s = u64::MAX),
        ("region", |a| a.request.region = Some("a\nb".into())),
        ("min_grade", |a| a.request.min_grade = Grade::HardwareVerified),
        ("min_grade", |a| a.request.min_grade = Grade::HostVerified),
        ("image.url", |a| a.image.url = "not a url".into()),
        ("image.url", |a| {
            a.image.url = format!("https://{}", "x".repeat(3000))
        }),
        ("ssh_public_keys[1]", |a| {
            a.ssh_public_keys.push("not a key".into())
        }),
        ("ssh_public_keys", |a| {
            a.ssh_public_keys = vec![ed25519_line(1); 17]
        }),
        ("user_data", |a| a.user_data = vec![b'x'; USER_DATA_MAX + 1]),
        ("tls_name", |a| a.tls_name = Some("not a name".into())),
        ("tls_name", |a| a.tls_name = Some("10.0.0.1".into())),
        ("tls_name", |a| a.tls_name = Some("p.example".into())),
        ("tls_name", |a| a.tls_name = Some("www.p.example".into())),
        ("ports[1]", |a| {
            a.ports.push(PortRequest {
                transport: Transport::Tcp,
                port: 22,
            })
        }),
        ("ports[0]", |a| {
            a.ports = vec![PortRequest {
                transport: Transport::Udp,
                port: 0,
            }]
        }),
        ("ports", |a| {
            a.ports = (1..=17)
                .map(|port| PortRequest {
                    transport: Transport::Tcp,
                    port,
                })
                .collect()
        }),
        ("allowed_measurements", |a| a.request.kind = VmKind::SevSnp),
        ("allowed_measurements", |a| {
            a.allowed_measurements = vec![Measurement::from_slice(&[0; 48]).unwrap()]
        }),
        ("allowed_measurements", |a| a.min_tcb.snp = Some(1)),
        ("max_total", |a| a.max_total = 10 * PRICE - 1),
        ("offering", |a| a.offering = 99),
    ];
    let mut world = World::new();
    for (field, change) in table {
        let error = world.rent_with(change).expect_err(field).to_string();
        assert!(error.contains(field), "{error:?} doesn't name {field}");
    }
    world.rent_with(|a| a.max_total = 10 * PRICE).unwrap(); // the exact price is enough
}

#[test]
fn an_offering_that_does_not_fit_is_refused_with_every_reason() {
    let mut world = World::new();
    let error = world.rent_with(|a| {
        a.request.max_price_per_hour = 1;
        a.request.vcpus = 9;
        a.request.at_rest = AtRest::Encrypted;
    });
    let Err(LedgerError::DoesNotFit { reasons }) = error else {
        panic!("{error:?}")
    };
    assert_eq!(
        reasons.iter().map(|r| r.field.as_str()).collect::<Vec<_>>(),
        ["max_price_per_hour", "vcpus", "at_rest"]
    );
}

#[test]
fn a_period_whose_price_rounds_to_nothing_is_refused() {
    let mut world = World::new();
    let cheap = PriceList {
        vm_hour: 1,
        vcpu_hour: 0,
        memory_gib_hour: 0,
        storage_gib_hour: 0,
        gpu_hour: 0,
    };
    world.offering = world.publish(
        world.host,
        OfferingSpec {
            prices: cheap,
            ..spec()
        },
    );
    let error = world
        .rent_with(|a| a.request.period_s = 3_599)
        .unwrap_err()
        .to_string();
    assert!(error.contains("rounds to 0"), "{error}");
    world.rent_with(|a| a.request.period_s = 3_600).unwrap();
}

#[test]
fn who_can_not_pay_gets_no_contract() {
    let mut world = World::new();
    world.developer = principal("poor");
    let error = world.rent_with(|_| ()).unwrap_err().to_string();
    assert!(error.contains("register_developer"), "{error}");
    world.ok(world.developer, Command::RegisterDeveloper);
    assert_eq!(
        world.rent_with(|_| ()),
        Err(LedgerError::InsufficientFunds {
            balance: 0,
            needed: 10 * PRICE
        })
    );
}

#[test]
fn the_same_memo_is_one_contract() {
    let mut world = World::new();
    let args = RentArgs {
        memo: 77,
        ..rent_args(world.offering)
    };
    let first = world.ok(world.developer, Command::Rent(args.clone()));
    assert_eq!(
        world.again(world.developer, Command::Rent(args.clone())),
        first,
        "a retry is answered, not charged"
    );
    let other = RentArgs {
        max_total: 1,
        ..args.clone()
    };
    world.refused(world.developer, Command::Rent(other), "memo");
    // Somebody else's memo is another memo.
    assert_ne!(world.ok(world.other, Command::Rent(args)), first);
}

/// Nobody keeps a name from its owner by wanting it first: not by a contract, not by a provider's domain.
#[test]
fn wanting_a_name_takes_it_from_nobody_and_derived_names_are_never_chosen() {
    let mut world = World::new();
    let named = |name: &str| {
        let name = name.to_owned();
        move |a: &mut RentArgs| a.tls_name = Some(name)
    };
    let squatters = world.rent_with(named("www.tenant.example")).unwrap();
    let squatter = std::mem::replace(&mut world.developer, principal("other"));
    let owners = world.rent_with(named("www.tenant.example")).unwrap();
    let over = |world: &mut World, who, id| {
        world.ok(who, Command::Cancel(id));
        world.ok(world.host, Command::Released(id));
    };
    over(&mut world, squatter, squatters);
    over(&mut world, principal("other"), owners);
    let key = principal("another provider");
    world.ok(key, Command::RegisterProvider(profile("tenant.example")));
    for name in ["www.tenant.example", "tenant.example"] {
        let id = world.rent_with(named(name)).unwrap();
        over(&mut world, principal("other"), id);
    }

    for derived in [
        format!("{}.p.example", squatters.short()),
        "0123abcd.tenant.example".to_owned(),
        "www.p.example".to_owned(),
        "p.example".to_owned(),
    ] {
        let error = world.rent_with(named(&derived)).unwrap_err().to_string();
        assert!(error.contains("tls_name"), "{derived}: {error}");
    }
    // A provider that changes its domain leaves names behind, under which tenants are still being served.
    let live = world.rent();
    let provider = world.provider;
    world.ok(provider, Command::RegisterProvider(profile("moved.example")));
    let left = format!("{}.p.example", live.short());
    let error = world.rent_with(named(&left)).unwrap_err().to_string();
    assert!(error.contains("can't be chosen"), "{error}");
    world.refused(
        principal("a third provider"),
        Command::RegisterProvider(profile("p.example")),
        "in use by contract",
    );
    world.assert_replay();
}

#[test]
fn user_data_is_shown_to_host_and_developer_only() {
    let mut world = World::new();
    let id = world.rent();
    for (who, sees) in [
        (world.host, true),
        (world.developer, true),
        (world.other, false),
        (world.provider, false),
    ] {
        assert_eq!(
            !world.state.contract(who, &id).unwrap().args.user_data.is_empty(),
            sees
        );
        assert_eq!(
            !world.state.host_contracts(who, &world.host)[0]
                .args
                .user_data
                .is_empty(),
            sees
        );
        assert_eq!(
            !world.state.account_contracts(who, &world.developer)[0]
                .args
                .user_data
                .is_empty(),
            sees
        );
    }
}

/// Several nodes in one request [5.3] are paid and reserved together, or not at all. The machine has 8 vCPUs; each VM takes 2.
#[test]
fn several_nodes_are_rented_all_or_none() {
    let mut world = World::new();
    let nodes = |memos: std::ops::Range<u64>| -> Vec<RentArgs> {
        let node = |memo| RentArgs { memo, ..rent_args(1) };
        memos.map(node).collect()
    };
    let offering = world.offering;
    let at = move |mut nodes: Vec<RentArgs>| {
        nodes.iter_mut().for_each(|node| node.offering = offering);
        Command::RentAll(nodes)
    };
    let developer = world.developer;
    let before = world.money(developer);
    // The fifth doesn't fit beside the four before it; a bad one spoils all; so does a memo used twice, or nothing at all.
    world.refused(developer, at(nodes(0..5)), "vcpus");
    let mut spoiled = nodes(0..3);
    spoiled[2].max_total = 1;
    world.refused(developer, at(spoiled), "max_total");
    let twice = [nodes(0..1), nodes(0..1)].concat();
    world.refused(developer, at(twice), "memo");
    world.refused(developer, at(Vec::new()), "nodes");
    world.refused(developer, at(nodes(0..65)), "nodes");
    assert_eq!(world.money(developer), before);

    let Reply::Contracts(ids) = world.ok(developer, at(nodes(0..3))) else {
        panic!();
    };
    assert_eq!(ids.iter().collect::<std::collections::BTreeSet<_>>().len(), 3);
    assert_eq!(world.money(developer), before - 3 * 10 * PRICE);
    let names: std::collections::BTreeSet<String> = ids
        .iter()
        .map(|id| world.state.contracts[id].derived_name.clone())
        .collect();
    assert_eq!(names.len(), 3);
    // A retry is answered, not charged; with one more node only that one is new.
    assert_eq!(
        world.again(developer, at(nodes(0..3))),
        Reply::Contracts(ids.clone())
    );
    let Reply::Contracts(more) = world.ok(developer, at(nodes(0..4))) else {
        panic!();
    };
    assert_eq!(more[..3], ids[..]);
    assert_eq!(world.money(developer), before - 4 * 10 * PRICE);
    world.refused(developer, at(nodes(4..5)), "vcpus");
    world.assert_replay();
}
