//! A folder of endorsements that is kept filled: offline first, every file checked each time it is used.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::client::{self, FetchError, FetcherError, Patience};
use super::{Answer, Document, Needs, Sources, needed};
use crate::snp::Product;
use crate::{AnyEvidence, Endorsements, Roots};

/// Beside a document: the signer's certificates that came with it.
const ISSUERS: &str = "issuers.pem";
/// The end of a file's name while it is written.
const NEW: &str = "new";
/// What was left half written goes after this.
const LEFT_OVER: Duration = Duration::from_secs(3600);

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
    /// Hosts that want to be left alone, and until when: five at most. Held for a few instructions, never over an `.await`.
    busy: Mutex<BTreeMap<String, Instant>>,
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
    /// It was fetched, and can't be written into the folder: the next time it is asked for again.
    Unkept(FetchError),
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
    answer: Option<Answer>,
}

impl Found {
    /// What to give the verifier: the document, and its signer's certificates where they came beside it.
    pub fn contents(&self) -> impl Iterator<Item = &[u8]> {
        let answer = self.answer.iter();
        answer
            .flat_map(|answer| {
                [Some(&answer.content), answer.issuers.as_ref()]
                    .into_iter()
                    .flatten()
            })
            .map(Vec::as_slice)
    }

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
        sweep(folder);
        Ok(Self {
            client,
            sources: sources.unwrap_or_default(),
            folder: folder.to_owned(),
            roots,
            patience,
            product: None,
            busy: Mutex::default(),
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
        let found = |outcome, files, got: Option<(Option<u64>, Answer)>| {
            let (until, answer) = got.map_or((None, None), |(until, answer)| (until, Some(answer)));
            Found {
                document: document.clone(),
                outcome,
                files,
                until,
                answer,
            }
        };
        let in_folder = |outcome, got: (Option<u64>, Answer)| found(outcome, files(&path, &got.1), Some(got));
        let kept = match kept {
            Some(kept) if lasts(kept.0) => return in_folder(Outcome::Kept, kept),
            kept => kept,
        };
        let error = match self.fetch(&document, &known, at, hear).await {
            Ok(got) => {
                return match keep(&path, &got.1).await {
                    Ok(()) => in_folder(Outcome::Fetched, got),
                    Err(error) => found(Outcome::Unkept(error), Vec::new(), Some(got)),
                };
            }
            Err(error) => error,
        };
        match (error, kept) {
            (FetchError::Offline, Some(kept)) => in_folder(Outcome::Kept, kept),
            (error, Some(kept)) => in_folder(Outcome::Stale(error), kept),
            (error, None) => found(Outcome::Missing(error), Vec::new(), None),
        }
    }

    async fn fetch(
        &self,
        document: &Document,
        known: &[Vec<u8>],
        at: u64,
        hear: &mut (dyn FnMut(Event<'_>) + Send),
    ) -> Result<(Option<u64>, Answer), FetchError> {
        let client = self.client.as_ref().ok_or(FetchError::Offline)?;
        let request = document
            .request(&self.sources)
            .map_err(|e| FetchError::Local(e.to_string()))?;
        let host = client::host(&request);
        if let Some(pause) = self.is_busy(&host) {
            return Err(FetchError::Busy { host, pause });
        }
        let mut waits = |error: &FetchError, pause| {
            hear(Event::Waits {
                document,
                error,
                pause,
            });
        };
        let mut answer = match client::ask(client, &request, self.patience, &mut waits).await {
            Ok(answer) => answer,
            Err(error) => {
                if let FetchError::Refused { retry_after, .. } = &error {
                    self.leave_alone(&host, *retry_after);
                }
                return Err(error);
            }
        };
        let until = document
            .check(&mut answer, known, &self.roots, at)
            .map_err(|why| FetchError::Unusable { host, why })?;
        Ok((until, answer))
    }

    /// How much longer a host wants to be left alone.
    fn is_busy(&self, host: &str) -> Option<Duration> {
        let mut busy = self.busy.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        busy.retain(|_, until| *until > Instant::now());
        busy.get(host).map(|until| until.duration_since(Instant::now()))
    }

    fn leave_alone(&self, host: &str, pause: Option<Duration>) {
        let until = pause.and_then(|pause| Instant::now().checked_add(pause));
        let mut busy = self.busy.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        busy.extend(until.map(|until| (host.to_owned(), until)));
    }

    /// What was found, for the verifier.
    pub fn endorsements(&self, found: &[Found]) -> Endorsements {
        let mut endorsements = Endorsements::none();
        self.add_to(&mut endorsements, found);
        endorsements
    }

    fn add_to(&self, endorsements: &mut Endorsements, found: &[Found]) {
        for content in found.iter().flat_map(Found::contents) {
            // Each was checked when it was got.
            let _ = endorsements.add(content);
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

/// Into the folder, away from the threads that serve others: it waits for the disk.
async fn keep(path: &Path, answer: &Answer) -> Result<(), FetchError> {
    let (to, answer) = (path.to_owned(), answer.clone());
    let write = move || fs::create_dir_all(to.parent().unwrap_or(&to)).and_then(|()| write(&to, &answer));
    let written = tokio::task::spawn_blocking(write).await;
    let written = written.map_err(io::Error::other).and_then(|done| done);
    written.map_err(|e| FetchError::Local(format!("cannot write {}: {e}", path.display())))
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
    let new = path.with_extension(format!("{process}-{count}.{NEW}"));
    let written = fs::File::create(&new).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&new); // a full disk must not get fuller
    }
    written
}

/// Takes away what processes that died left half written. A folder that can't be read has none.
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let old = |file: fs::Metadata| {
            let since = SystemTime::now().duration_since(file.modified().ok()?).ok()?;
            (file.is_file() && since > LEFT_OVER).then_some(())
        };
        if path.extension().is_some_and(|end| end == NEW) && entry.metadata().ok().and_then(old).is_some() {
            let _ = fs::remove_file(path);
        }
    }
}
