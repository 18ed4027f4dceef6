//! A fake Cloud Hypervisor: the real one's command line, socket, answers and bad habits, in a real process that can be
//! watched and killed; no guest. For machines without hardware virtualization and for a hundred VMs at once.
//!
//! Habits of v53.0 that it has (FACTS 2; seen again with the real one):
//!
//! - fields that it doesn't know, or whose feature it was "built" without, are taken with a 204 and dropped;
//! - `vm.create` checks next to nothing; `vm.boot` answers 500 for what is wrong, and a delete is needed afterwards;
//! - one event loop: everything waits behind a slow call;
//! - 404 for a VM that isn't created; error bodies are lists of strings, or an object for a body over 51,200 bytes;
//! - counters show 2⁶⁴−1 for "none yet";
//! - disks are held with open file description locks from boot to death;
//! - it leaves its socket behind when it is killed, and `api.sock.lock` always.
//!
//! Beyond the real one it can be told to misbehave, by words in a file `fake-mode` beside its socket (read once, at the
//! start) or in the guest's kernel command line as `fake.WORD`:
//!
//! | word | what it does |
//! |---|---|
//! | `features=a,b` | says that it was built with these; default `kvm,io_uring` |
//! | `drop=payload.initramfs` | loses that field of the configuration |
//! | `ping=hang`, `ping=garbage`, `ping=huge` | likewise `create=`, `add-net=`, `info=`, `boot=`, `counters=` |
//! | `boot=500`, `boot=die`, `boot=500ms` | answers an error, dies, or takes that long; likewise the others |
//! | `button=ignore` | the guest never hears the power button |
//! | `die-after=300ms` | dies by itself, that long after boot |
//! | `agent=none`, `garbage`, `huge`, `silent`, `die` | the guest agent; default: answers like one of a plain VM |

mod agent;
mod http;
mod vm;

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::json;

use self::http::{Answer, Request};
use self::vm::Vm;

/// What it says that it is.
pub const VERSION: &str = "v53.0";
/// A body longer than this is answered with an object.
const BODY_MAX: usize = 51_200;

/// How it shall misbehave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Modes {
    words: Vec<(String, String)>,
}

impl Modes {
    fn parse(text: &str) -> Self {
        let words = text
            .split_whitespace()
            .map(|word| word.split_once('=').unwrap_or((word, "")));
        Self {
            words: words
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        }
    }

    /// The words `fake.…` of a kernel command line, before those that were there.
    fn with_cmdline(&self, cmdline: &str) -> Self {
        let words: Vec<_> = cmdline
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("fake."))
            .collect();
        let mut modes = Self::parse(&words.join(" "));
        modes.words.extend(self.words.iter().cloned());
        modes
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.words
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, value)| value.as_str())
    }

    fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.words
            .iter()
            .filter(move |(k, _)| k == key)
            .map(|(_, value)| value.as_str())
    }
}

/// `300ms`.
fn milliseconds(text: &str) -> Option<Duration> {
    text.strip_suffix("ms")?.parse().ok().map(Duration::from_millis)
}

/// The program. `args` without its name.
pub fn main(args: impl Iterator<Item = String>) -> ExitCode {
    let mut args = args.peekable();
    let mut socket: Option<PathBuf> = None;
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--version" | "-V" => {
                println!("cloud-hypervisor {VERSION}");
                return ExitCode::SUCCESS;
            }
            "--api-socket" => {
                socket = args
                    .next()
                    .map(|value| value.strip_prefix("path=").unwrap_or(&value).into());
            }
            "--seccomp" | "--log-file" => drop(args.next()),
            "-v" | "-vv" => {}
            "--landlock" => {
                eprintln!(
                    "error: the following required arguments were not provided:\n  <--firmware|--kernel>"
                );
                return ExitCode::from(2);
            }
            other => {
                eprintln!("error: unexpected argument '{other}' found");
                return ExitCode::from(2);
            }
        }
    }
    let Some(socket) = socket else {
        eprintln!("error: --api-socket is missing");
        return ExitCode::from(2);
    };
    match serve(&socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: cannot serve {}: {error}", socket.display());
            ExitCode::FAILURE
        }
    }
}

