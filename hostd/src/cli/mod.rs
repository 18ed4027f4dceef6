//! The command line. `run`, `config check`, `device` and `doctor --offline` work by themselves; every other verb asks the running
//! daemon over its socket and sees nothing that the API doesn't say.
//!
//! Exit codes: 0 done; 1 the daemon said no, or there is no such contract; 2 wrong usage or a bad config; 3 the daemon
//! doesn't answer. `doctor`: 0 all well, 1 warnings, 2 faults (3 as above).

pub(crate) mod client;
mod device;
mod evidence;
mod install;
mod key;
mod log;
mod render;
mod setup;
pub(crate) mod update;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use self::client::{Client, ClientError};
use crate::config::Config;
use crate::inventory::Inventory;
use crate::surface::model::{
    ContractLine, DrainRequest, EndRequest, Explanation, MaintenanceRequest, Status, VmInfo,
};
use crate::tui::{self, TuiError};
use crate::{daemon, doctor, hugepages};

/// Where the socket is unless somebody says otherwise.
const SOCKET: &str = "/run/hostd/hostd.sock";

/// How long VMs may take to stop; systemd ends the waiting sooner.
const POWER_OFF: std::time::Duration = std::time::Duration::from_secs(3600);

/// The config file unless somebody says otherwise.
const CONFIG: &str = "/etc/hostd/hostd.toml";

#[derive(Parser)]
#[command(
    name = "hostd",
    version,
    about = "The host daemon: contracts in, VMs out",
    after_help = "Exit codes: 0 done; 1 the daemon said no; 2 wrong usage or a bad config; 3 the daemon doesn't answer.\n\
                  doctor: 0 all well, 1 warnings, 2 faults."
)]
struct Cli {
    /// Print JSON, as the API says it
    #[arg(long, global = true)]
    json: bool,
    /// The daemon's socket [default: host.socket of --config if given, else /run/hostd/hostd.sock]
    #[arg(long, global = true, env = "HOSTD_SOCKET")]
    socket: Option<PathBuf>,
    /// The config file [default for run and config check: /etc/hostd/hostd.toml]
    #[arg(long, global = true, env = "HOSTD_CONFIG")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the daemon
    Run,
    /// The host at a glance
    Status,
    /// Contracts on this host
    Contracts {
        /// Finished ones too
        #[arg(long)]
        all: bool,
    },
    /// A contract's VM
    #[command(subcommand)]
    Vm(VmVerb),
    /// A VM's console
    Console {
        /// Contract: at least 4 digits of its id
        contract: String,
        /// Go on until the VM ends
        #[arg(long, short)]
        follow: bool,
        /// Only the last so many bytes
        #[arg(long)]
        tail: Option<u64>,
    },
    /// End every contract and stop every VM within its deadline, because the machine goes down. For the unit
    /// decent-cloud-vms.service, which does it at each shutdown
    PowerOff {
        /// There is no way back
        #[arg(long, required = true)]
        yes: bool,
    },
    /// Take no new contracts; those here go on
    Drain {
        /// Take them again
        #[arg(long)]
        end: bool,
    },
    /// Take no new contracts, and say why; the reason is logged and shown
    Maintenance {
        /// Why
        #[arg(long, required_unless_present = "end")]
        reason: Option<String>,
        /// It is over
        #[arg(long, conflicts_with = "reason")]
        end: bool,
    },
    /// The appliance's image: updates from a signed folder into the free slot, with a way back
    #[command(subcommand)]
    Update(update::Verb),
    /// One screen for operators: capacity, trust, money, contracts, log; `?` there explains the keys
    Tui(tui::Args),
    /// Everything about one contract: generated configs, steps with times
    Explain {
        /// Contract: at least 4 digits of its id
        contract: String,
    },
    /// What is wrong with this host, and what to do about it
    Doctor {
        /// Look without asking the daemon (needs --config)
        #[arg(long)]
        offline: bool,
    },
    /// Write a tar of all that is not secret, for somebody who helps
    SupportBundle {
        /// Where to
        #[arg(long, default_value = "hostd-support.tar")]
        out: PathBuf,
    },
    /// The machine
    Inventory,
    /// Reserve the hugepages that the config asks for; for the unit decent-cloud-hugepages.service, at boot
    Hugepages,
    /// PCI cards: which could go to a VM, and to hand one over by hand
    #[command(subcommand)]
    Device(device::Verb),
    /// What this host's TPM says: a quote with its event logs, for `attest verify`
    Evidence(evidence::Args),
    /// The host's own key, which the provider delegates to
    #[command(subcommand)]
    Key(key::Verb),
    /// In a live image: put the system onto a disk of this machine
    Install(install::Args),
    /// In the image, at each boot: from the provider's settings to a host that can start
    Setup(setup::Args),
    /// The settings of a host that boots the image, on the provider's own machine
    #[command(subcommand)]
    Seed(setup::SeedVerb),
    /// The config file
    #[command(subcommand)]
    Config(ConfigVerb),
    /// The API's OpenAPI document
    Openapi,
    /// Completions for a shell
    Completions {
        /// Which
        shell: clap_complete::Shell,
    },
}

