//! HAProxy as a process and behind its runtime socket.
//!
//! What is true about it, its socket says: which process, which configuration (the mark in `description`), which routes.
//! Names reach the socket only as [`DnsName`](crate::DnsName)s or as HAProxy itself spelled them, so no command can hide in
//! one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::config::{HaproxyConfig, Manage};
use crate::effects::worker::os;
use crate::error::NetError;
use crate::ingress::{self, Routes};
use crate::plan::Proxy;

/// How long an answer on the socket may take. It comes from the same thread that forwards, usually in well under 1 ms.
const ANSWER: Duration = Duration::from_secs(5);

/// How long a start or an end may take.
const CHANGE: Duration = Duration::from_secs(10);

/// The longest answer we read: 100,000 routes of the longest names.
const ANSWER_BYTES: u64 = 32 << 20;

/// Bytes of one command; HAProxy's buffer has 16 kB.
const COMMAND_BYTES: usize = 8 << 10;

/// What is running.
pub(crate) fn look(config: &HaproxyConfig) -> Result<Proxy, NetError> {
    let socket = config.socket_path();
    let info = match command(&socket, "show info") {
        Ok(info) => info,
        Err(error) if gone(&error) => return Ok(Proxy::Down),
        Err(error) => return Err(os("ask HAProxy how it is")(error)),
    };
    let field = |name: &str| {
        info.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    let pid = field("Pid")
        .and_then(|pid| pid.trim().parse().ok())
        .filter(|pid| *pid > 1);
    let pid: i32 = pid.ok_or_else(|| NetError::Answer {
        from: "HAProxy",
        why: "no Pid in `show info`".to_owned(),
    })?;
    let current = field("description").map(str::trim) == Some(ingress::haproxy_config(config).1.as_str());
    if !current {
        return Ok(Proxy::Up {
            pid,
            current,
            routes: Routes::new(),
        });
    }
    let map = command(&socket, &format!("show map {}", config.routes_path().display()))
        .map_err(os("ask HAProxy for its routes"))?;
    Ok(Proxy::Up {
        pid,
        current,
        routes: read_map(&map),
    })
}

/// Reads `show map`: one line per entry, `0x… name address`. A name that stands there twice gets an empty address, which
/// equals none that is wanted.
fn read_map(text: &str) -> Routes {
    let mut routes = Routes::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if let (Some(_), Some(name), Some(address), None) =
            (words.next(), words.next(), words.next(), words.next())
        {
            routes
                .entry(name.to_owned())
                .and_modify(String::clear)
                .or_insert_with(|| address.to_owned());
        }
    }
    routes
}

/// Takes routes out.
pub(crate) fn remove_routes(config: &HaproxyConfig, names: &BTreeSet<String>) -> Result<(), NetError> {
    let map = config.routes_path();
    let lines = names
        .iter()
        .map(|name| format!("del map {} {name}", map.display()));
    change(config, lines, "remove routes")
}

/// Adds routes, or changes their address: of those that are `present`, the old entry goes and the new one comes in one batch
/// of commands.
pub(crate) fn set_routes(
    config: &HaproxyConfig,
    routes: &BTreeMap<String, Ipv4Addr>,
    present: &BTreeSet<String>,
) -> Result<(), NetError> {
    let map = config.routes_path();
    let lines = routes.iter().flat_map(|(name, ip4)| {
        let removal = present
            .contains(name)
            .then(|| format!("del map {} {name}", map.display()));
        removal
            .into_iter()
            .chain([format!("add map {} {name} {ip4}", map.display())])
    });
    change(config, lines, "set routes")
}

/// Sends commands in batches. Each answers with an empty line if it worked.
fn change(config: &HaproxyConfig, lines: impl Iterator<Item = String>, what: &str) -> Result<(), NetError> {
    let socket = config.socket_path();
    let send = |batch: &str| match command(&socket, batch) {
        Ok(answer) if answer.trim().is_empty() => Ok(()),
        Ok(answer) => {
            let said = answer.trim().chars().take(2000).collect();
            Err(NetError::Command {
                program: "HAProxy",
                what: what.to_owned(),
                said,
            })
        }
        Err(error) => Err(os(what)(error)),
    };
    let mut batch = String::new();
    for line in lines {
        if !batch.is_empty() && batch.len() + line.len() > COMMAND_BYTES {
            send(&batch)?;
            batch.clear();
        }
        if !batch.is_empty() {
            batch.push_str("; ");
        }
        batch.push_str(&line);
    }
    if batch.is_empty() { Ok(()) } else { send(&batch) }
}

