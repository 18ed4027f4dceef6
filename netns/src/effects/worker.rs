//! Threads in namespaces, and the namespaces themselves.
//!
//! A [`Worker`] is one thread that stands in the host's namespace and steps into others for a while. Processes that it
//! starts (nft, HAProxy) inherit the namespace it stands in at that moment. When its job is done the thread ends, so no
//! other thread of the process is ever anywhere but where it was.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, statfs};
use tokio::runtime::Runtime;

use crate::config::Config;
use crate::effects::links::Links;
use crate::error::NetError;
use crate::names::TenantId;

/// Where named namespaces are, as `ip netns` has it.
const RUN_NETNS: &str = "/run/netns";

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS: FsType = FsType(0x6e73_6673);

/// Settings of a tenant's namespace, as paths under `/proc/sys/net` with their values. Those under `ipv6` are skipped
/// where the kernel has no IPv6.
const SETTINGS: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "1"),
    ("ipv4/conf/default/rp_filter", "1"),
    ("ipv4/conf/all/arp_ignore", "1"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
];

/// Names a failed system call.
pub(crate) fn os(what: impl Into<String>) -> impl FnOnce(io::Error) -> NetError {
    let what = what.into();
    move |source| NetError::Os { what, source }
}

/// A thread that stands in the host's namespace.
pub(crate) struct Worker {
    pub(crate) config: Arc<Config>,
    runtime: Runtime,
    host: Arc<OwnedFd>,
}

/// Runs `job` on a new thread in the namespace `host` and waits for its answer.
pub(crate) async fn run<T, F>(config: Arc<Config>, host: Arc<OwnedFd>, job: F) -> Result<T, NetError>
where
    T: Send + 'static,
    F: FnOnce(&Worker) -> Result<T, NetError> + Send + 'static,
{
    let (answer, answered) = tokio::sync::oneshot::channel();
    let body = move || {
        let result = Worker::stand(config, host).and_then(|worker| job(&worker));
        let _ = answer.send(result); // nobody waits any more: the caller was cancelled, the work is done all the same
    };
    std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(body)
        .map_err(os("start a thread"))?;
    answered.await.map_err(|_| NetError::Worker)?
}

impl Worker {
    fn stand(config: Arc<Config>, host: Arc<OwnedFd>) -> Result<Self, NetError> {
        setns(host.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|errno| os("enter the host's network namespace (are we root?)")(errno.into()))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(os("start a runtime"))?;
        Ok(Self {
            config,
            runtime,
            host,
        })
    }

    /// Makes the calling thread a worker like this one.
    pub(crate) fn colleague(&self) -> Result<Self, NetError> {
        Self::stand(Arc::clone(&self.config), Arc::clone(&self.host))
    }

