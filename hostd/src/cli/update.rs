//! `hostd update`.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;

use super::client::{self, Client};
use super::{Failure, print};
use crate::surface::model::{ApplyRequest, RollbackRequest, StageRequest, Staging, Status};
use crate::update::{Checked, Outcome, Phase, UpdateStatus, Version};

#[derive(Subcommand)]
#[command(after_help = "\
The machine has two slots. `stage` fills the one that isn't running, while VMs run; `apply` reboots into it. The new
image has three tries to prove itself: hostd answers and has heard the ledger. If it doesn't, the machine returns to
the image before by itself, and `status` says so.

  hostd update check          what the source of [update] in hostd.toml offers
  hostd update stage          download, check the owner's signature, fill the free slot
  hostd drain                 no new contracts; wait until `hostd contracts` is empty
  hostd update apply          reboot into it

Exit codes: 0 done; 1 refused, or it failed; 2 wrong usage; 3 the daemon doesn't answer. check: 1 if there is nothing new.")]
pub(super) enum Verb {
    /// What runs, what is staged, how the last update ended
    Status,
    /// What the source offers, and what `stage` would take
    Check,
    /// Fill the free slot with the newest version, or the one that is named, and wait until it is done
    Stage {
        /// Which version
        version: Option<Version>,
        /// Install a version older than one that was good here; the log says so
        #[arg(long)]
        allow_older: bool,
    },
    /// Reboot into the staged version
    Apply {
        /// Even with contracts here: their VMs die, and they end with the unused money refunded
        #[arg(long)]
        force_with_vms: bool,
        /// Don't ask for the version to be typed
        #[arg(long)]
        yes: bool,
    },
    /// Go back to the version in the other slot, and reboot; the running one isn't booted again
    Rollback {
        /// Why; kept, shown and logged
        #[arg(long)]
        reason: String,
        /// Even with contracts here: their VMs die, and they end with the unused money refunded
        #[arg(long)]
        force_with_vms: bool,
        /// Don't ask for the running version to be typed
        #[arg(long)]
        yes: bool,
    },
    /// Succeed when the running image is fit to be kept: hostd answers, and has heard the ledger or is meant to be offline
    Healthy,
}

