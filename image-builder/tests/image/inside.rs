//! The main job inside the image: a contract that is paid outside becomes a VM on KVM inside, under systemd and with
//! everything as it is shipped.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use image_builder::appliance::seed::Seed;
use sha2::{Digest, Sha256};

use crate::firstboot::Stick;
use crate::machine::{BOOT_TIME_MAX, Boot, Host, alone, image, named};
use crate::operator::operator;
use crate::provider::{OUTSIDE, Provider};

/// A VM that a small, emulated machine has room for.
const REQUEST: [&str; 10] = [
    "--vcpus",
    "1",
    "--memory-mib",
    "512",
    "--storage-gib",
    "1",
    "--period",
    "7200",
    "--kind",
    "plain",
];

/// A free port of this machine's loopback.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Serves a folder's files by HTTP on loopback, as long as the test runs, and returns the port.
fn serve(folder: PathBuf) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let folder = folder.clone();
            // Who breaks off is served the next time.
            std::thread::spawn(move || answer(stream, &folder).ok());
        }
    });
    port
}

fn answer(mut stream: TcpStream, folder: &Path) -> std::io::Result<()> {
    let head: Vec<String> = BufReader::new(&stream)
        .lines()
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .collect();
    let path = head.first().and_then(|line| line.split(' ').nth(1));
    let name = path.and_then(|path| Path::new(path).file_name());
    match name.map(|name| fs::read(folder.join(name))) {
        Some(Ok(content)) => {
            let length = content.len();
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            )?;
            stream.write_all(&content)
        }
        _ => write!(
            stream,
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ),
    }
}

/// curl's pin of the VM's TLS key, once the developer has verified the evidence alone, with the line that `decent` gives.
fn attested_pin(provider: &Provider, contract: &str) -> String {
    let (evidence, pin) = (provider.at("evidence"), provider.at("pin"));
    let page = provider
        .developer(&["evidence", contract, "--out", &evidence.display().to_string()])
        .unwrap();
    let line = page
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("attest "));
    let line = line.unwrap_or_else(|| panic!("no line to paste in\n{page}"));
    let verified = Command::new("sh")
        .args(["-c", &format!("\"$0\" {line} --out-tls-pin \"$1\"")])
        .args([named("DC_ATTEST"), pin.clone()])
        .output()
        .unwrap();
    assert!(verified.status.success(), "{line}: {verified:?}");
    fs::read_to_string(pin).unwrap().trim().to_owned()
}

/// What a developer rents, and who serves it.
struct Shop {
    provider: Provider,
    /// The image's manifest, as the host reaches it.
    url: String,
    /// Its SHA-256.
    digest: String,
    /// The least proof with which the developer is content.
    grade: &'static str,
}

impl Shop {
    fn show(&self, contract: &str) -> serde_json::Value {
        self.provider.until(&["contract", "show", contract], |_| true)
    }

    /// Rents as soon as there is an offer, waits until the ledger has confirmed the VM, and returns the contract.
    fn rent(&self) -> String {
        let ask = |verb: &'static str| [&[verb], &REQUEST[..], &["--min-grade", self.grade]].concat();
        self.provider.until(&ask("match"), |offers| {
            offers.as_array().is_some_and(|offers| !offers.is_empty())
        });
        let rest = [
            "--image-url",
            &self.url,
            "--image-digest",
            &self.digest,
            "--max-total",
            "1",
        ];
        let rented = [&["--json"], &ask("rent")[..], &rest].concat();
        let rented = self.provider.developer(&rented).unwrap();
        let rented: serde_json::Value = serde_json::from_str(&rented).unwrap();
        let contract = rented["contract"].as_str().unwrap().to_owned();
        let active = self.provider.until(&["contract", "show", &contract], |answer| {
            assert!(answer["state"].get("ended").is_none(), "{answer}");
            answer["state"] == "active"
        });
        assert_eq!(active["grade"], self.grade, "{active}");
        contract
    }

