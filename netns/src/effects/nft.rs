//! Runs `nft` in the namespace that the thread stands in. A script is one transaction: all of it holds afterwards, or
//! nothing was changed.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::config::Config;
use crate::effects::worker::{in_scratch, os};
use crate::error::NetError;
use crate::rules::{self, Listing, Table, Which};

/// The listings that the kernel shows for our rules without elements; see [`Which::reference`].
#[derive(Clone, Debug)]
pub(crate) struct References {
    host: Listing,
    guard: Listing,
}

impl References {
    /// Asks the kernel, in a namespace that exists for this only. Proves on the way that `nft` and the kernel can do all
    /// that the rules need.
    pub(crate) fn make(config: &Config) -> Result<Self, NetError> {
        let one = |which: Which| {
            in_scratch(|| {
                load(&which.reference(config), "load the rules into an empty namespace")?;
                rules::read_listing(which, config, &list()?)?.ok_or_else(|| NetError::Answer {
                    from: "nft",
                    why: "a table that was just loaded isn't in the listing".to_owned(),
                })
            })
        };
        Ok(Self {
            host: one(Which::Host)?,
            guard: one(Which::Guard)?,
        })
    }

    /// What is loaded in the namespace that the thread stands in.
    pub(crate) fn look(&self, which: Which, config: &Config) -> Result<Table, NetError> {
        let listing = rules::read_listing(which, config, &list()?)?;
        Ok(rules::judge(
            listing,
            match which {
                Which::Host => &self.host,
                Which::Guard => &self.guard,
            },
        ))
    }
}

/// Loads a script.
pub(crate) fn load(script: &str, what: &str) -> Result<(), NetError> {
    run(&["-f", "-"], script, what).map(drop)
}

/// All rules, as JSON.
fn list() -> Result<String, NetError> {
    run(&["-j", "list", "ruleset"], "", "list the rules")
}

fn run(arguments: &[&str], input: &str, what: &str) -> Result<String, NetError> {
    let program = PathBuf::from("nft");
    let mut path = std::env::var("PATH").unwrap_or_default();
    path.push_str(":/usr/sbin:/sbin"); // a service's PATH may lack them
    let mut child = Command::new(&program)
        .args(arguments)
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| NetError::Program {
            program,
            package: "nftables",
            source,
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        // nft reads to the end before it writes, so neither side waits for the other. If it died early, its words tell.
        let _ = stdin.write_all(input.as_bytes());
    }
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output().map_err(os("wait for nft"))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&stderr)
            .trim()
            .chars()
            .take(2000)
            .collect();
        return Err(NetError::Command {
            program: "nft",
            what: what.to_owned(),
            said,
        });
    }
    String::from_utf8(stdout).map_err(|error| NetError::Answer {
        from: "nft",
        why: error.to_string(),
    })
}