/// Writes the map file, so that a HAProxy that starts later begins with these routes.
pub(crate) fn write_routes(
    config: &HaproxyConfig,
    routes: &BTreeMap<String, Ipv4Addr>,
) -> Result<(), NetError> {
    write(&config.routes_path(), &ingress::routes_file(routes))
}

/// Starts HAProxy with these routes. One that runs already hands its listening sockets over, and ends when its connections
/// do.
pub(crate) fn start(
    config: &HaproxyConfig,
    routes: &BTreeMap<String, Ipv4Addr>,
    old: Option<i32>,
) -> Result<(), NetError> {
    let path = config.config_path();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.run_dir)
        .map_err(os(format!("make {}", config.run_dir.display())))?;
    let (text, mark) = ingress::haproxy_config(config);
    write_routes(config, routes)?;
    write(&path, &text)?;
    match (config.manage, old) {
        (Manage::External, None) => return Err(down(config)),
        (Manage::External, Some(_)) => return Err(NetError::ProxyStale { config: path }),
        (Manage::Spawn, _) => {}
    }
    run(config, &["-c"], "check its configuration")?;
    match old {
        None => run(config, &["-D"], "start")?,
        Some(pid) => {
            let socket = config.socket_path().display().to_string();
            run(
                config,
                &["-D", "-x", &socket, "-sf", &pid.to_string()],
                "replace the running one",
            )?;
        }
    }
    let deadline = Instant::now() + CHANGE;
    loop {
        match look(config)? {
            Proxy::Up { current: true, .. } => return Ok(()),
            _ if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            _ => {
                let said = format!("it doesn't answer as {mark} within {CHANGE:?}");
                return Err(NetError::Command {
                    program: "HAProxy",
                    what: "start".to_owned(),
                    said,
                });
            }
        }
    }
}

/// Ends HAProxy and removes its files.
pub(crate) fn stop(config: &HaproxyConfig, pid: i32) -> Result<(), NetError> {
    match kill(Pid::from_raw(pid), Signal::SIGTERM) {
        Ok(()) | Err(nix::Error::ESRCH) => {}
        Err(errno) => return Err(os(format!("end HAProxy {pid}"))(errno.into())),
    }
    let deadline = Instant::now() + CHANGE;
    while alive(pid) {
        if Instant::now() > deadline {
            let said = format!("process {pid} still runs {CHANGE:?} after SIGTERM");
            return Err(NetError::Command {
                program: "HAProxy",
                what: "stop".to_owned(),
                said,
            });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    for path in [config.socket_path(), config.routes_path(), config.config_path()] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(os(format!("remove {}", path.display()))(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether a process runs; one that only waits to be reaped doesn't.
fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X']))
    })
}

fn run(config: &HaproxyConfig, arguments: &[&str], what: &str) -> Result<(), NetError> {
    let mut command = Command::new(&config.binary);
    let output = crate::spawn::close_descriptors(&mut command)
        .arg("-f")
        .arg(config.config_path())
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| NetError::Program {
            program: config.binary.clone(),
            package: "haproxy",
            source,
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr)
        .trim()
        .chars()
        .take(2000)
        .collect();
    Err(NetError::Command {
        program: "HAProxy",
        what: what.to_owned(),
        said,
    })
}

/// Replaces a file as a whole.
fn write(path: &Path, text: &str) -> Result<(), NetError> {
    let fresh = path.with_extension("new");
    let put = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(&fresh)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&fresh, path)
    };
    put().map_err(os(format!("write {}", path.display())))
}

fn down(config: &HaproxyConfig) -> NetError {
    NetError::ProxyDown {
        socket: config.socket_path(),
        config: config.config_path(),
    }
}

/// Whether a failure to talk means that nobody is there.
fn gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// One command line (or several, joined by `; `), one answer.
fn command(socket: &Path, line: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    stream.write_all(line.as_bytes())?;
    stream.write_all(b"\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer)?;
    String::from_utf8(answer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_read_as_haproxy_prints_them() {
        let text =
            "0x5566 a.example 100.64.0.7\n0x5567 b.example 100.64.0.8\n0x5568 b.example 100.64.0.9\n\n";
        let want = [("a.example", "100.64.0.7"), ("b.example", "")];
        assert_eq!(
            read_map(text),
            want.map(|(n, a)| (n.to_owned(), a.to_owned())).into()
        );
        for odd in [
            "",
            "Unknown map identifier. Please use #<id> or <file>.\n",
            "0x1 a\n",
            "a b c d\n",
        ] {
            assert_eq!(read_map(odd), Routes::new(), "{odd:?}");
        }
    }
}
