//! The API over its real socket, with the simulated host behind it.

#![allow(clippy::unwrap_used, reason = "tests may")]

mod sim;

use std::path::Path;
use std::process::{Command, Output};

use hostd::surface;
use hostd::surface::model::{Explanation, Status};
use ledger::api::{ContractState, EndReason};
use sim::money::request;
use sim::{Life, NEVER, World, id, serve};

/// `hostd` as an operator calls it.
async fn hostd(socket: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hostd"));
    command.arg("--socket").arg(socket).args(args);
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_shows_and_ends_contracts_over_the_socket_alone() {
    let world = World::new();
    let life = Life::start(&world, NEVER).await;
    let served = serve(&world, &life, 1).await;
    let socket = served.socket.clone();
    let mut contract = request(id(1), 1);
    contract.args.user_data = b"#!/bin/sh\necho a-tenants-secret\n".to_vec();
    world.change(|state| state.rent(contract));
    world
        .until("active", |state| {
            state.contracts[&id(1)].state == ContractState::Active
        })
        .await;

    let status = hostd(&socket, &["--json", "status"]).await;
    let status: Status = serde_json::from_slice(&status.stdout).unwrap();
    assert!(status.ready, "{:?}", status.not_ready);
    assert_eq!((status.contracts.running, status.capacity.vcpus.used), (1, 1));
    assert!(text(&hostd(&socket, &["status"]).await).contains("1 running"));
    assert!(text(&hostd(&socket, &["contracts"]).await).contains("running"));
    assert!(text(&hostd(&socket, &["vm", "show", "0101"]).await).contains("alive"));

    let explanation = hostd(&socket, &["--json", "explain", "01010101"]).await;
    let explanation: Explanation = serde_json::from_slice(&explanation.stdout).unwrap();
    assert_eq!(explanation.steps.len(), 8);
    assert!(
        explanation
            .configs
            .iter()
            .any(|config| config.name == "simulated" && config.text.contains("cidata"))
    );
    let people = text(&hostd(&socket, &["explain", "01010101"]).await);
    assert!(
        people.contains("launch") && people.contains("203.0.113.1"),
        "{people}"
    );

    // A console is followed until its VM ends; here only what is there already.
    let record = life.journal.record(id(1)).await.unwrap().unwrap();
    let run_dir = record.spec.unwrap().run_dir;
    std::fs::write(run_dir.join("console.log"), b"booting\nlogin: ").unwrap();
    assert_eq!(
        text(&hostd(&socket, &["console", "0101"]).await),
        "booting\nlogin: "
    );
    assert_eq!(
        text(&hostd(&socket, &["console", "0101", "--tail", "7"]).await),
        "login: "
    );

    let bundle = world.dir.path().join("bundle.tar");
    assert!(
        hostd(&socket, &["support-bundle", "--out", bundle.to_str().unwrap()])
            .await
            .status
            .success()
    );
    let bytes = std::fs::read(&bundle).unwrap();
    let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    assert!(holds(b"status.json") && holds(&id(1).to_string().into_bytes()));
    assert!(
        !holds(b"a-tenants-secret") && !holds(b"AAAA test"),
        "tenants' data is in the support bundle"
    );

    for (args, code, says) in [
        (vec!["explain", "ffff"], 1, "no contract here begins with ffff"),
        (vec!["explain", "01"], 1, "at least 4"),
        (vec!["explain", "../../etc"], 1, "isn't the beginning"),
        (
            vec!["vm", "end", "0101", "--reason", "x", "--yes", "no"],
            2,
            "say --yes 01010101",
        ),
        (
            vec!["vm", "end", "0101", "--reason", " ", "--yes", "01010101"],
            1,
            "1–400 characters",
        ),
        (vec!["fly"], 2, "unrecognized"),
    ] {
        let output = hostd(&socket, &args).await;
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output));
        assert!(text(&output).contains(says), "{args:?}: {}", text(&output));
    }
    assert!(text(&hostd(&socket, &["drain"]).await).contains("drains"));
    assert_eq!(
        world.contract(id(1)).state,
        ContractState::Active,
        "nothing so far may end it"
    );
    let ended = hostd(
        &socket,
        &[
            "vm",
            "end",
            "0101",
            "--reason",
            "disk trouble",
            "--yes",
            "01010101",
        ],
    )
    .await;
    assert!(ended.status.success(), "{}", text(&ended));
    world
        .until("released", |state| state.contracts[&id(1)].released)
        .await;
    assert_eq!(
        world.contract(id(1)).state,
        ContractState::Ended(EndReason::VmGone)
    );

    life.kill().await;
    let gone = hostd(&world.dir.path().join("nobody.sock"), &["status"]).await;
    assert_eq!(gone.status.code(), Some(3), "{}", text(&gone));
    assert_eq!(world.leftovers(), [] as [String; 0]);
}

#[tokio::test]
async fn the_document_names_every_path_and_the_socket_is_not_for_everyone() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let life = Life::start(&world, NEVER).await;
    let served = serve(&world, &life, 1).await;
    let socket = served.socket.clone();
    assert_eq!(
        std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
        0o660
    );
    let document: serde_json::Value = serde_json::from_str(&surface::openapi()).unwrap();
    let paths: Vec<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(
        paths,
        [
            "/healthz",
            "/metrics",
            "/readyz",
            "/v1/contracts",
            "/v1/contracts/{id}",
            "/v1/contracts/{id}/console",
            "/v1/contracts/{id}/end",
            "/v1/contracts/{id}/evidence",
            "/v1/contracts/{id}/vm",
            "/v1/doctor",
            "/v1/drain",
            "/v1/events",
            "/v1/inventory",
            "/v1/maintenance",
            "/v1/money",
            "/v1/power-off",
            "/v1/status",
            "/v1/support-bundle",
            "/v1/update",
            "/v1/update/apply",
            "/v1/update/check",
            "/v1/update/rollback",
            "/v1/update/stage"
        ]
    );
}
