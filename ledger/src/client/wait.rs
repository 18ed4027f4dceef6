//! Waiting for the ledger to grow: a hint to ask again, never a fact.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use super::error::causes;
use super::{Client, ClientError};

/// The longest single long-poll; a wait for longer is made of several.
const LONG_POLL_MAX: Duration = Duration::from_secs(20);

/// Where polling by queries starts, and where it ends up when nothing happens (the Internet Computer makes about one
/// block a second).
const POLL_FIRST: Duration = Duration::from_millis(300);
const POLL_LAST: Duration = Duration::from_secs(4);

#[derive(Deserialize)]
struct Height {
    height: u64,
}

/// What one long-poll found.
enum Found {
    Height(u64),
    /// This endpoint has no long-poll.
    NotOffered,
}

impl Client {
    /// Waits until the ledger has more than `after` blocks, or until `timeout`; answers its height either way.
    ///
    /// Where the endpoint offers the long-poll (`ledgerd` does) the answer comes within milliseconds; elsewhere the
    /// ledger is queried, at an interval that grows while nothing happens.
    pub async fn wait(&self, after: u64, timeout: Duration) -> Result<u64, ClientError> {
        let end = Instant::now() + timeout;
        let mut pause = POLL_FIRST;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let height = if self.no_long_poll.load(Ordering::Relaxed) {
                self.info().await?.height
            } else {
                match self.long_poll(after, left.min(LONG_POLL_MAX)).await? {
                    Found::Height(height) => height,
                    Found::NotOffered => {
                        self.no_long_poll.store(true, Ordering::Relaxed);
                        continue;
                    }
                }
            };
            if height > after || Instant::now() >= end {
                return Ok(height);
            }
            if self.no_long_poll.load(Ordering::Relaxed) {
                tokio::time::sleep(pause.min(end.saturating_duration_since(Instant::now()))).await;
                pause = (pause * 2).min(POLL_LAST);
            }
        }
    }

    async fn long_poll(&self, after: u64, timeout: Duration) -> Result<Found, ClientError> {
        let method = "wait";
        let lost = |error: reqwest::Error| ClientError::Transport {
            method,
            why: causes(&error),
        };
        let mut url = self.url.clone();
        url.set_path("/dc/v1/wait");
        url.set_query(Some(&format!("after={after}&timeout_ms={}", timeout.as_millis())));
        let get = || {
            self.http
                .get(url.clone())
                .timeout(timeout + super::CONNECT_TIMEOUT)
                .send()
        };
        let response = match get().await {
            // A pooled connection to a node that was restarted; see `transport`.
            Err(error) if !error.is_timeout() && !error.is_connect() => get().await,
            result => result,
        }
        .map_err(lost)?;
        let status = response.status();
        if status.is_success() {
            // Something that answers 200 with another body isn't a long-poll either (boundary nodes serve pages).
            let body = response.bytes().await.map_err(lost)?;
            return Ok(match serde_json::from_slice::<Height>(&body) {
                Ok(Height { height }) => Found::Height(height),
                Err(_) => Found::NotOffered,
            });
        }
        if status.is_server_error() || status == reqwest::StatusCode::TOO_MANY_REQUESTS {
            return Err(ClientError::Transport {
                method,
                why: format!("HTTP status {status}"),
            });
        }
        Ok(Found::NotOffered)
    }
}
