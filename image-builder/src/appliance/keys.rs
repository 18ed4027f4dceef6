//! The owner's keys: who may make images that his machines boot.
//!
//! | file | key | for |
//! |---|---|---|
//! | `PK`, `KEK` | RSA-2048, certificate | UEFI's platform and key exchange key: who may change `db` |
//! | `db` | RSA-2048, certificate | signs systemd-boot and the kernel image; the firmware checks it |
//! | `pcr` | RSA-2048 | signs the PCR 11 values under which the TPM opens the state partition |
//! | `reference` | P-256 | signs the reference values that verifiers compare a host's quote with |
//! | `update` | OpenPGP, Ed25519 | signs the folder of updates; its public part is a keyring |
//!
//! Each is `NAME.key` (PEM, readable for its owner alone) with `NAME.crt` or `NAME.pub`. RSA with PKCS #1 v1.5, because
//! its signatures are the same each time. 2,048 bits, because firmware knows no more.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::tools::{Job, ToolError, Tools};
use super::update::Home;

/// Keys with a certificate.
const CERTIFIED: [(&str, &str); 3] = [
    ("PK", "/CN=Decent Cloud platform key"),
    ("KEK", "/CN=Decent Cloud key exchange key"),
    ("db", "/CN=Decent Cloud image signing key"),
];

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// They exist.
    #[error(
        "{0} exists; keys are never overwritten: machines that trust the old ones would boot no new image"
    )]
    Exists(PathBuf),
    /// A file can't be read.
    #[error("cannot read {path}; `image-builder keys` makes a set")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A file can't be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A tool.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// All keys as PEM, read once.
#[derive(Debug)]
pub struct Keys {
    files: Vec<(&'static str, Vec<u8>)>,
}

/// Every file of a set.
const FILES: [&str; 12] = [
    "PK.key",
    "PK.crt",
    "KEK.key",
    "KEK.crt",
    "db.key",
    "db.crt",
    "pcr.key",
    "pcr.pub",
    "reference.key",
    "reference.pub",
    "update.key",
    "update.pub",
];

/// The key that sets made before there were updates lack.
const UPDATE: [&str; 2] = ["update.key", "update.pub"];

impl Keys {
    /// Reads a set that [`make`] wrote.
    pub fn read(dir: &Path) -> Result<Self, KeysError> {
        let files = FILES.into_iter().map(|name| {
            let path = dir.join(name);
            let content = fs::read(&path).map_err(|source| KeysError::Read { path, source })?;
            Ok((name, content))
        });
        Ok(Self {
            files: files.collect::<Result<_, KeysError>>()?,
        })
    }

    /// Gives a job the files it asks for.
    pub fn lend(&self, job: &Job<'_>, names: &[&str]) -> Result<(), ToolError> {
        for (name, content) in self.files.iter().filter(|(name, _)| names.contains(name)) {
            job.write(name, content)?;
        }
        Ok(())
    }

    /// One file of the set.
    pub fn file(&self, name: &str) -> &[u8] {
        let found = self.files.iter().find(|(known, _)| *known == name);
        found.map_or(&[], |(_, content)| content)
    }
}

/// Makes a set in `dir`, or adds the key of updates to a set that lacks nothing else; returns the files that are new.
pub fn make(tools: &Tools, dir: &Path) -> Result<Vec<&'static str>, KeysError> {
    let (known, missing): (Vec<_>, Vec<_>) = FILES.into_iter().partition(|name| dir.join(name).exists());
    let job = tools.job()?;
    if missing != UPDATE {
        if let Some(name) = known.first() {
            return Err(KeysError::Exists(dir.join(name)));
        }
        make_boot_keys(&job)?;
    }
    make_update_key(&job)?;
    let mut builder = fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| KeysError::Write {
            path: dir.to_owned(),
            source,
        })?;
    for name in &missing {
        let path = dir.join(name);
        let content = job.read(name)?;
        let mode = if name.ends_with(".key") { 0o600 } else { 0o644 };
        let mut options = fs::OpenOptions::new();
        options
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .and_then(|mut file| {
                file.write_all(&content)?;
                file.sync_all()
            })
            .map_err(|source| KeysError::Write { path, source })?;
    }
    Ok(missing)
}

/// Makes every key but that of updates.
fn make_boot_keys(job: &Job<'_>) -> Result<(), ToolError> {
    for (name, subject) in CERTIFIED {
        let (key, crt) = (format!("{name}.key"), format!("{name}.crt"));
        let args = [
            "req", "-quiet", "-x509", "-newkey", "rsa:2048", "-noenc", "-sha256", "-days", "10950", "-subj",
            subject, "-keyout", &key, "-out", &crt,
        ];
        job.run_now("openssl", args)?;
    }
    let make = |args: &[&str]| job.run_now("openssl", args);
    make(&[
        "genpkey",
        "-quiet",
        "-algorithm",
        "RSA",
        "-pkeyopt",
        "rsa_keygen_bits:2048",
        "-out",
        "pcr.key",
    ])?;
    make(&[
        "genpkey",
        "-quiet",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-out",
        "reference.key",
    ])?;
    for name in ["pcr", "reference"] {
        make(&[
            "pkey",
            "-in",
            &format!("{name}.key"),
            "-pubout",
            "-out",
            &format!("{name}.pub"),
        ])?;
    }
    Ok(())
}

/// Makes the key of updates: it never expires, since a machine that lay in a store must still find its way.
fn make_update_key(job: &Job<'_>) -> Result<(), ToolError> {
    let home = Home::new(job)?;
    home.gpg(&[
        "--quick-gen-key",
        "Decent Cloud updates",
        "ed25519",
        "sign",
        "never",
    ])?;
    home.gpg(&["--output", "update.pub", "--export"])?;
    home.gpg(&["--output", "update.key", "--armor", "--export-secret-keys"])
}
