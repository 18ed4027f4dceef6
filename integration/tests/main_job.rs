//! The main job as a test: the same code as `make demo`, under another prefix.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use integration::main_job::{self, Options};

/// Goal: a paid contract becomes a verified, reachable VM and is settled. Method: the job itself asserts every step;
/// here it must come to its end and leave nothing behind.
#[test]
fn a_paid_contract_becomes_a_verified_reachable_vm_and_is_settled() {
    let image = std::env::var_os("DC_TENANT_IMAGE").map(PathBuf::from).expect(
        "DC_TENANT_IMAGE must name the folder that `image-builder tenant` made: run this test by `make test` or `make main-job`",
    );
    let programs = PathBuf::from(env!("CARGO_BIN_EXE_demo"))
        .parent()
        .unwrap()
        .to_owned();
    let stop = Arc::new(AtomicBool::new(false));
    let keep_logs = std::env::var_os("DC_KEEP_LOGS").map(PathBuf::from);
    let table = main_job::run(&Options {
        image,
        programs,
        prefix: "dctest".to_owned(),
        stop,
        keep_logs,
    })
    .unwrap();
    println!("{table}");
}
