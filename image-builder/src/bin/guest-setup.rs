//! `guest-setup --seed DIR --out DIR`: reads a NoCloud seed inside the guest; see `image_builder::guest`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use image_builder::guest;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (seed, out) = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--seed", seed, "--out", out] => (PathBuf::from(seed), PathBuf::from(out)),
        ["--version"] => {
            println!("guest-setup {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("usage: guest-setup --seed DIR --out DIR");
            return ExitCode::from(2);
        }
    };
    match guest::run(&seed, &out, Path::new("/")) {
        Ok(warnings) => {
            warnings.iter().for_each(|warning| eprintln!("{warning}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
