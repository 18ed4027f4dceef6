//! One HTTP request: bounded in size and time, repeated where the server asks for patience.

use std::error::Error as _;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Client, StatusCode, redirect};

use super::document::{Answer, Request};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For one request, its answer included.
const TIMEOUT: Duration = Duration::from_secs(30);
const ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// The largest documents, manifests, have about 300 KB.
pub(super) const ANSWER_LEN_MAX: usize = 2 * 1024 * 1024;

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
    #[error("{host} answers {status}")]
    Refused {
        /// Who was asked.
        host: String,
        /// HTTP status.
        status: u16,
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

pub(super) fn client() -> Result<Client, FetcherError> {
    let builder = Client::builder()
        .user_agent(concat!("decent-cloud-attest/", env!("CARGO_PKG_VERSION")))
        // The makers' services answer where they are asked; whoever leads us elsewhere isn't them.
        .redirect(redirect::Policy::none())
        .referer(false)
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(TIMEOUT);
    builder.build().map_err(|e| FetcherError(words(&e)))
}

/// Asks, again if it must: with growing pauses, or with those that the server names.
pub(super) async fn ask(client: &Client, request: &Request) -> Result<Answer, FetchError> {
    let mut pause = FIRST_PAUSE;
    let mut attempt = 1;
    loop {
        let (error, named) = match once(client, request).await {
            Ok(answer) => return Ok(answer),
            Err(failed) => failed,
        };
        if attempt == ATTEMPTS || !error.is_passing() {
            return Err(error);
        }
        tokio::time::sleep(named.unwrap_or(pause).min(PAUSE_MAX)).await;
        pause *= 2;
        attempt += 1;
    }
}

async fn once(client: &Client, request: &Request) -> Result<Answer, (FetchError, Option<Duration>)> {
    let host = host(request);
    let broken = |e: reqwest::Error| {
        let (host, why) = (host.clone(), words(&e));
        (FetchError::Unreachable { host, why }, None)
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
        StatusCode::NOT_FOUND | StatusCode::GONE => return Err((FetchError::NotFound(host), None)),
        status => {
            let named = retry_after(response.headers());
            let status = status.as_u16();
            return Err((FetchError::Refused { host, status }, named));
        }
    }
    let unusable = |why: &str| {
        let (host, why) = (host.clone(), why.to_owned());
        (FetchError::Unusable { host, why }, None)
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

/// Seconds; a date counts as not said.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
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
