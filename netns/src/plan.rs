//! Deciding: what is seen, what should be, and the steps between. Pure.
//!
//! Steps come in an order that is safe to stop after each one: what is no longer wanted loses its way in first (routes,
//! then rules), then its objects, then its open flows; what is new gets its guard before its tap, and its tap before the
//! way to it. A namespace is closed until its guard is there, because nothing forwards in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use crate::config::Config;
use crate::desired::{Desired, Transport, VmNet};
use crate::error::Scope;
use crate::ingress::{self, Routes};
use crate::names::{IfName, Slot, TenantId};
use crate::rules::{self, Elements, Table};

/// What the machine shows of our network. Objects of others aren't in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Whether the host's namespace forwards IPv4.
    pub(crate) forwarding: bool,
    /// The host's rules.
    pub(crate) host_table: Table,
    /// The tenants' namespaces.
    pub(crate) tenants: BTreeMap<TenantId, Tenant>,
    /// The host's ends of tenants' veths: whether each is up and has its address.
    pub(crate) uplinks: BTreeMap<IfName, bool>,
    /// Routes to VMs in the host's namespace, with the interface.
    pub(crate) routes: BTreeSet<(Ipv4Addr, IfName)>,
    /// Our taps in the host's namespace that are lent.
    pub(crate) lent: BTreeSet<Slot>,
    /// Our taps in the host's namespace that nobody remembers lending (we were killed meanwhile).
    pub(crate) strays: BTreeSet<Slot>,
    /// HAProxy.
    pub(crate) proxy: Proxy,
}

/// A tenant's namespace as seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tenant {
    /// A name in `/run/netns` without a namespace behind it: we were killed between the two.
    Husk,
    /// A namespace.
    Live {
        /// Forwarding on, IPv6 off, reverse path filter on.
        settings: bool,
        /// Its veth is there, belongs to the host's end with the tenant's name, is up, has address and default route.
        uplink: bool,
        /// The taps by slot: whether each is complete (up, addresses, route, neighbour).
        taps: BTreeMap<Slot, bool>,
        /// Its rules.
        guard: Table,
    },
}

/// HAProxy as seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Proxy {
    /// Not configured.
    Unused,
    /// Doesn't answer.
    Down,
    /// Answers.
    Up {
        /// Its process.
        pid: i32,
        /// Whether it runs with the configuration that we would write.
        current: bool,
        /// Its routes; names that stand there twice have an empty address.
        routes: Routes,
    },
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// `net.ipv4.ip_forward = 1`.
    EnableForwarding,
    /// Takes routes out of HAProxy, and ends HAProxy's open connections to the addresses that they led to: whoever lost a
    /// name must not go on being reached by it. A connection doesn't show the name that it came by, so those by another
    /// name of the same VM end too, and come again.
    RemoveRoutes {
        names: BTreeSet<String>,
        vms: BTreeSet<Ipv4Addr>,
    },
    /// Loads nft rules in the host's namespace.
    HostRules { script: String, what: String },
    /// Removes a route to a VM.
    RemoveHostRoute { ip4: Ipv4Addr, uplink: IfName },
    /// Removes a tap from a tenant's namespace, or from the host's (`None`).
    RemoveTap { tenant: Option<TenantId>, slot: Slot },
    /// Removes the host's end of a veth, and so both.
    RemoveUplink { uplink: IfName },
    /// Removes a namespace.
    RemoveNamespace { tenant: TenantId },
    /// Ends open flows of leases that are gone, and all flows of VMs that are gone.
    EndFlows {
        ports: BTreeSet<(Transport, u16)>,
        vms: BTreeSet<Ipv4Addr>,
    },
    /// Makes a namespace, with its settings.
    MakeNamespace { tenant: TenantId },
    /// Puts a namespace's settings right.
    Settings { tenant: TenantId },
    /// Makes a tenant's veth (anew if there is one), with addresses and default route.
    MakeUplink { tenant: TenantId },
    /// Loads a tenant's guard.
    Guard {
        tenant: TenantId,
        script: String,
        slots: Vec<Slot>,
    },
    /// Makes a tap, or completes it; takes it from the host's namespace if it is there.
    MakeTap { tenant: TenantId, slot: Slot },
    /// Adds a route to a VM.
    HostRoute { tenant: TenantId, slot: Slot },
    /// Starts HAProxy with all routes; an old one ends when its connections do.
    StartProxy { old: Option<i32> },
    /// Adds routes to HAProxy or changes them; those in `present` have another address there now.
    SetRoutes {
        routes: BTreeMap<String, Ipv4Addr>,
        present: BTreeSet<String>,
    },
    /// Ends HAProxy.
    StopProxy { pid: i32 },
}

