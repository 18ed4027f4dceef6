//! The calls to libvirt that the adapter needs, each with a deadline.
//!
//! libvirt's client is blocking C: every call runs on a blocking thread with its own connection, which makes a restart
//! of libvirtd invisible. A call that hangs keeps its thread, so only a few may be under way at once: more of them
//! would time out anyway.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::ErrorNumber;
use virt::sys;

use super::Totals;
use crate::vmm::VmmError;

/// Each costs a thread; libvirtd itself serves 20 clients' calls at once by default.
const CALLS_MAX: usize = 16;

/// A domain that libvirt knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Which one it really is.
    pub uuid: String,
    /// Whether its vCPUs run.
    pub running: bool,
}

/// See the module.
#[derive(Clone)]
pub(super) struct Connection {
    uri: String,
    calls: Arc<Semaphore>,
}

impl Connection {
    pub(super) fn new(uri: &str) -> Self {
        // libvirt would print every error on stderr, also "no such domain", which is an answer.
        virt::error::clear_error_callback();
        Self {
            uri: uri.to_owned(),
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
        }
    }

    async fn call<T, F>(&self, name: &'static str, within: Duration, work: F) -> Result<T, VmmError>
    where
        T: Send + 'static,
        F: FnOnce(&Connect) -> Result<T, virt::error::Error> + Send + 'static,
    {
        let timeout = VmmError::Timeout {
            call: name,
            after: within,
        };
        let (uri, calls) = (self.uri.clone(), self.calls.clone());
        let done = tokio::time::timeout(within, async move {
            let permit = calls
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            tokio::task::spawn_blocking(move || {
                let _permit = permit; // given back when the call has really ended
                let mut connect = Connect::open(Some(&uri)).map_err(|error| VmmError::Unreachable {
                    service: format!("libvirt at {uri}; is libvirtd running?"),
                    why: error.message().to_owned(),
                })?;
                let result = work(&connect).map_err(|error| VmmError::Refused {
                    call: name,
                    answer: error.message().to_owned(),
                });
                let _ = connect.close();
                result
            })
            .await
        })
        .await;
        match done {
            Err(_) => Err(timeout),
            Ok(Ok(result)) => result,
            Ok(Err(join)) => Err(VmmError::Refused {
                call: name,
                answer: join.to_string(),
            }),
        }
    }

    /// Versions of libvirt's daemon and of its QEMU.
    pub(super) async fn versions(&self, within: Duration) -> Result<(u32, u32), VmmError> {
        self.call("libvirt version", within, |c| {
            Ok((c.get_lib_version()?, c.get_hyp_version()?))
        })
        .await
    }

    /// The domain of this name, if there is one.
    pub(super) async fn find(&self, name: &str, within: Duration) -> Result<Option<Found>, VmmError> {
        let name = name.to_owned();
        self.call("virDomainLookupByName", within, move |c| {
            let Some(domain) = lookup(c, &name)? else {
                return Ok(None);
            };
            let uuid = domain.get_uuid_string()?;
            match domain.get_state() {
                Ok((state, _)) => {
                    let running = state == sys::VIR_DOMAIN_RUNNING || state == sys::VIR_DOMAIN_BLOCKED;
                    Ok(Some(Found { uuid, running }))
                }
                Err(error) if error.code() == ErrorNumber::NoDomain => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Starts QEMU with the guest paused. The domain is transient: nothing of it remains when QEMU ends.
    pub(super) async fn create_paused(&self, xml: String, within: Duration) -> Result<(), VmmError> {
        self.call("virDomainCreateXML", within, move |c| {
            Domain::create_xml(c, &xml, sys::VIR_DOMAIN_START_PAUSED).map(drop)
        })
        .await
    }

    async fn with_domain<T, F>(
        &self,
        call: &'static str,
        name: &str,
        within: Duration,
        work: F,
    ) -> Result<T, VmmError>
    where
        T: Send + 'static,
        F: FnOnce(&Domain) -> Result<T, virt::error::Error> + Send + 'static,
    {
        let name = name.to_owned();
        self.call(call, within, move |c| work(&Domain::lookup_by_name(c, &name)?))
            .await
    }

    /// Lets the guest run.
    pub(super) async fn resume(&self, name: &str, within: Duration) -> Result<(), VmmError> {
        self.with_domain("virDomainResume", name, within, |d| d.resume().map(drop))
            .await
    }

    /// Presses the ACPI power button.
    pub(super) async fn press_power(&self, name: &str, within: Duration) -> Result<(), VmmError> {
        self.with_domain("virDomainShutdownFlags", name, within, |d| {
            d.shutdown_flags(sys::VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
                .map(drop)
        })
        .await
    }

    /// Ends QEMU. That the domain is gone already is success.
    pub(super) async fn destroy(&self, name: &str, within: Duration) -> Result<(), VmmError> {
        let name = name.to_owned();
        self.call("virDomainDestroy", within, move |c| {
            match lookup(c, &name)?.map(|d| d.destroy()) {
                Some(Err(error)) if error.code() != ErrorNumber::NoDomain => Err(error),
                _ => Ok(()),
            }
        })
        .await
    }

    /// The configuration that libvirt holds for the running domain.
    pub(super) async fn live_xml(&self, name: &str, within: Duration) -> Result<String, VmmError> {
        self.with_domain("virDomainGetXMLDesc", name, within, |d| d.get_xml_desc(0))
            .await
    }

    /// Asks QEMU itself.
    pub(super) async fn qmp(
        &self,
        name: &str,
        command: String,
        within: Duration,
    ) -> Result<String, VmmError> {
        self.with_domain("virDomainQemuMonitorCommand", name, within, move |d| {
            d.qemu_monitor_command(&command, 0)
        })
        .await
    }

    /// What all disks together have read and written.
    pub(super) async fn disk_totals(
        &self,
        name: &str,
        disks: usize,
        within: Duration,
    ) -> Result<Totals, VmmError> {
        self.with_domain("virDomainBlockStats", name, within, move |d| {
            let mut totals = Totals::default();
            for target in ('a'..='z').take(disks) {
                let stats = d.get_block_stats(&format!("vd{target}"))?;
                totals.read += u64::try_from(stats.rd_bytes).unwrap_or(0);
                totals.written += u64::try_from(stats.wr_bytes).unwrap_or(0);
            }
            Ok(totals)
        })
        .await
    }
}

fn lookup(connect: &Connect, name: &str) -> Result<Option<Domain>, virt::error::Error> {
    match Domain::lookup_by_name(connect, name) {
        Ok(domain) => Ok(Some(domain)),
        Err(error) if error.code() == ErrorNumber::NoDomain => Ok(None),
        Err(error) => Err(error),
    }
}
