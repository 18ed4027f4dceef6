//! Ways in: port leases and routes by name, through the real nft and the real HAProxy.
#![allow(clippy::unwrap_used, reason = "a test that can't go on must stop")]

mod lab;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use lab::*;
use netns::{Desired, DnsName, Transport};

#[tokio::test]
async fn a_lease_forwards_from_everywhere_and_its_end_ends_its_flows() {
    let mut lab = Lab::new();
    let network = lab.open().await;
    let mut desired = vms(&[(1, "alice"), (2, "bob")]);
    desired.leases.extend([
        lease(Transport::Tcp, 20_022, 1, 22),
        lease(Transport::Udp, 20_820, 1, 51_820),
        lease(Transport::Tcp, 20_023, 1, 22),
        lease(Transport::Tcp, 20_024, 2, 22),
    ]);
    network.converge(&desired).await.unwrap();
    for slot in [1, 2] {
        lab.boot(&network, slot).await;
        lab.serve(&lab.vm(slot), &format!("vm{slot}"), 22);
    }
    lab.serve(&lab.vm(1), "vm1", 51_820);

    let from_wan = Some(format!("vm1 sees {WAN}"));
    assert_eq!(
        tcp(&lab.wan(), HOST, 20_022, SOON),
        from_wan,
        "the VM sees who really calls"
    );
    assert_eq!(udp(&lab.wan(), None, HOST, 20_820, SOON), from_wan);
    assert_eq!(
        tcp(&lab.wan(), HOST, 20_024, SOON),
        Some(format!("vm2 sees {WAN}"))
    );
    assert_eq!(tcp(&lab.wan(), HOST, 20_025, QUIET), None, "not leased");
    assert_eq!(
        udp(&lab.wan(), None, HOST, 20_022, QUIET),
        None,
        "leased for TCP only"
    );
    // Hairpin: the VM itself, its neighbour, by the public address.
    let hairpin = Some(format!("vm1 sees {}", netns::UPLINK_HOST));
    assert_eq!(tcp(&lab.vm(2), HOST, 20_022, SOON), hairpin);
    assert_eq!(tcp(&lab.vm(1), HOST, 20_022, SOON), hairpin);
    assert_eq!(udp(&lab.vm(2), None, HOST, 20_820, SOON), hairpin);

    let connect = |port| {
        let mut stream = inside(&lab.wan(), || {
            TcpStream::connect_timeout(&(HOST, port).into(), SOON)
        })
        .unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        assert!(say(&mut stream).is_some());
        stream.set_read_timeout(Some(QUIET)).unwrap();
        stream
    };
    let (mut revoked, mut kept) = (connect(20_022), connect(20_023));
    desired.leases.remove(&lease(Transport::Tcp, 20_022, 1, 22));
    let changes = network.adjust(&desired).await.unwrap();
    assert_eq!(
        changes.0.len(),
        2,
        "one rule change, one end of flows: {changes:?}"
    );
    assert_eq!(say(&mut revoked), None, "an open connection of a revoked lease");
    assert!(
        say(&mut kept).is_some(),
        "an open connection of another lease of the VM"
    );
    assert_eq!(tcp(&lab.wan(), HOST, 20_022, QUIET), None);

    // A port goes to another VM.
    desired.leases.remove(&lease(Transport::Tcp, 20_023, 1, 22));
    desired.leases.insert(lease(Transport::Tcp, 20_023, 2, 22));
    network.converge(&desired).await.unwrap();
    assert_eq!(say(&mut kept), None);
    assert_eq!(
        tcp(&lab.wan(), HOST, 20_023, SOON),
        Some(format!("vm2 sees {WAN}"))
    );

    let mut ended = connect(20_024);
    assert!(network.end_sessions(2).await.unwrap().flows >= 1);
    assert_eq!(say(&mut ended), None);
}

fn name(text: &str) -> DnsName {
    text.parse().unwrap()
}

