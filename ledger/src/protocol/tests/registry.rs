//! Registration: defects of today's canister that must not come back.

use super::*;

#[test]
fn a_registration_can_not_be_replayed_by_anyone() {
    let mut world = World::new();
    let stolen = delegation(1, world.host, "p.example");
    world.refused(
        world.other,
        Command::RegisterHost(stolen.clone()),
        "only the host key",
    );
    world.again(world.host, Command::RegisterHost(stolen));
    world.again(world.developer, Command::RegisterDeveloper);
    assert_eq!(world.state.providers.len(), 1);
}

#[test]
fn registration_fees_are_charged_once_and_to_who_registers() {
    let mut genesis = genesis();
    genesis.parameters.provider_registration_fee = 5 * DCT;
    genesis.parameters.developer_registration_fee = DCT;
    let mut world = World::empty(genesis);
    world.ok(world.developer, Command::RegisterDeveloper);
    world.again(world.developer, Command::RegisterDeveloper);
    assert_eq!(world.money(world.developer), 999 * DCT);
    world.refused(
        principal("poor"),
        Command::RegisterDeveloper,
        "insufficient funds",
    );
    // A provider without money: neither the provider nor the host is registered.
    let by_host = delegation(1, world.host, "p.example");
    world.refused(world.host, Command::RegisterHost(by_host), "insufficient funds");
    world.ok(world.other, Command::RegisterProvider(profile("o.example")));
    world.ok(world.other, Command::RegisterProvider(profile("q.example"))); // an update is free
    assert_eq!(world.money(world.other), 995 * DCT);
    assert_eq!(world.money(world.state.genesis().fees_wallet), 6 * DCT);
}

#[test]
fn a_delegation_must_be_signed_by_the_provider_for_this_ledger_and_in_time() {
    type Change = fn(&mut HostDelegation);
    let resigned: fn(&mut HostDelegation, fn(&mut HostStatement)) = |d, change| {
        change(&mut d.statement);
        *d = sign(1, d.statement.clone());
    };
    let table: &[(&str, Change)] = &[
        ("signature", |d| d.signature[0] ^= 1),
        ("signature", |d| d.signature.truncate(63)),
        ("signature", |d| d.statement.profile.name.push('x')),
        ("signature", |d| d.statement.expires_at += 1),
        ("signature", |d| {
            d.provider_key = provider_key(2).public_key().serialize_rfc8410_der()
        }),
        ("provider_key", |d| d.provider_key = vec![0; 44]),
        ("provider_key", |d| d.provider_key.clear()),
    ];
    let mut world = World::empty(genesis());
    for (field, change) in table {
        let mut bad = delegation(1, world.host, "p.example");
        change(&mut bad);
        world.refused(world.host, Command::RegisterHost(bad), field);
    }
    type Restate = fn(&mut HostStatement);
    let statements: &[(&str, Restate)] = &[
        ("statement.ledger", |s| s.ledger = Principal::from_slice(&[1])),
        ("statement.expires_at", |s| s.expires_at = START_S * SECOND),
        ("only the host key", |s| s.host = Principal::from_slice(&[1])),
        ("profile.domain", |s| s.profile.domain = "localhost".into()),
        ("profile.domain", |s| {
            s.profile.domain = format!("{}.example", vec!["a".repeat(60); 4].join("."))
        }),
        ("profile.name", |s| s.profile.name = "x".repeat(201)),
        ("profile.name", |s| s.profile.name = "a\u{7}b".into()),
        ("profile.contact", |s| s.profile.contact.clear()),
    ];
    for (field, change) in statements {
        let mut bad = delegation(1, world.host, "p.example");
        resigned(&mut bad, *change);
        world.refused(world.host, Command::RegisterHost(bad), field);
    }
    world.ok(
        world.host,
        Command::RegisterHost(delegation(1, world.host, "p.example")),
    );
    assert_eq!(world.state.hosts[&world.host].provider, world.provider);
}

#[test]
fn p256_and_secp256k1_providers_can_delegate_too() {
    use k256::ecdsa::signature::Signer;
    use p256::pkcs8::EncodePublicKey;
    let mut world = World::empty(genesis());
    let p = p256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap();
    let k = k256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap();
    let p_spki = p.verifying_key().to_public_key_der().unwrap().into_vec();
    let k_spki = k.verifying_key().to_public_key_der().unwrap().into_vec();
    for (i, spki) in [p_spki, k_spki].into_iter().enumerate() {
        let host = principal(&format!("host {i}"));
        let statement = delegation(1, host, &format!("p{i}.example")).statement;
        let message = crypto::host_delegation_message(&statement).unwrap();
        let signature = if i == 0 {
            let signature: p256::ecdsa::Signature = p.sign(&message);
            signature.to_vec()
        } else {
            let signature: k256::ecdsa::Signature = k.sign(&message);
            signature.to_vec()
        };
        let provider = Principal::self_authenticating(&spki);
        world.ok(
            host,
            Command::RegisterHost(HostDelegation {
                statement,
                provider_key: spki,
                signature,
            }),
        );
        assert_eq!(world.state.hosts[&host].provider, provider);
    }
}

#[test]
fn a_host_belongs_to_one_provider_and_a_domain_too() {
    let mut world = World::new();
    world.refused(
        world.host,
        Command::RegisterHost(delegation(2, world.host, "z.example")),
        "belongs to provider",
    );
    for domain in ["p.example", "sub.p.example"] {
        world.refused(
            principal("h2"),
            Command::RegisterHost(delegation(2, principal("h2"), domain)),
            "belongs to",
        );
    }
    world.ok(world.other, Command::RegisterProvider(profile("deep.z.example")));
    world.refused(
        principal("q"),
        Command::RegisterProvider(profile("z.example")),
        "belongs to",
    );
}

