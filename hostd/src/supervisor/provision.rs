//! The effects of provisioning: for each step how to see that it is done already (after a crash), and how to do it.
//!
//! Undoing is `removal`'s: a step that failed or was cut short is never patched up, the whole contract is removed.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::time::Duration;

use ledger::api::{ContractState, EVIDENCE_MAX, SubmitEvidenceArgs};

use super::actor::{Actor, StepError};
use super::spec;
use crate::allocator::Refusal;
use crate::journal::{Change, JournalError, Step};
use crate::ports::{AgentError, EvidenceAsk, StorageError};
use crate::vmm::{Observed, VmSpec, VmmError};

impl From<StorageError> for StepError {
    fn from(error: StorageError) -> Self {
        if error.is_transient() {
            Self::Transient(error.to_string())
        } else {
            Self::Failed(error.to_string())
        }
    }
}

impl From<VmmError> for StepError {
    fn from(error: VmmError) -> Self {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        if error.is_transient() {
            Self::Transient(text)
        } else {
            Self::Failed(text)
        }
    }
}

impl Actor {
    /// How long a step may take.
    pub(super) fn allowed(&self, step: Step) -> Duration {
        let deadlines = &self.ctx.deadlines;
        let memory = self.record().contract.args.request.memory_mib;
        match step {
            Step::Reserve => Duration::from_secs(30),
            Step::Accept | Step::Network | Step::Gpu | Step::Confirm | Step::Release => {
                Duration::from_secs(60)
            }
            Step::Disk => deadlines.disk(),
            Step::Launch => deadlines.launch(memory),
            Step::Attest => deadlines.boot(memory),
            // After the power button the adapter pulls the plug and cleans up: memory must be given back.
            Step::Stop => deadlines.graceful_stop() + deadlines.launch(memory),
            Step::Wipe => deadlines.disk(),
        }
    }

    /// Does a step's work. `fresh`: its start has just been written for the first time, so nothing of it is there.
    pub(super) async fn effect(&mut self, step: Step, fresh: bool) -> Result<Vec<Change>, StepError> {
        match step {
            Step::Reserve => self.reserve().await,
            Step::Accept => self.accept(fresh).await,
            Step::Network => self.network().await,
            Step::Disk => self.disk().await,
            Step::Gpu => self.gpu().await,
            Step::Launch => self.launch(fresh).await,
            Step::Attest => self.attest().await,
            Step::Confirm => self.confirm(fresh).await,
            Step::Stop => self.stop().await,
            Step::Wipe => self.wipe().await,
            Step::Release => self.release().await,
        }
    }

    async fn reserve(&mut self) -> Result<Vec<Change>, StepError> {
        if self.record().allocation.is_some() {
            return Ok(Vec::new());
        }
        let ctx = self.ctx.clone();
        let contract = &self.record().contract;
        let words = |refusals: Vec<Refusal>| refusals.iter().map(ToString::to_string).collect();
        let mut refusals = Vec::new();
        if ctx.journal.draining().await? && contract.state == ContractState::Requested {
            refusals.push(Refusal::Draining);
        }
        refusals.extend(ctx.adapter_for(contract.args.request.kind).err());
        let want = match ctx.facts.want(contract) {
            Ok(want) if refusals.is_empty() => want,
            Ok(_) => return Err(StepError::Refused(words(refusals))),
            Err(more) => {
                refusals.extend(more);
                return Err(StepError::Refused(words(refusals)));
            }
        };
        let space = ctx.host.storage.space().await?;
        match ctx
            .journal
            .reserve(self.id, want, ctx.capacity.clone(), space, Vec::new())
            .await
        {
            Ok(_) => Ok(Vec::new()),
            Err(JournalError::NoCapacity(refusals)) => Err(StepError::Refused(words(refusals))),
            Err(error) => Err(error.into()),
        }
    }

    async fn accept(&mut self, fresh: bool) -> Result<Vec<Change>, StepError> {
        let ledger = self.ctx.host.ledger.clone();
        let known = if fresh {
            self.desired()
        } else {
            self.state_now().await?
        };
        if matches!(known, super::Desired::Requested) {
            ledger.accept(self.id).await?;
        }
        Ok(Vec::new())
    }

