//! Steps 3 to 7, 9 and 10 as the developer, the host and the ledger see them: one contract from request to settlement.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ledger::api::{
    Contract, ContractId, ContractState, EndReason, Grade, Invariants, LeasedPort, Match, Measurement,
    Reputation, WhyNot,
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::Job;
use super::developer::Access;
use super::setting::{Host, Ledger, Party};
use super::world::{self, Place};

/// A contract of the demo.
pub struct Rented {
    /// Its name.
    pub id: ContractId,
    /// The developer's SSH key pair (private half).
    pub ssh_key: PathBuf,
    /// The user data that the developer gave.
    pub user_data: PathBuf,
    /// Measurement that the developer computed and put into the request.
    pub measurement: Measurement,
    /// When it was paid.
    pub paid: Instant,
}

/// What of an image's manifest the main job needs.
#[derive(Deserialize)]
struct Manifest {
    kernel: File,
    initrd: File,
    firmware: File,
    cmdline: String,
}

#[derive(Deserialize)]
struct File {
    file: String,
}

#[derive(Deserialize)]
struct NewContract {
    contract: ContractId,
}

#[derive(Deserialize)]
struct Measured {
    measurement: Measurement,
}

/// The name that both developers want to have routed beside the derived ones. It will be Alice's.
pub const OWN_NAME: &str = "shop.example.test";

/// A request with every field that the paper names.
const REQUEST: [&str; 20] = [
    "--max-price",
    "0.05",
    "--vcpus",
    "1",
    "--memory-mib",
    "512",
    "--storage-gib",
    "1",
    "--bandwidth-mbps",
    "unlimited",
    "--min-provider-reputation",
    "0",
    "--period",
    "7200",
    "--kind",
    "sev-snp",
    "--min-grade",
    "hardware-verified",
    "--region",
    "test",
];

impl Job {
    /// Steps 3 and 4: match, pay; the host accepts.
    pub(super) fn rent(&mut self, ledger: &Ledger, developer: &Party, nth: u64) -> Result<Rented> {
        let started = Instant::now();
        self.report.heading(
            "step 3",
            &format!("{} looks for a VM, picks one, pays into escrow", developer.name),
        );
        let measurement = self.measure()?;
        let matches: Vec<Match> =
            self.json(self.decent(ledger, developer, &with(&["--json", "match"], &REQUEST))?)?;
        let table = self.run(self.decent(ledger, developer, &with(&["match"], &REQUEST))?)?;
        self.report.say(table.trim_end());
        let pick = matches.first().context("no offering fits")?;
        if nth == 1 {
            self.show_why_not(ledger, developer)?;
        }

        let ssh_key = self.world.path(&format!("ssh-{}", developer.name));
        if !ssh_key.exists() {
            world::run(
                Command::new("ssh-keygen")
                    .args(["-q", "-t", "ed25519", "-N", "", "-C", developer.name, "-f"])
                    .arg(&ssh_key),
            )?;
        }
        let user_data = self.world.path(&format!("user-data-{}", developer.name));
        fs::write(
            &user_data,
            format!(
                "#!/bin/sh\necho rented by {} > /run/user-data-ran\n",
                developer.name
            ),
        )?;
        let manifest = self.image.join("manifest.json");
        let digest = hex::encode(Sha256::digest(fs::read(&manifest)?));
        let mut command = self.decent(ledger, developer, &with(&["--json", "rent"], &REQUEST))?;
        command
            .args(["--offering", &pick.offering.id.to_string()])
            .args([
                "--image-url",
                &format!("file://{}", manifest.display()),
                "--image-digest",
                &digest,
            ])
            .arg("--ssh-key")
            .arg(ssh_key.with_extension("pub"))
            .arg("--user-data")
            .arg(&user_data)
            .args(["--tls-name", OWN_NAME, "--port", "tcp/22"])
            .args([
                "--measurement",
                &measurement.to_string(),
                "--max-total",
                "1",
                "--memo",
                &nth.to_string(),
            ]);
        let answer = self.run(command)?;
        let paid = Instant::now();
        let NewContract { contract: id } = serde_json::from_str(&answer)?;
        let contract = self.contract(ledger, &id)?;
        ensure!(
            contract.escrow.held == pick.total,
            "escrow holds {} of {}",
            contract.escrow.held,
            pick.total
        );
        self.report.done(
            "3",
            format!("{} paid {} into escrow", developer.name, dct(pick.total)),
            started.elapsed(),
        );

        self.report
            .heading("step 4", "the host sees the contract and accepts");
        self.wait("the host to accept", Duration::from_secs(10), |job| {
            Ok((job.contract(ledger, &id)?.state != ContractState::Requested).then_some(()))
        })?;
        ensure!(
            paid.elapsed() < Duration::from_secs(3),
            "hostd took {:?} to see a contract",
            paid.elapsed()
        );
        self.report
            .done("4", format!("contract {} accepted", id.short()), paid.elapsed());
        Ok(Rented {
            id,
            ssh_key,
            user_data,
            measurement,
            paid,
        })
    }

