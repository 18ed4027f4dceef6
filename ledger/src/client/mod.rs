//! The typed client of the ledger, on `ic-agent`: what hostd and `decent` use.
//!
//! Every answer is authenticated against the pinned root key: updates by the certificate over the reply, queries by
//! the node's signature whose key the certificate names. A [`Client`] is cheap to clone and may be shared by tasks.
//!
//! An error says who is to blame ([`ClientError`]): the way there (`Transport`: try again later, the call may or may
//! not have happened), the machinery (`Rejected`), or the ledger's rules (`Refused`: an answer, trying again changes
//! nothing). All of this project's updates may be repeated safely: the ledger recognises the second one.

mod config;
mod error;
mod history;
mod key;
mod methods;
mod transport;
mod wait;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use candid::{CandidType, Principal};
use ic_agent::Agent;
use serde::de::DeserializeOwned;

pub use self::config::{ClientConfig, ClientFile, ConfigError};
pub use self::error::ClientError;
pub use self::key::{Key, KeyError, KeyKind};
use crate::api::LedgerError;

/// How long one request may take. A certified update waits for its block to be durable, so this is generous.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an update that the node only *accepted* is asked after.
const POLLING_TIME: Duration = Duration::from_secs(60);

/// The largest answer that is read. The largest honest ones are lists of offerings and contracts.
const RESPONSE_MAX: usize = 64 * 1024 * 1024;

/// A connection to one ledger as one principal.
#[derive(Clone, Debug)]
pub struct Client {
    agent: Agent,
    http: reqwest::Client,
    url: reqwest::Url,
    canister: Principal,
    key: Key,
    /// Learned once: the endpoint has no long-poll, so [`Client::wait`] polls by queries.
    no_long_poll: Arc<AtomicBool>,
}

impl Client {
    /// Sets the client up. Talks to nobody yet: the first call does.
    pub fn connect(config: ClientConfig) -> Result<Self, ConfigError> {
        let url = config::check(&config.url, &config.root_key)?;
        let http = |error: String| ConfigError::Http(error);
        let mut transport = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT);
        if url.scheme() == "http" {
            // Nothing to verify there (answers are verified one by one, against the root key), and a machine without
            // any CA certificates must do: the system's verifier refuses to start on one.
            transport = transport.tls_certs_only(std::iter::empty());
        }
        let transport = transport.build().map_err(|error| http(error::causes(&error)))?;
        let agent = Agent::builder()
            .with_url(url.as_str())
            .with_arc_http_middleware(Arc::new(transport::Transport(transport.clone())))
            .with_arc_identity(config.key.identity())
            .with_verify_query_signatures(true)
            .with_max_response_body_size(RESPONSE_MAX)
            .with_max_polling_time(POLLING_TIME)
            .build()
            .map_err(|error| http(error.to_string()))?;
        agent.set_root_key(config.root_key);
        Ok(Self {
            agent,
            http: transport,
            url,
            canister: config.canister_id,
            key: config.key,
            no_long_poll: Arc::default(),
        })
    }

    /// Who this client speaks for.
    pub fn principal(&self) -> Principal {
        self.key.principal()
    }

    /// The ledger's canister id.
    pub fn canister_id(&self) -> Principal {
        self.canister
    }

    /// The `ic-agent` underneath, for what has no method here.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// A query whose reply is exactly `T`.
    async fn query<A: CandidType, T: CandidType + DeserializeOwned>(
        &self,
        method: &'static str,
        argument: Arguments<A>,
    ) -> Result<T, ClientError> {
        let reply = self
            .agent
            .query(&self.canister, method)
            .with_arg(argument.encode(method)?)
            .call()
            .await
            .map_err(|error| ClientError::from_agent(method, error))?;
        decode(method, &reply)
    }

    /// A query that answers `Result<T, LedgerError>`.
    async fn query_result<A: CandidType, T: CandidType + DeserializeOwned>(
        &self,
        method: &'static str,
        argument: Arguments<A>,
    ) -> Result<T, ClientError> {
        self.query::<A, Result<T, LedgerError>>(method, argument)
            .await?
            .map_err(ClientError::Refused)
    }

    /// An update whose reply is exactly `T`.
    async fn update<A: CandidType, T: CandidType + DeserializeOwned>(
        &self,
        method: &'static str,
        argument: Arguments<A>,
    ) -> Result<T, ClientError> {
        let reply = self
            .agent
            .update(&self.canister, method)
            .with_arg(argument.encode(method)?)
            .call_and_wait()
            .await
            .map_err(|error| ClientError::from_agent(method, error))?;
        decode(method, &reply)
    }

    /// An update that answers `Result<T, LedgerError>`.
    async fn update_result<A: CandidType, T: CandidType + DeserializeOwned>(
        &self,
        method: &'static str,
        argument: Arguments<A>,
    ) -> Result<T, ClientError> {
        self.update::<A, Result<T, LedgerError>>(method, argument)
            .await?
            .map_err(ClientError::Refused)
    }
}

/// The arguments of a method: none, or one.
enum Arguments<A> {
    /// `()`
    Nothing,
    /// `(A)`
    One(A),
}

/// No arguments; the type is only there for the compiler.
const NOTHING: Arguments<()> = Arguments::Nothing;

impl<A: CandidType> Arguments<A> {
    fn encode(self, method: &'static str) -> Result<Vec<u8>, ClientError> {
        match self {
            Self::Nothing => candid::encode_args(()),
            Self::One(argument) => candid::encode_one(argument),
        }
        .map_err(|error| ClientError::Candid {
            method,
            why: format!("{error:#}"),
        })
    }
}

fn decode<T: CandidType + DeserializeOwned>(method: &'static str, reply: &[u8]) -> Result<T, ClientError> {
    candid::decode_one(reply).map_err(|error| ClientError::Candid {
        method,
        why: format!("{error:#}"),
    })
}
