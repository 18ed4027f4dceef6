//! A ledger's directory.
//!
//! | file | what |
//! |---|---|
//! | `genesis.toml` | everything that isn't decided by blocks; never changes |
//! | `node.toml` | canister id, when the clock began |
//! | `secret.toml` | the two secret keys (mode 0600): who has them is the ledger |
//! | `client.toml` | what clients need: URL, canister id, root key |
//! | `blocks.log` | the log (see `store`) |
//! | `lock` | held while a process works here |

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use candid::Principal;
use ic_verify_bls_signature::PrivateKey;
use serde::{Deserialize, Serialize};

use super::NodeError;
use super::answers::Answers;
use super::certify::Signer;
use super::clock::{Clock, wall};
use super::store::{Record, Store, Tail};
use crate::api::{Digest32, Invariants, TimeNs};
use crate::protocol::{Block as ChainBlock, Genesis, State};

/// The largest file of settings that is read.
const FILE_MAX: u64 = 16 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeFile {
    /// For people and scripts; must agree with the keys.
    canister_id: Principal,
    /// The wall clock when the ledger was made, nanoseconds since the Unix epoch: the ledger's clock counts from here.
    wall_start_ns: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SecretFile {
    /// BLS12-381, big-endian.
    root: String,
    /// Ed25519.
    node: String,
}

/// A ledger's directory, locked by this process.
pub struct Dir {
    path: PathBuf,
    genesis: Genesis,
    node: NodeFile,
    root: [u8; 32],
    node_key: [u8; 32],
    _lock: File,
}

/// What `init` made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Created {
    /// The ledger's canister id.
    pub canister_id: Principal,
    /// The public root key, DER: what clients pin.
    #[serde(with = "hex::serde")]
    pub root_key: Vec<u8>,
    /// The file for clients.
    pub client: PathBuf,
}

/// What a look at a whole ledger found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// The ledger's canister id.
    pub canister_id: Principal,
    /// Blocks, each checked against the one before and executed again with the same reply.
    pub height: u64,
    /// Hash of the last block.
    pub tip: Digest32,
    /// Bytes of a record that was cut off while it was written; nothing of it was answered.
    pub torn_bytes: u64,
    /// The books.
    pub invariants: Invariants,
}

/// A block as `export` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Block {
    /// Blocks before this one.
    pub height: u64,
    /// Its hash.
    pub hash: Digest32,
    /// Hash of the block before; for height 0 that of the genesis.
    pub parent: Digest32,
    /// The ledger's time.
    pub time: TimeNs,
    /// Who sent the command.
    pub caller: Principal,
    /// Which.
    pub method: String,
    /// Its Candid argument.
    #[serde(with = "hex::serde")]
    pub argument: Vec<u8>,
    /// SHA-256 of the Candid reply.
    pub reply: Digest32,
}

/// Everything that was in the log.
pub(super) struct Loaded {
    pub(super) state: State,
    pub(super) store: Store,
    pub(super) answers: Answers,
    pub(super) tail: Tail,
}

