//! The seed reader inside the guest: NoCloud files in, plain checked files out.
//!
//! hostd (or anybody who starts the image by hand) attaches a disk with the label and serial `CIDATA`/`cidata`:
//! `meta-data`, `network-config` and `user-data`, as cloud-init's NoCloud documents them. The boot scripts are shell,
//! and shell should not parse YAML; so [`run`] parses once, checks every value, and writes files that a script can
//! read without quoting trouble:
//!
//! | file | holds |
//! |---|---|
//! | `instance-id` | the contract id |
//! | `hostname` | a DNS name |
//! | `authorized_keys` | SSH keys of meta-data and cloud-config |
//! | `settings-digest` | [`settings_digest`] of the SSH keys in meta-data and of user data, in hex: the VM's evidence shows it |
//! | `tls-names` | names for the certificate, one a line (`decent-cloud: {tls_names: […]}` of meta-data) |
//! | `links` | `mac\|address/len …\|gateway …\|mtu`, one card a line, `-` for nothing |
//! | `resolv.conf` | name servers |
//! | `user-script` | what runs after the boot: a `#!` script, or `runcmd` as one |
//!
//! # What a confidential VM refuses
//! The seed comes from the host, and the launch doesn't measure it. But the contract id does: it is the digest of a salt
//! (`decent-cloud: {salt: …}` of meta-data), of the SSH keys and of user data ([`contract_id`]), and the VM's own report
//! holds it as `HOST_DATA`. [`run`] compares the two before it writes a single file. A confidential VM whose seed says
//! anything else, or that has no seed, or gets no report, is set up with nothing: the boot ends there, the VM powers off.
//! Host name, names in the certificate, name servers and network are the host's to choose in any case.
//!
//! The digest covers the keys as meta-data lists them, also one that isn't installed because it is no key or a double,
//! and the bytes of user data, also when they aren't honoured: whoever compares it with what was asked for knows that
//! nothing else was let in. Keys in a cloud-config are part of user data. Only these three files of the seed are read.
//!
//! # What of user data is honoured
//! A script that starts with `#!`, or `#cloud-config` with `hostname`, `ssh_authorized_keys`, `write_files` (`path`,
//! `content`, `encoding` plain or base64, `permissions`, `append`) and `runcmd`. Everything else is named in a warning
//! on the console, never skipped in silence. Both run at each boot, because the root file system is a fresh one at each
//! boot.
//!
//! The seed comes from the host, which may lie: nothing here trusts its sizes or characters. A part that can't be
//! read costs only that part, because a tenant who can still log in can look for the reason.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use attestation::{contract_id, settings_digest};
use serde::Deserialize;

/// The most that one file of the seed may hold, in bytes; hostd refuses more user data than this, too.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Why nothing of a seed could be used.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// The seed isn't the one that this VM was launched for.
    #[error(
        "the seed is NOT the contract's: this VM was launched for {launched}, and {found}. Somebody changed SSH keys or \
         user data on the way: nothing of it is applied"
    )]
    OtherContract {
        /// The launch's `HOST_DATA`, in hex.
        launched: String,
        /// What the seed is for.
        found: String,
    },
    /// A result can't be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct MetaData {
    #[serde(rename = "instance-id")]
    instance_id: Option<String>,
    #[serde(rename = "local-hostname")]
    local_hostname: Option<String>,
    #[serde(rename = "public-keys")]
    public_keys: Vec<String>,
    #[serde(rename = "decent-cloud")]
    decent_cloud: DecentCloud,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DecentCloud {
    salt: Option<String>,
    tls_names: Vec<String>,
}

