//! Step 7's other half: a rogue host tries to get paid for a VM that isn't what was asked for.
//!
//! The rogue has everything but the right VM: a registered key, a paid contract, a chip whose root the ledger trusts.
//! First it runs another image and shows that VM's genuine report; then it replays the report of the first contract.
//! The ledger must refuse both, with the reason, and the money must not move.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use attestation::sim::Launch;
use attestation::{Binding, Bundle, CpuEvidence, Evidence, GuestKeys};
use candid::Principal;
use clap::{Args as ClapArgs, Subcommand};
use ledger::api::{
    AtRest, Capacity, ContractId, ContractState, DCT, Endpoint, Grade, HostDelegation, LedgerError,
    OfferingSpec, PriceList, Quota, SubmitEvidenceArgs, VmKind,
};
use ledger::client::{Client, ClientFile, Key};
use serde::{Deserialize, Serialize};

use super::Job;
use super::contract::Rented;
use super::setting::Ledger;
use super::world::{self, HOST_ADDRESS, Place};

/// What the rogue is asked to do.
#[derive(ClapArgs)]
pub struct Args {
    /// The ledger's client file.
    #[arg(long)]
    client: PathBuf,
    /// The rogue's key.
    #[arg(long)]
    key: PathBuf,
    #[command(subcommand)]
    act: Act,
}

#[derive(Subcommand)]
enum Act {
    /// Register and offer.
    Offer {
        /// Signed by a provider.
        #[arg(long)]
        delegation: PathBuf,
    },
    /// Accept a contract and submit forged evidence, twice.
    Cheat {
        /// The contract.
        #[arg(long)]
        contract: ContractId,
        /// The simulated chip.
        #[arg(long)]
        chip: PathBuf,
        /// Genuine evidence of another contract.
        #[arg(long)]
        replay: PathBuf,
    },
    /// Give up, so that the developer is refunded.
    GiveUp {
        /// The contract.
        #[arg(long)]
        contract: ContractId,
    },
}

/// What the ledger said to the forgeries.
#[derive(Debug, Serialize, Deserialize)]
struct Refused {
    other_image: Vec<String>,
    replay: Vec<String>,
}

/// The rogue's process: it runs on the internet's side of the world, where the ledger is.
pub fn play(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let client = Client::connect(ClientFile::read(&args.client)?.with_key(Key::read(&args.key)?))?;
        match &args.act {
            Act::Offer { delegation } => {
                let delegation: HostDelegation = candid::decode_one(&fs::read(delegation)?)?;
                client.register_host(delegation).await?;
                println!("{}", client.publish_offering(offering()).await?);
            }
            Act::Cheat {
                contract,
                chip,
                replay,
            } => {
                println!(
                    "{}",
                    serde_json::to_string(&cheat(&client, *contract, chip, replay).await?)?
                );
            }
            Act::GiveUp { contract } => {
                let reason = "caught cheating".to_owned();
                client
                    .vm_gone(ledger::api::VmGoneArgs {
                        contract: *contract,
                        reason,
                    })
                    .await?;
                client.released(*contract).await?;
            }
        }
        Ok(())
    })
}

async fn cheat(
    client: &Client,
    id: ContractId,
    chip: &std::path::Path,
    replay: &std::path::Path,
) -> Result<Refused> {
    client.accept(id).await?;
    let info = client.info().await?;
    let nonce = client.contract_nonce(id).await?;
    let guest_keys = GuestKeys::default();
    let binding = Binding {
        ledger: info.ledger.as_slice(),
        contract: id.0,
        nonce: nonce.0,
    };
    let report_data = binding.report_data(&guest_keys);
    // Another image: all is genuine but the measurement.
    let launch = Launch {
        measurement: [0x66; 48],
        host_data: id.0,
        policy: 0x3_0000,
    };
    let platform = crate::sim::load(chip)?;
    let report = platform.report(&launch, &report_data)?;
    let forged = Evidence {
        cpu: CpuEvidence::SevSnp {
            report,
            certificates: platform.certificates(),
        },
        guest_keys,
    };
    let with_crl = Bundle {
        evidence: forged.to_cbor(),
        endorsements: vec![platform.crl().to_vec()],
    };
    Ok(Refused {
        other_image: submit(client, id, with_crl.to_cbor()).await?,
        replay: submit(client, id, fs::read(replay)?).await?,
    })
}

async fn submit(client: &Client, contract: ContractId, evidence: Vec<u8>) -> Result<Vec<String>> {
    let endpoint = Endpoint {
        address: HOST_ADDRESS.to_owned(),
        names: Vec::new(),
        ports: Vec::new(),
    };
    match client
        .submit_evidence(SubmitEvidenceArgs {
            contract,
            evidence,
            endpoint,
        })
        .await
    {
        Ok(confirmation) => bail!("the ledger was fooled: {confirmation:?}"),
        Err(error) => match error.refusal() {
            Some(LedgerError::EvidenceRefused { reasons, .. }) => Ok(reasons.clone()),
            _ => Err(error).context("the ledger should have refused the evidence"),
        },
    }
}

