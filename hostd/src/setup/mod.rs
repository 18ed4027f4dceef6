//! First boot: from a provider's settings to a host that may be registered, without anybody logging in.
//!
//! ```text
//!  source: fw_cfg · SMBIOS · partition · stick · URL · console
//!     │ bytes
//!     ▼
//!  settings: parsed, bounded ──▶ /etc/hostd/provider-seed.toml, source wiped
//!     │                               │ at each boot
//!     ▼                               ▼
//!  host key (TPM) ──▶ delegation ──▶ /etc/hostd/hostd.toml · /run/systemd/network/* · host name
//! ```
//! Level-triggered and idempotent: each call looks at what is there and does what is missing. Every file is whole or not
//! there ([`write`]); a medium is wiped only when its content is on disk here, and a wipe that was cut off is done again.
//! `hostd.toml` comes last: where it is, everything else is.
//!
//! Settings are looked for only while there are none. Later ones come from the console alone, so a stick that
//! somebody leaves in the machine changes nothing. A delegation counts only if it names this host's key and this
//! ledger, and is signed; a later one only by the same provider.
//!
//! | module | what |
//! |---|---|
//! | [`settings`] | `provider-seed.toml` |
//! | [`render`] | hostd.toml, systemd-networkd's files |
//! | [`source`] | where settings come from |
//! | `medium` | FAT volumes: read, wipe |
//! | `write` | whole files |

mod medium;
pub mod render;
pub mod settings;
pub mod source;
#[cfg(test)]
mod tests;
pub(crate) mod write;

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use candid::Principal;
use ledger::api::HostDelegation;
use ledger::client::Key;
use ledger::crypto;
use netns::IfName;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use self::settings::{Port, SETTINGS_MAX, Settings};
use self::source::{DELEGATION_FILE, ORDER, Place, SETTINGS_FILE};
use crate::config::{Fault, render as render_fault};
use crate::hostkey::{self, HostKeyError};
use crate::wiring::chain;

/// The largest key file.
const KEY_MAX: usize = 16 * 1024;
/// How the names of keys of other TPMs begin.
const KEPT: &str = "host-of-another-tpm-";

/// How it is done.
#[derive(Clone, Debug)]
pub struct Options {
    /// `/`, or a test's folder.
    pub root: PathBuf,
    /// The TPM, as tpm2-tss names it.
    pub tpm: String,
    /// A folder with answers of the console: `provider-seed.toml`, `delegation`, or both. They stand above everything
    /// else, and are taken away.
    pub answers: Option<PathBuf>,
    /// Whether the network is up: then the image's URL is asked too.
    pub network: bool,
}

/// How far the host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Nobody has brought settings.
    NoSettings,
    /// What was brought can't be used; see the faults. Nothing was changed.
    Refused,
    /// Settings are here; the provider's delegation isn't.
    NoDelegation,
    /// hostd can start.
    Ready,
}

/// What was found and done; kept in `/run/decent-cloud/setup.json` for the consoles.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How far the host is.
    pub stage: Stage,
    /// Where the settings came from.
    pub source: Option<Place>,
    /// What is wrong, each with what to do.
    pub faults: Vec<String>,
    /// What was done, for the log.
    pub done: Vec<String>,
    /// The host's name.
    pub name: Option<String>,
    /// Who the host is to the ledger.
    pub principal: Option<String>,
    /// The TPM's attestation key, for the delegation.
    pub attestation_key: Option<String>,
    /// Until when the delegation counts, nanoseconds since 1970.
    pub delegated_until: Option<u64>,
}

/// Where the settings came from; beside them, until they are wiped there.
#[derive(Debug, Serialize, Deserialize)]
struct Origin {
    place: Place,
    sha256: String,
    wiped: bool,
}

/// Why setting up stopped. Broken settings are no error: they are in the report.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A file.
    #[error("cannot {what} {}", .path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

struct Setup<'a> {
    options: &'a Options,
    report: Report,
}

