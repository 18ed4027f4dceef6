//! HTTP over the daemon's unix socket.

use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::surface::model::Problem;

/// How long the daemon may take to answer; the doctor asks the ledger and looks at everything.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody there.
    #[error("no answer on {socket}: {why}; does hostd run? (`--socket` or `--config` names another)")]
    Silent {
        /// Where.
        socket: String,
        /// What happened.
        why: String,
    },
    /// It answered no.
    #[error("{text}")]
    Refused {
        /// In its words.
        text: String,
    },
    /// It answered what we can't read.
    #[error("the daemon's answer can't be read: {0}; is it of another version?")]
    Answer(String),
}

/// A contract as part of a path.
pub(crate) fn segment(contract: &str) -> Result<String, ClientError> {
    if !contract.is_empty() && contract.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(contract.to_ascii_lowercase())
    } else {
        Err(ClientError::Refused {
            text: format!("{contract:?} isn't the beginning of a contract id (hexadecimal)"),
        })
    }
}

/// Reads an answer.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(bytes).map_err(|error| ClientError::Answer(error.to_string()))
}

/// A client for one socket; each request has a connection of its own.
#[derive(Clone)]
pub(crate) struct Client {
    socket: PathBuf,
    patience: Duration,
}

impl Client {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            patience: PATIENCE,
        }
    }

    /// Waits so long for each answer.
    pub(crate) fn patient(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    fn silent(&self, why: impl ToString) -> ClientError {
        ClientError::Silent {
            socket: self.socket.display().to_string(),
            why: why.to_string(),
        }
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, ClientError> {
        let work = async {
            let stream = UnixStream::connect(&self.socket)
                .await
                .map_err(|e| self.silent(e))?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|e| self.silent(e))?;
            tokio::spawn(connection); // ends with the connection; errors show in the answer
            sender.send_request(request).await.map_err(|e| self.silent(e))
        };
        let response = tokio::time::timeout(self.patience, work).await;
        let response = response.map_err(|_| self.silent(format!("nothing in {:?}", self.patience)))??;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|e| self.silent(e))?
            .to_bytes();
        let text = serde_json::from_slice::<Problem>(&body)
            .map(|problem| problem.error)
            .unwrap_or_else(|_| String::from_utf8_lossy(&body).trim().to_owned());
        let text = if text.is_empty() { status.to_string() } else { text };
        Err(ClientError::Refused { text })
    }

    fn request(method: &str, path: &str, body: Vec<u8>) -> Result<Request<Full<Bytes>>, ClientError> {
        Request::builder()
            .method(method)
            .uri(path)
            .header("host", "hostd")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| ClientError::Answer(error.to_string()))
    }

    /// The bytes of an answer.
    pub(crate) async fn bytes(&self, path: &str) -> Result<Vec<u8>, ClientError> {
        let response = self.send(Self::request("GET", path, Vec::new())?).await?;
        let body = response.into_body().collect().await.map_err(|e| self.silent(e))?;
        Ok(body.to_bytes().to_vec())
    }

    /// A typed answer.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        parse(&self.bytes(path).await?)
    }

    /// Sends a word; answers the body.
    pub(crate) async fn post<T: Serialize>(&self, path: &str, value: &T) -> Result<Vec<u8>, ClientError> {
        let body = serde_json::to_vec(value).map_err(|error| ClientError::Answer(error.to_string()))?;
        let response = self.send(Self::request("POST", path, body)?).await?;
        debug_assert!(response.status() != StatusCode::NOT_FOUND);
        let body = response.into_body().collect().await.map_err(|e| self.silent(e))?;
        Ok(body.to_bytes().to_vec())
    }

    /// Hands over an answer piece by piece, until it ends or `take` has had enough.
    pub(crate) async fn stream(
        &self,
        path: &str,
        mut take: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), ClientError> {
        let response = self.send(Self::request("GET", path, Vec::new())?).await?;
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| self.silent(e))?;
            if let Some(data) = frame.data_ref()
                && !take(data)
            {
                return Ok(());
            }
        }
        Ok(())
    }
}