    /// Links of the namespace that the thread stands in.
    pub(crate) fn links(&self) -> Result<Links<'_>, NetError> {
        Links::here(&self.runtime)
    }

    /// The host's namespace, for moving links there.
    pub(crate) fn host_fd(&self) -> RawFd {
        self.host.as_raw_fd()
    }

    /// Runs `job` in the namespace of a tenant.
    pub(crate) fn inside<T>(
        &self,
        tenant: &TenantId,
        job: impl FnOnce() -> Result<T, NetError>,
    ) -> Result<T, NetError> {
        let namespace = self.open_namespace(tenant)?;
        self.inside_fd(&namespace, job)
    }

    fn inside_fd<T>(
        &self,
        namespace: &File,
        job: impl FnOnce() -> Result<T, NetError>,
    ) -> Result<T, NetError> {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|errno| os("enter a tenant's namespace")(errno.into()))?;
        let result = job();
        // If this failed the thread would go on in the wrong place, so its job must fail, whatever the result.
        setns(self.host.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|errno| os("go back to the host's namespace")(errno.into()))?;
        result
    }

    fn path(&self, tenant: &TenantId) -> PathBuf {
        Path::new(RUN_NETNS).join(self.config.prefix.namespace(tenant))
    }

    /// The namespace of a tenant.
    pub(crate) fn open_namespace(&self, tenant: &TenantId) -> Result<File, NetError> {
        let path = self.path(tenant);
        File::open(&path).map_err(os(format!("open {}", path.display())))
    }

    /// Our tenants' namespaces, and whether there is a namespace behind each name.
    pub(crate) fn namespaces(&self) -> Result<Vec<(TenantId, bool)>, NetError> {
        let entries = match fs::read_dir(RUN_NETNS) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(os(format!("list {RUN_NETNS}"))(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(os(format!("list {RUN_NETNS}")))?;
            let name = entry.file_name();
            let Some(tenant) = name
                .to_str()
                .and_then(|name| self.config.prefix.tenant_of_namespace(name))
            else {
                continue;
            };
            match statfs(&entry.path()) {
                Ok(stat) => found.push((tenant, stat.filesystem_type() == NSFS)),
                Err(nix::Error::ENOENT) => {} // removed meanwhile
                Err(errno) => return Err(os(format!("look at {}", entry.path().display()))(errno.into())),
            }
        }
        Ok(found)
    }

    /// Whether a tenant has a namespace.
    pub(crate) fn is_live(&self, tenant: &TenantId) -> bool {
        statfs(&self.path(tenant)).is_ok_and(|stat| stat.filesystem_type() == NSFS)
    }

    /// Makes the namespace of a tenant, with its settings. A husk in its place is removed first.
    pub(crate) fn make_namespace(&self, tenant: &TenantId) -> Result<(), NetError> {
        self.remove_namespace(tenant)?;
        let path = self.path(tenant);
        let what = || format!("make the namespace {}", path.display());
        fs::create_dir_all(RUN_NETNS).map_err(os(what()))?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(os(what()))?;
        let target = path.clone();
        let born = std::thread::spawn(move || -> io::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(
                Some("/proc/thread-self/ns/net"),
                &target,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )?;
            Ok(())
        });
        born.join().map_err(|_| NetError::Worker)?.map_err(os(what()))?;
        self.inside(tenant, apply_settings)
    }

    /// Removes the name of a tenant's namespace; the namespace goes when nobody uses it. Absent is fine.
    pub(crate) fn remove_namespace(&self, tenant: &TenantId) -> Result<(), NetError> {
        let path = self.path(tenant);
        match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {} // EINVAL: not mounted, a husk
            Err(errno) => return Err(os(format!("unmount {}", path.display()))(errno.into())),
        }
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(os(format!("remove {}", path.display()))(error)),
        }
    }
}

/// Runs `job` in a new nameless namespace, on a thread of its own.
pub(crate) fn in_scratch<T: Send>(job: impl FnOnce() -> Result<T, NetError> + Send) -> Result<T, NetError> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|errno| os("make a network namespace (are we root?)")(errno.into()))?;
            job()
        });
        thread.join().map_err(|_| NetError::Worker)?
    })
}

/// Sets the settings of the tenant's namespace that the thread stands in.
pub(crate) fn apply_settings() -> Result<(), NetError> {
    for (name, value) in SETTINGS {
        set_sysctl(name, value)?;
    }
    Ok(())
}

/// Whether they are set.
pub(crate) fn settings_hold() -> bool {
    SETTINGS.iter().all(
        |(name, value)| match fs::read_to_string(Path::new("/proc/sys/net").join(name)) {
            Ok(text) => text.trim() == *value,
            Err(error) => name.starts_with("ipv6") && error.kind() == io::ErrorKind::NotFound,
        },
    )
}

/// Writes a setting under `/proc/sys/net` of the namespace that the thread stands in.
pub(crate) fn set_sysctl(name: &str, value: &str) -> Result<(), NetError> {
    match fs::write(Path::new("/proc/sys/net").join(name), value) {
        Ok(()) => Ok(()),
        Err(error) if name.starts_with("ipv6") && error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(os(format!("set net/{name} to {value}"))(error)),
    }
}

/// Whether the namespace that the thread stands in forwards IPv4.
pub(crate) fn forwarding() -> bool {
    fs::read_to_string("/proc/sys/net/ipv4/ip_forward").is_ok_and(|text| text.trim() == "1")
}
