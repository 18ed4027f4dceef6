//! Tenant networks through `netns`.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use async_trait::async_trait;
use netns::{ConvergeError, Desired, Network, Scope};

use crate::ports::{Look, NetCounters, NetError, NetPort};
use crate::vmm::Taps;

/// This host's tenant networks.
pub struct TenantNetworks(Arc<Network>);

impl TenantNetworks {
    /// Over an opened network.
    pub fn new(network: Arc<Network>) -> Self {
        Self(network)
    }
}

fn sort(error: &ConvergeError) -> NetError {
    let tenants = match error {
        ConvergeError::Incomplete { failures } => failures
            .iter()
            .map(|failure| match &failure.scope {
                Scope::Tenant(tenant) => Some(tenant.clone()),
                Scope::Host | Scope::Proxy => None,
            })
            .collect::<Option<BTreeSet<_>>>(),
        _ => None,
    };
    NetError {
        why: super::chain(error),
        tenants,
    }
}

#[async_trait]
impl NetPort for TenantNetworks {
    async fn converge(&self, desired: &Desired, look: Look) -> Result<(), NetError> {
        let changes = match look {
            Look::Changes => self.0.adjust(desired).await,
            Look::All => self.0.converge(desired).await,
        };
        let changes = changes.map_err(|error| sort(&error))?;
        for change in &changes.0 {
            tracing::debug!(change, "network");
        }
        Ok(())
    }

    async fn end_sessions(&self, slot: u16) -> Result<(), NetError> {
        self.0
            .end_sessions(slot)
            .await
            .map(drop)
            .map_err(|error| NetError::of_all(super::chain(&error)))
    }

    async fn counters(&self, slot: u16) -> Result<NetCounters, NetError> {
        let counters = self
            .0
            .counters(slot)
            .await
            .map_err(|error| NetError::of_all(super::chain(&error)))?;
        Ok(NetCounters {
            from_vm_bytes: counters.sent_bytes,
            to_vm_bytes: counters.received_bytes,
        })
    }

    fn render(&self, desired: &Desired) -> Vec<(String, String)> {
        let rendered = self.0.render(desired);
        let mut texts = vec![("nft: host".to_owned(), rendered.host_rules)];
        texts.extend(
            rendered
                .tenant_rules
                .into_iter()
                .map(|(tenant, rules)| (format!("nft: tenant {tenant}"), rules)),
        );
        texts.extend(
            rendered
                .haproxy_config
                .map(|config| ("haproxy.cfg".to_owned(), config)),
        );
        texts.push(("haproxy: routes".to_owned(), rendered.haproxy_routes));
        texts
    }

    fn ip4(&self, slot: u16) -> Ipv4Addr {
        self.0.ip4(slot)
    }
}

fn io_error(error: &netns::NetError) -> io::Error {
    io::Error::other(super::chain(error))
}

#[async_trait]
impl Taps for TenantNetworks {
    async fn open(&self, slot: u16) -> io::Result<OwnedFd> {
        self.0.open_tap(slot).await.map_err(|error| io_error(&error))
    }

    async fn lend(&self, slot: u16) -> io::Result<String> {
        self.0
            .lend_tap(slot)
            .await
            .map(|name| name.to_string())
            .map_err(|error| io_error(&error))
    }

    async fn take_back(&self, slot: u16) -> io::Result<()> {
        self.0
            .take_back_tap(slot)
            .await
            .map(drop)
            .map_err(|error| io_error(&error))
    }
}
