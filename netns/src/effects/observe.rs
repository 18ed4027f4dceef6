//! Looking: what the machine shows of our network.

use std::collections::{BTreeMap, BTreeSet};

use crate::effects::links::{Inventory, Kind};
use crate::effects::nft::References;
use crate::effects::worker::{Worker, forwarding, settings_hold};
use crate::effects::{haproxy, tap};
use crate::error::NetError;
use crate::listing::Which;
use crate::names::{
    GATEWAY, GATEWAY_MAC, Slot, TenantId, UPLINK_HOST, UPLINK_HOST_MAC, UPLINK_IN_TENANT, UPLINK_TENANT,
    UPLINK_TENANT_MAC, mac,
};
use crate::plan::{Observed, Proxy, Tenant};

/// How many threads look into namespaces at once.
const LOOKERS: usize = 8;

/// Looks at everything. `lent`: the taps that are in the host's namespace on purpose. `known`: tenants that were looked at a
/// moment ago and not touched since.
pub(crate) fn observe(
    worker: &Worker,
    references: &References,
    lent: &BTreeSet<Slot>,
    known: &BTreeMap<TenantId, Tenant>,
) -> Result<Observed, NetError> {
    let config = &worker.config;
    let host = worker.links()?.inventory()?;
    let tenants = look_at_tenants(worker, references, &host, known)?;
    let mut uplinks = BTreeMap::new();
    let mut names = BTreeMap::new();
    for (name, link) in host
        .links
        .iter()
        .filter(|(name, _)| config.prefix.is_uplink(name))
    {
        let Ok(uplink) = name.parse() else { continue };
        let complete = link.up
            && link.kind == Kind::Veth
            && link.mac == Some(UPLINK_HOST_MAC)
            && host.addresses.contains(&(link.index, UPLINK_HOST, 32))
            && host
                .neighbours
                .contains(&(link.index, UPLINK_TENANT, UPLINK_TENANT_MAC));
        uplinks.insert(crate::names::IfName::clone(&uplink), complete);
        names.insert(link.index, uplink);
    }
    let routes = host
        .routes
        .iter()
        .filter_map(|route| match (route.to, route.via) {
            (Some((ip4, 32)), Some(UPLINK_TENANT)) => Some((ip4, names.get(&route.index)?.clone())),
            _ => None,
        });
    let here: BTreeSet<Slot> = host
        .links
        .keys()
        .filter_map(|name| config.prefix.slot_of_tap(name))
        .collect();
    Ok(Observed {
        forwarding: forwarding(),
        host_table: references.look(Which::Host, config)?,
        tenants,
        uplinks,
        routes: routes.collect(),
        lent: here.intersection(lent).copied().collect(),
        strays: here.difference(lent).copied().collect(),
        proxy: match &config.haproxy {
            None => Proxy::Unused,
            Some(haproxy) => haproxy::look(haproxy)?,
        },
    })
}

/// Looks into all namespaces, several at once: most of the time goes to waiting for `nft`.
fn look_at_tenants(
    worker: &Worker,
    references: &References,
    host: &Inventory,
    known: &BTreeMap<TenantId, Tenant>,
) -> Result<BTreeMap<TenantId, Tenant>, NetError> {
    let (mut seen, mut unknown) = (BTreeMap::new(), Vec::new());
    for (tenant, live) in worker.namespaces()? {
        match (known.get(&tenant), live) {
            (Some(known), true) => drop(seen.insert(tenant, known.clone())),
            (None, true) => unknown.push(tenant),
            (_, false) => drop(seen.insert(tenant, Tenant::Husk)),
        }
    }
    let lookers = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(LOOKERS);
    let share = unknown.len().div_ceil(lookers).max(1);
    std::thread::scope(|scope| {
        let look = |tenants: Vec<TenantId>| {
            move || {
                let worker = worker.colleague()?;
                let look = |tenant: TenantId| {
                    let seen = worker.inside(&tenant, || look_inside(&worker, references, host, &tenant))?;
                    Ok((tenant, seen))
                };
                tenants
                    .into_iter()
                    .map(look)
                    .collect::<Result<Vec<_>, NetError>>()
            }
        };
        let threads: Vec<_> = unknown
            .chunks(share)
            .map(|tenants| scope.spawn(look(tenants.to_vec())))
            .collect();
        for thread in threads {
            seen.extend(thread.join().map_err(|_| NetError::Worker)??);
        }
        Ok(seen)
    })
}

