//! The terminal: raw mode, the alternate screen, keys; and back to what it was, however this ends.

use std::io::{self, BufWriter, Stdout, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use crossterm::event::{Event as Input, KeyEventKind};
use crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use crossterm::{cursor, execute};
use ratatui::backend::CrosstermBackend;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::{Terminal, TerminalOptions, Viewport};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::keys;
use super::state::Event;

/// A terminal that doesn't tell its size (a serial line) is taken for this.
const SIZE: (u16, u16) = (80, 24);

/// Keys that wait: somebody types faster than a serial line draws.
const KEYS: usize = 64;

/// Whether the terminal is in our hands and has to be given back.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Columns and rows; `COLUMNS` and `LINES` where the terminal says nothing.
pub(super) fn size() -> (u16, u16) {
    let told = crossterm::terminal::size()
        .ok()
        .filter(|(columns, rows)| *columns > 0 && *rows > 0);
    let var = |name: &str| std::env::var(name).ok()?.parse::<u16>().ok().filter(|n| *n > 0);
    told.unwrap_or_else(|| (var("COLUMNS").unwrap_or(SIZE.0), var("LINES").unwrap_or(SIZE.1)))
}

/// Prints text; whoever stops reading has seen enough.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn restore() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        // Best effort: there is nobody to tell when the terminal is gone.
        let _ = execute!(io::stdout(), LeaveAlternateScreen, cursor::Show);
        let _ = disable_raw_mode();
    }
}

/// The terminal while it is ours. Dropped, or when the program panics, it is as it was before.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<BufWriter<Stdout>>>,
    size: (u16, u16),
}

impl Screen {
    pub(super) fn open() -> io::Result<Self> {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore(); // first, so that the message is seen
            before(info);
        }));
        enable_raw_mode()?;
        TAKEN.store(true, Ordering::SeqCst);
        execute!(io::stdout(), EnterAlternateScreen, cursor::Hide)?;
        let size = size();
        let mut screen = Self {
            terminal: Self::terminal(size)?,
            size,
        };
        screen.clear()?;
        Ok(screen)
    }

    fn terminal((columns, rows): (u16, u16)) -> io::Result<Terminal<CrosstermBackend<BufWriter<Stdout>>>> {
        // The size is ours, not the backend's: a serial line has none.
        let viewport = Viewport::Fixed(Rect::new(0, 0, columns, rows));
        Terminal::with_options(
            CrosstermBackend::new(BufWriter::new(io::stdout())),
            TerminalOptions { viewport },
        )
    }

    /// Empties the terminal: the next frame is drawn whole. (ratatui's own `clear` asks the terminal where its cursor is, and
    /// not every serial line answers.)
    pub(super) fn clear(&mut self) -> io::Result<()> {
        execute!(io::stdout(), Clear(ClearType::All))?;
        self.terminal = Self::terminal(self.size)?;
        Ok(())
    }

    /// Draws a frame; only what differs from the last one is written.
    pub(super) fn draw(&mut self, draw: impl FnOnce(Rect, &mut Buffer)) -> io::Result<()> {
        let now = size();
        if now != self.size {
            self.size = now;
            self.clear()?;
        }
        self.terminal
            .draw(|frame| draw(frame.area(), frame.buffer_mut()))?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Keys and changes of the size, read on a thread of their own; it ends with the process or the terminal.
pub(super) fn keys() -> mpsc::Receiver<Event> {
    let (send, receive) = mpsc::channel(KEYS);
    std::thread::spawn(move || {
        while let Ok(input) = crossterm::event::read() {
            let event = match input {
                Input::Key(key) if key.kind != KeyEventKind::Release => {
                    keys::from_terminal(key).map(|key| Event::Key { key })
                }
                Input::Resize(..) => {
                    let (columns, rows) = size();
                    Some(Event::Resize { columns, rows })
                }
                _ => None,
            };
            if event.is_some_and(|event| send.blocking_send(event).is_err()) {
                return;
            }
        }
    });
    receive
}

/// Signals that ask us to go.
pub(super) struct Ends {
    terminate: Signal,
    hangup: Signal,
    interrupt: Signal,
}

impl Ends {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for one of them.
    pub(super) async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.hangup.recv() => (),
            _ = self.interrupt.recv() => (),
        }
    }
}