    /// Asks for the VM's page by its name, through `port` of this machine, until the VM answers with the attested key.
    fn reach(&self, boot: &Boot, contract: &str, port: u16) {
        let pin = attested_pin(&self.provider, contract);
        let names = self.show(contract)["endpoint"]["names"].clone();
        let name = names.as_array().unwrap().last().unwrap().as_str().unwrap();
        let start = Instant::now();
        let page = loop {
            let output = Command::new("curl")
                .args([
                    "-sS",
                    "-k",
                    "--max-time",
                    "30",
                    "--pinnedpubkey",
                    &pin,
                    "--resolve",
                ])
                .arg(format!("{name}:{port}:127.0.0.1"))
                .arg(format!("https://{name}:{port}/"))
                .output()
                .unwrap();
            if output.status.success() {
                break String::from_utf8(output.stdout).unwrap();
            }
            assert!(start.elapsed() < BOOT_TIME_MAX, "{output:?}\n{}", boot.report());
            std::thread::sleep(Duration::from_secs(2));
        };
        assert!(page.contains(&contract[..8]), "the page isn't the VM's:\n{page}");
    }

    /// Waits until the contract has ended with all its money paid out or back, and returns where it went.
    fn settled(&self, contract: &str) -> serde_json::Value {
        let ended = self.provider.until(&["contract", "show", contract], |answer| {
            answer["state"].get("ended").is_some() && answer["escrow"]["held"] == 0
        });
        let part = |part: &str| ended["escrow"][part].as_u64().unwrap();
        assert_eq!(part("released") + part("refunded"), part("funded"), "{ended}");
        assert!(part("refunded") > 0, "more than an hour was left: {ended}");
        self.provider.decent(&["invariants"]).unwrap();
        ended["escrow"].clone()
    }
}

/// A machine whose disk has a provider's settings, and the port of this machine that leads to its HTTPS; `more` goes to the end
/// of the settings, which is `[vmm]`.
fn machine(grade: &'static str, more: &str) -> (Host, Shop, u16) {
    let (dir, image) = image();
    let tenant = named("DC_TENANT_IMAGE");
    let digest = hex::encode(Sha256::digest(fs::read(tenant.join("manifest.json")).unwrap()));
    let url = format!("http://{OUTSIDE}:{}/manifest.json", serve(tenant));
    let mut host = Host::new(&dir, &image);
    host.machine.memory_mib = 4096;
    let https = free_port();
    host.machine.forward = vec![(https, 443)];

    let provider = Provider::with_ledger();
    // QEMU forwards ports to the address that its DHCP server would give.
    let settings = provider.settings("Inside", "").replace("10.0.2.77", "10.0.2.15");
    // Prices of which a second is worth something.
    let given = std::env::var_os("HOSTD_CLOUD_HYPERVISOR").is_some_and(|path| !path.is_empty());
    let vmm = if given { "cloud-hypervisor" } else { "libvirt" };
    let settings = settings.replace("_hour = 1\n", "_hour = 10_000_000\n")
        + &format!(
            "[images]\nallow_schemes = [\"http\"]\nallow_private_addresses = true\n\
             [deadlines]\nlaunch_s = 900\nboot_s = 1800\n[vmm]\nprefer = [\"{vmm}\"]\n{more}"
        );
    fs::write(provider.at("seed"), settings).unwrap();
    let seed = Seed::read(&provider.at("seed")).unwrap();
    seed.write(&host.machine.disk()).unwrap();
    provider.developer(&["developer", "register"]).unwrap();
    let shop = Shop {
        provider,
        url,
        digest,
        grade,
    };
    (host, shop, https)
}

/// The machine's first boot, in which it gets its delegation on a stick, and who it is.
fn first_boot(host: &mut Host, shop: &Shop, extra: &[String]) -> (Boot, String) {
    let stick = Stick::new(&shop.provider);
    let mut boot = host.boot_with(&[], &[extra, &stick.arguments()].concat());
    stick.put_in(&shop.provider.delegation(&mut boot));
    let principal = boot.principal();
    (boot, principal)
}

/// Waits until hostd has given back all that its contracts took.
fn all_free(boot: &mut Boot) {
    let start = Instant::now();
    loop {
        let status: serde_json::Value = serde_json::from_str(&boot.line("status ")).unwrap();
        let (contracts, capacity) = (&status["contracts"], &status["capacity"]);
        if contracts["running"] == 0 && contracts["removing"] == 0 && capacity["vcpus"]["used"] == 0 {
            break;
        }
        assert!(start.elapsed() < BOOT_TIME_MAX, "{status}");
        std::thread::sleep(Duration::from_secs(5));
    }
    let report = boot.report();
    assert!(!report.contains("FAILED "), "{report}");
}

