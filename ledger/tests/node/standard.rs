//! DFINITY's own conformance tests of ICRC-1 and ICRC-2, unmodified, with the ic-agent that they were built with (0.31).

use std::process::Stdio;

use tokio::process::Command;

use crate::world::{Place, wall};

/// Goal: whoever knows the standards knows this token. Method: `icrc1-test-runner` 0.2.0 from crates.io against a node; it
/// runs the tests of every standard that the ledger names, and each must be ok.
#[tokio::test(flavor = "multi_thread")]
async fn the_standards_own_tests_pass() {
    let runner = std::env::var_os("DC_ICRC1_TEST_RUNNER")
        .expect("DC_ICRC1_TEST_RUNNER names the program icrc1-test-runner 0.2.0: run `make unit`");
    // Not behind the wall clock, by which the runner goes.
    let place = Place::with_clock(1, wall() / 1_000_000_000 + 1);
    let key = place.dir.path().join("key.pem");
    let rich = std::fs::read_to_string(place.rich_pem()).unwrap();
    let rich = ic_ed25519::PrivateKey::deserialize_pkcs8_pem(&rich).unwrap();
    // That ic-agent reads keys as ring wrote them only.
    let rings = ic_ed25519::PrivateKeyFormat::Pkcs8v2WithRingBug;
    std::fs::write(&key, rich.serialize_pkcs8_pem(rings)).unwrap();
    let running = place.serve().await;
    let output = Command::new(runner)
        .args(["--url", &format!("http://{}", running.address)])
        .args(["--canister", &running.canister.to_text(), "--secret-key"])
        .arg(&key)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{output:?}");
    let passed = said.lines().filter(|line| line.starts_with("ok ")).count();
    assert_eq!((passed, said.contains("not ok")), (16, false), "{said}");
    running.stop().await;
}
