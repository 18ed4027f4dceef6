//! `ledgerd`: makes, runs, checks and exports a one-node ledger.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use ledger::node::{self, Node, Tail};
use ledger::protocol::Genesis;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

const AFTER: &str = "\
Examples:
  ledgerd init --genesis genesis.toml --dir /var/lib/ledgerd
  ledgerd run --dir /var/lib/ledgerd --listen 127.0.0.1:4943
  ledgerd verify --dir /var/lib/ledgerd

Clients (decent, hostd, ic-agent, the icp CLI) need the file client.toml that `init` writes: URL, canister id and the
pinned root key. A node is one operator's root of trust: whoever has DIR/secret.toml can sign anything.

Exit codes: 0 done; 1 the ledger is not in order (verify); 2 it could not be done.";

/// One node of the Decent Cloud ledger, behind the Internet Computer's HTTP interface
#[derive(Parser)]
#[command(version, after_help = AFTER)]
struct Cli {
    /// Print results as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a new ledger: keys, an empty log, and client.toml for its clients
    Init {
        /// The genesis: everything that blocks don't decide (`ledgerd example-genesis` prints one)
        #[arg(long, value_name = "FILE")]
        genesis: PathBuf,
        /// Where the ledger shall live; made if it doesn't exist
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// How clients will reach the node; goes into client.toml
        #[arg(long, default_value = "http://127.0.0.1:4943")]
        url: String,
    },
    /// Print a demo genesis to start from
    ExampleGenesis,
    /// Verify the chain, then serve until SIGTERM or SIGINT
    Run {
        /// The ledger's directory
        #[arg(long, value_name = "DIR", env = "LEDGERD_DIR")]
        dir: PathBuf,
        /// Address and port to listen on
        #[arg(long, default_value = "127.0.0.1:4943")]
        listen: SocketAddr,
    },
    /// Check everything: checksums, chain, each block executed again with the same reply, the books
    Verify {
        /// The ledger's directory; a running node isn't disturbed
        #[arg(long, value_name = "DIR", env = "LEDGERD_DIR")]
        dir: PathBuf,
    },
    /// Print every block as one line of JSON, oldest first
    Export {
        /// The ledger's directory; a running node isn't disturbed
        #[arg(long, value_name = "DIR", env = "LEDGERD_DIR")]
        dir: PathBuf,
    },
    /// Print the ledger's Candid interface (.did)
    Interface,
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("LEDGERD_LOG").unwrap_or_else(|_| "info".into()),
        )
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_writer(std::io::stderr)
        .init();
    match perform(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ledgerd: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn perform(cli: Cli) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    match cli.command {
        Command::Init { genesis, dir, url } => {
            let text = std::fs::read_to_string(&genesis)
                .with_context(|| format!("cannot read {}", genesis.display()))?;
            let genesis: Genesis =
                toml::from_str(&text).with_context(|| format!("{} is no genesis", genesis.display()))?;
            let created = node::init(&dir, &genesis, &url)?;
            if cli.json {
                writeln!(out, "{}", serde_json::to_string(&created)?)?;
            } else {
                writeln!(out, "canister id  {}", created.canister_id)?;
                writeln!(out, "root key     {}", hex::encode(&created.root_key))?;
                writeln!(out, "for clients  {}", created.client.display())?;
                writeln!(out, "next         ledgerd run --dir {}", dir.display())?;
            }
        }
        Command::ExampleGenesis => {
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)?
                .as_secs();
            write!(
                out,
                "# A demo's genesis. A ledger that isn't a demo has demo = false, clock_rate = 1, and neither balances \
                 nor test_roots.\n{}",
                toml::to_string(&Genesis::demo("example", 1, now))?
            )?;
        }
        Command::Run { dir, listen } => run(&dir, listen)?,
        Command::Verify { dir } => {
            let found = node::verify(&dir)?;
            let sound = found.invariants.violations.is_empty();
            if cli.json {
                writeln!(out, "{}", serde_json::to_string(&found)?)?;
            } else {
                writeln!(out, "ledger      {}", found.canister_id)?;
                writeln!(
                    out,
                    "blocks      {} (each executed again with the same reply)",
                    found.height
                )?;
                writeln!(out, "tip         {}", found.tip)?;
                writeln!(
                    out,
                    "supply      {} = {} in accounts",
                    found.invariants.supply, found.invariants.balances
                )?;
                if found.torn_bytes > 0 {
                    writeln!(
                        out,
                        "torn tail   {} bytes, never answered; `run` cuts them off (a running node may just be writing)",
                        found.torn_bytes
                    )?;
                }
                for violation in &found.invariants.violations {
                    writeln!(out, "VIOLATION   {violation}")?;
                }
                writeln!(out, "{}", if sound { "in order" } else { "NOT in order" })?;
            }
            if !sound {
                return Ok(ExitCode::from(1));
            }
        }
        Command::Export { dir } => {
            node::export(&dir, |block| writeln!(out, "{}", serde_json::to_string(&block)?))?;
        }
        Command::Interface => writeln!(out, "{}", node::interface())?,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "ledgerd", &mut out);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn run(dir: &Path, listen: SocketAddr) -> anyhow::Result<()> {
    let started = std::time::Instant::now();
    let node = Node::open(dir)?;
    tracing::info!(blocks = node.height(), took = ?started.elapsed(), "chain verified");
    if let Tail::Torn { offset, bytes } = node.tail() {
        tracing::warn!(
            offset,
            bytes,
            "the last write was cut off; nothing of it was answered, and it was removed (kept in blocks.torn)"
        );
    }
    let genesis = node.genesis();
    if genesis.demo {
        tracing::warn!(
            name = genesis.name,
            balances = genesis.balances.len(),
            test_roots = genesis.test_roots.len(),
            "this ledger is a DEMO: its tokens and attestation roots are made up"
        );
    }
    if genesis.clock_rate != 1 {
        tracing::warn!(
            rate = genesis.clock_rate,
            "the ledger's clock runs {} times as fast as the wall clock",
            genesis.clock_rate
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2) // the work is in the engine's thread and in blocking ones
        .max_blocking_threads(32)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    runtime.block_on(async move {
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen}; is another ledgerd running?"))?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tracing::info!(address = %listener.local_addr()?, canister = %node.canister_id(), "serving");
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            tracing::debug!(%error, "no service manager to tell");
        }
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("stopping");
        };
        node.serve(listener, stop)
            .await
            .context("stopped; everything that was answered is durable")
    })
}
