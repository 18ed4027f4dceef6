//! `ledgerd`: one node that keeps the ledger and speaks the Internet Computer's HTTP interface, so that clients made
//! for the Internet Computer talk to it unmodified.
//!
//! It is one operator's root of trust, and says so: whoever holds the directory's secret keys can sign anything.
//!
//! | module | what |
//! |---|---|
//! | `dir` | the directory: genesis, keys, log; making, checking and exporting it |
//! | `clock` | the wall clock and the ledger's |
//! | `store` | the durable log: checksummed records, one sync each |
//! | `answers` | exactly-once: what was answered to which request |
//! | `engine` | the one thread that changes the ledger; group commit |
//! | `tree`, `certify` | the state tree, the root key, certificates, query signatures |
//! | `envelope` | authentication of requests |
//! | `http`, `server` | routes; connections and their limits |
//!
//! A call goes envelope → queue → executed in a batch → durable → certified → answered; see `engine` for why in this
//! order.

mod answers;
mod certify;
mod clock;
mod dir;
mod engine;
mod envelope;
mod http;
mod interface;
mod server;
mod store;
mod tree;

use std::future::Future;
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, RwLock};

use candid::Principal;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use self::dir::{Block, Checked, Created, Dir, export, init, verify};
use self::engine::{Engine, Job, Metrics, QUEUE, Shared};
pub use self::interface::interface;
pub use self::store::{StoreError, Tail};
use crate::protocol::{GenesisError, ReplayError};

/// Why a node can't be made, started, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A file of the directory can't be used.
    #[error("cannot use {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of the directory has the wrong form.
    #[error("{path}: {why}")]
    Form {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The directory holds a ledger already.
    #[error(
        "{0} holds a ledger already; nothing was changed. Choose another directory, or `ledgerd run` this one"
    )]
    Exists(PathBuf),
    /// Another process works on the directory.
    #[error("another ledgerd is running on {0}")]
    Locked(PathBuf),
    /// The genesis is wrong.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    /// The log is damaged, or can't be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log is sound, but its blocks aren't a chain over this genesis.
    #[error("the chain breaks: {0}")]
    Chain(#[from] ReplayError),
    /// A block in the log isn't one.
    #[error("block {height} can't be read: {why}")]
    Block {
        /// Which.
        height: u64,
        /// What is wrong.
        why: String,
    },
    /// Random numbers are needed for keys.
    #[error("no random numbers from the operating system: {0}")]
    Random(String),
    /// A thread died of a bug. Everything answered is durable.
    #[error("the engine stopped unexpectedly; everything that was answered is durable: start again")]
    Engine,
}

/// A node that has verified its chain and is ready to serve.
pub struct Node {
    dir: Dir,
    shared: Arc<Shared>,
    engine: Engine,
    queue: std::sync::mpsc::SyncSender<Job>,
    tail: Tail,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("canister", &self.canister_id())
            .finish_non_exhaustive()
    }
}

impl Node {
    /// Opens a directory: locks it, verifies and replays the whole chain, cuts off a torn tail.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, NodeError> {
        let dir = Dir::open(path.into())?;
        let dir::Loaded {
            state,
            store,
            answers,
            tail,
        } = dir.load()?;
        let (sender, queue) = sync_channel(QUEUE);
        let metrics = Metrics::default();
        metrics
            .log_bytes
            .store(store.size, std::sync::atomic::Ordering::Relaxed);
        let shared = Arc::new(Shared {
            height: watch::Sender::new(state.height()),
            state: RwLock::new(state),
            answers: std::sync::Mutex::new(answers),
            signer: dir.signer()?,
            clock: dir.clock(),
            interface: interface(),
            metrics,
        });
        let engine = Engine {
            shared: shared.clone(),
            store,
            queue,
        };
        Ok(Self {
            dir,
            shared,
            engine,
            queue: sender,
            tail,
        })
    }

    /// The ledger's canister id.
    pub fn canister_id(&self) -> Principal {
        self.shared.signer.canister
    }

    /// The public root key, DER: what clients pin.
    pub fn root_key(&self) -> &[u8] {
        &self.shared.signer.root_key
    }

    /// Durable blocks.
    pub fn height(&self) -> u64 {
        *self.shared.height.borrow()
    }

    /// The genesis, and with it the clock's rate.
    pub fn genesis(&self) -> &crate::protocol::Genesis {
        self.dir.genesis()
    }

    /// What was found at the end of the log.
    pub fn tail(&self) -> &Tail {
        &self.tail
    }

    /// Serves until `stop` resolves or the engine ends; then finishes what was begun.
    pub async fn serve(self, listener: TcpListener, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
        let Self {
            dir,
            shared,
            engine,
            queue,
            ..
        } = self;
        let router = http::router(shared, queue.clone());
        let (ended, engine_ended) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || {
                let _ended = ended; // dropped at the end, also by a panic
                engine.run()
            })
            .map_err(|source| NodeError::File {
                path: dir.path().to_owned(),
                source,
            })?;
        server::serve(listener, router, async {
            tokio::select! {
                () = stop => {}
                _ = engine_ended => {}
            }
        })
        .await;
        // Full: the engine is alive and works it off. Gone: it has ended already.
        let result = tokio::task::spawn_blocking(move || {
            let _ = queue.send(Job::Stop);
            thread.join()
        })
        .await;
        drop(dir); // the lock is held until the engine has ended
        match result {
            Ok(Ok(result)) => result.map_err(NodeError::Store),
            _ => Err(NodeError::Engine),
        }
    }
}
