//! From a contract to what the machine needs for it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ledger::api::{AtRest, Contract, ContractId, Endpoint, Quota, Transport, USER_DATA_MAX, VmKind};
use ledger::name_proof;
use netns::{Desired, DnsName, Lease, TenantId, VmNet};

use crate::allocator::{Allocation, Refusal, Want};
use crate::journal::Record;
use crate::ports::{ImageFiles, SeedSpec};
use crate::vmm::{Access, Boot, Disk, Hugepages, Nic, VmSpec};

/// What all contracts of this host share.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// Canister id bytes of the ledger.
    pub ledger: Vec<u8>,
    /// The provider's domain: `<short id>.<domain>` is each contract's derived name.
    pub domain: String,
    /// Public address.
    pub address: Ipv4Addr,
    /// `<run_dir>/vm`: one folder for each VM below it.
    pub vm_dir: PathBuf,
    /// VMMs run as `uid_base + slot`; 0: root.
    pub uid_base: u32,
    /// Back guests with hugepages.
    pub hugepages: bool,
    /// GiB for unlimited storage.
    pub default_disk_gib: u64,
    /// Most GiB of one VM.
    pub disk_gib_max: Option<u64>,
    /// Most Mbit/s of one VM.
    pub bandwidth_mbps_max: Option<u64>,
    /// Why disks can't be encrypted here, if they can't.
    pub no_encryption: Option<String>,
    /// Name servers for VMs.
    pub nameservers: Vec<Ipv4Addr>,
    /// Whether names can be routed (there is an HAProxy).
    pub routes: bool,
}

/// Public names of a VM kind.
pub fn kind_name(kind: VmKind) -> &'static str {
    match kind {
        VmKind::Plain => "plain",
        VmKind::SevSnp => "sev-snp",
        VmKind::Tdx => "tdx",
    }
}

/// The tenant that a contract belongs to.
pub fn tenant(contract: &Contract) -> TenantId {
    TenantId::of(contract.developer.as_slice())
}

impl HostFacts {
    /// The name that the contract always has.
    pub fn derived_name(&self, id: ContractId) -> String {
        format!("{}.{}", id.short(), self.domain)
    }

    /// Folder of a VM. Short: sockets in it may have paths of 107 bytes at most.
    pub fn run_dir(&self, id: ContractId) -> PathBuf {
        self.vm_dir.join(hex::encode(&id.0[..8]))
    }

    /// What the contract needs, or every reason why this host can't give it. Capacity is the allocator's.
    pub fn want(&self, contract: &Contract) -> Result<Want, Vec<Refusal>> {
        let request = &contract.args.request;
        let mut refusals = Vec::new();
        let mut refuse = |field, why: String| refusals.push(Refusal::Field { field, why });
        let disk_gib = match request.storage_gib {
            Quota::Limited(gib) => gib,
            Quota::Unlimited => self.default_disk_gib,
        };
        if disk_gib == 0 {
            refuse("storage_gib", "must be at least 1".into());
        }
        if self.disk_gib_max.is_some_and(|max| disk_gib > max) {
            refuse(
                "storage_gib",
                format!(
                    "{disk_gib} GiB asked, one VM gets {} at most",
                    self.disk_gib_max.unwrap_or(0)
                ),
            );
        }
        if request.vcpus == 0 {
            refuse("vcpus", "must be at least 1".into());
        }
        if request.memory_mib < 64 {
            refuse("memory_mib", "must be at least 64".into());
        }
        if contract.args.user_data.len() > USER_DATA_MAX {
            refuse(
                "user_data",
                format!("{} bytes; at most {USER_DATA_MAX}", contract.args.user_data.len()),
            );
        }
        if contract.args.ports.len() > 16 {
            refuse(
                "ports",
                format!("{} ports; at most 16", contract.args.ports.len()),
            );
        }
        if contract.args.ports.iter().any(|port| port.port == 0) {
            refuse("ports", "port 0 doesn't exist".into());
        }
        if let (AtRest::Encrypted, Some(why)) = (request.at_rest, &self.no_encryption) {
            refuse("at_rest", format!("disks can't be encrypted here: {why}"));
        }
        if let Some(name) = &contract.args.tls_name {
            match name.parse::<DnsName>() {
                Err(error) => refuse("tls_name", error.to_string()),
                Ok(name) if self.is_ours(name.as_str()) => refuse(
                    "tls_name",
                    format!(
                        "names under {} are given by the host: {}",
                        self.domain,
                        self.derived_name(contract.id)
                    ),
                ),
                Ok(name) if name.as_str().len() > name_proof::NAME_BYTES_MAX => refuse(
                    "tls_name",
                    format!(
                        "at most {} bytes: its proof stands at {}",
                        name_proof::NAME_BYTES_MAX,
                        name_proof::record_name("<name>")
                    ),
                ),
                Ok(_) => {}
            }
        }
        if refusals.is_empty() {
            Ok(Want {
                vcpus: request.vcpus,
                memory_mib: request.memory_mib,
                disk_gib,
                gpus: request.gpus,
                ports: contract.args.ports.clone(),
            })
        } else {
            Err(refusals)
        }
    }