/// Does what is missing, and says how far the host is.
pub async fn run(options: &Options) -> Result<Report, SetupError> {
    let mut setup = Setup {
        options,
        report: Report {
            stage: Stage::NoSettings,
            source: None,
            faults: Vec::new(),
            done: Vec::new(),
            name: None,
            principal: None,
            attestation_key: None,
            delegated_until: None,
        },
    };
    let answers = options.answers.as_deref().map(entries).unwrap_or_default();
    let result = setup.work().await;
    // Whatever was of no use, too: the service is started as long as something lies there.
    for path in answers.iter().filter(|path| path.exists()) {
        wipe_file(path)?;
    }
    if let Err(error) = &result {
        setup.report.faults.push(chain(error));
    }
    let Setup { report, .. } = setup;
    let place = options.root.join("run/decent-cloud");
    make_dir(&place, 0o755)?;
    let text = serde_json::to_vec_pretty(&report).unwrap_or_default();
    put(&place.join("setup.json"), &text, 0o644)?;
    result.map(|()| report)
}

/// The last report; `None` if there was none since the machine started.
pub fn last(root: &Path) -> Option<Report> {
    let text = source::bounded(&root.join("run/decent-cloud/setup.json"), 1 << 20).ok()??;
    serde_json::from_slice(&text).ok()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn put(path: &Path, content: &[u8], mode: u32) -> Result<(), SetupError> {
    write::file(path, content, mode).map_err(|source| SetupError::File {
        what: "write",
        path: path.to_owned(),
        source,
    })
}

fn make_dir(path: &Path, mode: u32) -> Result<(), SetupError> {
    let made = fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|source| SetupError::File {
        what: "make",
        path: path.to_owned(),
        source,
    })
}

fn rename(from: &Path, to: &Path) -> Result<(), SetupError> {
    write::rename(from, to).map_err(|source| SetupError::File {
        what: "rename",
        path: from.to_owned(),
        source,
    })
}

