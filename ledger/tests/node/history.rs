//! The token's log as a client checks it: from the pinned root key to every block.

use candid::{Decode, Encode};
use ic_agent::Certificate;
use ic_agent::hash_tree::{HashTree, LookupResult};
use icrc_ledger_types::icrc::generic_value::ICRC3Value;
use icrc_ledger_types::icrc3::archive::{GetArchivesArgs, GetArchivesResult};
use icrc_ledger_types::icrc3::blocks::{
    GetBlocksRequest, GetBlocksResult, ICRC3DataCertificate, SupportedBlockType,
};
use ledger::client::{Key, KeyKind};

use crate::world::{Place, new_key, transfer_to};

/// Goal: the certificate authenticates the last block, and the blocks each other, for a client that knows ICRC-3 and the
/// root key only. Method: `ic-agent` and the standard's own types; then our client, also after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_authentic_from_the_root_key_to_its_first_block() {
    let place = Place::new();
    let running = place.serve().await;
    let client = running.client(&place.rich);
    for amount in [5, 6, 7] {
        client
            .transfer(transfer_to(new_key(KeyKind::Ed25519).principal(), amount))
            .await
            .unwrap();
    }
    let agent = client.agent();
    let query = async |method: &str, argument: Vec<u8>| {
        let call = agent.query(&running.canister, method).with_arg(argument);
        call.call().await.unwrap()
    };
    let answer = query("icrc3_get_tip_certificate", Encode!().unwrap()).await;
    let tip = Decode!(&answer, Option<ICRC3DataCertificate>).unwrap().unwrap();
    let certificate: Certificate = serde_cbor::from_slice(&tip.certificate).unwrap();
    agent.verify(&certificate, running.canister).unwrap();
    let tree: HashTree<Vec<u8>> = serde_cbor::from_slice(&tip.hash_tree).unwrap();
    let certified = [b"canister", running.canister.as_slice(), b"certified_data"];
    assert_eq!(
        certificate.tree.lookup_path(certified),
        LookupResult::Found(&tree.digest()[..])
    );

    let range = GetBlocksRequest {
        start: 0u8.into(),
        length: 100u8.into(),
    };
    let answer = query("icrc3_get_blocks", Encode!(&vec![range]).unwrap()).await;
    let blocks = Decode!(&answer, GetBlocksResult).unwrap();
    // The fee collector, one balance of the genesis, three transfers.
    assert_eq!((blocks.blocks.len(), blocks.log_length), (5, 5u8.into()));
    let last = blocks.blocks[4].block.clone();
    assert_eq!(
        tree.lookup_path([b"last_block_hash"]),
        LookupResult::Found(&last.hash()[..])
    );
    assert_eq!(
        tree.lookup_path([b"last_block_index"]),
        LookupResult::Found(&[4][..])
    );
    let archives = Encode!(&GetArchivesArgs { from: None }).unwrap();
    let answer = query("icrc3_get_archives", archives).await;
    assert_eq!(Decode!(&answer, GetArchivesResult).unwrap(), vec![]);
    let answer = query("icrc3_supported_block_types", Encode!().unwrap()).await;
    let types = Decode!(&answer, Vec<SupportedBlockType>).unwrap();
    assert!(types.iter().any(|one| one.block_type == "2xfer"));
    // An update has no certificate to give, as on the Internet Computer.
    let call = agent.update(&running.canister, "icrc3_get_tip_certificate");
    let answer = call.with_arg(Encode!().unwrap()).call_and_wait().await.unwrap();
    assert!(Decode!(&answer, Option<ICRC3DataCertificate>).unwrap().is_none());

    let all = client.token_history(100).await.unwrap();
    let mut theirs: Vec<ICRC3Value> = blocks.blocks.into_iter().map(|one| one.block).collect();
    theirs.reverse();
    assert_eq!(
        all.iter().map(|(index, _)| *index).collect::<Vec<_>>(),
        [4, 3, 2, 1, 0]
    );
    assert_eq!(
        all.iter().map(|(_, block)| block.clone()).collect::<Vec<_>>(),
        theirs
    );
    assert_eq!(client.token_history(2).await.unwrap(), all[..2]);
    assert_eq!(client.token_history(0).await.unwrap(), []);
    running.stop().await;
    let running = place.serve().await;
    let client = running.client(&Key::anonymous());
    assert_eq!(client.token_history(100).await.unwrap(), all);
    running.stop().await;
}
