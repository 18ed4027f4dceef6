//! The provider on a machine of his own: a ledger, `decent`, settings and delegations for the hosts that boot.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::machine::{BOOT_TIME_MAX, Boot, named};

/// The ledger's host as the machine sees it: QEMU's gateway, which leads to this machine's loopback.
pub(crate) const OUTSIDE: &str = "10.0.2.2";

pub(crate) struct Provider {
    scratch: tempfile::TempDir,
    /// `[ledger]` of the settings.
    ledger: String,
    node: Option<Child>,
}

impl Drop for Provider {
    fn drop(&mut self) {
        if let Some(node) = &mut self.node {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

impl Provider {
    /// With a key, and a ledger that nobody reaches.
    pub(crate) fn without_ledger() -> Self {
        // A key as it is written, of no ledger.
        let root_key = "308182301d060d2b0601040182dc7c0503010201060c2b0601040182dc7c05030201036100"
            .to_owned()
            + &"11".repeat(96);
        let ledger = format!(
            "url = \"http://{OUTSIDE}:9\"\ncanister_id = \"rrkah-fqaaa-aaaaa-aaaaq-cai\"\nroot_key = \"{root_key}\"\n"
        );
        Self::new(tempfile::tempdir().unwrap(), &ledger, ledger.clone(), None)
    }

    /// With a key, and a `ledgerd` that a machine reaches from the first packet on. It trusts the image's signer.
    pub(crate) fn with_ledger() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        let ledgerd = |args: &[&str]| {
            let mut command = Command::new(named("DC_LEDGERD"));
            command.args(args).current_dir(scratch.path());
            command
        };
        let example = ledgerd(&["example-genesis"]).output().unwrap().stdout;
        let mut genesis: toml::Table = toml::from_str(&String::from_utf8(example).unwrap()).unwrap();
        let signer = fs::read_to_string(named("DC_KEYS").join("reference.pub")).unwrap();
        let images = genesis["host_images"].as_table_mut().unwrap();
        images.insert("keys".to_owned(), vec![signer].into());
        // Under emulation everything takes its time.
        let parameters = genesis["parameters"].as_table_mut().unwrap();
        for (timeout, seconds) in [("accept_timeout_s", 900), ("confirm_timeout_base_s", 1800)] {
            parameters.insert(timeout.to_owned(), seconds.into());
        }
        let developer = Command::new(named("DC_DECENT"))
            .args(["--json", "key", "new", "--out", "developer.pem"])
            .current_dir(scratch.path())
            .output()
            .unwrap();
        let developer: serde_json::Value = serde_json::from_slice(&developer.stdout).unwrap();
        let mut balance = toml::Table::new();
        balance.insert(
            "owner".to_owned(),
            developer["principal"].as_str().unwrap().into(),
        );
        balance.insert("amount".to_owned(), 100_000_000_000_i64.into());
        balance.insert("reason".to_owned(), "play money".into());
        genesis.insert("balances".to_owned(), vec![balance].into());
        fs::write(at("genesis.toml"), genesis.to_string()).unwrap();
        let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url = format!("http://{listen}");
        let made = ledgerd(&[
            "init",
            "--genesis",
            "genesis.toml",
            "--dir",
            "ledger",
            "--url",
            &url,
        ])
        .output();
        let made = made.unwrap();
        assert!(made.status.success(), "{made:?}");
        let node = ledgerd(&["run", "--dir", "ledger", "--listen", &listen.to_string()])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let client = fs::read_to_string(at("ledger/client.toml")).unwrap();
        let inside = client.replace("127.0.0.1", OUTSIDE);
        Self::new(scratch, &client, inside, Some(node))
    }

    fn new(scratch: tempfile::TempDir, client: &str, ledger: String, node: Option<Child>) -> Self {
        let provider = Self {
            scratch,
            ledger,
            node,
        };
        fs::write(provider.at("client.toml"), client).unwrap();
        let profile = format!(
            "name = \"Test\"\ndomain = \"test.example\"\ncontact = \"ops@test.example\"\nlegal_contract = \"{}\"\n",
            "0".repeat(64)
        );
        fs::write(provider.at("profile.toml"), profile).unwrap();
        provider.decent(&["key", "new", "--out", "provider.pem"]).unwrap();
        provider
    }

    /// A file of his.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// What `decent` answers him, or why it refuses.
    pub(crate) fn decent(&self, args: &[&str]) -> Result<String, String> {
        self.decent_as("provider.pem", args)
    }

    /// What `decent` answers a developer, who has money.
    pub(crate) fn developer(&self, args: &[&str]) -> Result<String, String> {
        self.decent_as("developer.pem", args)
    }

    fn decent_as(&self, key: &str, args: &[&str]) -> Result<String, String> {
        let output = Command::new(named("DC_DECENT"))
            .args(args)
            .env("DECENT_LEDGER", self.at("client.toml"))
            .env("DECENT_KEY", self.at(key))
            .current_dir(self.scratch.path())
            .output()
            .unwrap();
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).unwrap())
        } else {
            Err(format!("decent {args:?}: {output:?}"))
        }
    }

    /// Asks until the answer, JSON, is as `wanted`.
    pub(crate) fn until(
        &self,
        args: &[&str],
        wanted: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let start = Instant::now();
        loop {
            let answer = self.decent(&[&["--json"], args].concat());
            let value = answer.map(|answer| serde_json::from_str(&answer).unwrap());
            match value {
                Ok(value) if wanted(&value) => return value,
                other => assert!(start.elapsed() < BOOT_TIME_MAX, "decent {args:?}: {other:?}"),
            }
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
    }

    /// provider-seed.toml for a host of this name; `more` goes into `[ledger]`.
    pub(crate) fn settings(&self, name: &str, more: &str) -> String {
        let ledger = &self.ledger;
        // An image is good without a ledger where there is none.
        let offline = self.node.is_none();
        format!(
            "version = 1\n[host]\nname = \"{name}\"\n[ledger]\n{ledger}{more}\n[network]\naddresses = [\"10.0.2.77/24\"]\n\
             gateways = [\"10.0.2.2\"]\npublic_ip4 = \"203.0.113.1\"\n[offering]\ntitle = \"Test\"\nregion = \"eu-ch\"\n\
             [offering.prices]\nvm_hour = 1\nvcpu_hour = 1\nmemory_gib_hour = 1\nstorage_gib_hour = 1\n\
             [update]\noffline = {offline}\n"
        )
    }

    /// His word for the host that shows its keys on the console.
    pub(crate) fn delegation(&self, boot: &mut Boot) -> Vec<u8> {
        let (host, attestation) = (boot.principal(), boot.line("  attestation  "));
        self.decent(&[
            "host",
            "delegate",
            "--host-key",
            &host,
            "--attestation-key",
            &attestation,
            "--profile",
            "profile.toml",
            "--expires",
            "@4000000000",
            "--out",
            "delegation",
        ])
        .unwrap();
        let bytes = fs::read(self.at("delegation")).unwrap();
        fs::remove_file(self.at("delegation")).unwrap();
        bytes
    }
}
