//! Runs `nft` in the namespace that the thread stands in. A script is one transaction: all of it holds afterwards, or
//! nothing was changed.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use crate::config::Config;
use crate::effects::netlink::{NLM_F_ACK, Netlink, attribute};
use crate::effects::worker::{in_scratch, os};
use crate::error::NetError;
use crate::listing::{self, Listing, Which};
use crate::rules::Table;

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN` and its answer's attribute (linux/netfilter/nf_tables.h).
const GET_GENERATION: u16 = 0x0a10;
const NFTA_GEN_ID: u16 = 1;

/// What listings are compared with, and what was seen of late.
#[derive(Debug)]
pub(crate) struct References {
    /// The listings that the kernel shows for our rules without elements; see [`Which::reference`].
    host: Listing,
    guard: Listing,
    /// By the namespace's inode: the generation of its rules, which every transaction of anybody raises, and what they were.
    /// Asking for the generation costs microseconds, a listing milliseconds. A std mutex: held for a look-up only.
    seen: Mutex<BTreeMap<u64, (u32, Table)>>,
}

impl References {
    /// Asks the kernel, in a namespace that exists for this only. Proves on the way that `nft` and the kernel can do all
    /// that the rules need.
    pub(crate) fn make(config: &Config) -> Result<Self, NetError> {
        let one = |which: Which| {
            in_scratch(|| {
                load(&which.reference(config), "load the rules into an empty namespace")?;
                listing::read_listing(which, config, &list()?)?.ok_or_else(|| NetError::Answer {
                    from: "nft",
                    why: "a table that was just loaded isn't in the listing".to_owned(),
                })
            })
        };
        Ok(Self {
            host: one(Which::Host)?,
            guard: one(Which::Guard)?,
            seen: Mutex::default(),
        })
    }

    /// What is loaded in the namespace that the thread stands in.
    pub(crate) fn look(&self, which: Which, config: &Config) -> Result<Table, NetError> {
        let namespace = std::fs::metadata("/proc/thread-self/ns/net")
            .map_err(os("look at our namespace"))?
            .ino();
        let generation = generation()?;
        if let Some((_, table)) = self
            .memory()
            .get(&namespace)
            .filter(|(seen, _)| *seen == generation)
        {
            return Ok(table.clone());
        }
        let seen = listing::read_listing(which, config, &list()?)?;
        let reference = match which {
            Which::Host => &self.host,
            Which::Guard => &self.guard,
        };
        let table = listing::judge(seen, reference);
        if self::generation()? == generation {
            self.memory().insert(namespace, (generation, table.clone()));
        }
        Ok(table)
    }

    /// Forgets what was seen. Needed when a namespace goes: its inode number may come back.
    pub(crate) fn forget(&self) {
        self.memory().clear();
    }

    fn memory(&self) -> MutexGuard<'_, BTreeMap<u64, (u32, Table)>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner) // whole entries only: never half changed
    }
}

/// The generation of the rules in the namespace that the thread stands in.
fn generation() -> Result<u32, NetError> {
    let mut netlink = Netlink::open(NETLINK_NETFILTER).map_err(os("open a netfilter socket"))?;
    let answers = netlink
        .ask(GET_GENERATION, NLM_F_ACK, &[0; 4])
        .map_err(os("ask for the rules' generation"))?;
    let read = |answer: &Vec<u8>| {
        Some(u32::from_be_bytes(
            attribute(answer.get(4..)?, NFTA_GEN_ID)?.try_into().ok()?,
        ))
    };
    answers.iter().find_map(read).ok_or_else(|| NetError::Answer {
        from: "nf_tables",
        why: "no generation in its answer".to_owned(),
    })
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