impl Action {
    /// Whom it concerns.
    pub(crate) fn scope(&self) -> Scope {
        match self {
            Self::EnableForwarding | Self::HostRules { .. } | Self::EndFlows { .. } => Scope::Host,
            Self::RemoveUplink { .. }
            | Self::RemoveHostRoute { .. }
            | Self::RemoveTap { tenant: None, .. } => Scope::Host,
            Self::RemoveRoutes { .. }
            | Self::StartProxy { .. }
            | Self::SetRoutes { .. }
            | Self::StopProxy { .. } => Scope::Proxy,
            Self::RemoveTap {
                tenant: Some(tenant), ..
            }
            | Self::RemoveNamespace { tenant }
            | Self::MakeNamespace { tenant }
            | Self::Settings { tenant }
            | Self::MakeUplink { tenant }
            | Self::Guard { tenant, .. }
            | Self::MakeTap { tenant, .. }
            | Self::HostRoute { tenant, .. } => Scope::Tenant(tenant.clone()),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let some = |names: Vec<String>| match names.len() {
            0..=8 => names.join(", "),
            more => format!("{} and {} more", names[..8].join(", "), more - 8),
        };
        match self {
            Self::EnableForwarding => write!(f, "switch IPv4 forwarding on"),
            Self::RemoveRoutes { names, .. } => {
                write!(f, "remove routes {}", some(names.iter().cloned().collect()))
            }
            Self::HostRules { what, .. } => f.write_str(what),
            Self::RemoveHostRoute { ip4, uplink } => write!(f, "remove route to {ip4} by {uplink}"),
            Self::RemoveTap {
                tenant: Some(tenant),
                slot,
            } => write!(f, "remove tap of slot {slot} from {tenant}"),
            Self::RemoveTap { tenant: None, slot } => write!(f, "remove tap of slot {slot} from the host"),
            Self::RemoveUplink { uplink } => write!(f, "remove veth {uplink}"),
            Self::RemoveNamespace { tenant } => write!(f, "remove namespace of {tenant}"),
            Self::EndFlows { ports, vms } => {
                let ports = ports
                    .iter()
                    .map(|(transport, port)| format!("{transport} port {port}"));
                let vms = vms.iter().map(ToString::to_string);
                write!(f, "end open flows of {}", some(ports.chain(vms).collect()))
            }
            Self::MakeNamespace { tenant } => write!(f, "make namespace of {tenant}"),
            Self::Settings { tenant } => write!(f, "set sysctls in the namespace of {tenant}"),
            Self::MakeUplink { tenant } => write!(f, "make veth of {tenant}"),
            Self::Guard { tenant, slots, .. } => write!(f, "load guard of {tenant} for slots {slots:?}"),
            Self::MakeTap { tenant, slot } => write!(f, "make tap of slot {slot} for {tenant}"),
            Self::HostRoute { tenant, slot } => write!(f, "add route to slot {slot} of {tenant}"),
            Self::StartProxy { old: None } => write!(f, "start HAProxy"),
            Self::StartProxy { old: Some(pid) } => write!(f, "replace HAProxy {pid}"),
            Self::SetRoutes { routes, .. } => {
                write!(f, "set routes {}", some(routes.keys().cloned().collect()))
            }
            Self::StopProxy { pid } => write!(f, "stop HAProxy {pid}"),
        }
    }
}

/// The steps that turn what is seen into what is desired, in order; none when they agree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan(pub(crate) Vec<Action>);

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The tenants whose namespaces it changes.
    pub(crate) fn touches(&self) -> BTreeSet<TenantId> {
        let tenant = |step: &Action| match step.scope() {
            Scope::Tenant(tenant) => Some(tenant),
            Scope::Host | Scope::Proxy => None,
        };
        self.0.iter().filter_map(tenant).collect()
    }

    /// Whether it changes anything about HAProxy.
    pub(crate) fn concerns_proxy(&self) -> bool {
        self.0.iter().any(|step| step.scope() == Scope::Proxy)
    }

