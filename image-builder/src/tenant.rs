//! Building a tenant image: packages → tree → initrd → directory with a manifest.
//!
//! ```text
//! tenant.toml ─ Config ─┬─ apt: userland tar ─┐
//!                       ├─ apt: kernel tar ───┼─ Tree ─ cpio ─ zstd/lz4 ─ initrd ─┐
//!                       ├─ agent, guest-setup ┘                                   ├─ manifest.json → image id
//!                       └─ apt: firmware tar ─────────────────────────────────────┘
//! ```
//!
//! Nothing in the image depends on when, where or by whom it was built: there are no times but `SOURCE_DATE_EPOCH`
//! (default 0), no random values, and no key, machine id or log. The manifest is written last and taken away first, so a
//! directory with a manifest is a whole image, also after a crash in the middle.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde::Serialize;

use crate::applets::APPLETS;
use crate::apt::{self, Apt, AptError, Components, Fetched, Lock, Request, Setup};
use crate::config::{Config, Firmware};
use crate::manifest::{FILE_NAME, ImageFile, Manifest, sha256};
use crate::modules::{self, ModulesError};
use crate::progress::Progress;
use crate::tree::{Kind, Node, Tree, TreeError};
use crate::{cpio, elf};

/// The files of this repository that make Debian's packages a system: path, permissions, content.
const FILES: &[(&str, u32, &str)] = &[
    ("init", 0o755, include_str!("../tenant/root/init")),
    ("etc/fstab", 0o644, include_str!("../tenant/root/fstab")),
    ("etc/inittab", 0o644, include_str!("../tenant/root/inittab")),
    (
        "usr/lib/decent-cloud/lib.sh",
        0o644,
        include_str!("../tenant/root/lib.sh"),
    ),
    (
        "usr/lib/decent-cloud/boot",
        0o755,
        include_str!("../tenant/root/boot"),
    ),
    (
        "usr/lib/decent-cloud/service",
        0o755,
        include_str!("../tenant/root/service"),
    ),
    (
        "usr/lib/decent-cloud/user-data",
        0o755,
        include_str!("../tenant/root/user-data"),
    ),
    (
        "usr/lib/decent-cloud/shutdown",
        0o755,
        include_str!("../tenant/root/shutdown"),
    ),
    (
        "etc/nginx/tenant.conf",
        0o644,
        include_str!("../tenant/root/nginx.conf"),
    ),
    (
        "etc/acpi/PWRF/00000080",
        0o755,
        "#!/bin/sh\nexec /sbin/poweroff\n",
    ),
    (
        "etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    (
        "etc/group",
        0o644,
        "root:x:0:\ntty:x:5:\nwww-data:x:33:\nnogroup:x:65534:\n",
    ),
    (
        "etc/shadow",
        0o600,
        "root:*:1::::::\nwww-data:*:1::::::\nnobody:*:1::::::\n",
    ),
    ("etc/shells", 0o644, "/bin/sh\n"),
    ("etc/hostname", 0o644, "tenant\n"),
    ("etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n"),
    (
        "etc/nsswitch.conf",
        0o644,
        "passwd: files\ngroup: files\nhosts: files dns\n",
    ),
    ("etc/resolv.conf", 0o644, ""),
    (
        "etc/profile",
        0o644,
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nexport LANG=C.UTF-8\numask 022\n",
    ),
    (
        "etc/sysctl.conf",
        0o644,
        "kernel.printk = 4 4 1 7\nkernel.kptr_restrict = 1\nkernel.dmesg_restrict = 1\n\
         net.ipv4.conf.all.accept_redirects = 0\nnet.ipv6.conf.all.accept_ra = 0\nnet.ipv6.conf.default.accept_ra = 0\n",
    ),
];

