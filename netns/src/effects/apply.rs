//! Doing: one step at a time. Every step may run again after it was cut off anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;

use crate::config::HaproxyConfig;
use crate::effects::links::Kind;
use crate::effects::worker::{Worker, apply_settings, set_sysctl};
use crate::effects::{flows, haproxy, nft, tap};
use crate::error::NetError;
use crate::names::{
    GATEWAY, GATEWAY_MAC, Slot, TenantId, UPLINK_HOST, UPLINK_HOST_MAC, UPLINK_IN_TENANT, UPLINK_TENANT,
    UPLINK_TENANT_MAC, mac,
};
use crate::plan::Action;

/// Does one step. `routes`: all routes that are desired, for the file from which HAProxy starts.
pub(crate) fn apply(
    worker: &Worker,
    action: &Action,
    routes: &BTreeMap<String, Ipv4Addr>,
) -> Result<(), NetError> {
    match action {
        Action::EnableForwarding => set_sysctl("ipv4/ip_forward", "1"),
        Action::HostRules { script, .. } => nft::load(script, "load the host's rules"),
        Action::RemoveHostRoute { ip4, uplink } => {
            let links = worker.links()?;
            links
                .find(uplink.as_str())?
                .map_or(Ok(()), |link| links.remove_route(link.index, *ip4))
        }
        Action::RemoveTap { tenant: None, slot } => remove(worker, worker.config.prefix.tap(*slot).as_str()),
        Action::RemoveTap {
            tenant: Some(tenant),
            slot,
        } => worker.inside(tenant, || {
            remove(worker, worker.config.prefix.tap(*slot).as_str())
        }),
        Action::RemoveUplink { uplink } => remove(worker, uplink.as_str()),
        Action::RemoveNamespace { tenant } => worker.remove_namespace(tenant),
        Action::EndFlows { ports, vms } => flows::end(&flows::Doomed {
            ports: ports.clone(),
            vms: vms.clone(),
            proxied: BTreeSet::new(),
        })
        .map(drop),
        Action::MakeNamespace { tenant } => worker.make_namespace(tenant),
        Action::Settings { tenant } => worker.inside(tenant, apply_settings),
        Action::MakeUplink { tenant } => make_uplink(worker, tenant),
        Action::Guard { tenant, script, .. } => worker.inside(tenant, || {
            nft::load(script, &format!("load the guard of {tenant}"))
        }),
        Action::MakeTap { tenant, slot } => make_tap(worker, tenant, *slot),
        Action::HostRoute { tenant, slot } => add_host_route(worker, tenant, *slot),
        Action::RemoveRoutes { names, vms } => with_proxy(worker, |config| {
            haproxy::remove_routes(config, names)?;
            haproxy::write_routes(config, routes)?;
            flows::end(&flows::Doomed {
                proxied: vms.clone(),
                ..flows::Doomed::default()
            })
            .map(drop)
        }),
        Action::SetRoutes {
            routes: changed,
            present,
        } => with_proxy(worker, |config| {
            haproxy::set_routes(config, changed, present)?;
            haproxy::write_routes(config, routes)
        }),
        Action::StartProxy { old } => with_proxy(worker, |config| haproxy::start(config, routes, *old)),
        Action::StopProxy { pid } => with_proxy(worker, |config| haproxy::stop(config, *pid)),
    }
}

fn with_proxy(
    worker: &Worker,
    job: impl FnOnce(&HaproxyConfig) -> Result<(), NetError>,
) -> Result<(), NetError> {
    worker.config.haproxy.as_ref().map_or(Ok(()), job)
}

fn remove(worker: &Worker, name: &str) -> Result<(), NetError> {
    worker.links()?.remove(name).map(drop)
}

/// The link was there a moment ago.
fn vanished(name: &str) -> NetError {
    NetError::Answer {
        from: "the kernel",
        why: format!("the link {name} vanished while it was set up"),
    }
}

fn make_uplink(worker: &Worker, tenant: &TenantId) -> Result<(), NetError> {
    let name = worker.config.prefix.uplink(tenant);
    let namespace = worker.open_namespace(tenant)?;
    let links = worker.links()?;
    links.remove(name.as_str())?; // half of one, or another tenant's that had the name
    worker.inside(tenant, || remove(worker, UPLINK_IN_TENANT))?;
    links.make_veth(
        (&name, UPLINK_HOST_MAC),
        (UPLINK_IN_TENANT, UPLINK_TENANT_MAC),
        namespace.as_raw_fd(),
    )?;
    // Inside first: when the host's end goes up, what is behind it is ready.
    worker.inside(tenant, || {
        let links = worker.links()?;
        let link = links
            .find(UPLINK_IN_TENANT)?
            .ok_or_else(|| vanished(UPLINK_IN_TENANT))?;
        links.add_address(link.index, UPLINK_TENANT)?;
        links.up(link.index)?;
        links.set_neighbour(link.index, UPLINK_HOST, UPLINK_HOST_MAC)?;
        links.set_route(link.index, Some(UPLINK_HOST), None, None)?;
        links.set_route(link.index, None, Some(UPLINK_HOST), None)
    })?;
    set_sysctl(&format!("ipv4/conf/{name}/rp_filter"), "1")?;
    set_sysctl(&format!("ipv4/conf/{name}/accept_redirects"), "0")?;
    set_sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), "1")?;
    let link = links
        .find(name.as_str())?
        .ok_or_else(|| vanished(name.as_str()))?;
    links.add_address(link.index, UPLINK_HOST)?;
    links.up(link.index)?;
    links.set_neighbour(link.index, UPLINK_TENANT, UPLINK_TENANT_MAC)
}

/// Makes a tap complete in its tenant's namespace, wherever it was and whatever it lacked. A VMM that has it open notices
/// nothing.
pub(crate) fn make_tap(worker: &Worker, tenant: &TenantId, slot: Slot) -> Result<(), NetError> {
    let name = worker.config.prefix.tap(slot);
    let namespace = worker.open_namespace(tenant)?;
    let host = worker.links()?;
    if let Some(link) = host.find(name.as_str())? {
        host.send(link.index, namespace.as_raw_fd())?;
    }
    worker.inside(tenant, || {
        let links = worker.links()?;
        let link = match links.find(name.as_str())? {
            Some(link) if link.kind == Kind::Tap => link,
            other => {
                if other.is_some() {
                    links.remove(name.as_str())?; // not a tap: not made by us, in a namespace that is ours
                }
                tap::make(&name)?;
                links
                    .find(name.as_str())?
                    .ok_or_else(|| vanished(name.as_str()))?
            }
        };
        links.dress(link.index, GATEWAY_MAC, tenant.as_str())?;
        links.add_address(link.index, GATEWAY)?;
        links.up(link.index)?;
        let ip4 = worker.config.ip4(slot);
        links.set_neighbour(link.index, ip4, mac(slot))?;
        links.set_route(link.index, Some(ip4), None, None)
    })
}

fn add_host_route(worker: &Worker, tenant: &TenantId, slot: Slot) -> Result<(), NetError> {
    let name = worker.config.prefix.uplink(tenant);
    let links = worker.links()?;
    let link = links
        .find(name.as_str())?
        .ok_or_else(|| vanished(name.as_str()))?;
    links.set_route(
        link.index,
        Some(worker.config.ip4(slot)),
        Some(UPLINK_TENANT),
        Some(UPLINK_HOST),
    )
}
