//! Who reaches whom: real namespaces, real packets, every direction.
#![allow(clippy::unwrap_used, reason = "a test that can't go on must stop")]

mod lab;

use lab::*;
use netns::{Desired, Transport};

#[tokio::test]
async fn vms_reach_their_own_tenants_vms_and_nobody_elses() {
    let mut lab = Lab::new();
    let network = lab.open().await;
    let slots = [(1, "alice"), (2, "bob"), (3, "alice")];
    network.converge(&vms(&slots)).await.unwrap();
    for (slot, _) in slots {
        lab.boot(&network, slot).await;
        lab.serve(&lab.vm(slot), &format!("vm{slot}"), 8080);
    }
    for (from, from_tenant) in slots {
        for (to, to_tenant) in slots.into_iter().filter(|(to, _)| *to != from) {
            let friends = from_tenant == to_tenant;
            let patience = if friends { SOON } else { QUIET };
            let (space, ip4) = (lab.vm(from), network.ip4(to));
            let want = friends.then(|| format!("vm{to} sees {}", network.ip4(from)));
            assert_eq!(tcp(&space, ip4, 8080, patience), want, "TCP {from} to {to}");
            assert_eq!(udp(&space, None, ip4, 8080, patience), want, "UDP {from} to {to}");
            assert_eq!(ping(&space, ip4), friends, "ping {from} to {to}");
        }
    }
}

#[tokio::test]
async fn a_vm_cannot_speak_with_another_address_or_mac() {
    let mut lab = Lab::new();
    let network = lab.open().await;
    network
        .converge(&vms(&[(1, "alice"), (2, "bob"), (3, "alice")]))
        .await
        .unwrap();
    for slot in [1, 2, 3] {
        lab.boot(&network, slot).await;
        lab.serve(&lab.vm(slot), &format!("vm{slot}"), 8080);
    }
    lab.serve(&lab.wan(), "wan", 7777);
    let vm1 = lab.vm(1);
    let heard = |space: &str, from: &str| {
        let filter =
            format!("ip netns exec {space} cat /proc/net/snmp | awk '/^Udp:/ && $2 ~ /^[0-9]/ {{print $2}}'");
        (from.to_owned(), sh(&filter).trim().to_owned())
    };
    let before: Vec<_> = ["wan", "vm2", "vm3"]
        .map(|n| heard(&format!("{}{n}", lab.prefix), n))
        .into();
    // As its tenant's other VM, as another tenant's, as the host, as nobody.
    for source in [network.ip4(3), network.ip4(2), HOST, [8, 8, 8, 8].into()] {
        sh(&format!("ip -n {vm1} addr add {source}/32 dev eth0"));
        for to in [(WAN, 7777), (network.ip4(3), 8080), (network.ip4(2), 8080)] {
            if to.0 != source {
                assert_eq!(
                    udp(&vm1, Some(source), to.0, to.1, QUIET),
                    None,
                    "as {source} to {to:?}"
                );
            }
        }
        sh(&format!("ip -n {vm1} addr del {source}/32 dev eth0"));
    }
    let after: Vec<_> = ["wan", "vm2", "vm3"]
        .map(|n| heard(&format!("{}{n}", lab.prefix), n))
        .into();
    assert_eq!(after, before, "datagrams that arrived");

    assert!(udp(&vm1, None, WAN, 7777, SOON).is_some());
    sh(&format!("ip -n {vm1} link set eth0 address 02:dc:00:00:00:02"));
    assert_eq!(udp(&vm1, None, WAN, 7777, QUIET), None, "with another's MAC");
    sh(&format!("ip -n {vm1} link set eth0 address 02:dc:00:00:00:01"));
    assert!(udp(&vm1, None, WAN, 7777, SOON).is_some());

    // ARP for another's address, and claiming it, changes nothing.
    sh(&format!("ip -n {vm1} addr add {}/32 dev eth0", network.ip4(3)));
    sh(&format!("ip -n {vm1} neigh flush all"));
    assert_eq!(tcp(&lab.vm(2), network.ip4(3), 8080, QUIET), None);
    assert_eq!(tcp(&vm1, WAN, 7777, SOON), Some(format!("wan sees {HOST}")));
}

#[tokio::test]
async fn ipv6_and_dhcp_of_a_vm_go_nowhere() {
    let mut lab = Lab::new();
    let network = lab.open().await;
    network
        .converge(&vms(&[(1, "alice"), (2, "alice")]))
        .await
        .unwrap();
    for slot in [1, 2] {
        lab.boot(&network, slot).await;
    }
    let tenant = lab.tenant_space("alice");
    assert_eq!(
        sh(&format!("ip -n {tenant} -6 addr")).trim(),
        "",
        "the tenant's namespace has no IPv6"
    );
    for target in ["ff02::1", "ff02::2"] {
        let line = format!(
            "ip netns exec {} timeout 1 ping -6 -c 1 -W 1 -I eth0 {target}",
            lab.vm(1)
        );
        assert!(!sh_ok(&line) || !sh_ok("which ping"), "{target} answered");
    }
    // A rogue router's and a DHCP client's packets are counted as spoofed, and nothing answers.
    let dropped = || {
        sh(&format!(
            "ip netns exec {tenant} nft list counter inet guard dropped_spoofed"
        ))
    };
    let before = dropped();
    let broadcast = inside(&lab.vm(1), || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:68").unwrap();
        socket.set_broadcast(true).unwrap();
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::BindToDevice, &"eth0".into())
            .unwrap();
        sh("ip addr flush dev eth0"); // no address: the source is 0.0.0.0, as a DHCP client's
        socket.send_to(b"discover", "255.255.255.255:67")
    });
    assert!(broadcast.is_ok(), "{broadcast:?}");
    until("the guard dropped it", || dropped() != before);
}

