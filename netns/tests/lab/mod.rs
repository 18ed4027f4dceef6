//! A small internet for tests: a host with the network under test, a wan beside it, VMs behind taps. Everything is made
//! of network namespaces and goes away when the [`Lab`] is dropped, also when a test panics.
#![allow(clippy::unwrap_used, reason = "a test that can't go on must stop")]
#![allow(dead_code, reason = "each test file uses a part of it")]
#![expect(unsafe_code, reason = "the tests play a VMM, which opens taps by ioctl")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netns::{Config, Desired, HaproxyConfig, Lease, Network, Slot, Transport, VmNet, mac};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};

pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub(crate) const WAN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// A LAN behind the wan, and a cloud's metadata service.
pub(crate) const LAN: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 1);
pub(crate) const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// How long to wait for what must not happen.
pub(crate) const QUIET: Duration = Duration::from_millis(300);
/// How long to wait for what must.
pub(crate) const SOON: Duration = Duration::from_secs(5);

pub(crate) struct Lab {
    pub(crate) prefix: String,
    pub(crate) config: Config,
    pub(crate) dir: tempfile::TempDir,
    spaces: BTreeSet<String>,
    vms: BTreeMap<Slot, Vm>,
    servers: Vec<Server>,
    children: Vec<std::process::Child>,
}

