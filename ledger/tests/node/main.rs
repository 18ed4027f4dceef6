//! A real node on loopback and real clients: what the Internet Computer's interface promises, and what a crash may cost.
#![expect(
    clippy::unwrap_used,
    reason = "a test that unwraps fails, which is what it should do"
)]

mod crash;
mod history;
mod standard;
mod world;

use std::time::{Duration, Instant};

use candid::{Nat, Principal};
use ic_agent::agent::{EnvelopeContent, RejectCode};
use ic_agent::{Agent, AgentError};
use ic_transport_types::{Delegation, Envelope, SignedDelegation};
use icrc_ledger_types::icrc1::transfer::TransferError;
use ledger::api::DCT;
use ledger::client::{ClientError, Key, KeyKind};
use ledger::node;
use ledger::protocol::Genesis;

use crate::world::{Place, Running, new_key, transfer_to, wall};

/// A transfer's content, ready to be signed.
fn content(running: &Running, sender: Principal, to: Principal, expiry: u64, nonce: u8) -> EnvelopeContent {
    EnvelopeContent::Call {
        nonce: Some(vec![nonce]),
        ingress_expiry: expiry,
        sender,
        canister_id: running.canister,
        method_name: "icrc1_transfer".into(),
        arg: candid::encode_one(transfer_to(to, DCT)).unwrap(),
        sender_info: None,
    }
}