pub(super) async fn run(client: &Client, verb: Verb, json: bool) -> Result<ExitCode, Failure> {
    match verb {
        Verb::Status => show(json, &status(client).await?, render)?,
        Verb::Check => {
            let answer = client.post("/v1/update/check", &()).await?;
            let checked: Checked = client::parse(&answer)?;
            show(json, &checked, |checked| {
                let found: Vec<String> = checked.available.iter().map(ToString::to_string).collect();
                let candidate = match &checked.candidate {
                    Some(version) => format!("`hostd update stage` installs {version}"),
                    None => "nothing new".to_owned(),
                };
                format!(
                    "running   {}\noffered   {}\n{candidate}\n",
                    checked.running,
                    found.join(", ")
                )
            })?;
            return Ok(ExitCode::from(u8::from(checked.candidate.is_none())));
        }
        Verb::Stage { version, allow_older } => {
            let answer = client
                .post("/v1/update/stage", &StageRequest { version, allow_older })
                .await?;
            let Staging { version } = client::parse(&answer)?;
            let status = wait(client, &version).await?;
            if !matches!(&status.phase, Phase::Staged { version: staged, .. } if *staged == version) {
                let why = status
                    .last
                    .map_or_else(|| "it isn't staged".to_owned(), |last| last.why);
                return Err(Failure::Refused(why));
            }
            show(json, &status, render)?;
        }
        Verb::Apply { force_with_vms, yes } => {
            let Phase::Staged { version, .. } = status(client).await?.phase else {
                return Err(Failure::Refused(
                    "nothing is staged; `hostd update stage` does that".into(),
                ));
            };
            confirm(yes, "The machine reboots into it now.", &version)?;
            let answer = client
                .post("/v1/update/apply", &ApplyRequest { force_with_vms })
                .await?;
            rebooting(json, &client::parse(&answer)?)?;
        }
        Verb::Rollback {
            reason,
            force_with_vms,
            yes,
        } => {
            let running = status(client).await?.running;
            confirm(
                yes,
                "The machine leaves it and reboots into the version before now.",
                &running,
            )?;
            let request = RollbackRequest {
                reason,
                force_with_vms,
            };
            let answer = client.post("/v1/update/rollback", &request).await?;
            rebooting(json, &client::parse(&answer)?)?;
        }
        Verb::Healthy => {
            let status: Status = client.get("/v1/status").await?;
            let offline = status.update.is_some_and(|update| update.offline);
            match (status.ledger.heard_ms_ago, status.ledger.trouble, offline) {
                (_, _, true) => print("hostd answers; a ledger isn't expected ([update] offline)\n")?,
                (Some(_), None, false) => print("hostd answers and has heard the ledger\n")?,
                (_, trouble, false) => {
                    let why = trouble.unwrap_or_else(|| "not heard yet".into());
                    return Err(Failure::Refused(format!(
                        "hostd answers, the ledger doesn't: {why}"
                    )));
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn status(client: &Client) -> Result<UpdateStatus, Failure> {
    Ok(client.get("/v1/update").await?)
}

fn show<T: serde::Serialize>(json: bool, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
    if json {
        let text = serde_json::to_string_pretty(value).map_err(|e| Failure::Refused(e.to_string()))?;
        print(&(text + "\n"))
    } else {
        print(&text(value))
    }
}

fn rebooting(json: bool, next: &Staging) -> Result<(), Failure> {
    show(json, next, |next| {
        format!(
            "the machine reboots into {}; `hostd update status` afterwards says how it went\n",
            next.version
        )
    })
}

/// Shows on standard error what systemd-sysupdate does, until it is done.
async fn wait(client: &Client, version: &Version) -> Result<UpdateStatus, Failure> {
    let mut said = None;
    loop {
        let status = status(client).await?;
        if !matches!(&status.phase, Phase::Staging { version: staging, .. } if staging == version) {
            return Ok(status);
        }
        if status.doing.is_some() && status.doing != said {
            said.clone_from(&status.doing);
            eprintln!("{}", said.as_deref().unwrap_or_default());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Has the version typed, unless `yes`.
fn confirm(yes: bool, what: &str, version: &Version) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(format!(
            "{what} Nobody is here to confirm; say --yes"
        )));
    }
    eprint!("{version}: {what}\nType {version} to go on: ");
    let _ = std::io::stderr().flush(); // a prompt that can't be shown can't be answered either
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .map_err(|e| Failure::Refused(e.to_string()))?;
    match line.trim() == version.to_string() {
        true => Ok(()),
        false => Err(Failure::Usage(format!("that isn't {version}; nothing was done"))),
    }
}

/// For people.
pub(super) fn render(status: &UpdateStatus) -> String {
    let trial = if status.on_trial {
        ", ON TRIAL: not marked good yet"
    } else {
        ""
    };
    let mut text = format!("running   {}{trial}\n", status.running);
    let _ = writeln!(text, "update    {}", phase(&status.phase));
    if let Some(doing) = &status.doing {
        let _ = writeln!(text, "          {doing}");
    }
    if let Some(last) = &status.last {
        let word = match last.outcome {
            Outcome::Good => "good",
            Outcome::Returned => "RETURNED",
            Outcome::Failed => "FAILED",
            Outcome::TakenBack => "taken back",
        };
        let _ = writeln!(text, "last      {} {word}: {}", last.version, last.why);
    }
    let source = status
        .source
        .as_deref()
        .unwrap_or("none: set it in [update] of hostd.toml");
    let _ = writeln!(text, "source    {source}");
    text
}

/// Where the update is, in a line.
pub(crate) fn phase(phase: &Phase) -> String {
    match phase {
        Phase::Idle => "none under way".into(),
        Phase::Staging { version, .. } => format!("{version} is being staged"),
        Phase::Staged { version, .. } => format!("{version} is staged: the next boot tries it"),
        Phase::Applying { version, .. } => format!("the machine reboots into {version}"),
        Phase::Trial { version, .. } => format!("{version} is on trial"),
    }
}
