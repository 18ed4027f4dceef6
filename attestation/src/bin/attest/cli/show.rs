//! `attest show`: every field, decoded; no verdict.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::Value;

use super::input::{self, Found};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Evidence of any kind: raw, hex, base64, JSON or this program's CBOR
    evidence: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let shown = input::evidence(&args.evidence, &mut Found::default())?.claims();
    if args.json {
        outln!("{shown:#}");
    } else {
        print_tree(&shown, 0);
        outln!("\nNot verified: `attest show` judges nothing.");
    }
    Ok(ExitCode::SUCCESS)
}

fn print_tree(value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    let Value::Object(fields) = value else { return };
    for (name, value) in fields {
        match value {
            Value::Object(_) => {
                outln!("{indent}{name}:");
                print_tree(value, depth + 1);
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                for (n, item) in items.iter().enumerate() {
                    outln!("{indent}{name}[{n}]:");
                    print_tree(item, depth + 1);
                }
            }
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(plain).collect();
                outln!("{indent}{name}: {}", items.join(" "));
            }
            _ => outln!("{indent}{name}: {}", plain(value)),
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