    /// Whether namespaces come or go by it.
    pub(crate) fn moves_namespaces(&self) -> bool {
        let moves = |step: &Action| {
            matches!(
                step,
                Action::MakeNamespace { .. } | Action::RemoveNamespace { .. }
            )
        };
        self.0.iter().any(moves)
    }

    /// One line per step, for people.
    pub fn lines(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }
}

impl Observed {
    /// What will be seen when everything is as desired.
    pub fn ideal(config: &Config, desired: &Desired, proxy_pid: i32) -> Self {
        let mut tenants = BTreeMap::new();
        let (mut uplinks, mut routes) = (BTreeMap::new(), BTreeSet::new());
        for (tenant, vms) in desired.tenants() {
            let uplink = config.prefix.uplink(tenant);
            routes.extend(vms.iter().map(|vm| (config.ip4(vm.slot), uplink.clone())));
            uplinks.insert(uplink, true);
            let live = Tenant::Live {
                settings: true,
                uplink: true,
                taps: vms.iter().map(|vm| (vm.slot, true)).collect(),
                guard: Table::Ours(rules::guard_elements(config, &vms)),
            };
            tenants.insert(tenant.clone(), live);
        }
        Self {
            forwarding: true,
            host_table: Table::Ours(rules::host_elements(config, desired)),
            tenants,
            uplinks,
            routes,
            lent: BTreeSet::new(),
            strays: BTreeSet::new(),
            proxy: match config.haproxy {
                None => Proxy::Unused,
                Some(_) => Proxy::Up {
                    pid: proxy_pid,
                    current: true,
                    routes: ingress::routes(config, desired)
                        .into_iter()
                        .map(|(n, ip)| (n, ip.to_string()))
                        .collect(),
                },
            },
        }
    }
}

/// Pure: the steps from `observed` to `desired`, which must have passed [`Desired::check`].
pub fn plan(config: &Config, observed: &Observed, desired: &Desired) -> Plan {
    let tenants = desired.tenants();
    let mut steps = Vec::new();
    if !observed.forwarding {
        steps.push(Action::EnableForwarding);
    }
    let elements = rules::host_elements(config, desired);
    let routes = ingress::routes(config, desired);
    remove_ways_in(config, observed, &elements, &routes, &mut steps);
    remove_objects(config, observed, desired, &tenants, &mut steps);
    end_flows(observed, &elements, &mut steps);
    for (tenant, vms) in &tenants {
        make_tenant(config, observed, tenant, vms, &mut steps);
    }
    add_routes(observed, &routes, &mut steps);
    Plan(steps)
}

/// Pure: like [`plan`] where all of `old` holds, at a cost that follows the difference and not the size of the host: what
/// both have in common is left out of both. `lent`: taps that are in the host's namespace on purpose.
pub(crate) fn plan_change(config: &Config, old: &Desired, new: &Desired, lent: &BTreeSet<Slot>) -> Plan {
    let differs = |slot: &Slot| old.vms.get(slot) != new.vms.get(slot);
    let tenants: BTreeSet<&TenantId> = (old.vms.iter().chain(&new.vms))
        .filter(|(slot, _)| differs(slot))
        .map(|(_, vm)| &vm.tenant)
        .collect();
    let part = |of: &Desired, other: &Desired| Desired {
        vms: of
            .vms
            .iter()
            .filter(|(_, vm)| tenants.contains(&vm.tenant))
            .map(|(slot, vm)| (*slot, vm.clone()))
            .collect(),
        leases: of.leases.difference(&other.leases).copied().collect(),
        routes: of
            .routes
            .iter()
            .filter(|(name, slot)| other.routes.get(*name) != Some(slot))
            .map(|(name, slot)| (name.clone(), *slot))
            .collect(),
    };
    let (before, after) = (part(old, new), part(new, old));
    let mut observed = Observed::ideal(config, &before, 0);
    observed.lent = lent
        .iter()
        .filter(|slot| before.vms.contains_key(slot))
        .copied()
        .collect();
    plan(config, &observed, &after)
}

