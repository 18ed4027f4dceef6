//! What people type, parsed once and strictly: amounts, periods, quotas, ports, TCB floors.

use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, bail};
use ledger::api::{
    AtRest, Bytes, DCT, DECIMALS, Digest32, Grade, PortRequest, ProviderProfile, Quota, TcbFloor, TpmName,
    Transport, VmKind,
};
use serde::Deserialize;

/// Names as they are typed and shown, with what they mean.
pub(crate) const KINDS: [(&str, VmKind); 3] = [
    ("plain", VmKind::Plain),
    ("sev-snp", VmKind::SevSnp),
    ("tdx", VmKind::Tdx),
];

/// Grades, worst first.
pub(crate) const GRADES: [(&str, Grade); 4] = [
    ("unconfirmed", Grade::Unconfirmed),
    ("host-signed", Grade::HostSigned),
    ("host-verified", Grade::HostVerified),
    ("hardware-verified", Grade::HardwareVerified),
];

fn named<T: Copy>(text: &str, names: &[(&str, T)]) -> Result<T, String> {
    names
        .iter()
        .find(|(name, _)| *name == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| {
            let all: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
            format!("expected one of: {}", all.join(", "))
        })
}

/// A TPM's name of a key, as `hostd evidence` shows it.
pub(crate) fn tpm_name(text: &str) -> Result<TpmName, String> {
    let wrong = "expected name: and 68 hexadecimal digits that begin with 000b (a TPM's name by SHA-256)";
    let name: TpmName =
        hexadecimal(text.strip_prefix("name:").ok_or(wrong)?).map_err(|_| wrong.to_owned())?;
    match name.0 {
        [0, 0x0b, ..] => Ok(name),
        _ => Err(wrong.to_owned()),
    }
}

/// A kind of VM.
pub(crate) fn kind(text: &str) -> Result<VmKind, String> {
    named(text, &KINDS)
}

/// A grade of confirmation.
pub(crate) fn grade(text: &str) -> Result<Grade, String> {
    named(text, &GRADES)
}

/// Encryption at rest.
pub(crate) fn at_rest(text: &str) -> Result<AtRest, String> {
    named(text, &[("any", AtRest::Any), ("encrypted", AtRest::Encrypted)])
}

/// An amount of DCT: digits, and at most nine more after a point. No signs, no exponents, no separators, no rounding.
pub(crate) fn amount(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("{text:?} is no amount of DCT: digits, at most {DECIMALS} of them after a point (12.5)");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > usize::from(DECIMALS) {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let fraction: u64 = format!("{fraction:0<9}").parse().map_err(|_| wrong())?;
    whole
        .checked_mul(DCT)
        .and_then(|units| units.checked_add(fraction))
        .ok_or_else(wrong)
}

/// Seconds, or a number with s, m, h or d.
pub(crate) fn period(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("{text:?} is no period: seconds, or a number with s, m, h or d (90m, 30d), above 0");
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3_600),
        Some((at, 'd')) => (&text[..at], 86_400),
        _ => (text, 1),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number
        .checked_mul(unit)
        .filter(|seconds| *seconds > 0)
        .ok_or_else(wrong)
}

/// A number, or `unlimited`.
pub(crate) fn quota(text: &str) -> Result<Quota, String> {
    if text == "unlimited" {
        return Ok(Quota::Unlimited);
    }
    text.parse()
        .map(Quota::Limited)
        .map_err(|_| format!("{text:?}: expected a whole number, or `unlimited`"))
}

/// `tcp/22`.
pub(crate) fn port(text: &str) -> Result<PortRequest, String> {
    let wrong = || format!("{text:?}: expected tcp/PORT or udp/PORT, as in tcp/22");
    let (transport, port) = text.split_once('/').ok_or_else(wrong)?;
    let transport =
        named(transport, &[("tcp", Transport::Tcp), ("udp", Transport::Udp)]).map_err(|_| wrong())?;
    let port: u16 = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
    Ok(PortRequest { transport, port })
}

/// `bootloader=9,snp=22`.
pub(crate) fn tcb(text: &str) -> Result<TcbFloor, String> {
    let mut floor = TcbFloor::default();
    for part in text.split(',') {
        let wrong = || {
            format!(
                "{part:?}: expected NAME=NUMBER (0 to 255) of fmc, bootloader, tee, snp, microcode; as in snp=22,microcode=213"
            )
        };
        let (name, number) = part.split_once('=').ok_or_else(wrong)?;
        let slot = match name {
            "fmc" => &mut floor.fmc,
            "bootloader" => &mut floor.bootloader,
            "tee" => &mut floor.tee,
            "snp" => &mut floor.snp,
            "microcode" => &mut floor.microcode,
            _ => return Err(wrong()),
        };
        if slot.replace(number.parse().map_err(|_| wrong())?).is_some() {
            return Err(format!("{name} is given twice"));
        }
    }
    Ok(floor)
}

/// Bytes in hexadecimal.
pub(crate) fn hexadecimal<const N: usize>(text: &str) -> Result<Bytes<N>, String> {
    Bytes::from_str(text).map_err(|error| format!("{error}; expected {} hexadecimal digits", 2 * N))
}

