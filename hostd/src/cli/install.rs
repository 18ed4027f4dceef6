//! `hostd install`, at a console of a live image or by a script.

use std::fmt::Write as _;
use std::io::{self, BufRead, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use flash::live::{FOLDER, Payload};
use flash::{FlashError, Target};

use super::{Failure, print, show};
use crate::install::{self, Choice};
use crate::tui::text::clean;
use crate::wiring::chain;

/// Onto which disk.
#[derive(clap::Args)]
#[command(after_help = "\
A live image (ISO, stick, PXE) carries what it installs. Without --to or --ask the disks are listed. Everything on the disk
that you name is lost, also an earlier installation's state: its key, its journal, its VMs' disks.

  hostd install --to /dev/nvme0n1 --confirm nvme0n1
  hostd install --to /dev/disk/by-id/nvme-SERIAL --confirm nvme0n1")]
pub(super) struct Args {
    /// The disk, such as /dev/nvme0n1
    #[arg(long, value_name = "DISK", requires = "confirm")]
    to: Option<PathBuf>,
    /// The disk's name again, to say that you mean it
    #[arg(long, value_name = "NAME", requires = "to")]
    confirm: Option<String>,
    /// Ask at this terminal for the disk, and restart the machine in the end
    #[arg(long, conflicts_with_all = ["to", "confirm"])]
    ask: bool,
}

/// Exit code 0: listed, installed, or nothing chosen; 1: refused or failed, and what that left is said.
pub(super) fn run(args: &Args, json: bool) -> Result<ExitCode, Failure> {
    let payload = Payload::read(Path::new(FOLDER)).map_err(|error| {
        Failure::Refused(match error.kind() {
            io::ErrorKind::NotFound => {
                "this is no live image: start the machine from the ISO or the network, or write the disk with \
                 `image-builder flash`"
                    .to_owned()
            }
            _ => format!("{FOLDER}: {error}"),
        })
    })?;
    if args.ask {
        return ask(&payload);
    }
    match (&args.to, &args.confirm) {
        (Some(to), Some(name)) => {
            install(&payload, to, name).map_err(|error| Failure::Refused(chain(&error)))?;
            print(&done(&payload, name))?;
        }
        _ => show(json, &choices(&payload), |choices| table(choices))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn choices(payload: &Payload) -> Vec<Choice> {
    install::choices(Path::new("/"), payload, flash::mounted)
}

fn install(payload: &Payload, disk: &Path, typed: &str) -> Result<(), FlashError> {
    let folder = Path::new(FOLDER);
    let root = install::running_root().map_err(FlashError::Image)?;
    let mut image = payload.disk(folder, root).map_err(FlashError::Image)?;
    let wanted = payload.wanted();
    let target = Target::open(disk, &wanted)?;
    if target.size() < payload.disk_min {
        return Err(FlashError::TooSmall {
            path: disk.to_owned(),
            size: target.size(),
            needed: payload.disk_min,
        });
    }
    target.confirm(typed)?.write_with_bar(&mut image, &wanted)
}

fn done(payload: &Payload, disk: &str) -> String {
    let Payload {
        name, image_version, ..
    } = payload;
    format!("{disk} holds {name} {image_version}; read back and compared\n")
}

fn size(bytes: Option<u64>) -> String {
    bytes.map_or("?".to_owned(), |bytes| {
        format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
    })
}

fn table(choices: &[Choice]) -> String {
    if choices.is_empty() {
        return "This machine has no disk that the kernel has a driver for.\n".to_owned();
    }
    let mut text = String::new();
    for choice in choices {
        let _ = writeln!(
            text,
            "{:12} {:>12}  {}",
            choice.name,
            size(choice.bytes),
            clean(&choice.identity)
        );
        let _ = writeln!(text, "{:27}{}", "", clean(&choice.content));
        if let Some(why) = &choice.obstacle {
            let _ = writeln!(text, "{:27}can't be taken: {}", "", clean(why));
        }
    }
    text
}

/// What was typed; nothing when the terminal is gone.
fn line(question: &str) -> Result<String, Failure> {
    print(question)?;
    let _ = io::stdout().flush();
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    read.map_err(|error| Failure::Refused(error.to_string()))?;
    Ok(line.trim().to_owned())
}

/// The whole conversation. A refusal is said, and the question comes again.
fn ask(payload: &Payload) -> Result<ExitCode, Failure> {
    let Payload {
        name, image_version, ..
    } = payload;
    print(&format!(
        "\nInstall {name} {image_version} onto a disk of this machine.\n"
    ))?;
    loop {
        let choices = choices(payload);
        print(&format!("\n{}\n", table(&choices)))?;
        let typed = line("Type the name of the disk, or only Enter to go back: ")?;
        if typed.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        let Some(choice) = choices.iter().find(|choice| choice.name == typed) else {
            print(&format!("There is no disk {:?} here.\n", clean(&typed)))?;
            continue;
        };
        if let Some(why) = &choice.obstacle {
            print(&format!("{typed} can't be taken: {}.\n", clean(why)))?;
            continue;
        }
        print(&format!(
            "\nEverything on {typed} ({}; {}; {}) will be lost.\n",
            size(choice.bytes),
            clean(&choice.identity),
            clean(&choice.content)
        ))?;
        let again = line(&format!("Type {typed} again to go on: "))?;
        match install(payload, &Path::new("/dev").join(&typed), &again) {
            Err(error) => print(&format!("{}.\n", clean(&chain(&error))))?,
            Ok(()) => break print(&done(payload, &typed))?,
        }
    }
    line("Take the ISO or stick out, then press Enter: the machine restarts from its disk. ")?;
    let restarting = Command::new("systemctl").arg("reboot").status();
    match restarting {
        Ok(status) if status.success() => Ok(ExitCode::SUCCESS),
        _ => Err(Failure::Refused(
            "the machine doesn't restart by itself: switch it off and on".to_owned(),
        )),
    }
}
