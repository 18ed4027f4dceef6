//! From a flashed disk to a host, without anybody logging in: settings from the provider, the host's key from the TPM, and
//! his word for it by a stick or by the keyboard.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use image_builder::appliance::image::Image;
use image_builder::appliance::seed::{self, Seed};

use crate::machine::{Host, alone, image, named};
use crate::provider::Provider;

/// Goal: nobody but the provider, far away, makes a flashed disk a host of the ledger. Method: one boot with settings in the
/// seed partition; `decent` signs for the key that the console shows; a stick with that is put in, and the ledger has the
/// host, `host-verified`.
#[test]
fn settings_on_the_disk_and_a_delegation_on_a_stick_make_a_host_of_the_ledger() {
    let _alone = alone();
    let (dir, image) = image();
    let ready = format!("READY {} {}", image.name, image.image_version);
    let mut host = Host::new(&dir, &image);
    let provider = Provider::with_ledger();
    fs::write(provider.at("seed"), provider.settings("First Boot", "")).unwrap();
    let settings = Seed::read(&provider.at("seed")).unwrap();
    settings.write(&host.machine.disk()).unwrap();
    assert!(holds(&seed_partition(&host.machine.disk()), b"First Boot"));

    let stick = Stick::new(&provider);
    let mut boot = host.boot_with(&[], &stick.arguments());
    boot.until(&[&ready]);
    let text = boot.until(&["delegation   missing"]);
    for line in ["settings     here", "10.0.2.77/24"] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    assert!(!text.contains("FAILED ") && !text.contains("FAULT "), "{text}");
    let wiped = seed_partition(&host.machine.disk());
    assert!(!holds(&wiped, b"First Boot"), "the seed partition wasn't wiped");

    stick.put_in(&provider.delegation(&mut boot));
    let principal = boot.principal();
    let ours = |list: &serde_json::Value| {
        let list = list.as_array().cloned().unwrap_or_default();
        list.into_iter().find(|entry| entry["host"] == *principal)
    };
    // Its TPM's quote says that it runs this image, and the ledger has verified it.
    let runs = format!(
        "{} {} ({})",
        image.name, image.image_version, image.profiles[0].name
    );
    provider.until(&["hosts"], |list| {
        ours(list).is_some_and(|host| host["verified"]["image"] == *runs)
    });
    provider.until(&["offerings"], |list| ours(list).is_some());
    let status: serde_json::Value = serde_json::from_str(&boot.line("status ")).unwrap();
    assert_eq!(status["name"], "First Boot", "{status}");
    assert_eq!(
        status["ledger"]["host"],
        principal.as_str(),
        "the TPM's key is the host's: {status}"
    );
    let text = boot.text();
    assert!(!text.contains("FAILED ") && !text.contains("FAULT "), "{text}");
}

/// Settings from the firmware; the delegation is typed. The form shows what is missing and nothing else.
#[test]
fn settings_from_the_firmware_and_a_typed_delegation_start_hostd_at_once() {
    let _alone = alone();
    let (dir, image) = image();
    let mut host = Host::new(&dir, &image);
    let provider = Provider::without_ledger();
    let settings = STANDARD.encode(provider.settings("By Hand", ""));
    let value = format!("type=11,value=io.systemd.credential.binary:provider-seed={settings}");
    let mut boot = host.boot_with(&[], &["-smbios".to_owned(), value]);
    let typed = STANDARD.encode(provider.delegation(&mut boot));
    boot.until(&["when the recovery key is written down"]);
    boot.type_keys("\r");
    boot.until(&["to type this host's settings"]);
    boot.type_keys("\r");
    boot.until(&["This host waits for its provider's delegation"]);
    for part in typed.as_bytes().chunks(128) {
        boot.type_keys(std::str::from_utf8(part).unwrap());
    }
    boot.type_keys("\r\r");
    let status: serde_json::Value = serde_json::from_str(&boot.line("status ")).unwrap();
    assert_eq!(status["name"], "By Hand", "{status}");
    assert_eq!(status["ledger"]["host"], boot.principal(), "{status}");
    let text = boot.text();
    assert!(!text.contains("FAILED ") && !text.contains("FAULT "), "{text}");
}