/// When something expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    /// So many seconds of the ledger's clock from now.
    In(u64),
    /// At this second (ledger's clock, since 1970).
    At(u64),
}

/// A period from now, or `@SECONDS` since 1970.
pub(crate) fn expiry(text: &str) -> Result<Expiry, String> {
    match text.strip_prefix('@') {
        Some(seconds) => seconds
            .parse()
            .map(Expiry::At)
            .map_err(|_| format!("{text:?}: after @ expected seconds since 1970 of the ledger's clock")),
        None => period(text).map(Expiry::In),
    }
}

/// A file, if it isn't larger than `max`.
pub(crate) fn file(path: &Path, max: usize) -> anyhow::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(max as u64 + 1).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() > max {
        bail!("{} is larger than {max} bytes", path.display());
    }
    Ok(bytes)
}

/// OpenSSH public keys, one a line; empty lines and comments are skipped.
pub(crate) fn ssh_keys(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = String::from_utf8(file(path, 64 * 1024)?)
        .with_context(|| format!("{} is not text", path.display()))?;
    if text.contains("PRIVATE KEY") {
        bail!(
            "{} is a private key: give the file that ends in .pub; nothing was sent",
            path.display()
        );
    }
    let keys: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    if keys.is_empty() {
        bail!("{} holds no OpenSSH public key", path.display());
    }
    Ok(keys)
}

/// A provider's profile as a file: the same fields, unknown ones refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProfileFile {
    name: String,
    domain: String,
    contact: String,
    legal_contract: Digest32,
}

/// Reads a profile (TOML).
pub(crate) fn profile(path: &Path) -> anyhow::Result<ProviderProfile> {
    let text = String::from_utf8(file(path, 64 * 1024)?)
        .with_context(|| format!("{} is not text", path.display()))?;
    let ProfileFile { name, domain, contact, legal_contract } = toml::from_str(&text).with_context(|| {
        format!(
            "{} is no profile; expected the keys name, domain, contact, legal_contract (SHA-256 in hexadecimal)",
            path.display()
        )
    })?;
    Ok(ProviderProfile {
        name,
        domain,
        contact,
        legal_contract,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact_or_refused() {
        for (text, want) in [
            ("0", Some(0)),
            ("1", Some(DCT)),
            ("12.5", Some(12_500_000_000)),
            ("0.000000001", Some(1)),
            ("18446744073.709551615", Some(u64::MAX)),
            ("18446744073.709551616", None),
            ("0.0000000001", None),
            ("99999999999999999999", None),
            ("", None),
            (".5", None),
            ("5.", None),
            ("1.2.3", None),
            ("-1", None),
            ("+1", None),
            ("1e3", None),
            ("1,5", None),
            ("1 000", None),
            ("١", None),
            ("0x10", None),
        ] {
            assert_eq!(amount(text).ok(), want, "{text:?}");
        }
    }

    #[test]
    fn periods_quotas_ports_and_floors() {
        for (text, want) in [
            ("7200", Some(7_200)),
            ("90m", Some(5_400)),
            ("2h", Some(7_200)),
            ("30d", Some(2_592_000)),
            ("5s", Some(5)),
            ("0", None),
            ("0d", None),
            ("h", None),
            ("", None),
            ("-5", None),
            ("1.5h", None),
            ("1é", None),
            ("999999999999999999d", None),
        ] {
            assert_eq!(period(text).ok(), want, "{text:?}");
        }
        assert_eq!(quota("unlimited"), Ok(Quota::Unlimited));
        assert_eq!(quota("7"), Ok(Quota::Limited(7)));
        assert!(quota("-7").is_err() && quota("").is_err());
        assert_eq!(
            port("udp/53"),
            Ok(PortRequest {
                transport: Transport::Udp,
                port: 53
            })
        );
        for bad in ["22", "tcp/0", "tcp/65536", "sctp/1", "tcp/", "TCP/22"] {
            assert!(port(bad).is_err(), "{bad}");
        }
        assert_eq!(
            tcb("snp=22,tee=0"),
            Ok(TcbFloor {
                snp: Some(22),
                tee: Some(0),
                ..TcbFloor::default()
            })
        );
        for bad in ["", "snp", "snp=256", "spn=1", "snp=1,snp=2", "snp=1,"] {
            assert!(tcb(bad).is_err(), "{bad}");
        }
        assert_eq!(expiry("@5"), Ok(Expiry::At(5)));
        assert_eq!(expiry("5m"), Ok(Expiry::In(300)));
        assert!(expiry("@x").is_err());
    }

    #[test]
    fn a_private_ssh_key_is_never_sent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id");
        std::fs::write(&path, "-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
        assert!(ssh_keys(&path).unwrap_err().to_string().contains(".pub"));
        std::fs::write(&path, "# c\n\nssh-ed25519 AAAA me\n").unwrap();
        assert_eq!(ssh_keys(&path).unwrap(), ["ssh-ed25519 AAAA me"]);
        std::fs::write(&path, "\n").unwrap();
        assert!(ssh_keys(&path).is_err());
    }
}