/// Makes a new ledger in `path`: keys, an empty log, and `client.toml` for clients that reach it at `url`.
pub fn init(path: &Path, genesis: &Genesis, url: &str) -> Result<Created, NodeError> {
    genesis.check()?;
    if path.join("genesis.toml").exists() || path.join("blocks.log").exists() {
        return Err(NodeError::Exists(path.to_owned()));
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(file_error(path))?;
    let (root, node) = new_keys()?;
    let signer = Signer::new(
        bls_key(path, &root)?,
        ic_ed25519::PrivateKey::deserialize_raw_32(&node),
    );
    State::new(genesis.clone(), signer.canister)?; // a genesis that can't be started is refused now
    let secret = SecretFile {
        root: hex::encode(root),
        node: hex::encode(node),
    };
    let node = NodeFile {
        canister_id: signer.canister,
        wall_start_ns: wall(),
    };
    let client = path.join("client.toml");
    write_new(&path.join("secret.toml"), &toml_text(path, &secret)?)?;
    write_new(&path.join("node.toml"), &toml_text(path, &node)?)?;
    write_new(
        &client,
        &format!(
            "# What a client of the ledger {:?} needs. The root key is the ledger's identity: get this file from\n\
             # whoever runs the ledger, by a way that you trust.\n\
             url = {}\ncanister_id = \"{}\"\nroot_key = \"{}\"\n",
            genesis.name,
            toml::Value::from(url),
            signer.canister,
            hex::encode(&signer.root_key)
        ),
    )?;
    Store::create(&path.join("blocks.log"))?;
    // Last: a directory without it is no ledger, so an `init` that was interrupted can be seen and removed.
    write_new(&path.join("genesis.toml"), &toml_text(path, genesis)?)?;
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(file_error(path))?;
    Ok(Created {
        canister_id: signer.canister,
        root_key: signer.root_key,
        client,
    })
}

/// Reads the whole log without changing it: checksums, chain, every reply, the books. Works beside a running node.
pub fn verify(path: &Path) -> Result<Checked, NodeError> {
    let settings = Settings::read(path)?;
    let mut state = State::new(settings.genesis, settings.node.canister_id)?;
    let tail = Store::read(&path.join("blocks.log"), |record| replay(&mut state, &record))?;
    Ok(Checked {
        canister_id: settings.node.canister_id,
        height: state.height(),
        tip: state.tip(),
        torn_bytes: match tail {
            Tail::Clean => 0,
            Tail::Torn { bytes, .. } => bytes,
        },
        invariants: state.invariants(),
    })
}

/// Gives each block to `each`, oldest first; what `verify` checks isn't checked here.
pub fn export(path: &Path, mut each: impl FnMut(Block) -> std::io::Result<()>) -> Result<(), NodeError> {
    let log = path.join("blocks.log");
    let mut next = 0;
    Store::read(&log, |record| {
        for bytes in &record.blocks {
            let block = parse(bytes, next)?;
            next = block.height + 1;
            each(Block {
                height: block.height,
                hash: block.hash(),
                parent: block.parent,
                time: block.time,
                caller: block.caller,
                method: block.method,
                argument: block.argument,
                reply: block.reply,
            })
            .map_err(file_error(Path::new("output")))?;
        }
        Ok::<_, NodeError>(())
    })?;
    Ok(())
}

/// The files of settings, read and checked.
struct Settings {
    genesis: Genesis,
    node: NodeFile,
}

impl Settings {
    fn read(path: &Path) -> Result<Self, NodeError> {
        Ok(Self {
            genesis: read_toml(&path.join("genesis.toml"))?,
            node: read_toml(&path.join("node.toml"))?,
        })
    }
}

impl Dir {
    /// Opens and locks a directory.
    pub(super) fn open(path: PathBuf) -> Result<Self, NodeError> {
        let Settings { genesis, node } = Settings::read(&path)?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(file_error(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(NodeError::Locked(path)),
            Err(TryLockError::Error(source)) => {
                return Err(NodeError::File {
                    path: lock_path,
                    source,
                });
            }
        }
        let secret_path = path.join("secret.toml");
        let secret: SecretFile = read_toml(&secret_path)?;
        let bytes = |name: &str, text: &str| {
            hex::decode(text)
                .ok()
                .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
                .ok_or_else(|| NodeError::Form {
                    path: secret_path.clone(),
                    why: format!("{name}: expected 32 bytes in hexadecimal, as `ledgerd init` wrote them"),
                })
        };
        let (root, node_key) = (bytes("root", &secret.root)?, bytes("node", &secret.node)?);
        let dir = Self {
            path,
            genesis,
            node,
            root,
            node_key,
            _lock: lock,
        };
        let canister = dir.signer()?.canister;
        if canister != dir.node.canister_id {
            return Err(NodeError::Form {
                path: dir.path.join("node.toml"),
                why: format!("canister_id is not the one of the root key in secret.toml ({canister})"),
            });
        }
        Ok(dir)
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    pub(super) fn signer(&self) -> Result<Signer, NodeError> {
        let root = bls_key(&self.path, &self.root)?;
        Ok(Signer::new(
            root,
            ic_ed25519::PrivateKey::deserialize_raw_32(&self.node_key),
        ))
    }

    pub(super) fn clock(&self) -> Clock {
        Clock {
            // `State::new` has refused a genesis whose start doesn't fit.
            start: self.genesis.start().unwrap_or(TimeNs::MAX),
            wall_start: self.node.wall_start_ns,
            rate: self.genesis.clock_rate,
        }
    }

    /// Reads the log: verifies and replays every block, and remembers answers that may be asked for again.
    pub(super) fn load(&self) -> Result<Loaded, NodeError> {
        let mut state = State::new(self.genesis.clone(), self.node.canister_id)?;
        let mut answers = Answers::default();
        let now = wall();
        let (store, tail) = Store::open(&self.path.join("blocks.log"), |record| {
            replay(&mut state, &record)?;
            for answer in record.answers.into_iter().filter(|answer| answer.expiry > now) {
                let (sender, expiry) = (answer.sender, answer.expiry);
                if let Ok(request) = <[u8; 32]>::try_from(answer.request.as_slice()) {
                    answers.insert(request, sender, expiry, answer.outcome().into());
                }
            }
            Ok::<_, NodeError>(())
        })?;
        Ok(Loaded {
            state,
            store,
            answers,
            tail,
        })
    }
}

fn replay(state: &mut State, record: &Record) -> Result<(), NodeError> {
    for bytes in &record.blocks {
        state.replay(&parse(bytes, state.height())?)?;
    }
    Ok(())
}

fn parse(bytes: &[u8], height: u64) -> Result<ChainBlock, NodeError> {
    ChainBlock::from_bytes(bytes).map_err(|error| NodeError::Block {
        height,
        why: error.to_string(),
    })
}

fn file_error(path: &Path) -> impl Fn(std::io::Error) -> NodeError {
    let path = path.to_owned();
    move |source| NodeError::File {
        path: path.clone(),
        source,
    }
}

fn toml_text<T: Serialize>(path: &Path, value: &T) -> Result<String, NodeError> {
    toml::to_string(value).map_err(|error| NodeError::Form {
        path: path.to_owned(),
        why: error.to_string(),
    })
}

fn read_toml<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, NodeError> {
    use std::io::Read;
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(FILE_MAX).read_to_string(&mut text))
        .map_err(file_error(path))?;
    toml::from_str(&text).map_err(|error| NodeError::Form {
        path: path.to_owned(),
        why: error.to_string(),
    })
}

/// Writes a file that must not exist yet, readable by its owner only, and durable.
fn write_new(path: &Path, text: &str) -> Result<(), NodeError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(file_error(path))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(file_error(path))
}

fn bls_key(path: &Path, secret: &[u8; 32]) -> Result<PrivateKey, NodeError> {
    PrivateKey::deserialize(secret).map_err(|error| NodeError::Form {
        path: path.join("secret.toml"),
        why: format!("root: not a BLS12-381 secret key: {error:?}"),
    })
}

/// Two new secret keys: BLS (drawn until it lies below the curve's order: about every second draw does) and Ed25519.
fn new_keys() -> Result<([u8; 32], [u8; 32]), NodeError> {
    let random = || {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)
            .map(|()| bytes)
            .map_err(|error| NodeError::Random(error.to_string()))
    };
    for _ in 0..256 {
        let root = random()?;
        if root != [0; 32] && PrivateKey::deserialize(&root).is_ok() {
            return Ok((root, random()?));
        }
    }
    Err(NodeError::Random(
        "256 draws gave no valid key: the generator is broken".to_owned(),
    ))
}