    /// What the ledger says right now.
    async fn state_now(&self) -> Result<super::Desired, StepError> {
        let contract = self.ctx.host.ledger.contract(self.id).await?;
        match contract.state {
            ContractState::Ended(_) => Err(StepError::Moved),
            state => Ok(super::Desired::of(state, contract.released)),
        }
    }

    async fn network(&mut self) -> Result<Vec<Change>, StepError> {
        let tenant = spec::tenant(&self.record().contract);
        self.ctx
            .net
            .sync(tenant)
            .await
            .map_err(|error| StepError::Transient(error.to_string()))?;
        self.ctx.names.changed(&self.record().contract);
        Ok(Vec::new())
    }

    async fn disk(&mut self) -> Result<Vec<Change>, StepError> {
        let ctx = self.ctx.clone();
        let record = self.record().clone();
        let args = &record.contract.args;
        let allocation = record.allocation.as_ref().ok_or_else(missing)?;
        let adapter = ctx
            .adapter_for(args.request.kind)
            .map_err(|refusal| StepError::Failed(refusal.to_string()))?;
        let uid = ctx.facts.disk_uid(allocation);
        let nic = ctx.facts.nic(allocation.slot, ctx.host.net.ip4(allocation.slot));
        let storage = &ctx.host.storage;
        let image = self.interruptible(storage.ensure_image(&args.image)).await??;
        let disk = storage
            .create_disk(self.id, allocation.disk_gib, args.request.at_rest, uid)
            .await?;
        let seed = storage
            .write_seed(self.id, &ctx.facts.seed(&record.contract, nic.clone()), uid)
            .await?;
        let spec = ctx
            .facts
            .vm_spec(&record.contract, allocation, image, disk, seed, nic);
        Ok(vec![Change::Spec(Box::new(spec), adapter.name().to_owned())])
    }

    async fn gpu(&mut self) -> Result<Vec<Change>, StepError> {
        let gpus = self
            .record()
            .allocation
            .as_ref()
            .map(|a| a.gpus.clone())
            .unwrap_or_default();
        for address in &gpus {
            let ready = self.ctx.host.devices.hand_over(address).await;
            ready
                .map_err(|error| StepError::Failed(format!("GPU {address} can't be handed over: {error}")))?;
        }
        Ok(Vec::new())
    }

    async fn launch(&mut self, fresh: bool) -> Result<Vec<Change>, StepError> {
        let ctx = self.ctx.clone();
        let (spec, adapter) = self.vm()?;
        if !fresh {
            match adapter.observe(&spec, None).await {
                Observed::Running(process) => return Ok(vec![Change::Process(process)]),
                Observed::Absent => {}
                Observed::Partial(what) => {
                    tracing::info!(contract = %self.id, what, "half a VM is there; it is taken back first");
                    adapter.stop(&spec, None, Duration::ZERO).await?;
                }
            }
        }
        // Done before a restart doesn't mean that it is still there: the machine may have rebooted.
        for step in [Step::Network, Step::Disk, Step::Gpu] {
            if !self.here.contains(&step) {
                match step {
                    Step::Network => self.network().await?,
                    Step::Disk => self.disk().await?,
                    _ => self.gpu().await?,
                };
                self.here.insert(step);
            }
        }
        let permit = self.interruptible(ctx.launches.acquire()).await?;
        let _permit = permit.map_err(|_| StepError::Transient("hostd is stopping".into()))?;
        make_run_dir(&spec).map_err(|error| {
            StepError::Failed(format!(
                "cannot make the VM's folder {}: {error}",
                spec.run_dir.display()
            ))
        })?;
        // Not interruptible: half a launch must end by itself before anybody takes it back.
        let process = adapter.launch(&spec, &*ctx.host.taps).await?;
        Ok(vec![Change::Process(process)])
    }

