//! What the tests have in common: a new ledger in a directory, a node that serves it, keys and transfers.

use std::net::SocketAddr;
use std::path::PathBuf;

use candid::{Nat, Principal};
use icrc_ledger_types::icrc1::account::Account;
use icrc_ledger_types::icrc1::transfer::TransferArg;
use ledger::api::DCT;
use ledger::client::{Client, ClientConfig, Key, KeyKind};
use ledger::node::{self, Node};
use ledger::protocol::{Genesis, InitialBalance};
use tokio::net::TcpListener;

/// A directory with a new demo ledger in which `rich` has 1,000 DCT.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) rich: Key,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self::with_rate(1)
    }

    pub(crate) fn with_rate(rate: u32) -> Self {
        Self::with_clock(rate, 1_790_000_000)
    }

    /// A ledger whose clock begins at `start`, in seconds since 1970, and runs `rate` times as fast as the wall clock.
    pub(crate) fn with_clock(rate: u32, start: u64) -> Self {
        let pem = Key::generate(KeyKind::Ed25519).unwrap();
        let rich = Key::from_pem(&pem).unwrap();
        let mut genesis = Genesis::demo("test", rate, start);
        genesis.balances.push(InitialBalance {
            owner: rich.principal(),
            amount: 1_000 * DCT,
            reason: "the test's money".into(),
        });
        let dir = tempfile::tempdir().unwrap();
        node::init(&dir.path().join("ledger"), &genesis, "http://127.0.0.1:1").unwrap();
        std::fs::write(dir.path().join("rich.pem"), pem).unwrap();
        Self { dir, rich }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("ledger")
    }

    /// The key of `rich` as a file.
    pub(crate) fn rich_pem(&self) -> PathBuf {
        self.dir.path().join("rich.pem")
    }

    pub(crate) async fn serve(&self) -> Running {
        let node = Node::open(self.path()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (canister, root_key) = (node.canister_id(), node.root_key().to_vec());
        let task = tokio::spawn(node.serve(listener, async {
            let _ = stopped.await;
        }));
        Running {
            address,
            canister,
            root_key,
            stop,
            task,
        }
    }
}

pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) canister: Principal,
    pub(crate) root_key: Vec<u8>,
    pub(crate) stop: tokio::sync::oneshot::Sender<()>,
    pub(crate) task: tokio::task::JoinHandle<Result<(), node::NodeError>>,
}

impl Running {
    pub(crate) fn client(&self, key: &Key) -> Client {
        Client::connect(ClientConfig {
            url: format!("http://{}", self.address),
            canister_id: self.canister,
            root_key: self.root_key.clone(),
            key: key.clone(),
        })
        .unwrap()
    }

    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        self.task.await.unwrap().unwrap();
    }

    /// Posts an envelope; the status and the text of the answer.
    pub(crate) async fn post(&self, path: &str, body: Vec<u8>) -> (u16, Vec<u8>) {
        let url = format!("http://{}/api/{path}", self.address);
        let response = reqwest::Client::new().post(url).body(body).send().await.unwrap();
        (
            response.status().as_u16(),
            response.bytes().await.unwrap().to_vec(),
        )
    }

    pub(crate) async fn post_call(&self, body: Vec<u8>) -> (u16, String) {
        let (status, bytes) = self
            .post(&format!("v4/canister/{}/call", self.canister), body)
            .await;
        (status, String::from_utf8_lossy(&bytes).into_owned())
    }
}

pub(crate) fn new_key(kind: KeyKind) -> Key {
    Key::from_pem(&Key::generate(kind).unwrap()).unwrap()
}

pub(crate) fn transfer_to(to: Principal, amount: u64) -> TransferArg {
    TransferArg {
        from_subaccount: None,
        to: Account {
            owner: to,
            subaccount: None,
        },
        fee: None,
        created_at_time: None,
        memo: None,
        amount: Nat::from(amount),
    }
}

pub(crate) fn wall() -> u64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    u64::try_from(now.as_nanos()).unwrap()
}
