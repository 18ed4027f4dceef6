//! `hostd`: the daemon, and the operator's commands to it.

use std::process::ExitCode;

fn main() -> ExitCode {
    hostd::cli::main()
}