    pub(super) fn vm(&self) -> Result<(VmSpec, std::sync::Arc<dyn crate::vmm::Vmm>), StepError> {
        let record = self.record();
        let spec = record.spec.clone().ok_or_else(missing)?;
        let name = record.adapter.as_deref().ok_or_else(missing)?;
        let adapter = self.ctx.adapter_named(name).ok_or_else(|| {
            StepError::Failed(format!(
                "the VM was made by adapter {name}, which `vmm.prefer` doesn't have any more"
            ))
        })?;
        Ok((spec, adapter))
    }

    async fn attest(&mut self) -> Result<Vec<Change>, StepError> {
        let ctx = self.ctx.clone();
        let (spec, adapter) = self.vm()?;
        let nonce = ctx.host.ledger.contract_nonce(self.id).await?;
        let ask = EvidenceAsk {
            ledger: ctx.facts.ledger.clone(),
            contract: self.id,
            nonce,
        };
        let channel = adapter.agent(&spec);
        let id = self.id;
        let gpus = self.record().allocation.as_ref().map_or(0, |all| all.gpus.len());
        let within = ctx.timing.agent_ask + GPU_TIME * u32::try_from(gpus).unwrap_or(u32::MAX);
        let asking = async {
            loop {
                match ctx.host.agent.evidence(&channel, &ask, within).await {
                    Ok(evidence) => return evidence,
                    Err(AgentError::Silent(why)) => ctx.show(id, |live| live.last_error = Some(why)),
                    Err(error) => {
                        tracing::warn!(contract = %id, %error, "the guest agent is asked again");
                        ctx.show(id, |live| live.last_error = Some(error.to_string()));
                    }
                }
                tokio::time::sleep(ctx.timing.agent_poll).await;
            }
        };
        let evidence = self.interruptible(asking).await?;
        let evidence = self.interruptible(ctx.endorsements.complete(evidence)).await?;
        let contract = self.record().contract.clone();
        let attaching = ctx.host_evidence.attach(&contract, &ask, evidence);
        let evidence = self.interruptible(attaching).await?;
        if evidence.len() > EVIDENCE_MAX {
            let bytes = evidence.len();
            return Err(StepError::Failed(format!(
                "the guest's evidence has {bytes} bytes; at most {EVIDENCE_MAX}"
            )));
        }
        let record = self.record();
        let allocation = record.allocation.as_ref().ok_or_else(missing)?;
        Ok(vec![Change::Evidence(
            evidence,
            ctx.facts.endpoint(&record.contract, allocation),
        )])
    }

    async fn confirm(&mut self, fresh: bool) -> Result<Vec<Change>, StepError> {
        if !fresh && self.state_now().await? == super::Desired::Active {
            return Ok(Vec::new());
        }
        let record = self.record();
        let args = SubmitEvidenceArgs {
            contract: self.id,
            evidence: record.evidence.clone().ok_or_else(missing)?,
            endpoint: record.endpoint.clone().ok_or_else(missing)?,
        };
        let confirmation = self.ctx.host.ledger.submit_evidence(&args).await?;
        tracing::info!(contract = %self.id, grade = ?confirmation.grade, trust = confirmation.trust, "confirmed");
        Ok(Vec::new())
    }
}

/// What a GPU may need for its evidence, on top of what the agent may need for the rest.
const GPU_TIME: Duration = Duration::from_secs(5);

/// A step that ran before has written this; only a bug or a journal edited by hand lacks it.
fn missing() -> StepError {
    StepError::Failed("the journal lacks what an earlier step of this contract should have written".into())
}

/// The VM's own folder, 0700 and owned by its uid.
fn make_run_dir(spec: &VmSpec) -> std::io::Result<()> {
    if let Some(parent) = spec.run_dir.parent() {
        fs::DirBuilder::new().recursive(true).create(parent)?;
        // Whatever the umask: every VMM's user goes through here.
        fs::set_permissions(parent, fs::Permissions::from_mode(0o711))?;
    }
    match fs::DirBuilder::new().mode(0o700).create(&spec.run_dir) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    if spec.uid != 0 {
        chown(&spec.run_dir, Some(spec.uid), Some(spec.uid))
    } else {
        Ok(())
    }
}
