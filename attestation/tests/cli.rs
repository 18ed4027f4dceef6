//! The command `attest` as people and scripts use it: files in, exit code and pins out.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use attestation::sim::{Launch, Platform};
use attestation::{Binding, CpuEvidence, Evidence, GuestKeys};
use serde_json::Value;

const SSH_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBoBSaZrGNRYY5vX2dnQa8Kt5j3sI0gTp4TcHqVlVtZi";

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/snp")
}

fn attest(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_attest"))
        .args(args)
        .output()
        .unwrap()
}

fn json(args: &[&str]) -> (Option<i32>, Value) {
    let out = attest(args);
    let value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| {
        panic!(
            "{args:?}: {e}: {} {}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        )
    });
    (out.status.code(), value)
}

#[test]
fn exit_codes_say_verified_refused_or_cannot_tell() {
    let v = vectors();
    let path = |name: &str| v.join(name).to_str().unwrap().to_owned();
    let folder = tempfile::tempdir().unwrap();
    let short = folder.path().join("short");
    std::fs::write(&short, vec![3; 100]).unwrap();
    let long = folder.path().join("long");
    std::fs::File::create(&long).unwrap().set_len(1 << 30).unwrap();
    let empty = folder.path().join("empty");
    std::fs::write(&empty, []).unwrap();
    let (genoa, debug) = (path("genoa-v3-msft"), path("milan-v2-google-DEBUG"));
    let (genoa_report, debug_report) = (format!("{genoa}/report.bin"), format!("{debug}/report.bin"));
    let (short, empty, long) = (
        short.to_str().unwrap(),
        empty.to_str().unwrap(),
        long.to_str().unwrap(),
    );
    for (args, code, verdict, reasons) in [
        (
            vec![genoa_report.as_str(), "--endorsements", &genoa],
            0,
            "verified",
            vec![],
        ),
        (
            vec![&genoa_report, "--endorsements", &v.to_str().unwrap()],
            1,
            "refused",
            vec!["ChainInvalid"],
        ),
        (
            vec![&genoa_report],
            2,
            "indeterminate",
            vec!["EndorsementsMissing"],
        ),
        (
            vec![&debug_report, "--endorsements", &debug],
            1,
            "refused",
            vec!["DebugAllowed"],
        ),
        (vec![short], 1, "refused", vec!["Malformed"]),
        (vec![empty], 1, "refused", vec!["Malformed"]),
        (vec![long], 1, "refused", vec!["Malformed"]),
        (vec!["/nonexistent"], 2, "indeterminate", vec!["Unreadable"]),
        (vec![&genoa], 2, "indeterminate", vec!["Unreadable"]),
        (
            vec![
                &genoa_report,
                "--endorsements",
                &genoa,
                "--endorsements",
                "/nonexistent",
            ],
            2,
            "indeterminate",
            vec!["Unreadable"],
        ),
        (
            vec![&genoa_report, "--endorsements", &genoa_report],
            2,
            "indeterminate",
            vec!["EndorsementsMissing", "Unreadable"],
        ),
        (
            vec![&debug_report, "--endorsements", &debug, "--endorsements", empty],
            1,
            "refused",
            vec!["DebugAllowed", "Unreadable"],
        ),
    ] {
        let mut all = vec!["verify", "--json", "--at", "2026-09-01"];
        all.extend(&args);
        if args.contains(&v.to_str().unwrap()) {
            // A folder with everything: what fits is found among it.
            assert_eq!(attest(&all).status.code(), Some(0), "{args:?}");
            continue;
        }
        let (got, result) = json(&all);
        assert_eq!(got, Some(code), "{args:?}: {result:#}");
        assert_eq!(result["verdict"], verdict);
        assert_eq!(result["reasons"], serde_json::json!(reasons));
    }
    for args in [
        vec!["verify", &genoa_report, "--at", "yesterday"],
        vec!["verify", &genoa_report, "--expect-report-data", ""],
        vec!["verify", &genoa_report, "--expect-report-data", "0"],
        vec!["verify", &genoa_report, "--expect-report-data", &"00".repeat(65)],
        vec!["verify", &genoa_report, "--require", "everything"],
        vec!["verify", &genoa_report, "--contract", &"00".repeat(32)],
        vec!["verify", &genoa_report, "--trust-root", &genoa_report],
        vec!["show", short],
    ] {
        let out = attest(&args);
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        assert!(
            out.stdout.is_empty() && !out.stderr.is_empty(),
            "{args:?} says why, on stderr"
        );
    }
}

