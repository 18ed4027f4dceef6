//! Accepting connections: counted in all and per address, with a time limit for the head of each request.

use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Connections at once. Each costs some tens of kilobytes, and at most one body (see `http`).
const CONNECTIONS_MAX: usize = 1_024;

/// Of these, from one address: a host with all its contracts uses about a dozen.
const PER_ADDRESS_MAX: usize = 512;

/// How long the head of a request may take, and how long a connection may idle: longer than clients keep theirs
/// (reqwest: 90 s), so that it's the client who closes.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// The memory for one request's head.
const HEAD_MAX: usize = 32 * 1024;

/// How long connections get to finish when the node stops.
const GRACE: Duration = Duration::from_secs(3);

/// Serves until `stop` resolves, then lets the requests in progress end.
pub(super) async fn serve(listener: TcpListener, router: Router, stop: impl Future<Output = ()>) {
    let counts: Arc<Mutex<HashMap<IpAddr, usize>>> = Arc::default();
    let (stopping, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        while connections.try_join_next().is_some() {}
        let (stream, peer) = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, mostly: wait for some to be closed instead of spinning.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let Some(slot) = Slot::take(&counts, peer.ip(), connections.len()) else {
            tracing::debug!(%peer, "too many connections; closed");
            continue;
        };
        connections.spawn(connection(stream, router.clone(), slot, stopped.clone()));
    }
    drop(listener);
    stopping.send_replace(true);
    let _ = tokio::time::timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
}

async fn connection(stream: TcpStream, router: Router, _slot: Slot, mut stopped: watch::Receiver<bool>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(served);
    let result = tokio::select! {
        result = served.as_mut() => result,
        // What it answers holds a lock; it is dropped here.
        () = async { drop(stopped.wait_for(|stopped| *stopped).await) } => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended badly");
    }
}

/// One of the connections that an address may have; given back when dropped.
struct Slot {
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
    address: IpAddr,
}

impl Slot {
    fn take(counts: &Arc<Mutex<HashMap<IpAddr, usize>>>, address: IpAddr, in_all: usize) -> Option<Self> {
        if in_all >= CONNECTIONS_MAX {
            return None;
        }
        let mut map = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = map.entry(address).or_insert(0);
        if *count >= PER_ADDRESS_MAX {
            return None;
        }
        *count += 1;
        Some(Self {
            counts: counts.clone(),
            address,
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut map = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = map.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                map.remove(&self.address);
            }
        }
    }
}
