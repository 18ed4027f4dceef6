//! Makes host and offering known to the ledger.

use std::sync::Arc;
use std::time::Duration;

use ledger::api::{self, AtRest, Grade, HostDelegation, OfferingSpec, PriceList, Quota, VmKind};
use tokio::sync::watch;

use crate::config::Config;
use crate::inventory::Inventory;
use crate::ports::LedgerCallError;
use crate::supervisor::Ctx;
use crate::supervisor::spec::kind_name;
use crate::surface::{App, Registration};

/// What this host sells, or why it can't sell what the config names.
pub fn offering_spec(config: &Config, ctx: &Ctx, inventory: &Inventory) -> Result<OfferingSpec, String> {
    let all = [VmKind::Plain, VmKind::SevSnp, VmKind::Tdx];
    let kinds: Vec<VmKind> = match &config.offering.kinds {
        Some(named) => named.iter().map(|kind| VmKind::from(*kind)).collect(),
        None => all
            .into_iter()
            .filter(|kind| ctx.adapter_for(*kind).is_ok())
            .collect(),
    };
    let refusals: Vec<_> = kinds
        .iter()
        .filter_map(|kind| ctx.adapter_for(*kind).err())
        .collect();
    if !refusals.is_empty() {
        let refusals: Vec<_> = refusals.iter().map(ToString::to_string).collect();
        return Err(format!("offering.kinds: {}", refusals.join("; ")));
    }
    if kinds.is_empty() {
        let whys: Vec<_> = all
            .iter()
            .filter_map(|kind| {
                ctx.adapter_for(*kind)
                    .err()
                    .map(|why| format!("{}: {why}", kind_name(*kind)))
            })
            .collect();
        return Err(format!("no kind of VM can be hosted here: {}", whys.join("; ")));
    }
    let confidential = kinds.iter().any(|kind| *kind != VmKind::Plain);
    let offering = &config.offering;
    let quota = |limit: Option<u64>| limit.map_or(Quota::Unlimited, Quota::Limited);
    // One model is sold; a mixed machine sells its first.
    let gpu_model = inventory
        .gpus
        .iter()
        .filter(|gpu| gpu.is_for_sale())
        .find_map(|gpu| {
            let name = gpu.name.known().cloned();
            name.or_else(|| gpu.vendor_name.clone())
        });
    let gpus = u32::try_from(ctx.capacity.gpus.len()).unwrap_or(u32::MAX);
    Ok(OfferingSpec {
        title: offering.title.clone(),
        region: offering.region.clone(),
        kinds,
        capacity: api::Capacity {
            vcpus: ctx.capacity.vcpus,
            memory_mib: ctx.capacity.memory_mib,
            storage_gib: ctx.capacity.storage_gib,
            gpus,
        },
        storage_per_vm: quota(offering.storage_per_vm_gib),
        bandwidth_mbps: quota(offering.bandwidth_mbps),
        gpu_model: gpu_model.filter(|_| gpus > 0),
        at_rest: if ctx.facts.no_encryption.is_none() {
            AtRest::Encrypted
        } else {
            AtRest::Any
        },
        best_grade: if confidential {
            Grade::HardwareVerified
        } else if ctx.host_evidence.is_on() {
            Grade::HostVerified
        } else {
            Grade::HostSigned
        },
        test_platform: config.host.test_platform,
        prices: PriceList {
            vm_hour: offering.prices.vm_hour,
            vcpu_hour: offering.prices.vcpu_hour,
            memory_gib_hour: offering.prices.memory_gib_hour,
            storage_gib_hour: offering.prices.storage_gib_hour,
            gpu_hour: offering.prices.gpu_hour,
        },
        min_developer_reputation: offering.min_developer_reputation,
        max_period_s: offering.max_period_s,
    })
}

