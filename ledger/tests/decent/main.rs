//! `decent` and `ledgerd` as people run them: processes, files, exit codes; the host's part is played by the client.
#![expect(
    clippy::unwrap_used,
    reason = "a test that unwraps fails, which is what it should do"
)]

mod typescript;
mod world;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ledger::api::{
    CheckIn, Contract, ContractState, DCT, EndReason, EvidenceRecord, Grade, HeartbeatArgs, Invariants,
    LedgerError, LedgerInfo, Match, Penalty, Reputation, Rewards, SubmitEvidenceArgs, UpdateNotice, WhyNot,
};
use ledger::protocol::Genesis;
use serde_json::Value;

use crate::world::*;

#[test]
fn a_developer_rents_watches_extends_and_cancels_and_the_money_adds_up() {
    let mut world = World::new();
    let runtime = runtime();
    let host = world.client("host");
    let number = offer(&world, &runtime, &host);
    assert!(world.page("dev", &["offerings"]).contains("a small machine"));

    // Match, why-not.
    let found: Vec<Match> = world.json(&[&["match"], REQUEST.as_slice()].concat());
    assert_eq!((found.len(), found[0].offering.id), (1, number));
    assert!(
        world
            .page("dev", &[&["match"], REQUEST.as_slice()].concat())
            .contains("P Ltd")
    );
    let greedy = [
        "why-not",
        "--vcpus",
        "512",
        "--kind",
        "sev-snp",
        "--period",
        "60",
        "--max-price",
        "0.000000001",
    ];
    let misfits: Vec<WhyNot> = world.json(&greedy);
    assert!(misfits[0].reasons.len() >= 3, "{misfits:?}");
    assert!(world.page("dev", &greedy).contains("wanted"));

    // Rent: refused before registration (1), then done once however often it is sent.
    std::fs::write(world.path("id.pub"), SSH_KEY).unwrap();
    let (ssh_key, digest) = (world.text("id.pub"), "ab".repeat(32));
    let mut rent = vec![
        "rent",
        "--image-url",
        "https://images.example/manifest.json",
        "--image-digest",
        &digest,
    ];
    rent.extend(["--ssh-key", &ssh_key, "--port", "tcp/22", "--memo", "7"]);
    rent.extend(REQUEST);
    let (code, text) = world.fails("dev", &rent);
    assert_eq!(code, 1, "{text}");
    world.page("dev", &["developer", "register"]);
    let made: Value = world.json(&rent);
    let id = made["contract"].as_str().unwrap().to_owned();
    assert_eq!(
        world.page("dev", &rent).trim(),
        id,
        "the same memo is the same contract"
    );
    let contract: Contract = world.json(&["contract", "show", &id[..8]]);
    assert_eq!(
        (contract.state, contract.escrow.held),
        (ContractState::Requested, found[0].total)
    );
    assert_eq!(
        world.page("dev", &["balance"]).trim().parse::<String>().unwrap(),
        {
            let left = 100 * DCT - found[0].total;
            format!(
                "{}.{} DCT",
                left / DCT,
                format!("{:09}", left % DCT).trim_end_matches('0')
            )
        }
    );
    assert!(world.page("dev", &["contract", "list"]).contains(&id));

    // The ledger dies and comes back; nothing is lost. The host accepts, sees a refusal of nonsense; no money moves.
    world.stop_node();
    let (code, text) = world.fails("dev", &["balance"]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("can't be reached"), "{text}");
    world.start_node();
    runtime.block_on(async {
        host.accept(contract.id).await.unwrap();
        host.contract_nonce(contract.id).await.unwrap();
        let mine = host.host_contracts(host.principal()).await.unwrap();
        assert_eq!((mine.len(), mine[0].state), (1, ContractState::Accepted));
    });
    let (code, text) = world.fails("dev", &["evidence", &id]);
    assert_eq!(code, 1, "{text}");

    // The host announces a window for its next image, and then drains: the developer sees both beside the contract.
    let announce = |draining, away_from| {
        let update = UpdateNotice {
            running: "1.0.0".to_owned(),
            next: Some("1.1.0".to_owned()),
            away_from,
            returned: Some("1.0.9".to_owned()),
        };
        let heartbeat = HeartbeatArgs {
            version: "1".to_owned(),
            degraded: Vec::new(),
            draining,
            update: Some(update),
        };
        runtime.block_on(host.heartbeat(heartbeat)).unwrap();
        let principal = host.principal().to_text();
        let pages = [&["contract", "show", &id][..], &["host", "show", &principal]];
        pages.map(|page| world.page("dev", page))
    };
    let [contract_page, host_page] = announce(false, Some(1_800_000_000_000_000_000));
    assert!(
        contract_page.contains("maintenance: from 2027-01-15T08:00:00Z on it may restart into image 1.1.0"),
        "{contract_page}"
    );
    assert!(
        host_page.contains("it may restart into 1.1.0 from 2027-01-15"),
        "{host_page}"
    );
    let [contract_page, _] = announce(true, None);
    assert!(
        contract_page.contains("takes no new contracts"),
        "{contract_page}"
    );
    let [contract_page, host_page] = announce(false, None);
    assert!(!contract_page.contains("the host "), "{contract_page}");
    assert!(
        host_page.contains("1.0.0; 1.1.0 waits for the host to be empty; 1.0.9 was tried"),
        "{host_page}"
    );

    // The payment is the token's last movement, in a log that `decent` checks.
    let history: Vec<Value> = world.json(&["history", "--last", "1"]);
    assert_eq!(
        (history[0]["operation"].as_str(), history[0]["from"].as_str()),
        (Some("xfer"), Some(contract.developer.to_text().as_str()))
    );
    let page = world.page("dev", &["history", "--of", &contract.developer.to_text()]);
    assert!(page.contains("mint") && page.contains("xfer"), "{page}");

    // Somebody else can't cancel; the developer can, and gets everything back.
    let (code, text) = world.fails("provider", &["contract", "cancel", &id]);
    assert_eq!(code, 1, "{text}");
    let ended: Contract = world.json(&["contract", "cancel", &id]);
    assert_eq!(ended.state, ContractState::Ended(EndReason::Cancelled));
    assert_eq!(ended.escrow.funded, ended.escrow.refunded);
    assert!(
        world
            .page("dev", &["contract", "watch", &id])
            .contains("cancelled")
    );

    // Several at once: all of them, or none. The machine has 4 vCPUs, one of
    // them not yet released.
    let mut several = rent.clone();
    let at = several.iter().position(|arg| *arg == "7").unwrap();
    several[at] = "100";
    several.extend(["--nodes", "5"]);
    let (code, text) = world.fails("dev", &several);
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("there is room for 3 of 5 such VMs; nothing was rented"),
        "{text}"
    );
    *several.last_mut().unwrap() = "3";
    let made: Value = world.json(&several);
    let ids: Vec<&str> = made["contracts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_str().unwrap())
        .collect();
    assert_eq!(
        world.page("dev", &several).lines().collect::<Vec<_>>(),
        ids,
        "the same memo is the same contracts"
    );
    for id in ids {
        let ended: Contract = world.json(&["contract", "cancel", id]);
        assert_eq!(ended.escrow.funded, ended.escrow.refunded);
        runtime.block_on(host.released(ended.id)).unwrap();
    }

    // Another one, all the way: waits until it is active, verifies, extends, settles, cancels.
    let at = rent.iter().position(|arg| *arg == "7").unwrap();
    rent[at] = "8";
    rent.push("--wait");
    let mut waiting = Waiting::start(world.decent_command("dev", &rent));
    let contract = requested(&runtime, &host);
    let evidence = evidence();
    let mut told = String::new();
    let nonce = runtime.block_on(async {
        host.accept(contract.id).await.unwrap();
        let nonce = host.contract_nonce(contract.id).await.unwrap();
        let submit = |evidence| SubmitEvidenceArgs {
            contract: contract.id,
            evidence,
            endpoint: endpoint(),
        };
        let refused = host.submit_evidence(submit(vec![1, 2, 3])).await.unwrap_err();
        assert!(
            matches!(refused.refusal(), Some(LedgerError::EvidenceRefused { .. })),
            "{refused}"
        );
        // The refusal is shown until evidence is accepted: let `decent` see it first.
        waiting.tells("evidence refused", &mut told);
        let confirmed = host.submit_evidence(submit(evidence.to_cbor())).await.unwrap();
        assert_eq!(confirmed.grade, Grade::HostSigned);
        nonce
    });
    waiting.tells("active", &mut told);
    assert!(waiting.child.wait().unwrap().success(), "{told}");
    for step in ["accepted", "evidence refused", "active, host-signed"] {
        assert!(told.contains(step), "{step} is missing: {told}");
    }
    let id = contract.id.to_string();
    let file = world.text("evidence.cbor");
    let page = world.page("dev", &["evidence", &id, "--out", &file]);
    assert!(
        page.contains(&format!("attest verify {file}")) && page.contains(&nonce.to_string()),
        "{page}"
    );
    assert_eq!(std::fs::read(&file).unwrap(), evidence.to_cbor());
    // The line to paste names every check that this contract can have.
    let keys = std::fs::read_to_string(format!("{file}.ssh-keys")).unwrap_or_default();
    assert_eq!(keys.lines().collect::<Vec<_>>(), contract.args.ssh_public_keys);
    let settings = attestation::settings_digest(keys.lines(), &contract.args.user_data);
    assert_eq!(
        attestation::contract_id(&contract.salt.0, &settings),
        contract.id.0
    );
    let mut line = format!(" --min-grade host-signed --salt {}", contract.salt);
    if !contract.args.ssh_public_keys.is_empty() {
        line += &format!(" --ssh-key {file}.ssh-keys");
    }
    if !contract.args.user_data.is_empty() {
        line += &format!(" --user-data {file}.user-data");
    }
    assert!(page.contains(&format!("{line}\n")), "{page}");
    let record: EvidenceRecord = world.json(&["evidence", &id]);
    assert_eq!(record.nonce, nonce);
    assert!(
        world
            .page("dev", &["contract", "show", &id])
            .contains("tcp 20022 → 22 in the VM")
    );
    let extended: Contract = world.json(&["contract", "extend", &id, "--period", "1h"]);
    assert_eq!(extended.period_s, 3 * 3_600);
    std::thread::sleep(Duration::from_millis(300)); // at 60 times the wall clock's speed: 18 s
    let settled: Contract = world.json(&["contract", "settle", &id]);
    assert!(
        settled.escrow.released > 0 && settled.escrow.to_dao > 0,
        "{:?}",
        settled.escrow
    );
    let ended: Contract = world.json(&["contract", "cancel", &id]);
    let escrow = ended.escrow;
    assert_eq!(
        (escrow.held, escrow.funded),
        (0, escrow.released + escrow.refunded)
    );
    runtime.block_on(host.released(contract.id)).unwrap();
    let score: Reputation = world.json(&["reputation"]);
    assert!(score.score > 0 && !score.history.is_empty());
    assert!(world.page("dev", &["reputation"]).contains('+'));

    // Reputation is spent, once for each memo.
    let spend = [
        "penalise",
        &id,
        "--amount",
        "0.000000001",
        "--reason",
        "slow disk",
        "--memo",
        "7",
    ];
    let penalty: Penalty = world.json(&spend);
    assert_eq!(penalty, world.json(&spend));
    assert_eq!((penalty.spent, penalty.lost), (1, 2));
    let left: Reputation = world.json(&["reputation"]);
    assert_eq!(left.score, score.score - 1);
    assert!(world.page("dev", &["reputation"]).contains("slow disk"));

    // Rewards: only providers take part.
    let (code, error) = world.fails("dev", &["provider", "check-in"]);
    assert!(
        code == 1 && error.contains("only registered providers"),
        "{error}"
    );
    let check_in: CheckIn = world.json_as("provider", &["provider", "check-in"]);
    let rewards: Rewards = world.json_as("provider", &["rewards"]);
    assert!(rewards.block > check_in.block || rewards.own_weight == Some(check_in.weight));
    assert!(
        world
            .page("provider", &["rewards"])
            .contains("20999999.99685 DCT")
    );
    let books: Invariants = world.json(&["invariants"]);
    assert_eq!((books.supply, books.violations.len()), (books.balances, 0));

    // Transfers.
    let to = host.principal().to_text();
    world.page("dev", &["transfer", &to, "1.5"]);
    let balance: Value = world.json(&["balance", &to]);
    assert_eq!(balance["balance"], 1_500_000_000u64);
    assert_eq!(world.fails("dev", &["transfer", &to, "1000"]).0, 1);

    // Spending another's money, as far as it was approved.
    let provider = world.client("provider").principal().to_text();
    let developer = world.client("dev").principal().to_text();
    let page = world.page("dev", &["approve", &provider, "2", "--expires", "1h"]);
    assert!(page.contains("may spend 2 DCT"), "{page}");
    let spend = ["transfer", &to, "0.5", "--from", &developer];
    world.page("provider", &spend);
    let left: Value = world.json(&["allowance", &provider]);
    assert_eq!(left["allowance"], 1_499_990_000u64, "less the fee: {left}");
    assert!(left["expires_at"].is_u64());
    let page = world.page("provider", &["allowance", &provider, "--of", &developer]);
    assert!(page.starts_with("1.49999 DCT, until "), "{page}");
    world.page("dev", &["approve", &provider, "0"]);
    let (code, error) = world.fails("provider", &spend);
    assert!(code == 1 && error.contains("allowance is 0"), "{error}");

    // The host's key was stolen.
    let stolen = ["host", "retire", &to];
    assert_eq!(world.fails("dev", &stolen).0, 1);
    world.page("provider", &stolen);
    assert!(!world.page("dev", &["offerings"]).contains("a small machine"));

    let info: LedgerInfo = world.json(&["info"]);
    assert!(info.demo && world.page("dev", &["info"]).contains("DEMO"));

    // And the whole chain verifies, with a page and with JSON.
    world.stop_node();
    let verified = Command::new(env!("CARGO_BIN_EXE_ledgerd"))
        .args(["--json", "verify", "--dir", &world.text("ledger")])
        .output()
        .unwrap();
    let verified: Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!(verified["height"], info.height);
}

