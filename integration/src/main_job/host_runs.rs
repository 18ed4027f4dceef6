//! Step 2, second half: what the host runs, shown by its TPM.
//!
//! The TPM is swtpm, and nothing boots here: PCRs are extended and the event log is written as firmware would that starts
//! an image, whose reference values a key of the demo's genesis signed. From there on everything is real: the quote,
//! hostd, the ledger's verdict, and `attest verify` on the developer's machine.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use attestation::sim::{BootImage, MeasuredBoot, ReferenceSigner};
use ledger::api::{Grade, HostInfo, LedgerInfo, Match};
use nix::sched::{CloneFlags, setns};
use serde::Deserialize;

use super::Job;
use super::setting::{Host, Ledger};
use super::world::Place;

/// The image that the demo's host seems to have booted.
const IMAGE: &str = "provider-os demo (simulated boot)";
/// swtpm's, in the host's own network namespace.
const PORT: u16 = 2321;
/// How tpm2-tss names it.
pub const TCTI: &str = "swtpm:host=127.0.0.1,port=2321";

/// The key that signs the demo image's reference values (PEM), after it has done so.
pub fn sign_references(folder: &Path) -> Result<String> {
    let signer = ReferenceSigner::create().map_err(|error| anyhow!("{error}"))?;
    let signed = signer
        .sign(IMAGE, &BootImage::named(IMAGE))
        .map_err(|error| anyhow!("{error}"))?;
    fs::create_dir_all(folder)?;
    fs::write(folder.join("demo.references.json"), signed)?;
    signer.public_pem().map_err(|error| anyhow!("{error}"))
}

/// Extends a PCR as firmware does: `TPM2_PCR_Extend` with an empty password.
fn extend(pcr: u32, digest: &[u8; 32]) -> Result<()> {
    let mut command = vec![0x80, 0x02, 0, 0, 0, 65, 0, 0, 0x01, 0x82];
    command.extend(pcr.to_be_bytes());
    command.extend([0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0]);
    command.extend([0, 0, 0, 1, 0, 0x0b]);
    command.extend(digest);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(&command)?;
    let mut answer = [0; 19];
    stream.read_exact(&mut answer)?;
    ensure!(answer[6..10] == [0; 4], "the TPM refused to extend PCR {pcr}");
    Ok(())
}

fn measure(boot: &MeasuredBoot) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect((Ipv4Addr::LOCALHOST, PORT + 1)).is_err() {
        ensure!(Instant::now() < deadline, "swtpm doesn't listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    boot.measured().try_for_each(|(pcr, digest)| extend(pcr, &digest))
}

impl Job {
    /// Powers the host's TPM, and measures a boot into it. Returns the name of its attestation key.
    pub(super) fn power_tpm(&mut self) -> Result<String> {
        #[derive(Deserialize)]
        struct Taken {
            ak: String,
        }
        let state = self.world.path("tpm");
        fs::create_dir_all(&state)?;
        let mut swtpm = self.world.command(Place::Host, "swtpm");
        swtpm
            .args(["socket", "--tpm2", "--tpmstate"])
            .arg(format!("dir={}", state.display()))
            .args(["--server", &format!("type=tcp,port={PORT},bindaddr=127.0.0.1")])
            .args([
                "--ctrl",
                &format!("type=tcp,port={},bindaddr=127.0.0.1", PORT + 1),
            ])
            .args(["--flags", "not-need-init,startup-clear"]);
        self.world.start("swtpm", swtpm)?;
        let boot = BootImage::named(IMAGE).boot();
        fs::write(self.firmware_log(), boot.log())?;
        let namespace = fs::File::open(format!("/run/netns/{}", self.world.netns(Place::Host)))?;
        // A thread of its own, since it stays in the namespace.
        let measuring = std::thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            measure(&boot)
        });
        measuring
            .join()
            .map_err(|_| anyhow!("the simulated firmware panicked"))??;
        let mut command = self.program(Place::Host, "hostd")?;
        command.args(["--json", "evidence", "--tpm", TCTI, "--out"]);
        command.arg(self.world.path("host-evidence.cbor"));
        let Taken { ak } = self.json(command)?;
        Ok(ak)
    }

    /// Where the simulated firmware leaves its event log.
    pub(super) fn firmware_log(&self) -> PathBuf {
        self.world.path("binary_bios_measurements")
    }

    /// The ledger has verified what the host runs; the developer does it again.
    pub(super) fn what_the_host_runs(&mut self, ledger: &Ledger, host: &Host) -> Result<()> {
        let started = Instant::now();
        self.report.heading(
            "step 2",
            "what the host runs: its TPM's quote, judged by the ledger and by the developer",
        );
        let id = host.principal.to_text();
        self.wait("the ledger to verify the host", Duration::from_secs(60), |job| {
            let info: HostInfo =
                job.json(job.decent(ledger, &ledger.alice, &["--json", "host", "show", &id])?)?;
            let ledger: LedgerInfo = job.json(job.decent(ledger, &ledger.alice, &["--json", "info"])?)?;
            Ok((info.grade(ledger.now) == Grade::HostVerified).then_some(()))
        })?;
        let page = self.run(self.decent(ledger, &ledger.alice, &["hosts"])?)?;
        self.report.say(page.trim_end());
        let request = [
            "--kind",
            "plain",
            "--min-grade",
            "host-verified",
            "--period",
            "3600",
        ];
        let matching: Vec<&str> = ["--json", "match"].iter().chain(&request).copied().collect();
        let matches: Vec<Match> = self.json(self.decent(ledger, &ledger.alice, &matching)?)?;
        ensure!(
            matches.iter().any(|found| found.offering.host == host.principal),
            "the host isn't matched for host-verified"
        );
        let out = self.world.path("host.cbor");
        let text = {
            let mut command = self.decent(ledger, &ledger.alice, &["host", "evidence", &id, "--out"])?;
            command.arg(&out);
            self.run(command)?
        };
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("attest "))
            .context("`decent host evidence` printed no line to paste")?;
        let mut verify: Command = self.program(Place::Internet, "attest")?;
        verify.args(line.split(' '));
        let verdict = self.run(verify)?;
        let first = verdict.lines().next().unwrap_or_default();
        self.report.say(first);
        self.report.done(
            "2",
            "plain VMs here are host-verified (simulated boot, swtpm)",
            started.elapsed(),
        );
        Ok(())
    }
}
