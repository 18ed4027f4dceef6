//! One document over HTTP: bounded in size and time, asked for again where the server wants patience.

use std::error::Error as _;
use std::time::{Duration, SystemTime};

use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Client, StatusCode, redirect};

use super::document::{Answer, Request};

const ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The largest documents, manifests, have about 300 KB.
pub(super) const ANSWER_LEN_MAX: usize = 2 * 1024 * 1024;

/// How long a maker's service may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// One request, its answer included, however slowly that comes.
    pub request: Duration,
    /// One document, all attempts and pauses included. A server that wants to be left alone for longer is.
    pub document: Duration,
}

impl Default for Patience {
    /// 30 seconds, and two minutes.
    fn default() -> Self {
        Self {
            request: Duration::from_secs(30),
            document: Duration::from_secs(120),
        }
    }
}

/// Why there is no HTTP client.
#[derive(Debug, thiserror::Error)]
#[error("no HTTPS client ({0}); are CA certificates installed (package ca-certificates)?")]
pub struct FetcherError(String);

/// Why a document isn't there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// It isn't in the folder, and nothing may be fetched.
    #[error("not in the folder, and fetching is off")]
    Offline,
    /// The server doesn't have it.
    #[error("{0} doesn't have it")]
    NotFound(String),
    /// The server can't be reached, or breaks off.
    #[error("{host}: {why}")]
    Unreachable {
        /// Who was asked.
        host: String,
        /// What went wrong.
        why: String,
    },
    /// The server says no.
    #[error("{host} answers {status}{}", later(*retry_after))]
    Refused {
        /// Who was asked.
        host: String,
        /// HTTP status.
        status: u16,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// The server wants to be left alone, as it said when it was asked before.
    #[error("{host} wants to be left alone for another {} s", pause.as_secs().max(1))]
    Busy {
        /// Who.
        host: String,
        /// For how much longer.
        pause: Duration,
    },
    /// The answer isn't the document, or its maker didn't sign it.
    #[error("the answer of {host} is not used: {why}")]
    Unusable {
        /// Who was asked.
        host: String,
        /// What is wrong with it.
        why: String,
    },
    /// The folder can't be written, or the document's address is none.
    #[error("{0}")]
    Local(String),
}

fn later(pause: Option<Duration>) -> String {
    pause.map_or_else(String::new, |pause| {
        format!(", and to ask again in {} s", pause.as_secs())
    })
}

impl FetchError {
    /// Whether the same question may be answered a little later.
    fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }
}

pub(super) fn client(patience: Patience) -> Result<Client, FetcherError> {
    let builder = Client::builder()
        .user_agent(concat!("decent-cloud-attest/", env!("CARGO_PKG_VERSION")))
        // The makers' services answer where they are asked; whoever leads us elsewhere isn't them.
        .redirect(redirect::Policy::none())
        .referer(false)
        .timeout(patience.request);
    builder.build().map_err(|e| FetcherError(words(&e)))
}

/// Asks, again if it must: after growing pauses, or those that the server names, as long as patience lasts. `waits` hears of
/// each pause, and why.
pub(super) async fn ask(
    client: &Client,
    request: &Request,
    patience: Patience,
    waits: &mut (dyn FnMut(&FetchError, Duration) + Send),
) -> Result<Answer, FetchError> {
    let began = tokio::time::Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut attempt = 1;
    loop {
        let error = match once(client, request).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let named = match &error {
            FetchError::Refused { retry_after, .. } => *retry_after,
            _ => None,
        };
        let next = named.unwrap_or(pause);
        let left = patience.document.saturating_sub(began.elapsed());
        if attempt == ATTEMPTS || !error.is_passing() || next >= left {
            return Err(error);
        }
        waits(&error, next);
        tokio::time::sleep(next).await;
        pause *= 2;
        attempt += 1;
    }
}

async fn once(client: &Client, request: &Request) -> Result<Answer, FetchError> {
    let host = host(request);
    let broken = |e: reqwest::Error| {
        let (host, why) = (host.clone(), words(&e));
        FetchError::Unreachable { host, why }
    };
    let asked = match &request.ocsp {
        None => client.get(request.url.clone()),
        Some(body) => client
            .post(request.url.clone())
            .header(CONTENT_TYPE, "application/ocsp-request")
            .body(body.clone()),
    };
    let mut response = asked.send().await.map_err(broken)?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND | StatusCode::GONE => return Err(FetchError::NotFound(host)),
        status => {
            return Err(FetchError::Refused {
                host,
                status: status.as_u16(),
                retry_after: retry_after(response.headers()),
            });
        }
    }
    let unusable = |why: &str| {
        let (host, why) = (host.clone(), why.to_owned());
        FetchError::Unusable { host, why }
    };
    let issuers = match request.issuer_chain.and_then(|name| response.headers().get(name)) {
        Some(header) => {
            let pem = percent_encoding::percent_decode(header.as_bytes()).collect::<Vec<u8>>();
            Some(pem)
        }
        None if request.issuer_chain.is_some() => {
            return Err(unusable("its signer's certificates are missing"));
        }
        None => None,
    };
    let mut content = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if content.len() + chunk.len() > ANSWER_LEN_MAX {
            return Err(unusable("it is far too long"));
        }
        content.extend_from_slice(&chunk);
    }
    Ok(Answer { content, issuers })
}

pub(super) fn host(request: &Request) -> String {
    request.url.host_str().unwrap_or_default().to_owned()
}

/// Seconds from now, or a date (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// An error with its causes, in one line.
fn words(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
