//! What can go wrong, one enum per operation.

use std::io;
use std::path::PathBuf;

use crate::config::ConfigError;
use crate::desired::DesiredFault;
use crate::names::{Slot, TenantId};

/// Why one operation failed. The cause follows in the chain.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Settings that can't work.
    #[error("the network settings can't work: {}", list(.0))]
    Config(Vec<ConfigError>),
    /// The operating system refused.
    #[error("cannot {what}")]
    Os {
        /// What we tried.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a netlink request.
    #[error("cannot {what}")]
    Netlink {
        /// What we tried.
        what: String,
        /// Why not.
        #[source]
        source: rtnetlink::Error,
    },
    /// A program that we need can't be started.
    #[error("cannot start {program}; is the package {package} installed?")]
    Program {
        /// The program.
        program: PathBuf,
        /// The Debian package that has it.
        package: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} could not {what}; it says: {said}")]
    Command {
        /// The program.
        program: &'static str,
        /// What it should have done.
        what: String,
        /// Its words, at most 2000 bytes.
        said: String,
    },
    /// An answer that we can't read.
    #[error("{from} gave an answer that can't be read: {why}")]
    Answer {
        /// Who.
        from: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// No such VM.
    #[error("slot {0} has no tap on this host; converge a desired state that has it first")]
    NoTap(Slot),
    /// The tap isn't free.
    #[error("the tap of slot {0} is open already: a VMM still runs with it")]
    TapBusy(Slot),
    /// The wan interface is missing.
    #[error(
        "there is no interface {0} here; set `network.wan` to the one that leads to the internet (see `ip link`)"
    )]
    NoWan(String),
    /// HAProxy isn't there and isn't ours to start.
    #[error("HAProxy doesn't answer at {socket}; start it with `haproxy -W -f {config}`")]
    ProxyDown {
        /// Runtime socket.
        socket: PathBuf,
        /// The configuration that we wrote for it.
        config: PathBuf,
    },
    /// HAProxy runs with another configuration and isn't ours to restart.
    #[error("HAProxy runs with an older configuration; have it reload {config}")]
    ProxyStale {
        /// The configuration that we wrote for it.
        config: PathBuf,
    },
    /// A worker thread died; a bug.
    #[error("a network worker thread ended without an answer")]
    Worker,
}

/// Why a desired state isn't there.
#[derive(Debug, thiserror::Error)]
pub enum ConvergeError {
    /// It makes no sense; nothing was changed.
    #[error("the desired network makes no sense: {}", list(.0))]
    Desired(Vec<DesiredFault>),
    /// We couldn't look; nothing was changed.
    #[error("cannot take stock of the network")]
    Observe(#[source] NetError),
    /// Parts failed; everything else is as desired.
    #[error("parts of the network could not be made: {}", list(.failures))]
    Incomplete {
        /// What failed.
        failures: Vec<Failure>,
    },
    /// All went well, and yet a second look shows differences: somebody else changes our objects, or a bug.
    #[error("the network still differs from what is desired: {}", .remaining.join("; "))]
    Remaining {
        /// What a plan would still do.
        remaining: Vec<String>,
    },
}

impl ConvergeError {
    /// Whether a tenant's network may be affected. Failures of other tenants' parts don't affect it.
    pub fn affects(&self, tenant: &TenantId) -> bool {
        match self {
            Self::Incomplete { failures } => failures.iter().any(|failure| match &failure.scope {
                Scope::Host | Scope::Proxy => true,
                Scope::Tenant(other) => other == tenant,
            }),
            Self::Desired(_) | Self::Observe(_) | Self::Remaining { .. } => true,
        }
    }
}

/// A part that failed.
#[derive(Debug, thiserror::Error)]
#[error("{scope}: {error}{}", causes(.error))]
pub struct Failure {
    /// Whose part.
    pub scope: Scope,
    /// Why.
    #[source]
    pub error: NetError,
}

/// Whom an action concerns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Everybody: the host's rules and settings.
    Host,
    /// One tenant's namespace.
    Tenant(TenantId),
    /// HAProxy: routes.
    Proxy,
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Tenant(tenant) => write!(f, "tenant {tenant}"),
            Self::Proxy => f.write_str("HAProxy"),
        }
    }
}

/// Joins several reasons in one line.
fn list<T: std::fmt::Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join("; ")
}

/// The chain of causes, for places that show one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