#[test]
fn wrong_usage_is_named_and_exits_with_2() {
    let world = World::new();
    let digest = "ab".repeat(32);
    let rent = |more: &[&str]| {
        let base = [
            "rent",
            "--image-url",
            "https://x/m",
            "--image-digest",
            &digest,
            "--period",
            "1h",
        ];
        let args: Vec<String> = base.iter().chain(more).map(|arg| (*arg).to_owned()).collect();
        args
    };
    let private = world.text("dev");
    for (args, expected) in [
        (
            vec!["transfer".to_owned(), "aaaaa-aa".into(), "1.0000000001".into()],
            "no amount",
        ),
        (
            vec!["transfer".to_owned(), "nonsense".into(), "1".into()],
            "nonsense",
        ),
        (
            vec!["match".to_owned(), "--period".into(), "0".into()],
            "no period",
        ),
        (vec!["match".to_owned()], "--period"),
        (rent(&["--port", "22"]), "tcp/PORT"),
        (rent(&["--measurement", "abcd"]), "96 hexadecimal digits"),
        (rent(&["--ssh-key", &private]), "private key"),
        (rent(&["--user-data", "/nonexistent"]), "/nonexistent"),
        (
            vec!["contract".to_owned(), "show".into(), "xyz".into()],
            "64 hexadecimal",
        ),
        (
            vec!["key".to_owned(), "new".into(), "--out".into(), private.clone()],
            "exists",
        ),
    ] {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (code, text) = world.fails("dev", &args);
        assert_eq!(code, 2, "{args:?}: {text}");
        assert!(text.contains(expected), "{args:?}: {text}");
    }
    std::fs::write(world.path("big"), vec![b'x'; 64 * 1024 + 1]).unwrap();
    let args = rent(&["--user-data", &world.text("big")]);
    let (code, text) = world.fails("dev", &args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!((code, text.contains("larger than 65536")), (2, true), "{text}");

    // A client.toml with another root key: nothing is believed.
    let good = std::fs::read_to_string(world.path("ledger/client.toml")).unwrap();
    let key = good
        .split("root_key = \"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    let mut other = ledger_root_key(&world.path("other"));
    std::fs::write(
        world.path("wrong.toml"),
        good.replace(key, &std::mem::take(&mut other)),
    )
    .unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_decent"))
        .args(["--ledger", &world.text("wrong.toml"), "info"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("not authentic"),
        "{output:?}"
    );
}

/// The root key of another, new ledger.
fn ledger_root_key(dir: &Path) -> String {
    let genesis = Genesis::demo("other", 1, 1_790_000_000);
    hex::encode(
        ledger::node::init(dir, &genesis, "http://127.0.0.1:1")
            .unwrap()
            .root_key,
    )
}

#[test]
fn help_and_completions_are_there() {
    for program in [env!("CARGO_BIN_EXE_decent"), env!("CARGO_BIN_EXE_ledgerd")] {
        let help = Command::new(program).arg("--help").output().unwrap();
        assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("Exit codes"));
        let script = Command::new(program)
            .args(["completions", "bash"])
            .output()
            .unwrap();
        assert!(script.status.success() && script.stdout.len() > 1_000);
    }
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man1");
    let written = Command::new(env!("CARGO_BIN_EXE_decent"))
        .arg("man")
        .arg(&pages)
        .output()
        .unwrap();
    assert!(
        written.status.success(),
        "{}",
        String::from_utf8_lossy(&written.stderr)
    );
    for (page, word) in [
        ("decent.1", "Exit codes"),
        ("decent-rent.1", "nodes"),
        ("decent-contract-show.1", "SYNOPSIS"),
    ] {
        let text = std::fs::read_to_string(pages.join(page)).unwrap();
        assert!(text.contains(word), "{page}: {text}");
    }
}