#[derive(Subcommand)]
enum VmVerb {
    /// Its process, counters and traffic
    Show {
        /// Contract: at least 4 digits of its id
        contract: String,
    },
    /// Its counters
    Counters {
        /// Contract: at least 4 digits of its id
        contract: String,
    },
    /// End the contract: the ledger is told, the VM stopped, the disk destroyed. There is no way back
    #[command(alias = "stop")]
    End {
        /// Contract: at least 4 digits of its id
        contract: String,
        /// Why, for the developer
        #[arg(long)]
        reason: String,
        /// The first 8 digits of the id again, to say that you mean it
        #[arg(long)]
        yes: String,
    },
}

#[derive(Subcommand)]
enum ConfigVerb {
    /// Check it, and tell every fault
    Check,
}

/// What went wrong, by exit code.
enum Failure {
    Refused(String),
    Usage(String),
    Silent(String),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Silent { .. } => Self::Silent(error.to_string()),
            ClientError::Refused { .. } | ClientError::Answer(_) => Self::Refused(error.to_string()),
        }
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let daemon = matches!(cli.verb, Verb::Run);
    let mut builder = if daemon {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        // Actors wait most of the time; more threads would only be more stacks.
        builder.worker_threads(
            std::thread::available_parallelism()
                .map_or(2, usize::from)
                .clamp(2, 4),
        );
        builder
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("hostd: cannot start: {error}");
            return ExitCode::from(1);
        }
    };
    let result = runtime.block_on(run(cli));
    // A blocking call (a download, libvirt) that is still under way must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match result {
        Ok(code) => code,
        Err(failure) => {
            let (code, text) = match failure {
                Failure::Refused(text) => (1, text),
                Failure::Usage(text) => (2, text),
                Failure::Silent(text) => (3, text),
            };
            eprintln!("hostd: {text}");
            ExitCode::from(code)
        }
    }
}

fn load(cli: &Cli) -> Result<Config, Failure> {
    let path = cli.config.clone().unwrap_or_else(|| CONFIG.into());
    Config::load(&path).map_err(|error| Failure::Usage(crate::wiring::chain(&error)))
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Refused(error.to_string()))
        }
        _ => Ok(()), // whoever read us has seen enough
    }
}

/// The answer as JSON, or rendered for people.
fn show<T: serde::Serialize>(json: bool, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
    if json {
        let text = serde_json::to_string_pretty(value).map_err(|e| Failure::Refused(e.to_string()))?;
        print(&(text + "\n"))
    } else {
        print(&text(value))
    }
}

fn width() -> usize {
    let columns = std::env::var("COLUMNS")
        .ok()
        .and_then(|columns| columns.parse().ok());
    columns.unwrap_or(if std::io::stdout().is_terminal() { 100 } else { 120 })
}

