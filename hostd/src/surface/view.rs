//! From the journal and the live actors to what the API says.

use std::collections::{BTreeMap, BTreeSet};

use ledger::api::{ContractId, LeasedPort};
use sha2::{Digest as _, Sha256};

use super::App;
use super::model::{
    CapacityStatus, ContractCounts, ContractLine, EvidenceFacts, EvidenceVerdict, EvidenceView, Explanation,
    LedgerStatus, Share, Status, Text, VmInfo, VmmStatus,
};
use crate::journal::{JournalError, Record, Step};
use crate::names::OwnName;
use crate::supervisor::Live;
use crate::supervisor::decide::Desired;
use crate::supervisor::spec::kind_name;

fn ledger_word(desired: Desired) -> String {
    match desired {
        Desired::Unheard => "unheard".into(),
        Desired::Unknown => "unknown".into(),
        Desired::Requested => "requested".into(),
        Desired::Accepted => "accepted".into(),
        Desired::Active => "active".into(),
        Desired::Ended(reason) => format!("ended ({})", super::kebab(&reason)),
        Desired::Released => "released".into(),
    }
}

fn port(lease: &LeasedPort) -> String {
    let transport = super::kebab(&lease.transport);
    format!("{transport} {}→{}", lease.public_port, lease.vm_port)
}

fn phase(record: &Record) -> &'static str {
    if record.finished_ms.is_some() {
        "finished"
    } else if record.removal.is_some() {
        "removing"
    } else if record.next_of(&Step::PROVISIONING).is_none() {
        "running"
    } else {
        "provisioning"
    }
}

impl App {
    /// What the contract's own name is at; `None` if it asked for none, or is over.
    fn own_name(&self, record: &Record) -> Option<OwnName> {
        if record.removal.is_some() || record.finished_ms.is_some() {
            return None;
        }
        let why = if self.ctx.facts.routes {
            self.ctx.names.lack(record.id)
        } else {
            Some("this host routes no names".to_owned())
        };
        OwnName::new(&record.contract, record.network && record.own_name.is_some(), why)
    }

    /// The grade that the ledger shows.
    fn grade(&self, id: ContractId) -> Option<String> {
        let sight = self.handle.sight.borrow();
        let contract = sight
            .contracts
            .as_ref()?
            .iter()
            .find(|contract| contract.id == id)?;
        Some(super::kebab(&contract.grade))
    }

    fn line(&self, record: &Record, live: Option<&Live>) -> ContractLine {
        let request = &record.contract.args.request;
        let held = record.allocation.as_ref();
        ContractLine {
            id: record.id.to_string(),
            phase: phase(record).into(),
            ledger: live.map_or_else(|| "released".into(), |live| ledger_word(live.desired)),
            activity: live.map_or_else(|| "none".into(), |live| live.activity.clone()),
            kind: kind_name(request.kind).into(),
            vcpus: request.vcpus,
            memory_mib: request.memory_mib,
            slot: held.map(|a| a.slot),
            names: self
                .ctx
                .facts
                .names(&record.contract)
                .into_iter()
                .chain(record.own_name.clone().filter(|_| record.network))
                .collect(),
            own_name: self.own_name(record),
            grade: self.grade(record.id),
            ports: held
                .map(|a| a.ports.iter().map(port).collect())
                .unwrap_or_default(),
            gpus: held.map(|a| a.gpus.clone()).unwrap_or_default(),
            degraded: live.and_then(|live| live.degraded.clone()),
            last_error: live.and_then(|live| live.last_error.clone()),
            opened_ms: record.opened_ms,
        }
    }

    pub(super) async fn lines(&self, all: bool) -> Result<Vec<ContractLine>, JournalError> {
        let live = self.ctx.live();
        let records = if all {
            self.ctx.journal.all_records().await?
        } else {
            self.ctx.journal.open_records().await?
        };
        let mut lines: Vec<_> = records
            .iter()
            .map(|record| self.line(record, live.get(&record.id)))
            .collect();
        // Contracts that the ledger lays at our door and that the journal has never seen.
        let known: BTreeSet<ContractId> = records.iter().map(|record| record.id).collect();
        for (id, live) in live.iter().filter(|(id, _)| !known.contains(id)) {
            lines.push(ContractLine {
                id: id.to_string(),
                phase: "unknown".into(),
                ledger: ledger_word(live.desired),
                activity: live.activity.clone(),
                kind: String::new(),
                vcpus: 0,
                memory_mib: 0,
                slot: None,
                grade: self.grade(*id),
                ports: Vec::new(),
                gpus: Vec::new(),
                names: Vec::new(),
                own_name: None,
                degraded: live.degraded.clone(),
                last_error: live.last_error.clone(),
                opened_ms: 0,
            });
        }
        Ok(lines)
    }

