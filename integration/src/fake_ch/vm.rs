//! The one VM of a fake: its configuration as the real one would keep it, its states, its disks' locks.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;

use nix::fcntl::{FcntlArg, fcntl};
use serde_json::{Map, Value, json};

use super::http::{Answer, Request};
use super::{Modes, agent, error, milliseconds};

/// What each part of the configuration may hold (v53.0, `vmm/src/vm_config.rs`); the rest is dropped in silence.
const FIELDS: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "cpus",
            "memory",
            "payload",
            "disks",
            "net",
            "rng",
            "balloon",
            "fs",
            "pmem",
            "serial",
            "console",
            "debug_console",
            "devices",
            "user_devices",
            "vdpa",
            "vsock",
            "pvpanic",
            "iommu",
            "numa",
            "watchdog",
            "pci_segments",
            "platform",
            "tpm",
            "landlock_enable",
            "landlock_rules",
            "rate_limit_groups",
        ],
    ),
    (
        "cpus",
        &[
            "boot_vcpus",
            "max_vcpus",
            "topology",
            "kvm_hyperv",
            "max_phys_bits",
            "affinity",
            "features",
            "nested",
            "core_scheduling",
            "profile",
        ],
    ),
    (
        "memory",
        &[
            "size",
            "mergeable",
            "hotplug_method",
            "hotplug_size",
            "hotplugged_size",
            "shared",
            "hugepages",
            "hugepage_size",
            "prefault",
            "reserve",
            "zones",
            "thp",
        ],
    ),
    ("payload", &["firmware", "kernel", "cmdline", "initramfs"]),
    (
        "platform",
        &[
            "num_pci_segments",
            "iommu_segments",
            "iommu_address_width_bits",
            "system_serial_number",
            "system_uuid",
            "oem_strings",
            "iommufd",
            "vfio_p2p_dma",
        ],
    ),
];

/// Fields that exist only in a binary built with a feature.
const FEATURE_FIELDS: &[(&str, &str, &str)] = &[
    ("platform", "sev_snp", "sev_snp"),
    ("payload", "host_data", "sev_snp"),
    ("payload", "igvm", "igvm"),
    ("payload", "fw_cfg_config", "fw_cfg"),
];

/// A created VM.
pub(super) struct Vm {
    config: Value,
    state: &'static str,
    cmdline: String,
    /// Taps that were given; open as long as the VM exists.
    taps: Vec<OwnedFd>,
    /// Disks, locked from boot on.
    locks: Vec<File>,
}

impl Vm {
    /// Takes nearly everything that is JSON.
    pub(super) fn create(body: &[u8], features: &[&str]) -> Result<Self, String> {
        let mut config: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        if !config.is_object() {
            return Err("invalid type, expected struct VmConfig".to_owned());
        }
        for (part, fields) in FIELDS {
            let object = if part.is_empty() {
                Some(&mut config)
            } else {
                config.get_mut(*part)
            };
            if let Some(Value::Object(object)) = object {
                keep(object, part, fields, features);
            }
        }
        let cmdline = config
            .pointer("/payload/cmdline")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        Ok(Self {
            config,
            state: "Created",
            cmdline,
            taps: Vec::new(),
            locks: Vec::new(),
        })
    }

    pub(super) fn cmdline(&self) -> &str {
        &self.cmdline
    }

    pub(super) fn call(&mut self, method: &str, call: &str, request: &Request, modes: &Modes) -> Answer {
        match (method, call) {
            ("GET", "vm.info") => {
                let config = without(self.config.clone(), modes.all("drop"));
                let memory = self.memory();
                Answer::Json(
                    200,
                    json!({"config": config, "state": self.state, "memory_actual_size": memory}),
                )
            }
            ("PUT", "vm.add-net") => self.add_net(request),
            ("PUT", "vm.boot") => self.boot(modes),
            ("PUT", "vm.shutdown") if self.state == "Running" => {
                self.state = "Created";
                self.locks.clear();
                Answer::NoContent
            }
            ("GET", "vm.counters") if self.state == "Running" => self.counters(),
            ("PUT", "vm.power-button") if self.state == "Running" => {
                if modes.get("button") != Some("ignore") {
                    end_soon(50);
                }
                Answer::NoContent
            }
            ("PUT", "vm.resize") if self.state == "Running" => self.resize(request),
            ("PUT", "vm.shutdown" | "vm.power-button" | "vm.resize") | ("GET", "vm.counters") => {
                error(500, &["Error from API", "VM is not running"])
            }
            _ => Answer::Empty(404),
        }
    }

    fn memory(&self) -> Value {
        self.config.pointer("/memory/size").cloned().unwrap_or_default()
    }

    /// The real one is given the tap's file descriptor beside the request.
    fn add_net(&mut self, request: &Request) -> Answer {
        let Ok(Value::Object(net)) = serde_json::from_slice(&request.body) else {
            return error(400, &["Failed to deserialize JSON"]);
        };
        let fds: Vec<OwnedFd> = request.fds.iter().filter_map(|fd| fd.try_clone().ok()).collect();
        if fds.is_empty() && !net.contains_key("tap") {
            return error(
                500,
                &[
                    "Error from API",
                    "The network device could not be added to the VM",
                ],
            );
        }
        self.taps.extend(fds);
        match self.config.get_mut("net") {
            Some(Value::Array(list)) => list.push(Value::Object(net)),
            _ => self.config["net"] = json!([net]),
        }
        Answer::NoContent
    }