async fn run(cli: Cli) -> Result<ExitCode, Failure> {
    match &cli.verb {
        Verb::Run => {
            let events = log::start();
            let config = load(&cli)?;
            daemon::run(config, events)
                .await
                .map_err(|error| Failure::Refused(crate::wiring::chain(&error)))?;
            return Ok(ExitCode::SUCCESS);
        }
        Verb::Config(ConfigVerb::Check) => {
            load(&cli)?;
            print("the config is valid\n")?;
            return Ok(ExitCode::SUCCESS);
        }
        Verb::Openapi => {
            print(&(crate::surface::openapi() + "\n"))?;
            return Ok(ExitCode::SUCCESS);
        }
        Verb::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "hostd", &mut text);
            print(&String::from_utf8_lossy(&text))?;
            return Ok(ExitCode::SUCCESS);
        }
        Verb::Evidence(args) => {
            let taken = evidence::take(args).map_err(Failure::Refused)?;
            show(cli.json, &taken, ToString::to_string)?;
            return Ok(ExitCode::SUCCESS);
        }
        Verb::Hugepages => {
            let wanted = load(&cli)?.vmm.reserve_hugepages_mib;
            let mib = hugepages::reserve(std::path::Path::new("/"), wanted.into())
                .map_err(|error| Failure::Refused(crate::wiring::chain(&error)))?;
            print(&format!("{mib} MiB of 2 MiB pages are reserved\n"))?;
            return Ok(ExitCode::SUCCESS);
        }
        Verb::Device(verb) => {
            device::run(verb, cli.json).await?;
            return Ok(ExitCode::SUCCESS);
        }
        Verb::Key(verb) => {
            let shown = key::run(verb).map_err(Failure::Refused)?;
            show(cli.json, &shown, ToString::to_string)?;
            return Ok(ExitCode::SUCCESS);
        }
        Verb::Install(args) => return install::run(args, cli.json),
        Verb::Setup(args) => return setup::run(args, cli.json).await,
        Verb::Seed(verb) => return setup::seed(verb, cli.json),
        Verb::Doctor { offline: true } => {
            let report = offline_doctor(&load(&cli)?).await;
            return show_report(&report, cli.json);
        }
        _ => {}
    }
    let socket = match (&cli.socket, &cli.config) {
        (Some(socket), _) => socket.clone(),
        (None, Some(_)) => load(&cli)?.host.socket(),
        (None, None) => SOCKET.into(),
    };
    ask(&Client::new(socket), cli.verb, cli.json).await
}