    fn is_ours(&self, name: &str) -> bool {
        let domain = self.domain.to_ascii_lowercase();
        name == domain || name.strip_suffix(&domain).is_some_and(|rest| rest.ends_with('.'))
    }

    fn uid(&self, slot: u16) -> u32 {
        if self.uid_base == 0 {
            0
        } else {
            self.uid_base.saturating_add(slot.into())
        }
    }

    /// The uid that owns the disks of a VM.
    pub fn disk_uid(&self, allocation: &Allocation) -> u32 {
        self.uid(allocation.slot)
    }

    /// The VM's interface.
    pub fn nic(&self, slot: u16, ip4: Ipv4Addr) -> Nic {
        Nic {
            slot,
            mac: netns::mac(slot).to_string(),
            ip4,
        }
    }

    /// What the seed disk says.
    pub fn seed(&self, contract: &Contract, nic: Nic) -> SeedSpec {
        SeedSpec {
            salt: contract.salt,
            ssh_public_keys: contract.args.ssh_public_keys.clone(),
            user_data: contract.args.user_data.clone(),
            hostname: format!("vm-{}", contract.id.short()),
            // Also what isn't proved yet: a certificate that the VM signs by itself proves no name, its key counts.
            tls_names: self
                .names(contract)
                .into_iter()
                .chain(self.own_name(contract).map(|name| name.to_string()))
                .collect(),
            nic,
            nameservers: self.nameservers.clone(),
        }
    }

    /// What is launched.
    pub fn vm_spec(
        &self,
        contract: &Contract,
        allocation: &Allocation,
        image: ImageFiles,
        disk: PathBuf,
        seed: PathBuf,
        nic: Nic,
    ) -> VmSpec {
        let confidential = contract.args.request.kind != VmKind::Plain;
        VmSpec {
            id: contract.id,
            kind: contract.args.request.kind,
            vcpus: allocation.vcpus,
            memory_mib: allocation.memory_mib,
            hugepages: if self.hugepages {
                Hugepages::Size2M
            } else {
                Hugepages::No
            },
            boot: Boot {
                firmware: image.firmware.filter(|_| confidential),
                kernel: image.kernel,
                initrd: image.initrd,
                cmdline: image.cmdline,
            },
            disks: vec![
                Disk {
                    path: disk,
                    access: Access::ReadWrite,
                    serial: "data".into(),
                },
                Disk {
                    path: seed,
                    access: Access::ReadOnly,
                    serial: "cidata".into(),
                },
            ],
            nic,
            host_data: confidential.then_some(contract.id.0),
            vfio: allocation.gpus.clone(),
            run_dir: self.run_dir(contract.id),
            uid: self.uid(allocation.slot),
        }
    }

    /// The name that the tenant brings, if names are routed here. It leads to the VM only while it is proved
    /// ([`crate::names`]).
    pub fn own_name(&self, contract: &Contract) -> Option<DnsName> {
        let name: DnsName = contract.args.tls_name.as_ref()?.parse().ok()?;
        (self.routes && !self.is_ours(name.as_str())).then_some(name)
    }

    /// Names that always lead to the contract's VM: the derived one.
    pub fn names(&self, contract: &Contract) -> Vec<String> {
        if self.routes {
            vec![self.derived_name(contract.id)]
        } else {
            Vec::new()
        }
    }

    /// How the developer reaches the VM.
    pub fn endpoint(&self, contract: &Contract, allocation: &Allocation) -> Endpoint {
        Endpoint {
            address: self.address.to_string(),
            names: self.names(contract),
            ports: allocation.ports.clone(),
        }
    }

    /// The whole network of this host, out of all records: those whose network shall exist.
    pub fn network<'r>(&self, records: impl IntoIterator<Item = &'r Record>) -> Desired {
        let (mut vms, mut leases, mut routes) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        for record in records {
            let Some(allocation) = record.allocation.as_ref().filter(|_| record.network) else {
                continue;
            };
            let slot = allocation.slot;
            let asked = match record.contract.args.request.bandwidth_mbps {
                Quota::Limited(mbps) => Some(mbps),
                Quota::Unlimited => None,
            };
            let mbps = [asked, self.bandwidth_mbps_max].into_iter().flatten().min();
            let bandwidth_mbps = mbps.map(|mbps| u32::try_from(mbps.clamp(1, 400_000)).unwrap_or(400_000));
            vms.insert(
                slot,
                VmNet {
                    slot,
                    tenant: tenant(&record.contract),
                    bandwidth_mbps,
                },
            );
            for port in &allocation.ports {
                let transport = match port.transport {
                    Transport::Tcp => netns::Transport::Tcp,
                    Transport::Udp => netns::Transport::Udp,
                };
                leases.insert(Lease {
                    transport,
                    public_port: port.public_port,
                    slot,
                    vm_port: port.vm_port,
                });
            }
            let names = self.names(&record.contract).into_iter();
            routes.extend(names.filter_map(|name| Some((name.parse::<DnsName>().ok()?, slot))));
            let own = self.own_name(&record.contract);
            if let Some(name) = own.filter(|name| record.own_name.as_deref() == Some(name.as_str())) {
                routes.entry(name).or_insert(slot); // the prover gives a name to one contract only
            }
        }
        Desired { vms, leases, routes }
    }
}