/// The common name of the certificate that a TLS server shows for a name.
fn certificate(space: &str, sni: &str) -> Option<String> {
    let line = format!(
        "ip netns exec {space} timeout 10 openssl s_client -connect {HOST}:443 {sni} </dev/null 2>/dev/null \
         | openssl x509 -noout -subject 2>/dev/null"
    );
    let output = std::process::Command::new("sh")
        .args(["-c", &line])
        .output()
        .unwrap();
    let subject = String::from_utf8(output.stdout).unwrap();
    subject.trim().rsplit_once("= ").map(|(_, name)| name.to_owned())
}

/// What the HTTP port answers to the bytes of a request.
fn http(space: &str, request: &str) -> Option<String> {
    inside(space, || {
        let mut stream = TcpStream::connect_timeout(&(HOST, 80).into(), SOON).ok()?;
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = [0; 100];
        let length = stream.read(&mut answer).ok().filter(|length| *length > 0)?;
        Some(String::from_utf8_lossy(&answer[..length]).trim().to_owned())
    })
}

#[tokio::test]
async fn names_lead_to_their_vm_only_and_change_without_a_reload() {
    let mut lab = Lab::new().with_haproxy();
    let network = lab.open().await;
    let mut desired = vms(&[(1, "alice"), (2, "bob")]);
    desired
        .routes
        .extend([(name("a.example"), 1), (name("b.example"), 2)]);
    network.converge(&desired).await.unwrap();
    for slot in [1, 2] {
        lab.boot(&network, slot).await;
        let dir = lab.dir.path().display().to_string();
        sh(&format!(
            "cd {dir}; openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=vm{slot} \
             -keyout {slot}.key -out {slot}.crt 2>/dev/null"
        ));
        lab.spawn(
            &lab.vm(slot),
            &format!("openssl s_server -accept 443 -cert {dir}/{slot}.crt -key {dir}/{slot}.key"),
        );
        lab.serve(&lab.vm(slot), &format!("vm{slot}"), 80);
    }
    let wan = lab.wan();
    until("the TLS server listens", || {
        certificate(&wan, "-servername b.example").is_some()
    });
    for (sni, want) in [
        ("-servername a.example", Some("vm1")),
        ("-servername A.Example", Some("vm1")),
        ("-servername b.example", Some("vm2")),
        ("-servername c.example", None),
        ("-servername x.a.example", None),
        ("-servername example", None),
        ("-noservername", None),
    ] {
        assert_eq!(certificate(&wan, sni).as_deref(), want, "{sni}");
    }
    assert_eq!(
        certificate(&lab.vm(1), "-servername b.example").as_deref(),
        Some("vm2"),
        "from another tenant's VM"
    );
    assert_eq!(
        certificate(&lab.vm(1), "-servername a.example").as_deref(),
        Some("vm1"),
        "from the VM itself"
    );

    let vm_sees = |slot: u16| Some(format!("vm{slot} sees {}", netns::UPLINK_HOST));
    for (host, want) in [
        ("Host: a.example\r\n", vm_sees(1)),
        ("host: B.EXAMPLE:80\r\n", vm_sees(2)),
        ("Host: c.example\r\n", None),
        ("Host: 100.64.0.1\r\n", None),
        ("Host: \r\n", None),
        ("", None),
    ] {
        assert_eq!(
            http(&wan, &format!("GET / HTTP/1.1\r\n{host}\r\n")),
            want,
            "{host:?}"
        );
    }
    assert_eq!(http(&wan, "not http at all\r\n\r\n"), None);
    // The other port's protocol gets nowhere either.
    assert_eq!(
        tcp(&wan, HOST, 443, Duration::from_secs(8)),
        None,
        "not TLS on the TLS port"
    );

    let pid = lab.haproxies();
    assert_eq!(pid.len(), 1);
    desired.routes.remove(&name("a.example"));
    desired.routes.insert(name("b.example"), 1);
    desired.routes.insert(name("new.example"), 2);
    let changes = network.adjust(&desired).await.unwrap();
    assert_eq!(
        changes.0,
        ["remove routes a.example", "set routes b.example, new.example"]
    );
    for (sni, want) in [
        ("a.example", None),
        ("b.example", Some("vm1")),
        ("new.example", Some("vm2")),
    ] {
        assert_eq!(
            certificate(&wan, &format!("-servername {sni}")).as_deref(),
            want,
            "{sni}"
        );
    }
    assert!(network.converge(&desired).await.unwrap().is_empty());
    assert_eq!(lab.haproxies(), pid, "the same HAProxy");

    // The VM goes; its name must lead nowhere, least of all to another VM.
    lab.halt(1);
    desired.vms.remove(&1);
    desired.routes.remove(&name("b.example"));
    network.converge(&desired).await.unwrap();
    assert_eq!(certificate(&wan, "-servername b.example"), None);
    assert_eq!(
        certificate(&wan, "-servername new.example").as_deref(),
        Some("vm2")
    );
}

