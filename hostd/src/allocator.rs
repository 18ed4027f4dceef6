//! Who has what of this host: CPUs, memory, hugepages, disks, slots, ports, GPUs.
//!
//! There is no counter to go wrong. [`allocate`] is pure: it gets the whole capacity and every allocation that the
//! journal holds, and adds them up anew each time. The journal's one thread calls it inside the transaction that
//! writes the result, so two contracts can't get the same thing, and a release that happens twice frees nothing twice.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use ledger::api::{LeasedPort, PortRequest, Transport};
use serde::{Deserialize, Serialize};

use crate::ports::Space;

/// Bytes in a GiB.
const GIB: u64 = 1 << 30;

/// All that this host may promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// vCPUs.
    pub vcpus: u32,
    /// Memory for VMs, MiB.
    pub memory_mib: u64,
    /// Hugepages of 2 MiB in the pool, if VMs are backed by them.
    pub hugepages_2m: Option<u64>,
    /// Storage for VM disks, GiB.
    pub storage_gib: u64,
    /// Slot numbers.
    pub slots: RangeInclusive<u16>,
    /// Public ports for leases.
    pub lease_ports: RangeInclusive<u16>,
    /// PCI addresses of GPUs.
    pub gpus: Vec<String>,
}

impl Capacity {
    /// GiB for disks that can be promised now: never more than what disks hold and the file system has left, whatever was
    /// configured. It shrinks when somebody else fills the file system.
    pub fn storage_gib_in(&self, space: Space) -> u64 {
        let room = space.available_bytes.saturating_add(space.used_bytes);
        self.storage_gib.min(room / GIB)
    }
}

/// What one contract needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// vCPUs.
    pub vcpus: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Disk, GiB.
    pub disk_gib: u64,
    /// GPUs.
    pub gpus: u32,
    /// Ports of the VM to lease.
    pub ports: Vec<PortRequest>,
}

/// What one contract got. Kept in the journal until everything of the contract is off the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// The VM's number; its address, MAC and tap derive from it.
    pub slot: u16,
    /// vCPUs.
    pub vcpus: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Disk, GiB.
    pub disk_gib: u64,
    /// Leased ports.
    pub ports: Vec<LeasedPort>,
    /// PCI addresses.
    pub gpus: Vec<String>,
}

/// One reason why this host can't take a contract now. An answer, not a failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// An operator drains the host.
    #[error("the host takes no new contracts: its operator drains it")]
    Draining,
    /// Not enough vCPUs.
    #[error("{wanted} vCPUs wanted, {free} free")]
    Cpu {
        /// Asked.
        wanted: u32,
        /// Left.
        free: u32,
    },
    /// Not enough memory.
    #[error("{wanted} MiB of memory wanted, {free} MiB free")]
    Memory {
        /// Asked.
        wanted: u64,
        /// Left.
        free: u64,
    },
    /// Not enough hugepages.
    #[error("{wanted} hugepages of 2 MiB wanted, {free} free")]
    Hugepages {
        /// Asked.
        wanted: u64,
        /// Left.
        free: u64,
    },
    /// More storage than the host sells.
    #[error("{wanted} GiB of storage wanted, {free} GiB free")]
    Storage {
        /// Asked.
        wanted: u64,
        /// Left.
        free: u64,
    },
    /// The file system doesn't have the room that was promised to contracts.
    #[error("the file system has room for {free} GiB more, {wanted} GiB wanted")]
    DiskSpace {
        /// Asked.
        wanted: u64,
        /// Left when every disk of today is full.
        free: u64,
    },
    /// Every slot is taken.
    #[error("all {limit} VM slots of the host are taken")]
    Slots {
        /// How many there are.
        limit: u32,
    },
    /// Not enough public ports.
    #[error("{wanted} {transport} ports wanted, {free} free")]
    Ports {
        /// `TCP` or `UDP`.
        transport: &'static str,
        /// Asked.
        wanted: usize,
        /// Left.
        free: usize,
    },
    /// Not enough GPUs.
    #[error("{wanted} GPUs wanted, {free} free")]
    Gpus {
        /// Asked.
        wanted: u32,
        /// Left.
        free: u32,
    },
    /// No adapter here can host the kind.
    #[error("{kind} VMs can't be hosted here: {why}")]
    Kind {
        /// Which.
        kind: &'static str,
        /// Why not.
        why: String,
    },
    /// Something else about the request that can't be served.
    #[error("{field}: {why}")]
    Field {
        /// Field of the request.
        field: &'static str,
        /// What is wrong, and what would be right.
        why: String,
    },
}

