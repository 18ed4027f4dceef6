//! What lies on this host's disks: images, tenants' disks, seeds, keys.
//!
//! ```text
//! <dir>/                    0711 root
//!   blobs/<sha256>          0444  one file of an image, complete and checked, named by its content
//!   images/<sha256>.json    0444  a manifest, under the digest that contracts name; written after its last blob
//!   partial/<…>.part        0600  downloads; resumed or started over, thrown away by `gc` after a day
//!   disks/<contract>.raw    0600  a tenant's disk, given to the VMM's uid
//!   disks/<contract>.seed.img     its NoCloud seed
//!   keys/<contract>.key     0600  the disk's LUKS2 key, in a folder that only root can enter
//! ```
//!
//! Always true: (1) a file under its final name is complete: everything is written under another name, synced, renamed,
//! and the folder synced; (2) a blob's name is its SHA-256, checked while it streamed in, so two tenants can share it
//! and neither can change it; (3) names derive from contract ids, so that what a crash left behind is found again;
//! (4) every method may run again after a crash at any point and ends in the same place; (5) a disk that some process
//! holds locked is never wiped (QEMU and Cloud Hypervisor lock the disks of a living VM).
//!
//! **Space.** A disk's blocks are reserved when it is made (`fallocate`), so "disk full" is an answer to
//! [`Store::create_disk`] and never happens to a running VM. A guest that discards gives blocks back, and writes them
//! again at the risk of whatever the file system has left then: the allocator therefore counts a disk's full size.
//! Images are fetched only when they fit beside [`StorageConfig::keep_free_bytes`].
//!
//! **Wiping.** The key is overwritten and removed first, then the LUKS header, then every block is discarded
//! (`FALLOC_FL_PUNCH_HOLE`, which reaches the device where the file system is mounted with `discard`), then the file is
//! removed. Without encryption the next tenant still reads zeros (freshly reserved blocks do), but whoever takes the
//! device out may find old data: that is what encryption at rest is for, and `docs/threat-model.md` says so.
//!
//! **Fetching** reaches out to a URL that a stranger wrote into a contract. Only the allowed schemes; no addresses of
//! this host, its networks or link-local metadata services unless [`StorageConfig::allow_private_addresses`]; bounded
//! redirects, sizes and time. The answer to a wrong digest tells nothing about what was read.

mod disk;
mod fetch;
mod files;
mod image;
mod luks;
mod manifest;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ledger::api::{ContractId, Digest32};
use serde::{Deserialize, Serialize};

pub use disk::{DiskState, Encryption, Owner, WipeReport};
pub use image::{GcReport, ImageFiles};
pub use luks::EncryptionSupport;
pub use manifest::{FileRef, Manifest, ManifestError};

use crate::seed::{Seed, SeedError, SeedSpec};

/// A scheme that images may be fetched by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// The default.
    Https,
    /// For tests and images inside one's own network: the digest protects what boots, nobody protects who sees it.
    Http,
    /// A file of this host, for tests.
    File,
}

/// How the store works; the defaults are those of a real host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageConfig {
    /// Where everything lies. One file system, since files are renamed inside it.
    pub dir: PathBuf,
    /// How images may be fetched.
    pub allow_schemes: BTreeSet<Scheme>,
    /// Whether images may be fetched from loopback, private and link-local addresses. Off on real hosts: tenants choose
    /// the URL, and this host may reach things that they must not.
    pub allow_private_addresses: bool,
    /// The largest image, all files together, bytes.
    pub image_bytes_max: u64,
    /// Never filled by images or disks, bytes.
    pub keep_free_bytes: u64,
    /// A download that is slower than this over its whole length is given up, bytes per second.
    pub fetch_bytes_per_s_min: u64,
    /// A download that is silent for so long is given up, seconds.
    pub fetch_idle_s: u64,
    /// Downloads at once; more wait.
    pub fetches_max: usize,
    /// An image that no contract names is kept so long after its last use, seconds.
    pub image_grace_s: u64,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("/var/lib/hostd/storage"),
            allow_schemes: BTreeSet::from([Scheme::Https]),
            allow_private_addresses: false,
            image_bytes_max: 4 << 30,
            keep_free_bytes: 1 << 30,
            fetch_bytes_per_s_min: 256 << 10,
            fetch_idle_s: 20,
            fetches_max: 4,
            image_grace_s: 24 * 3600,
        }
    }
}

