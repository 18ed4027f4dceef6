//! Where settings come from, in the order of [`ORDER`]. The first place that has some decides: broken ones there are named
//! and stop the search, they are never passed over for others.
//!
//! | place | how it is found | after use |
//! |---|---|---|
//! | `fw-cfg` | QEMU's fw_cfg, `opt/io.systemd.credentials/provider-seed` | stays: it is the hypervisor's |
//! | `smbios` | SMBIOS type 11 string `io.systemd.credential[.binary]:provider-seed=…` | stays: it is the firmware's |
//! | `partition` | GPT partition `decent-seed` with a FAT (`image-builder flash --seed`) | the whole partition is zeroed |
//! | `stick` | a FAT with the label `DECENT-SEED` | the file's clusters are zeroed, the file removed |
//! | `url` | the image's own `usr/lib/decent-cloud/seed.toml`: URL and SHA-256 | nothing to wipe |
//!
//! systemd's own import of credentials is off in trusted images (`systemd.import_credentials=no`): it would take units and
//! passwords from the firmware. This one credential is read here instead, bounded, and is data, not orders.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::medium;
use super::settings::{DELEGATION_MAX, SETTINGS_MAX};

/// The file on a medium.
pub const SETTINGS_FILE: &str = "provider-seed.toml";
/// The delegation beside it, or alone.
pub const DELEGATION_FILE: &str = "delegation";
/// Name of the credential.
const CREDENTIAL: &str = "provider-seed";
/// The largest SMBIOS table that is read.
const SMBIOS_MAX: u64 = 1 << 20;
/// For the pinned URL.
const FETCH: Duration = Duration::from_secs(30);

/// A kind of place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// QEMU's fw_cfg.
    FwCfg,
    /// SMBIOS type 11.
    Smbios,
    /// The seed partition.
    Partition,
    /// Another medium.
    Stick,
    /// The pinned URL.
    Url,
    /// Answers at the console.
    Console,
}

/// The places that are looked at before the network is up, the first one first.
pub const ORDER: [Place; 4] = [Place::FwCfg, Place::Smbios, Place::Partition, Place::Stick];

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FwCfg => "the hypervisor (fw_cfg)",
            Self::Smbios => "the firmware (SMBIOS)",
            Self::Partition => "the seed partition",
            Self::Stick => "the medium DECENT-SEED",
            Self::Url => "the image's URL",
            Self::Console => "the console",
        })
    }
}

impl Place {
    /// The device of a medium.
    fn device(self, root: &Path) -> Option<PathBuf> {
        match self {
            Self::Partition => Some(root.join("dev/disk/by-partlabel/decent-seed")),
            Self::Stick => Some(root.join("dev/disk/by-label/DECENT-SEED")),
            _ => None,
        }
    }

    /// What lies there; `None`: nothing. `root` is `/`, or a test's.
    pub fn settings(self, root: &Path) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::FwCfg => {
                let path =
                    format!("sys/firmware/qemu_fw_cfg/by_name/opt/io.systemd.credentials/{CREDENTIAL}/raw");
                bounded(&root.join(path), SETTINGS_MAX as u64)
            }
            Self::Smbios => {
                let table = bounded(&root.join("sys/firmware/dmi/tables/DMI"), SMBIOS_MAX)?;
                table.map_or(Ok(None), |table| oem_credential(&table))
            }
            Self::Partition | Self::Stick => self.file(root, SETTINGS_FILE, SETTINGS_MAX),
            Self::Url | Self::Console => Ok(None),
        }
    }

    /// A delegation that was brought.
    pub fn delegation(self, root: &Path) -> io::Result<Option<Vec<u8>>> {
        self.file(root, DELEGATION_FILE, DELEGATION_MAX)
    }

    fn file(self, root: &Path, name: &str, max: usize) -> io::Result<Option<Vec<u8>>> {
        match self.device(root) {
            Some(device) if device.exists() && !is_blank(&device)? => medium::read(&device, name, max),
            _ => Ok(None),
        }
    }

    /// Wipes what was used; `false`: what lies there isn't ours to wipe.
    pub fn wipe(self, root: &Path, name: &str) -> io::Result<bool> {
        let Some(device) = self.device(root) else {
            return Ok(false);
        };
        match self {
            _ if !device.exists() => {}
            Self::Partition => medium::wipe_all(&device)?,
            _ => medium::wipe(&device, name)?,
        }
        Ok(true)
    }
}

/// Whether a device begins with zeros: a partition that was wiped.
fn is_blank(device: &Path) -> io::Result<bool> {
    let mut start = [0; 512];
    File::open(device)?.read_exact(&mut start)?;
    Ok(start.iter().all(|byte| *byte == 0))
}

/// A file, in bounds (one byte more shows that it is too long); `None` if there is none.
pub(crate) fn bounded(path: &Path, max: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut content = Vec::new();
    file.take(max + 1).read_to_end(&mut content)?;
    Ok(Some(content))
}