/// Gives `want` its share of what `taken` leaves of `capacity`, or every reason why not.
pub fn allocate(
    capacity: &Capacity,
    space: Space,
    taken: &[Allocation],
    want: &Want,
) -> Result<Allocation, Vec<Refusal>> {
    let mut refusals = Vec::new();
    let free_cpus = capacity.vcpus.saturating_sub(taken.iter().map(|a| a.vcpus).sum());
    if want.vcpus > free_cpus {
        refusals.push(Refusal::Cpu {
            wanted: want.vcpus,
            free: free_cpus,
        });
    }
    let taken_memory: u64 = taken.iter().map(|a| a.memory_mib).sum();
    let free_memory = capacity.memory_mib.saturating_sub(taken_memory);
    if want.memory_mib > free_memory {
        refusals.push(Refusal::Memory {
            wanted: want.memory_mib,
            free: free_memory,
        });
    }
    if let Some(pool) = capacity.hugepages_2m {
        let free = pool.saturating_sub(taken.iter().map(|a| a.memory_mib.div_ceil(2)).sum());
        let wanted = want.memory_mib.div_ceil(2);
        if wanted > free {
            refusals.push(Refusal::Hugepages { wanted, free });
        }
    }
    let promised_gib: u64 = taken.iter().map(|a| a.disk_gib).sum();
    let free_gib = capacity.storage_gib.saturating_sub(promised_gib);
    if want.disk_gib > free_gib {
        refusals.push(Refusal::Storage {
            wanted: want.disk_gib,
            free: free_gib,
        });
    }
    // Disks are sparse: what today's disks may still grow by is as good as gone.
    let growth = promised_gib.saturating_mul(GIB).saturating_sub(space.used_bytes);
    let room = space.available_bytes.saturating_sub(growth);
    if want.disk_gib.saturating_mul(GIB) > room {
        refusals.push(Refusal::DiskSpace {
            wanted: want.disk_gib,
            free: room / GIB,
        });
    }
    let used_slots: BTreeSet<u16> = taken.iter().map(|a| a.slot).collect();
    let slot = capacity.slots.clone().find(|slot| !used_slots.contains(slot));
    if slot.is_none() {
        refusals.push(Refusal::Slots {
            limit: capacity.slots.len().try_into().unwrap_or(u32::MAX),
        });
    }
    let ports = lease(capacity, taken, &want.ports, &mut refusals);
    let used_gpus: BTreeSet<&String> = taken.iter().flat_map(|a| &a.gpus).collect();
    let free_gpus: Vec<String> = capacity
        .gpus
        .iter()
        .filter(|gpu| !used_gpus.contains(gpu))
        .cloned()
        .collect();
    let wanted_gpus = want.gpus as usize;
    if wanted_gpus > free_gpus.len() {
        refusals.push(Refusal::Gpus {
            wanted: want.gpus,
            free: free_gpus.len().try_into().unwrap_or(u32::MAX),
        });
    }
    match (slot, refusals.is_empty()) {
        (Some(slot), true) => Ok(Allocation {
            slot,
            vcpus: want.vcpus,
            memory_mib: want.memory_mib,
            disk_gib: want.disk_gib,
            ports,
            gpus: free_gpus.into_iter().take(wanted_gpus).collect(),
        }),
        _ => Err(refusals),
    }
}