fn signed(key: &Key, content: &EnvelopeContent) -> Envelope<'static> {
    let signature = key.identity().sign(content).unwrap();
    Envelope {
        content: std::borrow::Cow::Owned(content.clone()),
        sender_pubkey: signature.public_key,
        sender_sig: signature.signature,
        sender_delegation: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_each_kind_transfer_and_every_answer_is_certified_under_the_pinned_key() {
    let place = Place::new();
    let running = place.serve().await;
    let rich = running.client(&place.rich);
    let fee = rich.info().await.unwrap().transfer_fee;
    for kind in [KeyKind::Ed25519, KeyKind::P256, KeyKind::Secp256k1] {
        let key = new_key(kind);
        rich.transfer(transfer_to(key.principal(), 2 * DCT))
            .await
            .unwrap();
        let client = running.client(&key);
        client
            .transfer(transfer_to(place.rich.principal(), DCT))
            .await
            .unwrap();
        assert_eq!(
            client.balance(key.principal()).await.unwrap(),
            DCT - fee,
            "{kind}"
        );
        let refused = client
            .transfer(transfer_to(place.rich.principal(), DCT))
            .await
            .unwrap_err();
        assert!(
            matches!(
                &refused,
                ClientError::Transfer(TransferError::InsufficientFunds { .. })
            ),
            "{kind}: {refused}"
        );
    }
    let invariants = rich.invariants().await.unwrap();
    assert_eq!(
        (invariants.violations.len(), invariants.supply),
        (0, invariants.balances)
    );

    // Another root key: the same answers are refused.
    let mut wrong = running.client(&place.rich);
    let mut other = running.root_key.clone();
    let last = other.len() - 1;
    other[last] ^= 1;
    wrong.agent().set_root_key(other);
    let error = wrong
        .transfer(transfer_to(Principal::from_slice(&[9; 29]), DCT))
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Untrusted { .. }), "{error}");
    let error = wrong.info().await.unwrap_err();
    assert!(
        matches!(error, ClientError::Untrusted { .. }),
        "queries too: {error}"
    );
    wrong = running.client(&Key::anonymous());
    assert!(wrong.info().await.is_ok());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_the_interface_is_as_clients_expect_it() {
    let place = Place::new();
    let running = place.serve().await;
    let client = running.client(&place.rich);
    let agent: &Agent = client.agent();

    let status = agent.status().await.unwrap();
    assert_eq!(status.root_key.as_deref(), Some(running.root_key.as_slice()));
    assert_eq!(status.replica_health_status.as_deref(), Some("healthy"));

    let candid = agent
        .read_state_canister_metadata(running.canister, "candid:service")
        .await
        .unwrap();
    let candid = String::from_utf8(candid).unwrap();
    assert!(
        candid.contains("icrc1_transfer") && candid.contains("submit_evidence"),
        "{candid}"
    );
    assert!(
        agent
            .read_state_canister_metadata(running.canister, "absent")
            .await
            .is_err()
    );
    assert_eq!(
        agent
            .read_state_canister_info(running.canister, "certified_data")
            .await
            .unwrap()
            .len(),
        32
    );
    let subnet = agent.get_subnet_by_canister(&running.canister).await.unwrap();
    assert!(subnet.contains_canister(&running.canister));
    agent.get_subnet_by_id(&subnet.id()).await.unwrap();

    // A query method called as an update: a certified answer.
    let reply = agent
        .update(&running.canister, "icrc1_decimals")
        .with_arg(candid::encode_args(()).unwrap())
        .call_and_wait()
        .await
        .unwrap();
    assert_eq!(candid::decode_one::<u8>(&reply).unwrap(), 9);

    // Rejects: unknown methods, an update called as a query, nonsense as argument, another canister.
    let reject = |error: AgentError| match error {
        AgentError::CertifiedReject { reject, .. } | AgentError::UncertifiedReject { reject, .. } => (
            reject.reject_code,
            reject.error_code.unwrap_or_default(),
            reject.reject_message,
        ),
        other => panic!("{other}"),
    };
    let nothing = || candid::encode_args(()).unwrap();
    let (code, error, message) = reject(
        agent
            .update(&running.canister, "nonsense")
            .with_arg(nothing())
            .call_and_wait()
            .await
            .unwrap_err(),
    );
    assert_eq!(
        (code, error.as_str()),
        (RejectCode::CanisterError, "IC0536"),
        "{message}"
    );
    for method in ["nonsense", "icrc1_transfer", "tick"] {
        let (code, error, message) = reject(
            agent
                .query(&running.canister, method)
                .with_arg(nothing())
                .call()
                .await
                .unwrap_err(),
        );
        assert_eq!(
            (code, error.as_str()),
            (RejectCode::CanisterError, "IC0536"),
            "{method}: {message}"
        );
    }
    for arg in [
        vec![],
        b"DIDL".to_vec(),
        vec![0xff; 1000],
        nothing(),
        candid::encode_one("text").unwrap(),
    ] {
        let (code, error, message) = reject(
            agent
                .update(&running.canister, "icrc1_transfer")
                .with_arg(arg.clone())
                .call_and_wait()
                .await
                .unwrap_err(),
        );
        assert_eq!(
            (code, error.as_str()),
            (RejectCode::CanisterError, "IC0503"),
            "{arg:?}: {message}"
        );
        let (code, ..) = reject(
            agent
                .query(&running.canister, "icrc1_balance_of")
                .with_arg(arg)
                .call()
                .await
                .unwrap_err(),
        );
        assert_eq!(code, RejectCode::CanisterError);
    }
    let other = Principal::from_text("ryjl3-tyaaa-aaaaa-aaaba-cai").unwrap();
    let (code, ..) = reject(
        agent
            .update(&other, "icrc1_decimals")
            .with_arg(nothing())
            .call_and_wait()
            .await
            .unwrap_err(),
    );
    assert_eq!(code, RejectCode::DestinationInvalid);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_again_is_executed_once_also_after_a_restart() {
    let place = Place::new();
    let running = place.serve().await;
    let to = Principal::from_slice(&[7; 29]);
    let content = content(&running, place.rich.principal(), to, wall() + 60_000_000_000, 1);
    let body = signed(&place.rich, &content).encode_bytes();
    // Ten at once, of which the engine executes one.
    let answers = futures_like_join((0..10).map(|_| running.post_call(body.clone()))).await;
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
    let client = running.client(&place.rich);
    assert_eq!(client.balance(to).await.unwrap(), DCT);
    let height = client.info().await.unwrap().height;
    running.stop().await;

    let running = place.serve().await;
    assert_eq!(running.post_call(body.clone()).await.0, 200);
    let client = running.client(&place.rich);
    assert_eq!(
        client.balance(to).await.unwrap(),
        DCT,
        "the answer survived, and so did the memory of it"
    );
    assert_eq!(client.info().await.unwrap().height, height);

    // An older client calls v2 and polls; it finds the answer, and nobody else does.
    let (status, _) = running
        .post(&format!("v2/canister/{}/call", running.canister), body)
        .await;
    assert_eq!(status, 202);
    let id = content.to_request_id();
    let (reply, _) = client.agent().wait(&id, running.canister).await.unwrap();
    let reply: Result<Nat, TransferError> = candid::decode_one(&reply).unwrap();
    assert!(reply.is_ok());
    let stranger = running.client(&Key::anonymous());
    let error = stranger
        .agent()
        .request_status_raw(&id, running.canister)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, AgentError::HttpError(payload) if payload.status == 403),
        "{error}"
    );
    running.stop().await;
}