#[tokio::test]
async fn a_vm_reaches_the_internet_but_neither_private_networks_nor_the_host() {
    let mut lab = Lab::new();
    lab.config.nameservers = vec![LAN];
    lab.config.deny = vec!["203.0.113.77/32".parse().unwrap()];
    sh(&format!("ip -n {} addr add 203.0.113.77/32 dev eth0", lab.wan()));
    let network = lab.open().await;
    network.converge(&vms(&[(1, "alice")])).await.unwrap();
    lab.boot(&network, 1).await;
    lab.serve(&lab.wan(), "wan", 7777);
    lab.serve_at(&lab.wan(), LAN, "wan", 53);
    for port in [2222, 443] {
        lab.serve(&lab.host(), "host", port);
    }
    let vm = lab.vm(1);
    let gateway = netns::GATEWAY;
    let uplink = netns::UPLINK_HOST;
    let wan_sees_host = Some(format!("wan sees {HOST}"));
    for (to, port, want) in [
        (WAN, 7777, wan_sees_host.clone()),
        (LAN, 53, wan_sees_host), // the resolver, on its port
        (LAN, 7777, None),
        (METADATA, 7777, None),
        ([203, 0, 113, 77].into(), 7777, None),
        (HOST, 2222, None),
        (HOST, 443, None), // no HAProxy in the settings: closed
        (uplink, 2222, None),
        (gateway, 2222, None),
    ] {
        let patience = if want.is_some() { SOON } else { QUIET };
        assert_eq!(tcp(&vm, to, port, patience), want, "TCP to {to}:{port}");
        assert_eq!(udp(&vm, None, to, port, patience), want, "UDP to {to}:{port}");
    }
    assert!(ping(&vm, gateway), "the gateway answers pings");
    assert!(ping(&vm, HOST), "the host answers pings");
    assert!(!ping(&vm, LAN));
    assert!(!ping(&vm, METADATA));
    // The other way round nothing is open, even for one who routes there.
    lab.serve(&lab.vm(1), "vm1", 8080);
    sh(&format!("ip -n {} route add 100.64.0.0/16 via {HOST}", lab.wan()));
    assert_eq!(tcp(&lab.wan(), network.ip4(1), 8080, QUIET), None, "from the wan");
    assert_eq!(
        tcp(&lab.host(), network.ip4(1), 8080, SOON),
        Some(format!("vm1 sees {uplink}")),
        "the host itself may"
    );
}

#[tokio::test]
async fn open_flows_of_a_vm_are_bounded() {
    let mut lab = Lab::new();
    lab.config.flows_per_vm = 16;
    let network = lab.open().await;
    network.converge(&vms(&[(1, "alice"), (2, "bob")])).await.unwrap();
    lab.boot(&network, 1).await;
    lab.boot(&network, 2).await;
    lab.serve(&lab.wan(), "wan", 7777);
    let open = inside(&lab.vm(1), || {
        let connect = |_| std::net::TcpStream::connect_timeout(&(WAN, 7777).into(), QUIET).ok();
        (0..18).filter_map(connect).collect::<Vec<_>>()
    });
    assert_eq!(open.len(), 16);
    assert!(
        tcp(&lab.vm(2), WAN, 7777, SOON).is_some(),
        "another VM has its own count"
    );
}

#[tokio::test]
async fn bandwidth_is_limited_both_ways_and_counted() {
    let mut lab = Lab::new();
    let network = lab.open().await;
    let mut desired = vms(&[(1, "alice")]);
    desired.vms.get_mut(&1).unwrap().bandwidth_mbps = Some(16); // 2 MB/s
    desired.leases.insert(lease(Transport::Tcp, 20_080, 1, 8080));
    network.converge(&desired).await.unwrap();
    lab.boot(&network, 1).await;
    let seconds = |sender: &str, receiver: &str, to: std::net::Ipv4Addr, port: u16, listen: u16| {
        let listener = inside(receiver, || {
            std::net::TcpListener::bind(("0.0.0.0", listen)).unwrap()
        });
        let reading = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
        });
        let start = std::time::Instant::now();
        inside(sender, || {
            use std::io::Write as _;
            let mut stream = std::net::TcpStream::connect_timeout(&(to, port).into(), SOON).unwrap();
            stream.write_all(&vec![7; 6_000_000]).unwrap();
        });
        assert_eq!(reading.join().unwrap(), 6_000_000);
        start.elapsed().as_secs_f64()
    };
    let up = seconds(&lab.vm(1), &lab.wan(), WAN, 7777, 7777);
    let down = seconds(&lab.wan(), &lab.vm(1), HOST, 20_080, 8080);
    for (way, seconds) in [("up", up), ("down", down)] {
        assert!(
            (1.0..12.0).contains(&seconds),
            "{way}: 3 MB at 2 MB/s took {seconds} s"
        );
    }
    let counters = network.counters(1).await.unwrap();
    assert!(
        counters.sent_bytes > 6_000_000 && counters.received_bytes > 6_000_000,
        "{counters:?}"
    );
    assert_eq!(
        network.all_counters().await.unwrap().keys().collect::<Vec<_>>(),
        [&1]
    );
    // Changing the limit keeps the counters: they are the tap's, not the rules'.
    desired.vms.get_mut(&1).unwrap().bandwidth_mbps = None;
    network.converge(&desired).await.unwrap();
    assert!(network.counters(1).await.unwrap().sent_bytes >= counters.sent_bytes);
    let free = seconds(&lab.vm(1), &lab.wan(), WAN, 7778, 7778);
    assert!(free < up, "without a limit {free} s, with it {up} s");
    network.converge(&Desired::default()).await.unwrap();
    assert!(network.counters(1).await.is_err());
}
