//! Step 8: the developer trusts nobody, verifies alone, and connects to the machine that was measured.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::Job;
use super::contract::{Rented, leased};
use super::setting::{Ledger, Party};
use super::world::{self, Place};
use anyhow::{Context, Result, ensure};

/// What a verdict gives to its developer.
pub struct Access {
    /// What `attest` was called with to verify the evidence, but for the test root and the pins.
    pub verify: Vec<String>,
    /// `known_hosts` with the attested SSH host key.
    pub known_hosts: PathBuf,
    /// curl's pin of the attested TLS key.
    pub tls_pin: String,
    /// Host address and leased SSH port.
    pub ssh: (String, u16),
    /// A name that is routed to the VM.
    pub name: String,
}

impl Job {
    /// `attest verify`, with nothing but the evidence and what the developer asked for.
    pub(super) fn verify_alone(&mut self, ledger: &Ledger, rented: &Rented) -> Result<Access> {
        let started = Instant::now();
        self.report.heading("step 8", "alice verifies the evidence alone");
        let access = self.verify(ledger, &ledger.alice, rented)?;
        self.refuses_without_test_root(&access)?;
        self.report.done(
            "8",
            "evidence verified by the developer alone (test-root)",
            started.elapsed(),
        );
        Ok(access)
    }

    fn verify(&mut self, ledger: &Ledger, party: &Party, rented: &Rented) -> Result<Access> {
        let id = rented.id.to_string();
        let contract = self.contract(ledger, &rented.id)?;
        let (address, port) = {
            let lease = leased(&contract, 22)?;
            (contract.endpoint.context("no endpoint")?, lease.public_port)
        };
        let evidence = self.world.path(&format!("evidence-{}.cbor", rented.id.short()));
        let file = evidence.display().to_string();
        let page = self.run(self.decent(ledger, party, &["evidence", &id, "--out", &file])?)?;
        self.report.say(page.trim_end());
        let verify = pasted(&page, rented)?;
        let known_hosts = self.world.path(&format!("known_hosts-{}", party.name));
        let pin = self.world.path(&format!("tls-pin-{}", party.name));
        let mut command = self.program(Place::Internet, "attest")?;
        command.args(&verify).arg("--trust-root").arg(&ledger.test_root);
        command.args(["--known-hosts", &format!("{}:{port}", address.address)]);
        command
            .arg("--out-known-hosts")
            .arg(&known_hosts)
            .arg("--out-tls-pin")
            .arg(&pin);
        let page = self.run(command)?;
        ensure!(
            page.contains("test-root"),
            "a verdict under a test root must say so:\n{page}"
        );
        for check in [
            "appraise.contract-id",
            "appraise.settings",
            "appraise.measurement",
        ] {
            let passed = |line: &str| line.contains(check) && line.trim_start().starts_with("ok ");
            ensure!(page.lines().any(passed), "{check} wasn't made:\n{page}");
        }
        self.report.say(page.trim_end());
        let name = address.names.last().context("no name is routed")?.clone();
        let tls_pin = fs::read_to_string(&pin)?.trim().to_owned();
        Ok(Access {
            verify,
            known_hosts,
            tls_pin,
            ssh: (address.address, port),
            name,
        })
    }

    fn refuses_without_test_root(&self, access: &Access) -> Result<()> {
        let mut command = self.program(Place::Internet, "attest")?;
        command.args(&access.verify);
        let output = world::output(&mut command)?;
        ensure!(
            output.status.code() == Some(1),
            "without the test root the same evidence must be refused: {}",
            world::describe(&command, &output)
        );
        self.report
            .say("without --trust-root the same evidence is refused (exit 1), as it must be");
        Ok(())
    }

    /// TLS by SNI through HAProxy, SSH by port lease, both against the attested keys.
    pub(super) fn connect(&mut self, rented: &Rented, access: &Access) -> Result<()> {
        let started = Instant::now();
        self.report
            .heading("step 8", "alice connects to the attested keys");
        let url = format!("https://{}/", access.name);
        let resolve = format!("{}:443:{}", access.name, access.ssh.0);
        let mut curl = self.world.command(Place::Internet, "curl");
        curl.args([
            "-sS",
            "-k",
            "--max-time",
            "20",
            "--pinnedpubkey",
            &access.tls_pin,
            "--resolve",
            &resolve,
            &url,
        ]);
        let page = self.run(curl)?;
        self.report
            .say(page.lines().take(3).collect::<Vec<_>>().join("\n").trim_end());
        ensure!(
            page.contains(&rented.id.short()),
            "the page isn't the VM's:\n{page}"
        );

        let wrong = format!("sha256//{}", "A".repeat(43) + "=");
        let mut curl = self.world.command(Place::Internet, "curl");
        curl.args([
            "-sS",
            "-k",
            "--max-time",
            "20",
            "--pinnedpubkey",
            &wrong,
            "--resolve",
            &resolve,
            &url,
        ]);
        ensure!(
            !world::output(&mut curl)?.status.success(),
            "curl took a key that wasn't attested"
        );

        let hello = self.ssh(access, &rented.ssh_key, "cat /run/user-data-ran; uname -sr")?;
        self.report.say(hello.trim_end());
        ensure!(hello.contains("rented by alice"), "user data didn't run: {hello}");
        self.report.done(
            "8",
            "curl through HAProxy by SNI, ssh by port lease: attested keys",
            started.elapsed(),
        );
        Ok(())
    }