/// Room on the file system of [`StorageConfig::dir`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Size of the file system.
    pub total_bytes: u64,
    /// What may still be used: free for root's processes, less [`StorageConfig::keep_free_bytes`].
    pub available_bytes: u64,
    /// Blocks that tenants' disks already hold.
    pub used_bytes: u64,
}

/// What the store was asked and couldn't do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// The URL isn't one that this host fetches from.
    #[error("image URL {url}: {why}")]
    Url {
        /// As given (cut to 200 characters).
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// It couldn't be fetched. Trying again may help.
    #[error("cannot fetch {url}: {why}")]
    Fetch {
        /// What was fetched.
        url: String,
        /// What happened.
        why: String,
    },
    /// What came isn't what the contract names.
    #[error("{what} of the image has SHA-256 {found}, but {wanted} was asked; nothing of it is kept")]
    Digest {
        /// `manifest` or the file's name.
        what: String,
        /// As asked.
        wanted: Digest32,
        /// As fetched.
        found: Digest32,
    },
    /// More or less came than the manifest says.
    #[error("{what} of the image: {wanted} bytes in the manifest, {found} came")]
    Size {
        /// The file's name.
        what: String,
        /// As the manifest says.
        wanted: u64,
        /// As fetched (at least).
        found: u64,
    },
    /// The manifest has the right digest and still isn't a manifest.
    #[error("the image's manifest is not usable: {0}")]
    Manifest(#[from] ManifestError),
    /// The image is larger than this host takes.
    #[error("the image has {bytes} bytes; this host takes at most {max} (`storage.image_bytes_max`)")]
    ImageTooLarge {
        /// Of all files.
        bytes: u64,
        /// Limit.
        max: u64,
    },
    /// It doesn't fit. Refused before anything was written.
    #[error(
        "{what} needs {needed} bytes, but only {available} are available in {dir}; free some or add storage"
    )]
    NoSpace {
        /// What should be stored.
        what: String,
        /// Bytes.
        needed: u64,
        /// Bytes, after what is kept free.
        available: u64,
        /// Where.
        dir: PathBuf,
    },
    /// Encryption at rest isn't possible on this host.
    #[error("this host can't encrypt disks: {why}")]
    EncryptionUnavailable {
        /// What is missing.
        why: String,
    },
    /// A disk of that contract is there already, and it is another one.
    #[error("a disk for contract {contract} exists with {found}, but {wanted} was asked")]
    OtherDisk {
        /// Whose.
        contract: ContractId,
        /// What is there.
        found: String,
        /// What was asked.
        wanted: String,
    },
    /// Some process still uses the disk: wiping it would pull it from under a living VM.
    #[error("the disk of contract {contract} is in use ({why}); end the VM first")]
    InUse {
        /// Whose.
        contract: ContractId,
        /// How we know.
        why: String,
    },
    /// The seed's input is bad.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// A tool failed.
    #[error("{tool} failed: {stderr}")]
    Tool {
        /// Which, with its verb.
        tool: String,
        /// What it said, at most 500 characters.
        stderr: String,
    },
    /// The operating system refused.
    #[error("cannot {what}: {source}")]
    Os {
        /// What we tried, with the path.
        what: String,
        /// Why not.
        source: Arc<std::io::Error>,
    },
}

impl StorageError {
    /// Whether the same call may pass later without anything else being changed.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Fetch { .. } | Self::InUse { .. } | Self::NoSpace { .. }
        )
    }

    pub(crate) fn os(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Os {
            what,
            source: Arc::new(source),
        }
    }
}

/// What a store here would find, without making or changing anything: whether disks can be encrypted, and the room (of the
/// nearest folder that exists; what disks hold isn't added up).
pub fn look(config: &StorageConfig) -> (EncryptionSupport, Result<Space, StorageError>) {
    let there = config.dir.ancestors().find(|dir| dir.exists());
    let space = files::space(there.unwrap_or(Path::new("/"))).map(|(total_bytes, free)| Space {
        total_bytes,
        available_bytes: free.saturating_sub(config.keep_free_bytes),
        used_bytes: 0,
    });
    (luks::support(Path::new("/")), space)
}

