//! The last words of the log, kept in memory for the surface: what journald has in full, readable without it.
//!
//! A [`tracing_subscriber::Layer`] writes each event into a ring of [`KEPT`]; the API hands out what is younger than a
//! number that the reader knows. Nothing here is a record: after a restart the ring is empty.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::Context;

use crate::journal::now_ms;

/// Events kept: some screens full. At [`TEXT_CHARS_MAX`] each they take less than 1 MiB.
pub const KEPT: usize = 400;

/// Longest text of one event, characters; the rest is cut off.
const TEXT_CHARS_MAX: usize = 600;

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogEvent {
    /// Its number, from 1 at the daemon's start; each is one more than the one before.
    pub number: u64,
    /// When, ms since the Unix epoch.
    pub at_ms: i64,
    /// `error`, `warn`, `info`, `debug`, `trace`.
    pub level: String,
    /// The message with its fields.
    pub text: String,
}

#[derive(Debug, Default)]
struct Ring {
    last: u64,
    kept: VecDeque<LogEvent>,
}

/// The ring. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Events(Arc<Mutex<Ring>>); // a `std` mutex: held for a few instructions, never over an `.await`

impl Events {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        // A panic while it was held can only have lost the event that was being added.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Adds an event; the oldest goes.
    pub fn add(&self, level: &str, text: &str) {
        let mut ring = self.ring();
        ring.last += 1;
        let event = LogEvent {
            number: ring.last,
            at_ms: now_ms(),
            level: level.to_ascii_lowercase(),
            text: text.chars().take(TEXT_CHARS_MAX).collect(),
        };
        if ring.kept.len() >= KEPT {
            ring.kept.pop_front();
        }
        ring.kept.push_back(event);
    }

    /// Events with a number above `after`, oldest first.
    pub fn after(&self, after: u64) -> Vec<LogEvent> {
        let ring = self.ring();
        let young = ring.kept.iter().filter(|event| event.number > after);
        young.cloned().collect()
    }
}

/// Collects the message and `name=value` of every other field.
#[derive(Default)]
struct Words {
    message: String,
    fields: String,
}

impl Words {
    fn field(&mut self, field: &Field, value: std::fmt::Arguments<'_>) {
        let written = match field.name() {
            "message" => write!(self.message, "{value}"),
            name => write!(self.fields, " {name}={value}"),
        };
        written.expect("writing to a String can't fail");
    }
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.field(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field, format_args!("{value}"));
    }
}

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Events {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut words = Words::default();
        event.record(&mut words);
        self.add(
            event.metadata().level().as_str(),
            &(words.message + &words.fields),
        );
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn the_ring_keeps_the_last_events_and_their_numbers() {
        let events = Events::default();
        for n in 0..KEPT + 5 {
            events.add("INFO", &format!("event {n}"));
        }
        let all = events.after(0);
        assert_eq!((all.len(), all[0].number), (KEPT, 6));
        let last = KEPT as u64 + 5;
        assert_eq!(events.after(last - 1).len(), 1);
        assert_eq!(events.after(last), []);
        events.add("INFO", &"x".repeat(10_000));
        assert_eq!(events.after(last)[0].text.len(), TEXT_CHARS_MAX);
    }

    #[test]
    fn an_event_keeps_its_fields() {
        let events = Events::default();
        let subscriber = tracing_subscriber::registry().with(events.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(contract = %"ab12", tries = 3, "tried again");
        });
        let all = events.after(0);
        assert_eq!(
            (all[0].level.as_str(), all[0].text.as_str()),
            ("warn", "tried again contract=ab12 tries=3")
        );
    }
}