/// Drives futures together without another crate.
async fn futures_like_join<F: Future + Send>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut pending: Vec<_> = futures.map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = pending.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        let mut waiting = false;
        for (future, slot) in pending.iter_mut().zip(&mut done) {
            if slot.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *slot = Some(value),
                    std::task::Poll::Pending => waiting = true,
                }
            }
        }
        if waiting {
            std::task::Poll::Pending
        } else {
            std::task::Poll::Ready(())
        }
    })
    .await;
    done.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_authentic_or_not_fresh_is_refused_with_the_reason_and_nothing_moves() {
    let place = Place::new();
    let running = place.serve().await;
    let to = Principal::from_slice(&[7; 29]);
    let (rich, mallory) = (&place.rich, new_key(KeyKind::P256));
    let soon = wall() + 60_000_000_000;
    let good = content(&running, rich.principal(), to, soon, 1);
    let with = |change: &dyn Fn(&mut Envelope<'static>)| {
        let mut envelope = signed(rich, &good);
        change(&mut envelope);
        envelope.encode_bytes()
    };
    let resigned = |key: &Key, content: &EnvelopeContent| signed(key, content).encode_bytes();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("no CBOR", b"hello".to_vec(), "CBOR"),
        ("empty", vec![], "CBOR"),
        ("deep CBOR", vec![0x81; 100_000], "CBOR"),
        (
            "expired",
            resigned(rich, &content(&running, rich.principal(), to, wall() - 1, 2)),
            "expires at",
        ),
        (
            "far ahead",
            resigned(
                rich,
                &content(&running, rich.principal(), to, wall() + 400_000_000_000, 3),
            ),
            "more than 5",
        ),
        (
            "another's signature",
            resigned(&mallory, &good),
            "not the key of the sender",
        ),
        (
            "signature of another key",
            with(&|e| e.sender_sig = signed(&mallory, &good).sender_sig),
            "sender_sig",
        ),
        (
            "a flipped bit",
            with(&|e| e.sender_sig.as_mut().unwrap()[5] ^= 1),
            "sender_sig",
        ),
        (
            "a short signature",
            with(&|e| e.sender_sig.as_mut().unwrap().truncate(63)),
            "64 bytes",
        ),
        ("no signature", with(&|e| e.sender_sig = None), "lacks"),
        ("no key", with(&|e| e.sender_pubkey = None), "lacks"),
        (
            "no key and no signature",
            with(&|e| {
                e.sender_pubkey = None;
                e.sender_sig = None
            }),
            "lacks",
        ),
        (
            "anonymous, but signed",
            resigned(rich, &content(&running, Principal::anonymous(), to, soon, 4)),
            "anonymous",
        ),
    ];
    for (name, body, reason) in cases {
        let (status, text) = running.post_call(body).await;
        assert_eq!(status, 400, "{name}: {text}");
        assert!(text.contains(reason), "{name}: {text}");
    }
    let (status, text) = running.post_call(vec![0; 300 * 1024]).await;
    assert_eq!(status, 413, "{text}");
    let (status, _) = running
        .post(&format!("v4/canister/{}/query", running.canister), vec![])
        .await;
    assert_eq!(status, 404);
    let (status, text) = running
        .post("v4/canister/nonsense/call", resigned(rich, &good))
        .await;
    assert_eq!((status, text.starts_with(b"nonsense")), (400, true));
    let client = running.client(rich);
    assert_eq!(client.balance(to).await.unwrap(), 0);
    assert_eq!(
        running.post_call(resigned(rich, &good)).await.0,
        200,
        "the same content, rightly signed"
    );
    assert_eq!(client.balance(to).await.unwrap(), DCT);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delegation_counts_within_its_bounds_only() {
    let place = Place::new();
    let running = place.serve().await;
    let to = Principal::from_slice(&[7; 29]);
    let (rich, session) = (&place.rich, new_key(KeyKind::P256));
    let hour = wall() + 3_600_000_000_000;
    let delegate = |expiration: u64, targets: Option<Vec<Principal>>, signer: &Key| {
        let delegation = Delegation {
            pubkey: session.public_key().unwrap(),
            expiration,
            targets,
            permissions: None,
        };
        let signature = signer
            .identity()
            .sign_delegation(&delegation)
            .unwrap()
            .signature
            .unwrap();
        SignedDelegation {
            delegation,
            signature,
        }
    };
    let envelope = |chain: Vec<SignedDelegation>, nonce: u8| {
        let content = content(&running, rich.principal(), to, wall() + 60_000_000_000, nonce);
        let mut envelope = signed(&session, &content);
        envelope.sender_pubkey = rich.public_key();
        envelope.sender_delegation = Some(chain);
        envelope.encode_bytes()
    };
    for (nonce, (name, chain, reason)) in (0u8..).zip([
        ("expired", vec![delegate(wall() - 1, None, rich)], "expired"),
        (
            "for another",
            vec![delegate(hour, Some(vec![Principal::management_canister()]), rich)],
            "not for this ledger",
        ),
        (
            "signed by the session itself",
            vec![delegate(hour, None, &session)],
            "delegation 0",
        ),
        ("none", vec![], "sender_sig"),
        ("too many", vec![delegate(hour, None, rich); 21], "too many"),
    ]) {
        let (status, text) = running.post_call(envelope(chain, nonce)).await;
        assert_eq!(status, 400, "{name}: {text}");
        assert!(text.contains(reason), "{name}: {text}");
    }
    let client = running.client(rich);
    assert_eq!(client.balance(to).await.unwrap(), 0);
    for (nonce, targets) in (100u8..).zip([None, Some(vec![running.canister])]) {
        let (status, text) = running
            .post_call(envelope(vec![delegate(hour, targets, rich)], nonce))
            .await;
        assert_eq!(status, 200, "{text}");
    }
    assert_eq!(client.balance(to).await.unwrap(), 2 * DCT);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_with_the_next_block_and_not_before() {
    let place = Place::new();
    let running = place.serve().await;
    let client = running.client(&place.rich);
    let height = client.info().await.unwrap().height;
    let started = Instant::now();
    assert_eq!(
        client.wait(height, Duration::from_millis(150)).await.unwrap(),
        height
    );
    assert!(started.elapsed() >= Duration::from_millis(150));
    let waiting = tokio::spawn({
        let client = client.clone();
        async move {
            (
                client.wait(height, Duration::from_secs(20)).await.unwrap(),
                Instant::now(),
            )
        }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    client
        .transfer(transfer_to(Principal::from_slice(&[7; 29]), DCT))
        .await
        .unwrap();
    let answered = Instant::now();
    let (found, woken) = waiting.await.unwrap();
    assert!(found > height);
    assert!(
        woken < answered + Duration::from_millis(500),
        "a hint must come promptly"
    );
    let (status, text) = {
        let response = reqwest::get(format!("http://{}/dc/v1/wait?after=x", running.address))
            .await
            .unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    assert_eq!(status, 400, "{text}");
    running.stop().await;
    let error = client.wait(height, Duration::from_secs(1)).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
}

#[test]
fn a_ledger_is_never_made_over_another_and_a_wrong_genesis_makes_nothing() {
    let place = Place::new();
    let genesis = Genesis::demo("another", 1, 1_790_000_000);
    let before = std::fs::read(place.path().join("secret.toml")).unwrap();
    assert!(matches!(
        node::init(&place.path(), &genesis, "http://x"),
        Err(node::NodeError::Exists(_))
    ));
    assert_eq!(std::fs::read(place.path().join("secret.toml")).unwrap(), before);
    let other = place.dir.path().join("other");
    let wrong = Genesis {
        clock_rate: 0,
        ..genesis
    };
    assert!(matches!(
        node::init(&other, &wrong, "http://x"),
        Err(node::NodeError::Genesis(_))
    ));
    assert!(!other.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledgers_clock_runs_at_the_genesis_rate_and_certificates_keep_wall_time() {
    let place = Place::with_rate(1_000);
    let running = place.serve().await;
    let client = running.client(&place.rich);
    let first = client.info().await.unwrap();
    assert!(first.demo && first.clock_rate == 1_000);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let second = client.info().await.unwrap();
    let passed = Duration::from_nanos(second.now - first.now);
    assert!(
        passed >= Duration::from_secs(200) && passed < Duration::from_secs(20_000),
        "{passed:?}"
    );
    // ic-agent refuses certificates that aren't of the wall clock's last minutes, so this proves the other clock.
    client
        .transfer(transfer_to(Principal::from_slice(&[7; 29]), DCT))
        .await
        .unwrap();
    running.stop().await;
}
