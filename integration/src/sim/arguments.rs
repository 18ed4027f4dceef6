//! QEMU's command line: what of it is the SNP launch, and what a QEMU without the silicon gets instead. Pure.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// What the silicon would be told, and would measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnpLaunch {
    /// Guest policy.
    pub policy: u64,
    /// `HOST_DATA`.
    pub host_data: [u8; 32],
    /// OVMF.
    pub firmware: PathBuf,
    /// bzImage.
    pub kernel: PathBuf,
    /// Initrd.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub append: String,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// CPU model, e.g. `EPYC-v4`.
    pub cpu: String,
}

/// What an invocation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// Not an SNP launch: QEMU gets the arguments as they are.
    Plain,
    /// `-object help`: QEMU's list, plus what this one has.
    ObjectHelp,
    /// An SNP launch, and the arguments for a QEMU without it.
    Snp(Box<SnpLaunch>, Vec<String>),
}

const OBJECT: &str = "sev-snp-guest";

/// Reads QEMU's arguments (without the program's name).
pub fn parse(arguments: &[String]) -> Result<Invocation> {
    if arguments
        .windows(2)
        .any(|pair| pair[0] == "-object" && pair[1] == "help")
    {
        return Ok(Invocation::ObjectHelp);
    }
    let Some(object) = values(arguments, "-object").find(|value| value.split(',').next() == Some(OBJECT))
    else {
        return Ok(Invocation::Plain);
    };
    let launch = launch(arguments, object)?;
    let mut real = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let takes_value = matches!(word.as_str(), "-object" | "-machine" | "-bios" | "-cpu");
        if !takes_value {
            real.push(word.clone());
            continue;
        }
        let value = words.next().with_context(|| format!("{word} without a value"))?;
        match word.as_str() {
            "-bios" | "-cpu" => {}
            "-object" if value == object => {}
            "-machine" => {
                let kept: Vec<&str> = value
                    .split(',')
                    .filter(|part| !part.starts_with("confidential-guest-support="))
                    .collect();
                if !kept.is_empty() {
                    real.extend([word.clone(), kept.join(",")]);
                }
            }
            _ => real.extend([word.clone(), value.clone()]),
        }
    }
    // la57: slower in emulation; cx16: newer kernels panic with QEMU 7.2. Neither is part of the measurement.
    real.extend(["-cpu".to_owned(), "max,la57=off,cx16=off".to_owned()]);
    Ok(Invocation::Snp(Box::new(launch), real))
}

fn launch(arguments: &[String], object: &str) -> Result<SnpLaunch> {
    let property = |name: &str| {
        object
            .split(',')
            .find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
    };
    let id = property("id").context("sev-snp-guest without an id")?;
    let wanted = format!("confidential-guest-support={id}");
    ensure!(
        values(arguments, "-machine").any(|value| value.split(',').any(|part| part == wanted)),
        "sev-snp-guest {id} isn't the machine's confidential-guest-support"
    );
    if property("kernel-hashes") != Some("on") {
        bail!("kernel-hashes must be on: this machine measures kernel, initrd and command line");
    }
    let policy = property("policy").context("sev-snp-guest without a policy")?;
    let policy = match policy.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => policy.parse(),
    }
    .with_context(|| format!("policy {policy}"))?;
    let host_data = STANDARD.decode(property("host-data").context("sev-snp-guest without host-data")?)?;
    let vcpus = last(arguments, "-smp")
        .and_then(|smp| smp.split(',').next())
        .unwrap_or("1");
    Ok(SnpLaunch {
        policy,
        host_data: host_data.try_into().ok().context("host-data isn't 32 bytes")?,
        firmware: last(arguments, "-bios")
            .context("SNP needs firmware (-bios)")?
            .into(),
        kernel: last(arguments, "-kernel").context("no -kernel")?.into(),
        initrd: last(arguments, "-initrd").map(PathBuf::from),
        append: last(arguments, "-append").unwrap_or_default().to_owned(),
        vcpus: vcpus
            .trim_start_matches("cpus=")
            .parse()
            .with_context(|| format!("-smp {vcpus}"))?,
        cpu: last(arguments, "-cpu")
            .and_then(|cpu| cpu.split(',').next())
            .context("no -cpu")?
            .to_owned(),
    })
}

/// The value that counts: QEMU takes the last.
fn last<'a>(arguments: &'a [String], option: &'static str) -> Option<&'a str> {
    values(arguments, option).last()
}

/// The values of an option, in order.
fn values<'a>(arguments: &'a [String], option: &'static str) -> impl Iterator<Item = &'a str> {
    arguments
        .windows(2)
        .filter(move |pair| pair[0] == option)
        .map(|pair| pair[1].as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    const LAUNCH: &str = "-name x -machine pc-q35-7.2,smm=off,confidential-guest-support=sev0 -accel tcg -cpu qemu64 \
         -bios /i/OVMF.fd -kernel /i/k -initrd /i/r -append quiet -smp 2,sockets=2 -cpu EPYC-v4 -object \
         {\"qom-type\":\"rng-random\"} -object sev-snp-guest,id=sev0,policy=0x30000,cbitpos=51,kernel-hashes=on,host-data=";

    fn launch_line() -> Vec<String> {
        words(&format!("{LAUNCH}{}", STANDARD.encode([7; 32])))
    }

    #[test]
    fn a_launch_is_what_the_command_line_says_and_the_real_qemu_gets_none_of_it() {
        let Invocation::Snp(launch, real) = parse(&launch_line()).unwrap() else {
            panic!("no launch")
        };
        assert_eq!(
            (launch.policy, launch.host_data, launch.vcpus),
            (0x3_0000, [7; 32], 2)
        );
        assert_eq!(
            (launch.cpu.as_str(), launch.append.as_str()),
            ("EPYC-v4", "quiet")
        );
        assert_eq!(launch.firmware, PathBuf::from("/i/OVMF.fd"));
        assert_eq!(
            real.join(" "),
            "-name x -machine pc-q35-7.2,smm=off -accel tcg -kernel /i/k -initrd /i/r -append quiet -smp 2,sockets=2 \
             -object {\"qom-type\":\"rng-random\"} -cpu max,la57=off,cx16=off"
        );
    }

    #[test]
    fn half_a_launch_is_refused_and_no_launch_passes_through() {
        assert_eq!(
            parse(&words("-machine none -qmp stdio")).unwrap(),
            Invocation::Plain
        );
        assert_eq!(
            parse(&words("-machine none -object help")).unwrap(),
            Invocation::ObjectHelp
        );
        for (from, to) in [
            ("kernel-hashes=on", "kernel-hashes=off"),
            (",confidential-guest-support=sev0", ""),
            ("-bios /i/OVMF.fd ", ""),
            ("policy=0x30000", "policy=x"),
            ("host-data=", "host-data=AAAA"),
        ] {
            let line = launch_line().join(" ");
            let broken = line.replace(from, to);
            assert_ne!(line, broken, "{from}");
            assert!(parse(&words(&broken)).is_err(), "{from} → {to}");
        }
    }
}