/// The steps that remove everything of ours.
pub(crate) fn plan_removal(config: &Config, observed: &Observed, stop_proxy: StopProxy) -> Plan {
    let nothing = Desired::default();
    let mut steps = Vec::new();
    match (&observed.proxy, stop_proxy) {
        (Proxy::Up { pid, .. }, StopProxy::Yes) => steps.push(Action::StopProxy { pid: *pid }),
        (Proxy::Up { routes, .. }, StopProxy::No) if !routes.is_empty() => {
            steps.push(remove_routes(routes.iter()));
        }
        _ => {}
    }
    remove_objects(config, observed, &nothing, &BTreeMap::new(), &mut steps);
    end_flows(observed, &rules::host_elements(config, &nothing), &mut steps);
    if observed.host_table != Table::Absent {
        let script = rules::host_table_removal(config);
        steps.push(Action::HostRules {
            script,
            what: "remove the host's rules".to_owned(),
        });
    }
    Plan(steps)
}

/// Whether HAProxy is ours to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopProxy {
    /// We started it.
    Yes,
    /// Somebody else did.
    No,
}

/// The step that takes these routes, as HAProxy shows them, out.
fn remove_routes<'r>(routes: impl IntoIterator<Item = (&'r String, &'r String)>) -> Action {
    let (mut names, mut vms) = (BTreeSet::new(), BTreeSet::new());
    for (name, address) in routes {
        names.insert(name.clone());
        vms.extend(address.parse::<Ipv4Addr>());
    }
    Action::RemoveRoutes { names, vms }
}

/// Routes that lead nowhere now, and the host's rules, in one transaction for removed and new ones.
fn remove_ways_in(
    config: &Config,
    observed: &Observed,
    elements: &Elements,
    wanted: &BTreeMap<String, Ipv4Addr>,
    steps: &mut Vec<Action>,
) {
    if let Proxy::Up {
        current: true,
        routes,
        ..
    } = &observed.proxy
    {
        let gone: BTreeMap<_, _> = routes
            .iter()
            .filter(|(name, _)| !wanted.contains_key(*name))
            .collect();
        if !gone.is_empty() {
            steps.push(remove_routes(gone));
        }
    }
    match &observed.host_table {
        Table::Ours(present) => {
            if let Some(script) = rules::host_edit(config, present, elements) {
                let what = format!(
                    "change the host's rules: {}",
                    script.trim_end().replace('\n', "; ")
                );
                steps.push(Action::HostRules { script, what });
            }
        }
        Table::Absent | Table::Changed => {
            let script = rules::host_table(config, elements);
            steps.push(Action::HostRules {
                script,
                what: "load the host's rules".to_owned(),
            });
        }
    }
}

fn remove_objects(
    config: &Config,
    observed: &Observed,
    desired: &Desired,
    tenants: &BTreeMap<&TenantId, Vec<&VmNet>>,
    steps: &mut Vec<Action>,
) {
    let wanted: BTreeSet<(Ipv4Addr, IfName)> = desired
        .vms
        .values()
        .map(|vm| (config.ip4(vm.slot), config.prefix.uplink(&vm.tenant)))
        .collect();
    for (ip4, uplink) in observed.routes.difference(&wanted) {
        steps.push(Action::RemoveHostRoute {
            ip4: *ip4,
            uplink: uplink.clone(),
        });
    }
    for slot in observed
        .lent
        .union(&observed.strays)
        .filter(|slot| !desired.vms.contains_key(slot))
    {
        steps.push(Action::RemoveTap {
            tenant: None,
            slot: *slot,
        });
    }
    for (tenant, seen) in &observed.tenants {
        let vms = tenants.get(tenant);
        if let Tenant::Live { taps, .. } = seen {
            let kept: BTreeSet<Slot> = vms.into_iter().flatten().map(|vm| vm.slot).collect();
            for slot in taps.keys().filter(|slot| !kept.contains(slot)) {
                steps.push(Action::RemoveTap {
                    tenant: Some(tenant.clone()),
                    slot: *slot,
                });
            }
        }
    }
    let wanted: BTreeSet<IfName> = tenants
        .keys()
        .map(|tenant| config.prefix.uplink(tenant))
        .collect();
    for uplink in observed.uplinks.keys().filter(|uplink| !wanted.contains(uplink)) {
        steps.push(Action::RemoveUplink {
            uplink: uplink.clone(),
        });
    }
    for tenant in observed
        .tenants
        .keys()
        .filter(|tenant| !tenants.contains_key(tenant))
    {
        steps.push(Action::RemoveNamespace {
            tenant: tenant.clone(),
        });
    }
}

