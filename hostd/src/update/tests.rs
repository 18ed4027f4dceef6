//! The state machine over simulated slots: every ending, and every crash.
#![allow(clippy::unwrap_used, reason = "tests may")]

use std::path::PathBuf;
use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::journal::Moment;

/// What the machine's disk and firmware hold: it outlives hostd.
#[derive(Debug)]
struct Machine {
    boot: u64,
    running: &'static str,
    trial: Trial,
    /// The version in the other slot.
    slot: Option<String>,
    bad: Vec<Version>,
    offered: Vec<&'static str>,
    broken_source: bool,
    reboot_fails: bool,
    reboots: u32,
}

struct Simulated(Arc<StdMutex<Machine>>);

fn version(text: &str) -> Version {
    text.parse().unwrap()
}

#[async_trait]
impl Slots for Simulated {
    async fn seen(&self) -> Result<Seen, SlotError> {
        let machine = self.0.lock().unwrap();
        Ok(Seen {
            running: version(machine.running),
            boot_id: machine.boot.to_string(),
            trial: machine.trial,
        })
    }

    async fn available(&self) -> Result<Vec<Version>, SlotError> {
        let machine = self.0.lock().unwrap();
        match machine.broken_source {
            true => Err(SlotError("the source isn't signed".into())),
            false => Ok(machine.offered.iter().map(|text| version(text)).collect()),
        }
    }

    async fn install(&self, version: &Version, tell: Tell) -> Result<(), SlotError> {
        tell("filling");
        tokio::task::yield_now().await;
        self.0.lock().unwrap().slot = Some(version.to_string());
        Ok(())
    }

    async fn others(&self, _: &Version) -> Result<Vec<Version>, SlotError> {
        Ok(self
            .0
            .lock()
            .unwrap()
            .slot
            .iter()
            .map(|text| version(text))
            .collect())
    }

    async fn mark_bad(&self, version: &Version) -> Result<(), SlotError> {
        self.0.lock().unwrap().bad.push(version.clone());
        Ok(())
    }

    async fn reboot(&self) -> Result<(), SlotError> {
        let mut machine = self.0.lock().unwrap();
        machine.reboots += 1;
        match machine.reboot_fails {
            true => Err(SlotError("no reboot".into())),
            false => Ok(()),
        }
    }
}

struct World {
    dir: tempfile::TempDir,
    machine: Arc<StdMutex<Machine>>,
}

impl World {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            machine: Arc::new(StdMutex::new(Machine {
                boot: 1,
                running: "1",
                trial: Trial::Good,
                slot: None,
                bad: Vec::new(),
                offered: vec!["2", "1"],
                broken_source: false,
                reboot_fails: false,
                reboots: 0,
            })),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("journal.db")
    }

    /// What the loader starts: the newest that isn't bad.
    fn loads(&self) -> Version {
        let machine = self.machine.lock().unwrap();
        let slots = machine.slot.as_deref().into_iter().chain([machine.running]);
        slots
            .map(version)
            .filter(|version| !machine.bad.contains(version))
            .reduce(|one, other| if one.is_older_than(&other) { other } else { one })
            .expect("a version that isn't bad")
    }

    /// hostd starts; it dies at its `die`-th moment around a write of the journal.
    async fn start(&self, die: u64) -> Arc<Updater> {
        let count = AtomicU64::new(0);
        let probe = Arc::new(move |_: Moment| count.fetch_add(1, Ordering::SeqCst) + 1 < die);
        let journal = Journal::open_with(&self.path(), probe).unwrap();
        let config = UpdateConfig {
            source: Some("https://updates.example/".into()),
            ..UpdateConfig::default()
        };
        let slots = Simulated(self.machine.clone());
        let updater = Arc::new(Updater::new(config, Some(Arc::new(slots)), journal));
        let _ = updater.settle(true).await; // it may die here
        updater
    }

    fn boots(&self, running: &'static str, trial: Trial) {
        let mut machine = self.machine.lock().unwrap();
        (machine.boot, machine.running, machine.trial) = (machine.boot + 1, running, trial);
    }
}