/// Bundles that were made on 2026-11-23: they are to give the same verdict years later.
#[test]
fn recorded_bundles_keep_their_verdict() {
    for (name, at) in [("snp-genoa-v3-msft", "2026-09-01"), ("tdx-v4-near", "1773198539")] {
        let bundle = vectors().join(format!("../bundle/{name}.cbor"));
        let (bundle, require) = (bundle.to_str().unwrap(), ["--require", "revocation"]);
        let args = [&["verify", bundle, "--json", "--at", at][..], &require].concat();
        let (code, result) = json(&args);
        assert_eq!(code, Some(0), "{name}: {result:#}");
    }
}

/// Nobody may make the command wait for ever, nor hide that something named couldn't be read.
#[test]
fn pipes_and_locked_folders_get_an_answer() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let made = Command::new("mkfifo").arg(at("pipe")).status().unwrap();
    assert!(made.success());
    let (code, silent) = json(&["verify", "--json", at("pipe").to_str().unwrap()]);
    assert_eq!(code, Some(2));
    assert_eq!(silent["reasons"], serde_json::json!(["Unreadable"]), "{silent:#}");

    let genoa = vectors().join("genoa-v3-msft");
    let report = std::fs::read(genoa.join("report.bin")).unwrap();
    let pipe = at("pipe");
    let writer = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        std::fs::write(pipe, report).unwrap();
    });
    let vek = genoa.join("vek.der");
    let (pipe, vek) = (at("pipe"), vek.to_str().unwrap());
    let args = [
        "verify",
        "--json",
        "--at",
        "2026-09-01",
        pipe.to_str().unwrap(),
        "--endorsements",
        vek,
    ];
    let (code, written) = json(&args);
    writer.join().unwrap();
    assert_eq!(code, Some(0), "{written:#}");

    // As somebody who isn't root: root may read everything.
    let copy = |from: &Path, name: &str| std::fs::copy(from, at(name)).unwrap();
    copy(Path::new(env!("CARGO_BIN_EXE_attest")), "attest");
    copy(&genoa.join("report.bin"), "report.bin");
    copy(&genoa.join("vek.der"), "vek.der");
    std::fs::create_dir(at("locked")).unwrap();
    let allow = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    allow(folder.path(), 0o755);
    allow(&at("locked"), 0);
    let mut command = Command::new(at("attest"));
    if std::fs::read_dir(at("locked")).is_ok() {
        command.uid(65_534);
    }
    let out = command
        .current_dir(folder.path())
        .args(["verify", "report.bin", "--json", "--at", "2026-09-01"])
        .args(["--endorsements", "vek.der", "--endorsements", "locked"])
        .output()
        .unwrap();
    allow(&at("locked"), 0o755);
    let result: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(
        (out.status.code(), &result["reasons"][0]),
        (Some(2), &Value::from("Unreadable"))
    );
}

/// What people have beside evidence: other encodings, line ends, links, and files that are something else.
#[test]
fn endorsements_are_found_in_whatever_form_they_lie_there() {
    use base64::Engine;
    let v = vectors();
    let report = v.join("genoa-v3-msft/report.bin").to_str().unwrap().to_owned();
    let der = std::fs::read(v.join("genoa-v3-msft/vek.der")).unwrap();
    let base64 = base64::engine::general_purpose::STANDARD.encode(&der);
    let lines: Vec<&str> = base64
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    let pem = |end: &str| {
        let body = lines.join(end);
        format!("-----BEGIN CERTIFICATE-----{end}{body}{end}-----END CERTIFICATE-----{end}").into_bytes()
    };
    for (form, content) in [
        ("DER", der.clone()),
        ("PEM", pem("\n")),
        ("PEM with CRLF", pem("\r\n")),
        ("hex", hex::encode(&der).into_bytes()),
        ("base64", base64.clone().into_bytes()),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("a-vek"), &content).unwrap();
        std::fs::write(at("report.bin"), [7; 1184]).unwrap();
        std::fs::write(at("empty"), []).unwrap();
        std::os::unix::fs::symlink(at("nowhere"), at("dangling")).unwrap();
        std::os::unix::fs::symlink(at("circle"), at("circle")).unwrap();
        let folder = folder.path().to_str().unwrap();
        let args = [
            "verify",
            "--json",
            "--at",
            "2026-09-01",
            &report,
            "--endorsements",
            folder,
        ];
        let (code, result) = json(&args);
        assert_eq!(code, Some(0), "{form}: {result:#}");
        let warnings = result["warnings"].to_string();
        assert!(
            warnings.contains("dangling") && warnings.contains("circle"),
            "{form}: {warnings}"
        );
        assert!(
            !warnings.contains("report.bin") && !warnings.contains("empty"),
            "{form}: {warnings}"
        );
        let file = format!("{folder}/a-vek");
        let args = [
            "verify",
            "--json",
            "--at",
            "2026-09-01",
            &report,
            "--endorsements",
            &file,
        ];
        assert_eq!(json(&args).0, Some(0), "{form} as a file");
    }
}