    fn boot(&mut self, modes: &Modes) -> Answer {
        let fail = |why: &str| error(500, &["Error from API", "The VM could not boot", why]);
        if self.state == "Running" {
            return fail("VM is already running");
        }
        let number = |pointer: &str| self.config.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
        if number("/cpus/boot_vcpus") > number("/cpus/max_vcpus") || number("/cpus/boot_vcpus") == 0 {
            return fail("Number of boot vCPUs greater than max vCPUs");
        }
        let text = |pointer: &str| {
            self.config
                .pointer(pointer)
                .and_then(Value::as_str)
                .map(PathBuf::from)
        };
        let files = ["/payload/kernel", "/payload/initramfs", "/payload/igvm"];
        if let Some(missing) = files
            .into_iter()
            .filter_map(text)
            .find(|path| File::open(path).is_err())
        {
            return fail(&format!("Cannot open {}", missing.display()));
        }
        match self.lock_disks() {
            Ok(locks) => self.locks = locks,
            Err(why) => return fail(&why),
        }
        if let Some(console) = text("/console/file")
            && fs::write(&console, "fake guest is up\n").is_err()
        {
            return fail("Cannot create the console's file");
        }
        if let Some(socket) = text("/vsock/socket")
            && let Err(why) = agent::listen(&socket, modes.get("agent").unwrap_or_default())
        {
            return fail(&why.to_string());
        }
        if let Some(time) = modes.get("die-after").and_then(milliseconds) {
            thread::spawn(move || {
                thread::sleep(time);
                std::process::exit(101);
            });
        }
        self.state = "Running";
        Answer::NoContent
    }

    fn lock_disks(&self) -> Result<Vec<File>, String> {
        let disks = self
            .config
            .get("disks")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let mut locks = Vec::new();
        for disk in disks {
            let path = disk
                .get("path")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned();
            let readonly = disk.get("readonly").and_then(Value::as_bool).unwrap_or(false);
            locks.push(lock(Path::new(&path), readonly)?);
        }
        Ok(locks)
    }

    fn counters(&self) -> Answer {
        let disks = self
            .config
            .get("disks")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let counters = disks.iter().enumerate().map(|(i, disk)| {
            let id = disk
                .get("id")
                .and_then(Value::as_str)
                .map_or_else(|| format!("_disk{i}"), str::to_owned);
            (
                id,
                json!({"read_bytes": 4096, "write_bytes": 512, "read_ops": 8, "read_latency_min": u64::MAX}),
            )
        });
        Answer::Json(200, Value::Object(counters.collect()))
    }

    fn resize(&mut self, request: &Request) -> Answer {
        let Ok(wanted) = serde_json::from_slice::<Value>(&request.body) else {
            return error(400, &["Failed to deserialize JSON"]);
        };
        if let Some(vcpus) = wanted.get("desired_vcpus").and_then(Value::as_u64) {
            let max = self
                .config
                .pointer("/cpus/max_vcpus")
                .and_then(Value::as_u64)
                .unwrap_or(0);
            if vcpus > max {
                return error(500, &["Error from API", "The VM could not be resized"]);
            }
            self.config["cpus"]["boot_vcpus"] = vcpus.into();
        }
        if let Some(bytes) = wanted.get("desired_ram").and_then(Value::as_u64) {
            self.config["memory"]["hotplugged_size"] = bytes.into();
        }
        Answer::NoContent
    }
}

/// The configuration after the fields at these paths (`payload.cmdline`) were lost.
fn without<'a>(mut config: Value, paths: impl Iterator<Item = &'a str>) -> Value {
    for path in paths {
        let pointer = format!("/{}", path.replace('.', "/"));
        let Some((parent, field)) = pointer.rsplit_once('/') else {
            continue;
        };
        if let Some(Value::Object(object)) = config.pointer_mut(parent) {
            object.remove(field);
        }
    }
    config
}

fn keep(object: &mut Map<String, Value>, part: &str, fields: &[&str], features: &[&str]) {
    object.retain(|key, value| {
        let built = FEATURE_FIELDS
            .iter()
            .any(|(p, field, feature)| *p == part && field == key && features.contains(feature));
        !value.is_null() && (fields.contains(&key.as_str()) || built)
    });
}

fn lock(path: &Path, readonly: bool) -> Result<File, String> {
    let file = File::options()
        .read(true)
        .write(!readonly)
        .open(path)
        .map_err(|error| format!("Failed to open disk {}: {error}", path.display()))?;
    let kind = if readonly { libc::F_RDLCK } else { libc::F_WRLCK };
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)) {
        Ok(_) => Ok(file),
        Err(error) => Err(format!("Failed to lock disk {}: {error}", path.display())),
    }
}

/// A guest that shuts down takes the whole process with it, after the answer has gone.
pub(super) fn end_soon(ms: u64) {
    thread::spawn(move || {
        thread::sleep(std::time::Duration::from_millis(ms));
        std::process::exit(0);
    });
}