/// The credential in SMBIOS' OEM strings (SMBIOS 3.7, 6.1.3 and 7.12): structures of a header, a body, and strings that
/// two zeros end.
fn oem_credential(table: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut rest = table;
    while let [kind, length, ..] = *rest {
        let Some(strings) = rest.get(usize::from(length).max(4)..) else {
            break;
        };
        let end = strings
            .windows(2)
            .position(|pair| pair == [0, 0])
            .unwrap_or(strings.len());
        if kind == 11 {
            for string in strings[..end].split(|byte| *byte == 0) {
                if let Some(found) = credential(string) {
                    return found.map(Some);
                }
            }
        }
        if kind == 127 {
            break;
        }
        rest = strings.get(end + 2..).unwrap_or_default();
    }
    Ok(None)
}

fn credential(string: &[u8]) -> Option<io::Result<Vec<u8>>> {
    let rest = string.strip_prefix(b"io.systemd.credential")?;
    let (rest, binary) = match rest.strip_prefix(b".binary") {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let value = rest
        .strip_prefix(b":")?
        .strip_prefix(CREDENTIAL.as_bytes())?
        .strip_prefix(b"=")?;
    let decode = || {
        BASE64_STANDARD
            .decode(value)
            .map_err(|error| io::Error::other(format!("the SMBIOS string isn't Base64: {error}")))
    };
    Some(if binary { decode() } else { Ok(value.to_vec()) })
}

/// What the image says about settings in the network: `[seed]` of image.toml.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pin {
    url: String,
    sha256: String,
}

/// The settings behind the image's pinned URL; `None` if the image has none. The digest decides: neither the network nor
/// the server can change a byte. Where the image brings an authority's certificates, only those count, so that nobody else
/// reads what the host is told.
pub async fn fetch(root: &Path) -> Result<Option<Vec<u8>>, String> {
    let path = root.join("usr/lib/decent-cloud/seed.toml");
    let Some(text) = bounded(&path, 4096).map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    let pin: Pin = toml::from_str(&String::from_utf8_lossy(&text)).map_err(|error| error.to_string())?;
    let failed = |error: reqwest::Error| format!("{}: {}", pin.url, crate::wiring::chain(&error));
    let mut client = reqwest::Client::builder()
        .timeout(FETCH)
        .redirect(reqwest::redirect::Policy::none());
    let ca = root.join("usr/lib/decent-cloud/seed-ca.pem");
    if let Some(ca) = bounded(&ca, SETTINGS_MAX as u64).map_err(|error| error.to_string())? {
        client = client.tls_certs_only(reqwest::Certificate::from_pem_bundle(&ca).map_err(failed)?);
    }
    let client = client.build().map_err(failed)?;
    let answer = client
        .get(&pin.url)
        .send()
        .await
        .and_then(reqwest::Response::error_for_status);
    let mut answer = answer.map_err(failed)?;
    let mut content = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(failed)? {
        content.extend_from_slice(&piece);
        if content.len() > SETTINGS_MAX {
            return Err(format!("{}: more than 64 KiB", pin.url));
        }
    }
    let found = hex::encode(Sha256::digest(&content));
    if !found.eq_ignore_ascii_case(&pin.sha256) {
        return Err(format!(
            "{}: its SHA-256 is {found}, the image wants {}: nothing of it was used",
            pin.url, pin.sha256
        ));
    }
    Ok(Some(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn structure(kind: u8, strings: &[&str]) -> Vec<u8> {
        let mut bytes = vec![kind, 5, 0, 0, strings.len() as u8];
        for string in strings {
            bytes.extend(string.as_bytes());
            bytes.push(0);
        }
        bytes.extend(if strings.is_empty() { &[0, 0][..] } else { &[0] });
        bytes
    }

    #[test]
    fn the_credential_is_found_among_other_strings() {
        let other = structure(1, &["io.systemd.credential:provider-seed=not here"]);
        let named = structure(
            11,
            &["Default string", "io.systemd.credential:provider-seed=a = 1\n"],
        );
        let binary = structure(11, &["io.systemd.credential.binary:provider-seed=YWJj"]);
        let foreign = structure(11, &["io.systemd.credential:provider-seeds=x", "provider-seed=x"]);
        let end = structure(127, &[]);
        for (parts, expected) in [
            (vec![&other, &named, &end], Some(&b"a = 1\n"[..])),
            (vec![&other, &binary, &named, &end], Some(b"abc")),
            (vec![&foreign, &end], None),
            (vec![&end, &named], None),
            (vec![], None),
        ] {
            let table: Vec<u8> = parts.into_iter().flatten().copied().collect();
            assert_eq!(oem_credential(&table).unwrap().as_deref(), expected);
        }
        let broken = structure(11, &["io.systemd.credential.binary:provider-seed=%%"]);
        assert!(
            oem_credential(&broken)
                .unwrap_err()
                .to_string()
                .contains("Base64")
        );
    }

    proptest::proptest! {
        #[test]
        fn no_table_makes_it_panic(table: Vec<u8>) {
            let _ = oem_credential(&table);
        }
    }
}