#[test]
fn evidence_is_read_in_whatever_form_it_comes() {
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    let folder = tempfile::tempdir().unwrap();
    let genoa = vectors().join("genoa-v3-msft");
    let report = std::fs::read(genoa.join("report.bin")).unwrap();
    let noise: Vec<u8> = (0..4_000_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let (ok, bad) = ((0, "verified"), (1, "refused"));
    for (form, content, (code, verdict)) in [
        ("raw", report.clone(), ok),
        ("hex", hex::encode(&report).into_bytes(), ok),
        (
            "0x",
            format!("0x{}\r\n", hex::encode_upper(&report)).into_bytes(),
            ok,
        ),
        ("base64", STANDARD.encode(&report).into_bytes(), ok),
        ("base64url", URL_SAFE_NO_PAD.encode(&report).into_bytes(), ok),
        ("a byte less", report[..1183].to_vec(), bad),
        ("a byte more", [&report[..], &[0]].concat(), bad),
        (
            "a byte more in hex",
            hex::encode([&report[..], &[0]].concat()).into_bytes(),
            bad,
        ),
        ("noise", noise, bad),
        ("zeros", vec![0; 1184], bad),
        ("JSON", b"{\"report\": 1}".to_vec(), bad),
        (
            "deep JSON",
            [vec![b'['; 100_000], vec![b']'; 100_000]].concat(),
            bad,
        ),
    ] {
        let file = folder.path().join("evidence");
        std::fs::write(&file, content).unwrap();
        let (file, genoa) = (file.to_str().unwrap(), genoa.to_str().unwrap());
        let started = std::time::Instant::now();
        let (got, result) = json(&[
            "verify",
            file,
            "--json",
            "--at",
            "2026-09-01",
            "--endorsements",
            genoa,
        ]);
        assert_eq!(
            (got, &result["verdict"]),
            (Some(code), &verdict.into()),
            "{form}: {result:#}"
        );
        assert!(started.elapsed().as_secs() < 10, "{form} in bounded time");
    }
}

#[test]
fn a_bundle_gives_the_verdict_that_its_files_gave() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let genoa = vectors().join("genoa-v3-msft");
    let (report, genoa) = (
        genoa.join("report.bin").to_str().unwrap().to_owned(),
        genoa.to_str().unwrap(),
    );
    let (bundle, parts) = (at("bundle"), at("parts"));
    let bundled = attest(&["bundle", &report, "--endorsements", genoa, "--out", &bundle]);
    assert!(bundled.status.success(), "{bundled:?}");
    let verify = |evidence: &str, more: &[&str]| {
        json(&[&["verify", "--json", "--at", "2026-09-01", evidence], more].concat())
    };
    let direct = verify(&report, &["--endorsements", genoa]);
    assert_eq!(direct.0, Some(0));
    assert_eq!(verify(&bundle, &[]), direct);
    assert!(attest(&["unbundle", &bundle, "--out", &parts]).status.success());
    assert!(
        !attest(&["unbundle", &bundle, "--out", &parts]).status.success(),
        "nothing is overwritten"
    );
    let (evidence, endorsements) = (format!("{parts}/evidence"), format!("{parts}/endorsements"));
    assert_eq!(verify(&evidence, &["--endorsements", &endorsements]), direct);
    let (_, shown) = json(&["unbundle", &bundle, "--json"]);
    assert_eq!(shown["endorsements"].as_array().unwrap().len(), 1, "{shown:#}");
    // Cut anywhere, or longer, it is no bundle.
    let whole = std::fs::read(&bundle).unwrap();
    for content in [
        &whole[..whole.len() - 1],
        &whole[..40],
        &[&whole[..], &[0]].concat(),
    ] {
        std::fs::write(&bundle, content).unwrap();
        let (code, result) = verify(&bundle, &[]);
        assert_eq!(
            (code, &result["reasons"]),
            (Some(1), &serde_json::json!(["Malformed"]))
        );
    }
}

