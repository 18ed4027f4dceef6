//! `make demo`: the main job in front of an audience.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use integration::main_job::{self, Options, forgery};

/// Shows the main job, end to end, on real parts: ledger, hostd, VMs, tenant networks, HAProxy, evidence, settlement.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run it. Needs root (namespaces, taps). Ctrl-C stops early and cleans up all the same.
    Run {
        /// Folder that `image-builder tenant` made.
        #[arg(long)]
        image: PathBuf,
        /// What all names of this run start with (interfaces, namespaces): at most 6 characters.
        #[arg(long, default_value = "dcdemo")]
        prefix: String,
        /// Where to leave the logs if something fails.
        #[arg(long)]
        keep_logs: Option<PathBuf>,
    },
    /// Remove what a killed run left behind.
    Clean {
        /// The run's prefix.
        #[arg(long, default_value = "dcdemo")]
        prefix: String,
    },
    /// A rogue host's part of step 7, run by `demo run` in the right namespace.
    #[command(hide = true)]
    Forge(forgery::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let programs = std::env::current_exe()?
        .parent()
        .context("a program without a folder")?
        .to_owned();
    match cli.command {
        Command::Run {
            image,
            prefix,
            keep_logs,
        } => {
            let stop = stop_on_signals()?;
            let table = main_job::run(&Options {
                image,
                programs,
                prefix,
                stop,
                keep_logs,
            })?;
            println!("\n{table}");
            println!(
                "Simulated here: the SNP chip (its root is a test root that the demo's genesis names, so every verdict \
                 says test-root) and the pace of the ledger's clock. All else was real."
            );
            Ok(())
        }
        Command::Clean { prefix } => main_job::world::clean(&prefix),
        Command::Forge(args) => forgery::play(&args),
    }
}

/// Ctrl-C and SIGTERM ask for an early, clean end.
fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
                .expect("a handler for SIGTERM can always be installed");
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            eprintln!("stopping; removing everything that this run made …");
            flag.store(true, Ordering::Relaxed);
        });
    });
    Ok(stop)
}