/// Runs a command, which must succeed.
pub(crate) fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().expect("sh");
    assert!(
        output.status.success(),
        "{line}: {}{}\n(these tests need root and the packages iproute2, nftables, haproxy, openssl)",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn sh_ok(line: &str) -> bool {
    Command::new("sh")
        .args(["-c", line])
        .output()
        .expect("sh")
        .status
        .success()
}

impl Lab {
    /// Host and wan, joined by a veth; forwarding off, no rules.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mut number = std::process::id()
            .wrapping_mul(31)
            .wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed) * 7919);
        let prefix = loop {
            let digit = |n: u32| char::from_digit(n % 36, 36).unwrap();
            let prefix = format!("z{}{}{}", digit(number), digit(number / 36), digit(number / 1296));
            // Making the namespace is also the lock on the prefix.
            if sh_ok(&format!("ip netns add {prefix}host")) {
                break prefix;
            }
            number = number.wrapping_add(1);
            assert!(
                nix::unistd::geteuid().is_root(),
                "these tests make network namespaces: run them as root"
            );
        };
        let dir = tempfile::Builder::new().prefix("netns-lab").tempdir().unwrap();
        let mut config = Config::new("wan0".parse().unwrap(), HOST);
        config.prefix = prefix.parse().unwrap();
        let spaces = BTreeSet::from([format!("{prefix}host"), format!("{prefix}wan")]);
        let lab = Self {
            prefix: prefix.clone(),
            config,
            dir,
            spaces,
            vms: BTreeMap::new(),
            servers: Vec::new(),
            children: Vec::new(),
        };
        let (h, w) = (lab.host(), lab.wan());
        sh(&format!(
            "ip netns add {w}; ip -n {h} link set lo up; ip -n {w} link set lo up
             ip link add wan0 netns {h} type veth peer name eth0 netns {w}
             ip -n {h} addr add {HOST}/24 dev wan0; ip -n {w} addr add {WAN}/24 dev eth0
             ip -n {h} link set wan0 up; ip -n {w} link set eth0 up
             ip -n {w} addr add {LAN}/24 dev lo; ip -n {w} addr add {METADATA}/32 dev lo
             ip -n {h} route add {LAN}/32 via {WAN}; ip -n {h} route add {METADATA}/32 via {WAN}
             ip -n {h} route add default via {WAN}"
        ));
        lab
    }

    pub(crate) fn host(&self) -> String {
        format!("{}host", self.prefix)
    }

    pub(crate) fn wan(&self) -> String {
        format!("{}wan", self.prefix)
    }

    pub(crate) fn tenant_space(&self, tenant: &str) -> String {
        format!("{}-t-{tenant}", self.prefix)
    }

    /// Adds HAProxy to the settings.
    pub(crate) fn with_haproxy(mut self) -> Self {
        let mut haproxy: HaproxyConfig = toml::from_str("run_dir = \"/\"").unwrap();
        haproxy.run_dir = self.dir.path().join("haproxy");
        self.config.haproxy = Some(haproxy);
        self
    }

    /// A network as a freshly started hostd has it.
    pub(crate) async fn open(&self) -> Network {
        let host = File::open(format!("/run/netns/{}", self.host())).unwrap();
        Network::open_in(self.config.clone(), host.into()).await.unwrap()
    }

    /// A VM that behaves: its card is `eth0` in a namespace of its own, joined with the tap by a thread, as a VMM would.
    pub(crate) async fn boot(&mut self, network: &Network, slot: Slot) {
        let tap = network.open_tap(slot).await.unwrap();
        self.attach(slot, tap);
    }

    /// The same with a tap that is open already.
    pub(crate) fn attach(&mut self, slot: Slot, tap: OwnedFd) {
        let space = self.vm(slot);
        let ip4 = self.config.ip4(slot);
        sh(&format!("ip netns add {space}; ip -n {space} link set lo up"));
        self.spaces.insert(space.clone());
        let card = inside(&space, || open_tap_by_name("eth0")).unwrap();
        sh(&format!(
            "ip netns exec {space} sysctl -qw net.ipv6.conf.all.disable_ipv6=0
             ip -n {space} link set eth0 address {mac} up
             ip -n {space} addr add {ip4}/32 dev eth0
             ip -n {space} route add 169.254.1.1 dev eth0
             ip -n {space} route add default via 169.254.1.1",
            mac = mac(slot)
        ));
        self.vms.insert(slot, Vm::run(tap, card));
    }

    /// Ends a VM: the VMM closes its tap.
    pub(crate) fn halt(&mut self, slot: Slot) {
        self.vms.remove(&slot);
        sh(&format!("ip netns del {}", self.vm(slot)));
        self.spaces.remove(&self.vm(slot));
    }

    /// Makes one more namespace, which goes with the lab.
    pub(crate) fn make_space(&mut self, name: &str) {
        sh(&format!("ip netns add {name}"));
        self.spaces.insert(name.to_owned());
    }

    /// Namespace of a VM.
    pub(crate) fn vm(&self, slot: Slot) -> String {
        format!("{}vm{slot}", self.prefix)
    }

    /// TCP and UDP servers in a namespace that answer with `<name> sees <address of the peer>`, line by line.
    pub(crate) fn serve(&mut self, space: &str, name: &str, port: u16) {
        self.serve_at(space, Ipv4Addr::UNSPECIFIED, name, port);
    }

    /// The same on one address.
    pub(crate) fn serve_at(&mut self, space: &str, ip4: Ipv4Addr, name: &str, port: u16) {
        self.servers.push(Server::start(space, (ip4, port), name));
    }

    /// A background process in a namespace.
    pub(crate) fn spawn(&mut self, space: &str, line: &str) {
        let child = Command::new("ip")
            .args(["netns", "exec", space, "sh", "-c", &format!("exec {line}")])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        self.children.push(child);
    }

    /// Names in /run/netns that begin with our prefix and a dash, and links of the host with our prefix.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        for entry in std::fs::read_dir("/run/netns").unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if name.starts_with(&format!("{}-", self.prefix)) {
                left.push(name);
            }
        }
        let links = sh(&format!("ip -n {} -o link", self.host()));
        left.extend(
            links
                .lines()
                .filter(|line| line.split(": ").nth(1).unwrap_or(line).contains(&self.prefix))
                .map(str::to_owned),
        );
        let routes = sh(&format!("ip -n {} route", self.host()));
        left.extend(
            routes
                .lines()
                .filter(|line| line.contains("100.64."))
                .map(str::to_owned),
        );
        let tables = sh(&format!("ip netns exec {} nft list tables", self.host()));
        left.extend(
            tables
                .lines()
                .filter(|line| line.contains(&self.prefix))
                .map(str::to_owned),
        );
        left.extend(self.haproxies().into_iter().map(|pid| format!("haproxy {pid}")));
        left
    }

    /// Processes of HAProxy that have our configuration.
    pub(crate) fn haproxies(&self) -> Vec<nix::unistd::Pid> {
        let run_dir = self.dir.path().display().to_string();
        let mut found = Vec::new();
        for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let command = std::fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
            let pid = process.file_name().to_str().and_then(|name| name.parse().ok());
            if command.contains("haproxy") && command.contains(&run_dir) {
                found.extend(pid.map(nix::unistd::Pid::from_raw));
            }
        }
        found
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.servers.clear();
        self.vms.clear();
        for pid in self.haproxies() {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        let tenants = format!("{}-", self.prefix);
        for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&tenants) || self.spaces.contains(&name) {
                let removed = Command::new("ip").args(["netns", "del", &name]).output();
                if !removed.is_ok_and(|output| output.status.success()) {
                    let _ = std::fs::remove_file(entry.path()); // a husk that a test made
                }
            }
        }
    }
}