fn serve(socket: &Path) -> std::io::Result<()> {
    fs::write(socket.with_extension("sock.lock"), "")?;
    let beside = socket.with_file_name("fake-mode");
    let modes = Modes::parse(&fs::read_to_string(beside).unwrap_or_default());
    let listener = UnixListener::bind(socket)?;
    let shared = Arc::new(Server {
        socket: socket.to_owned(),
        modes,
        vm: Mutex::new(None),
    });
    for stream in listener.incoming() {
        let (stream, server) = (stream?, shared.clone());
        thread::spawn(move || {
            // A client that goes away is its own affair.
            let _ = http::serve(stream, |request| server.answer(request));
        });
    }
    Ok(())
}

struct Server {
    socket: PathBuf,
    modes: Modes,
    /// One at a time: the real one's event loop.
    vm: Mutex<Option<Vm>>,
}

impl Server {
    fn answer(&self, request: Request) -> Answer {
        let mut vm = self.vm.lock().unwrap_or_else(PoisonError::into_inner);
        let call = request
            .path
            .strip_prefix("/api/v1/")
            .unwrap_or_default()
            .to_owned();
        let modes = match vm.as_ref() {
            Some(vm) => self.modes.with_cmdline(vm.cmdline()),
            None => self.modes.clone(),
        };
        let short = call
            .strip_prefix("vm.")
            .or(call.strip_prefix("vmm."))
            .unwrap_or(&call);
        match modes.get(short) {
            Some("hang") => loop {
                thread::sleep(Duration::from_secs(3600));
            },
            Some("die") => std::process::exit(101),
            Some("garbage") => return Answer::Raw(b"\x00\xffnot http at all\r\n\r\n".to_vec()),
            Some("huge") => return Answer::Endless,
            Some("500") => return error(500, &["Error from API", "the fake was told to fail"]),
            Some(other) => thread::sleep(milliseconds(other).unwrap_or_default()),
            None => {}
        }
        if request.body.len() > BODY_MAX {
            return Answer::Json(400, json!({"error": "payload too large"}));
        }
        self.call(&call, &request, &modes, &mut vm)
    }

    fn call(&self, call: &str, request: &Request, modes: &Modes, slot: &mut Option<Vm>) -> Answer {
        let features = modes.get("features").unwrap_or("kvm,io_uring");
        let features: Vec<&str> = features.split(',').collect();
        match (request.method.as_str(), call) {
            ("GET", "vmm.ping") => Answer::Json(
                200,
                json!({
                    "build_version": VERSION, "version": "53.0.0", "pid": std::process::id(), "features": features,
                }),
            ),
            ("PUT", "vmm.shutdown") => {
                let _ = fs::remove_file(&self.socket);
                Answer::Last
            }
            ("PUT", "vm.create") if slot.is_some() => error(
                500,
                &[
                    "Error from API",
                    "The VM could not be created",
                    "VM is already created",
                ],
            ),
            ("PUT", "vm.create") => match Vm::create(&request.body, &features) {
                Ok(vm) => {
                    *slot = Some(vm);
                    Answer::NoContent
                }
                Err(why) => error(400, &["Failed to deserialize JSON", &why]),
            },
            (_, "vm.create") => Answer::Empty(400),
            (method, call) => match slot {
                None if call == "vm.delete" => Answer::NoContent,
                None if KNOWN.contains(&call) => error(
                    404,
                    &[
                        "Error from API",
                        "The VM info is not available",
                        "VM is not created",
                    ],
                ),
                None => Answer::Empty(404),
                Some(_) if (method, call) == ("PUT", "vm.delete") => {
                    *slot = None;
                    Answer::NoContent
                }
                Some(vm) => vm.call(method, call, request, modes),
            },
        }
    }
}

const KNOWN: [&str; 8] = [
    "vm.info",
    "vm.boot",
    "vm.shutdown",
    "vm.power-button",
    "vm.counters",
    "vm.add-net",
    "vm.resize",
    "vm.reboot",
];

/// An error as the real one words it: outermost first.
fn error(status: u16, chain: &[&str]) -> Answer {
    Answer::Json(status, json!(chain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_command_line_come_first() {
        let modes = Modes::parse("boot=500 drop=a drop=b\nfeatures=kvm");
        assert_eq!(modes.get("boot"), Some("500"));
        assert_eq!(modes.all("drop").collect::<Vec<_>>(), ["a", "b"]);
        let modes = modes.with_cmdline("quiet fake.boot=300ms init=/x");
        assert_eq!((modes.get("boot"), modes.get("init")), (Some("300ms"), None));
        assert_eq!(milliseconds("300ms"), Some(Duration::from_millis(300)));
        assert_eq!(milliseconds("x"), None);
    }
}