#[test]
fn a_reader_that_stops_reading_doesnt_change_the_exit_code() {
    let genoa = vectors().join("genoa-v3-msft");
    let mut attest = Command::new(env!("CARGO_BIN_EXE_attest"))
        .args(["verify", "--json", "--at", "2026-09-01", "--endorsements"])
        .args([&genoa, &genoa.join("report.bin")])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(attest.stdout.take());
    let done = attest.wait_with_output().unwrap();
    assert_eq!((done.status.code(), done.stderr), (Some(0), Vec::new()));
}

#[test]
fn a_wrong_clock_is_a_reason() {
    let genoa = vectors().join("genoa-v3-msft");
    let (report, genoa) = (genoa.join("report.bin"), genoa.to_str().unwrap());
    let report = report.to_str().unwrap();
    for (at, reason) in [
        ("0", "CertificateNotYetValid"),
        ("1970-01-01", "CertificateNotYetValid"),
        ("2100-01-01", "CertificateExpired"),
        ("18446744073709551615", "CertificateExpired"),
    ] {
        let (code, result) = json(&["verify", report, "--json", "--at", at, "--endorsements", genoa]);
        assert_eq!(code, Some(1), "{at}");
        assert_eq!(result["reasons"], serde_json::json!([reason]), "{at}");
    }
}

