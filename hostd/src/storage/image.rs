//! Images: fetched once, checked while they stream in, shared, and thrown away when no contract names them.
//!
//! ```text
//! ensure_image ─▶ manifest here, blobs here ─▶ done
//!              └▶ somebody fetches it already ─▶ wait for the same result
//!              └▶ spawn: manifest ─ digest ─ parse ─ size limit ─ pin blobs ─ space ─ each missing blob ─ manifest saved
//! ```
//! The download is a task of its own: whoever asked may give up, and the next one finds it further on.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ledger::api::{Bytes, Digest32, ImageRef};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;

use super::disk::Owner;
use super::manifest::{self, FileRef, Manifest, ManifestError};
use super::{Inner, StorageError, Store, files, lock};

/// Partial downloads that nobody continued for so long are removed.
const PARTIAL_GRACE: Duration = Duration::from_secs(24 * 3600);

/// A download: the manifest's digest and where from. Two URLs of one image are two downloads, so that a tenant's dead
/// server doesn't stop another's good one.
pub(super) type Key = (Digest32, String);
/// How a download ends; `None` while it runs.
pub(super) type Inflight = watch::Receiver<Option<Result<ImageFiles, StorageError>>>;

/// The files of an image, all here and all checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFiles {
    /// SHA-256 of the manifest.
    pub manifest: Digest32,
    /// For people.
    pub name: String,
    /// bzImage.
    pub kernel: PathBuf,
    /// Initrd.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Firmware for confidential VMs.
    pub firmware: Option<PathBuf>,
    /// Read-only root disk.
    pub root: Option<PathBuf>,
}

/// What `gc` removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcReport {
    /// Manifests.
    pub images: usize,
    /// Blobs.
    pub blobs: usize,
    /// Abandoned downloads.
    pub partials: usize,
    /// Bytes given back.
    pub bytes: u64,
}

impl Store {
    /// The image's files, fetched if they aren't here. Who asks for an image that is on its way waits for it.
    pub async fn ensure_image(&self, image: &ImageRef) -> Result<ImageFiles, StorageError> {
        let id = image.manifest;
        if let Some(files) = self.blocking(move |inner| inner.image_here(&id)).await? {
            return Ok(files);
        }
        let url = self.0.fetcher.url(&image.url)?;
        let mut result = self.join(id, url);
        let outcome = match result.wait_for(Option::is_some).await {
            Ok(done) => done.clone(),
            Err(_) => None,
        };
        outcome.unwrap_or_else(|| {
            Err(StorageError::Fetch {
                url: image.url.clone(),
                why: "the download was aborted".into(),
            })
        })
    }

    /// Removes images that are neither in `referenced` nor used within the grace time, blobs of no image, and downloads
    /// that nobody continued. `referenced` must name the image of every contract that isn't released yet.
    pub async fn gc(&self, referenced: BTreeSet<Digest32>) -> Result<GcReport, StorageError> {
        self.blocking(move |inner| inner.gc(&referenced)).await
    }

    /// The running download, or a new one.
    fn join(&self, id: Digest32, url: Url) -> Inflight {
        let key = (id, url.to_string());
        let mut inflight = lock(&self.0.inflight);
        if let Some(running) = inflight.get(&key) {
            return running.clone();
        }
        let (done, result) = watch::channel(None);
        inflight.insert(key.clone(), result.clone());
        let inner = self.0.clone();
        tokio::spawn(async move {
            // Removed also when the task panics or the runtime stops: nobody may wait for a download that isn't there.
            let _entry = InflightEntry {
                inner: inner.clone(),
                key,
            };
            let outcome = inner.clone().fetch_image(id, &url).await;
            done.send_replace(Some(outcome));
        });
        result
    }
}

struct InflightEntry {
    inner: Arc<Inner>,
    key: Key,
}

impl Drop for InflightEntry {
    fn drop(&mut self) {
        lock(&self.inner.inflight).remove(&self.key);
    }
}

/// Keeps `gc` away from blobs that a download counts on.
struct Pins {
    inner: Arc<Inner>,
    blobs: Vec<Digest32>,
}

impl Pins {
    fn new(inner: Arc<Inner>, manifest: &Manifest) -> Self {
        let blobs: Vec<_> = manifest.files().map(|f| f.sha256).collect();
        let mut pins = lock(&inner.pins);
        for blob in &blobs {
            *pins.entry(*blob).or_default() += 1;
        }
        drop(pins);
        Self { inner, blobs }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut pins = lock(&self.inner.pins);
        for blob in &self.blobs {
            match pins.get_mut(blob) {
                Some(count) if *count > 1 => *count -= 1,
                _ => {
                    pins.remove(blob);
                }
            }
        }
    }
}

impl Inner {
    fn blob_path(&self, digest: &Digest32) -> PathBuf {
        self.config.dir.join("blobs").join(digest.to_string())
    }

    fn manifest_path(&self, id: &Digest32) -> PathBuf {
        self.config.dir.join("images").join(format!("{id}.json"))
    }

