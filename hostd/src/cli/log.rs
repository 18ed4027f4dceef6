//! Logs: into the surface's ring of last events, and to journald with their fields where systemd gave us its stream, else to stderr as text.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::events::Events;

/// Starts logging. `HOSTD_LOG` sets the filter (`info`; `hostd=debug,info`; …).
pub(super) fn start() -> Events {
    let events = Events::default();
    let filter = EnvFilter::try_from_env("HOSTD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter).with(events.clone());
    // systemd sets this for the services whose stderr it has connected to the journal.
    if std::env::var_os("JOURNAL_STREAM").is_some()
        && let Ok(journald) = tracing_journald::layer()
    {
        registry.with(journald).init();
        return events;
    }
    registry
        .with(
            tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(false),
        )
        .init();
    events
}
