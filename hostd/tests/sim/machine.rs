//! The machine of the simulated world: VMs, disks, networks, processes, guests.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hostd::names::Answer;
use hostd::ports::{
    AgentError, AgentPort, DevicePort, DnsPort, EvidenceAsk, ImageFiles, Look, NetCounters, NetError,
    NetPort, ProcessPort, SeedSpec, Space, StorageError, StoragePort, Whose,
};
use hostd::vmm::{AgentChannel, Observed, Taps, VmCounters, VmSpec, Vmm, VmmError, VmmProcess, VmmSupport};
use ledger::api::{AtRest, ContractId, ContractState, ImageRef, VmKind};

use super::{Fuse, Guest, SimVm, State, World};

pub struct Machine {
    pub world: Arc<World>,
    pub fuse: Arc<Fuse>,
}

impl Machine {
    /// One effect: the process may die before it, or after it without knowing that it happened.
    async fn effect<T>(&self, work: impl FnOnce(&mut State) -> T + Send) -> T {
        self.fuse.moment().await;
        let value = self.world.change(work);
        self.fuse.moment().await;
        value
    }
}

fn over(state: &State, id: ContractId) -> bool {
    state
        .contracts
        .get(&id)
        .is_some_and(|contract| matches!(contract.state, ContractState::Ended(_)))
}

#[async_trait]
impl Vmm for Machine {
    fn name(&self) -> &'static str {
        "simulated"
    }

    async fn support(&self) -> VmmSupport {
        let no = || Err("simulated".to_owned());
        VmmSupport {
            version: "simulated 1".into(),
            kinds: vec![
                (VmKind::Plain, Ok(())),
                (VmKind::SevSnp, Ok(())),
                (VmKind::Tdx, no()),
            ],
        }
    }

    fn render(&self, spec: &VmSpec) -> String {
        serde_json::to_string_pretty(spec).unwrap()
    }

    async fn launch(&self, spec: &VmSpec, _: &dyn Taps) -> Result<VmmProcess, VmmError> {
        let half = self
            .effect(|state| {
                if state.launch_fails {
                    return Err(VmmError::Refused {
                        call: "vm.boot",
                        answer: "simulated,\nin two lines".into(),
                    });
                }
                if state.vms.contains_key(&spec.id) {
                    state
                        .violations
                        .push(format!("{} was launched twice", spec.id.short()));
                }
                if !state.network.vms.contains_key(&spec.nic.slot) || !state.disks.contains(&spec.id) {
                    state.violations.push(format!(
                        "{} was launched without network or disk",
                        spec.id.short()
                    ));
                }
                state.next_pid += 1;
                let process = VmmProcess {
                    adapter: "simulated".into(),
                    boot_id: state.boot.to_string(),
                    pid: state.next_pid,
                    start_time: 7,
                    control: String::new(),
                };
                state.vms.insert(
                    spec.id,
                    SimVm {
                        process: process.clone(),
                        partial: true,
                    },
                );
                Ok(process)
            })
            .await?;
        self.effect(|state| {
            let vm = state.vms.get_mut(&spec.id).filter(|vm| vm.process == half);
            vm.map(|vm| vm.partial = false)
                .ok_or(VmmError::Died { log: None })
        })
        .await?;
        Ok(half)
    }

    async fn observe(&self, spec: &VmSpec, _: Option<&VmmProcess>) -> Observed {
        match self.world.state().vms.get(&spec.id) {
            None => Observed::Absent,
            Some(vm) if vm.partial => Observed::Partial("created, not booted".into()),
            Some(vm) => Observed::Running(vm.process.clone()),
        }
    }

    fn agent(&self, spec: &VmSpec) -> AgentChannel {
        AgentChannel::Serial(spec.run_dir.join("agent.sock"))
    }

    fn console_log(&self, spec: &VmSpec) -> PathBuf {
        spec.run_dir.join("console.log")
    }

    async fn stop(&self, spec: &VmSpec, _: Option<&VmmProcess>, _: Duration) -> Result<(), VmmError> {
        self.effect(|state| {
            let running = state.vms.get(&spec.id).is_some_and(|vm| !vm.partial);
            if running && !state.going_down && !over(state, spec.id) {
                state
                    .violations
                    .push(format!("{} was stopped while its contract ran", spec.id.short()));
            }
            state.vms.remove(&spec.id);
        })
        .await;
        Ok(())
    }

    async fn counters(&self, _: &VmSpec, _: &VmmProcess) -> Result<VmCounters, VmmError> {
        Ok(VmCounters {
            cpu_us: 1,
            ..VmCounters::default()
        })
    }

    async fn resize(&self, _: &VmSpec, _: Option<u32>, _: Option<u64>) -> Result<(), VmmError> {
        Err(VmmError::Unsupported {
            adapter: "simulated",
            why: "no resize".into(),
        })
    }
}

