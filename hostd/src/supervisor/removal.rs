//! The effects of removal. Each may run when there is nothing to remove, and again after any crash.
//!
//! None of them runs without the `removal` mark in the journal: `decide` asks for them only then, and each checks again.

use std::time::Duration;

use super::actor::{Actor, StepError};
use super::spec;
use crate::journal::{Change, Removal, Step};
use crate::ports::Whose;

impl Actor {
    /// Refuses to destroy anything without the journalled mark.
    fn marked(&self) -> Result<&Removal, StepError> {
        let unmarked =
            || StepError::Failed("there is no removal mark in the journal; nothing is destroyed".into());
        self.record().removal.as_ref().ok_or_else(unmarked)
    }

    pub(super) async fn stop(&mut self) -> Result<Vec<Change>, StepError> {
        // A VM that was never confirmed holds nothing of the tenant's that could be saved.
        let graceful = match self.marked()? {
            Removal::Refused { .. } | Removal::StepFailed { .. } | Removal::VmGone { .. } => Duration::ZERO,
            Removal::Ended { .. } | Removal::Released | Removal::Operator { .. } => {
                self.ctx.deadlines.graceful_stop()
            }
        };
        if !self.record().started(Step::Launch) {
            return Ok(Vec::new());
        }
        let (spec, adapter) = self.vm()?;
        let process = self.record().process.clone();
        adapter.stop(&spec, process.as_ref(), graceful).await?;
        if let Err(error) = self.ctx.host.net.end_sessions(spec.nic.slot).await {
            tracing::warn!(contract = %self.id, %error, "connections to the VM may linger until they time out");
        }
        Ok(Vec::new())
    }

    pub(super) async fn wipe(&mut self) -> Result<Vec<Change>, StepError> {
        self.marked()?;
        self.ctx
            .host
            .storage
            .wipe(self.id)
            .await
            .map_err(|error| StepError::Failed(error.to_string()))?;
        let run_dir = self.ctx.facts.run_dir(self.id);
        match std::fs::remove_dir_all(&run_dir) {
            Ok(()) => Ok(Vec::new()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(StepError::Failed(format!(
                "cannot remove {}: {error}",
                run_dir.display()
            ))),
        }
    }

    pub(super) async fn release(&mut self) -> Result<Vec<Change>, StepError> {
        self.marked()?;
        let gpus = self
            .record()
            .allocation
            .as_ref()
            .map(|a| a.gpus.clone())
            .unwrap_or_default();
        for address in &gpus {
            let back = self.ctx.host.devices.take_back(address).await;
            back.map_err(|error| StepError::Failed(format!("GPU {address} can't be taken back: {error}")))?;
        }
        // `Network(false)` was journalled with this step's start.
        if self.record().started(Step::Network) {
            let tenant = spec::tenant(&self.record().contract);
            match self.ctx.net.sync(tenant).await {
                Ok(()) => {}
                // The VM and its network are gone. An ingress that is away has no route to them either, and before the
                // address goes to another VM the network must have been as desired again.
                Err(error) if error.whose == Whose::Ingress => {
                    tracing::warn!(contract = %self.id, %error, "released without the ingress");
                }
                Err(error) => return Err(StepError::Failed(error.to_string())),
            }
            self.ctx.names.changed(&self.record().contract);
        }
        Ok(vec![Change::Freed])
    }
}