/// Handle to the store; clones share it. All methods are safe to call at once and again.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: StorageConfig,
    fetcher: fetch::Fetcher,
    encryption: EncryptionSupport,
    /// Images on their way in, by manifest digest and URL: who asks again waits for the same download.
    /// Short sections without `.await` only.
    inflight: Mutex<HashMap<image::Key, image::Inflight>>,
    /// Blobs that `gc` must not touch since an image on its way in counts on them, with how many do.
    pins: Mutex<HashMap<Digest32, u32>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // The sections only insert and remove whole entries: what a panicking holder left is still consistent.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Makes the folders with their modes, and looks whether disks can be encrypted here.
    pub fn open(config: StorageConfig) -> Result<Self, StorageError> {
        for (name, mode) in [
            ("", 0o711),
            ("blobs", 0o755),
            ("images", 0o755),
            ("partial", 0o700),
            ("disks", 0o711),
            ("keys", 0o700),
        ] {
            files::make_dir(&config.dir.join(name), mode)?;
        }
        let inner = Inner {
            fetcher: fetch::Fetcher::new(&config)?,
            encryption: luks::support(Path::new("/")),
            config,
            inflight: Mutex::default(),
            pins: Mutex::default(),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// The configuration it was opened with.
    pub fn config(&self) -> &StorageConfig {
        &self.0.config
    }

    /// Whether disks can be encrypted with a key of their own here, and if not, why.
    pub fn at_rest(&self) -> &EncryptionSupport {
        &self.0.encryption
    }

    /// Room that is left, and what disks hold.
    pub async fn space(&self) -> Result<Space, StorageError> {
        self.blocking(|inner| inner.space()).await
    }

    /// Writes the contract's seed image, in place of an older one.
    pub async fn write_seed(&self, spec: SeedSpec, owner: Owner) -> Result<PathBuf, StorageError> {
        let seed = Seed::new(spec)?;
        let image = seed.image()?;
        self.blocking(move |inner| {
            let path = inner.seed_path(&seed.contract());
            files::write_whole(&path, &image, 0o600, owner)?;
            Ok(path)
        })
        .await
    }

    /// Runs file work on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let inner = self.0.clone();
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .unwrap_or_else(|panicked| {
                Err(StorageError::os("finish a file operation")(
                    std::io::Error::other(panicked),
                ))
            })
    }
}

impl Inner {
    fn space(&self) -> Result<Space, StorageError> {
        let (total_bytes, free) = files::space(&self.config.dir)?;
        let used_bytes = self.used_bytes()?;
        Ok(Space {
            total_bytes,
            available_bytes: free.saturating_sub(self.config.keep_free_bytes),
            used_bytes,
        })
    }

    /// Refuses what wouldn't fit, before anything is written.
    fn check_fits(&self, what: impl Into<String>, needed: u64) -> Result<(), StorageError> {
        let available = self.space()?.available_bytes;
        if needed <= available {
            return Ok(());
        }
        Err(StorageError::NoSpace {
            what: what.into(),
            needed,
            available,
            dir: self.config.dir.clone(),
        })
    }

    /// Path, name and metadata of everything in one of the store's folders.
    fn list(&self, folder: &str) -> Result<Vec<(PathBuf, String, fs::Metadata)>, StorageError> {
        let dir = self.config.dir.join(folder);
        let mut found = Vec::new();
        let mut read = || -> io::Result<()> {
            for entry in fs::read_dir(&dir)? {
                let entry = entry?;
                match entry.metadata() {
                    Ok(meta) => found.push((
                        entry.path(),
                        entry.file_name().to_string_lossy().into_owned(),
                        meta,
                    )),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {} // removed while we looked
                    Err(e) => return Err(e),
                }
            }
            Ok(())
        };
        read().map_err(StorageError::os(format!("list {}", dir.display())))?;
        Ok(found)
    }

    fn fetch_deadline(&self, bytes: u64) -> Duration {
        Duration::from_secs(30 + bytes / self.config.fetch_bytes_per_s_min.max(1))
    }
}