/// Directories that the packages don't bring.
const DIRS: &[(&str, u32)] = &[
    ("bin", 0o755),
    ("data", 0o755),
    ("dev", 0o755),
    ("home", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
    ("var/lib/nginx", 0o755),
    ("var/log/nginx", 0o755),
    ("var/www/html", 0o755),
];

/// Why an image wasn't built. The old image directory is as it was, unless it says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Packages.
    #[error("cannot get the packages of the {0} set")]
    Packages(&'static str, #[source] AptError),
    /// An archive.
    #[error("cannot use the {0} archive")]
    Archive(&'static str, #[source] TreeError),
    /// Modules.
    #[error("cannot put the kernel modules together")]
    Modules(#[from] ModulesError),
    /// A file of this machine.
    #[error("cannot {what} {path}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A file of the repository or a binary can't be placed.
    #[error("cannot put {0} into the image")]
    Place(String, #[source] TreeError),
    /// The agent or the seed reader can't run in the image.
    #[error(
        "{path} cannot run in the image: {reason}; build it with RUSTFLAGS=\"-C target-feature=+crt-static\" \
             cargo build --profile guest --target x86_64-unknown-linux-gnu"
    )]
    Binary {
        /// The binary.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A package hasn't what it should have.
    #[error("the package {package} has no {file}; {advice}")]
    NotInPackage {
        /// The package.
        package: String,
        /// The file looked for.
        file: String,
        /// What to change.
        advice: &'static str,
    },
    /// Another firmware than the configuration pins.
    #[error("the firmware's sha256 is {found}, `sha256` in [firmware] says {wanted}")]
    Firmware {
        /// What was found.
        found: String,
        /// What is pinned.
        wanted: String,
    },
    /// Compression.
    #[error("cannot compress the initrd")]
    Compress(#[source] std::io::Error),
}

/// What a build gave; printed as JSON by `--json`.
#[derive(Clone, Debug, Serialize)]
pub struct Built {
    /// SHA-256 of the manifest: the image's id.
    pub image_id: String,
    /// The image directory.
    pub dir: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// The initrd's size before compression, in bytes.
    pub initrd_unpacked: u64,
    /// The kernel's release.
    pub kernel_release: String,
    /// How many packages went in.
    pub packages: usize,
    /// Whether every set of packages was in the cache.
    pub from_cache: bool,
    /// How long it took.
    pub seconds: f64,
}

/// How a build is done, apart from what is built.
#[derive(Debug)]
pub struct Options<'a> {
    /// The package cache.
    pub apt: Apt,
    /// Whether the lock file is written instead of obeyed.
    pub write_lock: bool,
    /// Time of every file in the image, seconds since 1970.
    pub epoch: u32,
    /// Where progress goes.
    pub progress: &'a Progress,
}

/// Builds the image that `config` describes into `config.output`.
pub fn build(config: &Config, options: &Options<'_>) -> Result<Built, BuildError> {
    let start = Instant::now();
    let progress = options.progress;
    let agent = static_binary(&config.agent)?;
    let guest_setup = static_binary(&config.guest_setup)?;
    let gpu_collector = config.gpu_collector.as_deref().map(program).transpose()?;
    let agent_version = version_of(&config.agent)?;

    let lock = match &config.lock {
        Some(path) if !options.write_lock => {
            Some(Lock::read(path).map_err(|e| BuildError::Packages("locked", e))?)
        }
        _ => None,
    };
    let fetch = |set: &'static str, suite, packages: &[_], allow_expired| -> Result<Fetched, BuildError> {
        let none = Vec::new();
        let locked = lock
            .as_ref()
            .map(|lock| lock.sets.get(set).unwrap_or(&none).as_slice());
        let request = Request {
            set,
            suite,
            mirror: config.mirror.as_ref(),
            packages,
            allow_expired,
            setup: Setup::Unpacked,
            components: Components::Main,
            fixes: false,
            lock: locked,
        };
        let title = format!("packages: {set} ({suite})");
        progress
            .step(&title, || options.apt.fetch(&request))
            .map_err(|e| BuildError::Packages(set, e))
    };
    let root_set = fetch("root", &config.suite, &config.packages, false)?;
    let kernel_set = fetch(
        "kernel",
        &config.suite,
        std::slice::from_ref(&config.kernel),
        false,
    )?;
    let firmware_set = match &config.firmware {
        Some(Firmware::Package {
            suite,
            package,
            allow_expired,
            ..
        }) => Some(fetch(
            "firmware",
            suite,
            std::slice::from_ref(package),
            *allow_expired,
        )?),
        _ => None,
    };

    let kernel_tree = progress.step("kernel: unpack", || {
        read_tar("kernel", &kernel_set.tar, |p| {
            p.starts_with("boot/vmlinuz-") || p.starts_with("lib/modules/")
        })
    })?;
    let (release, vmlinuz) = kernel_image(&kernel_tree, config.kernel.as_str())?;
    let tree = progress.step("userland: put together", || {
        let mut tree = read_tar("root", &root_set.tar, |path| !excluded(config, path))?;
        assemble(&mut tree, &agent, &guest_setup)?;
        if let Some((collector, _)) = &gpu_collector {
            // The agent's service looks for it there.
            place(&mut tree, "usr/bin/attest-gpu", 0o755, collector)?;
        }
        let load = modules::install(
            &mut tree,
            &kernel_tree,
            &release,
            &config.modules,
            &config.modules_available,
        )?;
        place(
            &mut tree,
            "usr/lib/decent-cloud/modules",
            0o644,
            (load.join("\n") + "\n").as_bytes(),
        )?;
        Ok::<_, BuildError>(tree)
    })?;
    let archive = progress.step("initrd: archive", || {
        Ok::<_, BuildError>(cpio::write(&tree, options.epoch))
    })?;
    let initrd = progress.step("initrd: compress", || {
        cpio::compress(&archive, config.compression).map_err(BuildError::Compress)
    })?;
    let firmware = firmware(config, firmware_set.as_ref())?;
    if let (Some(content), Some(wanted)) = (&firmware, &config.firmware_sha256) {
        let found = sha256(content);
        if found != wanted.as_str() {
            return Err(BuildError::Firmware {
                found,
                wanted: wanted.to_string(),
            });
        }
    }

    let manifest = Manifest {
        version: 1,
        name: config.name.to_string(),
        kernel: ImageFile::of("vmlinuz", &vmlinuz),
        initrd: ImageFile::of("initrd", &initrd),
        cmdline: config.cmdline.to_string(),
        firmware: firmware.as_ref().map(|content| ImageFile::of("OVMF.fd", content)),
        root: None,
        agent_version,
    };
    let mut files: Vec<(&str, &[u8])> = vec![("vmlinuz", &vmlinuz), ("initrd", &initrd)];
    files.extend(firmware.as_ref().map(|content| ("OVMF.fd", content.as_slice())));
    progress.step("image: write", || write_image(&config.output, &manifest, &files))?;

    let sets: Vec<(&str, &Fetched)> = [("root", &root_set), ("kernel", &kernel_set)]
        .into_iter()
        .chain(firmware_set.as_ref().map(|set| ("firmware", set)))
        .collect();
    if let (Some(path), true) = (&config.lock, options.write_lock) {
        let sets = sets
            .iter()
            .map(|(name, set)| ((*name).to_owned(), set.packages.clone()))
            .collect::<BTreeMap<_, _>>();
        write_file(path, Lock { sets }.to_text().as_bytes())?;
    }
    Ok(Built {
        image_id: manifest.image_id(),
        dir: config.output.clone(),
        manifest,
        initrd_unpacked: archive.len() as u64,
        kernel_release: release,
        packages: sets.iter().map(|(_, set)| set.packages.len()).sum(),
        from_cache: sets.iter().all(|(_, set)| set.cached),
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    fs::read(path).map_err(|source| BuildError::File {
        what: "read",
        path: path.to_owned(),
        source,
    })
}

fn read_tar(name: &'static str, path: &Path, wanted: impl Fn(&str) -> bool) -> Result<Tree, BuildError> {
    let file = fs::File::open(path).map_err(|source| BuildError::File {
        what: "read",
        path: path.to_owned(),
        source,
    })?;
    let mut tree = Tree::default();
    tree.add_tar(std::io::BufReader::new(file), wanted)
        .map_err(|e| BuildError::Archive(name, e))?;
    Ok(tree)
}

/// What isn't taken from the packages: what the configuration names, and what would tell builds apart.
fn excluded(config: &Config, path: &str) -> bool {
    const ALWAYS: [&str; 10] = [
        "boot",
        "dev",
        "etc/machine-id",
        "etc/apt",
        "proc",
        "sys",
        "tmp",
        "var/cache",
        "var/lib/apt",
        "var/log",
    ];
    let under = |prefix: &str| {
        path.strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    path == apt::DIGESTS
        || ALWAYS.iter().any(|prefix| under(prefix))
        || config.exclude.iter().any(|prefix| under(prefix.as_str()))
}

fn place(tree: &mut Tree, path: &str, mode: u32, content: &[u8]) -> Result<(), BuildError> {
    tree.add_file(path, mode, content)
        .map_err(|e| BuildError::Place(path.to_owned(), e))
}

/// Makes the unpacked packages a system: this repository's files, busybox's names, the two binaries, trust anchors.
fn assemble(tree: &mut Tree, agent: &[u8], guest_setup: &[u8]) -> Result<(), BuildError> {
    if tree.file("bin/busybox").is_none() {
        return Err(BuildError::NotInPackage {
            package: "busybox".to_owned(),
            file: "bin/busybox".to_owned(),
            advice: "put busybox into `packages`: the init and its scripts run on it",
        });
    }
    for (path, mode) in DIRS {
        if tree.get(path).is_none() {
            tree.dir(path, *mode)
                .map_err(|e| BuildError::Place((*path).to_owned(), e))?;
        }
    }
    for (path, mode, content) in FILES {
        place(tree, path, *mode, content.as_bytes())?;
    }
    place(tree, "usr/bin/attest", 0o755, agent)?;
    place(tree, "usr/bin/guest-setup", 0o755, guest_setup)?;
    let console = Node {
        mode: 0o600,
        uid: 0,
        gid: 0,
        kind: Kind::Char(5, 1),
    };
    tree.insert("dev/console", console)
        .map_err(|e| BuildError::Place("dev/console".to_owned(), e))?;
    let links = APPLETS
        .iter()
        .map(|applet| (*applet, "/bin/busybox"))
        .chain([("linuxrc", "/bin/busybox")]);
    for (name, target) in links {
        let path = match name {
            "linuxrc" => name.to_owned(),
            "sh" | "modprobe" => format!("{}/{name}", if name == "sh" { "bin" } else { "sbin" }),
            "poweroff" | "reboot" | "halt" => format!("sbin/{name}"),
            _ => format!("usr/bin/{name}"),
        };
        // A real tool of a package stands above busybox's, wherever it lives.
        let taken = ["bin", "sbin", "usr/bin", "usr/sbin"]
            .iter()
            .any(|d| tree.get(&format!("{d}/{name}")).is_some());
        if !taken {
            tree.symlink(&path, target)
                .map_err(|e| BuildError::Place(path.clone(), e))?;
        }
    }
    let bundle = trust_anchors(tree);
    if !bundle.is_empty() {
        place(tree, "etc/ssl/certs/ca-certificates.crt", 0o644, &bundle)?;
    }
    Ok(())
}

/// The bundle that ca-certificates' maintainer script would make.
fn trust_anchors(tree: &Tree) -> Vec<u8> {
    let mut bundle = Vec::new();
    for (path, node) in tree.iter() {
        if let Kind::File(content) = &node.kind
            && path.starts_with("usr/share/ca-certificates/")
            && path.ends_with(".crt")
        {
            bundle.extend_from_slice(content);
            if !content.ends_with(b"\n") {
                bundle.push(b'\n');
            }
        }
    }
    bundle
}

/// The kernel's release and its bzImage. A package set holds one kernel.
fn kernel_image(tree: &Tree, package: &str) -> Result<(String, Vec<u8>), BuildError> {
    tree.iter()
        .filter_map(|(path, node)| match &node.kind {
            Kind::File(content) => Some((path.strip_prefix("boot/vmlinuz-")?.to_owned(), content.clone())),
            _ => None,
        })
        .max_by(|a, b| a.0.cmp(&b.0))
        .ok_or_else(|| BuildError::NotInPackage {
            package: package.to_owned(),
            file: "boot/vmlinuz-*".to_owned(),
            advice: "name a kernel package in `kernel`, such as linux-image-cloud-amd64",
        })
}

fn firmware(config: &Config, set: Option<&Fetched>) -> Result<Option<Vec<u8>>, BuildError> {
    match (&config.firmware, set) {
        (Some(Firmware::Path(path)), _) => read(path).map(Some),
        (Some(Firmware::Package { package, file, .. }), Some(set)) => {
            let tree = read_tar("firmware", &set.tar, |path| path == file.as_str())?;
            let content = tree.file(file.as_str()).ok_or_else(|| BuildError::NotInPackage {
                package: package.to_string(),
                file: file.to_string(),
                advice: "correct `file` in [firmware]",
            })?;
            Ok(Some(content.to_vec()))
        }
        _ => Ok(None),
    }
}

fn static_binary(path: &Path) -> Result<Vec<u8>, BuildError> {
    match program(path)? {
        (content, false) => Ok(content),
        (_, true) => Err(BuildError::Binary {
            path: path.to_owned(),
            reason: "it is linked dynamically".to_owned(),
        }),
    }
}

/// A program, and whether it needs a dynamic loader.
fn program(path: &Path) -> Result<(Vec<u8>, bool), BuildError> {
    let fail = |reason: String| BuildError::Binary {
        path: path.to_owned(),
        reason,
    };
    let content = fs::read(path).map_err(|e| fail(e.to_string()))?;
    let needs_loader = elf::needs_loader(&content).map_err(|e| fail(e.to_string()))?;
    Ok((content, needs_loader))
}

fn version_of(path: &Path) -> Result<String, BuildError> {
    let fail = |reason: String| BuildError::Binary {
        path: path.to_owned(),
        reason,
    };
    let output = Command::new(path)
        .arg("--version")
        .output()
        .map_err(|e| fail(e.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || text.is_empty() || text.len() > 100 || text.contains(char::is_control) {
        return Err(fail("`--version` gave no version".to_owned()));
    }
    Ok(text)
}

fn write_file(path: &Path, content: &[u8]) -> Result<(), BuildError> {
    let fail = |source| BuildError::File {
        what: "write",
        path: path.to_owned(),
        source,
    };
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let partial = tempfile::NamedTempFile::new_in(dir).map_err(fail)?;
    fs::write(partial.path(), content).map_err(fail)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(partial.path(), mode).map_err(fail)?;
    partial.as_file().sync_all().map_err(fail)?;
    partial.persist(path).map_err(|e| fail(e.error))?;
    Ok(())
}

fn write_image(dir: &Path, manifest: &Manifest, files: &[(&str, &[u8])]) -> Result<(), BuildError> {
    let fail = |source| BuildError::File {
        what: "write",
        path: dir.to_owned(),
        source,
    };
    fs::create_dir_all(dir).map_err(fail)?;
    match fs::remove_file(dir.join(FILE_NAME)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    for (name, content) in files {
        write_file(&dir.join(name), content)?;
    }
    write_file(&dir.join(FILE_NAME), &manifest.to_bytes())
}
