//! The built image in a real machine: QEMU without hardware virtualization, as the demo runs it, on loopback only.
//!
//! Needs an image directory: `DC_TENANT_IMAGE`, or `build/tenant` where `make tenant-image` puts it.
#![cfg(feature = "builder")]
#![expect(clippy::unwrap_used, reason = "all of it is a test")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use attestation::agent::simulator::{self, SIMULATOR_PORT};
use attestation::agent::table::Table;
use attestation::agent::{Deframer, frame};
use attestation::sim::{Launch, Platform};
use image_builder::manifest::Manifest;

/// Generous: a starved two-core machine takes 20 s, an idle one 5 s.
const BOOT_TIME_MAX: Duration = Duration::from_secs(120);
const CONTRACT: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn image() -> (PathBuf, Manifest) {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let dir = root.join(std::env::var_os("DC_TENANT_IMAGE").unwrap_or("build/tenant".into()));
    let manifest = fs::read(dir.join("manifest.json")).unwrap_or_else(|error| {
        panic!(
            "no tenant image at {}: {error}; run `make tenant-image`, or set DC_TENANT_IMAGE",
            dir.display()
        )
    });
    let manifest: Manifest = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest.differences(&dir), Vec::<String>::new());
    (dir, manifest)
}

fn tool(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; `make setup` installs it"));
    // A program that doesn't read its input may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// A machine of its own: disks, sockets and keys in one directory, gone with it.
struct Machine {
    dir: tempfile::TempDir,
    ssh_port: u16,
    tls_port: u16,
    qemu: Option<Child>,
    /// `HOST_DATA` of a simulated SNP machine; `None`: a plain one.
    launched: Option<[u8; 32]>,
}

const SALT: [u8; 32] = [7; 32];

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut qemu) = self.qemu.take() {
            let _ = qemu.kill();
            let _ = qemu.wait();
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

impl Machine {
    fn new(user_data: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = Self {
            dir,
            ssh_port: free_port(),
            tls_port: free_port(),
            qemu: None,
            launched: None,
        };
        tool(
            "ssh-keygen",
            &["-q", "-t", "ed25519", "-N", "", "-f", &machine.path("key")],
            b"",
        );
        let key = fs::read_to_string(machine.path("key.pub")).unwrap();
        let meta_data = format!(
            "instance-id: \"{CONTRACT}\"\nlocal-hostname: \"vm-00112233\"\npublic-keys:\n  - \"{}\"\n\
             decent-cloud:\n  salt: \"{}\"\n  tls_names:\n    - \"web.provider.test\"\n",
            key.trim(),
            "07".repeat(32)
        );
        let network = "version: 2\nethernets:\n  eth0:\n    match:\n      macaddress: \"02:dc:00:00:00:05\"\n    \
             addresses:\n      - \"10.0.2.15/32\"\n    routes:\n      - to: \"0.0.0.0/0\"\n        via: \"10.0.2.2\"\n        \
             on-link: true\n";
        fs::File::create(machine.path("seed.img"))
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
        tool("mkfs.vfat", &["-n", "CIDATA", &machine.path("seed.img")], b"");
        for (name, content) in [
            ("meta-data", meta_data.as_str()),
            ("network-config", network),
            ("user-data", user_data),
        ] {
            fs::write(machine.path(name), content).unwrap();
            tool(
                "mcopy",
                &["-i", &machine.path("seed.img"), &machine.path(name), "::"],
                b"",
            );
        }
        fs::File::create(machine.path("data.img"))
            .unwrap()
            .set_len(256 << 20)
            .unwrap();
        machine
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("console")).unwrap_or_default()).into_owned()
    }

    /// The contract that the seed is for, if its user data is this.
    fn contract(&self, user_data: &str) -> [u8; 32] {
        let key = fs::read_to_string(self.path("key.pub")).unwrap();
        let settings = attestation::settings_digest([key.as_str()].into_iter(), user_data.as_bytes());
        attestation::contract_id(&SALT, &settings)
    }

    /// A simulated chip that says it launched this VM for `host_data`, behind a socket.
    fn start_chip(&self, host_data: [u8; 32]) {
        let listener = UnixListener::bind(self.path("chip")).unwrap();
        std::thread::spawn(move || {
            let platform = Platform::create().unwrap();
            let launch = Launch {
                measurement: [1; 48],
                host_data,
                policy: 0x3_0000,
            };
            let (mut guest, _) = listener.accept().unwrap();
            let (mut frames, mut buffer) = (Deframer::new(), [0; 4096]);
            while let Ok(len @ 1..) = guest.read(&mut buffer) {
                frames.push(&buffer[..len]);
                while let Some(next) = frames.next_frame() {
                    let question = simulator::read_question(&next.unwrap()).unwrap();
                    let report = platform.report(&launch, &question).unwrap();
                    let table = Table::of_chain(&platform.certificates());
                    guest
                        .write_all(&frame(&simulator::answer(&report, &table)))
                        .unwrap();
                }
            }
        });
    }

    /// Starts the machine and waits until the agent answers.
    fn boot(&mut self) {
        self.start();
        let start = Instant::now();
        while self.ask(&[0x82, 1, 0]).is_none() {
            let ended = self.qemu.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "QEMU ended with {ended:?}:\n{}", self.console());
            assert!(
                start.elapsed() < BOOT_TIME_MAX,
                "the agent never answered:\n{}",
                self.console()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        println!("agent answered after {:.1} s", start.elapsed().as_secs_f64());
    }

    /// Starts the machine, which must power off by itself, and never let its agent answer.
    fn boot_refused(&mut self) {
        self.start();
        let mut qemu = self.qemu.take().unwrap();
        let start = Instant::now();
        while qemu.try_wait().unwrap().is_none() {
            let answered = self.ask(&[0x82, 1, 0]).is_some();
            if answered || start.elapsed() > BOOT_TIME_MAX {
                let _ = (qemu.kill(), qemu.wait());
                panic!("answered: {answered}, and not off:\n{}", self.console());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        println!("refused after {:.1} s", start.elapsed().as_secs_f64());
    }

    fn start(&mut self) {
        let (image, manifest) = image();
        let file = |name: &str| image.join(name).to_str().unwrap().to_owned();
        let drive = |id: &str, image: &str, mode: &str| {
            format!("if=none,id={id},format=raw,file={}{mode}", self.path(image))
        };
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-M",
            "q35",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            "512",
        ])
        .args(["-nodefaults", "-no-reboot", "-display", "none"])
        .args([
            "-kernel",
            &file("vmlinuz"),
            "-initrd",
            &file("initrd"),
            "-append",
            &manifest.cmdline,
        ])
        .args(["-serial", &format!("file:{}", self.path("console"))])
        .args(["-qmp", &format!("unix:{},server=on,wait=off", self.path("qmp"))])
        .args(["-drive", &drive("data", "data.img", "")])
        .args(["-device", "virtio-blk-pci,drive=data,serial=data"])
        .args(["-drive", &drive("seed", "seed.img", ",readonly=on")])
        .args(["-device", "virtio-blk-pci,drive=seed,serial=cidata"])
        .args([
            "-netdev",
            &format!(
                "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{}-:22,hostfwd=tcp:127.0.0.1:{}-:443",
                self.ssh_port, self.tls_port
            ),
        ])
        .args([
            "-device",
            "virtio-net-pci,netdev=net,mac=02:dc:00:00:00:05",
            "-device",
            "virtio-rng-pci",
        ])
        .args(["-device", "virtio-serial-pci"])
        .args([
            "-chardev",
            &format!("socket,id=agent,path={},server=on,wait=off", self.path("agent")),
        ])
        .args([
            "-device",
            "virtserialport,chardev=agent,name=org.decentcloud.agent.0",
        ]);
        if let Some(host_data) = self.launched {
            self.start_chip(host_data);
            qemu.args(["-chardev", &format!("socket,id=chip,path={}", self.path("chip"))]);
            qemu.args([
                "-device",
                &format!("virtserialport,chardev=chip,name={SIMULATOR_PORT}"),
            ]);
        }
        let qemu = qemu
            .spawn()
            .unwrap_or_else(|error| panic!("{error}; apt-get install qemu-system-x86"));
        self.qemu = Some(qemu);
    }

    /// Sends one request (CBOR) to the agent in a fresh connection; `None` when nothing whole comes back in time.
    fn ask(&self, request: &[u8]) -> Option<Vec<u8>> {
        let mut socket = UnixStream::connect(self.path("agent")).ok()?;
        let patience = if self.qemu.is_some() { 5 } else { 1 };
        socket
            .set_read_timeout(Some(Duration::from_secs(patience)))
            .unwrap();
        let length = u32::try_from(request.len()).unwrap().to_be_bytes();
        socket.write_all(&[b"DCA1", &length[..], request].concat()).ok()?;
        let mut head = [0; 8];
        socket.read_exact(&mut head).ok()?;
        assert_eq!(&head[..4], b"DCA1");
        let mut answer = vec![0; u32::from_be_bytes(head[4..].try_into().unwrap()) as usize];
        socket.read_exact(&mut answer).ok()?;
        Some(answer)
    }

    /// The evidence for some nonce, as CBOR.
    fn evidence(&self) -> Vec<u8> {
        let request = [
            &[0x85, 2, 1, 0x44, 1, 2, 3, 4, 0x58, 32][..],
            &[7; 32],
            &[0x58, 32],
            &[9; 32],
        ]
        .concat();
        self.ask(&request).expect("the agent gives evidence")
    }

    fn ssh(&self, host_key: &str, command: &str) -> String {
        fs::write(
            self.path("known_hosts"),
            format!("[127.0.0.1]:{} {host_key}\n", self.ssh_port),
        )
        .unwrap();
        let known = format!("UserKnownHostsFile={}", self.path("known_hosts"));
        let port = self.ssh_port.to_string();
        let options = [
            "-o",
            &known,
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            "BatchMode=yes",
            "-o",
            "LogLevel=ERROR",
        ];
        let place = ["-i", &self.path("key"), "-p", &port, "root@127.0.0.1", command];
        String::from_utf8(tool("ssh", &[&options[..], &place].concat(), b"")).unwrap()
    }

    fn press_power_button(&mut self) {
        let mut qmp = UnixStream::connect(self.path("qmp")).unwrap();
        let mut lines = BufReader::new(qmp.try_clone().unwrap()).lines();
        lines.next().unwrap().unwrap();
        for command in ["qmp_capabilities", "system_powerdown"] {
            writeln!(qmp, "{{\"execute\": \"{command}\"}}").unwrap();
            lines.next().unwrap().unwrap();
        }
        let mut qemu = self.qemu.take().unwrap();
        let start = Instant::now();
        while qemu.try_wait().unwrap().is_none() {
            if start.elapsed() > Duration::from_secs(60) {
                qemu.kill().unwrap();
                panic!("still running 60 s after the power button:\n{}", self.console());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        println!(
            "off {:.1} s after the power button",
            start.elapsed().as_secs_f64()
        );
    }
}

/// The OpenSSH line inside the evidence: `ssh-ed25519 ` and 68 characters of base64.
fn ssh_host_key(evidence: &[u8]) -> String {
    let at = evidence
        .windows(12)
        .position(|w| w == b"ssh-ed25519 ")
        .expect("an SSH host key in the evidence");
    String::from_utf8(evidence[at..at + 80].to_vec()).unwrap()
}

#[test]
fn a_tenant_reaches_the_machine_that_the_evidence_names_and_finds_it_again_after_a_restart() {
    let mut machine =
        Machine::new("#cloud-config\nwrite_files:\n- path: /etc/from-seed\n  content: yes\nusers: []\n");
    machine.boot();
    let evidence = machine.evidence();
    let host_key = ssh_host_key(&evidence);

    let seen = machine.ssh(
        &host_key,
        "hostname; cat /etc/from-seed; echo kept > /root/kept; cat /run/dc/warnings",
    );
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[0], "vm-00112233", "{seen}");
    assert!(seen.contains("yes") && seen.contains("ignored: users"), "{seen}");

    let address = format!("127.0.0.1:{}", machine.tls_port);
    let session = tool(
        "openssl",
        &[
            "s_client",
            "-connect",
            &address,
            "-servername",
            "web.provider.test",
        ],
        b"",
    );
    let names = tool("openssl", &["x509", "-noout", "-ext", "subjectAltName"], &session);
    assert!(String::from_utf8_lossy(&names).contains("DNS:web.provider.test"));
    let public = tool("openssl", &["x509", "-noout", "-pubkey"], &session);
    let spki = tool("openssl", &["pkey", "-pubin", "-outform", "DER"], &public);
    assert!(
        evidence.windows(spki.len()).any(|w| w == spki),
        "the TLS key isn't the attested one"
    );

    machine.press_power_button();
    assert!(
        machine.console().contains("disks released"),
        "{}",
        machine.console()
    );
    machine.boot();
    assert_eq!(ssh_host_key(&machine.evidence()), host_key);
    assert_eq!(machine.ssh(&host_key, "cat /root/kept"), "kept\n");
}

#[test]
fn a_disk_that_holds_something_unknown_is_left_alone() {
    let mut machine = Machine::new("");
    let mut disk = vec![0u8; 1 << 20];
    disk[4096..4104].copy_from_slice(b"precious");
    fs::write(machine.path("data.img"), &disk).unwrap();
    machine.boot();
    assert!(
        machine.console().contains("WARNING: /dev/vda holds data"),
        "{}",
        machine.console()
    );
    machine.press_power_button();
    assert!(
        fs::read(machine.path("data.img")).unwrap() == disk,
        "the disk was changed"
    );
}

/// The host writes the seed disk. A VM whose launch is bound to a contract takes only that contract's.
#[test]
fn a_confidential_machine_powers_off_when_its_host_swapped_the_seed_and_comes_up_when_not() {
    const USER_DATA: &str = "#!/bin/sh\necho user data ran >/dev/console\n";
    let mut honest = Machine::new(USER_DATA);
    honest.launched = Some(honest.contract(USER_DATA));
    honest.boot();
    let evidence = honest.evidence();
    let contract = honest.contract(USER_DATA);
    let holds = |bytes: &[u8]| evidence.windows(bytes.len()).any(|w| w == bytes);
    assert!(holds(&contract), "the report is bound to the contract");
    drop(honest);

    // The contract of another key (each machine makes its own): what a host does who writes its key into the seed.
    let mut swapped = Machine::new(USER_DATA);
    swapped.launched = Some(contract);
    swapped.boot_refused();
    let console = swapped.console();
    assert!(
        console.contains("REFUSED: the seed is NOT the contract's")
            && console.contains(&hex::encode(contract)),
        "{console}"
    );
    for service in ["network", "keys", "ready", "user data"] {
        assert!(
            !console.contains(&format!("decent-cloud: {service}")),
            "{service} came up:\n{console}"
        );
    }
    assert!(!console.contains("user data ran"), "{console}");
}
