//! The appliance's slots through systemd: sysupdate fills them, the boot loader's file names count the tries.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::config::Config;
use crate::inventory::boot::{Image, on_trial};
use crate::update::{Seen, SlotError, Slots, Tell, Trial, Version};

/// Where each part of a version comes from and goes to; what stands in braces is filled in here.
const TRANSFERS: [(&str, &str); 4] = [
    (
        "10-references.transfer",
        include_str!("../../../systemd/sysupdate.d/10-references.transfer"),
    ),
    (
        "20-verity.transfer",
        include_str!("../../../systemd/sysupdate.d/20-verity.transfer"),
    ),
    (
        "30-root.transfer",
        include_str!("../../../systemd/sysupdate.d/30-root.transfer"),
    ),
    (
        "90-uki.transfer",
        include_str!("../../../systemd/sysupdate.d/90-uki.transfer"),
    ),
];

/// How often the loader tries a version: `TriesLeft=` of the transfers.
const TRIES: u32 = 3;

/// The longest that a look at the source, and an installation, may take.
const LIST: Duration = Duration::from_secs(300);
const INSTALL: Duration = Duration::from_secs(6 * 3600);
/// The source may offer more; older ones than these aren't looked at.
const VERSIONS_MAX: usize = 16;
/// Of what systemd-sysupdate prints; its JSON is below 100 KiB for the versions that we look at.
const OUTPUT_MAX: u64 = 1 << 20;

/// Files and programs of the machine.
#[derive(Clone, Debug)]
pub struct Places {
    /// systemd-sysupdate(8), and arguments that stand before ours.
    pub sysupdate: Vec<String>,
    /// systemctl(1).
    pub systemctl: PathBuf,
    /// The root of `/proc` and `/sys`.
    pub root: PathBuf,
    /// The disk with the slots; `auto`: the one that the running root is on.
    pub disk: String,
    /// Where the EFI system partition is mounted.
    pub esp: PathBuf,
    /// Where the transfers are written for systemd-sysupdate.
    pub definitions: PathBuf,
    /// The source: a URL or a folder.
    pub source: Option<String>,
}

impl Places {
    /// Those of the appliance.
    pub fn of_the_appliance(config: &Config) -> Self {
        Self {
            // A hostd that is gone can't journal what became of it: the work goes with hostd, and is begun anew.
            sysupdate: [
                "/usr/bin/setpriv",
                "--pdeathsig=KILL",
                // Not on PATH: Debian keeps it where systemd keeps its own.
                "/usr/lib/systemd/systemd-sysupdate",
            ]
            .map(str::to_owned)
            .to_vec(),
            systemctl: "/usr/bin/systemctl".into(),
            root: "/".into(),
            disk: "auto".into(),
            esp: "/boot".into(),
            definitions: config.host.run_dir.join("sysupdate"),
            source: config.update.source.clone(),
        }
    }
}

/// The slots of a machine that systemd updates.
pub struct SystemdSlots {
    name: String,
    running: Version,
    places: Places,
}

fn failed(what: impl std::fmt::Display, why: impl std::fmt::Display) -> SlotError {
    SlotError(format!("{what}: {why}"))
}

impl SystemdSlots {
    /// `None`: the image has no version that could be compared.
    pub fn new(image: &Image, places: Places) -> Option<Self> {
        Some(Self {
            name: image.id.clone(),
            running: image.version.as_deref()?.parse().ok()?,
            places,
        })
    }