/// An HTTPS server on loopback that gives out a folder's files. It ends with this value.
struct Server(Child);

impl Server {
    /// `identity` holds `cert.pem` and `key.pem`. The port stands in the image.
    fn start(identity: &Path, folder: &Path) -> Self {
        let child = Command::new("openssl")
            .args(["s_server", "-quiet", "-WWW", "-accept", "127.0.0.1:18443"])
            .arg("-cert")
            .arg(identity.join("cert.pem"))
            .arg("-key")
            .arg(identity.join("key.pem"))
            .current_dir(folder)
            .stdin(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended by itself
        let _ = self.0.wait();
    }
}

/// Goal: a machine that nobody brought settings asks the address that its image pins, takes what the image says and nothing
/// else, and asks again. Method: first a server that the pinned authority doesn't know, then the right one with other
/// content, then with the pinned file.
#[test]
fn settings_come_from_the_pinned_url_and_nothing_else_does() {
    let _alone = alone();
    let dir = named("DC_IMAGE_NEXT");
    let image = Image::read(&dir).unwrap();
    let pinned = named("DC_SEED");
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    let served = at("provider-seed.toml");
    fs::copy(pinned.join("provider-seed.toml"), &served).unwrap();
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ])
        .args([
            "-nodes",
            "-subj",
            "/CN=somebody",
            "-addext",
            "subjectAltName=IP:10.0.2.2",
        ])
        .args(["-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(scratch.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");

    let server = Server::start(scratch.path(), scratch.path());
    let mut host = Host::new(&dir, &image);
    let mut boot = host.boot();
    boot.until(&["invalid peer certificate"]);
    drop(server);
    let content = fs::read_to_string(&served).unwrap();
    fs::write(&served, content.replace("By URL", "Other")).unwrap();
    let _server = Server::start(&pinned, scratch.path());
    boot.until(&["nothing of it was used"]);
    fs::write(&served, content).unwrap();
    boot.until(&["settings     here"]);
    assert_eq!(boot.line("  host         "), "By URL");
    boot.until(&["10.0.2.77/24"]);
}

/// What the disk's seed partition holds.
fn seed_partition(disk: &Path) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    // EFI system partition, hash tree and root of the default layout lie before it.
    let start = (1 + 1024 + 64 + 1024) << 20;
    let mut content = vec![0; (seed::MIB << 20) as usize];
    fs::File::open(disk)
        .unwrap()
        .read_exact_at(&mut content, start)
        .unwrap();
    content
}

fn holds(content: &[u8], text: &[u8]) -> bool {
    content.windows(text.len()).any(|part| part == text)
}

/// A stick that is put into a running machine.
pub(crate) struct Stick {
    file: PathBuf,
    monitor: PathBuf,
}

impl Stick {
    /// Of this provider, not put in yet.
    pub(crate) fn new(provider: &Provider) -> Self {
        let (file, monitor) = (provider.at("stick"), provider.at("monitor"));
        fat(&file, &[]);
        Self { file, monitor }
    }

    /// What QEMU must know of it.
    pub(crate) fn arguments(&self) -> Vec<String> {
        [
            "-device",
            "qemu-xhci",
            "-drive",
            &format!("if=none,id=pocket,format=raw,file={}", self.file.display()),
            "-monitor",
            &format!("unix:{},server=on,wait=off", self.monitor.display()),
        ]
        .map(str::to_owned)
        .into()
    }

    /// Writes the delegation and puts the stick in.
    pub(crate) fn put_in(&self, delegation: &[u8]) {
        fat(&self.file, delegation);
        let mut monitor = UnixStream::connect(&self.monitor).unwrap();
        monitor
            .write_all(b"device_add usb-storage,drive=pocket\n")
            .unwrap();
    }
}

/// A medium with a delegation.
fn fat(path: &Path, delegation: &[u8]) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap();
    file.set_len(8 << 20).unwrap();
    format_volume(&file, FormatVolumeOptions::new().volume_label(*b"DECENT-SEED")).unwrap();
    let volume = FileSystem::new(file, FsOptions::new()).unwrap();
    let mut inside = volume.root_dir().create_file("delegation").unwrap();
    inside.write_all(delegation).unwrap();
    inside.flush().unwrap();
}
