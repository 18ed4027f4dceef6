//! Tenant networks through `netns`.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use async_trait::async_trait;
use netns::{ConvergeError, Desired, Network, Scope};

use crate::ports::{Look, NetCounters, NetError, NetPort, Whose};
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
    let scopes: Vec<&Scope> = match error {
        ConvergeError::Incomplete { failures } => failures.iter().map(|failure| &failure.scope).collect(),
        _ => Vec::new(),
    };
    let tenants = scopes.iter().map(|scope| match scope {
        Scope::Tenant(tenant) => Some(tenant.clone()),
        Scope::Host | Scope::Proxy => None,
    });
    let whose = match tenants.collect::<Option<BTreeSet<_>>>() {
        _ if scopes.is_empty() => Whose::Everybody,
        _ if scopes.iter().all(|scope| matches!(scope, Scope::Proxy)) => Whose::Ingress,
        Some(tenants) => Whose::Tenants(tenants),
        None => Whose::Everybody,
    };
    NetError {
        why: super::chain(error),
        whose,
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

#[cfg(test)]
mod tests {
    use netns::Failure;

    use super::*;

    #[test]
    fn a_failure_reaches_as_far_as_what_failed() {
        let tenant: netns::TenantId = "aaaa".parse().unwrap();
        let only = |tenant: &netns::TenantId| Whose::Tenants(BTreeSet::from([tenant.clone()]));
        for (scopes, wanted) in [
            (vec![Scope::Proxy], Whose::Ingress),
            (vec![Scope::Tenant(tenant.clone())], only(&tenant)),
            (vec![Scope::Host], Whose::Everybody),
            (
                vec![Scope::Proxy, Scope::Tenant(tenant.clone())],
                Whose::Everybody,
            ),
            (vec![], Whose::Everybody),
        ] {
            let failures = scopes.iter().map(|scope| Failure {
                scope: scope.clone(),
                error: netns::NetError::Answer {
                    from: "a test",
                    why: String::new(),
                },
            });
            let error = ConvergeError::Incomplete {
                failures: failures.collect(),
            };
            assert_eq!(sort(&error).whose, wanted, "{scopes:?}");
        }
    }
}