/// Goal: what a developer pays for outside runs inside, proved by the machine's TPM; a power cut costs nobody money, and the
/// machine goes on by itself. Method: a blank machine with the provider's settings; ledger, image and developer outside. A VM
/// is rented and reached by its name through the machine's port 443 with the attested key; the current fails; the contract
/// ends with its money refunded, and another one is rented, reached and cancelled.
#[test]
fn a_contract_paid_outside_is_a_vm_on_kvm_inside_also_after_a_power_cut() {
    let _alone = alone();
    let (mut host, shop, https) = machine("host-verified", "");
    let (boot, principal) = first_boot(&mut host, &shop, &[]);

    // The ledger has verified the machine's own evidence.
    shop.provider.until(&["hosts"], |hosts| {
        let hosts = hosts.as_array().unwrap();
        let ours = hosts.iter().find(|host| host["host"] == *principal);
        ours.is_some_and(|host| !host["verified"].is_null())
    });
    let first = shop.rent();
    shop.reach(&boot, &first, https);

    // The current fails.
    drop(boot);
    let mut boot = host.boot();
    shop.settled(&first);
    let status: serde_json::Value = serde_json::from_str(&boot.line("status ")).unwrap();
    assert_eq!(status["ledger"]["host"], principal.as_str(), "{status}");
    let second = shop.rent();
    shop.reach(&boot, &second, https);
    // Whole seconds are paid for, and a fast machine is here within one.
    let since = shop.show(&second)["active_since"].as_u64().unwrap();
    let paid = |info: &serde_json::Value| info["now"].as_u64() > Some(since + 2_000_000_000);
    shop.provider.until(&["info"], paid);
    shop.provider.developer(&["contract", "cancel", &second]).unwrap();
    let escrow = shop.settled(&second);
    for whose in ["to_provider", "to_dao"] {
        assert!(escrow[whose].as_u64() > Some(0), "{whose}: {escrow}");
    }
    all_free(&mut boot);
}

/// What the machine's operator does: a crash of hostd, in the worst way.
const CRASH: &str = r#"#!/bin/sh
exec >/dev/ttyS1 2>&1
pool() { grep -E '^HugePages_(Total|Free)' /proc/meminfo | tr -d ' ' | tr '\n' ' '; }
have() { hostd status --json 2>/dev/null | tr -d ' \n' | grep -q "$1"; }
until have '"running":1[,}]'; do sleep 3; done
echo "OPERATOR before: $(pool)"
old=$(systemctl show -P MainPID hostd)
vmm=$(pgrep -f 'qemu-system|cloud-hypervisor')
systemctl kill --signal=KILL --kill-whom=main hostd
until new=$(systemctl show -P MainPID hostd) && [ "$new" != 0 ] && [ "$new" != "$old" ]; do sleep 1; done
until hostd status >/dev/null 2>&1; do sleep 1; done
[ "$(pgrep -f 'qemu-system|cloud-hypervisor')" = "$vmm" ] && echo "OPERATOR sees the same VMM, $vmm"
for pid in $vmm; do
  echo "OPERATOR $(cat /proc/$pid/cgroup)"
done
until have '"running":0[,}]' && have '"removing":0[,}]'; do sleep 3; done
echo "OPERATOR after: $(pool)"
"#;

/// Goal: under systemd, a crash of hostd costs no VM, and what VMs have of the machine is theirs: hugepages, a scope. Method:
/// hostd is killed beside a VM that runs; the VM is the same process afterwards, answers, and ends when its developer says.
#[test]
fn a_vm_on_hugepages_outlives_hostd() {
    let _alone = alone();
    let (mut host, shop, https) = machine("host-signed", "hugepages = true\nreserve_hugepages_mib = 1024\n");
    let (mut boot, _) = first_boot(&mut host, &shop, &operator(CRASH));
    let contract = shop.rent();
    let vmm = boot.line("OPERATOR sees the same VMM, ");
    let pool = boot.line("OPERATOR before: ");
    assert_eq!(pool.trim(), "HugePages_Total:512 HugePages_Free:256");
    let pids: Vec<u32> = vmm.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 1, "{vmm}");
    shop.reach(&boot, &contract, https);
    assert_eq!(shop.show(&contract)["state"], "active");
    shop.provider
        .developer(&["contract", "cancel", &contract])
        .unwrap();
    shop.settled(&contract);
    let pool = boot.line("OPERATOR after: ");
    assert_eq!(pool.trim(), "HugePages_Total:512 HugePages_Free:512");
    all_free(&mut boot);
    let report = boot.report();
    let place = report.lines().find(|line| line.starts_with("OPERATOR 0::"));
    let place = place.unwrap_or_else(|| panic!("no cgroup of the VM in\n{report}"));
    assert!(!place.contains("hostd.service"), "{place}");
}
