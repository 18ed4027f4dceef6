//! What a crash may cost, and what a damaged log says.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use candid::Principal;
use ledger::api::DCT;
use ledger::client::{Client, ClientConfig, ClientFile};
use ledger::node::{self, Node};

use crate::world::{Place, transfer_to};

/// A `ledgerd` process, killed at the latest when this is dropped.
struct Process(std::process::Child);

impl Process {
    fn start(dir: &Path, address: SocketAddr) -> Self {
        let child = std::process::Command::new(env!("CARGO_BIN_EXE_ledgerd"))
            .args(["run", "--dir"])
            .arg(dir)
            .args(["--listen", &address.to_string()])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// SIGKILL.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn up(client: &Client) {
    let end = Instant::now() + Duration::from_secs(20);
    while let Err(error) = client.info().await {
        assert!(error.is_transient() && Instant::now() < end, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Goal: what was answered is there after a kill. Method: several clients write without pause, each to its own account;
/// the process is killed at an arbitrary moment, five times; the books must hold each answered transfer, and at most one
/// unanswered one per client and kill.
#[tokio::test(flavor = "multi_thread")]
async fn kill_9_under_load_loses_nothing_that_was_answered() {
    const CLIENTS: u8 = 4;
    const KILLS: u64 = 5;
    let place = Place::new();
    let address: SocketAddr = {
        let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        probe.local_addr().unwrap()
    };
    let file = ClientFile::read(&place.path().join("client.toml")).unwrap();
    let client = Client::connect(ClientConfig {
        url: format!("http://{address}"),
        ..file.with_key(place.rich.clone())
    })
    .unwrap();
    let mut answered = vec![0u64; usize::from(CLIENTS)];
    for kill in 0..KILLS {
        let process = Process::start(&place.path(), address);
        up(&client).await;
        let writers: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let client = client.clone();
                tokio::spawn(async move {
                    let mut count = 0;
                    loop {
                        match client
                            .transfer(transfer_to(Principal::from_slice(&[number; 29]), 1_000))
                            .await
                        {
                            Ok(_) => count += 1,
                            Err(error) => {
                                assert!(error.is_transient(), "{error}");
                                return count;
                            }
                        }
                    }
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(150 + 37 * kill)).await;
        process.kill();
        for (number, writer) in writers.into_iter().enumerate() {
            answered[number] += writer.await.unwrap();
        }
    }
    let checked = node::verify(&place.path()).unwrap();
    assert_eq!(checked.invariants.violations, Vec::<String>::new());
    let process = Process::start(&place.path(), address);
    up(&client).await;
    for (number, answered) in answered.iter().enumerate() {
        let account = Principal::from_slice(&[u8::try_from(number).unwrap(); 29]);
        let found = client.balance(account).await.unwrap() / 1_000;
        assert!(
            *answered <= found && found <= answered + KILLS,
            "client {number}: {answered} answered, {found} in the books"
        );
        assert!(
            *answered > 0,
            "client {number} never wrote: the test proves nothing"
        );
    }
    process.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_tail_is_cut_off_and_a_damaged_log_is_named() {
    let place = Place::new();
    let running = place.serve().await;
    let client = running.client(&place.rich);
    let to = Principal::from_slice(&[7; 29]);
    for _ in 0..3 {
        client.transfer(transfer_to(to, DCT)).await.unwrap();
    }
    let height = client.info().await.unwrap().height;
    assert!(matches!(
        Node::open(place.path()),
        Err(node::NodeError::Locked(_))
    ));
    running.stop().await;

    let log = place.path().join("blocks.log");
    let sound = std::fs::read(&log).unwrap();
    let mut torn = sound.clone();
    torn.extend_from_slice(&sound[..30]);
    std::fs::write(&log, &torn).unwrap();
    assert_eq!(node::verify(&place.path()).unwrap().torn_bytes, 30);
    let running = place.serve().await;
    let client = running.client(&place.rich);
    assert_eq!(client.info().await.unwrap().height, height);
    client.transfer(transfer_to(to, DCT)).await.unwrap();
    assert_eq!(client.balance(to).await.unwrap(), 4 * DCT);
    running.stop().await;
    let mut blocks = 0;
    node::export(&place.path(), |block| {
        assert_eq!(block.height, blocks);
        blocks += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(blocks, node::verify(&place.path()).unwrap().height);

    let mut damaged = std::fs::read(&log).unwrap();
    damaged[100] ^= 1;
    std::fs::write(&log, &damaged).unwrap();
    let error = Node::open(place.path()).unwrap_err().to_string();
    assert!(
        error.contains("damaged at byte 0") && error.contains("truncate"),
        "{error}"
    );
}