#[async_trait]
impl Taps for Machine {
    async fn open(&self, _: u16) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }
    async fn lend(&self, slot: u16) -> io::Result<String> {
        Ok(format!("sim_t{slot}"))
    }
    async fn take_back(&self, _: u16) -> io::Result<()> {
        Ok(())
    }
}

#[async_trait]
impl NetPort for Machine {
    async fn converge(&self, desired: &netns::Desired, _: Look) -> Result<(), NetError> {
        self.effect(|state| {
            let held: Vec<_> = state
                .network
                .vms
                .keys()
                .filter(|slot| !desired.vms.contains_key(slot))
                .collect();
            if held.len() > state.network.vms.len().saturating_sub(state.vms.len()) {
                state
                    .violations
                    .push("a network was taken from under a VM".into());
            }
            state.network = desired.clone();
            match state.ingress_down {
                true => Err(NetError {
                    why: "simulated".into(),
                    whose: Whose::Ingress,
                }),
                false => Ok(()),
            }
        })
        .await
    }
    async fn end_sessions(&self, _: u16) -> Result<(), NetError> {
        Ok(())
    }
    async fn counters(&self, _: u16) -> Result<NetCounters, NetError> {
        Ok(NetCounters::default())
    }
    fn render(&self, desired: &netns::Desired) -> Vec<(String, String)> {
        vec![("desired".into(), format!("{desired:?}"))]
    }
    fn ip4(&self, slot: u16) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + u32::from(slot))
    }
}

#[async_trait]
impl StoragePort for Machine {
    async fn ensure_image(&self, _: &ImageRef) -> Result<ImageFiles, StorageError> {
        self.fuse.moment().await;
        Ok(ImageFiles {
            firmware: None,
            kernel: "/k".into(),
            initrd: Some("/i".into()),
            cmdline: "c".into(),
        })
    }
    async fn create_disk(&self, id: ContractId, _: u64, _: AtRest, _: u32) -> Result<PathBuf, StorageError> {
        self.effect(|state| state.disks.insert(id)).await;
        Ok(format!("/disks/{id}.raw").into())
    }
    async fn write_seed(&self, id: ContractId, _: &SeedSpec, _: u32) -> Result<PathBuf, StorageError> {
        self.effect(|state| state.seeds.insert(id)).await;
        Ok(format!("/disks/{id}.seed.img").into())
    }
    async fn wipe(&self, id: ContractId) -> Result<(), StorageError> {
        self.effect(|state| {
            if state.vms.contains_key(&id) {
                state
                    .violations
                    .push(format!("{} was wiped under a running VM", id.short()));
            }
            if !over(state, id) {
                state
                    .violations
                    .push(format!("{} was wiped while its contract ran", id.short()));
            }
            state.disks.remove(&id);
            state.seeds.remove(&id);
        })
        .await;
        Ok(())
    }
    async fn disks(&self) -> Result<Vec<ContractId>, StorageError> {
        Ok(self.world.state().disks.iter().copied().collect())
    }
    async fn space(&self) -> Result<Space, StorageError> {
        Ok(Space {
            available_bytes: 1 << 50,
            used_bytes: 0,
        })
    }
}

#[async_trait]
impl DnsPort for Machine {
    async fn texts(&self, name: &str) -> Answer {
        self.fuse.moment().await;
        match self.world.state().dns.get(name) {
            Some(Some(texts)) => Answer::Texts(texts.clone()),
            Some(None) => Answer::Failed("simulated: SERVFAIL".into()),
            None => Answer::Texts(Vec::new()),
        }
    }
}

#[async_trait]
impl DevicePort for Machine {
    async fn hand_over(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    async fn take_back(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
}

#[async_trait]
impl AgentPort for Machine {
    async fn evidence(
        &self,
        _: &AgentChannel,
        ask: &EvidenceAsk,
        _: Duration,
    ) -> Result<Vec<u8>, AgentError> {
        self.fuse.moment().await;
        let state = self.world.state();
        if state.vms.get(&ask.contract).is_none_or(|vm| vm.partial) {
            return Err(AgentError::Silent("no VM".into()));
        }
        match state.guest {
            Guest::Honest => Ok(State::evidence(ask.contract, ask.nonce)),
            Guest::Silent => Err(AgentError::Silent("simulated".into())),
            Guest::Garbage => Err(AgentError::Garbage("simulated: a length of 1 GiB".into())),
            Guest::Forged => Ok(vec![0; 32]),
        }
    }
}

#[async_trait]
impl ProcessPort for Machine {
    fn is_alive(&self, process: &VmmProcess) -> bool {
        self.world.state().vms.values().any(|vm| vm.process == *process)
    }
    async fn exited(&self, process: &VmmProcess) {
        loop {
            let changed = self.world.changed.notified();
            if !self.is_alive(process) {
                return;
            }
            changed.await;
        }
    }
}
