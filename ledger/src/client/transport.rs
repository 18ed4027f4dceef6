//! The HTTP transport below `ic-agent`: sends the same signed request once more when a connection breaks.
//!
//! That is safe for every request, updates included: the ledger names a request by the hash of its content and executes
//! it once. It is needed because a pooled connection to a node that was restarted in between is found broken only by
//! using it.

use std::time::Duration;

use async_trait::async_trait;
use ic_agent::AgentError;
use ic_agent::agent::HttpService;
use ic_agent::agent_error::TransportError;

/// How often a busy node (429, 503) is asked again, and how soon.
const BUSY_ATTEMPTS: u32 = 6;
const BUSY_PAUSE: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct Transport(pub(super) reqwest::Client);

#[async_trait]
impl HttpService for Transport {
    async fn call<'a>(
        &'a self,
        request: &'a (dyn Fn() -> Result<http::Request<bytes::Bytes>, AgentError> + Send + Sync),
        max_retries: usize,
        size_limit: Option<usize>,
    ) -> Result<http::Response<bytes::Bytes>, AgentError> {
        let (mut broken, mut busy) = (0, 0);
        loop {
            match HttpService::call(&self.0, request, max_retries, size_limit).await {
                Err(AgentError::TransportError(TransportError::Reqwest(error)))
                    if broken == 0 && !error.is_timeout() && !error.is_connect() =>
                {
                    broken += 1;
                }
                Ok(response) if busy < BUSY_ATTEMPTS && matches!(response.status().as_u16(), 429 | 503) => {
                    busy += 1;
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                result => return result,
            }
        }
    }
}