fn offering() -> OfferingSpec {
    OfferingSpec {
        title: "Too good to be true".to_owned(),
        region: "rogue".to_owned(),
        kinds: vec![VmKind::SevSnp],
        capacity: Capacity {
            vcpus: 4,
            memory_mib: 4096,
            storage_gib: 100,
            gpus: 0,
        },
        storage_per_vm: Quota::Unlimited,
        bandwidth_mbps: Quota::Unlimited,
        gpu_model: None,
        at_rest: AtRest::Any,
        best_grade: Grade::HardwareVerified,
        test_platform: true,
        prices: PriceList {
            vm_hour: DCT / 100,
            vcpu_hour: 0,
            memory_gib_hour: 0,
            storage_gib_hour: 0,
            gpu_hour: 0,
        },
        min_developer_reputation: 0,
        max_period_s: 86_400,
    }
}

impl Job {
    /// Both forgeries are refused, the escrow doesn't move, and the developer gets all of it back.
    pub(super) fn forge(&mut self, ledger: &Ledger, first: &Rented) -> Result<()> {
        let started = Instant::now();
        self.report
            .heading("step 7", "a rogue host tries forged evidence");
        let (key, delegation) = self.rogue(ledger)?;
        let act = |job: &Self, words: &[&str]| -> Result<std::process::Command> {
            let mut command = job.program(Place::Internet, "demo")?;
            command
                .arg("forge")
                .arg("--client")
                .arg(&ledger.client)
                .arg("--key")
                .arg(&key)
                .args(words);
            Ok(command)
        };
        let delegation = delegation.display().to_string();
        let offering = self.run(act(self, &["offer", "--delegation", &delegation])?)?;
        let id = self.rent_from_rogue(ledger, first, offering.trim())?;
        let before = self.contract(ledger, &id)?;
        let replay = self.world.path("first-evidence.cbor").display().to_string();
        self.run(self.decent(
            ledger,
            &ledger.alice,
            &["evidence", &first.id.to_string(), "--out", &replay],
        )?)?;
        let (text, chip) = (id.to_string(), self.world.path("snp-sim").display().to_string());
        let refused: Refused = self.json(act(
            self,
            &["cheat", "--contract", &text, "--chip", &chip, "--replay", &replay],
        )?)?;
        for (what, reasons) in [
            ("another image's report", &refused.other_image),
            ("a replay", &refused.replay),
        ] {
            ensure!(!reasons.is_empty(), "{what} was refused without a reason");
            self.report.say(&format!("{what}: refused"));
            reasons
                .iter()
                .for_each(|reason| self.report.say(&format!("  - {reason}")));
        }
        ensure!(
            refused
                .other_image
                .iter()
                .any(|r| r.starts_with("MeasurementMismatch")),
            "the measurement isn't among the reasons: {refused:?}"
        );
        ensure!(
            refused.replay.iter().any(|r| r.starts_with("ReportDataMismatch")),
            "the replay's report data isn't among the reasons: {refused:?}"
        );
        let after = self.contract(ledger, &id)?;
        ensure!(
            after.escrow == before.escrow,
            "money moved: {:?} → {:?}",
            before.escrow,
            after.escrow
        );
        ensure!(
            after.state == ContractState::Accepted,
            "the contract is {:?}",
            after.state
        );
        self.run(act(self, &["give-up", "--contract", &text])?)?;
        let ended = self.contract(ledger, &id)?;
        ensure!(
            ended.escrow.refunded == ended.escrow.funded,
            "not all was refunded: {:?}",
            ended.escrow
        );
        self.report.done(
            "7",
            "forged and replayed evidence refused; money unmoved, then refunded",
            started.elapsed(),
        );
        Ok(())
    }

    fn rogue(&self, ledger: &Ledger) -> Result<(PathBuf, PathBuf)> {
        #[derive(Deserialize)]
        struct NewKey {
            principal: Principal,
        }
        let (key, delegation) = (self.world.path("rogue.pem"), self.world.path("rogue-delegation"));
        let mut command = self.program(Place::Internet, "decent")?;
        command.args(["--json", "key", "new", "--out"]).arg(&key);
        let NewKey { principal } = self.json(command)?;
        let mut command = self.decent(ledger, &ledger.provider, &["host", "delegate"])?;
        command
            .args(["--host-key", &principal.to_text()])
            .arg("--profile")
            .arg(self.world.path("profile.toml"));
        world::run(command.arg("--out").arg(&delegation))?;
        Ok((key, delegation))
    }

    fn rent_from_rogue(&self, ledger: &Ledger, first: &Rented, offering: &str) -> Result<ContractId> {
        #[derive(Deserialize)]
        struct NewContract {
            contract: ContractId,
        }
        let mut command = self.decent(ledger, &ledger.alice, &["--json", "rent", "--offering", offering])?;
        command.args([
            "--max-price",
            "1",
            "--vcpus",
            "1",
            "--memory-mib",
            "512",
            "--storage-gib",
            "1",
        ]);
        command.args([
            "--bandwidth-mbps",
            "unlimited",
            "--period",
            "3600",
            "--kind",
            "sev-snp",
        ]);
        command.args([
            "--min-grade",
            "hardware-verified",
            "--max-total",
            "1",
            "--memo",
            "77",
        ]);
        command.args([
            "--measurement",
            &first.measurement.to_string(),
            "--image-digest",
            &"11".repeat(32),
        ]);
        command.args(["--image-url", "https://rogue.test/manifest.json", "--ssh-key"]);
        command.arg(first.ssh_key.with_extension("pub"));
        let NewContract { contract } = self.json(command)?;
        Ok(contract)
    }
}
