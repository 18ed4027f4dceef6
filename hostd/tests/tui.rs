//! `hostd tui` in a real pseudo-terminal, before a real daemon's API with the simulated machine behind it.

#![allow(clippy::unwrap_used, reason = "tests may")]

mod sim;

use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ledger::api::ContractState;
use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};
use sim::money::request;
use sim::{Life, NEVER, World, id, serve};

/// A screen is looked for so long. The machine that runs this may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program on its terminal.
struct Tui {
    child: Box<dyn Child + Send + Sync>,
    master: Box<dyn MasterPty + Send>,
    keys: Box<dyn Write + Send>,
    seen: Arc<Mutex<(vt100::Parser, Vec<u8>)>>,
    before: String,
}

impl Tui {
    fn start(socket: &Path, term: &str, args: &[&str]) -> Self {
        let size = PtySize {
            rows: 24,
            cols: 80,
            ..PtySize::default()
        };
        let pty = native_pty_system().openpty(size).unwrap();
        let before = format!("{:?}", pty.master.get_termios());
        let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_hostd"));
        command.args(["--socket", socket.to_str().unwrap(), "tui"]);
        command.args(args);
        command.env("TERM", term);
        command.env("LC_ALL", "C.UTF-8");
        command.env_remove("NO_COLOR");
        let child = pty.slave.spawn_command(command).unwrap();
        let seen = Arc::new(Mutex::new((vt100::Parser::new(24, 80, 0), Vec::new())));
        let mut output = pty.master.try_clone_reader().unwrap();
        let screen = seen.clone();
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut piece) {
                let mut seen = screen.lock().unwrap();
                seen.0.process(&piece[..length]);
                seen.1.extend_from_slice(&piece[..length]);
            }
        });
        Self {
            child,
            keys: pty.master.take_writer().unwrap(),
            master: pty.master,
            seen,
            before,
        }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    fn screen(&self) -> String {
        self.seen.lock().unwrap().0.screen().contents()
    }

    async fn sees(&self, text: &str) {
        let start = Instant::now();
        while !self.screen().contains(text) {
            assert!(
                start.elapsed() < PATIENCE,
                "never saw {text:?}:\n{}",
                self.screen()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for the end; the terminal must be as it was before.
    async fn ends(mut self) -> u32 {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < PATIENCE, "it doesn't end:\n{}", self.screen());
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(
            format!("{:?}", self.master.get_termios()),
            self.before,
            "the terminal's modes"
        );
        // What was written last may still be on its way through the terminal.
        while self.seen.lock().unwrap().0.screen().alternate_screen() {
            assert!(start.elapsed() < PATIENCE, "the alternate screen is left on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(
            !self.seen.lock().unwrap().0.screen().hide_cursor(),
            "the cursor is left hidden"
        );
        status.exit_code()
    }
}

async fn world_with_a_vm() -> (Arc<World>, Life) {
    let world = World::new();
    let life = Life::start(&world, NEVER).await;
    world.change(|state| state.rent(request(id(1), 1)));
    let active = |state: &sim::State| state.contracts[&id(1)].state == ContractState::Active;
    world.until("active", active).await;
    (world, life)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_looks_drains_and_leaves_over_a_real_terminal() {
    let (world, life) = world_with_a_vm().await;
    let record = life.journal.record(id(1)).await.unwrap().unwrap();
    let console = record.spec.unwrap().run_dir.join("console.log");
    std::fs::write(&console, b"Welcome\r\n\x1b[31mevil\x1b]0;owned\x07\r\nlogin: ").unwrap();
    let served = serve(&world, &life, 1).await;
    let file = world.dir.path().join("events.jsonl");
    let mut tui = Tui::start(
        &served.socket,
        "xterm-256color",
        &["--record", file.to_str().unwrap()],
    );
    tui.sees("READY").await;
    tui.sees("01010101 running").await;
    tui.sees("hostd is up").await;

    tui.press("\r");
    for text in ["Steps", "launch", "login:", "evil"] {
        tui.sees(text).await;
    }
    tui.press("f\x1b[6~"); // the rest of the text: evidence as the ledger verified it
    tui.sees("report-data").await;
    tui.press("\x1b");
    tui.sees("DOING").await;

    // An order needs the host's name, not just Enter.
    tui.press(":drain\r");
    tui.sees("Are you sure?").await;
    tui.press("y\r");
    tui.sees("that isn't").await;
    assert!(!life.journal.draining().await.unwrap());
    tui.press("rack7-node3\r");
    tui.sees("DRAINING").await;
    assert!(life.journal.draining().await.unwrap());

    // The daemon goes and comes back.
    let socket = served.socket.clone();
    served.stop().await;
    tui.sees("NO ANSWER").await;
    let served = serve(&world, &life, 2).await;
    assert_eq!(served.socket, socket);
    tui.sees("hostd was restarted").await;
    tui.press("q");
    assert_eq!(tui.ends().await, 0);

    // What was recorded shows the same again, without a daemon.
    let mut replay = std::process::Command::new(env!("CARGO_BIN_EXE_hostd"));
    replay.args(["tui", "--once", "--replay"]).arg(&file);
    let frame = tokio::task::spawn_blocking(move || replay.output().unwrap())
        .await
        .unwrap();
    let frame = String::from_utf8(frame.stdout).unwrap();
    assert!(
        frame.contains("DRAINING") && frame.contains("01010101 running"),
        "{frame}"
    );
    served.stop().await;
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_serial_terminal_gets_ascii_and_is_restored_by_sigterm() {
    let (world, life) = world_with_a_vm().await;
    let served = serve(&world, &life, 1).await;
    let mut tui = Tui::start(&served.socket, "vt220", &["--read-only"]);
    tui.sees("READY").await;
    tui.sees("01010101 running").await;
    tui.press(":drain\r");
    tui.sees("read only").await;
    {
        let seen = tui.seen.lock().unwrap();
        assert!(seen.1.is_ascii(), "bytes that no vt220 knows");
        let screen = seen.0.screen();
        for (row, column) in (0..24).flat_map(|row| (0..80).map(move |column| (row, column))) {
            let cell = screen.cell(row, column).unwrap();
            assert_eq!(cell.fgcolor(), vt100::Color::Default, "colour at {row},{column}");
        }
    }
    let process = i32::try_from(tui.child.process_id().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(process), nix::sys::signal::SIGTERM).unwrap();
    assert_eq!(tui.ends().await, 0);
    served.stop().await;
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_frame_and_the_model_are_printed_without_a_terminal() {
    let (world, life) = world_with_a_vm().await;
    let served = serve(&world, &life, 1).await;
    let socket = served.socket.clone();
    let hostd = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_hostd"));
        command
            .arg("--socket")
            .arg(&socket)
            .args(args)
            .env("COLUMNS", "100");
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    let frame = hostd(&["tui", "--once"]).await.unwrap();
    let frame = String::from_utf8(frame.stdout).unwrap();
    assert!(
        frame.contains("01010101") && frame.contains("reputation  3"),
        "{frame}"
    );
    assert_eq!(frame.lines().count(), 24);
    let model = hostd(&["--json", "tui"]).await.unwrap();
    let model: hostd::tui::model::Model = serde_json::from_slice(&model.stdout).unwrap();
    assert_eq!(model.contracts.len(), 1);
    assert_eq!(model.contracts[0].grade.as_deref(), Some("host-signed"));

    served.stop().await;
    let silent = hostd(&["tui", "--once"]).await.unwrap();
    assert_eq!(silent.status.code(), Some(3));
    life.kill().await;
}