/// Version 2, bare or under `network:`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NetworkConfig {
    network: Option<Box<NetworkConfig>>,
    ethernets: BTreeMap<String, Ethernet>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Ethernet {
    #[serde(rename = "match")]
    matched: Match,
    addresses: Vec<String>,
    gateway4: Option<String>,
    gateway6: Option<String>,
    routes: Vec<Route>,
    nameservers: Nameservers,
    mtu: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Match {
    macaddress: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Route {
    to: String,
    via: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Nameservers {
    addresses: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CloudConfig {
    hostname: Option<String>,
    ssh_authorized_keys: Vec<String>,
    write_files: Vec<WriteFile>,
    runcmd: Vec<RunCmd>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WriteFile {
    path: String,
    #[serde(default)]
    content: String,
    #[serde(default)]
    encoding: Option<String>,
    #[serde(default)]
    permissions: Option<String>,
    #[serde(default)]
    append: bool,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum RunCmd {
    Shell(String),
    Words(Vec<String>),
}

/// What a seed says, checked.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seed {
    settings: [u8; 32],
    salt: Option<[u8; 32]>,
    instance_id: Option<String>,
    hostname: Option<String>,
    authorized_keys: Vec<String>,
    tls_names: Vec<String>,
    links: Vec<String>,
    nameservers: Vec<IpAddr>,
    script: Option<String>,
    files: Vec<NewFile>,
    warnings: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct NewFile {
    path: String,
    content: Vec<u8>,
    mode: u32,
    append: bool,
}

/// Reads the seed in `seed`, writes its parts into `out` and the tenant's `write_files` under `root`. Returns what was
/// left out and why, a line each.
///
/// `launched`: the contract id that the launch of this VM is bound to, from its own report. Of a seed for anything else
/// not a byte is written. `None`: an ordinary VM, which has to believe its host.
pub fn run(
    seed: &Path,
    out: &Path,
    root: &Path,
    launched: Option<[u8; 32]>,
) -> Result<Vec<String>, SeedError> {
    let mut parsed = Seed::default();
    let meta_data = parsed.read_file(seed, "meta-data");
    let network = parsed.read_file(seed, "network-config");
    let user_data = parsed.read_file(seed, "user-data");
    let meta_data = parsed.text("meta-data", meta_data);
    let keys = parsed.meta_data(&meta_data);
    parsed.settings = settings_digest(keys.iter().map(String::as_str), &user_data);
    if let Some(id) = launched {
        parsed.is_for(&id)?;
    }
    let network = parsed.text("network-config", network);
    parsed.network(&network);
    let user_data = parsed.text("user-data", user_data);
    parsed.user_data(&user_data);
    parsed.write(out)?;
    parsed.write_user_files(root);
    Ok(parsed.warnings)
}

impl Seed {
    fn warn(&mut self, text: impl Into<String>) {
        // One line each, and nothing in it that would steer a terminal.
        let text: String = text
            .into()
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(400)
            .collect();
        self.warnings.push(text);
    }

    /// Once, whole: the host may change the disk while it is read.
    fn read_file(&mut self, dir: &Path, name: &str) -> Vec<u8> {
        let mut text = Vec::new();
        let result =
            fs::File::open(dir.join(name)).and_then(|f| f.take(FILE_BYTES_MAX + 1).read_to_end(&mut text));
        match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                self.warn(format!("{name}: {error}"));
                Vec::new()
            }
            Ok(_) if text.len() as u64 > FILE_BYTES_MAX => {
                self.warn(format!("{name}: larger than {FILE_BYTES_MAX} bytes, ignored"));
                Vec::new()
            }
            Ok(_) => text,
        }
    }

    fn text(&mut self, name: &str, bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap_or_else(|_| {
            self.warn(format!("{name}: not UTF-8 text, ignored"));
            String::new()
        })
    }

    fn yaml<T: for<'de> Deserialize<'de> + Default>(&mut self, name: &str, text: &str) -> T {
        if text
            .lines()
            .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
        {
            return T::default();
        }
        serde_saphyr::from_str(text).unwrap_or_else(|error| {
            self.warn(format!("{name}: {error}"));
            T::default()
        })
    }

    /// Whether salt, keys and user data give the contract id of the launch, which then is the instance id, too.
    fn is_for(&mut self, launched: &[u8; 32]) -> Result<(), SeedError> {
        let derived = self.salt.map(|salt| contract_id(&salt, &self.settings));
        if derived == Some(*launched) {
            self.instance_id = Some(hex::encode(launched));
            return Ok(());
        }
        Err(SeedError::OtherContract {
            launched: hex::encode(launched),
            found: match derived {
                Some(id) => format!(
                    "the seed's salt, keys and user data are those of {}",
                    hex::encode(id)
                ),
                None => "there is no seed with a salt".to_owned(),
            },
        })
    }

    /// Returns the SSH keys as they are listed.
    fn meta_data(&mut self, text: &str) -> Vec<String> {
        let meta: MetaData = self.yaml("meta-data", text);
        if let Some(id) = meta.instance_id {
            if (1..=128).contains(&id.len())
                && id
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            {
                self.instance_id = Some(id);
            } else {
                self.warn("meta-data: instance-id has other characters than letters, digits, `-_.`");
            }
        }
        self.set_hostname(meta.local_hostname, "meta-data: local-hostname");
        self.add_keys(&meta.public_keys, "meta-data: public-keys");
        if let Some(salt) = meta.decent_cloud.salt {
            self.salt = hex::decode(salt).ok().and_then(|salt| salt.try_into().ok());
            if self.salt.is_none() {
                self.warn("meta-data: decent-cloud: the salt isn't 64 hexadecimal digits");
            }
        }
        for name in meta.decent_cloud.tls_names.into_iter().take(64) {
            if is_dns_name(name.strip_prefix("*.").unwrap_or(&name)) {
                self.tls_names.push(name);
            } else {
                self.warn(format!("meta-data: {name:?} is not a DNS name"));
            }
        }
        meta.public_keys
    }

    fn set_hostname(&mut self, name: Option<String>, from: &str) {
        match name {
            Some(name) if is_dns_name(&name) && name.len() <= 64 => self.hostname = Some(name),
            Some(name) => self.warn(format!("{from}: {name:?} is not a host name")),
            None => {}
        }
    }

    fn add_keys(&mut self, keys: &[String], from: &str) {
        for key in keys {
            let key = key.trim().to_owned();
            if !is_ssh_key(&key) {
                self.warn(format!(
                    "{from}: {:?} is not an SSH public key",
                    key.chars().take(40).collect::<String>()
                ));
            } else if !self.authorized_keys.contains(&key) {
                self.authorized_keys.push(key);
            }
        }
    }

    fn network(&mut self, text: &str) {
        let config: NetworkConfig = self.yaml("network-config", text);
        let config = config.network.map_or(config.ethernets, |inner| inner.ethernets);
        for (name, ethernet) in config {
            self.link(&name, ethernet);
        }
    }

    fn link(&mut self, name: &str, ethernet: Ethernet) {
        let Some(mac) = ethernet
            .matched
            .macaddress
            .map(|mac| mac.to_ascii_lowercase())
            .filter(|mac| is_mac(mac))
        else {
            self.warn(format!(
                "network-config: {name:?} has no `match: {{macaddress: …}}`, ignored"
            ));
            return;
        };
        let mut addresses = Vec::new();
        for address in ethernet.addresses {
            match parse_prefix(&address) {
                Some((ip, length)) => addresses.push(format!("{ip}/{length}")),
                None => self.warn(format!("network-config: {address:?} is not ADDRESS/LENGTH")),
            }
        }
        let defaults = ["default", "0.0.0.0/0", "::/0"];
        let mut gateways = Vec::new();
        let via = ethernet.routes.into_iter().map(|route| {
            if defaults.contains(&route.to.as_str()) {
                Ok(route.via)
            } else {
                Err(route.to)
            }
        });
        for gateway in [ethernet.gateway4, ethernet.gateway6]
            .into_iter()
            .flatten()
            .map(Ok)
            .chain(via)
        {
            match gateway.map(|text| (text.parse::<IpAddr>(), text)) {
                Ok((Ok(ip), _)) => gateways.push(ip.to_string()),
                Ok((Err(_), text)) => {
                    self.warn(format!("network-config: {text:?} is not a gateway's address"))
                }
                Err(to) => self.warn(format!(
                    "network-config: route to {to:?} ignored, only default routes are set"
                )),
            }
        }
        for server in ethernet.nameservers.addresses {
            match server.parse() {
                Ok(ip) => self.nameservers.push(ip),
                Err(_) => self.warn(format!(
                    "network-config: {server:?} is not a name server's address"
                )),
            }
        }
        let mtu = ethernet
            .mtu
            .filter(|mtu| (576..=65535).contains(mtu))
            .map(|mtu| mtu.to_string());
        let or_dash = |list: Vec<String>| {
            if list.is_empty() {
                "-".to_owned()
            } else {
                list.join(" ")
            }
        };
        let mtu = mtu.unwrap_or("-".to_owned());
        self.links.push(format!(
            "{mac}|{}|{}|{mtu}",
            or_dash(addresses),
            or_dash(gateways)
        ));
    }

    fn user_data(&mut self, text: &str) {
        let first = text.lines().next().unwrap_or_default().trim_end();
        if text.trim().is_empty() {
        } else if first.starts_with("#!") {
            self.script = Some(text.to_owned());
        } else if first == "#cloud-config" {
            self.cloud_config(text);
        } else {
            self.warn(
                "user-data ignored: it starts neither with `#!` (a script) nor with `#cloud-config` \
                 (multipart, #include, jinja and compressed user data are not supported)",
            );
        }
    }

    fn cloud_config(&mut self, text: &str) {
        const KNOWN: [&str; 4] = ["hostname", "ssh_authorized_keys", "write_files", "runcmd"];
        // Its own pass, so that an unknown key is named even when a known one can't be read.
        let keys: BTreeMap<String, serde::de::IgnoredAny> = self.yaml("user-data", text);
        let unknown: Vec<&str> = keys
            .keys()
            .map(String::as_str)
            .filter(|key| !KNOWN.contains(key))
            .collect();
        if !unknown.is_empty() {
            self.warn(format!(
                "user-data: not supported and ignored: {}; known are {}",
                unknown.join(", "),
                KNOWN.join(", ")
            ));
        }
        if keys.is_empty() {
            return;
        }
        let config: CloudConfig = self.yaml("user-data", text);
        self.set_hostname(config.hostname, "user-data: hostname");
        self.add_keys(&config.ssh_authorized_keys, "user-data: ssh_authorized_keys");
        for file in config.write_files {
            match new_file(file) {
                Ok(file) => self.files.push(file),
                Err(reason) => self.warn(format!("user-data: write_files: {reason}")),
            }
        }
        if !config.runcmd.is_empty() {
            let mut script = "#!/bin/sh\n".to_owned();
            for command in &config.runcmd {
                match command {
                    RunCmd::Shell(line) => script.push_str(line),
                    RunCmd::Words(words) => {
                        script.push_str(&words.iter().map(|w| quote(w)).collect::<Vec<_>>().join(" "));
                    }
                }
                script.push('\n');
            }
            self.script = Some(script);
        }
    }

    fn write(&self, out: &Path) -> Result<(), SeedError> {
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| SeedError::Write { path, source }
        };
        fs::create_dir_all(out).map_err(fail(out))?;
        let lines = |list: &[String]| list.iter().map(|line| format!("{line}\n")).collect::<String>();
        let servers: String = self
            .nameservers
            .iter()
            .map(|ip| format!("nameserver {ip}\n"))
            .collect();
        // The digest first: without it no key gets in.
        let parts: [(&str, u32, String); 8] = [
            (
                "settings-digest",
                0o644,
                format!("{}\n", hex::encode(self.settings)),
            ),
            ("instance-id", 0o644, self.instance_id.clone().unwrap_or_default()),
            ("hostname", 0o644, self.hostname.clone().unwrap_or_default()),
            ("authorized_keys", 0o600, lines(&self.authorized_keys)),
            ("tls-names", 0o644, lines(&self.tls_names)),
            ("links", 0o644, lines(&self.links)),
            ("resolv.conf", 0o644, servers),
            ("user-script", 0o700, self.script.clone().unwrap_or_default()),
        ];
        for (name, mode, content) in parts {
            let path = out.join(name);
            put(&path, content.as_bytes(), mode, false).map_err(fail(&path))?;
        }
        Ok(())
    }

    fn write_user_files(&mut self, root: &Path) {
        for file in std::mem::take(&mut self.files) {
            let path = root.join(file.path.trim_start_matches('/'));
            let made = path.parent().map_or(Ok(()), fs::create_dir_all);
            if let Err(error) = made.and_then(|()| put(&path, &file.content, file.mode, file.append)) {
                self.warn(format!("user-data: write_files: {}: {error}", file.path));
            }
        }
    }
}

fn put(path: &Path, content: &[u8], mode: u32, append: bool) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options
        .create(true)
        .write(true)
        .append(append)
        .truncate(!append)
        .mode(mode);
    let mut file = options.open(path)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)
}

fn new_file(file: WriteFile) -> Result<NewFile, String> {
    use base64::Engine as _;
    let path = file.path;
    if !path.starts_with('/') || path.contains('\0') || path.split('/').any(|part| part == "..") {
        return Err(format!("{path:?} is not an absolute path without `..`"));
    }
    let mode = match file.permissions.as_deref() {
        None => 0o644,
        Some(text) => match u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8) {
            Ok(mode) if mode <= 0o7777 => mode,
            _ => {
                return Err(format!(
                    "{path}: permissions {text:?} are not octal, such as '0644'"
                ));
            }
        },
    };
    let content = match file.encoding.as_deref() {
        None | Some("" | "text/plain") => file.content.into_bytes(),
        Some("b64" | "base64") => {
            let packed: String = file.content.split_whitespace().collect();
            base64::engine::general_purpose::STANDARD
                .decode(packed)
                .map_err(|e| format!("{path}: base64: {e}"))?
        }
        Some(other) => {
            return Err(format!(
                "{path}: encoding {other:?} is not supported (plain or base64)"
            ));
        }
    };
    Ok(NewFile {
        path,
        content,
        mode,
        append: file.append,
    })
}

/// A word of a shell command that means itself.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

fn is_mac(mac: &str) -> bool {
    let parts: Vec<&str> = mac.split(':').collect();
    parts.len() == 6
        && parts
            .iter()
            .all(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn is_ssh_key(key: &str) -> bool {
    let kind = key.split(' ').next().unwrap_or_default();
    let known = [
        "ssh-ed25519",
        "ssh-rsa",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    ];
    (known.contains(&kind) || kind.starts_with("ecdsa-sha2-nistp"))
        && key.len() <= 16 * 1024
        && key.split(' ').nth(1).is_some_and(|blob| blob.len() >= 60)
        && !key.contains(char::is_control)
}

fn parse_prefix(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, length) = text.split_once('/')?;
    let ip: IpAddr = ip.parse().ok()?;
    let length: u8 = length.parse().ok()?;
    (length <= if ip.is_ipv4() { 32 } else { 128 }).then_some((ip, length))
}

#[cfg(test)]
mod tests;
