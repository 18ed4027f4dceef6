//! `decent`: the developer's and provider's client of the ledger.
//!
//! | module | what |
//! |---|---|
//! | `args` | what can be typed |
//! | `parse` | amounts, periods, ports and other values, strictly |
//! | `run` | what the commands do |
//! | `host`, `token` | those about hosts' evidence, and about tokens |
//! | `show` | pages for people; with `--json` the types of `ledger::api` are printed instead |

mod args;
mod host;
mod parse;
mod rent;
mod run;
mod show;
mod token;

use std::process::ExitCode;

use clap::Parser;
use ledger::client::ClientError;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("decent: cannot start: {error}");
            return ExitCode::from(2);
        }
    };
    match runtime.block_on(run::run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A closed pipe (`decent … | head`) is nobody's fault.
            let pipe = error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe);
            if pipe {
                return ExitCode::SUCCESS;
            }
            eprintln!("decent: {}", show::clean(&format!("{error:#}")));
            ExitCode::from(if run::refused(&error) { 1 } else { 2 })
        }
    }
}

/// Whether a client's error is the ledger's answer.
fn is_refusal(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::Refused(_)
            | ClientError::Transfer(_)
            | ClientError::TransferFrom(_)
            | ClientError::Approve(_)
    )
}
