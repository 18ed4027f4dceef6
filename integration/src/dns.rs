//! A DNS server on the internet's side of a world: dnsmasq, which knows what it is told and nothing else.

use std::time::Duration;

use anyhow::Result;

use crate::fleet::wait_for;
use crate::main_job::world::{self, Place, WAN_ADDRESS, World};

/// What the program is called in a world.
const NAME: &str = "dnsmasq";

/// Everything under here is the server's: what it doesn't have, doesn't exist (RFC 6761: never a real domain).
pub const ZONE: &str = "example.test";

/// Serves these TXT records (name, text) of [`ZONE`] at [`WAN_ADDRESS`], in place of those before. Returns when it answers.
pub fn serve(world: &mut World, records: &[(String, String)]) -> Result<()> {
    stop(world)?;
    let mut command = world.command(Place::Internet, NAME);
    command.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
    ]);
    command.args([
        "--user=root",
        "--pid-file=",
        "--bind-interfaces",
        "--except-interface=lo",
    ]);
    command.arg(format!("--listen-address={WAN_ADDRESS}"));
    command.arg(format!("--local=/{ZONE}/"));
    for (name, text) in records {
        command.arg(format!("--txt-record={name},{text}"));
    }
    world.start(NAME, command)?;
    wait_for("the DNS server to answer", Duration::from_secs(5), || {
        world.check_alive()?;
        let mut look = world.command(Place::Internet, "ss");
        let listening = world::run(look.args(["-Hlun", "sport", "=", ":53"]))?;
        Ok((!listening.trim().is_empty()).then_some(()))
    })
}

/// Ends the server, if there is one: names don't resolve any more.
pub fn stop(world: &mut World) -> Result<()> {
    match world.pid(NAME) {
        Ok(_) => world.kill(NAME),
        Err(_) => Ok(()), // not started yet
    }
}
