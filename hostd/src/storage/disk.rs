//! Tenants' disks: made, looked at, wiped.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use ledger::api::ContractId;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, fallocate, fcntl};
use serde::{Deserialize, Serialize};

use super::{Inner, StorageError, Store, files, luks};

const GIB: u64 = 1 << 30;
/// Largest disk: far above any machine here, low enough that no sum of bytes overflows.
const GIB_MAX: u64 = 1 << 20;

/// Whether a disk is encrypted with a key of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encryption {
    /// Plain blocks.
    None,
    /// LUKS2, AES-XTS, a random key that exists only on this host and dies with the contract.
    Luks2,
}

/// Who may open a file: the uid and gid that the VMM runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Owner {
    /// Stays with the process that makes it.
    pub const SELF: Self = Self {
        uid: u32::MAX,
        gid: u32::MAX,
    };
}

/// What is there of a contract's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskState {
    /// Nothing.
    Absent,
    /// A crash cut its making short, or its key is gone; make it again or wipe it.
    Partial(String),
    /// Complete, but its encryption isn't open (after a reboot); `create_disk` opens it.
    Locked,
    /// Ready for a VM.
    Ready {
        /// What the VMM opens: the file, or the opened mapping.
        path: PathBuf,
        /// Size of the file.
        bytes: u64,
        /// How it is encrypted.
        encryption: Encryption,
    },
}

/// What `wipe` found and did; all `false` when there was nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WipeReport {
    /// A key was overwritten and removed.
    pub key_destroyed: bool,
    /// A disk's blocks were discarded and the file removed.
    pub disk_removed: bool,
    /// A seed was removed.
    pub seed_removed: bool,
}

impl Store {
    /// The contract's disk, made if it isn't there; a disk of another size or encryption is an error, never replaced.
    /// All blocks are reserved, so that the guest can't meet a full file system. Gives the path for the VMM.
    pub async fn create_disk(
        &self,
        contract: ContractId,
        gib: u64,
        encryption: Encryption,
        owner: Owner,
    ) -> Result<PathBuf, StorageError> {
        self.blocking(move |inner| inner.create_disk(contract, gib, encryption, owner))
            .await
    }

    /// What is there of the contract's disk.
    pub async fn observe_disk(&self, contract: ContractId) -> Result<DiskState, StorageError> {
        self.blocking(move |inner| inner.observe_disk(&contract)).await
    }

    /// Destroys the key, discards every block, removes disk and seed. Nothing there is a success; a disk in use isn't.
    pub async fn wipe(&self, contract: ContractId) -> Result<WipeReport, StorageError> {
        self.blocking(move |inner| inner.wipe(contract)).await
    }

    /// Every contract that has a disk, a seed or a key here, half-made ones included.
    pub async fn disks(&self) -> Result<Vec<ContractId>, StorageError> {
        self.blocking(|inner| {
            let mut found = BTreeSet::new();
            for folder in ["disks", "keys"] {
                for (_, name, _) in inner.list(folder)? {
                    found.extend(
                        name.split('.')
                            .next()
                            .and_then(|stem| stem.parse::<ContractId>().ok()),
                    );
                }
            }
            Ok(found.into_iter().collect())
        })
        .await
    }
}

impl Inner {
    pub(super) fn disk_path(&self, contract: &ContractId) -> PathBuf {
        self.config.dir.join("disks").join(format!("{contract}.raw"))
    }

    pub(super) fn seed_path(&self, contract: &ContractId) -> PathBuf {
        self.config.dir.join("disks").join(format!("{contract}.seed.img"))
    }

    pub(super) fn key_path(&self, contract: &ContractId) -> PathBuf {
        self.config.dir.join("keys").join(format!("{contract}.key"))
    }

    /// Under this name the disk is made; the rename says that it is complete.
    fn unfinished_path(&self, contract: &ContractId) -> PathBuf {
        self.config.dir.join("disks").join(format!("{contract}.raw.new"))
    }

