//! What the journal knows of one contract.

use std::collections::BTreeMap;
use std::fmt;

use ledger::api::{Contract, ContractId, EndReason, Endpoint};
use serde::{Deserialize, Serialize};

use crate::allocator::Allocation;
use crate::vmm::{VmSpec, VmmProcess};

/// One step of provisioning or of removal. Removal is the undo of provisioning: `Stop` undoes `Launch`, `Wipe` undoes
/// `Disk`, `Release` undoes `Gpu`, `Network` and `Reserve`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Capacity, slot and ports are set aside in the journal.
    Reserve,
    /// The ledger is told that this host takes the contract.
    Accept,
    /// The tenant's network, leases and routes are there.
    Network,
    /// Image checked, data disk and seed made.
    Disk,
    /// Devices are bound for hand-over.
    Gpu,
    /// The VM runs.
    Launch,
    /// The guest's evidence over the ledger's nonce is here.
    Attest,
    /// The ledger has verified it: the contract is active.
    Confirm,
    /// The VM is off and nothing of its VMM is left.
    Stop,
    /// Disk and seed are destroyed.
    Wipe,
    /// Devices, network and capacity are free again.
    Release,
}

impl Step {
    /// Provisioning, in order.
    pub const PROVISIONING: [Self; 8] = [
        Self::Reserve,
        Self::Accept,
        Self::Network,
        Self::Disk,
        Self::Gpu,
        Self::Launch,
        Self::Attest,
        Self::Confirm,
    ];

    /// Removal, in order.
    pub const REMOVAL: [Self; 3] = [Self::Stop, Self::Wipe, Self::Release];

    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Reserve,
        Self::Accept,
        Self::Network,
        Self::Disk,
        Self::Gpu,
        Self::Launch,
        Self::Attest,
        Self::Confirm,
        Self::Stop,
        Self::Wipe,
        Self::Release,
    ];

    /// Its name, as the journal and the surface write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reserve => "reserve",
            Self::Accept => "accept",
            Self::Network => "network",
            Self::Disk => "disk",
            Self::Gpu => "gpu",
            Self::Launch => "launch",
            Self::Attest => "attest",
            Self::Confirm => "confirm",
            Self::Stop => "stop",
            Self::Wipe => "wipe",
            Self::Release => "release",
        }
    }

    /// The step of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.name() == name)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How far one step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// The machine may have been changed, wholly, partly or not at all: check before anything else.
    Started,
    /// It is done.
    Done,
    /// It failed, and what it did is for the removal to undo.
    Failed,
}

/// One step's line in the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StepLine {
    /// How far.
    pub state: StepState,
    /// How often it was started: more than once after a crash or a retry.
    pub attempts: u32,
    /// First start, ms since the Unix epoch.
    pub started_ms: i64,
    /// End, ms since the Unix epoch.
    pub ended_ms: Option<i64>,
    /// Why it failed.
    pub detail: Option<String>,
}

/// Why a contract is being removed from this machine. Without this mark in the journal nothing is ever destroyed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "cause", rename_all = "kebab-case")]
pub enum Removal {
    /// The ledger says that it ended.
    Ended {
        /// Its reason.
        #[schema(value_type = String)]
        reason: EndReason,
    },
    /// The ledger says that this host has released it.
    Released,
    /// This host can't take it.
    Refused {
        /// Every reason.
        reasons: Vec<String>,
    },
    /// A step of provisioning failed.
    StepFailed {
        /// Which.
        step: Step,
        /// Why.
        why: String,
    },
    /// The VM ended by itself.
    VmGone {
        /// How that was noticed.
        why: String,
    },
    /// An operator ended it.
    Operator {
        /// What the operator said.
        why: String,
    },
}

impl Removal {
    /// What the ledger and the developer are told; `None` where the ledger said it itself.
    pub fn tell(&self) -> Option<String> {
        match self {
            Self::Ended { .. } | Self::Released => None,
            Self::Refused { reasons } => Some(reasons.join("; ")),
            Self::StepFailed { step, why } => Some(format!("provisioning failed in step {step}: {why}")),
            Self::VmGone { why } => Some(format!("the VM is gone: {why}")),
            Self::Operator { why } => Some(format!("ended by the host's operator: {why}")),
        }
    }
}

/// Everything that the journal has of one contract.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub id: ContractId,
    /// As the ledger showed it when it was opened here (the terms don't change afterwards).
    pub contract: Contract,
    /// When it was opened, ms since the Unix epoch.
    pub opened_ms: i64,
    /// What it holds of the host.
    pub allocation: Option<Allocation>,
    /// Whether its network shall exist.
    pub network: bool,
    /// The name that its developer has brought and proved, and that is routed to it.
    pub own_name: Option<String>,
    /// What is launched.
    pub spec: Option<VmSpec>,
    /// Adapter that launches it.
    pub adapter: Option<String>,
    /// The VMM, once it runs.
    pub process: Option<VmmProcess>,
    /// Evidence to be handed in (CBOR).
    pub evidence: Option<Vec<u8>>,
    /// How the VM is reached.
    pub endpoint: Option<Endpoint>,
    /// The mark that allows destruction.
    pub removal: Option<Removal>,
    /// Whether the ledger has what `removal` has to tell.
    pub told: bool,
    /// When nothing was left of it, ms since the Unix epoch.
    pub finished_ms: Option<i64>,
    /// Steps that were started.
    pub steps: BTreeMap<Step, StepLine>,
}

impl Record {
    /// How far a step is.
    pub fn step(&self, step: Step) -> Option<StepState> {
        self.steps.get(&step).map(|line| line.state)
    }

    /// Whether a step was started at all.
    pub fn started(&self, step: Step) -> bool {
        self.steps.contains_key(&step)
    }

    /// The first step of `order` that isn't done.
    pub fn next_of(&self, order: &[Step]) -> Option<Step> {
        order
            .iter()
            .copied()
            .find(|step| self.step(*step) != Some(StepState::Done))
    }
}

/// One change to a contract's record. A list of them is one transaction.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The contract is known from here on.
    Open(Box<Contract>),
    /// A step starts.
    Started(Step),
    /// A step is done.
    Done(Step),
    /// A step failed.
    Failed(Step, String),
    /// Its network shall exist, or no more.
    Network(bool),
    /// Its own name is proved, or no more.
    OwnName(Option<String>),
    /// What is launched, and by which adapter.
    Spec(Box<VmSpec>, String),
    /// The VMM runs.
    Process(VmmProcess),
    /// Evidence came.
    Evidence(Vec<u8>, Endpoint),
    /// It goes: destruction is allowed from here on.
    Removing(Removal),
    /// The ledger has been told.
    Told,
    /// Its share of the host is free.
    Freed,
    /// Nothing is left of it.
    Finished,
}

/// The operator works on the machine: no new contracts, and whoever looks sees why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Maintenance {
    /// What the operator said.
    pub reason: String,
    /// Since when, ms since the Unix epoch.
    pub since_ms: i64,
}

/// Something on the machine that bears our names and that the journal doesn't know: never touched, only shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Quarantined {
    /// `disk`, `run-dir`, …
    pub kind: String,
    /// Its name.
    pub name: String,
    /// When it was first seen, ms since the Unix epoch.
    pub since_ms: i64,
    /// What is known of it, and what the operator can do.
    pub detail: String,
}
