//! What the ledger says of this host's contracts, always the latest.

use std::sync::Arc;

use ledger::api::Contract;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::Timing;
use crate::ports::LedgerPort;

/// All contracts of this host that aren't released, as one answer of the ledger.
pub type Snapshot = Arc<Vec<Contract>>;

/// The latest sight of the ledger.
#[derive(Clone, Debug, Default)]
pub struct LedgerSight {
    /// The list; `None`: no answer yet since the start.
    pub contracts: Option<Snapshot>,
    /// Height that the ledger showed before the list was fetched.
    pub height: u64,
    /// When it answered last.
    pub heard: Option<Instant>,
    /// Why it doesn't answer now.
    pub trouble: Option<String>,
}

/// Watches until dropped. The long-poll is only a hint: the list is fetched at each of its answers, whatever they say, so
/// that a ledger that went back or lies about its height delays nothing for longer than one poll.
pub(super) async fn watch(ledger: Arc<dyn LedgerPort>, timing: Timing, sight: watch::Sender<LedgerSight>) {
    let mut pause = timing.retry_min;
    let mut height = 0;
    loop {
        // Height first, list second: a block in between makes the next wait return at once.
        let wait = timeout(timing.long_poll * 2, ledger.wait(height, timing.long_poll)).await;
        let waited = match wait {
            Ok(Ok(now)) => {
                height = now;
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!(
                "no answer to the long-poll in {:?}",
                timing.long_poll * 2
            )),
        };
        let listed = match timeout(timing.long_poll, ledger.host_contracts()).await {
            Ok(Ok(list)) => Ok(list),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no list of contracts in {:?}", timing.long_poll)),
        };
        let failed = waited.is_some() || listed.is_err();
        sight.send_modify(|sight| match listed {
            Ok(list) => {
                *sight = LedgerSight {
                    contracts: Some(Arc::new(list)),
                    height,
                    heard: Some(Instant::now()),
                    trouble: waited,
                };
            }
            Err(why) => {
                if sight.trouble.is_none() {
                    tracing::warn!(why, "the ledger doesn't answer; VMs run on");
                }
                sight.trouble = Some(why);
            }
        });
        if failed {
            sleep(pause).await;
            pause = (pause * 2).min(timing.retry_max.min(std::time::Duration::from_secs(5)));
        } else {
            pause = timing.retry_min;
        }
    }
}
