//! Offerings and matching.

use super::*;

fn host(world: &mut World, name: &str, seed: u8, spec: OfferingSpec) -> (Principal, OfferingId) {
    let host = principal(name);
    world.ok(
        host,
        Command::RegisterHost(delegation(seed, host, &format!("d{seed}.example"))),
    );
    let id = world.publish(host, spec);
    (host, id)
}

fn priced(vm_hour: Amount) -> OfferingSpec {
    OfferingSpec {
        prices: PriceList {
            vm_hour,
            ..spec().prices
        },
        ..spec()
    }
}

#[test]
fn every_field_of_a_request_can_be_the_reason_why_not() {
    type Change = fn(&mut Request);
    let table: &[(&str, Change)] = &[
        ("max_price_per_hour", |r| r.max_price_per_hour = PRICE - 1),
        ("vcpus", |r| r.vcpus = 9),
        ("memory_mib", |r| r.memory_mib = 16_385),
        ("storage_gib", |r| r.storage_gib = Quota::Limited(51)),
        ("storage_gib", |r| r.storage_gib = Quota::Unlimited),
        ("bandwidth_mbps", |r| r.bandwidth_mbps = Quota::Limited(1001)),
        ("bandwidth_mbps", |r| r.bandwidth_mbps = Quota::Unlimited),
        ("min_provider_reputation", |r| r.min_provider_reputation = 1),
        ("period_s", |r| r.period_s = 100 * HOUR + 1),
        ("kind", |r| r.kind = VmKind::SevSnp),
        ("at_rest", |r| r.at_rest = AtRest::Encrypted),
        ("gpus", |r| r.gpus = 1),
        ("region", |r| r.region = Some("us".into())),
    ];
    let mut world = World::new();
    let spec = OfferingSpec {
        kinds: vec![VmKind::Plain],
        best_grade: Grade::HostSigned,
        bandwidth_mbps: Quota::Limited(1000),
        ..spec()
    };
    world.offering = world.publish(world.host, spec);
    let fits = Request {
        max_price_per_hour: PRICE,
        ..request()
    };
    assert_eq!(
        world
            .state
            .match_offerings(world.developer, &fits, world.now)
            .unwrap()
            .len(),
        1
    );
    assert!(
        world
            .state
            .why_not(world.developer, &fits, world.now)
            .unwrap()
            .is_empty()
    );
    for (field, change) in table {
        let mut request = Request {
            max_price_per_hour: 1_000 * DCT,
            ..request()
        };
        change(&mut request);
        assert!(
            world
                .state
                .match_offerings(world.developer, &request, world.now)
                .unwrap()
                .is_empty(),
            "{field}"
        );
        let why = world.state.why_not(world.developer, &request, world.now).unwrap();
        assert_eq!(why.len(), 1);
        assert!(
            why[0].reasons.iter().any(|reason| reason.field == *field),
            "{field}: {:?}",
            why[0].reasons
        );
        assert_eq!(why[0].reasons.len(), 1, "{field}: {:?}", why[0].reasons);
    }
    let grade = Request {
        kind: VmKind::SevSnp,
        min_grade: Grade::HardwareVerified,
        ..request()
    };
    let why = world.state.why_not(world.developer, &grade, world.now).unwrap();
    assert_eq!(
        why[0]
            .reasons
            .iter()
            .map(|r| r.field.as_str())
            .collect::<Vec<_>>(),
        ["kind", "min_grade"]
    );
}

