//! `attest show`: every field, decoded; no verdict.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use attestation::snp::{Report, certificate_claims};
use attestation::{CpuEvidence, Evidence};
use serde_json::{Value, json};

use super::input;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Evidence (CBOR), or a raw SNP report of 1184 bytes
    evidence: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let shown = decode(&input::evidence(&args.evidence)??)?;
    if args.json {
        println!("{shown:#}");
    } else {
        print_tree(&shown, 0);
        println!("\nNot verified: `attest show` judges nothing.");
    }
    Ok(ExitCode::SUCCESS)
}

fn decode(evidence: &Evidence) -> Result<Value> {
    let cpu = match &evidence.cpu {
        CpuEvidence::None => json!({ "kind": "none" }),
        CpuEvidence::SevSnp { report, certificates } => {
            let report = Report::parse(report)?;
            let certificates: Vec<Value> = certificates.iter().map(|der| certificate_claims(der)).collect();
            // A version 2 report doesn't say its product; its certificate's issuer does.
            let product = report.product().or_else(|| {
                let named = certificates
                    .iter()
                    .find_map(|certificate| certificate["product"].as_str());
                attestation::snp::Product::ALL
                    .into_iter()
                    .find(|product| Some(product.name()) == named)
            });
            let mut claims = report.claims(product);
            claims["signature"] = json!(hex::encode(&report.raw()[attestation::snp::SIGNED_LEN..][..144]));
            claims["certificates"] = json!(certificates);
            claims
        }
    };
    let keys = &evidence.guest_keys;
    Ok(json!({
        "cpu": cpu,
        "guest_keys": {
            "ssh_host_key": keys.ssh_host_key.as_ref().map(|key| key.as_str()),
            "tls_spki": keys.tls_spki.as_ref().map(hex::encode),
            "wireguard": keys.wireguard.map(hex::encode),
            "digest": hex::encode(keys.digest()),
        },
    }))
}

fn print_tree(value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    let Value::Object(fields) = value else { return };
    for (name, value) in fields {
        match value {
            Value::Object(_) => {
                println!("{indent}{name}:");
                print_tree(value, depth + 1);
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                for (n, item) in items.iter().enumerate() {
                    println!("{indent}{name}[{n}]:");
                    print_tree(item, depth + 1);
                }
            }
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(plain).collect();
                println!("{indent}{name}: {}", items.join(" "));
            }
            _ => println!("{indent}{name}: {}", plain(value)),
        }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
