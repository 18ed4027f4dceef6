//! The folder from which machines update themselves: what systemd-sysupdate(8) reads, over https or from a stick.
//!
//! | file | holds | goes to |
//! |---|---|---|
//! | `NAME_VERSION.references.json` | the signed reference values of each trusted profile | the ESP, `decent-cloud/` |
//! | `NAME_VERSION_UUID.verity`, `NAME_VERSION_UUID.root` | hash tree and root; the UUID is half of the root hash | the free slot |
//! | `NAME_VERSION.efi` | the signed kernel image | the ESP, as `NAME_VERSION+3-0.efi` |
//! | `SHA256SUMS`, `SHA256SUMS.gpg` | the digests of all, and the owner's OpenPGP signature over them | |
//!
//! A folder may hold many versions. What is in it already is believed only by its own signature: nothing that somebody
//! put into a web server's folder is ever signed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::disk::RootHash;
use super::image::{self, Image, ImageError};
use super::keys::Keys;
use super::tools::{Job, ToolError, Tools};
use crate::progress::Progress;

/// What moves one part of a version from the folder to the machine, by file name. `{name}`, `{version}` (the running
/// one), `{source}`, `{disk}` and `{esp}` are filled in by whoever runs systemd-sysupdate.
pub const TRANSFERS: [(&str, &str); 4] = [
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

const SUMS: &str = "SHA256SUMS";
const SIGNATURE: &str = "SHA256SUMS.gpg";

/// Why nothing was published; the folder is as it was.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// An image's description.
    #[error("cannot use the image in {0}")]
    Image(PathBuf, #[source] ImageError),
    /// A file isn't that of the build.
    #[error("{0} is not the file of the build; build the image anew")]
    Damaged(PathBuf),
    /// Images of different names can't follow each other.
    #[error("{0} and {1} are images of different names; a folder holds one name's versions")]
    Names(String, String),
    /// Other content under the same version.
    #[error(
        "the folder holds another {0} already; versions are never replaced: raise `version` in image.toml"
    )]
    Version(String),
    /// The folder's signature or a file in it.
    #[error("{path} is not what the owner signed: {why}; start with an empty folder")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// systemd-sysupdate sees other versions than were published.
    #[error("systemd-sysupdate finds the versions {found:?} in the new folder instead of {wanted:?}")]
    ReadBack {
        /// What it finds.
        found: Vec<String>,
        /// What should be there.
        wanted: Vec<String>,
    },
    /// A tool.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A file of this machine.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// What a folder holds after publishing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Published {
    /// The folder.
    pub dir: PathBuf,
    /// The image's name.
    pub name: String,
    /// All versions, the newest first, as systemd-sysupdate orders them.
    pub versions: Vec<String>,
    /// Every file's SHA-256, by name.
    pub files: BTreeMap<String, String>,
}

/// Adds the images in `images` to the folder `dir`, signs it, and reads it back with systemd-sysupdate.
pub fn publish(
    images: &[PathBuf],
    dir: &Path,
    keys: &Keys,
    tools: &Tools,
    progress: &Progress,
) -> Result<Published, PublishError> {
    let job = tools.job()?;
    fs::create_dir_all(dir).map_err(|source| file(dir, source))?;
    let mut files = progress.step("folder: what is there", || standing(dir, keys, &job))?;
    let mut versions: BTreeMap<String, ()> = BTreeMap::new();
    let mut name: Option<String> = None;
    for path in files.keys() {
        if let Some((known, version)) = path.strip_suffix(".efi").and_then(|stem| stem.rsplit_once('_')) {
            name = Some(known.to_owned());
            versions.insert(version.to_owned(), ());
        }
    }
    for from in images {
        let image = Image::read(from).map_err(|source| PublishError::Image(from.clone(), source))?;
        let known = name.get_or_insert_with(|| image.name.clone());
        if *known != image.name {
            return Err(PublishError::Names(known.clone(), image.name));
        }
        let what = format!("{} {}: copy", image.name, image.image_version);
        let added = progress.step(&what, || add(&image, from, dir, &files))?;
        versions.insert(image.image_version, ());
        files.extend(added);
    }
    let name = name.unwrap_or_default();
    let wanted: Vec<String> = versions.into_keys().collect();
    let sums: String = files
        .iter()
        .map(|(name, sha256)| format!("{sha256}  {name}\n"))
        .collect();
    job.write(SUMS, &sums)?;
    progress.step("digests: sign", || sign(&job, keys))?;
    let versions = progress.step("folder: read back", || {
        verify(&job, keys)?.map_or(Ok(()), |why| {
            Err(PublishError::Foreign {
                path: dir.join(SIGNATURE),
                why,
            })
        })?;
        read_back(&job, &name)
    })?;
    let mut found = versions.clone();
    found.sort();
    if found != wanted {
        return Err(PublishError::ReadBack { found, wanted });
    }
    for name in [SIGNATURE, SUMS] {
        replace(&dir.join(name), &job.read(name)?)?;
    }
    Ok(Published {
        dir: dir.to_owned(),
        name,
        versions,
        files,
    })
}