#[test]
fn what_this_ledger_can_not_verify_yet_is_a_reason_and_never_rented() {
    let mut world = World::new();
    let kinds = vec![VmKind::Plain, VmKind::SevSnp, VmKind::Tdx];
    world.offering = world.publish(world.host, OfferingSpec { kinds, ..spec() });
    let tdx = Request {
        kind: VmKind::Tdx,
        ..request()
    };
    let quoted = Request {
        min_grade: Grade::HostVerified,
        ..request()
    };
    for (field, request, words) in [("kind", tdx, "yet"), ("min_grade", quoted, "hasn't verified")] {
        assert!(
            world
                .state
                .match_offerings(world.developer, &request, world.now)
                .unwrap()
                .is_empty()
        );
        let why = world.state.why_not(world.developer, &request, world.now).unwrap();
        assert_eq!(why[0].reasons.len(), 1);
        assert_eq!(why[0].reasons[0].field, field);
        assert!(why[0].reasons[0].offered.contains(words), "{:?}", why[0].reasons);
        let refused = world.rent_with(|args| {
            args.allowed_measurements = Vec::from_iter(
                (request.kind == VmKind::Tdx).then(|| Measurement::from_slice(&[1; 48]).unwrap()),
            );
            args.request = request.clone();
        });
        assert!(
            matches!(refused, Err(LedgerError::DoesNotFit { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn a_developer_below_the_offerings_reputation_is_told_so() {
    let mut world = World::new();
    world.offering = world.publish(
        world.host,
        OfferingSpec {
            min_developer_reputation: 1,
            ..spec()
        },
    );
    let why = world
        .state
        .why_not(world.developer, &request(), world.now)
        .unwrap();
    assert_eq!(why[0].reasons[0].field, "developer_reputation");
    assert!(matches!(
        world.rent_with(|_| ()),
        Err(LedgerError::DoesNotFit { .. })
    ));
    let anonymous = world
        .state
        .match_offerings(Principal::anonymous(), &request(), world.now)
        .unwrap();
    assert_eq!(anonymous.len(), 1, "who only looks around isn't judged");
}

#[test]
fn matches_are_ordered_by_price_then_reputation_then_number() {
    let mut world = World::new();
    let (_, dear) = host(&mut world, "dear", 2, priced(100));
    let (_, same_price) = host(&mut world, "same", 3, spec());
    let (_, cheap) = host(&mut world, "cheap", 4, priced(1));
    let order = |world: &World| {
        let found = world
            .state
            .match_offerings(world.developer, &request(), world.now)
            .unwrap();
        found.iter().map(|m| m.offering.id).collect::<Vec<_>>()
    };
    assert_eq!(order(&world), [cheap, world.offering, same_price, dear]);
    // Reputation for the provider of `same_price` puts it before the older one of the same price.
    let mine = (world.host, world.offering, world.provider);
    (world.host, world.offering) = (principal("same"), same_price);
    let id = world.rent();
    world.ok(world.host, Command::Accept(id));
    world.ok(world.host, Command::ContractNonce(id));
    let Command::SubmitEvidence(mut evidence) = world.plain_evidence(&id) else {
        panic!()
    };
    evidence.endpoint.names = vec![format!("{}.d3.example", id.short())];
    world.ok(world.host, Command::SubmitEvidence(evidence));
    world.pass(HOUR);
    world.ok(world.other, Command::Settle(id));
    assert_eq!(order(&world), [cheap, same_price, mine.1, dear]);
    let first = &world
        .state
        .match_offerings(world.developer, &request(), world.now)
        .unwrap()[0];
    assert_eq!((first.price_per_hour, first.total), (PRICE - 6, (PRICE - 6) * 10));
}

#[test]
fn unlimited_storage_is_sold_with_the_vm_and_not_metered() {
    let mut world = World::new();
    world.offering = world.publish(
        world.host,
        OfferingSpec {
            storage_per_vm: Quota::Unlimited,
            ..spec()
        },
    );
    let request = Request {
        storage_gib: Quota::Unlimited,
        bandwidth_mbps: Quota::Unlimited,
        ..request()
    };
    let found = world
        .state
        .match_offerings(world.developer, &request, world.now)
        .unwrap();
    assert_eq!(found[0].price_per_hour, PRICE - DCT / 10);
}

#[test]
fn publishing_the_same_twice_is_one_offering_and_a_change_is_another() {
    let mut world = World::new();
    let id = world.offering;
    assert_eq!(
        world.again(world.host, Command::PublishOffering(spec())),
        Reply::Offering(id)
    );
    let next = world.publish(world.host, priced(8));
    assert_ne!(next, id, "who matched the old one must find it gone, not changed");
    assert!(
        world
            .rent_with(|_| ())
            .unwrap_err()
            .to_string()
            .contains("match again")
    );
    assert_eq!(world.state.offerings().len(), 1);
    world.refused(world.other, Command::WithdrawOffering(next), "registered host");
    world.ok(world.host, Command::WithdrawOffering(next));
    world.refused(world.host, Command::WithdrawOffering(next), "not found");
    assert!(world.state.offerings().is_empty());
    world.assert_replay();
}

#[test]
fn malformed_offerings_are_refused_by_field() {
    type Change = fn(&mut OfferingSpec);
    let table: &[(&str, Change)] = &[
        ("title", |s| s.title.clear()),
        ("title", |s| s.title = "x".repeat(201)),
        ("region", |s| s.region = "\u{1b}[31m".into()),
        ("kinds", |s| s.kinds.clear()),
        ("kinds", |s| s.kinds = vec![VmKind::Plain, VmKind::Plain]),
        ("capacity", |s| s.capacity.vcpus = 0),
        ("capacity", |s| s.capacity.memory_mib = u64::MAX),
        ("gpu_model", |s| s.capacity.gpus = 1),
        ("best_grade", |s| s.best_grade = Grade::Unconfirmed),
        ("best_grade", |s| s.kinds = vec![VmKind::Plain]),
        ("test_platform", |s| s.test_platform = true),
        ("storage_per_vm", |s| s.storage_per_vm = Quota::Limited(0)),
        ("prices", |s| {
            s.prices = PriceList {
                vm_hour: 0,
                vcpu_hour: 0,
                memory_gib_hour: 0,
                storage_gib_hour: 0,
                gpu_hour: 0,
            }
        }),
        ("prices", |s| s.prices.gpu_hour = u64::MAX),
        ("max_period_s", |s| s.max_period_s = 0),
        ("max_period_s", |s| s.max_period_s = u64::MAX),
    ];
    let mut world = World::new();
    for (field, change) in table {
        let mut bad = spec();
        change(&mut bad);
        world.refused(world.host, Command::PublishOffering(bad), field);
    }
}

/// An answer holds the first hundred of the whole order, whatever is passed over on the way: compared with looking at every
/// offering. Three hosts in four are full, cheap ones among them.
#[test]
fn an_answer_has_the_first_hundred_of_many() {
    let mut world = World::new();
    let (template, stored) = (
        world.state.hosts[&world.host].clone(),
        world.state.offerings[&world.offering].clone(),
    );
    for number in 0..2_000u64 {
        let mut stored = stored.clone();
        stored.host = principal(&format!("many-{number}"));
        stored.provider = principal(&format!("provider-{}", number % 7));
        stored.spec.prices.vm_hour = number * 7_919 % 50;
        stored.spec.region = ["eu-ch", "us"][(number % 3 == 0) as usize].to_owned();
        stored.spec.capacity.vcpus = [1, 2, 8, 64][(number % 4) as usize];
        world.state.hosts.insert(stored.host, template.clone());
        world.state.offerings.insert(1_000 + number, stored);
    }
    for number in 0..7u64 {
        let score = number * 1_000 % 3_001;
        let history = Vec::new();
        world.state.reputations.insert(
            principal(&format!("provider-{number}")),
            Reputation { score, history },
        );
    }
    let request = Request {
        region: Some("eu-ch".into()),
        vcpus: 4,
        ..request()
    };
    let (state, now) = (&world.state, world.now);
    let found = state.match_offerings(world.developer, &request, now).unwrap();
    let mut all: Vec<_> = state
        .offerings()
        .into_iter()
        .filter(|one| {
            state
                .mismatches(one, &request, Some(world.developer), now)
                .is_empty()
        })
        .map(|one| {
            let price = crate::protocol::offering::price_per_hour(&one.spec.prices, &request).unwrap();
            (price, std::cmp::Reverse(one.provider_reputation), one.id)
        })
        .collect();
    all.sort();
    assert!(all.len() > 300);
    let ids: Vec<_> = found.iter().map(|one| one.offering.id).collect();
    let wanted: Vec<_> = all.iter().take(100).map(|(_, _, id)| *id).collect();
    assert_eq!(ids, wanted);
    assert_eq!(state.why_not(world.developer, &request, now).unwrap().len(), 100);
}