    /// Writes the transfers, and starts systemd-sysupdate with `args` after them.
    fn command(&self, args: &[&str]) -> Result<Command, SlotError> {
        let source = match self.places.source.as_deref() {
            None => return Err(SlotError("no source of updates in [update]".into())),
            Some(path) if path.starts_with('/') => format!("file://{path}"),
            Some(url) => url.to_owned(),
        };
        let dir = &self.places.definitions;
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(dir)?;
            for (file, text) in TRANSFERS {
                let text = text
                    .replace("{name}", &self.name)
                    .replace("{version}", &self.running.to_string())
                    .replace("{source}", &source)
                    .replace("{disk}", &self.places.disk)
                    .replace("{esp}", &self.places.esp.to_string_lossy());
                std::fs::write(dir.join(file), text)?;
            }
            Ok(())
        };
        write().map_err(|error| failed(format!("cannot write below {}", dir.display()), error))?;
        let (program, before) = self
            .places
            .sysupdate
            .split_first()
            .ok_or_else(|| SlotError("no systemd-sysupdate".into()))?;
        let mut command = Command::new(program);
        command
            .args(before)
            .arg(format!("--definitions={}", dir.display()))
            .args(["--verify=yes", "--no-pager"])
            .args(args)
            .env("LC_ALL", "C.UTF-8")
            .env("SYSTEMD_COLORS", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        Ok(command)
    }

    /// Runs systemd-sysupdate; `tell` hears each line that it says beside its answer.
    async fn run(&self, args: &[&str], within: Duration, tell: Tell) -> Result<Vec<u8>, SlotError> {
        let mut child = self
            .command(args)?
            .spawn()
            .map_err(|error| failed("cannot start systemd-sysupdate", error))?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let answer = async {
            let mut answer = Vec::new();
            if let Some(out) = out {
                out.take(OUTPUT_MAX).read_to_end(&mut answer).await?;
            }
            Ok::<_, std::io::Error>(answer)
        };
        let talk = async {
            let mut said: Vec<String> = Vec::new();
            if let Some(err) = err {
                let mut lines = BufReader::new(err.take(OUTPUT_MAX)).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    let line: String = line.chars().filter(|c| !c.is_control()).take(300).collect();
                    tell(&line);
                    said.push(line);
                }
            }
            said
        };
        let all = async { tokio::join!(answer, talk, child.wait()) };
        let Ok((answer, said, status)) = timeout(within, all).await else {
            return Err(SlotError(format!("systemd-sysupdate took more than {within:?}")));
        };
        let status = status.map_err(|error| failed("systemd-sysupdate", error))?;
        if !status.success() {
            return Err(failed(
                reason(&said),
                format!("systemd-sysupdate ended with {status}"),
            ));
        }
        answer.map_err(|error| failed("systemd-sysupdate", error))
    }

    /// The kernel images of our name on the ESP: path, version, whether its tries are used up.
    fn kernel_images(&self) -> Result<Vec<(PathBuf, Version, bool)>, SlotError> {
        let dir = self.places.esp.join("EFI/Linux");
        let entries = std::fs::read_dir(&dir).map_err(|error| failed(dir.display(), error))?;
        let found = entries.flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let stem = name.strip_suffix(".efi")?;
            let stem = stem.strip_prefix(&self.name)?.strip_prefix('_')?;
            let (version, tries) = stem.split_once('+').map_or((stem, None), |(v, t)| (v, Some(t)));
            let spent = tries.is_some_and(|tries| tries.split('-').next() == Some("0"));
            Some((entry.path(), version.parse().ok()?, spent))
        });
        Ok(found.collect())
    }
}

/// Nobody listens.
fn silent() -> Tell {
    std::sync::Arc::new(|_| ())
}

/// Of what systemd-sysupdate said, that which tells an operator what to do.
fn reason(said: &[String]) -> String {
    let known = [
        (
            "Signature verification failed",
            "the source isn't signed with the key that this image trusts",
        ),
        ("cannot verify", "the source has no signature (SHA256SUMS.gpg)"),
        (
            "file has been tampered with",
            "a file of the source isn't what its owner signed",
        ),
    ];
    let line = |text: &str| said.iter().any(|line| line.contains(text));
    match known.iter().find(|(text, _)| line(text)) {
        Some((_, meaning)) => (*meaning).to_owned(),
        None => {
            let last = said
                .iter()
                .rev()
                .find(|line| !line.is_empty() && *line != "Exiting.");
            last.cloned().unwrap_or_else(|| "it says nothing".into())
        }
    }
}

