//! Step 8, names: a developer brings a DNS name, proves it, and is reached by it; a stranger who wants it doesn't get it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hostd::names::OwnName;
use hostd::surface::model::ContractLine;
use ledger::name_proof::{record_name, record_value};

use super::Job;
use super::contract::{OWN_NAME, Rented};
use super::developer::Access;
use super::setting::Ledger;
use super::world::{self, Place};
use crate::dns;

impl Job {
    /// Not routed, then proved, then routed: to the attested key.
    pub(super) fn own_name(&mut self, ledger: &Ledger, rented: &Rented, access: &Access) -> Result<()> {
        let started = Instant::now();
        self.report
            .heading("step 8", &format!("alice proves that {OWN_NAME} is hers"));
        let before = self.name_at_hostd(rented)?;
        self.report.say(&before.line());
        ensure!(!before.routed, "routed without a proof: {before:?}");
        ensure!(
            !world::output(&mut self.curl_own_name(access))?.status.success(),
            "{OWN_NAME} leads somewhere without a proof"
        );

        let (record, value) = (record_name(OWN_NAME), record_value(ledger.alice.principal));
        ensure!(
            (before.record.as_str(), before.value.as_str()) == (record.as_str(), value.as_str()),
            "hostd asks for another record: {before:?}"
        );
        self.report
            .say(&format!("alice publishes: {record} TXT \"{value}\""));
        dns::serve(&mut self.world, &[(record, value)])?;
        let after = self.wait("hostd to see the record", Duration::from_secs(15), |job| {
            Ok(Some(job.name_at_hostd(rented)?).filter(|name| name.routed))
        })?;
        self.report.say(&after.line());
        let page = self.run(self.curl_own_name(access))?;
        ensure!(
            page.contains(&rented.id.short()),
            "the page isn't the VM's:\n{page}"
        );
        self.report.done(
            "8",
            format!("{OWN_NAME} refused before its DNS proof, routed to the attested key after it"),
            started.elapsed(),
        );
        Ok(())
    }

    /// Bob has asked for the same name.
    pub(super) fn strangers_name(&mut self, rented: &Rented) -> Result<()> {
        let name = self.wait("hostd to look up bob's name", Duration::from_secs(15), |job| {
            Ok(Some(job.name_at_hostd(rented)?).filter(|name| name.why.is_some()))
        })?;
        self.report.say(&format!("bob wants it too: {}", name.line()));
        ensure!(
            !name.routed && name.line().contains("names another developer"),
            "a stranger has the name: {name:?}"
        );
        Ok(())
    }

    fn name_at_hostd(&self, rented: &Rented) -> Result<OwnName> {
        let lines: Vec<ContractLine> = self.json(self.hostd(&["--json", "contracts"])?)?;
        let line = lines.into_iter().find(|line| line.id == rented.id.to_string());
        line.and_then(|line| line.own_name)
            .context("hostd doesn't show the contract's own name")
    }

    fn curl_own_name(&self, access: &Access) -> std::process::Command {
        let mut curl = self.world.command(Place::Internet, "curl");
        curl.args(["-sS", "-k", "--max-time", "20", "--pinnedpubkey", &access.tls_pin]);
        curl.args(["--resolve", &format!("{OWN_NAME}:443:{}", access.ssh.0)]);
        curl.arg(format!("https://{OWN_NAME}/"));
        curl
    }
}
