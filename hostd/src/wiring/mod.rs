//! The real implementations of [`crate::ports`]: thin, each over the crate that does the work.

mod agent;
mod devices;
mod dns;
mod ledger;
mod network;
mod storage;
mod tpm;
mod update;

pub use self::agent::GuestAgent;
pub use self::devices::{Device, Vfio};
pub use self::dns::Dns;
pub use self::ledger::Ledger;
pub use self::network::TenantNetworks;
pub use self::storage::Storage;
pub use self::tpm::tpm;
pub use self::update::{Places, SystemdSlots};

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