/// Runs something in a namespace, on a thread of its own.
pub(crate) fn inside<T: Send>(space: &str, job: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(space);
            job()
        });
        thread.join().unwrap()
    })
}

fn enter(space: &str) {
    let file = File::open(format!("/run/netns/{space}")).unwrap_or_else(|error| panic!("{space}: {error}"));
    setns(file.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
}

/// Opens a tap of this thread's namespace by name, as QEMU does.
pub(crate) fn open_tap_by_name(name: &str) -> io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: ifreq is a plain C struct for which all zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    // SAFETY: an open descriptor and a valid ifreq that lives through the call.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(file.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Carries frames between a tap and a VM's card.
struct Vm {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Vm {
    fn run(tap: OwnedFd, card: OwnedFd) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut tap, mut card) = (File::from(tap), File::from(card));
            let mut frame = vec![0u8; 70_000];
            while !told.load(Ordering::Relaxed) {
                let mut ready = [
                    PollFd::new(tap.as_fd(), PollFlags::POLLIN),
                    PollFd::new(card.as_fd(), PollFlags::POLLIN),
                ];
                if poll(&mut ready, PollTimeout::from(50u16)).unwrap_or(0) == 0 {
                    continue;
                }
                let came = ready.map(|fd| fd.any() == Some(true));
                if came[0] {
                    carry(&mut tap, &mut card, &mut frame);
                }
                if came[1] {
                    carry(&mut card, &mut tap, &mut frame);
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

fn carry(from: &mut File, to: &mut File, frame: &mut [u8]) {
    match from.read(frame) {
        // A tap that is down refuses frames; a VMM drops them too.
        Ok(length) => drop(to.write(&frame[..length])),
        Err(_) => std::thread::sleep(Duration::from_millis(1)),
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    fn start(space: &str, at: (Ipv4Addr, u16), name: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (tcp, udp) = inside(space, || {
            (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap())
        });
        let (told, me) = (Arc::clone(&stop), name.to_owned());
        let tcp = std::thread::spawn(move || {
            tcp.set_nonblocking(true).unwrap();
            while !told.load(Ordering::Relaxed) {
                match tcp.accept() {
                    Ok((stream, peer)) => {
                        let me = me.clone();
                        std::thread::spawn(move || converse(stream, &me, peer.ip()));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        let (told, me) = (Arc::clone(&stop), name.to_owned());
        let udp = std::thread::spawn(move || {
            udp.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            let mut bytes = [0; 2000];
            while !told.load(Ordering::Relaxed) {
                if let Ok((_, peer)) = udp.recv_from(&mut bytes) {
                    let _ = udp.send_to(format!("{me} sees {}", peer.ip()).as_bytes(), peer);
                }
            }
        });
        Self {
            stop,
            threads: vec![tcp, udp],
        }
    }
}

fn converse(mut stream: TcpStream, me: &str, peer: IpAddr) {
    stream.set_nonblocking(false).unwrap();
    let mut byte = [0; 4096];
    while let Ok(length) = stream.read(&mut byte) {
        if length == 0
            || stream
                .write_all(format!("{me} sees {peer}\n").as_bytes())
                .is_err()
        {
            break;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Asks a server over TCP from a namespace; the answer, or `None` if nothing comes within `patience`.
pub(crate) fn tcp(space: &str, to: Ipv4Addr, port: u16, patience: Duration) -> Option<String> {
    inside(space, || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((to, port)), patience).ok()?;
        stream.set_read_timeout(Some(patience)).unwrap();
        say(&mut stream)
    })
}

/// Says one thing on an open connection and hears the answer.
pub(crate) fn say(stream: &mut TcpStream) -> Option<String> {
    stream.write_all(b"?").ok()?;
    let mut answer = [0; 200];
    let length = stream.read(&mut answer).ok().filter(|length| *length > 0)?;
    Some(String::from_utf8_lossy(&answer[..length]).trim().to_owned())
}

/// Asks over UDP.
pub(crate) fn udp(
    space: &str,
    from: Option<Ipv4Addr>,
    to: Ipv4Addr,
    port: u16,
    patience: Duration,
) -> Option<String> {
    inside(space, || {
        let socket = UdpSocket::bind((from.unwrap_or(Ipv4Addr::UNSPECIFIED), 0)).unwrap();
        socket.set_read_timeout(Some(patience)).unwrap();
        socket.send_to(b"?", (to, port)).ok()?;
        let mut answer = [0; 200];
        let (length, _) = socket.recv_from(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer[..length]).into_owned())
    })
}

/// Whether a ping is answered.
pub(crate) fn ping(space: &str, to: Ipv4Addr) -> bool {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
    };
    inside(space, || {
        let fd = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::empty(),
            SockProtocol::Icmp,
        )
        .unwrap();
        let fd = UdpSocket::from(fd); // for its timeouts
        fd.set_read_timeout(Some(QUIET)).unwrap();
        // Echo request, code 0, checksum, identifier 0x1234, sequence 1.
        let request = [8, 0, !0x1a, !0x35, 0x12, 0x34, 0, 1];
        let address = SockaddrIn::from(std::net::SocketAddrV4::new(to, 0));
        if sendto(fd.as_raw_fd(), &request, &address, MsgFlags::empty()).is_err() {
            return false;
        }
        let deadline = Instant::now() + QUIET;
        let mut bytes = [0; 200];
        while Instant::now() < deadline {
            match fd.recv_from(&mut bytes) {
                Ok((length, peer)) if length >= 28 && bytes[20] == 0 && peer.ip() == IpAddr::V4(to) => {
                    return true;
                }
                Ok(_) => {}
                Err(_) => return false,
            }
        }
        false
    })
}

/// A desired state of VMs only.
pub(crate) fn vms(vms: &[(Slot, &str)]) -> Desired {
    let vm = |&(slot, tenant): &(Slot, &str)| {
        (
            slot,
            VmNet {
                slot,
                tenant: tenant.parse().unwrap(),
                bandwidth_mbps: None,
            },
        )
    };
    Desired {
        vms: vms.iter().map(vm).collect(),
        ..Desired::default()
    }
}

pub(crate) fn lease(transport: Transport, public_port: u16, slot: Slot, vm_port: u16) -> Lease {
    Lease {
        transport,
        public_port,
        slot,
        vm_port,
    }
}

/// Waits until something holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