fn remove(path: &Path) -> Result<(), SetupError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(SetupError::File {
            what: "remove",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn get(path: &Path, max: usize) -> Result<Option<Vec<u8>>, SetupError> {
    source::bounded(path, max as u64).map_err(|source| SetupError::File {
        what: "read",
        path: path.to_owned(),
        source,
    })
}

impl Setup<'_> {
    fn etc(&self, name: &str) -> PathBuf {
        self.options.root.join("etc/hostd").join(name)
    }

    fn done(&mut self, what: String) {
        tracing::info!("{what}");
        self.report.done.push(what);
    }

    fn fault(&mut self, what: String) {
        tracing::error!("{what}");
        self.report.faults.push(what);
    }

    async fn work(&mut self) -> Result<(), SetupError> {
        make_dir(&self.etc(""), 0o750)?;
        // First: whoever brings nothing else still needs to know who this host is.
        let host = match self.key()? {
            Ok(key) => Some(key.principal()),
            Err(error) => {
                self.fault(chain(&error));
                None
            }
        };
        self.report.principal = host.map(|host| host.to_text());
        if host.is_some() {
            // Without it the host works, but nobody verifies what it runs.
            match hostkey::attestation_key(&self.options.tpm) {
                Ok(name) => self.report.attestation_key = Some(name),
                Err(why) => tracing::warn!("no attestation key: {why}"),
            }
        }
        let Some(settings) = self.settings().await? else {
            if !self.report.faults.is_empty() {
                self.report.stage = Stage::Refused;
            }
            return Ok(());
        };
        self.wipe_origin()?;
        self.report.stage = Stage::NoDelegation;
        self.report.name = Some(settings.file.host.name.clone());
        let uplink = self.network(&settings)?;
        let (Some(host), Some(uplink)) = (host, uplink) else {
            return Ok(());
        };
        self.delegation(&settings, host)?;
        if self.report.delegated_until.is_some() {
            let text = settings.hostd_toml(&uplink);
            self.put_changed(&self.etc("hostd.toml"), text.as_bytes(), 0o640)?;
            self.report.stage = Stage::Ready;
        }
        Ok(())
    }

    /// The host's key. A key of another TPM (the board was replaced, and the disk opened by its recovery key) is of no use
    /// here, and nobody can log in and take it away: it is kept beside, for the day that its TPM comes back.
    fn key(&mut self) -> Result<Result<Key, HostKeyError>, SetupError> {
        let (path, tpm) = (self.etc("host.pem"), &self.options.tpm);
        if path.exists() {
            match hostkey::read(&path, tpm) {
                Err(error) if error.is_foreign() => {}
                key => return Ok(key),
            }
            let pem = get(&path, KEY_MAX)?.unwrap_or_default();
            let kept = self.etc(&format!("{KEPT}{}.pem", &hex::encode(Sha256::digest(&pem))[..16]));
            // First: hostd can't run with a delegation for another key.
            remove(&self.etc("hostd.toml"))?;
            rename(&path, &kept)?;
            self.done(format!(
                "kept {}, a key of another TPM: was the board replaced?",
                kept.display()
            ));
        }
        let mut kept = entries(&self.etc(""));
        kept.retain(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(KEPT))
        });
        if let Some(ours) = kept
            .iter()
            .find(|kept| hostkey::read(kept, &self.options.tpm).is_ok())
        {
            rename(ours, &path)?;
            self.done(format!("took {} back: its TPM is here again", ours.display()));
        }
        Ok(hostkey::read_or_create(&path, &self.options.tpm))
    }

    /// Writes what isn't there yet as it should be; says whether it was.
    fn put_changed(&mut self, path: &Path, content: &[u8], mode: u32) -> Result<bool, SetupError> {
        if get(path, content.len())?.as_deref() == Some(content) {
            return Ok(false);
        }
        put(path, content, mode)?;
        self.done(format!("wrote {}", path.display()));
        Ok(true)
    }

    /// The settings that are kept here, or those that somebody brings. Broken ones are named and left where they are.
    async fn settings(&mut self) -> Result<Option<Settings>, SetupError> {
        if let Some(answers) = &self.options.answers {
            let path = answers.join(SETTINGS_FILE);
            if let Some(bytes) = get(&path, SETTINGS_MAX)? {
                let taken = self.take(Place::Console, &bytes)?;
                // Taken or not, they were answered to; the console shows the faults beside what was typed.
                wipe_file(&path)?;
                return Ok(taken);
            }
        }
        if let Some(bytes) = get(&self.etc(SETTINGS_FILE), SETTINGS_MAX)? {
            match Settings::parse(&bytes) {
                Ok(settings) => return Ok(Some(settings)),
                Err(faults) => {
                    // Written by an older hostd, or damaged: hostd.toml stays as it was.
                    self.name_faults(&self.etc(SETTINGS_FILE), &faults);
                    return Ok(None);
                }
            }
        }
        for place in ORDER {
            match place.settings(&self.options.root) {
                Ok(Some(bytes)) => return self.take(place, &bytes),
                Ok(None) => {}
                Err(error) => {
                    self.fault(format!("{place}: {error}; write it anew"));
                    return Ok(None);
                }
            }
        }
        if self.options.network {
            match source::fetch(&self.options.root).await {
                Ok(Some(bytes)) => return self.take(Place::Url, &bytes),
                Ok(None) => {}
                Err(why) => self.fault(why),
            }
        }
        Ok(None)
    }

    fn name_faults(&mut self, path: &Path, faults: &[Fault]) {
        for fault in faults {
            self.fault(render_fault(path, fault));
        }
    }

    fn take(&mut self, place: Place, bytes: &[u8]) -> Result<Option<Settings>, SetupError> {
        self.report.source = Some(place);
        let settings = match Settings::parse(bytes) {
            Ok(settings) => settings,
            Err(faults) => {
                self.fault(format!(
                    "the settings of {place} can't be used; nothing was changed"
                ));
                self.name_faults(Path::new(SETTINGS_FILE), &faults);
                return Ok(None);
            }
        };
        let origin = Origin {
            place,
            sha256: hex::encode(Sha256::digest(bytes)),
            wiped: false,
        };
        self.keep(&origin)?;
        put(&self.etc(SETTINGS_FILE), settings.text.as_bytes(), 0o600)?;
        self.done(format!(
            "took the settings of {place} (SHA-256 {})",
            origin.sha256
        ));
        Ok(Some(settings))
    }

    fn keep(&self, origin: &Origin) -> Result<(), SetupError> {
        let text = serde_json::to_vec(origin).unwrap_or_default();
        put(&self.etc("settings-origin.json"), &text, 0o600)
    }

    /// Wipes the settings where they came from, unless that is done. Only what was taken is wiped, by its digest.
    fn wipe_origin(&mut self) -> Result<(), SetupError> {
        let bytes = get(&self.etc("settings-origin.json"), 4096)?;
        let Some(origin) = bytes.and_then(|bytes| serde_json::from_slice::<Origin>(&bytes).ok()) else {
            return Ok(());
        };
        self.report.source = Some(origin.place);
        if origin.wiped {
            return Ok(());
        }
        let place = origin.place;
        let root = &self.options.root;
        let same = match place.settings(root) {
            Ok(Some(bytes)) => hex::encode(Sha256::digest(&bytes)) == origin.sha256,
            // A partition that was wiped in part shows no file any more.
            Ok(None) | Err(_) => place == Place::Partition,
        };
        if same {
            match place.wipe(root, SETTINGS_FILE) {
                Ok(true) => self.done(format!("wiped {SETTINGS_FILE} on {place}")),
                Ok(false) => self.done(format!(
                    "{SETTINGS_FILE} of {place} can't be wiped from here: take it out of the machine's definition"
                )),
                // Tried again at the next boot.
                Err(error) => {
                    self.fault(format!("cannot wipe {SETTINGS_FILE} on {place} ({error}): wipe it yourself"));
                    return Ok(());
                }
            }
        }
        self.keep(&Origin {
            wiped: true,
            ..origin
        })
    }

    /// The network's files and the host name, at each boot; the uplink, if it is there.
    fn network(&mut self, settings: &Settings) -> Result<Option<IfName>, SetupError> {
        let uplink = match find_uplink(&self.options.root, settings.file.network.uplink.as_ref()) {
            Ok(uplink) => uplink,
            Err(why) => {
                self.fault(why);
                return Ok(None);
            }
        };
        let folder = self.options.root.join("run/systemd/network");
        make_dir(&folder, 0o755)?;
        for (name, text) in render::networkd(&settings.file.network, &uplink) {
            self.put_changed(&folder.join(name), text.as_bytes(), 0o644)?;
        }
        let name = settings.host_name();
        if self.options.root == Path::new("/")
            && let Err(error) = nix::unistd::sethostname(&name)
        {
            self.fault(format!("cannot set the host name {name}: {error}"));
        }
        Ok(Some(uplink))
    }

    /// The delegation: the one that is here, or a newer one that somebody brings.
    fn delegation(&mut self, settings: &Settings, host: Principal) -> Result<(), SetupError> {
        let path = self.etc("delegation");
        let here = get(&path, settings::DELEGATION_MAX)?;
        let now = here
            .as_deref()
            .and_then(|bytes| check_delegation(bytes, settings, host).ok());
        let mut best = now.clone();
        let mut brought: Vec<(String, Vec<u8>, bool)> = Vec::new();
        if let Some(answers) = &self.options.answers {
            let file = answers.join(DELEGATION_FILE);
            if let Some(bytes) = get(&file, settings::DELEGATION_MAX)? {
                wipe_file(&file)?;
                brought.push(("the console's delegation".into(), bytes, false));
            }
        }
        if let Some(bytes) = settings.delegation() {
            brought.push(("ledger.delegation of the settings".into(), bytes, false));
        }
        match Place::Stick.delegation(&self.options.root) {
            Ok(Some(bytes)) => brought.push((format!("the delegation of {}", Place::Stick), bytes, true)),
            Ok(None) => {}
            Err(error) => self.fault(format!("{}: {error}", Place::Stick)),
        }
        for (what, bytes, by_stick) in brought {
            match check_delegation(&bytes, settings, host) {
                Err(why) => self.fault(format!("{what} {why}")),
                Ok(found) => {
                    let newer = best.as_ref().is_none_or(|best| {
                        best.provider_key == found.provider_key
                            && best.statement.expires_at < found.statement.expires_at
                    });
                    let other = now.as_ref().filter(|now| now.provider_key != found.provider_key);
                    if other.is_some() {
                        self.fault(format!(
                            "{what} is of another provider than the one this host works for: refused"
                        ));
                    } else if newer {
                        put(&path, &bytes, 0o640)?;
                        self.done(format!("took {what}"));
                        best = Some(found);
                    }
                    // It isn't secret, but a medium that is read again at each boot is a nuisance.
                    if by_stick && other.is_none() {
                        match Place::Stick.wipe(&self.options.root, DELEGATION_FILE) {
                            Ok(_) => self.done(format!("wiped {DELEGATION_FILE} on {}", Place::Stick)),
                            Err(error) => self.fault(format!("{}: {error}", Place::Stick)),
                        }
                    }
                }
            }
        }
        self.report.delegated_until = best.map(|best| best.statement.expires_at);
        Ok(())
    }
}

