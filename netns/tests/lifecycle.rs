//! Making, repairing, recovering, removing.
#![allow(clippy::unwrap_used, reason = "a test that can't go on must stop")]

mod lab;

use lab::*;
use netns::{ConvergeError, Desired, Network, Transport};

fn full() -> Desired {
    let mut desired = vms(&[(1, "alice"), (2, "bob"), (3, "alice")]);
    desired.vms.get_mut(&3).unwrap().bandwidth_mbps = Some(100);
    desired.leases.extend([
        lease(Transport::Tcp, 20_022, 1, 22),
        lease(Transport::Udp, 20_022, 2, 53),
    ]);
    desired.routes.insert("a.example".parse().unwrap(), 1);
    desired
}

async fn assert_settled(network: &Network, desired: &Desired, after: &str) {
    let again = network
        .converge(desired)
        .await
        .unwrap_or_else(|error| panic!("after {after}: {error}"));
    assert!(again.is_empty(), "after {after}: {again:?}");
}

#[tokio::test]
async fn converging_twice_changes_nothing_and_removing_leaves_nothing() {
    let lab = Lab::new().with_haproxy();
    let network = lab.open().await;
    assert!(!network.converge(&full()).await.unwrap().is_empty());
    assert_settled(&network, &full(), "the first").await;
    assert!(network.adjust(&full()).await.unwrap().is_empty());
    assert_settled(&lab.open().await, &full(), "a restart").await;
    network.remove_all().await.unwrap();
    assert_eq!(lab.leftovers(), [] as [String; 0]);
    assert!(network.remove_all().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_others_break_is_repaired() {
    let lab = Lab::new().with_haproxy();
    let network = lab.open().await;
    network.converge(&full()).await.unwrap();
    let (p, h) = (&lab.prefix, lab.host());
    let (alice, bob) = (lab.tenant_space("alice"), lab.tenant_space("bob"));
    let nft = |space: &str, line: &str| format!("ip netns exec {space} nft '{line}'");
    for damage in [
        nft(&h, &format!("delete table inet {p}_host")),
        nft(
            &h,
            &format!("delete element inet {p}_host leases_tcp {{ 20022 : 100.64.0.1 . 22 }}"),
        ),
        nft(
            &h,
            &format!("add element inet {p}_host leases_tcp {{ 20999 : 100.64.0.1 . 22 }}"),
        ),
        nft(&h, &format!("add rule inet {p}_host forward_to_tenant accept")),
        nft(&h, &format!("insert rule inet {p}_host raw accept")),
        nft(&h, &format!("add element inet {p}_host resolvers {{ 9.9.9.9 }}")),
        nft(&alice, "flush ruleset"),
        nft(&alice, "flush chain inet guard raw"),
        nft(&alice, "delete table arp guard"),
        nft(
            &alice,
            "add element inet guard vms { \"x\" . 02:00:00:00:00:01 . 10.0.0.1 }",
        ),
        format!("ip netns exec {h} sysctl -qw net.ipv4.ip_forward=0"),
        format!("ip netns exec {alice} sysctl -qw net.ipv4.conf.all.rp_filter=0"),
        format!("ip -n {h} link set {p}-alice down"),
        format!("ip -n {h} link del {p}-alice"),
        format!("ip -n {h} route del 100.64.0.3"),
        format!("ip -n {h} route add 100.64.0.77 via 169.254.2.2 dev {p}-bob onlink"),
        format!("ip -n {alice} link set {p}_t3 down"),
        format!("ip -n {alice} addr flush dev {p}_t1"),
        format!("ip -n {alice} neigh del 100.64.0.1 dev {p}_t1"),
        format!("ip -n {alice} route del default"),
        format!("ip -n {alice} link del up0"),
        format!("ip -n {bob} link del {p}_t2"),
        format!("ip -n {bob} link set {p}_t2 netns {h}"),
        format!("ip netns exec {bob} ip tuntap add {p}_t9 mode tap"),
        format!("ip -n {bob} link set {p}_t2 address 02:00:00:00:00:05"),
        format!("ip netns del {bob}"),
        format!("umount /run/netns/{bob}"),
        format!("touch /run/netns/{p}-t-stale"),
        format!("ip netns add {p}-t-stale"),
        format!("ip -n {h} link add {p}-stale type veth peer name zz netns {alice}"),
    ] {
        sh(&damage);
        let changes = network
            .converge(&full())
            .await
            .unwrap_or_else(|error| panic!("{damage}: {error:?}"));
        assert!(!changes.is_empty(), "not noticed: {damage}");
        assert_settled(&network, &full(), &damage).await;
    }
}

#[tokio::test]
async fn a_crash_after_any_step_is_recovered_forwards_and_backwards() {
    let lab = Lab::new().with_haproxy();
    let mut smaller = full();
    smaller.vms.remove(&2);
    smaller.leases.retain(|lease| lease.slot != 2);
    let mut steps = 0;
    loop {
        let network = lab.open().await;
        let done = network.converge_cut_off(&full(), steps).await.unwrap().0.len();
        // A new process, which first is asked for something else, then for the whole.
        let network = lab.open().await;
        network
            .converge(&smaller)
            .await
            .unwrap_or_else(|error| panic!("{steps} steps, then less: {error:?}"));
        assert_settled(&network, &smaller, &format!("{steps} steps, then less")).await;
        network.converge_cut_off(&full(), steps / 2).await.unwrap();
        lab.open()
            .await
            .converge(&full())
            .await
            .unwrap_or_else(|error| panic!("{steps} steps, then all: {error:?}"));
        let network = lab.open().await;
        network
            .converge_cut_off(&Desired::default(), steps)
            .await
            .unwrap();
        let network = lab.open().await;
        network
            .remove_all()
            .await
            .unwrap_or_else(|error| panic!("{steps} steps, then nothing: {error:?}"));
        assert_eq!(lab.leftovers(), [] as [String; 0], "after {steps} steps");
        if done < steps {
            break;
        }
        steps += 3;
    }
    assert!(steps > 12, "a plan of {steps} steps is too short for this test");
}

#[tokio::test]
async fn a_caller_that_gives_up_leaves_a_network_that_the_next_one_completes() {
    let lab = Lab::new().with_haproxy();
    let network = lab.open().await;
    for millis in [1, 20, 60, 150] {
        let patience = std::time::Duration::from_millis(millis);
        let _ = tokio::time::timeout(patience, network.converge(&full())).await;
        network.adjust(&full()).await.unwrap();
        assert_settled(&network, &full(), &format!("giving up after {millis} ms")).await;
        let _ = tokio::time::timeout(patience, network.adjust(&Desired::default())).await;
        network.remove_all().await.unwrap();
        assert_eq!(lab.leftovers(), [] as [String; 0], "after {millis} ms");
    }
}

#[tokio::test]
async fn objects_of_others_are_left_alone() {
    let mut lab = Lab::new();
    let (p, h) = (lab.prefix.clone(), lab.host());
    let other = format!("{p}x-t-alice");
    lab.make_space(&other);
    lab.make_space(&format!("{p}-router"));
    sh(&format!(
        "ip -n {h} link add {p}x type veth peer name br0
         ip netns exec {h} nft 'add table inet other; add chain inet other forward {{ type filter hook forward priority 0; }}'
         ip -n {h} route add 100.64.9.9 via {WAN}"
    ));
    let shows = || {
        sh(&format!(
            "ip netns list | grep -oE '{other}|{p}-router'; ip -n {h} -o link show {p}x | cut -d: -f2; ip -n {h} -o link show br0 | cut -d: -f2
             ip netns exec {h} nft list table inet other; ip -n {h} route show 100.64.9.9"
        ))
    };
    let before = shows();
    assert!(before.contains("-router"));
    let network = lab.open().await;
    network.converge(&full_without_routes()).await.unwrap();
    assert_eq!(shows(), before);
    network.remove_all().await.unwrap();
    assert_eq!(shows(), before);
}

fn full_without_routes() -> Desired {
    Desired {
        routes: Default::default(),
        ..full()
    }
}

#[tokio::test]
async fn a_tap_lent_to_a_vmm_works_after_it_went_back() {
    let mut lab = Lab::new();
    let network = lab.open().await;
    let desired = vms(&[(1, "alice")]);
    network.converge(&desired).await.unwrap();
    lab.serve(&lab.wan(), "wan", 7777);
    assert!(network.lend_tap(9).await.is_err(), "no such VM");

    let name = network.lend_tap(1).await.unwrap();
    assert!(
        network.converge(&desired).await.unwrap().is_empty(),
        "a converge meanwhile leaves it where it is"
    );
    assert!(network.adjust(&desired).await.unwrap().is_empty());
    let fd = inside(&lab.host(), || open_tap_by_name(name.as_str())).unwrap();
    lab.attach(1, fd);
    // libvirt may set it up: still nothing gets out of it.
    sh(&format!("ip -n {} link set {name} up", lab.host()));
    assert_eq!(tcp(&lab.vm(1), WAN, 7777, QUIET), None, "while it is lent");

    network.take_back_tap(1).await.unwrap();
    network.take_back_tap(1).await.unwrap();
    assert_eq!(
        tcp(&lab.vm(1), WAN, 7777, SOON),
        Some(format!("wan sees {HOST}")),
        "the VMM holds the same tap"
    );
    assert!(network.converge(&desired).await.unwrap().is_empty());
    assert!(matches!(
        network.open_tap(1).await,
        Err(netns::NetError::TapBusy(1))
    ));

    // hostd dies while the tap is lent, and the new one knows nothing: taking back works, and so does converging.
    network.lend_tap(1).await.unwrap();
    let network = lab.open().await;
    network.take_back_tap(1).await.unwrap();
    assert!(tcp(&lab.vm(1), WAN, 7777, SOON).is_some());
    network.lend_tap(1).await.unwrap();
    let network = lab.open().await;
    assert!(!network.converge(&desired).await.unwrap().is_empty());
    assert!(tcp(&lab.vm(1), WAN, 7777, SOON).is_some());
    assert!(network.counters(1).await.unwrap().sent_packets > 0);

    // The VM ends while its tap is lent.
    network.lend_tap(1).await.unwrap();
    let changes = network.adjust(&Desired::default()).await.unwrap();
    assert!(
        changes
            .0
            .contains(&"remove tap of slot 1 from the host".to_owned()),
        "{changes:?}"
    );
    assert!(network.converge(&Desired::default()).await.unwrap().is_empty());
    network.remove_all().await.unwrap();
    assert_eq!(lab.leftovers(), [] as [String; 0]);
}

#[tokio::test]
async fn a_running_vm_never_notices_restarts_and_changes_of_others() {
    let mut lab = Lab::new();
    let network = lab.open().await;
    let mut desired = vms(&[(1, "alice")]);
    network.converge(&desired).await.unwrap();
    lab.boot(&network, 1).await;
    lab.serve(&lab.wan(), "wan", 7777);
    let mut stream = inside(&lab.vm(1), || {
        std::net::TcpStream::connect_timeout(&(WAN, 7777).into(), SOON)
    })
    .unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    drop(network);
    let network = lab.open().await;
    assert!(network.converge(&desired).await.unwrap().is_empty());
    assert!(say(&mut stream).is_some());
    for slot in 2..6 {
        desired
            .vms
            .extend(vms(&[(slot, if slot % 2 == 0 { "alice" } else { "carol" })]).vms);
        network.adjust(&desired).await.unwrap();
        assert!(say(&mut stream).is_some(), "after slot {slot} came");
    }
    desired.vms.retain(|slot, _| *slot == 1);
    network.adjust(&desired).await.unwrap();
    assert!(say(&mut stream).is_some());
    assert_settled(&network, &desired, "adjusting").await;
    // Rules that somebody changed are replaced as a whole, in one transaction.
    sh(&format!(
        "ip netns exec {} nft insert rule inet {}_host forward accept",
        lab.host(),
        lab.prefix
    ));
    assert_eq!(
        network.converge(&desired).await.unwrap().0,
        ["load the host's rules"]
    );
    assert!(say(&mut stream).is_some());
}

#[tokio::test]
async fn a_slot_can_go_to_another_tenant() {
    let mut lab = Lab::new();
    let network = lab.open().await;
    network
        .converge(&vms(&[(1, "alice"), (2, "alice")]))
        .await
        .unwrap();
    lab.boot(&network, 1).await;
    lab.halt(1);
    network.converge(&vms(&[(1, "bob"), (2, "alice")])).await.unwrap();
    assert_eq!(network.counters(1).await.unwrap().sent_packets, 0, "a new tap");
    lab.boot(&network, 1).await;
    lab.serve(&lab.wan(), "wan", 7777);
    assert!(tcp(&lab.vm(1), WAN, 7777, SOON).is_some());
    lab.boot(&network, 2).await;
    lab.serve(&lab.vm(2), "vm2", 8080);
    assert_eq!(tcp(&lab.vm(1), network.ip4(2), 8080, QUIET), None);
}

#[tokio::test]
async fn one_tenants_failure_does_not_keep_the_others_from_being_made() {
    let lab = Lab::new();
    let network = lab.open().await;
    // A folder stands where alice's namespace should be.
    let path = format!("/run/netns/{}", lab.tenant_space("alice"));
    std::fs::create_dir(&path).unwrap();
    let error = network
        .converge(&vms(&[(1, "alice"), (2, "bob")]))
        .await
        .unwrap_err();
    assert!(
        error.affects(&"alice".parse().unwrap()) && !error.affects(&"bob".parse().unwrap()),
        "{error}"
    );
    assert!(
        matches!(&error, ConvergeError::Incomplete { failures } if failures.len() == 1),
        "{error:?}"
    );
    assert!(network.counters(2).await.is_ok());
    std::fs::remove_dir(&path).unwrap();
    network.converge(&vms(&[(1, "alice"), (2, "bob")])).await.unwrap();
    assert_settled(&network, &vms(&[(1, "alice"), (2, "bob")]), "the repair").await;
}

#[tokio::test]
async fn a_host_without_the_wan_interface_is_refused() {
    let lab = Lab::new();
    let mut config = lab.config.clone();
    config.wan = "eth9".parse().unwrap();
    let host = std::fs::File::open(format!("/run/netns/{}", lab.host())).unwrap();
    let error = Network::open_in(config, host.into())
        .await
        .err()
        .expect("refused")
        .to_string();
    assert!(error.contains("there is no interface eth9"), "{error}");
    let mut desired = vms(&[(1, "alice")]);
    desired.leases.insert(lease(Transport::Tcp, 22, 7, 22));
    let network = lab.open().await;
    assert!(
        matches!(network.converge(&desired).await, Err(ConvergeError::Desired(faults)) if faults.len() == 2)
    );
    assert_eq!(lab.leftovers(), [] as [String; 0]);
}
