//! The main job's way from payment to the first TLS byte, with real VMs and nothing else in between: `make bench`.

use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use hostd::surface::model::Explanation;

use super::setting::Ledger;
use super::world::{self, Place};
use super::{Job, Options};
use crate::timeline::Timeline;

/// One VM's times.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Until Active.
    pub timeline: Timeline,
    /// From payment until a stranger on the internet had ended a TLS handshake with the VM, by name through HAProxy.
    pub first_tls: Duration,
}

/// Rents `count` confidential VMs one after the other, each on its own.
pub fn sample(options: &Options, count: u64) -> Result<Vec<Sample>> {
    super::with_job(options, |job| {
        let ledger = job.start_ledger()?;
        job.start_host(&ledger)?;
        (1..=count).map(|nth| job.sample(&ledger, nth)).collect()
    })
    .map(|(samples, _)| samples)
}

impl Job {
    fn sample(&mut self, ledger: &Ledger, nth: u64) -> Result<Sample> {
        let rented = self.rent(ledger, &ledger.alice, nth)?;
        let paid = SystemTime::now() - rented.paid.elapsed();
        self.follow_until_active(ledger, &rented)?;
        let contract = self.contract(ledger, &rented.id)?;
        let endpoint = contract.endpoint.context("no endpoint")?;
        let name = endpoint.names.first().context("no name is routed")?.clone();
        let first_tls = self.wait("a TLS handshake", Duration::from_secs(60), |job| {
            let begun = SystemTime::now();
            let output = world::output(&mut job.handshake(&name, &endpoint.address))?;
            if !output.status.success() {
                return Ok(None);
            }
            let seconds: f64 = String::from_utf8_lossy(&output.stdout).trim().parse()?;
            Ok(Some(
                begun.duration_since(paid)? + Duration::from_secs_f64(seconds),
            ))
        })?;
        let id = rented.id.to_string();
        let timeline = self.wait("hostd to confirm", Duration::from_secs(10), |job| {
            let explanation: Explanation = job.json(job.hostd(&["--json", "explain", &id])?)?;
            Ok(Timeline::new(paid, &explanation.steps))
        })?;
        self.run(self.decent(ledger, &ledger.alice, &["contract", "cancel", &id])?)?;
        self.wait("the host to release", Duration::from_secs(60), |job| {
            Ok(job.contract(ledger, &rented.id)?.released.then_some(()))
        })?;
        ensure!(
            first_tls >= timeline.active,
            "a TLS handshake before the contract was active"
        );
        Ok(Sample { timeline, first_tls })
    }

    /// curl that prints when the handshake was done, in seconds from its start.
    fn handshake(&self, name: &str, address: &str) -> Command {
        let mut curl = self.world.command(Place::Internet, "curl");
        curl.args(["-s", "-k", "--max-time", "5", "-o", "/dev/null"])
            .args(["-w", "%{time_appconnect}"])
            .args(["--resolve", &format!("{name}:443:{address}")])
            .arg(format!("https://{name}/"));
        curl
    }
}