/// Overwrites and removes a file of ours in memory.
fn wipe_file(path: &Path) -> Result<(), SetupError> {
    let removed = fs::metadata(path)
        .and_then(|found| fs::write(path, vec![0; found.len().min(SETTINGS_MAX as u64) as usize]))
        .and_then(|()| fs::remove_file(path));
    removed.map_err(|source| SetupError::File {
        what: "wipe",
        path: path.to_owned(),
        source,
    })
}

/// A delegation that counts here: signed, for this host, for this ledger, not over by this machine's clock.
fn check_delegation(bytes: &[u8], settings: &Settings, host: Principal) -> Result<HostDelegation, String> {
    let delegation = settings::parse_delegation(bytes)?;
    let statement = &delegation.statement;
    if statement.host != host {
        return Err(format!(
            "is for the host {}; this one is {host}: have the provider sign one for it (`decent host delegate --host-key \
             {host}`)",
            statement.host
        ));
    }
    if statement.ledger.to_text() != settings.file.ledger.canister_id {
        return Err(format!(
            "is for the ledger {}, not for that of the settings",
            statement.ledger
        ));
    }
    let message = crypto::host_delegation_message(statement).map_err(|error| error.to_string())?;
    crypto::verify(&delegation.provider_key, &message, &delegation.signature)
        .map_err(|error| format!("isn't signed by the provider that it names ({error})"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if u128::from(statement.expires_at) <= now.as_nanos() {
        return Err(
            "is over (or this machine's clock is wrong: see the firmware); have the provider sign a new one"
                .to_owned(),
        );
    }
    Ok(delegation)
}

/// The interface towards the Internet. By MAC address or by default it must be there; a name may be one of a bond or VLAN
/// that comes later.
fn find_uplink(root: &Path, wanted: Option<&Port>) -> Result<IfName, String> {
    let ports = ports(root);
    let names = || {
        ports
            .iter()
            .map(|port| format!("{} ({})", port.name, port.mac))
            .collect::<Vec<_>>()
            .join(", ")
    };
    match wanted {
        Some(Port::Name(name)) => Ok(name.clone()),
        Some(Port::Mac(mac)) => ports
            .iter()
            .find(|port| port.mac == *mac)
            .map(|port| port.name.clone())
            .ok_or_else(|| {
                format!(
                    "network.uplink: no port has the address {mac}; there are: {}",
                    names()
                )
            }),
        None => match &ports[..] {
            [port] => Ok(port.name.clone()),
            [] => Err("this machine shows no Ethernet port: is its driver in the image?".to_owned()),
            _ => Err(format!(
                "this machine has several Ethernet ports: name one as network.uplink: {}",
                names()
            )),
        },
    }
}

struct EthernetPort {
    name: IfName,
    mac: String,
}

/// Ports with a device behind them, by name.
fn ports(root: &Path) -> Vec<EthernetPort> {
    let mut found: Vec<EthernetPort> = fs::read_dir(root.join("sys/class/net"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let path = entry.path();
            let text = |file: &str| fs::read_to_string(path.join(file)).ok();
            // ARPHRD_ETHER
            let ethernet = text("type")?.trim() == "1" && path.join("device").exists();
            let name = entry.file_name().to_str()?.parse().ok()?;
            let mac = text("address")?.trim().to_ascii_lowercase();
            ethernet.then_some(EthernetPort { name, mac })
        })
        .collect();
    found.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
    found
}