/// Registers and publishes until it is done, then keeps the offered storage true, looking each `review`. What the ledger
/// refuses is tried again too, slowly: an operator may repair it there; and a host with nothing to offer may get something.
pub(super) async fn offer(
    ctx: Arc<Ctx>,
    delegation: HostDelegation,
    app: Arc<App>,
    review: Duration,
    registration: watch::Sender<Registration>,
) {
    let to_sell = || offering_spec(&app.config, &ctx, &app.inventory);
    let mut spec = register(&ctx, &delegation, to_sell, review, &registration).await;
    loop {
        tokio::time::sleep(review).await;
        let now = match ctx.storage_gib().await {
            Ok(now) => now,
            Err(error) => {
                tracing::warn!(%error, "the room for disks can't be looked at; the offering stays");
                continue;
            }
        };
        if !is_stale(spec.capacity.storage_gib, now) {
            continue;
        }
        let new = OfferingSpec {
            capacity: api::Capacity {
                storage_gib: now,
                ..spec.capacity
            },
            ..spec.clone()
        };
        match ctx.host.ledger.publish_offering(&new).await {
            Ok(id) => {
                let (before, offering) = (spec.capacity.storage_gib, id);
                tracing::info!(
                    offering,
                    before,
                    now,
                    "the file system's room has changed: offered anew"
                );
                registration.send_modify(|now| now.offering = Some(id));
                spec = new;
            }
            Err(error) => tracing::warn!(%error, "the offering can't be changed; tried again"),
        }
    }
}

/// Whether the offered storage must be published anew: at once when there is less than offered; when there is more, only if
/// it is worth a new offering (developers who have just matched the old one must match again).
fn is_stale(offered_gib: u64, now_gib: u64) -> bool {
    now_gib < offered_gib || now_gib - offered_gib > offered_gib / 10
}

/// Answers what was published.
async fn register(
    ctx: &Ctx,
    delegation: &HostDelegation,
    to_sell: impl Fn() -> Result<OfferingSpec, String>,
    review: Duration,
    registration: &watch::Sender<Registration>,
) -> OfferingSpec {
    let ledger = &ctx.host.ledger;
    let mut pause = Duration::from_millis(250);
    loop {
        let attempt = async {
            let info = ledger.info().await?;
            if info.ledger.as_slice() != ctx.facts.ledger {
                let why = format!(
                    "the ledger says that it is {}, not ledger.canister_id",
                    info.ledger
                );
                return Err(LedgerCallError::Unreachable {
                    call: "ledger_info",
                    why,
                });
            }
            ledger.register_host(delegation).await?;
            registration.send_modify(|registration| registration.registered = true);
            let mut spec = match to_sell() {
                Ok(spec) => spec,
                Err(why) => return Ok(Err(why)),
            };
            match ctx.storage_gib().await {
                Ok(gib) => spec.capacity.storage_gib = gib,
                Err(error) => return Ok(Err(format!("the room for disks can't be looked at: {error}"))),
            }
            let id = ledger.publish_offering(&spec).await?;
            Ok(Ok((id, spec)))
        };
        match attempt.await {
            Ok(Ok((id, spec))) => {
                tracing::info!(offering = id, "host registered, offering published");
                registration.send_modify(|now| (now.offering, now.trouble) = (Some(id), None));
                return spec;
            }
            Ok(Err(why)) => {
                tracing::error!(
                    why,
                    "host registered, but there is nothing to offer; contracts here go on"
                );
                registration.send_modify(|now| now.trouble = Some(why));
                loop {
                    tokio::time::sleep(review).await;
                    ctx.ask_adapters().await;
                    if to_sell().is_ok() {
                        break;
                    }
                }
            }
            Err(error) => {
                let why = error.to_string();
                if registration.borrow().trouble.as_ref() != Some(&why) {
                    tracing::warn!(why, "not registered yet; tried again");
                }
                registration.send_modify(|now| now.trouble = Some(why));
                let longest = if error.is_transient() { 5 } else { 60 };
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(longest));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_room_is_offered_at_once_and_more_when_it_is_worth_it() {
        for (offered, now, stale) in [
            (100, 100, false),
            (100, 99, true),
            (100, 110, false),
            (100, 111, true),
            (0, 0, false),
            (0, 1, true),
        ] {
            assert_eq!(is_stale(offered, now), stale, "{offered} → {now}");
        }
    }
}
