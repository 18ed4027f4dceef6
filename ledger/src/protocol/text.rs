//! Texts from outside: DNS names, OpenSSH keys, URLs, words for people. Each is checked once, here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::net::IpAddr;

/// Checks a DNS host name: labels of letters, digits and inner hyphens, at least two of them, lower case, at most 253
/// bytes, and not to be taken for an IP address (RFC 1123 2.1).
pub(super) fn dns_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > 253 {
        return Err(format!("a DNS name has 1 to 253 bytes, this has {}", name.len()));
    }
    let labels: Vec<&str> = name.split('.').collect();
    for label in &labels {
        let inner = label
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if label.is_empty() || label.len() > 63 || !inner || label.starts_with('-') || label.ends_with('-') {
            return Err(format!(
                "{name:?} is not a DNS name: labels have 1 to 63 of a-z, 0-9 and inner hyphens (lower case, no final dot)"
            ));
        }
    }
    match labels.last() {
        Some(last) if labels.len() > 1 && !last.bytes().all(|b| b.is_ascii_digit()) => Ok(()),
        _ => Err(format!(
            "{name:?} is not a DNS name of at least two labels, or is an IP address"
        )),
    }
}

/// Whether `name` is `domain` or lies under it.
pub(super) fn is_under(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Checks a host's public address: an IP address or a DNS name.
pub(super) fn address(text: &str) -> Result<(), String> {
    if text.parse::<IpAddr>().is_ok() {
        Ok(())
    } else {
        dns_name(text).map_err(|e| format!("neither an IP address nor a DNS name: {e}"))
    }
}

/// Checks an image URL: `https`, `http` or `file`, printable ASCII without spaces, at most 2048 bytes.
pub(super) fn url(text: &str) -> Result<(), String> {
    if text.len() > 2048 {
        return Err(format!("at most 2048 bytes, this has {}", text.len()));
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err("not a URL: https://… expected".to_owned());
    };
    if !matches!(scheme, "https" | "http" | "file") {
        return Err(format!("scheme {scheme:?} is none of https, http, file"));
    }
    if rest.is_empty() || !rest.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("a URL is printable ASCII without spaces, and names something after ://".to_owned());
    }
    Ok(())
}

/// Checks words for people: `min..=max` characters, none of them a control character.
pub(super) fn words(text: &str, min: usize, max: usize) -> Result<(), String> {
    let count = text.chars().count();
    if !(min..=max).contains(&count) {
        return Err(format!("{min} to {max} characters, this has {count}"));
    }
    if text.chars().any(char::is_control) {
        return Err("no control characters, please".to_owned());
    }
    Ok(())
}

/// Checks one OpenSSH public key line: `type base64 [comment]`, without options; the blob must be a key of that type.
pub(super) fn ssh_key(line: &str) -> Result<(), String> {
    let bad = |why: &str| {
        Err(format!(
            "not an OpenSSH public key ({why}); give the one line of a .pub file"
        ))
    };
    if line.len() > 8192 || line.chars().any(char::is_control) {
        return bad("longer than 8192 bytes, or control characters");
    }
    let mut parts = line.splitn(3, ' ');
    let (Some(kind), Some(blob)) = (parts.next(), parts.next()) else {
        return bad("type and base64 expected");
    };
    let Ok(blob) = STANDARD.decode(blob) else {
        return bad("its base64 can't be read");
    };
    let mut fields = Fields(&blob);
    if fields.next() != Some(kind.as_bytes()) {
        return bad("its inside is of another type than its outside");
    }
    let well_formed = match kind {
        "ssh-ed25519" => fields.next().is_some_and(|key| key.len() == 32),
        "sk-ssh-ed25519@openssh.com" => {
            fields.next().is_some_and(|key| key.len() == 32)
                && fields.next().is_some_and(|app| !app.is_empty())
        }
        "ecdsa-sha2-nistp256" => fields.point(b"nistp256", 65),
        "ecdsa-sha2-nistp384" => fields.point(b"nistp384", 97),
        "ecdsa-sha2-nistp521" => fields.point(b"nistp521", 133),
        "sk-ecdsa-sha2-nistp256@openssh.com" => {
            fields.point(b"nistp256", 65) && fields.next().is_some_and(|app| !app.is_empty())
        }
        "ssh-rsa" => {
            let exponent = fields.next().is_some_and(|e| (1..=8).contains(&e.len()));
            // 2048 to 16384 bits; a leading zero byte keeps the number positive.
            exponent && fields.next().is_some_and(|n| (256..=2049).contains(&n.len()))
        }
        _ => return bad("its type is none of ed25519, ecdsa-sha2-nistp*, rsa and their sk- kinds"),
    };
    if well_formed && fields.0.is_empty() {
        Ok(())
    } else {
        bad("its inside has the wrong lengths for its type")
    }
}