/// One verb that the daemon answers.
async fn ask(client: &Client, verb: Verb, json: bool) -> Result<ExitCode, Failure> {
    match verb {
        Verb::Status => show(json, &client.get::<Status>("/v1/status").await?, render::status)?,
        Verb::Contracts { all } => {
            let lines: Vec<ContractLine> = client.get(&format!("/v1/contracts?all={all}")).await?;
            show(json, &lines, |lines| render::contracts(lines))?;
        }
        Verb::Vm(VmVerb::Show { contract } | VmVerb::Counters { contract }) => {
            let info: VmInfo = client
                .get(&format!("/v1/contracts/{}/vm", client::segment(&contract)?))
                .await?;
            show(json, &info, render::vm)?;
        }
        Verb::Vm(VmVerb::End {
            contract,
            reason,
            yes,
        }) => {
            let path = format!("/v1/contracts/{}", client::segment(&contract)?);
            let id = match client.get::<Explanation>(&path).await {
                Ok(explanation) => explanation.line.id,
                // One that only the ledger knows must be named in full.
                Err(ClientError::Refused { .. }) if contract.len() == 64 => contract.clone(),
                Err(error) => return Err(error.into()),
            };
            if yes.len() < 8 || !id.starts_with(&yes) {
                let want = &id[..8];
                return Err(Failure::Usage(format!(
                    "this ends {id} for good; say --yes {want} if you mean it"
                )));
            }
            client
                .post(&format!("/v1/contracts/{id}/end"), &EndRequest { reason })
                .await?;
            show(
                json,
                &serde_json::json!({"contract": id, "removing": true}),
                |_| format!("{id} is being removed; see `hostd contracts`\n"),
            )?;
        }
        Verb::Console {
            contract,
            follow,
            tail,
        } => {
            let tail = tail.map(|tail| format!("&tail={tail}")).unwrap_or_default();
            let path = format!(
                "/v1/contracts/{}/console?follow={follow}{tail}",
                client::segment(&contract)?
            );
            let safe = std::io::stdout().is_terminal();
            client
                .stream(&path, |piece| {
                    let mut out = std::io::stdout().lock();
                    // The guest wrote this. On a terminal, escape sequences could do more than show text.
                    let shown = if safe {
                        render::harmless(piece)
                    } else {
                        piece.to_vec()
                    };
                    out.write_all(&shown).and_then(|()| out.flush()).is_ok()
                })
                .await?;
        }
        Verb::PowerOff { .. } => {
            let client = client.clone().patient(POWER_OFF);
            let status: Status = client::parse(&client.post("/v1/power-off", &()).await?)?;
            show(json, &status, render::status)?;
        }
        Verb::Drain { end } => {
            let answer = client.post("/v1/drain", &DrainRequest { draining: !end }).await?;
            let status: Status = client::parse(&answer)?;
            show(json, &status, render::status)?;
        }
        Verb::Maintenance { reason, end: _ } => {
            let answer = client
                .post("/v1/maintenance", &MaintenanceRequest { reason })
                .await?;
            let status: Status = client::parse(&answer)?;
            show(json, &status, render::status)?;
        }
        Verb::Update(verb) => return update::run(client, verb, json).await,
        Verb::Tui(args) => {
            tui::run(client, &args, json).await.map_err(|error| match error {
                TuiError::Client(error) => error.into(),
                other => Failure::Refused(crate::wiring::chain(&other)),
            })?;
        }
        Verb::Explain { contract } => {
            let explanation: Explanation = client
                .get(&format!("/v1/contracts/{}", client::segment(&contract)?))
                .await?;
            show(json, &explanation, render::explanation)?;
        }
        Verb::Doctor { .. } => {
            let report: doctor::Report = client.get("/v1/doctor").await?;
            return show_report(&report, json);
        }
        Verb::Inventory => {
            let inventory: Inventory = client.get("/v1/inventory").await?;
            show(json, &inventory, |inventory| inventory.page(width()))?;
        }
        Verb::SupportBundle { out } => {
            let tar = client.bytes("/v1/support-bundle").await?;
            write_private(&out, &tar)
                .map_err(|e| Failure::Refused(format!("cannot write {}: {e}", out.display())))?;
            let facts = serde_json::json!({"out": out, "bytes": tar.len()});
            show(json, &facts, |_| {
                format!(
                    "{} ({} bytes); no keys, no tenants' data in it\n",
                    out.display(),
                    tar.len()
                )
            })?;
        }
        Verb::Run
        | Verb::Config(_)
        | Verb::Evidence(_)
        | Verb::Hugepages
        | Verb::Device(_)
        | Verb::Key(_)
        | Verb::Install(_)
        | Verb::Setup(_)
        | Verb::Seed(_)
        | Verb::Openapi
        | Verb::Completions { .. } => {
            return Err(Failure::Usage("handled before".into())); // `run` has returned for these
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn write_private(path: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)
}

fn show_report(report: &doctor::Report, json: bool) -> Result<ExitCode, Failure> {
    let text = if json {
        serde_json::to_string_pretty(report).map_err(|e| Failure::Refused(e.to_string()))? + "\n"
    } else {
        report.table(width())
    };
    print(&text)?;
    Ok(ExitCode::from(report.exit_code()))
}

/// The doctor without a daemon: before the first start, or when it doesn't come up.
async fn offline_doctor(config: &Config) -> doctor::Report {
    use crate::inventory::Probe;
    let vmms = daemon::adapters(config);
    let support = crate::vmm::support(&vmms).await;
    let pairs = vmms
        .iter()
        .zip(support)
        .map(|(vmm, support)| (vmm.name().to_owned(), support))
        .collect();
    let ledger = match daemon::connect(config) {
        Ok((client, _)) => daemon::ledger_fact(config, &crate::wiring::Ledger::new(client)).await,
        Err(error) => doctor::LedgerFact::Unreachable {
            url: config.ledger.url.clone(),
            why: crate::wiring::chain(&error),
        },
    };
    let (encryption, space) = crate::storage::look(&config.storage);
    let space = space.map_or_else(|error| Probe::Unknown(error.to_string()), Probe::Known);
    let inventory = crate::inventory::take(std::path::Path::new("/"));
    let own = crate::endorsements::own::documents(&inventory, config.endorsements.fmspc);
    let kept = match crate::endorsements::Keeper::open(&config.endorsements, &config.host.state_dir, own) {
        Ok(keeper) => keeper.look().await,
        Err(_) => Vec::new(), // `config check` says what is wrong
    };
    let inputs = daemon::doctor_inputs(config, pairs, ledger, encryption, space, None, kept);
    doctor::examine(&doctor::gather(inputs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
