//! What a tenant who verified takes along: a `known_hosts` line and a TLS pin. Only written for verified evidence.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result};
use attestation::SshHostKey;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

/// A host name or address and a port, safe in a `known_hosts` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostPort {
    host: String,
    port: u16,
}

impl FromStr for HostPort {
    type Err = String;

    /// `HOST`, `HOST:PORT`, `[IPV6]:PORT`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or("expected [HOST]:PORT")?)),
            None if text.matches(':').count() == 1 => text
                .split_once(':')
                .map_or((text, None), |(host, port)| (host, Some(port))),
            None => (text, None),
        };
        let port = port.map_or(Ok(22), |port| port.parse().map_err(|_| "not a port"))?;
        let plain = |c: u8| c.is_ascii_alphanumeric() || b".-:_".contains(&c);
        if host.is_empty() || host.len() > 253 || !host.bytes().all(plain) || host.starts_with('-') {
            return Err("not a host name or address".to_owned());
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl HostPort {
    /// A line as ssh writes it (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT").
    pub(super) fn known_hosts_line(&self, key: &SshHostKey) -> String {
        match self.port {
            22 => format!("{} {key}\n", self.host),
            port => format!("[{}]:{port} {key}\n", self.host),
        }
    }
}

/// curl's `--pinnedpubkey`: SHA-256 of the key, base64.
pub(super) fn tls_pin(spki: &[u8]) -> String {
    format!("sha256//{}\n", STANDARD.encode(Sha256::digest(spki)))
}

/// Writes a file whole or not at all.
pub(super) fn write(path: &Path, content: &[u8]) -> Result<()> {
    let context = || format!("cannot write {}", path.display());
    let mut name = path.file_name().with_context(context)?.to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&new)
        .with_context(context)?;
    let written = file.write_all(content).and_then(|()| std::fs::rename(&new, path));
    if written.is_err() {
        // The error that counts is the one below.
        let _ = std::fs::remove_file(&new);
    }
    written.with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_become_lines_that_ssh_reads() {
        let key: SshHostKey =
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBoBSaZrGNRYY5vX2dnQa8Kt5j3sI0gTp4TcHqVlVtZi"
                .parse()
                .unwrap();
        for (text, want) in [
            ("vm.example", Some("vm.example ")),
            ("203.0.113.1:2201", Some("[203.0.113.1]:2201 ")),
            ("[2001:db8::1]:2201", Some("[2001:db8::1]:2201 ")),
            ("[2001:db8::1]", Some("2001:db8::1 ")),
            ("2001:db8::1", Some("2001:db8::1 ")),
            ("vm:0x", None),
            ("vm\n@cert-authority *", None),
            ("*,vm", None),
            ("vm evil", None),
            ("", None),
        ] {
            let line = text
                .parse::<HostPort>()
                .ok()
                .map(|host| host.known_hosts_line(&key));
            assert_eq!(line, want.map(|start| format!("{start}{key}\n")), "{text:?}");
        }
    }

    #[test]
    fn a_pin_is_what_curl_takes() {
        assert_eq!(
            tls_pin(b""),
            "sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"
        );
    }
}
