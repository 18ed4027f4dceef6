//! `hostd tui`: the host on one screen, for whoever stands before it.
//!
//! ```text
//!  keys ──┐
//!  daemon ┼─▶ Event ─▶ State::apply (pure) ─▶ State ─▶ view::draw (pure) ─▶ Buffer ─▶ terminal
//!  file ──┘      │            └─▶ Effect: quit · refresh · an order for the daemon
//!                └─▶ --record FILE (one JSON line each; --replay FILE plays them again)
//! ```
//! A plain client of the daemon's socket: it sees nothing that the API doesn't say, and an order is a POST like any
//! other. What the daemon doesn't know is shown as unknown with the reason. Everything that came from outside (guests'
//! consoles, the ledger's words) loses what a terminal would obey before it is drawn, and the finished frame is looked
//! through once more.
//!
//! | module | what |
//! |---|---|
//! | [`model`] | what the daemon said last; `--json` prints it |
//! | [`state`] | model + what is on the screen; what each event changes |
//! | [`keys`] | what a key means |
//! | [`order`] | drain, maintenance, end |
//! | [`text`], [`theme`] | harmless text; glyphs and colours by terminal |
//! | [`view`] | the frame |
//! | `first_boot` | another screen: the settings of a host that has none |
//! | `feed`, `terminal`, `record` | the effects: socket, screen, files |
//!
//! On a serial line (and on `vt220`, `dumb`): ASCII, no colour, at most one frame a second, and of each frame only what
//! differs. A state is always a word too, never a colour alone.

mod feed;
pub mod first_boot;
pub mod keys;
pub mod model;
pub mod order;
mod record;
pub mod state;
mod terminal;
#[cfg(test)]
mod tests;
pub mod text;
pub mod theme;
pub mod view;

use std::path::PathBuf;
use std::time::Duration;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::feed::Feed;
use self::record::Recorder;
use self::state::{Effect, Event, State, Timed};
use self::terminal::Screen;
use self::theme::Theme;
use crate::cli::client::{Client, ClientError};
use crate::journal::now_ms;

/// Between two frames on a terminal that is fast.
const FRAME: Duration = Duration::from_millis(50);

/// Between two frames on a serial line: a screen of 80×24 takes 2 s at 9,600 baud, what differs much less.
const FRAME_SLOW: Duration = Duration::from_secs(1);

/// Longest pause of a replay.
const REPLAY_PAUSE: Duration = Duration::from_secs(1);

/// Arguments of `hostd tui`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// No actions: look only
    #[arg(long)]
    pub read_only: bool,
    /// Print one frame and exit
    #[arg(long)]
    pub once: bool,
    /// Write every event (keys, answers of the daemon) to a file
    #[arg(long, value_name = "FILE", conflicts_with = "replay")]
    pub record: Option<PathBuf>,
    /// Play a recorded file instead of asking the daemon
    #[arg(long, value_name = "FILE")]
    pub replay: Option<PathBuf>,
    /// ASCII without colour, one frame a second, whatever the terminal says of itself
    #[arg(long)]
    pub plain: bool,
}

/// The TUI can't go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TuiError {
    /// `--once` or `--json`, and the daemon didn't answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The terminal.
    #[error("the terminal can't be used")]
    Terminal(#[source] std::io::Error),
    /// A file of events.
    #[error("{}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: std::io::Error,
    },
    /// A line of it.
    #[error("{} line {line}: {why}", .path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// The model as JSON.
    #[error("{0}")]
    Json(String),
}

/// Runs until the operator quits. `json`: prints the model instead of a screen.
pub(crate) async fn run(client: &Client, args: &Args, json: bool) -> Result<(), TuiError> {
    let theme = if args.plain { Theme::PLAIN } else { Theme::here() };
    let mut state = State::new(args.read_only, now_ms());
    if args.once || json {
        match &args.replay {
            Some(path) => record::read(path)?.into_iter().for_each(|timed| {
                state.apply(timed); // effects are for somebody who sits there
            }),
            None => {
                for event in feed::once(client).await? {
                    state.apply(Timed::now(event));
                }
            }
        }
        let text = if json {
            serde_json::to_string_pretty(&state.model).map_err(|error| TuiError::Json(error.to_string()))?
                + "\n"
        } else {
            page(&state, &theme, terminal::size())
        };
        return terminal::print(&text).map_err(TuiError::Terminal);
    }
    let (columns, rows) = terminal::size();
    let start = Timed::now(Event::Start {
        read_only: args.read_only,
        columns,
        rows,
    });
    state.apply(start.clone());
    let source = match &args.replay {
        Some(path) => Source::Recorded(record::read(path)?.into_iter()),
        None => Source::Daemon(Feed::start(client.clone(), theme.slow)),
    };
    let mut recorder = args.record.as_deref().map(Recorder::create).transpose()?;
    if let Some(recorder) = &mut recorder {
        recorder.write(&start)?;
    }
    let mut screen = Screen::open().map_err(TuiError::Terminal)?;
    interact(&mut screen, state, &theme, source, recorder).await
}