/// The files that the folder's own signature vouches for; none if it has no list.
fn standing(dir: &Path, keys: &Keys, job: &Job<'_>) -> Result<BTreeMap<String, String>, PublishError> {
    let path = dir.join(SUMS);
    let foreign = |path: PathBuf, why: &str| PublishError::Foreign {
        path,
        why: why.to_owned(),
    };
    let sums = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        other => other.map_err(|source| file(&path, source))?,
    };
    let signature = dir.join(SIGNATURE);
    job.write(
        SIGNATURE,
        fs::read(&signature).map_err(|source| file(&signature, source))?,
    )?;
    job.write(SUMS, &sums)?;
    if let Some(why) = verify(job, keys)? {
        return Err(foreign(path, &why));
    }
    let mut files = BTreeMap::new();
    for line in String::from_utf8_lossy(&sums).lines() {
        let Some((sha256, name)) = line.split_once("  ") else {
            return Err(foreign(path, "not a list of digests"));
        };
        let at = dir.join(name);
        let found = image::describe(dir, name).map_err(|source| file(&at, source))?;
        if found.sha256 != sha256 {
            return Err(foreign(at, "another digest"));
        }
        files.insert(name.to_owned(), sha256.to_owned());
    }
    Ok(files)
}

/// Puts one image's parts into the folder under the names that the transfers look for.
fn add(
    image: &Image,
    from: &Path,
    dir: &Path,
    standing: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, PublishError> {
    let label = format!("{}_{}", image.name, image.image_version);
    let [root_uuid, verity_uuid] = RootHash::parse(&image.root_hash)
        .map(|hash| hash.uuids())
        .ok_or_else(|| PublishError::Damaged(from.join(image::FILE_NAME)))?;
    let references = references(from, &image.profiles).map_err(|source| file(from, source))?;
    let mut files = BTreeMap::new();
    let mut put = |name: String, sha256: String| {
        if standing.get(&name).is_some_and(|known| *known != sha256) {
            return Err(PublishError::Version(name));
        }
        files.insert(name, sha256);
        Ok(())
    };
    let parts = [
        (&image.verity, format!("{label}_{verity_uuid}.verity")),
        (&image.root, format!("{label}_{root_uuid}.root")),
        (&image.uki, format!("{label}.efi")),
    ];
    let references_name = references_name(&label);
    put(references_name.clone(), crate::manifest::sha256(&references))?;
    for (part, name) in &parts {
        put(name.clone(), part.sha256.clone())?;
    }
    // The root hash stands in the names: another build of this version would lie beside the first one's parts.
    let prefix = format!("{label}_");
    if let Some(other) = standing
        .keys()
        .find(|known| known.starts_with(&prefix) && !files.contains_key(*known))
    {
        return Err(PublishError::Version(other.clone()));
    }
    replace(&dir.join(references_name), &references)?;
    for (part, name) in &parts {
        let (source, to) = (from.join(&part.file), dir.join(name));
        let partial = dir.join(format!(".{name}.partial"));
        fs::copy(&source, &partial).map_err(|error| file(&source, error))?;
        let copied = fs::File::open(&partial)
            .and_then(|copy| copy.sync_all().and_then(|()| flash::digest(copy)))
            .map_err(|error| file(&partial, error))?;
        if copied != (part.sha256.clone(), part.size) {
            fs::remove_file(&partial).map_err(|error| file(&partial, error))?;
            return Err(PublishError::Damaged(source));
        }
        fs::set_permissions(&partial, std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .and_then(|()| fs::rename(&partial, &to))
            .map_err(|error| file(&to, error))?;
    }
    Ok(files)
}

/// The name of a version's signed reference values. `label`: `NAME_VERSION`.
pub fn references_name(label: &str) -> String {
    format!("{label}.references.json")
}

/// The signed reference values of the trusted profiles in one file: a JSON array of DSSE envelopes.
pub fn references(dir: &Path, profiles: &[image::Profile]) -> io::Result<Vec<u8>> {
    let mut envelopes: Vec<serde_json::Value> = Vec::new();
    for wanted in profiles.iter().filter_map(|profile| profile.reference.as_ref()) {
        let content = fs::read(dir.join(&wanted.file))?;
        if crate::manifest::sha256(&content) != wanted.sha256 {
            let why = format!("{} is not the file of the build", wanted.file);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        envelopes.push(serde_json::from_slice(&content)?);
    }
    Ok(serde_json::to_vec_pretty(&envelopes)?)
}

/// Signs the job's list.
fn sign(job: &Job<'_>, keys: &Keys) -> Result<(), ToolError> {
    keys.lend(job, &["update.key"])?;
    let home = Home::new(job)?;
    home.gpg(&["--import", "update.key"])?;
    home.gpg(&[
        "--yes",
        "--digest-algo",
        "SHA256",
        "--detach-sign",
        "--output",
        SIGNATURE,
        SUMS,
    ])
}

/// Checks the job's list; what is wrong with it, if anything is.
fn verify(job: &Job<'_>, keys: &Keys) -> Result<Option<String>, ToolError> {
    keys.lend(job, &["update.pub"])?;
    let args = ["--homedir", ".", "--keyring", "./update.pub", SIGNATURE, SUMS];
    match job.run_now("gpgv", args) {
        Ok(_) => Ok(None),
        Err(ToolError::Failed { log, .. }) => Ok(Some(log.lines().last().unwrap_or("refused").to_owned())),
        Err(error) => Err(error),
    }
}

/// The versions that systemd-sysupdate finds complete in the job's list.
fn read_back(job: &Job<'_>, name: &str) -> Result<Vec<String>, PublishError> {
    #[derive(serde::Deserialize)]
    struct List {
        all: Vec<String>,
    }
    job.run("mkdir", ["definitions", "target"])?;
    let here = job.inside();
    for (file, text) in TRANSFERS {
        // The folder of tools has no disk and no mounts: only the sources are looked at.
        let source = text.split("[Target]").next().unwrap_or(text);
        let text =
            format!("{source}[Target]\nType=regular-file\nPath={here}/target\nMatchPattern=@v.{file}\n");
        let text = text
            .replace("{name}", name)
            .replace("{version}", "0")
            .replace("{source}", &format!("file://{here}"));
        job.write(&format!("definitions/{file}"), text)?;
    }
    let definitions = format!("--definitions={here}/definitions");
    // The signature was checked by gpgv: the machine's keyring stands at a fixed path, which these tools share.
    let args = [&*definitions, "--verify=no", "--json=short", "list"];
    let printed = job.run_now("systemd-sysupdate", args)?;
    let last = printed
        .split(|byte| *byte == b'\n')
        .rfind(|line| line.starts_with(b"{"));
    let list: Option<List> = last.and_then(|line| serde_json::from_slice(line).ok());
    Ok(list.map(|list| list.all).unwrap_or_default())
}

/// GnuPG's directory inside a job.
pub(super) struct Home<'a>(&'a Job<'a>);

impl<'a> Home<'a> {
    pub(super) fn new(job: &'a Job<'a>) -> Result<Self, ToolError> {
        job.run("mkdir", ["-p", "-m", "700", "gnupg"])?;
        Ok(Self(job))
    }

    /// Runs gpg, which asks nobody.
    pub(super) fn gpg(&self, args: &[&str]) -> Result<(), ToolError> {
        const QUIET: [&str; 7] = [
            "--homedir",
            "gnupg",
            "--batch",
            "--quiet",
            "--pinentry-mode=loopback",
            "--passphrase",
            "",
        ];
        self.0.run_now("gpg", QUIET.iter().chain(args)).map(|_| ())
    }
}

impl Drop for Home<'_> {
    fn drop(&mut self) {
        // The agent holds the key; it would also end by itself when its directory is gone.
        let _ = self.0.run_now("gpgconf", ["--homedir", "gnupg", "--kill", "all"]);
    }
}

/// Writes a file whole or not at all.
fn replace(path: &Path, content: &[u8]) -> Result<(), PublishError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let write = || {
        let mut new = tempfile::NamedTempFile::new_in(parent)?;
        new.write_all(content)?;
        new.as_file().sync_all()?;
        fs::set_permissions(new.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        new.persist(path).map_err(|error| error.error)
    };
    write().map(|_| ()).map_err(|source| file(path, source))
}

fn file(path: &Path, source: io::Error) -> PublishError {
    PublishError::File {
        path: path.to_owned(),
        source,
    }
}