#[test]
fn a_contracts_evidence_gives_pins_only_once_verified_and_bound() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let platform = Platform::create().unwrap();
    let guest_keys = GuestKeys {
        ssh_host_key: Some(SSH_KEY.parse().unwrap()),
        tls_spki: Some(b"any key".to_vec()),
        wireguard: None,
        settings: Some(attestation::settings_digest(
            [SSH_KEY].into_iter(),
            b"#!/bin/sh\n",
        )),
    };
    let salt = [0xaa; 32];
    let contract = attestation::contract_id(&salt, &guest_keys.settings.unwrap());
    let nonce = [0xbb; 32];
    let binding = Binding {
        ledger: &[0, 0, 0, 0, 0, 0, 0, 2, 1, 1],
        contract,
        nonce,
    };
    let launch = Launch {
        measurement: [0xcc; 48],
        host_data: contract,
        policy: 0x3_0000,
    };
    let report = platform
        .report(&launch, &binding.report_data(&guest_keys))
        .unwrap();
    let cpu = CpuEvidence::SevSnp {
        report,
        certificates: platform.certificates(),
    };
    std::fs::write(file("evidence"), Evidence { cpu, guest_keys }.to_cbor()).unwrap();
    std::fs::write(file("root"), platform.root()).unwrap();
    let (evidence, root) = (file("evidence"), file("root"));
    let (hosts, pin) = (file("known_hosts"), file("pin"));
    let (contract, salt) = (hex::encode(contract), hex::encode(salt));
    let (nonce, measurement) = ("bb".repeat(32), "cc".repeat(48));
    let wrong = "bc".repeat(32);
    let base = |nonce: &str| -> Vec<String> {
        [
            "verify",
            &evidence,
            "--json",
            "--at",
            "2026-09-01",
            "--contract",
            &contract,
            "--ledger",
            "ryjl3-tyaaa-aaaaa-aaaba-cai",
            "--nonce",
            nonce,
            "--measurement",
            &measurement,
            "--known-hosts",
            "203.0.113.1:2201",
            "--out-known-hosts",
            &hosts,
            "--out-tls-pin",
            &pin,
        ]
        .map(str::to_owned)
        .to_vec()
    };
    let with = |mut args: Vec<String>, more: &[&str]| {
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        json(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let (code, result) = with(base(&nonce), &[]);
    assert_eq!(
        (code, &result["reasons"]),
        (Some(1), &serde_json::json!(["UntrustedRoot"]))
    );
    let (code, result) = with(base(&wrong), &["--trust-root", &root]);
    assert_eq!(
        (code, &result["reasons"]),
        (Some(1), &serde_json::json!(["ReportDataMismatch"]))
    );
    assert!(
        !Path::new(&hosts).exists() && !Path::new(&pin).exists(),
        "no pins for refused evidence"
    );
    std::fs::write(file("asked.pub"), format!("{SSH_KEY}\n")).unwrap();
    std::fs::write(file("user-data"), "#!/bin/sh\n").unwrap();
    let (asked, user_data) = (file("asked.pub"), file("user-data"));
    for (args, code, reasons) in [
        (vec!["--ssh-key", &asked, "--user-data", &user_data], 0, vec![]),
        (vec!["--ssh-key", &asked], 1, vec!["SettingsMismatch"]),
        (vec!["--user-data", &user_data], 1, vec!["SettingsMismatch"]),
        (
            vec![
                "--ssh-key",
                &asked,
                "--ssh-key",
                &asked,
                "--user-data",
                &user_data,
            ],
            1,
            vec!["SettingsMismatch"],
        ),
        (
            vec!["--salt", &salt, "--ssh-key", &asked, "--user-data", &user_data],
            0,
            vec![],
        ),
        (
            vec!["--salt", &wrong, "--ssh-key", &asked, "--user-data", &user_data],
            1,
            vec!["ContractIdMismatch"],
        ),
        // No keys and no user data means none, once there is a salt.
        (
            vec!["--salt", &salt],
            1,
            vec!["ContractIdMismatch", "SettingsMismatch"],
        ),
    ] {
        let (got, result) = with(
            base(&nonce),
            &[&["--trust-root", root.as_str()], &args[..]].concat(),
        );
        assert_eq!(
            (got, &result["reasons"]),
            (Some(code), &serde_json::json!(reasons)),
            "{args:?}"
        );
    }
    let _ = std::fs::remove_file(&hosts);
    let _ = std::fs::remove_file(&pin);
    let (code, result) = with(
        base(&nonce),
        &["--trust-root", &root, "--require", "freshness,measurement"],
    );
    assert_eq!(code, Some(0), "{result:#}");
    assert_eq!(
        (&result["trust"], &result["grade"]),
        (&"test-root".into(), &"hardware-verified".into())
    );
    assert_eq!(
        std::fs::read_to_string(&hosts).unwrap(),
        format!("[203.0.113.1]:2201 {SSH_KEY}\n")
    );
    let pin_text = std::fs::read_to_string(&pin).unwrap();
    assert!(
        pin_text.starts_with("sha256//") && pin_text.trim_end().len() == 8 + 44,
        "{pin_text}"
    );
    // Verified, but nothing says whose keys these are.
    std::fs::remove_file(&pin).unwrap();
    let args = [
        "verify",
        &evidence,
        "--at",
        "2026-09-01",
        "--trust-root",
        &root,
        "--out-tls-pin",
        &pin,
    ];
    assert_eq!(attest(&args).status.code(), Some(2));
    assert!(!Path::new(&pin).exists());
}

#[test]
fn show_decodes_and_judges_nothing() {
    let report = vectors().join("turin-v5-msft/report.bin");
    let (code, shown) = json(&["show", "--json", report.to_str().unwrap()]);
    assert_eq!(code, Some(0));
    assert_eq!(shown["cpu"]["product"], "turin");
    assert_eq!(shown["cpu"]["tcb"]["reported"]["microcode"], 81);
    assert!(shown.get("verdict").is_none());
}

#[test]
fn help_and_completions_are_there() {
    for args in [
        &["--help"][..],
        &["verify", "--help"],
        &["measure", "snp", "--help"],
        &["agent", "--help"],
    ] {
        let out = attest(args);
        assert_eq!(out.status.code(), Some(0), "{args:?}");
        assert!(out.stdout.len() > 200, "{args:?}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            String::from_utf8(attest(&["completions", shell]).stdout)
                .unwrap()
                .contains("attest")
        );
    }
    let version = String::from_utf8(attest(&["--version"]).stdout).unwrap();
    assert_eq!(version.lines().count(), 1);
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.toml");
    std::fs::write(&policy, attest(&["policy", "init"]).stdout).unwrap();
    assert!(
        attest(&["policy", "check", policy.to_str().unwrap()])
            .status
            .success()
    );
    std::fs::write(&policy, "allow_debgu = true").unwrap();
    assert_eq!(
        attest(&["policy", "check", policy.to_str().unwrap()])
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn tdx_registers_are_measured_from_what_is_given() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let log = vectors().join("../ccel/lunal-live2.ccel");
    std::fs::write(path("short"), [0; 100]).unwrap();
    for (row, args) in [
        ("no file", vec!["measure", "tdx", "--firmware", "/nonexistent"]),
        ("no firmware", vec!["measure", "tdx"]),
        (
            "short firmware",
            vec!["measure", "tdx", "--firmware", &path("short")],
        ),
        (
            "memory alone",
            vec!["measure", "tdx", "--firmware", &path("short"), "--memory", "1024"],
        ),
        (
            "no firmware table",
            vec!["measure", "tdx", "--firmware", log.to_str().unwrap()],
        ),
    ] {
        let out = attest(&args);
        assert!(!out.status.success() && out.stdout.is_empty(), "{row}");
        assert!(!out.stderr.is_empty(), "{row}");
    }
}

#[test]
fn tdx_quotes_are_judged_with_the_collateral_that_is_given() {
    let folder = vectors().join("../tdx/tdx-v4-lunaldev-3ab56d67");
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let quote = path("quote.bin");
    let folder = folder.to_str().unwrap();
    // The folder holds collateral of March and of August: the time decides.
    let at = |time: &str| json(&["verify", &quote, "--endorsements", folder, "--at", time, "--json"]);
    let (code, result) = at("2026-03-31T07:22:37Z");
    assert_eq!((code, &result["verdict"]), (Some(0), &Value::from("verified")));
    assert_eq!(result["claims"]["tcb"]["status"], "UpToDate");
    let (code, result) = at("2026-08-28T05:21:24Z");
    assert_eq!(
        (code, &result["reasons"][0]),
        (Some(1), &Value::from("OutOfDate"))
    );
    let (code, result) = json(&["verify", &quote, "--at", "2026-03-31T07:22:37Z", "--json"]);
    assert_eq!(
        (code, &result["reasons"][0]),
        (Some(2), &Value::from("CollateralMissing"))
    );
    let (code, shown) = json(&["show", &quote, "--json"]);
    assert_eq!(code, Some(0));
    let text = shown.to_string();
    assert!(
        text.contains("b0c06f000000") && text.contains("sept-ve-disable"),
        "{text}"
    );
}

/// M22: what is expected is all there is, never the beginning of it.
#[test]
fn report_data_are_expected_whole() {
    let snp = vectors().join("genoa-v3-azure-trustee");
    let tdx = vectors().join("../tdx/tdx-v4-near-b9e238b2");
    let folders = [(&snp, "report.bin", 0x50), (&tdx, "quote.bin", 568)];
    for (folder, name, at) in folders {
        let evidence = folder.join(name);
        let own = hex::encode(&std::fs::read(&evidence).unwrap()[at..at + 64]);
        let wrong = own.replace('b', "c");
        for (expected, right) in [
            (own.as_str(), true),
            (&own.to_uppercase(), true),
            (&own[..126], false),
            (&own[..64], false),
            (&own[..2], false),
            (&wrong, false),
        ] {
            let (_, result) = json(&[
                "verify",
                "--json",
                "--at",
                "1773198539",
                evidence.to_str().unwrap(),
                "--endorsements",
                folder.to_str().unwrap(),
                "--expect-report-data",
                expected,
            ]);
            let (verdict, reasons) = match right {
                true => ("verified", serde_json::json!([])),
                false => ("refused", serde_json::json!(["ReportDataMismatch"])),
            };
            assert_eq!(
                (&result["verdict"], &result["reasons"]),
                (&Value::from(verdict), &reasons),
                "{expected}"
            );
        }
    }
}

#[test]
fn a_gpus_nonce_has_32_bytes() {
    let evidence = vectors().join("../gpu/json/hopper_evidence.json");
    let right = "e97b23a1718095a0e9e35edca810768c70a6a5a389b705e753b197912bc11576";
    let padded = format!("{right}{}", "00".repeat(32));
    let wrong = right.replace("76", "77");
    for (nonce, want) in [(right, 0), (&padded, 0), (&wrong, 1), (&right[..62], 1)] {
        let out = attest(&[
            "verify",
            evidence.to_str().unwrap(),
            "--expect-report-data",
            nonce,
        ]);
        assert_eq!(out.status.code(), Some(want), "{nonce}");
    }
}
