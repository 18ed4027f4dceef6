//! `attest`: the verifier's command line (feature `cli`) and the agent inside a VM (feature `agent`, small and static).

#[cfg(feature = "agent")]
mod agent;
#[cfg(feature = "cli")]
mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(feature = "agent")]
    if std::env::args_os().nth(1).is_some_and(|word| word == "agent") {
        return agent::main();
    }
    #[cfg(feature = "cli")]
    return cli::main();
    #[cfg(not(feature = "cli"))]
    {
        if std::env::args_os().nth(1).is_some_and(|word| word == "--version") {
            println!("attest {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        eprintln!("attest: this build has only `attest agent`");
        ExitCode::from(2)
    }
}