    fn image_files(&self, id: Digest32, manifest: &Manifest) -> ImageFiles {
        let path = |file: &FileRef| self.blob_path(&file.sha256);
        ImageFiles {
            manifest: id,
            name: manifest.name.to_string(),
            kernel: path(&manifest.kernel),
            initrd: manifest.initrd.as_ref().map(path),
            cmdline: manifest.cmdline.to_string(),
            firmware: manifest.firmware.as_ref().map(path),
            root: manifest.root.as_ref().map(path),
        }
    }

    /// The image if all of it is here; notes that it was used.
    fn image_here(&self, id: &Digest32) -> Result<Option<ImageFiles>, StorageError> {
        let path = self.manifest_path(id);
        // Held so that `gc` can't judge the image by the time of use that is just being renewed.
        let _no_gc = lock(&self.pins);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(StorageError::os(format!("read {}", path.display()))(e)),
        };
        if sha256(&bytes) != *id {
            return Ok(None); // damaged: fetched again and replaced
        }
        let manifest = Manifest::parse(&bytes)?;
        for file in manifest.files() {
            if !self.blob_here(file)? {
                return Ok(None);
            }
        }
        File::open(&path)
            .and_then(|f| f.set_modified(SystemTime::now()))
            .map_err(StorageError::os(format!("note the use of {}", path.display())))?;
        Ok(Some(self.image_files(*id, &manifest)))
    }

    /// Whether a blob is here. Its name proves its content; a manifest that gives it another size is wrong.
    fn blob_here(&self, file: &FileRef) -> Result<bool, StorageError> {
        let path = self.blob_path(&file.sha256);
        match fs::metadata(&path) {
            Ok(meta) if meta.len() == file.size => Ok(true),
            Ok(meta) => Err(StorageError::Size {
                what: file.file.to_string(),
                wanted: file.size,
                found: meta.len(),
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(StorageError::os(format!("look at {}", path.display()))(e)),
        }
    }

    async fn fetch_image(self: Arc<Self>, id: Digest32, url: &Url) -> Result<ImageFiles, StorageError> {
        let _slot = self.fetcher.slot().await;
        let bytes = self.fetch_manifest(url).await?;
        let found = sha256(&bytes);
        if found != id {
            return Err(StorageError::Digest {
                what: "manifest".into(),
                wanted: id,
                found,
            });
        }
        let manifest = Manifest::parse(&bytes)?;
        let total = manifest.total_bytes();
        if total > self.config.image_bytes_max {
            return Err(StorageError::ImageTooLarge {
                bytes: total,
                max: self.config.image_bytes_max,
            });
        }
        let _pins = Pins::new(self.clone(), &manifest);
        let missing = self.missing(&manifest)?;
        let needed = missing.iter().map(|file| file.size).sum();
        self.check_fits(format!("image {}", manifest.name), needed)?;
        for file in &missing {
            self.fetch_blob(id, url, file).await?;
        }
        files::write_whole(&self.manifest_path(&id), &bytes, 0o444, Owner::SELF)?;
        tracing::info!(image = %id.short(), name = %manifest.name, files = missing.len(), bytes = needed, "image fetched");
        Ok(self.image_files(id, &manifest))
    }

    fn missing(&self, manifest: &Manifest) -> Result<Vec<FileRef>, StorageError> {
        let mut missing: Vec<FileRef> = Vec::new();
        for file in manifest.files() {
            if !self.blob_here(file)? && !missing.iter().any(|m| m.sha256 == file.sha256) {
                missing.push(file.clone());
            }
        }
        Ok(missing)
    }

    async fn fetch_manifest(&self, url: &Url) -> Result<Vec<u8>, StorageError> {
        let fetch = async {
            let mut body = self.fetcher.open(url, 0).await?;
            let mut bytes = Vec::new();
            while let Some(chunk) = body.chunk().await? {
                bytes.extend_from_slice(&chunk);
                if bytes.len() > manifest::BYTES_MAX {
                    return Err(ManifestError::TooLarge { found: bytes.len() }.into());
                }
            }
            Ok(bytes)
        };
        self.in_time(url, manifest::BYTES_MAX as u64, fetch).await
    }

    async fn fetch_blob(&self, id: Digest32, manifest_url: &Url, file: &FileRef) -> Result<(), StorageError> {
        let url = manifest_url
            .join(file.file.as_str())
            .map_err(|e| StorageError::Url {
                url: manifest_url.to_string(),
                why: e.to_string(),
            })?;
        // One writer: the same image from the same URL is one download, every other one has another name here.
        let download = sha256(format!("{id} {manifest_url}").as_bytes()).short();
        let partial = self
            .config
            .dir
            .join("partial")
            .join(format!("{}-{download}.part", file.sha256));
        let resumed = fs::metadata(&partial).is_ok_and(|meta| meta.len() > 0);
        match self
            .in_time(&url, file.size, self.stream(&url, file, &partial))
            .await
        {
            // What an earlier try left may be damaged (a power cut before its blocks were written): once from the start.
            Err(StorageError::Digest { .. }) if resumed => {
                self.in_time(&url, file.size, self.stream(&url, file, &partial))
                    .await?;
            }
            outcome => outcome?,
        }
        files::publish(&partial, &self.blob_path(&file.sha256))
    }

    /// Streams the file into `partial`, going on where an earlier try stopped. Afterwards it is complete and synced.
    async fn stream(&self, url: &Url, file: &FileRef, partial: &Path) -> Result<(), StorageError> {
        let (mut hash, mut length) = resume(partial.to_owned(), file.size).await?;
        let os = |what: &str| StorageError::os(format!("{what} {}", partial.display()));
        let mut out = tokio::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(partial)
            .await
            .map_err(os("open"))?;
        if length < file.size {
            let mut body = self.fetcher.open(url, length).await?;
            if body.offset != length {
                out.set_len(0).await.map_err(os("truncate"))?;
                (hash, length) = (Sha256::new(), 0);
            }
            while let Some(chunk) = body.chunk().await? {
                length += chunk.len() as u64;
                if length > file.size {
                    drop(out);
                    files::remove(partial)?;
                    return Err(StorageError::Size {
                        what: file.file.to_string(),
                        wanted: file.size,
                        found: length,
                    });
                }
                hash.update(&chunk);
                out.write_all(&chunk).await.map_err(os("write"))?;
            }
        }
        out.flush().await.map_err(os("write"))?;
        if length < file.size {
            return Err(StorageError::Size {
                what: file.file.to_string(),
                wanted: file.size,
                found: length,
            });
        }
        let found = Bytes(hash.finalize().into());
        if found != file.sha256 {
            files::remove(partial)?;
            return Err(StorageError::Digest {
                what: file.file.to_string(),
                wanted: file.sha256,
                found,
            });
        }
        out.sync_all().await.map_err(os("sync"))?;
        out.set_permissions(fs::Permissions::from_mode(0o444))
            .await
            .map_err(os("protect"))
    }

    /// Gives up when the whole takes longer than the slowest rate that is allowed.
    async fn in_time<T>(
        &self,
        url: &Url,
        bytes: u64,
        work: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        let deadline = self.fetch_deadline(bytes);
        tokio::time::timeout(deadline, work).await.unwrap_or_else(|_| {
            let why = format!(
                "{bytes} bytes didn't come within {} s (`storage.fetch_bytes_per_s_min`)",
                deadline.as_secs()
            );
            Err(StorageError::Fetch {
                url: url.to_string(),
                why,
            })
        })
    }

    fn gc(&self, referenced: &BTreeSet<Digest32>) -> Result<GcReport, StorageError> {
        let pins = lock(&self.pins); // for the whole time: see `image_here` and `Pins`
        let mut report = GcReport::default();
        let mut wanted: BTreeSet<Digest32> = pins.keys().copied().collect();
        let grace = Duration::from_secs(self.config.image_grace_s);
        for (path, name, meta) in self.list("images")? {
            let id = name
                .strip_suffix(".json")
                .and_then(|stem| stem.parse::<Digest32>().ok());
            let keep = id.is_some_and(|id| referenced.contains(&id)) || younger_than(&meta, grace);
            match fs::read(&path)
                .ok()
                .and_then(|bytes| Manifest::parse(&bytes).ok())
            {
                Some(manifest) if keep => wanted.extend(manifest.files().map(|file| file.sha256)),
                _ if keep => {} // a manifest on its way to its name, or a damaged one whose blobs nobody can name
                _ => report.images += usize::from(files::remove(&path)?),
            }
        }
        for (path, name, meta) in self.list("blobs")? {
            let id = name.parse::<Digest32>().ok();
            if id.is_some_and(|id| !wanted.contains(&id)) && files::remove(&path)? {
                report.blobs += 1;
                report.bytes += meta.len();
            }
        }
        for (path, _, meta) in self.list("partial")? {
            if !younger_than(&meta, PARTIAL_GRACE) && files::remove(&path)? {
                report.partials += 1;
                report.bytes += meta.len();
            }
        }
        Ok(report)
    }
}

/// Whether the file was written (an image: used) so recently. A clock that went backwards keeps everything.
fn younger_than(meta: &fs::Metadata, grace: Duration) -> bool {
    meta.modified()
        .ok()
        .and_then(|at| SystemTime::now().duration_since(at).ok())
        .is_none_or(|age| age < grace)
}

fn sha256(bytes: &[u8]) -> Digest32 {
    Bytes(Sha256::digest(bytes).into())
}

/// Hash and length of what an earlier try left; longer than the whole file, it is thrown away.
async fn resume(partial: PathBuf, size: u64) -> Result<(Sha256, u64), StorageError> {
    let what = format!("read {}", partial.display());
    let work = move || -> io::Result<(Sha256, u64)> {
        let mut file = match File::open(&partial) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((Sha256::new(), 0)),
            Err(e) => return Err(e),
        };
        if file.metadata()?.len() > size {
            fs::remove_file(&partial)?;
            return Ok((Sha256::new(), 0));
        }
        let (mut hash, mut length) = (Sha256::new(), 0);
        let mut buffer = vec![0u8; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok((hash, length)),
                n => {
                    hash.update(&buffer[..n]);
                    length += n as u64;
                }
            }
        }
    };
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(io::Error::other(e)))
        .map_err(StorageError::os(what))
}