async fn staged(updater: &Updater) -> State {
    loop {
        let state = updater.journal.update().await.unwrap();
        if !matches!(state.phase, Phase::Staging { .. }) {
            return state;
        }
        tokio::task::yield_now().await;
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T, UpdateError>, says: &str) {
    let text = result.unwrap_err().to_string();
    assert!(text.contains(says), "{text:?} doesn't say {says:?}");
}

#[tokio::test]
async fn an_update_is_staged_applied_tried_and_kept() {
    let world = World::new();
    let updater = world.start(u64::MAX).await;
    assert_eq!(updater.check().await.unwrap().candidate, Some(version("2")));
    refused(updater.apply(0, false, async {}).await, "nothing is staged");
    assert_eq!(updater.stage(None, false).await.unwrap(), version("2"));
    assert!(matches!(staged(&updater).await.phase, Phase::Staged { .. }));
    refused(updater.apply(3, false, async {}).await, "3 contracts run here");
    assert_eq!(world.machine.lock().unwrap().reboots, 0);
    let told = AtomicU64::new(0);
    let tell = async { told.store(world.machine.lock().unwrap().reboots.into(), Ordering::SeqCst) };
    assert_eq!(updater.apply(3, true, tell).await.unwrap(), version("2"));
    assert_eq!((told.into_inner(), world.machine.lock().unwrap().reboots), (0, 1));
    let notice = updater.notice().await.unwrap();
    assert_eq!(
        (notice.running.as_str(), notice.next.as_deref()),
        ("1", Some("2"))
    );
    assert!(notice.away_from.is_some());
    drop(updater);

    world.boots("2", Trial::OnTrial);
    let updater = world.start(u64::MAX).await;
    let status = updater.status().await.unwrap().unwrap();
    assert!(status.on_trial && matches!(status.phase, Phase::Trial { .. }));
    refused(updater.stage(Some(version("1")), true).await, "on trial");
    world.machine.lock().unwrap().trial = Trial::Good;
    updater.settle(false).await.unwrap();
    let state = updater.journal.update().await.unwrap();
    assert_eq!(
        (state.phase, state.highest_good),
        (Phase::Idle, Some(version("2")))
    );
    assert_eq!(state.last.unwrap().outcome, Outcome::Good);

    // Nothing older than what was good, unless the operator insists; then back again is no new override.
    assert_eq!(updater.check().await.unwrap().candidate, None);
    refused(updater.stage(None, false).await, "nothing newer than 2");
    refused(
        updater.stage(Some(version("1")), false).await,
        "1 is older than 2",
    );
    refused(
        updater.stage(Some(version("7")), false).await,
        "doesn't offer 7; it has 2, 1",
    );
    updater.stage(Some(version("1")), true).await.unwrap();
    staged(&updater).await;
    assert_eq!(world.loads(), version("2"));
    updater.apply(0, false, async {}).await.unwrap();
    assert_eq!(world.loads(), version("1"));
    drop(updater);
    world.boots("1", Trial::Good);
    let updater = world.start(u64::MAX).await;
    let state = updater.journal.update().await.unwrap();
    assert_eq!(
        (state.phase, state.highest_good),
        (Phase::Idle, Some(version("2")))
    );
    assert_eq!(updater.check().await.unwrap().candidate, Some(version("2")));
}

#[tokio::test]
async fn a_version_that_does_not_prove_itself_is_told_and_not_tried_again_by_itself() {
    let world = World::new();
    let updater = world.start(u64::MAX).await;
    updater.stage(None, false).await.unwrap();
    staged(&updater).await;
    updater.apply(0, false, async {}).await.unwrap();
    drop(updater);
    world.boots("2", Trial::OnTrial);
    world.boots("1", Trial::Good);
    let updater = world.start(u64::MAX).await;
    let status = updater.status().await.unwrap().unwrap();
    assert_eq!(status.phase, Phase::Idle);
    let last = status.last.unwrap();
    assert_eq!((last.outcome, last.version), (Outcome::Returned, version("2")));
    assert!(last.why.contains("returned to 1"), "{}", last.why);
    assert_eq!(updater.notice().await.unwrap().returned.as_deref(), Some("2"));
    updater.automatic().await.unwrap();
    assert_eq!(updater.journal.update().await.unwrap().phase, Phase::Idle);
    // The operator may try it again.
    updater.stage(None, false).await.unwrap();
    assert!(matches!(staged(&updater).await.phase, Phase::Staged { .. }));
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_and_leaves_everything_as_it_was() {
    let world = World::new();
    let updater = world.start(u64::MAX).await;
    let before = updater.journal.update().await.unwrap();
    world.machine.lock().unwrap().broken_source = true;
    refused(updater.check().await, "isn't signed");
    refused(updater.stage(None, false).await, "isn't signed");
    refused(
        updater.roll_back("x", 0, false, async {}).await,
        "the other slot is empty",
    );
    assert_eq!(updater.journal.update().await.unwrap(), before);
    world.machine.lock().unwrap().broken_source = false;
    updater.stage(None, false).await.unwrap();
    staged(&updater).await;
    refused(updater.roll_back("x", 0, false, async {}).await, "no way back");
    world.machine.lock().unwrap().reboot_fails = true;
    refused(updater.apply(0, false, async {}).await, "no reboot");
    assert!(matches!(staged(&updater).await.phase, Phase::Staged { .. }));
    // A machine of another kind.
    let journal = Journal::open(&world.dir.path().join("other.db")).unwrap();
    let none = Arc::new(Updater::new(UpdateConfig::default(), None, journal));
    assert_eq!(none.status().await.unwrap(), None);
    assert_eq!(none.notice().await, None);
    refused(none.stage(None, false).await, "isn't the appliance");
}

/// Goal: whatever hostd was at when it died, the next one knows what is so, and an update goes on to its end. Method:
/// hostd dies at each moment around each write of the journal; the machine reboots or doesn't; the next hostd finishes.
#[tokio::test]
async fn no_crash_leaves_an_update_that_cannot_go_on() {
    let mut crashes = 0;
    for die in 1..40 {
        for reboots in [false, true] {
            let world = World::new();
            let updater = world.start(die).await;
            let story = async {
                updater.stage(None, false).await?;
                while let Phase::Staging { .. } = updater.journal.update().await?.phase {
                    tokio::task::yield_now().await;
                }
                updater.apply(0, false, async {}).await
            };
            let lived = story.await.is_ok();
            drop(updater);
            if !lived {
                crashes += 1;
            }
            let filled = world.machine.lock().unwrap().slot.is_some();
            if reboots || lived {
                let running = if filled { "2" } else { "1" };
                world.boots(running, if filled { Trial::OnTrial } else { Trial::Good });
            }
            let updater = world.start(u64::MAX).await;
            let mut state = updater.journal.update().await.unwrap();
            assert!(
                !matches!(state.phase, Phase::Staging { .. } | Phase::Applying { .. }),
                "death {die}, reboot {reboots}: {state:?}"
            );
            if world.machine.lock().unwrap().running == "1" {
                if state.phase == Phase::Idle {
                    updater.stage(None, false).await.unwrap();
                    state = staged(&updater).await;
                }
                assert!(matches!(state.phase, Phase::Staged { .. }), "{state:?}");
                updater.apply(0, false, async {}).await.unwrap();
                drop(updater);
                world.boots("2", Trial::OnTrial);
                drop(world.start(u64::MAX).await);
            }
            world.machine.lock().unwrap().trial = Trial::Good;
            let updater = world.start(u64::MAX).await;
            let state = updater.journal.update().await.unwrap();
            assert_eq!(
                (state.phase, state.highest_good),
                (Phase::Idle, Some(version("2"))),
                "death {die}"
            );
        }
    }
    assert!(crashes >= 10, "only {crashes} stories were cut short");
}

#[test]
fn a_source_is_a_url_or_a_folder_and_nothing_that_systemd_would_read_otherwise() {
    for (text, good) in [
        ("https://updates.example/dc/", true),
        ("/run/update", true),
        ("http://updates.example/", false),
        ("updates", false),
        ("/run/../etc", false),
        ("https://a/%i", false),
        ("/run/a\nType=partition", false),
        ("/run/a b", false),
    ] {
        assert_eq!(is_source(text), good, "{text:?}");
    }
}
