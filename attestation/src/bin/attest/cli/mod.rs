//! The verifier's command line: reads files, asks the library, prints. The only clock is here: `--at` defaults to now.
//!
//! Exit codes: 0 verified (or done), 1 refused, 2 can't tell: endorsements missing, unreadable files, wrong usage.

/// Like `print!`, but whoever reads may stop reading: the exit code is the answer.
macro_rules! out {
    ($($arg:tt)*) => {
        $crate::cli::write_out(format_args!($($arg)*))
    };
}

/// Like `println!`; see `out`.
macro_rules! outln {
    ($($arg:tt)*) => {
        $crate::cli::write_out(format_args!("{}\n", format_args!($($arg)*)))
    };
}

mod bundle;
#[cfg(feature = "fetch")]
mod fetch;
mod input;
mod measure;
mod measure_tdx;
mod pins;
mod show;
mod verify;

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Verifies what a confidential VM says about itself.
#[derive(Debug, Parser)]
#[command(
    name = "attest",
    version,
    max_term_width = 110,
    after_help = "\
Exit codes: 0 verified, 1 refused, 2 can't tell (missing endorsements, unreadable input, wrong usage).
Only `attest fetch` talks to others; every other command's input is all on the command line."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Judge evidence: one line per check, one verdict
    Verify(Box<verify::Args>),
    /// Show every field of evidence, without judging it
    Show(show::Args),
    /// Put evidence and endorsements into one file
    Bundle(bundle::BundleArgs),
    /// Take a bundle apart
    Unbundle(bundle::UnbundleArgs),
    /// Compute reference values
    #[command(subcommand)]
    Measure(measure::Command),
    /// Write or check a policy file
    #[command(subcommand)]
    Policy(verify::PolicyCommand),
    /// Answer the host's questions inside a VM (see `attest agent --help`)
    Agent {
        /// Options of the agent
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Fetch the endorsements that evidence needs from AMD, Intel and NVIDIA
    #[cfg(feature = "fetch")]
    Fetch(fetch::Args),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse(); // prints and exits with 2 on wrong usage
    let done = match cli.command {
        Command::Verify(args) => verify::run(&args),
        Command::Show(args) => show::run(&args),
        Command::Bundle(args) => bundle::bundle(&args),
        Command::Unbundle(args) => bundle::unbundle(&args),
        Command::Measure(command) => measure::run(&command),
        Command::Policy(command) => verify::policy(&command),
        #[cfg(feature = "fetch")]
        Command::Fetch(args) => fetch::run(&args),
        Command::Agent { .. } => Err(anyhow::anyhow!("this build has no agent (cargo feature `agent`)")),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "attest", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("attest: {error:#}");
        ExitCode::from(2)
    })
}

fn write_out(text: Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    let written = out.write_fmt(text).and_then(|()| out.flush());
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        eprintln!("attest: cannot write: {error}");
    }
}
