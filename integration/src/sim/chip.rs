//! The chip: measures at the launch, signs reports afterwards.

use std::fs;
use std::io::{Read, Write};

use anyhow::{Context, Result, ensure};
use attestation::agent::simulator;
use attestation::agent::table::Table;
use attestation::agent::{Deframer, frame};
use attestation::measure::{DirectBoot, GUEST_FEATURES, Vmm, snp};
use attestation::sim::{Launch, Platform};

use super::SnpLaunch;

/// What the silicon would measure: the files that are really on the command line, by the same code as `attest measure`.
pub fn measure(launch: &SnpLaunch) -> Result<Launch> {
    let read =
        |path: &std::path::Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let initrd = launch.initrd.as_deref().map(read).transpose()?;
    let (firmware, kernel) = (read(&launch.firmware)?, read(&launch.kernel)?);
    let measurement = snp(&attestation::measure::SnpLaunch {
        firmware: &firmware,
        vcpus: launch.vcpus,
        vcpu: launch.cpu.parse()?,
        direct_boot: Some(DirectBoot::new(&kernel, initrd.as_deref(), &launch.append)),
        guest_features: GUEST_FEATURES,
        vmm: Vmm::Qemu,
        firmware_digest: None,
    })?;
    Ok(Launch {
        measurement,
        host_data: launch.host_data,
        policy: launch.policy,
    })
}

/// Answers one guest's questions until its VM ends.
pub fn serve(platform: &Platform, launch: &Launch, from: &mut impl Read, to: &mut impl Write) -> Result<()> {
    // As under KVM without a certificate table: hostd gets the certificates from the maker's service.
    let table = Table::of_chain(&[]);
    let (mut frames, mut buffer) = (Deframer::new(), [0; 4096]);
    loop {
        let len = from.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        frames.push(&buffer[..len]);
        while let Some(next) = frames.next_frame() {
            // A guest that writes garbage gets no answer, as from a firmware that doesn't know the message.
            let Some(report_data) = next.ok().and_then(|content| simulator::read_question(&content)) else {
                continue;
            };
            let report = platform.report(launch, &report_data)?;
            ensure!(report.len() == 1184, "a report has 1,184 bytes");
            to.write_all(&frame(&simulator::answer(&report, &table)))?;
            to.flush()?;
        }
    }
}