/// Flows outlive the rule that let them begin, so they are ended with it. Which rules are gone, the old elements tell.
fn end_flows(observed: &Observed, new: &Elements, steps: &mut Vec<Action>) {
    let Table::Ours(old) = &observed.host_table else {
        return;
    };
    let gone = |set: &str| -> Vec<String> {
        let (old, new) = (old.get(set), new.get(set));
        old.into_iter()
            .flatten()
            .filter(|e| !new.is_some_and(|new| new.contains(*e)))
            .cloned()
            .collect()
    };
    let mut ports = BTreeSet::new();
    for (set, transport) in [("leases_tcp", Transport::Tcp), ("leases_udp", Transport::Udp)] {
        let leased = gone(set)
            .into_iter()
            .filter_map(|e| e.split(" : ").next().and_then(|port| port.parse().ok()));
        ports.extend(leased.map(|port: u16| (transport, port)));
    }
    let sources = gone("sources")
        .into_iter()
        .filter_map(|e| e.rsplit(" . ").next().and_then(|ip| ip.parse().ok()));
    let vms: BTreeSet<Ipv4Addr> = sources.collect();
    if !ports.is_empty() || !vms.is_empty() {
        steps.push(Action::EndFlows { ports, vms });
    }
}

fn make_tenant(
    config: &Config,
    observed: &Observed,
    tenant: &TenantId,
    vms: &[&VmNet],
    steps: &mut Vec<Action>,
) {
    let name = || tenant.clone();
    let (settings, uplink, taps, guard) = match observed.tenants.get(tenant) {
        Some(Tenant::Live {
            settings,
            uplink,
            taps,
            guard,
        }) => (*settings, *uplink, taps.clone(), guard.clone()),
        Some(Tenant::Husk) | None => {
            steps.push(Action::MakeNamespace { tenant: name() });
            (true, false, BTreeMap::new(), Table::Absent)
        }
    };
    if !settings {
        steps.push(Action::Settings { tenant: name() });
    }
    if guard != Table::Ours(rules::guard_elements(config, vms)) {
        let script = rules::guard(config, vms);
        steps.push(Action::Guard {
            tenant: name(),
            script,
            slots: vms.iter().map(|vm| vm.slot).collect(),
        });
    }
    let host_end = config.prefix.uplink(tenant);
    let wired = uplink && observed.uplinks.get(&host_end) == Some(&true);
    if !wired {
        steps.push(Action::MakeUplink { tenant: name() });
    }
    for vm in vms {
        let complete = taps.get(&vm.slot) == Some(&true);
        if !complete && !observed.lent.contains(&vm.slot) {
            steps.push(Action::MakeTap {
                tenant: name(),
                slot: vm.slot,
            });
        }
        // A new veth has no routes, whatever was seen of the old one.
        if !wired || !observed.routes.contains(&(config.ip4(vm.slot), host_end.clone())) {
            steps.push(Action::HostRoute {
                tenant: name(),
                slot: vm.slot,
            });
        }
    }
}

