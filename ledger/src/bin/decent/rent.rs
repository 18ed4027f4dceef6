//! Renting: pick offerings, pay, wait.

use ledger::api::{
    Capacity, ContractState, ImageRef, Match, OfferingId, Quota, RentArgs, Request, USER_DATA_MAX,
};
use ledger::client::Client;
use serde_json::json;

use crate::args::RentCommand;
use crate::run::{SaidNo, Session, follow, random, repeat};
use crate::{parse, show};

impl Session {
    pub(crate) async fn rent(&self, command: RentCommand) -> anyhow::Result<()> {
        let client = self.signer()?;
        let mut ssh_public_keys = Vec::new();
        for path in &command.ssh_key {
            ssh_public_keys.extend(parse::ssh_keys(path)?);
        }
        let user_data = command
            .user_data
            .as_deref()
            .map(|path| parse::file(path, USER_DATA_MAX))
            .transpose()?;
        let request = command.request.request();
        let count = usize::from(command.nodes);
        // What was rented by an earlier try with that memo stands as it is, whatever fits now.
        let mut picked = match command.memo {
            Some(memo) => rented(&client, memo, count).await?,
            None => Vec::new(),
        };
        match (command.offering, command.max_total) {
            (Some(offering), Some(max_total)) => picked.resize(count, (offering, max_total)),
            (offering, max_total) if picked.len() < count => {
                let mut found = client.match_offerings(request.clone()).await?;
                found.retain(|found| offering.is_none_or(|id| id == found.offering.id));
                let more = spread(&mut found, &request, count - picked.len());
                picked.extend(
                    more.into_iter()
                        .map(|(id, total)| (id, max_total.unwrap_or(total))),
                );
                if picked.len() < count {
                    let why = match (picked.len(), offering) {
                        (0, Some(id)) => {
                            format!("offering {id} doesn't fit the request; `decent why-not` says why")
                        }
                        (0, None) => "no offering fits the request; `decent why-not` says why".to_owned(),
                        (room, _) => {
                            format!("there is room for {room} of {count} such VMs; nothing was rented")
                        }
                    };
                    return Err(SaidNo(why).into());
                }
            }
            _ => {}
        }
        let memo = match command.memo {
            Some(memo) => memo,
            None => random()?,
        };
        let first = RentArgs {
            request,
            offering: 0,
            image: ImageRef {
                manifest: command.image_digest,
                url: command.image_url,
            },
            ssh_public_keys,
            user_data: user_data.unwrap_or_default(),
            tls_name: command.tls_name,
            ports: command.port,
            allowed_measurements: command.measurement,
            min_tcb: command.min_tcb.unwrap_or_default(),
            max_total: 0,
            memo,
        };
        let nodes: Vec<RentArgs> = picked
            .into_iter()
            .zip(0..)
            .map(|((offering, max_total), number)| RentArgs {
                offering,
                max_total,
                memo: memo.wrapping_add(number),
                ..first.clone()
            })
            .collect();
        let rented = match nodes.as_slice() {
            [one] => repeat(|| client.rent(one.clone())).await.map(|id| vec![id]),
            nodes => repeat(|| client.rent_all(nodes.to_vec())).await,
        };
        let ids = rented.map_err(|error| {
            let transient = error.is_transient();
            let error = anyhow::Error::from(error);
            if transient {
                error.context(format!(
                    "it isn't known whether it was rented; the same command with --memo {memo} finds out and never pays twice"
                ))
            } else {
                error
            }
        })?;
        let answer = match ids.as_slice() {
            [id] => json!({ "contract": id }),
            ids => json!({ "contracts": ids }),
        };
        self.print(&answer, || ids.iter().map(|id| format!("{id}\n")).collect())?;
        if !command.wait {
            return Ok(());
        }
        let mut ended = Vec::new();
        for id in ids {
            let contract = follow(&client, id, true).await?;
            if let ContractState::Ended(_) = contract.state {
                ended.push(format!("contract {} {}", id.short(), show::state(contract.state)));
            }
        }
        match ended.is_empty() {
            true => Ok(()),
            false => Err(SaidNo(ended.join("; ")).into()),
        }
    }
}

/// Offering and most of the contracts that the caller has with these memos, in their order, up to the first that is missing.
async fn rented(client: &Client, memo: u64, count: usize) -> anyhow::Result<Vec<(OfferingId, u64)>> {
    let developer = client.principal();
    let mut contracts = client.account_contracts(developer).await?;
    contracts.retain(|contract| contract.developer == developer);
    let known = (0..count as u64).map_while(|number| {
        let memo = memo.wrapping_add(number);
        let contract = contracts.iter().find(|contract| contract.args.memo == memo)?;
        Some((contract.args.offering, contract.args.max_total))
    });
    Ok(known.collect())
}

/// Offerings for so many VMs of that request, best first: each host once, then again as far as there is room. Fewer, if there
/// isn't. Each comes with its price for the period.
fn spread(found: &mut [Match], request: &Request, count: usize) -> Vec<(OfferingId, u64)> {
    let fits = |free: &Capacity| {
        let storage = match request.storage_gib {
            Quota::Limited(gib) => gib <= free.storage_gib,
            Quota::Unlimited => true,
        };
        storage
            && request.vcpus <= free.vcpus
            && request.memory_mib <= free.memory_mib
            && request.gpus <= free.gpus
    };
    let mut picked = Vec::new();
    while picked.len() < count {
        let before = picked.len();
        for one in found
            .iter_mut()
            .filter(|one| fits(&one.offering.free))
            .take(count - before)
        {
            one.offering.free = one.offering.free.without(request);
            picked.push((one.offering.id, one.total));
        }
        if picked.len() == before {
            break;
        }
    }
    picked
}
