//! Keeps the machine's tenant networks as the journal says.
//!
//! The network is level-triggered and whole: whoever changed his part in the journal asks [`NetKeeper::sync`], and the
//! keeper's one task reads the journal, computes the desired state of the whole host and hands it over. Requests that
//! came in meanwhile are answered by the same pass, so a hundred contracts at once cost a few passes, not a hundred.

use std::sync::Arc;
use std::time::Duration;

use netns::TenantId;
use tokio::sync::{mpsc, oneshot, watch};

use super::spec::HostFacts;
use crate::journal::{Journal, JournalError};
use crate::ports::{Look, NetError, NetPort};

/// Requests that wait for the next pass. Each actor has at most one under way.
const QUEUE: usize = 256;

/// How soon a pass that failed is tried again although nobody asks.
const AFTER_TROUBLE: Duration = Duration::from_secs(10);

struct Ask {
    tenant: TenantId,
    answer: oneshot::Sender<Result<(), NetError>>,
}

/// A handle.
#[derive(Clone)]
pub struct NetKeeper {
    asks: mpsc::Sender<Ask>,
    /// Why the last pass did not bring the networks to what the journal says.
    pub trouble: watch::Receiver<Option<NetError>>,
}

impl NetKeeper {
    /// The handle and its task, which ends when the last handle is dropped or the journal is gone.
    pub fn new(
        journal: Journal,
        net: Arc<dyn NetPort>,
        facts: Arc<HostFacts>,
        every: Duration,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (asks, queue) = mpsc::channel(QUEUE);
        let (sender, trouble) = watch::channel(None);
        (
            Self { asks, trouble },
            run(journal, net, facts, every, queue, sender),
        )
    }

    /// Returns when the machine's network is as the journal said at the time of the call, as far as it concerns the tenant.
    pub async fn sync(&self, tenant: TenantId) -> Result<(), NetError> {
        let (answer, wait) = oneshot::channel();
        let closed = |_| NetError::of_all("hostd is stopping");
        self.asks
            .send(Ask { tenant, answer })
            .await
            .map_err(|_| closed(()))?;
        wait.await.map_err(|_| closed(()))?
    }
}

async fn run(
    journal: Journal,
    net: Arc<dyn NetPort>,
    facts: Arc<HostFacts>,
    every: Duration,
    mut queue: mpsc::Receiver<Ask>,
    trouble: watch::Sender<Option<NetError>>,
) {
    let mut look = Look::All; // first of all: what a crash or a reboot left
    let mut asks: Vec<Ask> = Vec::new();
    loop {
        let result = match journal.open_records().await {
            Ok(records) => net.converge(&facts.network(&records), look).await,
            Err(JournalError::Gone) => return,
            Err(error) => Err(NetError::of_all(error)),
        };
        if let Err(error) = &result {
            tracing::warn!(%error, "tenant networks aren't as desired");
        }
        let why = result.as_ref().err().cloned();
        trouble.send_if_modified(|before| {
            let changed = *before != why;
            *before = why;
            changed
        });
        // After any trouble the next pass looks at everything.
        look = if result.is_ok() { Look::Changes } else { Look::All };
        for ask in asks.drain(..) {
            let affected = result.as_ref().err().filter(|error| error.affects(&ask.tenant));
            let _ = ask
                .answer
                .send(affected.map_or(Ok(()), |error| Err(error.clone()))); // it may have given up
        }
        let pause = if result.is_ok() {
            every
        } else {
            every.min(AFTER_TROUBLE)
        };
        match tokio::time::timeout(pause, queue.recv()).await {
            Ok(Some(ask)) => asks.push(ask),
            Ok(None) => return,
            Err(_) => look = Look::All, // time for a look at everything
        }
        while let Ok(ask) = queue.try_recv() {
            asks.push(ask);
        }
    }
}
