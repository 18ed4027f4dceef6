//! The main job, end to end on one machine, on real parts: a paid contract becomes a verified, reachable VM, and is
//! settled. `make demo` shows it, `tests/main_job.rs` asserts it; both run this.
//!
//! | Step | Who | What | Module |
//! |---|---|---|---|
//! | 1 | ledger | a fresh durable ledger; keys for everybody | [`setting`] |
//! | 2 | host | takes stock, registers, publishes its offering | [`setting`] |
//! | 2 | host, ledger | what the host runs, by its TPM's quote | [`host_runs`] |
//! | 3–5 | developer, host | match, pay, accept, provision, boot | [`contract`] |
//! | 6–7 | VM, ledger | evidence verified, clock starts; forged evidence refused | [`contract`], [`forgery`] |
//! | 8 | developer | verifies alone, connects by TLS and SSH; a neighbour can't | [`developer`] |
//! | 8 | developer | proves a name of their own by DNS, and is reached by it | [`own_name`] |
//! | 10 | host | hostd dies and adopts the VM | [`contract`] |
//! | 9 | all | accrual, extension, cancellation, refund, removal, the books | [`contract`] |
//!
//! What is simulated where the silicon is missing: the SNP chip (`snp-sim-qemu`, under a test root that the demo's
//! genesis names, so every verdict says `test-root`), the host's boot (measured into swtpm), and time (the demo ledger's clock runs faster, and says so).
//! Everything else is the real thing: the node, hostd, libvirt, QEMU, the kernel's namespaces and rules, HAProxy, TLS, SSH.

pub mod contract;
pub mod developer;
pub mod forgery;
pub mod host_runs;
pub mod own_name;
pub mod report;
pub mod setting;
pub mod timing;
pub mod world;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

use report::Report;
use world::{Place, World};

/// How the main job is run.
pub struct Options {
    /// Folder that `image-builder tenant` made.
    pub image: PathBuf,
    /// Folder of this project's programs.
    pub programs: PathBuf,
    /// What all names of this run start with; at most 6 characters, since it starts the names of network interfaces.
    pub prefix: String,
    /// Set from outside to stop early; everything is then removed.
    pub stop: Arc<AtomicBool>,
    /// Where to leave the logs if the job fails.
    pub keep_logs: Option<PathBuf>,
}

/// The job while it runs.
pub struct Job {
    /// The stage.
    pub world: World,
    /// The audience's view.
    pub report: Report,
    /// Folder of the tenant image.
    pub image: PathBuf,
    stop: Arc<AtomicBool>,
}

/// Runs it all and returns the closing table. Nothing is left behind, whatever happened.
pub fn run(options: &Options) -> Result<String> {
    with_job(options, Job::steps).map(|((), table)| table)
}

/// Sets the stage, does `work` on it, and removes everything, whatever happened. Returns the closing table too.
fn with_job<T>(options: &Options, work: impl FnOnce(&mut Job) -> Result<T>) -> Result<(T, String)> {
    let world = World::new(&options.prefix, &options.programs)?;
    let image = options
        .image
        .canonicalize()
        .with_context(|| format!("no image at {}", options.image.display()))?;
    let mut job = Job {
        world,
        report: Report::new(),
        image,
        stop: options.stop.clone(),
    };
    let outcome = work(&mut job);
    if let (Err(_), Some(to)) = (&outcome, &options.keep_logs) {
        save_logs(job.world.dir(), to).context("cannot keep the logs")?;
        eprintln!("logs are in {}", to.display());
    }
    let started = Instant::now();
    job.report
        .heading("end", "removing everything that this run made");
    let left = job.world.remove()?;
    let outcome = outcome?;
    if !left.is_empty() {
        bail!("left behind: {}", left.join(", "));
    }
    job.report.done(
        "end",
        "nothing left: no process, namespace, tap, rule, mount or file",
        started.elapsed(),
    );
    Ok((outcome, job.report.table()))
}

impl Job {
    fn steps(&mut self) -> Result<()> {
        let ledger = self.start_ledger()?;
        let host = self.start_host(&ledger)?;
        self.what_the_host_runs(&ledger, &host)?;
        let first = self.rent(&ledger, &ledger.alice, 1)?;
        self.follow_until_active(&ledger, &first)?;
        self.forge(&ledger, &first)?;
        let access = self.verify_alone(&ledger, &first)?;
        self.connect(&first, &access)?;
        self.own_name(&ledger, &first, &access)?;
        let second = self.rent(&ledger, &ledger.bob, 2)?;
        self.follow_until_active(&ledger, &second)?;
        self.neighbours_are_strangers(&ledger, &first, &access, &second)?;
        self.strangers_name(&second)?;
        self.kill_hostd(&ledger, &host, &first, &access)?;
        self.extend_and_cancel(&ledger, &host, &first, &second)?;
        self.books(&ledger)
    }

    /// Waits until `probe` has an answer, with a sign of life every few seconds.
    pub fn wait<T>(
        &mut self,
        what: &str,
        within: Duration,
        mut probe: impl FnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let started = Instant::now();
        let mut next_sign = Duration::from_secs(5);
        loop {
            if self.stop.load(Ordering::Relaxed) {
                bail!("stopped while waiting for {what}");
            }
            if let Some(answer) = probe(self)? {
                return Ok(answer);
            }
            self.world.check_alive()?;
            let waited = started.elapsed();
            if waited > within {
                bail!("{what}: not within {} s", within.as_secs());
            }
            if waited > next_sign {
                self.report.say(&format!(
                    "… {what} ({} s of at most {} s)",
                    waited.as_secs(),
                    within.as_secs()
                ));
                next_sign += Duration::from_secs(5);
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Runs a command as a person would, shows it, and returns its output.
    pub fn run(&self, mut command: Command) -> Result<String> {
        if self.stop.load(Ordering::Relaxed) {
            bail!("stopped");
        }
        self.report.command(&world::words(&command));
        world::run(&mut command)
    }

    /// Runs a command without showing it and parses the JSON it prints.
    pub fn json<T: DeserializeOwned>(&self, mut command: Command) -> Result<T> {
        let text = world::run(&mut command)?;
        serde_json::from_str(&text).with_context(|| format!("`{}` printed: {text}", world::words(&command)))
    }

    /// One of this project's programs, to be run in `place`.
    pub fn program(&self, place: Place, name: &str) -> Result<Command> {
        Ok(self.world.command(place, self.world.program(name)?))
    }
}

fn save_logs(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in walk(from)? {
        let wanted = entry.extension().is_some_and(|e| e == "log" || e == "toml");
        if wanted && entry.file_stem().is_none_or(|stem| stem != "secret") {
            let name = entry.strip_prefix(from)?.to_string_lossy().replace('/', "_");
            std::fs::copy(&entry, to.join(name))?;
        }
    }
    Ok(())
}

fn walk(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            files.extend(walk(&entry.path())?);
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(files)
}