/// One frame as text, without trailing blanks.
pub fn page(state: &State, theme: &Theme, (columns, rows): (u16, u16)) -> String {
    let area = Rect::new(0, 0, columns, rows);
    let mut buffer = Buffer::empty(area);
    view::draw(state, theme, area, &mut buffer);
    let mut text = String::new();
    for row in 0..rows {
        let mut column = 0;
        let mut line = String::new();
        while column < columns {
            let symbol = buffer[(column, row)].symbol();
            line.push_str(symbol);
            column += u16::try_from(text::width(symbol).max(1)).unwrap_or(1);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Where events come from beside the keyboard.
enum Source {
    Daemon(Feed),
    Recorded(std::vec::IntoIter<Timed>),
}

impl Source {
    /// The next event; never comes back when there is none any more.
    async fn next(&mut self, before_ms: &mut Option<i64>) -> Timed {
        match self {
            Self::Daemon(feed) => match feed.events.recv().await {
                Some(event) => Timed::now(event),
                None => std::future::pending().await,
            },
            Self::Recorded(events) => {
                let Some(timed) = events.as_slice().first().cloned() else {
                    return std::future::pending().await;
                };
                let gap = before_ms.map_or(0, |before| timed.at_ms.saturating_sub(before));
                let gap = Duration::from_millis(u64::try_from(gap).unwrap_or(0));
                tokio::time::sleep(gap.min(REPLAY_PAUSE)).await;
                *before_ms = Some(timed.at_ms);
                events.next(); // taken only now: this future may have been dropped while it slept
                timed
            }
        }
    }
}

async fn interact(
    screen: &mut Screen,
    mut state: State,
    theme: &Theme,
    mut source: Source,
    mut recorder: Option<Recorder>,
) -> Result<(), TuiError> {
    let pause = if theme.slow { FRAME_SLOW } else { FRAME };
    let mut keys: mpsc::Receiver<Event> = terminal::keys();
    let mut ends = terminal::Ends::listen().map_err(TuiError::Terminal)?;
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut dirty, mut frame_at, mut replayed_ms) = (true, Instant::now(), None);
    loop {
        let timed = tokio::select! {
            () = tokio::time::sleep_until(frame_at), if dirty => {
                screen.draw(|area, buffer| view::draw(&state, theme, area, buffer)).map_err(TuiError::Terminal)?;
                (dirty, frame_at) = (false, Instant::now() + pause);
                continue;
            }
            key = keys.recv() => match key {
                Some(event) => Timed::now(event),
                None => return Ok(()), // the terminal hung up
            },
            timed = source.next(&mut replayed_ms) => timed,
            _ = ticks.tick() => Timed::now(Event::Tick),
            () = ends.any() => return Ok(()),
        };
        if let Some(recorder) = &mut recorder {
            recorder.write(&timed)?;
        }
        dirty = true;
        let wants = state.wants();
        for effect in state.apply(timed) {
            match (effect, &source) {
                (Effect::Quit, _) => return Ok(()),
                (Effect::Redraw, _) => screen.clear().map_err(TuiError::Terminal)?,
                (Effect::Order(order), Source::Daemon(feed)) => feed.order(order),
                (Effect::Order(_), Source::Recorded(_)) => {
                    let text = "a replay has no daemon".into();
                    state.apply(Timed::now(Event::Done { ok: false, text }));
                }
            }
        }
        if let Source::Daemon(feed) = &source
            && state.wants() != wants
        {
            feed.want(state.wants());
        }
    }
}