fn add_routes(observed: &Observed, wanted: &BTreeMap<String, Ipv4Addr>, steps: &mut Vec<Action>) {
    match &observed.proxy {
        Proxy::Unused => {}
        Proxy::Down => steps.push(Action::StartProxy { old: None }),
        Proxy::Up {
            pid, current: false, ..
        } => steps.push(Action::StartProxy { old: Some(*pid) }),
        Proxy::Up { routes, .. } => {
            let differs = |(name, ip): &(&String, &Ipv4Addr)| routes.get(*name) != Some(&ip.to_string());
            let changed: BTreeMap<String, Ipv4Addr> = wanted
                .iter()
                .filter(differs)
                .map(|(name, ip)| (name.clone(), *ip))
                .collect();
            if !changed.is_empty() {
                let present = changed
                    .keys()
                    .filter(|name| routes.contains_key(*name))
                    .cloned()
                    .collect();
                steps.push(Action::SetRoutes {
                    routes: changed,
                    present,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;
    use crate::desired::Lease;

    fn config() -> Config {
        let mut config = Config::new("wan0".parse().unwrap(), [203, 0, 113, 1].into());
        config.haproxy = Some(toml::from_str("run_dir = \"/run/dc\"").unwrap());
        config
    }

    /// Small enough that two of them often share VMs, ports and names.
    fn any_desired() -> impl Strategy<Value = Desired> {
        let vms = btree_map(1u16..7, ("[abc]", proptest::option::of(1u32..3)), 0..6);
        let leases = vec((any::<bool>(), 20_000u16..20_004, 1u16..7, 22u16..24), 0..6);
        let routes = btree_map("[xyz]\\.example", 1u16..7, 0..3);
        (vms, leases, routes).prop_map(|(vms, leases, routes)| {
            let mut desired = Desired::default();
            for (slot, (tenant, bandwidth_mbps)) in vms {
                desired.vms.insert(
                    slot,
                    VmNet {
                        slot,
                        tenant: tenant.parse().unwrap(),
                        bandwidth_mbps,
                    },
                );
            }
            let mut ports = BTreeSet::new();
            for (udp, public_port, slot, vm_port) in leases {
                let transport = if udp { Transport::Udp } else { Transport::Tcp };
                if desired.vms.contains_key(&slot) && ports.insert((transport, public_port)) {
                    desired.leases.insert(Lease {
                        transport,
                        public_port,
                        slot,
                        vm_port,
                    });
                }
            }
            let there = routes
                .into_iter()
                .filter(|(_, slot)| desired.vms.contains_key(slot));
            desired.routes = there.map(|(name, slot)| (name.parse().unwrap(), slot)).collect();
            desired
        })
    }

    proptest! {
        #[test]
        fn nothing_is_planned_where_all_is_as_desired(desired in any_desired()) {
            let config = config();
            prop_assert_eq!(desired.check(&config), Ok(()));
            prop_assert_eq!(plan(&config, &Observed::ideal(&config, &desired, 7), &desired), Plan::default());
        }

        #[test]
        fn the_short_way_to_plan_a_change_gives_the_same_plan(old in any_desired(), new in any_desired()) {
            let config = config();
            let long = plan(&config, &Observed::ideal(&config, &old, 0), &new);
            prop_assert_eq!(plan_change(&config, &old, &new, &BTreeSet::new()), long);
        }

        #[test]
        fn no_step_touches_a_tenant_that_does_not_change(old in any_desired(), new in any_desired()) {
            let vms_of = |desired: &Desired, tenant: &TenantId| {
                desired.tenants().get(tenant).map(|vms| vms.iter().copied().cloned().collect::<Vec<_>>())
            };
            for tenant in plan_change(&config(), &old, &new, &BTreeSet::new()).touches() {
                prop_assert_ne!(vms_of(&old, &tenant), vms_of(&new, &tenant), "{}", tenant);
            }
        }

        #[test]
        fn ways_in_close_before_their_vm_goes_and_open_after_it_came(old in any_desired(), new in any_desired()) {
            let steps = plan_change(&config(), &old, &new, &BTreeSet::new()).0;
            let first = |what: fn(&Action) -> bool| steps.iter().position(what);
            let last = |what: fn(&Action) -> bool| steps.iter().rposition(what);
            let rules = first(|step| matches!(step, Action::HostRules { .. }));
            if let (Some(rules), Some(removal)) = (rules, first(|step| matches!(step, Action::RemoveTap { .. }))) {
                prop_assert!(rules < removal);
            }
            let made = last(|step| matches!(step, Action::MakeTap { .. } | Action::HostRoute { .. }));
            if let (Some(routes), Some(made)) = (first(|step| matches!(step, Action::SetRoutes { .. })), made) {
                prop_assert!(made < routes);
            }
            for (at, step) in steps.iter().enumerate() {
                if let Action::MakeTap { tenant, .. } = step {
                    let guard = |step: &Action| matches!(step, Action::Guard { tenant: other, .. } if other == tenant);
                    prop_assert!(steps[..at].iter().any(guard), "a tap before its guard");
                }
            }
        }
    }

    /// What an operator reads when a host starts with one VM.
    #[test]
    fn the_first_plan() {
        let config = config();
        let vm = VmNet {
            slot: 1,
            tenant: "alice".parse().unwrap(),
            bandwidth_mbps: Some(100),
        };
        let mut desired = Desired {
            vms: BTreeMap::from([(1, vm)]),
            ..Desired::default()
        };
        desired.routes.insert("a.example".parse().unwrap(), 1);
        let nothing = Observed {
            forwarding: false,
            host_table: Table::Absent,
            tenants: BTreeMap::from([("left".parse().unwrap(), Tenant::Husk)]),
            uplinks: BTreeMap::new(),
            routes: BTreeSet::new(),
            lent: BTreeSet::new(),
            strays: BTreeSet::from([9]),
            proxy: Proxy::Down,
        };
        insta::assert_snapshot!(plan(&config, &nothing, &desired).lines().join("\n"));
    }
}