    pub(super) fn used_bytes(&self) -> Result<u64, StorageError> {
        Ok(self
            .list("disks")?
            .iter()
            .map(|(_, _, meta)| meta.blocks().saturating_mul(512))
            .sum())
    }

    fn create_disk(
        &self,
        contract: ContractId,
        gib: u64,
        encryption: Encryption,
        owner: Owner,
    ) -> Result<PathBuf, StorageError> {
        if !(1..=GIB_MAX).contains(&gib) {
            let why = io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a disk has 1 to {GIB_MAX} GiB"),
            );
            return Err(StorageError::os(format!("make a disk of {gib} GiB"))(why));
        }
        if encryption == Encryption::Luks2 {
            self.encryption.require()?;
        }
        // The header comes on top, so that the guest gets the size it paid for.
        let bytes = gib * GIB
            + if encryption == Encryption::Luks2 {
                luks::HEADER_BYTES
            } else {
                0
            };
        match self.observe_disk(&contract)? {
            DiskState::Ready {
                bytes: found,
                encryption: found_encryption,
                ..
            } => {
                self.same(contract, (found, found_encryption), (bytes, encryption))?;
                return self.give_to(&contract, owner);
            }
            DiskState::Locked => {
                let found = self.length(&contract)?;
                self.same(contract, (found, Encryption::Luks2), (bytes, encryption))?;
            }
            DiskState::Absent | DiskState::Partial(_) => {
                self.wipe_disk(contract)?;
                self.check_fits(format!("a disk of {gib} GiB"), bytes)?;
                self.build(&contract, bytes, encryption)?;
            }
        }
        if encryption == Encryption::Luks2 {
            luks::open(&contract, &self.disk_path(&contract), &self.key_path(&contract))?;
        }
        self.give_to(&contract, owner)
    }

    fn same(
        &self,
        contract: ContractId,
        found: (u64, Encryption),
        wanted: (u64, Encryption),
    ) -> Result<(), StorageError> {
        let words =
            |(bytes, encryption): (u64, Encryption)| format!("{bytes} bytes, encryption {encryption:?}");
        if found == wanted {
            return Ok(());
        }
        Err(StorageError::OtherDisk {
            contract,
            found: words(found),
            wanted: words(wanted),
        })
    }

    fn length(&self, contract: &ContractId) -> Result<u64, StorageError> {
        let path = self.disk_path(contract);
        let meta = fs::metadata(&path).map_err(StorageError::os(format!("look at {}", path.display())))?;
        Ok(meta.len())
    }

    /// Gives what the VMM opens to its uid: the opened mapping's node (udev leaves it so until the mapping changes), or
    /// the file. Says which.
    fn give_to(&self, contract: &ContractId, owner: Owner) -> Result<PathBuf, StorageError> {
        let path = luks::mapping(contract).unwrap_or_else(|| self.disk_path(contract));
        let file = File::open(&path).map_err(StorageError::os(format!("open {}", path.display())))?;
        files::give(&file, &path, owner)?;
        Ok(path)
    }

    fn build(&self, contract: &ContractId, bytes: u64, encryption: Encryption) -> Result<(), StorageError> {
        let path = self.unfinished_path(contract);
        let file = files::create(&path, 0o600)?;
        reserve(&file, bytes).map_err(|e| {
            let _ = fs::remove_file(&path); // half a reservation helps nobody; the next try starts anew anyway
            StorageError::os(format!("reserve {bytes} bytes for {}", path.display()))(e)
        })?;
        if encryption == Encryption::Luks2 {
            luks::format(&path, &self.key_path(contract))?;
        }
        file.sync_all()
            .map_err(StorageError::os(format!("sync {}", path.display())))?;
        files::publish(&path, &self.disk_path(contract))
    }

    fn observe_disk(&self, contract: &ContractId) -> Result<DiskState, StorageError> {
        let path = self.disk_path(contract);
        let meta = match fs::metadata(&path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let rest = [self.unfinished_path(contract), self.key_path(contract)]
                    .into_iter()
                    .find(|p| p.exists());
                let partial = |p: PathBuf| DiskState::Partial(format!("only {} is there", p.display()));
                return Ok(rest.map_or(DiskState::Absent, partial));
            }
            Err(e) => return Err(StorageError::os(format!("look at {}", path.display()))(e)),
        };
        let bytes = meta.len();
        match (luks::has_header(&path)?, self.key_path(contract).exists()) {
            (true, true) => Ok(match luks::mapping(contract) {
                Some(path) => DiskState::Ready {
                    path,
                    bytes,
                    encryption: Encryption::Luks2,
                },
                None => DiskState::Locked,
            }),
            (false, true) => Ok(DiskState::Partial(
                "it has a key, but its LUKS header is gone".into(),
            )),
            // A guest may write a LUKS header of its own onto a plain disk: what counts is our key.
            (_, false) => Ok(DiskState::Ready {
                path,
                bytes,
                encryption: Encryption::None,
            }),
        }
    }

    fn wipe(&self, contract: ContractId) -> Result<WipeReport, StorageError> {
        let mut report = self.wipe_disk(contract)?;
        let seed = self.seed_path(&contract);
        report.seed_removed = files::remove(&seed)? | files::remove(&seed.with_extension("new"))?;
        Ok(report)
    }

    /// The order matters: who cuts the power in between finds blocks without a key, never a key with blocks.
    fn wipe_disk(&self, contract: ContractId) -> Result<WipeReport, StorageError> {
        let candidates = [self.disk_path(&contract), self.unfinished_path(&contract)];
        luks::close(contract)?;
        let mut open = Vec::new();
        for path in candidates {
            match OpenOptions::new().read(true).write(true).open(&path) {
                Ok(file) => {
                    claim(&file).map_err(|e| StorageError::InUse {
                        contract,
                        why: e.to_string(),
                    })?;
                    open.push((path, file));
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(StorageError::os(format!("open {}", path.display()))(e)),
            }
        }
        let mut report = WipeReport {
            key_destroyed: luks::destroy_key(&self.key_path(&contract))?,
            ..Default::default()
        };
        for (path, file) in open {
            discard(&file).map_err(StorageError::os(format!("discard {}", path.display())))?;
            report.disk_removed |= files::remove(&path)?;
        }
        Ok(report)
    }
}