    fn show_why_not(&mut self, ledger: &Ledger, developer: &Party) -> Result<()> {
        self.report.say("and one that can't be had, with every reason:");
        let greedy = [
            "--vcpus",
            "512",
            "--memory-mib",
            "512",
            "--storage-gib",
            "unlimited",
            "--kind",
            "tdx",
            "--period",
            "60",
        ];
        let misfits: Vec<WhyNot> =
            self.json(self.decent(ledger, developer, &with(&["--json", "why-not"], &greedy))?)?;
        ensure!(
            misfits.first().is_some_and(|m| m.reasons.len() >= 2),
            "why-not must give all reasons: {misfits:?}"
        );
        let table = self.run(self.decent(ledger, developer, &with(&["why-not"], &greedy))?)?;
        self.report.say(table.trim_end());
        Ok(())
    }

    /// `attest measure` over exactly the files that will boot.
    fn measure(&self) -> Result<Measurement> {
        let manifest: Manifest = serde_json::from_slice(&fs::read(self.image.join("manifest.json"))?)?;
        let mut command = self.program(Place::Internet, "attest")?;
        command.args([
            "measure",
            "snp",
            "--json",
            "--vcpus",
            "1",
            "--vcpu-type",
            "EPYC-v4",
        ]);
        for (flag, file) in [
            ("--firmware", &manifest.firmware),
            ("--kernel", &manifest.kernel),
            ("--initrd", &manifest.initrd),
        ] {
            command.arg(flag).arg(self.image.join(&file.file));
        }
        command.args(["--append", &manifest.cmdline]);
        let text = self.run(command)?;
        let Measured { measurement } = serde_json::from_str(&text)?;
        Ok(measurement)
    }

    /// Steps 5 to 7: the VM boots, gives evidence, the ledger verifies it, the clock starts.
    pub(super) fn follow_until_active(&mut self, ledger: &Ledger, rented: &Rented) -> Result<()> {
        let started = Instant::now();
        self.report
            .heading("steps 5–7", "network, disk, launch, boot, evidence, confirmation");
        let contract = self.wait(
            "the VM to boot and its evidence to be verified",
            Duration::from_secs(180),
            |job| {
                let contract = job.contract(ledger, &rented.id)?;
                match contract.state {
                    ContractState::Active => Ok(Some(contract)),
                    ContractState::Ended(reason) => {
                        bail!(
                            "the contract ended: {reason:?}; refusals {:?}\n{}",
                            contract.refusals,
                            job.world.log_tail("hostd", 30)
                        )
                    }
                    _ => Ok(None),
                }
            },
        )?;
        ensure!(
            contract.grade == Grade::HardwareVerified,
            "grade {:?}",
            contract.grade
        );
        let endpoint = contract
            .endpoint
            .as_ref()
            .context("the host published no endpoint")?;
        self.report.say(&format!(
            "reachable at {} as {}",
            endpoint.address,
            endpoint.names.join(", ")
        ));
        self.report
            .say("hardware-verified under the TEST ROOT of the demo's genesis (test-root)");
        self.report.done(
            "5–7",
            format!(
                "VM booted, evidence verified, {} Active; {:.1} s after payment",
                rented.id.short(),
                rented.paid.elapsed().as_secs_f64()
            ),
            started.elapsed(),
        );
        Ok(())
    }