fn look_inside(
    worker: &Worker,
    references: &References,
    host: &Inventory,
    tenant: &TenantId,
) -> Result<Tenant, NetError> {
    let config = &worker.config;
    let inside = worker.links()?.inventory()?;
    let host_end = host.links.get(config.prefix.uplink(tenant).as_str());
    let uplink = match (inside.links.get(UPLINK_IN_TENANT), host_end) {
        (Some(link), Some(host_end)) => {
            let route = |to, via| {
                inside
                    .routes
                    .iter()
                    .any(|r| r.index == link.index && r.to == to && r.via == via)
            };
            link.up
                && link.peer == Some(host_end.index)
                && host_end.peer == Some(link.index)
                && link.mac == Some(UPLINK_TENANT_MAC)
                && inside.addresses.contains(&(link.index, UPLINK_TENANT, 32))
                && inside
                    .neighbours
                    .contains(&(link.index, UPLINK_HOST, UPLINK_HOST_MAC))
                && route(Some((UPLINK_HOST, 32)), None)
                && route(None, Some(UPLINK_HOST))
        }
        _ => false,
    };
    let mut taps = BTreeMap::new();
    for (name, link) in &inside.links {
        let Some(slot) = config.prefix.slot_of_tap(name) else {
            continue;
        };
        let ip4 = config.ip4(slot);
        let complete = link.up
            && link.kind == Kind::Tap
            && link.mac == Some(GATEWAY_MAC)
            && link.alias.as_deref() == Some(tenant.as_str())
            && inside.addresses.contains(&(link.index, GATEWAY, 32))
            && inside.neighbours.contains(&(link.index, ip4, mac(slot)))
            && inside
                .routes
                .iter()
                .any(|r| r.index == link.index && r.to == Some((ip4, 32)) && r.via.is_none());
        taps.insert(slot, complete);
    }
    Ok(Tenant::Live {
        settings: settings_hold(),
        uplink,
        taps,
        guard: references.look(Which::Guard, config)?,
    })
}

/// Where a tap is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In its tenant's namespace.
    Home(TenantId),
    /// In the host's, with the tenant that its alias names.
    Host(Option<TenantId>),
    /// Nowhere.
    Nowhere,
}

/// Finds a tap. `guess`: the tenant that it should belong to, looked at first.
pub(crate) fn find_tap(worker: &Worker, slot: Slot, guess: Option<&TenantId>) -> Result<Place, NetError> {
    let name = worker.config.prefix.tap(slot);
    let at_home = |tenant: &TenantId| -> Result<bool, NetError> {
        worker.inside(tenant, || Ok(worker.links()?.find(name.as_str())?.is_some()))
    };
    if let Some(tenant) = guess
        && worker.is_live(tenant)
        && at_home(tenant)?
    {
        return Ok(Place::Home(tenant.clone()));
    }
    if let Some(link) = worker.links()?.find(name.as_str())? {
        return Ok(Place::Host(link.alias.and_then(|alias| alias.parse().ok())));
    }
    for (tenant, live) in worker.namespaces()? {
        if live && Some(&tenant) != guess && at_home(&tenant)? {
            return Ok(Place::Home(tenant));
        }
    }
    Ok(Place::Nowhere)
}

/// Checks that taps can be made, without making one.
pub(crate) fn taps_possible() -> Result<(), NetError> {
    tap::device_present()
}