/// RFC 4251 strings: a 32-bit length, then so many bytes.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Option<&'a [u8]> {
        let (len, rest) = self.0.split_first_chunk::<4>()?;
        let (field, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        self.0 = rest;
        Some(field)
    }
    fn point(&mut self, curve: &[u8], len: usize) -> bool {
        self.next() == Some(curve)
            && self
                .next()
                .is_some_and(|q| q.len() == len && q.first() == Some(&4))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A well-formed Ed25519 line.
    pub(crate) fn ed25519_line(seed: u8) -> String {
        let mut blob = Vec::new();
        for field in [b"ssh-ed25519".as_slice(), &[seed; 32]] {
            blob.extend_from_slice(&(field.len() as u32).to_be_bytes());
            blob.extend_from_slice(field);
        }
        format!("ssh-ed25519 {} me@here", STANDARD.encode(blob))
    }

    #[test]
    fn dns_names() {
        for good in [
            "a.b",
            "example.com",
            "x-1.example.com",
            "1.2.3.4.example",
            "xn--nxasmq6b.example",
            "3com.com",
        ] {
            assert_eq!(dns_name(good), Ok(()), "{good}");
        }
        let long = format!("{}.com", "a".repeat(64));
        let longer = vec!["abcdefgh"; 30].join(".");
        for bad in [
            "",
            ".",
            "localhost",
            "a..b",
            ".a.b",
            "a.b.",
            "-a.b",
            "a-.b",
            "A.b",
            "a_b.c",
            "a b.c",
            "ä.de",
            "1.2.3.4",
            "a.b\n",
            "*.a.b",
            "a.b/c",
            &long,
            &longer,
        ] {
            assert!(dns_name(bad).is_err(), "{bad:?}");
        }
        assert!(is_under("a.p.net", "p.net") && is_under("p.net", "p.net") && !is_under("ap.net", "p.net"));
    }

    #[test]
    fn ssh_keys() {
        let good = ed25519_line(7);
        assert_eq!(ssh_key(&good), Ok(()));
        assert_eq!(
            ssh_key(good.rsplit_once(' ').unwrap().0),
            Ok(()),
            "without a comment"
        );
        let cut = STANDARD.encode(&STANDARD.decode(good.split(' ').nth(1).unwrap()).unwrap()[..40]);
        for bad in [
            "",
            "ssh-ed25519",
            "hello world",
            "ssh-ed25519 !!!",
            &good.replacen("ssh-ed25519", "ssh-rsa", 1),
            &format!("command=\"x\" {good}"),
            &format!("{good}\nssh-ed25519 AAAA"),
            &format!("ssh-ed25519 {cut}"),
            "-----BEGIN OPENSSH PRIVATE KEY-----",
        ] {
            assert!(ssh_key(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn urls_and_addresses() {
        for good in [
            "https://a/manifest.json",
            "file:///x/manifest.json",
            "http://[::1]:80/x",
        ] {
            assert_eq!(url(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "x",
            "ftp://a/b",
            "https://",
            "https://a b",
            "https://ä",
            "https://a\n",
            &format!("https://{}", "a".repeat(2048)),
        ] {
            assert!(url(bad).is_err(), "{bad:?}");
        }
        assert!(address("203.0.113.1").is_ok() && address("::1").is_ok() && address("h.example").is_ok());
        assert!(address("203.0.113").is_err() && address("").is_err());
    }
}
