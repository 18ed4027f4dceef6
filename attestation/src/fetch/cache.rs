//! A folder of endorsements that is kept filled: offline first, every file checked each time it is used.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::client::{self, FetchError, FetcherError, Patience};
use super::{Answer, Document, Needs, Sources, needed};
use crate::snp::Product;
use crate::{AnyEvidence, Endorsements, Roots};

/// Beside a document: the signer's certificates that came with it.
const ISSUERS: &str = "issuers.pem";

/// Gets documents into a folder.
#[derive(Debug)]
pub struct Fetcher {
    /// `None`: nothing is fetched.
    client: Option<reqwest::Client>,
    sources: Sources,
    folder: PathBuf,
    roots: Roots,
    patience: Patience,
    product: Option<Product>,
}

/// What whoever waits may hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A service is asked again after a pause.
    Waits {
        /// For what.
        document: &'a Document,
        /// Why.
        error: &'a FetchError,
        /// For how long.
        pause: Duration,
    },
    /// A document's fate is known.
    Done(&'a Found),
}

/// Where a document came from, or why it isn't there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was there.
    Kept,
    /// It was fetched.
    Fetched,
    /// It was there and should be renewed, which failed; it is good for now.
    Stale(FetchError),
    /// It isn't there.
    Missing(FetchError),
}

/// A document, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which.
    pub document: Document,
    /// What became of it.
    pub outcome: Outcome,
    /// Its files.
    pub files: Vec<PathBuf>,
    /// Until when it is good: Unix seconds.
    pub until: Option<u64>,
}

impl Found {
    /// Whether it is there.
    pub fn is_there(&self) -> bool {
        !matches!(self.outcome, Outcome::Missing(_))
    }
}

impl Fetcher {
    /// `sources`: `None` fetches nothing and uses what the folder has. `roots`: who must have signed.
    pub fn new(folder: &Path, sources: Option<Sources>, roots: Roots) -> Result<Self, FetcherError> {
        let patience = Patience::default();
        let client = sources.as_ref().map(|_| client::client(patience)).transpose()?;
        Ok(Self {
            client,
            sources: sources.unwrap_or_default(),
            folder: folder.to_owned(),
            roots,
            patience,
            product: None,
        })
    }

    /// With another patience than the default.
    pub fn with_patience(mut self, patience: Patience) -> Result<Self, FetcherError> {
        if self.client.is_some() {
            self.client = Some(client::client(patience)?);
        }
        self.patience = patience;
        Ok(self)
    }

    /// For reports that don't say which processor they are from (version 2).
    pub fn with_product(self, product: Option<Product>) -> Self {
        Self { product, ..self }
    }

