//! `hostd doctor --offline`, as an operator runs it before the first start.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::process::Command;

#[test]
fn the_offline_doctor_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().display();
    let config = include_str!("../hostd.example.toml")
        .replace("/var/lib/hostd", &format!("{here}/lib"))
        .replace("/run/hostd", &format!("{here}/run"))
        .replace("/etc/hostd", &format!("{here}/etc"))
        .replace("https://ledger.example.org", "http://127.0.0.1:1");
    let file = dir.path().join("hostd.toml");
    std::fs::write(&file, config).unwrap();
    let mut hostd = Command::new(env!("CARGO_BIN_EXE_hostd"));
    let output = hostd
        .args(["--json", "--config"])
        .arg(&file)
        .args(["doctor", "--offline"])
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("storage"), "no report:\n{text}");
    let there: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert_eq!(there, ["hostd.toml"], "it made something");
}
