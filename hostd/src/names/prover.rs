//! The task that looks names up.
//!
//! It alone writes `own_name` into the journal, so two contracts can't get the same name. It sleeps until a look is due or
//! an actor says that a contract with a name came or went, and reads the journal only then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use candid::Principal;
use ledger::api::ContractId;
use ledger::name_proof;
use netns::{DnsName, TenantId};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::proof::{Answer, Pace, Proof, Verdict};
use crate::journal::{Change, JournalError};
use crate::ports::DnsPort;
use crate::supervisor::{Ctx, spec};

/// Look-ups at the same time.
const LOOKUPS: usize = 8;

/// One look-up, whatever the resolver thinks.
const ANSWER: Duration = Duration::from_secs(20);

/// A name that is looked after.
struct Watched {
    name: DnsName,
    developer: Principal,
    tenant: TenantId,
    proof: Proof,
    /// The next look; `None`: one is under way.
    due: Option<Instant>,
}

struct Prover {
    ctx: Arc<Ctx>,
    dns: Arc<dyn DnsPort>,
    pace: Pace,
    watched: BTreeMap<ContractId, Watched>,
    lookups: JoinSet<(ContractId, Answer)>,
}

/// Runs until the journal is gone.
pub async fn prove(ctx: Arc<Ctx>, dns: Arc<dyn DnsPort>, pace: Pace) {
    let mut prover = Prover {
        ctx,
        dns,
        pace,
        watched: BTreeMap::new(),
        lookups: JoinSet::new(),
    };
    let mut stale = true;
    loop {
        if stale {
            match prover.refresh().await {
                Ok(()) => stale = false,
                Err(JournalError::Gone) => return,
                Err(error) => tracing::error!(%error, "names of tenants can't be read from the journal"),
            }
        }
        let next = prover.start_lookups();
        let due = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = prover.ctx.names.changed.notified() => stale = true,
            () = due => {}
            Some(done) = prover.lookups.join_next() => {
                let Ok((id, answer)) = done else {
                    // A look-up panicked: a bug of its own. Whichever it was, it comes again.
                    prover.again();
                    continue;
                };
                match prover.take(id, &answer).await {
                    Ok(()) => {}
                    Err(JournalError::Gone) => return,
                    Err(error) => tracing::error!(contract = %id, %error, "what DNS says can't be written down"),
                }
            }
        }
    }
}

impl Prover {
    /// Watches exactly the names of contracts whose network is here and that stay.
    async fn refresh(&mut self) -> Result<(), JournalError> {
        let mut before = std::mem::take(&mut self.watched);
        for record in self.ctx.journal.open_records().await? {
            let wanted = self.ctx.facts.own_name(&record.contract);
            let Some(name) = wanted.filter(|_| record.network && record.removal.is_none()) else {
                continue;
            };
            let watched = before.remove(&record.id).unwrap_or_else(|| {
                let proof = Proof::new(record.own_name.is_some());
                Watched {
                    due: Some(Instant::now() + proof.pause(&self.pace, record.id.0[0])),
                    developer: record.contract.developer,
                    tenant: spec::tenant(&record.contract),
                    proof,
                    name,
                }
            });
            self.watched.insert(record.id, watched);
        }
        // Whoever waited for a name that is free now needn't wait out his pause.
        for gone in before.values() {
            let waiting = self.watched.values_mut().filter(|other| other.name == gone.name);
            for other in waiting.filter(|other| other.due.is_some()) {
                other.due = Some(Instant::now());
            }
        }
        let mut lacks = self.ctx.names.lacks();
        lacks.retain(|id, _| self.watched.contains_key(id));
        Ok(())
    }

    /// Has every name that is being looked up looked up again.
    fn again(&mut self) {
        let soon = Instant::now() + self.pace.retry_max;
        for watched in self.watched.values_mut() {
            watched.due.get_or_insert(soon);
        }
    }

    /// Starts what is due, and says when the next look is.
    fn start_lookups(&mut self) -> Option<Instant> {
        let now = Instant::now();
        for (id, watched) in &mut self.watched {
            if self.lookups.len() >= LOOKUPS {
                return None; // one that ends makes room
            }
            if watched.due.is_some_and(|due| due <= now) {
                watched.due = None;
                let (id, dns) = (*id, self.dns.clone());
                let record = name_proof::record_name(watched.name.as_str());
                self.lookups.spawn(async move {
                    let answer = timeout(ANSWER, dns.texts(&record)).await;
                    let late = |_| Answer::Failed(format!("no answer within {ANSWER:?}"));
                    (id, answer.unwrap_or_else(late))
                });
            }
        }
        self.watched.values().filter_map(|watched| watched.due).min()
    }

    /// Acts on an answer.
    async fn take(&mut self, id: ContractId, answer: &Answer) -> Result<(), JournalError> {
        let Some(name) = self.watched.get(&id).map(|watched| watched.name.clone()) else {
            return Ok(()); // the contract went meanwhile
        };
        // Only a name that might be routed now needs to know who has it; the journal says, not our memory.
        let holder = match answer {
            Answer::Texts(texts) if !texts.is_empty() => self.holder(id, &name).await?,
            _ => None,
        };
        let Some(watched) = self.watched.get_mut(&id) else {
            return Ok(());
        };
        let said = watched.proof.lack();
        let verdict = watched.proof.hear(answer, watched.developer, holder);
        watched.due = Some(Instant::now() + watched.proof.pause(&self.pace, id.0[0]));
        let (lack, tenant) = (watched.proof.lack(), watched.tenant.clone());
        match &lack {
            Some(why) => {
                if said != lack {
                    tracing::info!(contract = %id, %name, why, "a tenant's own name");
                }
                self.ctx.names.lacks().insert(id, why.clone());
            }
            None => {
                self.ctx.names.lacks().remove(&id);
            }
        }
        let proved = match verdict {
            Verdict::Stay => return Ok(()),
            Verdict::Route => Some(name.to_string()),
            Verdict::Withdraw => None,
        };
        match self
            .ctx
            .journal
            .apply(id, vec![Change::OwnName(proved.clone())])
            .await
        {
            Ok(_) => {}
            Err(JournalError::NotOpen(_)) => return Ok(()), // the contract went meanwhile
            Err(error) => {
                // Not on disk, so not so: start over from what is.
                self.watched.remove(&id);
                self.ctx.names.changed.notify_one();
                return Err(error);
            }
        }
        if proved.is_some() {
            tracing::info!(contract = %id, %name, "a tenant's own name is proved; it is routed");
        } else {
            tracing::warn!(contract = %id, %name, "a tenant's own name isn't proved any more; its route goes");
            // Others who wait for it needn't wait out their pause.
            let now = Instant::now();
            for (_, other) in self
                .watched
                .iter_mut()
                .filter(|(of, other)| **of != id && other.name == name)
            {
                other.due = other.due.map(|_| now);
            }
        }
        // The keeper tries again by itself, from the journal.
        if let Err(error) = self.ctx.net.sync(tenant).await {
            tracing::warn!(contract = %id, %name, %error, "the network doesn't follow yet");
        }
        Ok(())
    }

    /// The other contract of this host that has the name.
    async fn holder(&self, id: ContractId, name: &DnsName) -> Result<Option<ContractId>, JournalError> {
        let records = self.ctx.journal.open_records().await?;
        let holder = records.iter().find(|record| {
            record.id != id && record.network && record.own_name.as_deref() == Some(name.as_str())
        });
        Ok(holder.map(|record| record.id))
    }
}