/// Public ports for each requested one, lowest first; TCP and UDP are counted apart.
fn lease(
    capacity: &Capacity,
    taken: &[Allocation],
    wanted: &[PortRequest],
    refusals: &mut Vec<Refusal>,
) -> Vec<LeasedPort> {
    let mut leased = Vec::with_capacity(wanted.len());
    for (transport, name) in [(Transport::Tcp, "TCP"), (Transport::Udp, "UDP")] {
        let used: BTreeSet<u16> = taken
            .iter()
            .flat_map(|a| &a.ports)
            .filter(|port| port.transport == transport)
            .map(|port| port.public_port)
            .collect();
        let mut free = capacity.lease_ports.clone().filter(|port| !used.contains(port));
        let asked: BTreeSet<u16> = wanted
            .iter()
            .filter(|p| p.transport == transport)
            .map(|p| p.port)
            .collect();
        let before = leased.len();
        for vm_port in &asked {
            let Some(public_port) = free.next() else { break };
            leased.push(LeasedPort {
                transport,
                public_port,
                vm_port: *vm_port,
            });
        }
        let got = leased.len() - before;
        if got < asked.len() {
            refusals.push(Refusal::Ports {
                transport: name,
                wanted: asked.len(),
                free: got,
            });
        }
    }
    leased
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn capacity() -> Capacity {
        Capacity {
            vcpus: 8,
            memory_mib: 4096,
            hugepages_2m: None,
            storage_gib: 100,
            slots: 1..=4,
            lease_ports: 20000..=20003,
            gpus: vec!["0000:01:00.0".into()],
        }
    }

    const ROOM: Space = Space {
        available_bytes: 200 * GIB,
        used_bytes: 0,
    };

    fn tcp(port: u16) -> PortRequest {
        PortRequest {
            transport: Transport::Tcp,
            port,
        }
    }

    fn want() -> Want {
        Want {
            vcpus: 2,
            memory_mib: 1024,
            disk_gib: 10,
            gpus: 0,
            ports: vec![tcp(22)],
        }
    }

    #[test]
    fn every_lack_is_named_and_the_last_unit_is_given() {
        let one = allocate(&capacity(), ROOM, &[], &want()).unwrap();
        let first = |change: fn(&mut Want)| {
            let mut want = want();
            change(&mut want);
            want
        };
        let huge = Capacity {
            hugepages_2m: Some(600),
            ..capacity()
        };
        let tight = Space {
            available_bytes: 20 * GIB,
            used_bytes: GIB,
        };
        for (row, capacity, space, want, refusals) in [
            (
                "all CPUs but the taken",
                capacity(),
                ROOM,
                first(|w| w.vcpus = 6),
                vec![],
            ),
            (
                "one more",
                capacity(),
                ROOM,
                first(|w| w.vcpus = 7),
                vec![Refusal::Cpu { wanted: 7, free: 6 }],
            ),
            (
                "last MiB",
                capacity(),
                ROOM,
                first(|w| w.memory_mib = 3072),
                vec![],
            ),
            (
                "MiB",
                capacity(),
                ROOM,
                first(|w| w.memory_mib = 3073),
                vec![Refusal::Memory {
                    wanted: 3073,
                    free: 3072,
                }],
            ),
            (
                "hugepages",
                huge,
                ROOM,
                want(),
                vec![Refusal::Hugepages {
                    wanted: 512,
                    free: 88,
                }],
            ),
            (
                "storage",
                capacity(),
                ROOM,
                first(|w| w.disk_gib = 91),
                vec![Refusal::Storage { wanted: 91, free: 90 }],
            ),
            (
                "sparse disks grow",
                capacity(),
                tight,
                first(|w| w.disk_gib = 12),
                vec![Refusal::DiskSpace { wanted: 12, free: 11 }],
            ),
            ("they fit", capacity(), tight, first(|w| w.disk_gib = 11), vec![]),
            (
                "gpu",
                capacity(),
                ROOM,
                first(|w| w.gpus = 2),
                vec![Refusal::Gpus { wanted: 2, free: 1 }],
            ),
            (
                "several at once",
                capacity(),
                ROOM,
                first(|w| (w.vcpus, w.gpus, w.ports) = (9, 2, vec![tcp(1), tcp(2), tcp(3), tcp(4)])),
                vec![
                    Refusal::Cpu { wanted: 9, free: 6 },
                    Refusal::Ports {
                        transport: "TCP",
                        wanted: 4,
                        free: 3,
                    },
                    Refusal::Gpus { wanted: 2, free: 1 },
                ],
            ),
        ] {
            let got = allocate(&capacity, space, std::slice::from_ref(&one), &want);
            assert_eq!(got.err().unwrap_or_default(), refusals, "{row}");
        }
    }

    #[test]
    fn no_more_storage_is_promised_than_the_file_system_can_hold() {
        let capacity = capacity(); // 100 GiB configured
        for (available, used, want) in [
            (200, 0, 100),
            (100, 0, 100),
            (60, 20, 80), // what our disks hold is promised already, not lost
            (60, 0, 60),
            (0, 30, 30),
            (0, 0, 0),
        ] {
            let space = Space {
                available_bytes: available * GIB,
                used_bytes: used * GIB,
            };
            assert_eq!(
                capacity.storage_gib_in(space),
                want,
                "{available} free, {used} ours"
            );
            // What is promised can be given: to one contract, beside those who have the rest.
            let taken = Allocation {
                slot: 4,
                vcpus: 1,
                memory_mib: 1,
                disk_gib: used,
                ports: Vec::new(),
                gpus: Vec::new(),
            };
            let want = Want {
                disk_gib: want - used.min(want),
                ..super::tests::want()
            };
            assert!(
                allocate(&capacity, space, &[taken], &want).is_ok(),
                "{available} {used}"
            );
        }
    }

    #[test]
    fn tcp_and_udp_share_numbers_and_a_port_asked_twice_is_leased_once() {
        let want = Want {
            ports: vec![
                tcp(22),
                PortRequest {
                    transport: Transport::Udp,
                    port: 51820,
                },
                tcp(22),
            ],
            ..want()
        };
        let got = allocate(&capacity(), ROOM, &[], &want).unwrap();
        assert_eq!(
            got.ports
                .iter()
                .map(|p| (p.transport, p.public_port, p.vm_port))
                .collect::<Vec<_>>(),
            [(Transport::Tcp, 20000, 22), (Transport::Udp, 20000, 51820)]
        );
    }

    proptest! {
        /// Whatever is taken and released in whatever order, nothing is given twice and nothing above capacity.
        #[test]
        fn nothing_is_ever_given_twice(ops in prop::collection::vec((any::<bool>(), 1u32..4, 1u64..2048, 0u64..40, 0u32..2, 0usize..3), 1..60)) {
            let capacity = capacity();
            let mut taken: Vec<Allocation> = Vec::new();
            for (release, vcpus, memory_mib, disk_gib, gpus, ports) in ops {
                if release && !taken.is_empty() {
                    taken.remove(vcpus as usize % taken.len());
                }
                let ports = (0..ports).map(|n| tcp(n as u16 + 1)).collect();
                if let Ok(got) = allocate(&capacity, ROOM, &taken, &Want { vcpus, memory_mib, disk_gib, gpus, ports }) {
                    taken.push(got);
                }
                let distinct = |mut all: Vec<String>| { let n = all.len(); all.sort(); all.dedup(); all.len() == n };
                prop_assert!(taken.iter().map(|a| a.vcpus).sum::<u32>() <= capacity.vcpus);
                prop_assert!(taken.iter().map(|a| a.memory_mib).sum::<u64>() <= capacity.memory_mib);
                prop_assert!(taken.iter().map(|a| a.disk_gib).sum::<u64>() <= capacity.storage_gib);
                prop_assert!(distinct(taken.iter().map(|a| a.slot.to_string()).collect()));
                prop_assert!(distinct(taken.iter().flat_map(|a| a.gpus.clone()).collect()));
                prop_assert!(distinct(taken.iter().flat_map(|a| &a.ports).map(|p| p.public_port.to_string()).collect()));
            }
        }
    }
}
