//! A folder of endorsements that is kept filled: offline first, every file checked each time it is used.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::client::{self, FetchError, FetcherError};
use super::{Answer, Document, Needs, Sources, needed};
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
        let client = sources.as_ref().map(|_| client::client()).transpose()?;
        Ok(Self {
            client,
            sources: sources.unwrap_or_default(),
            folder: folder.to_owned(),
            roots,
        })
    }

    /// Gets all that `evidence` needs, and what that needs in turn. `at`, Unix seconds: when it must be good; `ahead`,
    /// seconds: what ends sooner is renewed. `progress` hears of each document when its fate is known.
    pub async fn complete(
        &self,
        evidence: &AnyEvidence,
        at: u64,
        ahead: u64,
        progress: &mut (dyn FnMut(&Found) + Send),
    ) -> (Vec<Found>, Needs) {
        let mut all: Vec<Found> = Vec::new();
        loop {
            let known = self.endorsements(&all);
            let mut needs = needed(evidence, &known, &self.roots, at);
            needs
                .documents
                .retain(|document| all.iter().all(|found| found.document != *document));
            if needs.documents.is_empty() {
                return (all, needs);
            }
            for document in needs.documents {
                let found = self.get(document, &all, at, ahead).await;
                progress(&found);
                all.push(found);
            }
        }
    }

    /// Gets one document. `others`: what was got before; a signer's certificate may be among them.
    pub async fn get(&self, document: Document, others: &[Found], at: u64, ahead: u64) -> Found {
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
        match (self.fetch(&document, &path, &known, at).await, kept) {
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
    ) -> Result<(Option<u64>, Answer), FetchError> {
        let client = self.client.as_ref().ok_or(FetchError::Offline)?;
        let request = document
            .request(&self.sources)
            .map_err(|e| FetchError::Local(e.to_string()))?;
        let mut answer = client::ask(client, &request).await?;
        let until = document
            .check(&mut answer, known, &self.roots, at)
            .map_err(|why| {
                let host = client::host(&request);
                FetchError::Unusable { host, why }
            })?;
        let written = fs::create_dir_all(&self.folder).and_then(|()| write(path, &answer));
        written.map_err(|e| FetchError::Local(format!("cannot write {}: {e}", path.display())))?;
        Ok((until, answer))
    }

    /// What was found, for the verifier.
    pub fn endorsements(&self, found: &[Found]) -> Endorsements {
        let mut endorsements = Endorsements::none();
        for file in found.iter().flat_map(|found| &found.files) {
            // They were read and checked before; one that is gone since is missing then, and the verdict names it.
            if let Ok(content) = fs::read(file) {
                let _ = endorsements.add(&content);
            }
        }
        endorsements
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