#[tokio::test]
async fn end_sessions_ends_connections_through_haproxy() {
    let mut lab = Lab::new().with_haproxy();
    let network = lab.open().await;
    let mut desired = vms(&[(1, "alice")]);
    desired.routes.insert(name("a.example"), 1);
    network.converge(&desired).await.unwrap();
    lab.boot(&network, 1).await;
    lab.serve(&lab.vm(1), "vm1", 80);
    let mut stream = inside(&lab.wan(), || {
        TcpStream::connect_timeout(&(HOST, 80).into(), SOON)
    })
    .unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
        .unwrap();
    assert!(stream.read(&mut [0; 100]).unwrap() > 0);
    let ended = network.end_sessions(1).await.unwrap();
    assert_eq!(ended.sockets, 1);
    let rest = stream.read(&mut [0; 100]);
    assert!(matches!(rest, Ok(0) | Err(_)), "{rest:?}");
}

/// A VM that loses a name lives on, but nobody stays connected to it by that name; its neighbour doesn't notice.
#[tokio::test]
async fn a_route_that_goes_takes_its_open_connections_along() {
    let mut lab = Lab::new().with_haproxy();
    let network = lab.open().await;
    let mut desired = vms(&[(1, "alice"), (2, "bob")]);
    desired
        .routes
        .extend([(name("a.example"), 1), (name("b.example"), 2)]);
    network.converge(&desired).await.unwrap();
    let mut streams = Vec::new();
    for slot in [1, 2] {
        lab.boot(&network, slot).await;
        lab.serve(&lab.vm(slot), &format!("vm{slot}"), 80);
        let mut stream = inside(&lab.wan(), || {
            TcpStream::connect_timeout(&(HOST, 80).into(), SOON)
        })
        .unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let host = ["a", "b"][usize::from(slot) - 1];
        write!(stream, "GET / HTTP/1.1\r\nHost: {host}.example\r\n\r\n").unwrap();
        assert!(stream.read(&mut [0; 1000]).unwrap() > 0);
        streams.push(stream);
    }
    desired.routes.remove(&name("a.example"));
    let changes = network.adjust(&desired).await.unwrap();
    assert_eq!(changes.0, ["remove routes a.example"]);
    let mut closed = |n: usize| match streams[n].read(&mut [0; 1000]) {
        Ok(read) => read == 0,
        Err(error) => !matches!(
            error.kind(),
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
        ),
    };
    assert!(closed(0), "the connection by the removed name goes on");
    assert!(!closed(1), "the neighbour's connection ended too");
}