    /// Step 10: hostd is killed while VMs run; a new one adopts them.
    pub(super) fn kill_hostd(
        &mut self,
        ledger: &Ledger,
        host: &Host,
        rented: &Rented,
        access: &Access,
    ) -> Result<()> {
        self.report.heading(
            "step 10",
            "hostd is killed (-9) and started again; the VM never notices",
        );
        let boot_id = "cat /proc/sys/kernel/random/boot_id";
        let before = self.ssh(access, &rented.ssh_key, boot_id)?;
        let pids = self.vmm_pids()?;
        self.world.kill("hostd")?;
        self.report.say("$ kill -9 hostd");
        let without = self.ssh(access, &rented.ssh_key, boot_id)?;
        let started = Instant::now();
        self.start_hostd(&host.config)?;
        self.wait("hostd to adopt its VMs", Duration::from_secs(20), |job| {
            let answer = world::output(&mut job.hostd(&["contracts"])?)?;
            let text = String::from_utf8_lossy(&answer.stdout).into_owned();
            Ok((answer.status.success() && text.contains(&rented.id.short())).then_some(()))
        })?;
        let took = started.elapsed();
        let after = self.ssh(access, &rented.ssh_key, boot_id)?;
        ensure!(before == without && before == after, "the VM rebooted");
        ensure!(self.vmm_pids()? == pids, "the VMMs are other processes now");
        let contract = self.contract(ledger, &rented.id)?;
        ensure!(
            contract.state == ContractState::Active,
            "the contract is {:?}",
            contract.state
        );
        self.report.done(
            "10",
            "hostd killed and restarted: same VMs, same processes, contract Active",
            took,
        );
        Ok(())
    }

    fn vmm_pids(&self) -> Result<Vec<String>> {
        let own = self.world.dir().display().to_string();
        let output =
            world::output(Command::new("pgrep").args(["-f", &format!("qemu-system.*{own}/run/vm")]))?;
        Ok(String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(str::to_owned)
            .collect())
    }

    /// Step 9: accrual, extension, cancellation, refund, removal.
    pub(super) fn extend_and_cancel(
        &mut self,
        ledger: &Ledger,
        host: &Host,
        first: &Rented,
        second: &Rented,
    ) -> Result<()> {
        let started = Instant::now();
        self.report
            .heading("step 9", "time passes; extend, cancel, settle, remove");
        let id = first.id.to_string();
        let before = self.contract(ledger, &first.id)?;
        self.run(self.decent(
            ledger,
            &ledger.alice,
            &["contract", "extend", &id, "--period", "3600", "--max-total", "1"],
        )?)?;
        let extended = self.contract(ledger, &first.id)?;
        ensure!(
            extended.period_s == before.period_s + 3600,
            "the period is {} s",
            extended.period_s
        );
        ensure!(
            extended.escrow.funded > before.escrow.funded,
            "the extension was not paid"
        );
        self.run(self.decent(ledger, &ledger.alice, &["contract", "settle", &id])?)?;
        let settled = self.contract(ledger, &first.id)?;
        self.report.say(&format!(
            "accrued so far: {} of {}",
            dct(settled.escrow.released),
            dct(settled.escrow.funded)
        ));
        for (party, rented) in [(&ledger.alice, first), (&ledger.bob, second)] {
            self.run(self.decent(ledger, party, &["contract", "cancel", &rented.id.to_string()])?)?;
        }
        let ended = self.contract(ledger, &first.id)?;
        check_settlement(&ended)?;
        self.report.say(&format!(
            "funded {} = released {} (provider {}, DAO {}, fees {}) + refunded {}",
            dct(ended.escrow.funded),
            dct(ended.escrow.released),
            dct(ended.escrow.to_provider),
            dct(ended.escrow.to_dao),
            dct(ended.escrow.to_fees),
            dct(ended.escrow.refunded)
        ));
        self.report.done(
            "9",
            "accrued per second, extended, cancelled, the rest refunded",
            started.elapsed(),
        );

        let started = Instant::now();
        for rented in [first, second] {
            self.wait(
                "the host to stop the VM, wipe its disk and release",
                Duration::from_secs(60),
                |job| Ok(job.contract(ledger, &rented.id)?.released.then_some(())),
            )?;
        }
        ensure!(self.vmm_pids()?.is_empty(), "a VMM still runs");
        let disks: Vec<_> = fs::read_dir(self.world.path("storage/disks"))?
            .flatten()
            .map(|e| e.path())
            .collect();
        ensure!(disks.is_empty(), "disks are left: {disks:?}");
        let tenants = world::run(Command::new("ip").args(["netns", "list"]))?;
        ensure!(
            !tenants.contains(&format!("{}-t", self.world.prefix())),
            "a tenant network is left:\n{tenants}"
        );
        let _ = host;
        self.report.done(
            "9",
            "VMs stopped gracefully, disks wiped, all released",
            started.elapsed(),
        );
        Ok(())
    }

