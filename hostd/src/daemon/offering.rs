//! Makes host and offering known to the ledger.

use std::sync::Arc;
use std::time::Duration;

use ledger::api::{self, AtRest, Grade, HostDelegation, OfferingSpec, PriceList, Quota, VmKind};
use tokio::sync::watch;

use crate::config::Config;
use crate::inventory::Inventory;
use crate::ports::{LedgerCallError, LedgerPort};
use crate::supervisor::Ctx;
use crate::supervisor::spec::kind_name;
use crate::surface::Registration;

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
        .filter(|gpu| gpu.is_compute())
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

/// Registers until it is done. What the ledger refuses is tried again too, slowly: an operator may repair it there.
pub(super) async fn register(
    ledger: Arc<dyn LedgerPort>,
    delegation: HostDelegation,
    spec: Result<OfferingSpec, String>,
    ledger_id: Vec<u8>,
    registration: watch::Sender<Registration>,
) {
    let mut pause = Duration::from_millis(250);
    loop {
        let attempt = async {
            let info = ledger.info().await?;
            if info.ledger.as_slice() != ledger_id {
                let why = format!(
                    "the ledger says that it is {}, not ledger.canister_id",
                    info.ledger
                );
                return Err(LedgerCallError::Unreachable {
                    call: "ledger_info",
                    why,
                });
            }
            ledger.register_host(&delegation).await?;
            registration.send_modify(|registration| registration.registered = true);
            match &spec {
                Ok(spec) => ledger.publish_offering(spec).await.map(Ok),
                Err(why) => Ok(Err(why.clone())),
            }
        };
        match attempt.await {
            Ok(Ok(id)) => {
                tracing::info!(offering = id, "host registered, offering published");
                registration.send_modify(|now| (now.offering, now.trouble) = (Some(id), None));
                return;
            }
            Ok(Err(why)) => {
                tracing::error!(
                    why,
                    "host registered, but there is nothing to offer; contracts here go on"
                );
                registration.send_modify(|now| now.trouble = Some(why));
                return;
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
