//! What runs beside the contracts: heartbeats, systemd's watchdog, unknown objects, unused images.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ledger::api::{ContractId, HeartbeatArgs};
use tokio::sync::watch;

use crate::journal::{JournalError, Quarantined, now_ms};
use crate::ports::Whose;
use crate::storage::Store;
use crate::supervisor::Ctx;
use crate::surface::Registration;
use crate::update::Updater;

/// Between two looks for unknown objects and unused images.
const TIDY: Duration = Duration::from_secs(3600);

/// The longest that a reboot waits for the ledger's ear.
const TELL: Duration = Duration::from_secs(20);

/// Tells systemd, if it started us. A failure changes nothing for the VMs.
pub(super) fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd can't be told");
    }
}

/// Answers systemd's watchdog while the runtime works and the journal answers: without either no contract can be looked
/// after. The ledger's silence is no reason to start again.
pub(super) async fn watchdog(ctx: Arc<Ctx>) {
    let Some(every) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut ticks = tokio::time::interval(every / 4);
    loop {
        ticks.tick().await;
        match tokio::time::timeout(every / 2, ctx.journal.draining()).await {
            Ok(Ok(_)) => notify(&[sd_notify::NotifyState::Watchdog]),
            Ok(Err(error)) => tracing::error!(%error, "the journal fails; systemd will start hostd again"),
            Err(_) => tracing::error!("the journal doesn't answer; systemd will start hostd again"),
        }
    }
}

/// Signs of life, in a task of their own: no contract's trouble delays them.
pub(super) async fn heartbeats(
    ctx: Arc<Ctx>,
    update: Arc<Updater>,
    every: Duration,
    mut registration: watch::Receiver<Registration>,
) {
    let mut silent = false;
    // The ledger listens to registered hosts only.
    if registration
        .wait_for(|registration| registration.registered)
        .await
        .is_err()
    {
        return;
    }
    let mut trouble = ctx.net.trouble.clone();
    loop {
        trouble.mark_unchanged();
        let args = match beat(&ctx, &update).await {
            Ok(args) => args,
            Err(_) => return, // without a journal hostd ends
        };
        match ctx.host.ledger.heartbeat(&args).await {
            Ok(()) => silent = false,
            Err(error) => {
                if !silent {
                    tracing::warn!(%error, "no heartbeat");
                }
                silent = true;
            }
        }
        let sooner = async {
            tokio::select! {
                () = ctx.heartbeat_now.notified() => {}
                changed = trouble.changed() => if changed.is_err() {
                    std::future::pending::<()>().await; // hostd ends
                },
            }
        };
        let _ = tokio::time::timeout(every, sooner).await; // either way: the next one
    }
}

/// What a heartbeat says now.
async fn beat(ctx: &Ctx, update: &Updater) -> Result<HeartbeatArgs, JournalError> {
    let degraded = ctx
        .live()
        .into_iter()
        .filter(|(_, live)| live.degraded.is_some())
        .map(|(id, _)| id)
        .collect();
    // Who was sent here now couldn't be reached. One tenant's trouble is his alone.
    let unreachable = match &*ctx.net.trouble.borrow() {
        Some(trouble) => !matches!(trouble.whose, Whose::Tenants(_)),
        None => false,
    };
    let or_gone = |error| match error {
        JournalError::Gone => Err(error),
        _ => Ok(false),
    };
    Ok(HeartbeatArgs {
        version: env!("CARGO_PKG_VERSION").into(),
        degraded,
        draining: unreachable || ctx.journal.draining().await.or_else(or_gone)?,
        update: update.notice().await,
    })
}

/// Tells the ledger at once what the next heartbeat would say: before a reboot there is no other one.
pub async fn tell_ledger(ctx: &Ctx, update: &Updater) {
    let told = async {
        let args = beat(ctx, update).await.map_err(|error| error.to_string())?;
        let call = ctx.host.ledger.heartbeat(&args);
        call.await.map_err(|error| error.to_string())
    };
    match tokio::time::timeout(TELL, told).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(error, "the ledger doesn't hear of the reboot"),
        Err(_) => tracing::warn!("the ledger doesn't hear of the reboot: no answer in {TELL:?}"),
    }
}

/// Follows the trial of a new image, and `[update] apply`.
pub(super) async fn updates(ctx: Arc<Ctx>, update: Arc<Updater>) {
    let vms = || async {
        ctx.journal
            .open_records()
            .await
            .ok()
            .map(|records| records.len() as u64)
    };
    update.clone().keep(vms, || tell_ledger(&ctx, &update)).await;
}

/// Lists what bears our names and isn't in the journal (and leaves it alone), and lets unused images go.
pub(super) async fn tidy(ctx: Arc<Ctx>, store: Store) {
    loop {
        if let Err(error) = look(&ctx, &store).await {
            tracing::warn!(%error, "upkeep failed; tried again later");
        }
        tokio::time::sleep(TIDY).await;
    }
}

async fn look(ctx: &Ctx, store: &Store) -> Result<(), JournalError> {
    let records = ctx.journal.open_records().await?;
    let known: BTreeSet<ContractId> = records.iter().map(|record| record.id).collect();
    let folders: BTreeSet<String> = known
        .iter()
        .filter_map(|id| Some(ctx.facts.run_dir(*id).file_name()?.to_str()?.to_owned()))
        .collect();
    let mut found = Vec::new();
    let quarantine = |kind: &str, name: String, detail: &str| Quarantined {
        kind: kind.to_owned(),
        name,
        since_ms: now_ms(),
        detail: detail.to_owned(),
    };
    match ctx.host.storage.disks().await {
        Ok(disks) => found.extend(disks.into_iter().filter(|id| !known.contains(id)).map(|id| {
            quarantine("disk", id.to_string(), "a disk or seed of a contract that the journal doesn't know as open; look, then remove it by hand")
        })),
        Err(error) => tracing::warn!(%error, "disks can't be listed"),
    }
    if let Ok(entries) = std::fs::read_dir(&ctx.facts.vm_dir) {
        let names = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok());
        found.extend(names.filter(|name| !folders.contains(name)).map(|name| {
            quarantine("vm-folder", name, "a VM's folder that the journal doesn't know; a VMM may still run in it: look before you remove it")
        }));
    }
    for object in &found {
        tracing::warn!(
            kind = object.kind,
            name = object.name,
            "unknown object; left alone"
        );
    }
    ctx.journal.set_quarantine(found).await?;
    let referenced = records
        .iter()
        .map(|record| record.contract.args.image.manifest)
        .collect();
    match store.gc(referenced).await {
        Ok(report) => tracing::debug!(?report, "unused images"),
        Err(error) => tracing::warn!(%error, "unused images can't be removed"),
    }
    Ok(())
}