/// Reserves all blocks, so that writing them can't fail for want of space.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    let length = i64::try_from(bytes).map_err(io::Error::other)?;
    fallocate(file, FallocateFlags::empty(), 0, length).map_err(|e| match e {
        Errno::EOPNOTSUPP => io::Error::new(
            io::ErrorKind::Unsupported,
            "this file system can't reserve space (fallocate); put `storage.dir` on ext4, XFS or btrfs",
        ),
        other => other.into(),
    })
}

/// Takes a lock on every byte, which fails while any process holds one. The lock goes with `file`.
fn claim(file: &File) -> Result<(), String> {
    let all = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&all)) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => Err("a process holds a lock on it".into()),
        Err(e) => Err(format!("it can't be locked: {e}")),
    }
}

/// Gives every block back and makes the file read as zeros, synced. File systems without holes get zeros written.
fn discard(mut file: &File) -> io::Result<()> {
    use std::io::{Seek as _, Write as _};
    let bytes = file.metadata()?.len();
    let length = i64::try_from(bytes).map_err(io::Error::other)?;
    if length > 0 {
        match fallocate(
            file,
            FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
            0,
            length,
        ) {
            Ok(()) => {}
            Err(Errno::EOPNOTSUPP) => {
                file.rewind()?;
                let zeros = vec![0u8; 1 << 20];
                let mut left = bytes;
                while left > 0 {
                    let now = left.min(zeros.len() as u64);
                    file.write_all(&zeros[..now as usize])?;
                    left -= now;
                }
            }
            Err(e) => return Err(e.into()),
        }
    }
    file.sync_all()
}