    /// Runs a command in the VM, accepting only the attested host key.
    pub(super) fn ssh(&self, access: &Access, key: &Path, script: &str) -> Result<String> {
        let mut ssh = self.world.command(Place::Internet, "ssh");
        ssh.arg("-i").arg(key).args(["-p", &access.ssh.1.to_string()]);
        ssh.arg("-o")
            .arg(format!("UserKnownHostsFile={}", access.known_hosts.display()));
        for option in [
            "StrictHostKeyChecking=yes",
            "BatchMode=yes",
            "ConnectTimeout=20",
            "GlobalKnownHostsFile=/dev/null",
            "IdentitiesOnly=yes",
        ] {
            ssh.args(["-o", option]);
        }
        ssh.arg(format!("root@{}", access.ssh.0)).arg(script);
        self.run(ssh)
    }

    /// A second tenant's VM on the same host can't reach the first one, nor the host, nor private networks.
    pub(super) fn neighbours_are_strangers(
        &mut self,
        ledger: &Ledger,
        first: &Rented,
        first_access: &Access,
        second: &Rented,
    ) -> Result<()> {
        let started = Instant::now();
        self.report
            .heading("step 8", "bob's VM on the same host tries to reach alice's");
        let access = self.verify(ledger, &ledger.bob, second)?;
        let own = "ip -4 -o addr show scope global | sed -E 's/.*inet ([0-9.]+).*/\\1/' | head -n 1";
        let alice = self.ssh(first_access, &first.ssh_key, own)?.trim().to_owned();
        let probe = |address: &str, port: u16| {
            format!(
                "if nc -w 3 {address} {port} </dev/null >/dev/null 2>&1; then echo reached; else echo blocked; fi"
            )
        };
        for (what, address, port) in [
            ("alice's SSH", alice.as_str(), 22),
            ("alice's web server", alice.as_str(), 443),
            ("the host's own gateway address", "169.254.1.1", 22),
            ("a cloud metadata address", "169.254.169.254", 80),
        ] {
            let answer = self.ssh(&access, &second.ssh_key, &probe(address, port))?;
            ensure!(
                answer.trim() == "blocked",
                "bob reached {what} at {address}:{port}"
            );
            self.report.say(&format!("{what} ({address}:{port}): blocked"));
        }
        let own_web = self.ssh(&access, &second.ssh_key, &probe("127.0.0.1", 443))?;
        ensure!(
            own_web.trim() == "reached",
            "the probe itself doesn't work: bob can't reach bob"
        );
        self.report.done(
            "8",
            "a second tenant's VM can't reach the first, the host, or metadata",
            started.elapsed(),
        );
        Ok(())
    }
}

/// The words of the line that `decent evidence` prints for pasting, which must name everything that can be checked, as the
/// developer knows it.
fn pasted(page: &str, rented: &Rented) -> Result<Vec<String>> {
    let line = page
        .lines()
        .find_map(|line| line.trim().strip_prefix("attest verify"));
    let line = line.with_context(|| format!("no line to paste:\n{page}"))?;
    // The demo's paths need no quotes.
    let words: Vec<String> = std::iter::once("verify")
        .chain(line.split_whitespace())
        .map(str::to_owned)
        .collect();
    let value = |option: &str| {
        let at = words.iter().position(|word| word == option);
        at.and_then(|at| words.get(at + 1))
            .with_context(|| format!("no {option} in: {line}"))
    };
    ensure!(
        *value("--contract")? == rented.id.to_string(),
        "another contract: {line}"
    );
    ensure!(
        *value("--measurement")? == rented.measurement.to_string(),
        "another measurement: {line}"
    );
    value("--salt")?;
    for (option, own) in [
        ("--ssh-key", rented.ssh_key.with_extension("pub")),
        ("--user-data", rented.user_data.clone()),
    ] {
        ensure!(
            fs::read(value(option)?)?.trim_ascii() == fs::read(&own)?.trim_ascii(),
            "{option} isn't what {} holds",
            own.display()
        );
    }
    Ok(words)
}
