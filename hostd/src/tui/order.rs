//! Orders: what the operator can have the daemon do. None is given without a word that has to be typed.

/// A word of the operator to the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Take no new contracts, or take them again.
    Drain {
        /// Which.
        draining: bool,
    },
    /// Maintenance with a reason; `None`: it is over.
    Maintenance {
        /// Why.
        reason: Option<String>,
    },
    /// Reboot into the staged update, if no contract is here.
    ApplyUpdate,
    /// End a contract.
    End {
        /// Its id.
        id: String,
        /// Why, for the developer.
        reason: String,
    },
}

impl Order {
    /// What to say when it was taken.
    pub fn done(&self) -> String {
        match self {
            Self::Drain { draining: true } => "the host drains: no new contracts".into(),
            Self::Drain { draining: false } => "the host takes new contracts again".into(),
            Self::Maintenance { reason: Some(_) } => {
                "maintenance: no new contracts; the reason is in the log".into()
            }
            Self::Maintenance { reason: None } => "maintenance is over".into(),
            Self::ApplyUpdate => "the machine reboots into the update".into(),
            Self::End { id, .. } => format!("contract {id:.8} is being removed"),
        }
    }

    /// What it does, before it is done.
    pub fn warning(&self) -> &'static str {
        match self {
            Self::Drain { draining: true } => "Drain: the host takes no new contracts. Those here go on.",
            Self::Drain { draining: false } => "End the drain: the host takes new contracts again.",
            Self::Maintenance { reason: Some(_) } => {
                "Maintenance: no new contracts; the reason is logged and shown. Those here go on."
            }
            Self::Maintenance { reason: None } => "End the maintenance: the host takes new contracts again.",
            Self::ApplyUpdate => {
                "Approve the update: the machine reboots into it now. Refused while contracts are here."
            }
            Self::End { .. } => {
                "End this contract: its VM is stopped, its disk destroyed, the rest of its money refunded. There is no way back."
            }
        }
    }
}

/// An order that isn't given yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirm {
    /// Which.
    pub order: Order,
    /// Whether the reason is typed now; else the confirmation.
    pub reason: bool,
    /// What is typed so far.
    pub typed: String,
    /// What has to be typed to confirm: the host's name, or the first 8 digits of the contract's id.
    pub want: String,
    /// What was wrong with what was typed before.
    pub wrong: Option<String>,
}