    /// The end of step 9: reputation and the books.
    pub(super) fn books(&mut self, ledger: &Ledger) -> Result<()> {
        let started = Instant::now();
        for party in [&ledger.provider, &ledger.alice] {
            let who = party.principal.to_text();
            let reputation: Reputation =
                self.json(self.decent(ledger, &ledger.alice, &["--json", "reputation", &who])?)?;
            ensure!(reputation.score > 0, "{} gained no reputation", party.name);
            self.report.say(&format!(
                "reputation of {}: {} (+1 % of what was paid)",
                party.name, reputation.score
            ));
        }
        let books: Invariants =
            self.json(self.decent(ledger, &ledger.alice, &["--json", "invariants"])?)?;
        self.report.say(&format!(
            "supply {} = Σ balances {}; {} contracts: funded = held + released + refunded",
            dct(books.supply),
            dct(books.balances),
            books.contracts
        ));
        ensure!(
            books.violations.is_empty() && books.supply == books.balances,
            "the books are wrong: {books:?}"
        );
        self.report
            .done("9", "the ledger's invariants hold", started.elapsed());
        Ok(())
    }

    /// The contract as the ledger has it.
    pub fn contract(&self, ledger: &Ledger, id: &ContractId) -> Result<Contract> {
        self.json(self.decent(
            ledger,
            &ledger.alice,
            &["--json", "contract", "show", &id.to_string()],
        )?)
    }
}

fn check_settlement(contract: &Contract) -> Result<()> {
    let escrow = contract.escrow;
    ensure!(
        contract.state == ContractState::Ended(EndReason::Cancelled),
        "the contract is {:?}",
        contract.state
    );
    ensure!(
        escrow.held == 0 && escrow.refunded > 0 && escrow.released > 0,
        "{escrow:?}"
    );
    ensure!(escrow.funded == escrow.released + escrow.refunded, "{escrow:?}");
    let fee = escrow.to_dao + escrow.to_fees;
    ensure!(
        escrow.released == escrow.to_provider + fee && escrow.to_dao > 0,
        "{escrow:?}"
    );
    ensure!(
        fee.abs_diff(escrow.released / 50) <= 10,
        "the fee is {fee} of {}, not 2 %",
        escrow.released
    );
    Ok(())
}

/// The leased port that leads to `vm_port`.
pub fn leased(contract: &Contract, vm_port: u16) -> Result<LeasedPort> {
    let endpoint = contract.endpoint.as_ref().context("no endpoint")?;
    endpoint
        .ports
        .iter()
        .copied()
        .find(|p| p.vm_port == vm_port)
        .context("the port isn't leased")
}

/// An amount for people.
pub fn dct(amount: u64) -> String {
    format!(
        "{}.{:09} DCT",
        amount / ledger::api::DCT,
        amount % ledger::api::DCT
    )
}

fn with<'a>(command: &[&'a str], flags: &[&'a str]) -> Vec<&'a str> {
    [command, flags].concat()
}