#[tokio::test]
async fn haproxy_is_found_again_started_again_and_replaced_when_its_settings_change() {
    let mut lab = Lab::new().with_haproxy();
    let mut desired = vms(&[(1, "alice")]);
    desired.routes.insert(name("a.example"), 1);
    let network = lab.open().await;
    network.converge(&desired).await.unwrap();
    lab.boot(&network, 1).await;
    lab.serve(&lab.vm(1), "vm1", 80);
    let get = |lab: &Lab| http(&lab.wan(), "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n");
    assert!(get(&lab).is_some());

    // hostd was killed and starts again.
    drop(network);
    let network = lab.open().await;
    assert!(network.converge(&desired).await.unwrap().is_empty());

    // HAProxy was killed.
    for pid in lab.haproxies() {
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    until("HAProxy is gone", || get(&lab).is_none());
    assert_eq!(network.converge(&desired).await.unwrap().0, ["start HAProxy"]);
    assert!(get(&lab).is_some(), "with the routes it had");

    // Somebody changed its routes.
    let socket = lab.dir.path().join("haproxy/haproxy.sock").display().to_string();
    let map = lab.dir.path().join("haproxy/routes.map").display().to_string();
    let say = |line: &str| {
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        stream.read_to_string(&mut String::new()).unwrap();
    };
    say(&format!("add map {map} evil.example 100.64.0.1"));
    say(&format!("add map {map} a.example 100.64.0.9"));
    network.converge(&desired).await.unwrap();
    assert!(get(&lab).is_some());
    assert!(network.converge(&desired).await.unwrap().is_empty());

    // The operator allows more connections.
    drop(network);
    lab.config.haproxy.as_mut().unwrap().max_connections = 500;
    let network = lab.open().await;
    let changes = network.converge(&desired).await.unwrap();
    assert!(
        changes.0.len() == 1 && changes.0[0].starts_with("replace HAProxy"),
        "{changes:?}"
    );
    assert!(get(&lab).is_some());
    assert!(network.converge(&desired).await.unwrap().is_empty());
    network.remove_all().await.unwrap();
    until("nothing is left", || lab.leftovers().is_empty());
}

#[tokio::test]
async fn a_foreign_haproxy_is_asked_for_and_never_started() {
    let mut lab = Lab::new().with_haproxy();
    lab.config.haproxy.as_mut().unwrap().manage = netns::Manage::External;
    let network = lab.open().await;
    let mut desired = vms(&[(1, "alice")]);
    desired.routes.insert(name("a.example"), 1);
    let error = network.converge(&desired).await.unwrap_err().to_string();
    assert!(error.contains("start it with `haproxy -W -f"), "{error}");
    assert!(
        network.counters(1).await.is_ok(),
        "the tenant's network is there all the same"
    );
    let config = lab.dir.path().join("haproxy/haproxy.cfg").display().to_string();
    sh(&format!("ip netns exec {} haproxy -D -f {config}", lab.host()));
    assert!(
        network.converge(&desired).await.unwrap().is_empty(),
        "it began with the routes of the map file"
    );
    desired.routes.insert(name("b.example"), 1);
    assert_eq!(
        network.converge(&desired).await.unwrap().0,
        ["set routes b.example"]
    );
    network.remove_all().await.unwrap();
    assert!(
        lab.leftovers().iter().all(|left| left.contains("haproxy")),
        "not ours to stop"
    );
}

/// What `haproxy -c` and an independent parser see in the configuration that we write.
#[tokio::test]
async fn the_configuration_is_valid_and_reads_back_as_meant() {
    use haproxy_config::{Config as Parsed, parse_sections};
    let lab = Lab::new().with_haproxy();
    let config = lab.config.clone();
    let rendered = netns::render(&config, &Desired::default());
    let text = rendered.haproxy_config.unwrap();
    let dir = lab.dir.path().join("haproxy");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("haproxy.cfg"), &text).unwrap();
    std::fs::write(dir.join("routes.map"), "").unwrap();
    let said = sh(&format!(
        "haproxy -c -f {} 2>&1",
        dir.join("haproxy.cfg").display()
    ));
    assert!(!said.to_lowercase().contains("warning"), "{said}");

    let sections = parse_sections(&text).unwrap();
    let parsed = Parsed::try_from(&sections[..]).unwrap();
    let mut names: Vec<_> = parsed
        .frontends
        .keys()
        .chain(parsed.backends.keys())
        .cloned()
        .collect();
    names.sort();
    assert_eq!(names, ["http", "tls", "vm_http", "vm_tls"]);
    for backend in parsed.backends.values() {
        assert_eq!(
            backend.servers.len(),
            1,
            "nothing to balance to: {}",
            backend.name
        );
    }
}
