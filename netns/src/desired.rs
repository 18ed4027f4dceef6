//! What the network of this host should be. Plain data; who may have which name or port is decided before it gets here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::{Config, PortRange};
use crate::names::{DnsName, IfName, Slot, TenantId};

/// All that should be there. What isn't in it, is removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// The VMs by slot.
    pub vms: BTreeMap<Slot, VmNet>,
    /// Public ports that lead to a VM.
    pub leases: BTreeSet<Lease>,
    /// Names that lead to a VM's ports 443 and 80.
    pub routes: BTreeMap<DnsName, Slot>,
}

/// The network of one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmNet {
    /// The VM's number; the same as its key in [`Desired::vms`].
    pub slot: Slot,
    /// Whose it is. VMs of one tenant share a namespace and reach each other; nobody else reaches them, except by
    /// leases and routes.
    pub tenant: TenantId,
    /// Limit in each direction, Mbit/s (10⁶ bits), 1 to 400,000; `None`: no limit.
    pub bandwidth_mbps: Option<u32>,
}

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A forwarded public port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lease {
    /// TCP or UDP.
    pub transport: Transport,
    /// The port on the host's addresses.
    pub public_port: u16,
    /// The VM that it leads to.
    pub slot: Slot,
    /// The port there.
    pub vm_port: u16,
}

/// A name that leads to a VM, as one value (in [`Desired`] it is a map entry).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Route {
    /// The name, as SNI and `Host` say it.
    pub name: DnsName,
    /// The VM.
    pub slot: Slot,
}

/// Why a desired state makes no sense. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DesiredFault {
    /// Slot 0 or 65535.
    #[error("slot {0} can't be used: slots are 1 to 65534")]
    Slot(Slot),
    /// The key and the VM's own slot differ.
    #[error("the VM under slot {key} says that its slot is {slot}")]
    SlotMismatch {
        /// In the map.
        key: Slot,
        /// In the VM.
        slot: Slot,
    },
    /// Bandwidth of 0 or beyond what fits.
    #[error("slot {slot}: a bandwidth of {mbps} Mbit/s can't be set; 1 to 400000, or none for no limit")]
    Bandwidth {
        /// The VM.
        slot: Slot,
        /// What was asked.
        mbps: u32,
    },
    /// Two tenants would share an interface name.
    #[error("tenants {first} and {second} would both get the interface {uplink}; make ids with TenantId::of")]
    SameUplink {
        /// One of them.
        first: TenantId,
        /// The other.
        second: TenantId,
        /// The name.
        uplink: IfName,
    },
    /// A lease or a route to no VM.
    #[error("{what} leads to slot {slot}, where there is no VM")]
    NoVm {
        /// The lease or route.
        what: String,
        /// Where it leads.
        slot: Slot,
    },
    /// A port that isn't for lease.
    #[error("port {port} can't be leased: `lease_ports` is {allowed}")]
    Port {
        /// What was asked.
        port: u16,
        /// What there is.
        allowed: PortRange,
    },
    /// Port 0 of a VM.
    #[error("the lease of public port {public_port} leads to port 0, which doesn't exist")]
    VmPortZero {
        /// The lease.
        public_port: u16,
    },
    /// Two leases of one port.
    #[error("{transport} port {port} is leased twice: to slot {first} and to slot {second}")]
    PortTwice {
        /// TCP or UDP.
        transport: Transport,
        /// The port.
        port: u16,
        /// One VM.
        first: Slot,
        /// The other.
        second: Slot,
    },
    /// Routes without HAProxy.
    #[error("{count} routes can't work: this host has no `haproxy` in its network settings")]
    NoProxy {
        /// How many.
        count: usize,
    },
}