/// The last line of JSON in what systemd-sysupdate printed.
fn json<T: for<'a> Deserialize<'a>>(printed: &[u8]) -> Result<T, SlotError> {
    let line = printed
        .split(|byte| *byte == b'\n')
        .rfind(|line| line.starts_with(b"{"));
    serde_json::from_slice(line.unwrap_or_default())
        .map_err(|error| failed("systemd-sysupdate's answer", error))
}

#[async_trait]
impl Slots for SystemdSlots {
    async fn seen(&self) -> Result<Seen, SlotError> {
        let path = self.places.root.join("proc/sys/kernel/random/boot_id");
        let boot_id = std::fs::read_to_string(&path).map_err(|error| failed(path.display(), error))?;
        Ok(Seen {
            running: self.running.clone(),
            boot_id: boot_id.trim().to_owned(),
            trial: if on_trial(&self.places.root) {
                Trial::OnTrial
            } else {
                Trial::Good
            },
        })
    }

    async fn available(&self) -> Result<Vec<Version>, SlotError> {
        #[derive(Deserialize)]
        struct List {
            all: Vec<String>,
        }
        #[derive(Deserialize)]
        struct One {
            available: bool,
        }
        let list: List = json(&self.run(&["--json=short", "list"], LIST, silent()).await?)?;
        let versions: Vec<Version> = list.all.iter().filter_map(|text| text.parse().ok()).collect();
        let mut available = Vec::new();
        for version in versions.into_iter().take(VERSIONS_MAX) {
            let name = version.to_string();
            let one: One = json(&self.run(&["--json=short", "list", &name], LIST, silent()).await?)?;
            if one.available {
                available.push(version);
            }
        }
        Ok(available)
    }

    async fn install(&self, version: &Version, tell: Tell) -> Result<(), SlotError> {
        // One that was tried in vain counts as installed; without its kernel image it is put in again.
        for (path, found, spent) in self.kernel_images()? {
            if found == *version && spent {
                std::fs::remove_file(&path).map_err(|error| failed(path.display(), error))?;
            }
        }
        self.run(&["update", &version.to_string()], INSTALL, tell).await?;
        // It answers well too when there was nothing to do.
        let wanted = |(_, found, spent): &(PathBuf, Version, bool)| found == version && !spent;
        match self.kernel_images()?.iter().any(wanted) {
            true => Ok(()),
            false => Err(SlotError(format!(
                "{version} isn't among the kernel images afterwards"
            ))),
        }
    }

    async fn others(&self, running: &Version) -> Result<Vec<Version>, SlotError> {
        let mut versions: Vec<Version> = self
            .kernel_images()?
            .into_iter()
            .filter(|(_, version, spent)| version != running && !spent)
            .map(|(_, version, _)| version)
            .collect();
        versions.sort_by(|a, b| b.is_older_than(a).cmp(&a.is_older_than(b)).reverse());
        Ok(versions)
    }

    async fn mark_bad(&self, version: &Version) -> Result<(), SlotError> {
        for (path, found, spent) in self.kernel_images()? {
            if found == *version && !spent {
                let bad = path.with_file_name(format!("{}_{version}+0-{TRIES}.efi", self.name));
                std::fs::rename(&path, &bad).map_err(|error| failed(path.display(), error))?;
            }
        }
        sync(&self.places.esp)
    }

    async fn reboot(&self) -> Result<(), SlotError> {
        let result = Command::new(&self.places.systemctl)
            .args(["--no-block", "reboot"])
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(|error| failed("cannot start systemctl", error))?;
        match result.status.success() {
            true => Ok(()),
            false => Err(failed(
                "systemctl reboot",
                String::from_utf8_lossy(&result.stderr).trim(),
            )),
        }
    }
}

fn sync(dir: &Path) -> Result<(), SlotError> {
    let file = std::fs::File::open(dir).map_err(|error| failed(dir.display(), error))?;
    rustix::fs::syncfs(&file).map_err(|error| failed(dir.display(), error))
}