#[test]
fn after_its_delegation_a_host_can_only_wind_down() {
    let mut world = World::new();
    let (running, waiting) = (world.active(), world.rent());
    let extended = ExtendArgs {
        contract: running,
        period_s: 50 * 24 * HOUR,
        max_total: u64::MAX,
        memo: 1,
    };
    // Enough money for a contract that outlives the delegation.
    let mut rich = genesis();
    rich.balances[0].amount = 1_000_000 * DCT;
    let mut world = World::with(rich);
    let id = world.active();
    assert_eq!((id == running, waiting == running), (false, false));
    world.ok(
        world.developer,
        Command::Extend(ExtendArgs {
            contract: id,
            ..extended
        }),
    );
    world.pass(30 * 86_400);
    let expired = "delegation has expired";
    world.refused(
        world.host,
        Command::PublishOffering(OfferingSpec {
            title: "new".into(),
            ..spec()
        }),
        expired,
    );
    assert!(matches!(
        world.rent_with(|_| ()),
        Err(LedgerError::DoesNotFit { .. })
    ));
    world.refused(
        world.host,
        Command::RegisterHost(delegation(1, world.host, "p.example")),
        "expired",
    );
    world.ok(
        world.host,
        Command::VmGone(VmGoneArgs {
            contract: id,
            reason: "moving".into(),
        }),
    );
    world.ok(world.host, Command::Released(id));
    let mut renewed = delegation(1, world.host, "p.example").statement;
    renewed.expires_at += 60 * 86_400 * SECOND;
    world.ok(world.host, Command::RegisterHost(sign(1, renewed)));
    world.rent();
}

#[test]
fn a_retired_host_key_never_acts_for_its_provider_again() {
    let mut world = World::new();
    let id = world.active();
    let (host, provider) = (world.host, world.provider);
    world.refused(
        world.developer,
        Command::RetireHost(host),
        "only a registered provider",
    );
    let stranger = delegation(7, principal("other host"), "other.example");
    world.ok(principal("other host"), Command::RegisterHost(stranger));
    let other = world.state.hosts[&principal("other host")].provider;
    world.refused(other, Command::RetireHost(host), "belongs to provider");
    world.ok(provider, Command::RetireHost(host));
    world.again(provider, Command::RetireHost(host));
    // Nothing new, neither with the delegation that it has nor with a longer one: a thief has the key.
    world.refused(host, Command::PublishOffering(spec()), "delegation has expired");
    assert!(world.state.offerings.is_empty());
    let mut longer = delegation(1, host, "p.example").statement;
    longer.expires_at += SECOND;
    for statement in [delegation(1, host, "p.example").statement, longer] {
        world.refused(
            host,
            Command::RegisterHost(sign(1, statement)),
            "has retired this host key",
        );
    }
    // What runs there ends in order.
    world.ok(
        host,
        Command::VmGone(VmGoneArgs {
            contract: id,
            reason: "stolen".into(),
        }),
    );
    world.ok(host, Command::Released(id));
    // A key that never registered, whose delegation was lost on the way.
    let lost = principal("lost host");
    world.refused(provider, Command::RetireHost(lost), "insufficient funds");
    let money = icrc_ledger_types::icrc1::transfer::TransferArg {
        from_subaccount: None,
        to: account(provider),
        fee: None,
        created_at_time: None,
        memo: None,
        amount: DCT.into(),
    };
    world.ok(world.developer, Command::Transfer(money));
    let before = world.money(provider);
    world.ok(provider, Command::RetireHost(lost));
    world.again(provider, Command::RetireHost(lost));
    let fee = world.state.genesis().parameters.transfer_fee;
    assert_eq!(
        world.money(provider),
        before - fee,
        "it could be anybody's key: it costs"
    );
    world.refused(
        lost,
        Command::RegisterHost(delegation(1, lost, "p.example")),
        "has retired this host key",
    );
    world.assert_replay();
}

#[test]
fn heartbeats_that_say_nothing_new_make_a_block_a_minute() {
    let mut world = World::new();
    let beat = HeartbeatArgs {
        version: "1.0".into(),
        degraded: vec![],
        draining: false,
        update: None,
    };
    world.ok(world.host, Command::Heartbeat(beat.clone()));
    for _ in 0..5 {
        world.pass(10);
        world.again(world.host, Command::Heartbeat(beat.clone()));
    }
    world.pass(10);
    let height = world.state.height();
    world.ok(world.host, Command::Heartbeat(beat.clone()));
    assert_eq!(world.state.height(), height + 1);
    let notice = UpdateNotice {
        running: "0.1.0".into(),
        next: Some("0.2.0".into()),
        away_from: Some(7 * SECOND),
        returned: None,
    };
    let update = |update: UpdateNotice| {
        Command::Heartbeat(HeartbeatArgs {
            update: Some(update),
            ..beat.clone()
        })
    };
    world.ok(world.host, update(notice.clone()));
    let info = world.state.host_info(&world.host).unwrap();
    assert_eq!((info.update, info.draining), (Some(notice.clone()), false));
    for bad in ["", "a\nb", &"1".repeat(65)] {
        let notice = UpdateNotice {
            returned: Some(bad.into()),
            ..notice.clone()
        };
        world.refused(world.host, update(notice), "update");
    }
    world.refused(world.other, Command::Heartbeat(beat.clone()), "registered host");
    let foreign = HeartbeatArgs {
        degraded: vec![Digest32::from_slice(&[1; 32]).unwrap()],
        ..beat
    };
    world.refused(world.host, Command::Heartbeat(foreign), "not found");
}