impl Desired {
    /// Every reason why this can't be made so, not only the first.
    pub fn check(&self, config: &Config) -> Result<(), Vec<DesiredFault>> {
        let mut faults = Vec::new();
        let mut uplinks: BTreeMap<IfName, &TenantId> = BTreeMap::new();
        for (key, vm) in &self.vms {
            if matches!(*key, 0 | u16::MAX) {
                faults.push(DesiredFault::Slot(*key));
            }
            if *key != vm.slot {
                faults.push(DesiredFault::SlotMismatch {
                    key: *key,
                    slot: vm.slot,
                });
            }
            if let Some(mbps) = vm.bandwidth_mbps.filter(|mbps| !(1..=400_000).contains(mbps)) {
                faults.push(DesiredFault::Bandwidth { slot: *key, mbps });
            }
            let uplink = config.prefix.uplink(&vm.tenant);
            match uplinks.get(&uplink) {
                Some(other) if *other != &vm.tenant => faults.push(DesiredFault::SameUplink {
                    first: (*other).clone(),
                    second: vm.tenant.clone(),
                    uplink,
                }),
                _ => {
                    uplinks.insert(uplink, &vm.tenant);
                }
            }
        }
        let mut ports: BTreeMap<(Transport, u16), Slot> = BTreeMap::new();
        for lease in &self.leases {
            let Lease {
                transport,
                public_port,
                slot,
                vm_port,
            } = *lease;
            if !self.vms.contains_key(&slot) {
                faults.push(DesiredFault::NoVm {
                    what: format!("the lease of {transport} port {public_port}"),
                    slot,
                });
            }
            if !config.lease_ports.contains(public_port) {
                faults.push(DesiredFault::Port {
                    port: public_port,
                    allowed: config.lease_ports,
                });
            }
            if vm_port == 0 {
                faults.push(DesiredFault::VmPortZero { public_port });
            }
            if let Some(first) = ports.insert((transport, public_port), slot) {
                faults.push(DesiredFault::PortTwice {
                    transport,
                    port: public_port,
                    first,
                    second: slot,
                });
            }
        }
        for (name, slot) in &self.routes {
            if !self.vms.contains_key(slot) {
                faults.push(DesiredFault::NoVm {
                    what: format!("the route {name}"),
                    slot: *slot,
                });
            }
        }
        if config.haproxy.is_none() && !self.routes.is_empty() {
            faults.push(DesiredFault::NoProxy {
                count: self.routes.len(),
            });
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    /// The VMs of each tenant.
    pub fn tenants(&self) -> BTreeMap<&TenantId, Vec<&VmNet>> {
        let mut tenants: BTreeMap<&TenantId, Vec<&VmNet>> = BTreeMap::new();
        for vm in self.vms.values() {
            tenants.entry(&vm.tenant).or_default().push(vm);
        }
        tenants
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(slot: Slot, tenant: &str) -> (Slot, VmNet) {
        (
            slot,
            VmNet {
                slot,
                tenant: tenant.parse().unwrap(),
                bandwidth_mbps: None,
            },
        )
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_all_of_it_is_told() {
        let config = Config::new("eth0".parse().unwrap(), [203, 0, 113, 1].into());
        let lease = |public_port, slot, vm_port| Lease {
            transport: Transport::Tcp,
            public_port,
            slot,
            vm_port,
        };
        let mut desired = Desired {
            vms: BTreeMap::from([
                vm(0, "a"),
                vm(1, "abcdefghijkl0"),
                vm(2, "abcdefghijkl1"),
                (4, vm(3, "a").1),
            ]),
            leases: BTreeSet::from([
                lease(80, 1, 80),
                lease(20_000, 1, 0),
                lease(20_001, 1, 22),
                lease(20_001, 9, 22),
            ]),
            routes: BTreeMap::from([("a.example".parse().unwrap(), 8)]),
        };
        desired.vms.get_mut(&1).unwrap().bandwidth_mbps = Some(0);
        let faults = desired.check(&config).unwrap_err();
        let told = faults
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n");
        insta::assert_snapshot!(told);
    }

    #[test]
    fn one_port_can_be_leased_for_tcp_and_for_udp() {
        let config = Config::new("eth0".parse().unwrap(), [203, 0, 113, 1].into());
        let lease = |transport, slot| Lease {
            transport,
            public_port: 20_000,
            slot,
            vm_port: 53,
        };
        let desired = Desired {
            vms: BTreeMap::from([vm(1, "a"), vm(2, "b")]),
            leases: BTreeSet::from([lease(Transport::Tcp, 1), lease(Transport::Udp, 2)]),
            routes: BTreeMap::new(),
        };
        assert_eq!(desired.check(&config), Ok(()));
    }
}