    /// Gets all that `evidence` needs beside what is `given`, and what that needs in turn. `at`, Unix seconds: when it must be
    /// good; `ahead`, seconds: what ends sooner is renewed. `hear` hears what happens to each document.
    pub async fn complete(
        &self,
        evidence: &AnyEvidence,
        given: &Endorsements,
        at: u64,
        ahead: u64,
        hear: &mut (dyn FnMut(Event<'_>) + Send),
    ) -> (Vec<Found>, Needs) {
        let mut all: Vec<Found> = Vec::new();
        loop {
            let mut known = given.clone();
            self.add_to(&mut known, &all);
            let mut needs = needed(evidence, &known, self.product, &self.roots, at);
            needs
                .documents
                .retain(|document| all.iter().all(|found| found.document != *document));
            if needs.documents.is_empty() {
                return (all, needs);
            }
            for document in needs.documents {
                let found = self.get(document, &all, at, ahead, hear).await;
                all.push(found);
            }
        }
    }

    /// Gets one document. `others`: what was got before; a signer's certificate may be among them.
    pub async fn get(
        &self,
        document: Document,
        others: &[Found],
        at: u64,
        ahead: u64,
        hear: &mut (dyn FnMut(Event<'_>) + Send),
    ) -> Found {
        let found = self.seek(document, others, at, ahead, hear).await;
        hear(Event::Done(&found));
        found
    }

    async fn seek(
        &self,
        document: Document,
        others: &[Found],
        at: u64,
        ahead: u64,
        hear: &mut (dyn FnMut(Event<'_>) + Send),
    ) -> Found {
        let known: Vec<Vec<u8>> = self
            .endorsements(others)
            .certificates()
            .map(<[u8]>::to_vec)
            .collect();
        let path = self.folder.join(document.file_name());
        let kept = read(&path).and_then(|mut answer| {
            Some((document.check(&mut answer, &known, &self.roots, at).ok()?, answer))
        });
        let lasts = |until: Option<u64>| until.is_none_or(|until| until >= at.saturating_add(ahead));
        let found = |outcome, until, answer: Option<&Answer>| Found {
            document: document.clone(),
            outcome,
            files: answer.map(|answer| files(&path, answer)).unwrap_or_default(),
            until,
        };
        if let Some((until, answer)) = &kept
            && lasts(*until)
        {
            return found(Outcome::Kept, *until, Some(answer));
        }
        match (self.fetch(&document, &path, &known, at, hear).await, kept) {
            (Ok((until, answer)), _) => found(Outcome::Fetched, until, Some(&answer)),
            (Err(FetchError::Offline), Some((until, answer))) => found(Outcome::Kept, until, Some(&answer)),
            (Err(e), Some((until, answer))) => found(Outcome::Stale(e), until, Some(&answer)),
            (Err(e), None) => found(Outcome::Missing(e), None, None),
        }
    }

    async fn fetch(
        &self,
        document: &Document,
        path: &Path,
        known: &[Vec<u8>],
        at: u64,
        hear: &mut (dyn FnMut(Event<'_>) + Send),
    ) -> Result<(Option<u64>, Answer), FetchError> {
        let client = self.client.as_ref().ok_or(FetchError::Offline)?;
        let request = document
            .request(&self.sources)
            .map_err(|e| FetchError::Local(e.to_string()))?;
        let mut waits = |error: &FetchError, pause| {
            hear(Event::Waits {
                document,
                error,
                pause,
            });
        };
        let mut answer = client::ask(client, &request, self.patience, &mut waits).await?;
        let until = document
            .check(&mut answer, known, &self.roots, at)
            .map_err(|why| {
                let host = client::host(&request);
                FetchError::Unusable { host, why }
            })?;
        let (to, written) = (path.to_owned(), answer.clone());
        // Waits for the disk.
        let written = tokio::task::spawn_blocking(move || {
            fs::create_dir_all(to.parent().unwrap_or(&to)).and_then(|()| write(&to, &written))
        });
        let written = written.await.map_err(io::Error::other).and_then(|done| done);
        written.map_err(|e| FetchError::Local(format!("cannot write {}: {e}", path.display())))?;
        Ok((until, answer))
    }

    /// What was found, for the verifier.
    pub fn endorsements(&self, found: &[Found]) -> Endorsements {
        let mut endorsements = Endorsements::none();
        self.add_to(&mut endorsements, found);
        endorsements
    }

    fn add_to(&self, endorsements: &mut Endorsements, found: &[Found]) {
        for file in found.iter().flat_map(|found| &found.files) {
            // They were read and checked before; one that is gone since is missing then, and the verdict names it.
            if let Ok(content) = fs::read(file) {
                let _ = endorsements.add(&content);
            }
        }
    }
}

fn issuers_of(path: &Path) -> PathBuf {
    path.with_extension(ISSUERS)
}

fn files(path: &Path, answer: &Answer) -> Vec<PathBuf> {
    let issuers = answer.issuers.as_ref().map(|_| issuers_of(path));
    [path.to_owned()].into_iter().chain(issuers).collect()
}

fn read(path: &Path) -> Option<Answer> {
    let content = |path: &Path| {
        let small = fs::metadata(path).is_ok_and(|file| file.len() <= client::ANSWER_LEN_MAX as u64);
        small.then(|| fs::read(path).ok()).flatten()
    };
    Some(Answer {
        content: content(path)?,
        issuers: content(&issuers_of(path)),
    })
}

/// The certificates first: a document never lies there without them.
fn write(path: &Path, answer: &Answer) -> io::Result<()> {
    if let Some(issuers) = &answer.issuers {
        replace(&issuers_of(path), issuers)?;
    }
    replace(path, &answer.content)
}

/// The old content or the new one, whatever happens in between, and whoever else does the same.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let new = path.with_extension(format!("{process}-{count}.new"));
    let mut file = fs::File::create(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)
}