    /// The host at a glance.
    pub async fn status(&self) -> Result<Status, JournalError> {
        let journal = &self.ctx.journal;
        let lines = self.lines(false).await?;
        let sight = self.handle.sight.borrow().clone();
        let registration = self.registration.borrow().clone();
        let mut not_ready = Vec::new();
        match (&sight.contracts, &sight.trouble) {
            (None, _) => not_ready.push("the ledger hasn't answered yet".to_owned()),
            (Some(_), Some(trouble)) => not_ready.push(format!("the ledger doesn't answer: {trouble}")),
            (Some(_), None) => {}
        }
        if registration.offering.is_none() {
            let why = registration.trouble.as_deref().unwrap_or("not tried yet");
            not_ready.push(format!("the offering isn't published: {why}"));
        }
        let draining = journal.draining().await?;
        let maintenance = journal.maintenance().await?;
        if draining {
            not_ready.push(match &maintenance {
                Some(maintenance) => format!("maintenance: {}", maintenance.reason),
                None => "an operator drains the host".into(),
            });
        }
        if let Some(trouble) = self.ctx.net.trouble.borrow().as_ref() {
            not_ready.push(trouble.to_string());
        }
        let kinds_served = self
            .ctx
            .adapters()
            .iter()
            .flat_map(|(_, support)| &support.kinds)
            .any(|(_, ok)| ok.is_ok());
        if !kinds_served {
            not_ready.push("no VMM adapter can host any kind of VM here; see `hostd doctor`".into());
        }
        let count = |phase: &str| lines.iter().filter(|line| line.phase == phase).count() as u64;
        Ok(Status {
            name: self.config.host.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            started_ms: self.started_ms,
            ready: not_ready.is_empty(),
            not_ready,
            draining,
            maintenance,
            // Without it the rest is worth showing all the same.
            update: self.update.status().await.unwrap_or_default(),
            ledger: LedgerStatus {
                url: self.config.ledger.url.clone(),
                canister_id: self.config.ledger.canister_id.clone(),
                host: self.host_principal.clone(),
                height: sight.height,
                heard_ms_ago: sight
                    .heard
                    .map(|at| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX)),
                trouble: sight.trouble,
                offering: registration.offering,
                registration_trouble: registration.trouble,
            },
            capacity: self.capacity().await?,
            contracts: ContractCounts {
                provisioning: count("provisioning"),
                running: count("running"),
                removing: count("removing"),
                degraded: lines.iter().filter(|line| line.degraded.is_some()).count() as u64,
                names_not_routed: lines
                    .iter()
                    .filter(|line| line.own_name.as_ref().is_some_and(|name| !name.routed))
                    .count() as u64,
            },
            vmms: self.vmms(),
            quarantine: journal.quarantine().await?,
            test_platform: self.config.host.test_platform,
            host_trust: self.ctx.host_evidence.trust(),
        })
    }

    async fn capacity(&self) -> Result<CapacityStatus, JournalError> {
        let all = &self.ctx.capacity;
        let taken = self.ctx.journal.allocations().await?;
        let sum = |of: fn(&crate::allocator::Allocation) -> u64| taken.iter().map(|(_, a)| of(a)).sum();
        let share = |total: u64, used: u64| Share { total, used };
        // A storage that can't be looked at shows as trouble elsewhere; here stands what was configured.
        let storage_gib = self.ctx.storage_gib().await.unwrap_or(all.storage_gib);
        Ok(CapacityStatus {
            vcpus: share(all.vcpus.into(), sum(|a| a.vcpus.into())),
            memory_mib: share(all.memory_mib, sum(|a| a.memory_mib)),
            storage_gib: share(storage_gib, sum(|a| a.disk_gib)),
            gpus: share(all.gpus.len() as u64, sum(|a| a.gpus.len() as u64)),
            ports: share(all.lease_ports.len() as u64, sum(|a| a.ports.len() as u64)),
        })
    }

    fn vmms(&self) -> Vec<VmmStatus> {
        let adapters = self.ctx.adapters().into_iter();
        adapters
            .map(|(vmm, support)| VmmStatus {
                name: vmm.name().into(),
                version: support.version.clone(),
                kinds: support
                    .kinds
                    .iter()
                    .map(|(kind, ok)| (kind_name(*kind).into(), ok.clone().err().unwrap_or_default()))
                    .collect(),
            })
            .collect()
    }

    /// Everything about one contract. What could be secret is only counted.
    pub async fn explain(&self, record: &Record) -> Result<Explanation, JournalError> {
        let live = self.ctx.live();
        let args = &record.contract.args;
        let request = serde_json::json!({
            "request": args.request,
            "offering": args.offering,
            "image": args.image,
            "ssh_public_keys": args.ssh_public_keys.len(),
            "user_data_bytes": args.user_data.len(),
            "tls_name": args.tls_name,
            "ports": args.ports,
            "allowed_measurements": args.allowed_measurements,
            "min_tcb": args.min_tcb,
            "period_s": record.contract.period_s,
            "price_per_hour": record.contract.price_per_hour,
        });
        let mut configs = Vec::new();
        if let (Some(spec), Some(adapter)) = (&record.spec, record.adapter.as_deref())
            && let Some(vmm) = self.ctx.adapter_named(adapter)
        {
            configs.push(Text {
                name: adapter.to_owned(),
                text: vmm.render(spec),
            });
        }
        if record.network {
            let desired = self.ctx.facts.network([record]);
            let rendered = self.ctx.host.net.render(&desired);
            configs.extend(rendered.into_iter().map(|(name, text)| Text { name, text }));
        }
        Ok(Explanation {
            line: self.line(record, live.get(&record.id)),
            developer: record.contract.developer.to_text(),
            request,
            allocation: record.allocation.clone(),
            steps: record.steps.clone(),
            removal: record.removal.clone(),
            process: record.process.clone(),
            alive: record
                .process
                .as_ref()
                .map(|process| self.ctx.host.processes.is_alive(process)),
            endpoint: record.endpoint.clone(),
            configs,
            evidence: record.evidence.as_ref().map(|evidence| EvidenceFacts {
                bytes: evidence.len() as u64,
                sha256: hex::encode(Sha256::digest(evidence)),
            }),
        })
    }

    /// What the ledger found in a contract's evidence.
    pub async fn evidence(&self, record: &Record) -> EvidenceView {
        let refusals = {
            let sight = self.handle.sight.borrow();
            let listed = sight
                .contracts
                .as_ref()
                .and_then(|list| list.iter().find(|c| c.id == record.id));
            listed
                .map(|contract| contract.refusals.clone())
                .unwrap_or_default()
        };
        let (verdict, why) = match self.ctx.host.ledger.evidence(record.id).await {
            Ok(found) => {
                let text = found.confirmation.result;
                let verdict = EvidenceVerdict {
                    grade: super::kebab(&found.confirmation.grade),
                    trust: found.confirmation.trust,
                    at_ms: i64::try_from(found.at / 1_000_000).unwrap_or(i64::MAX),
                    result: serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text)),
                };
                (Some(verdict), None)
            }
            Err(error) => (None, Some(error.to_string())),
        };
        EvidenceView {
            verdict,
            why,
            refusals,
        }
    }

    /// A VM with its counters.
    pub async fn vm(&self, record: &Record) -> VmInfo {
        let live = self.ctx.live();
        let mut info = VmInfo {
            line: self.line(record, live.get(&record.id)),
            adapter: record.adapter.clone(),
            pid: record.process.as_ref().map(|process| process.pid),
            alive: record
                .process
                .as_ref()
                .is_some_and(|process| self.ctx.host.processes.is_alive(process)),
            counters: None,
            traffic: None,
            trouble: Vec::new(),
        };
        let adapter = record
            .adapter
            .as_deref()
            .and_then(|name| self.ctx.adapter_named(name));
        if let (Some(vmm), Some(spec), Some(process), true) =
            (adapter, &record.spec, &record.process, info.alive)
        {
            match vmm.counters(spec, process).await {
                Ok(counters) => info.counters = Some(counters),
                Err(error) => info.trouble.push(crate::wiring::chain(&error)),
            }
        }
        if let Some(allocation) = record.allocation.as_ref().filter(|_| record.network) {
            match self.ctx.host.net.counters(allocation.slot).await {
                Ok(traffic) => info.traffic = Some(traffic),
                Err(error) => info.trouble.push(error.to_string()),
            }
        }
        info
    }

    /// The contract whose id begins so; or why there isn't exactly one.
    pub async fn find(&self, prefix: &str) -> Result<Record, super::ApiError> {
        let hexadecimal = (4..=64).contains(&prefix.len()) && prefix.bytes().all(|b| b.is_ascii_hexdigit());
        if !hexadecimal {
            return Err(super::ApiError::bad(
                "give at least 4 hexadecimal digits of the contract's id",
            ));
        }
        let prefix = prefix.to_ascii_lowercase();
        let mut found: BTreeMap<String, Record> = BTreeMap::new();
        for record in self.ctx.journal.all_records().await? {
            let id = record.id.to_string();
            if id.starts_with(&prefix) {
                found.insert(id, record);
            }
        }
        if found.len() > 1 {
            let ids: Vec<_> = found.keys().map(|id| id[..16].to_owned()).collect();
            return Err(super::ApiError::bad(&format!(
                "{prefix} begins several ids: {}",
                ids.join(", ")
            )));
        }
        let missing = || super::ApiError::missing(&format!("no contract here begins with {prefix}"));
        found.into_values().next().ok_or_else(missing)
    }
}
