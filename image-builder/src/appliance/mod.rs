//! The provider's image: a disk that boots to hostd, signed, measured and read-only.
//!
//! ```text
//! image.toml ─ Config ─┬─ apt: configured Debian ─┐
//!                      ├─ apt: kernel, depmod ────┼─ Tree ─┬─ erofs ─ verity ─ root hash ─┐
//!                      ├─ hostd, systemd/ ────────┘        └─ initrd ─────────────────────┼─ UKI, signed ─┬─ ESP ─ disk
//!                      ├─ apt: tools folder (does the work)                               │               └─ reference values
//!                      └─ keys ───────────────────────────────────────────────────────────┘
//! ```
//!
//! | module | subject |
//! |---|---|
//! | [`config`] | `image.toml` |
//! | [`tools`] | the folder of Debian's image tools, and running them in it |
//! | [`keys`] | the owner's keys |
//! | [`kernel`], [`firmware`] | what a kernel can host, and what it loads |
//! | `inputs` | programs and certificates of others |
//! | [`root`], [`initrd`] | the two file systems |
//! | [`uki`], [`pe`] | the kernel image: making it, looking into it |
//! | [`disk`] | partitions |
//! | [`reference`] | predicted PCRs |
//! | [`image`] | `image.json`, which describes the result |
//! | [`verify`](mod@verify), [`report`] | checking a result, and telling what is in it |
//! | [`flash`], [`qemu`] | onto a disk, and into a virtual machine |
//! | [`update`] | the folder from which machines update themselves |
//!
//! The same inputs give the same bytes: every time is `SOURCE_DATE_EPOCH`'s beginning of 1970, ids are derived from the
//! root hash, and signatures are of kinds that have no randomness. Only the keys are new where somebody makes new ones.

pub mod config;
pub mod disk;
pub mod firmware;
pub mod image;
pub mod initrd;
mod inputs;
pub mod kernel;
pub mod keys;
pub mod pe;
pub mod qemu;
pub mod reference;
pub mod report;
pub mod root;
pub mod seed;
pub mod tools;
pub mod uki;
pub mod update;
pub mod verify;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::apt::{Apt, AptError, Components, Fetched, Lock, Request, Setup};
use crate::config::Compression;
use crate::cpio;
use crate::manifest::{ImageFile, sha256};
use crate::progress::Progress;
use crate::tree::{Tree, TreeError};
use flash::live::Payload;

use config::Config;
use disk::RootHash;
use image::Image;
use initrd::InitrdError;
use keys::{Keys, KeysError};
use reference::{Envelope, KeyLists, Pcr, Statement};
use tools::{Job, ToolError, Tools};

/// Why an image wasn't built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Packages.
    #[error("cannot get the packages of the {0} set")]
    Packages(&'static str, #[source] AptError),
    /// Keys.
    #[error("cannot use the keys")]
    Keys(#[from] KeysError),
    /// A tool.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// An archive, or a file that can't be placed.
    #[error("cannot put {0} into the root")]
    Tree(&'static str, #[source] TreeError),
    /// The initrd.
    #[error("cannot make the initrd")]
    Initrd(#[from] InitrdError),
    /// A file of this machine.
    #[error("cannot {what} {path}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A program that others publish.
    #[error("cannot get a program")]
    Download(#[from] crate::download::DownloadError),
    /// Another program than the configuration pins.
    #[error("{path} has the sha256 {found}; image.toml says {wanted}")]
    Program {
        /// The program.
        path: PathBuf,
        /// What was found.
        found: String,
        /// What is pinned.
        wanted: String,
    },
    /// No certificates, or more than certificates.
    #[error("{0}: `ca` of [seed] wants a file with certificates (PEM), and nothing but certificates")]
    SeedCa(PathBuf),
    /// The kernel package holds no kernel.
    #[error(
        "the package {0} has no boot/vmlinuz-*; name a kernel package in [kernel], such as linux-image-amd64"
    )]
    NoKernel(String),
    /// The kernel can't run the image.
    #[error("the kernel {release} cannot run this image; it lacks {}", .missing.join(", "))]
    Kernel {
        /// The kernel's release.
        release: String,
        /// The options.
        missing: Vec<String>,
    },
    /// A part is larger than its partition.
    #[error("{what} has {size} bytes, its partition {limit}; raise `{key}` in [disk], or leave packages out")]
    TooLarge {
        /// The part.
        what: &'static str,
        /// Its size.
        size: u64,
        /// Its partition's.
        limit: u64,
        /// The key to change.
        key: &'static str,
    },
    /// The kernel image that a tool made can't be read back.
    #[error("cannot read the programs of the image back")]
    Pe(#[from] pe::PeError),
    /// veritysetup's answer has no root hash.
    #[error("veritysetup printed no root hash")]
    RootHash,
}

/// How a build is done, apart from what is built.
#[derive(Debug)]
pub struct Options<'a> {
    /// The package cache.
    pub apt: Apt,
    /// Whether the lock file is written instead of obeyed.
    pub write_lock: bool,
    /// Whether the live kernel image is made too.
    pub live: bool,
    /// Whether the ISO image is made too.
    pub iso: bool,
    /// Where progress goes.
    pub progress: &'a Progress,
}

/// What a build gave, beside the files.
#[derive(Debug)]
pub struct Built {
    /// The description of the result.
    pub image: Image,
    /// Where it lies.
    pub dir: PathBuf,
    /// How long it took.
    pub seconds: f64,
}

/// Builds the image that `config` describes into `config.output`.
pub fn build(config: &Config, options: &Options<'_>) -> Result<Built, BuildError> {
    let start = Instant::now();
    let progress = options.progress;
    let keys = Keys::read(&config.keys)?;
    let hostd = read(&config.hostd)?;
    let programs = inputs::programs(config, options)?;
    let seed_ca = inputs::seed_ca(config)?;
    let lock = match &config.lock {
        Some(path) if !options.write_lock => {
            Some(Lock::read(path).map_err(|e| BuildError::Packages("locked", e))?)
        }
        _ => None,
    };
    let fetch = |set: &'static str, packages: &[_], setup, components| -> Result<Fetched, BuildError> {
        let locked = lock
            .as_ref()
            .map(|lock| lock.sets.get(set).map_or(&[][..], Vec::as_slice));
        let request = Request {
            set,
            suite: &config.suite,
            mirror: config.mirror.as_ref(),
            packages,
            allow_expired: false,
            setup,
            components,
            fixes: true,
            lock: locked,
        };
        progress
            .step(&format!("packages: {set} ({})", config.suite), || {
                options.apt.fetch(&request)
            })
            .map_err(|e| BuildError::Packages(set, e))
    };
    let system_set = fetch("system", &config.packages, Setup::Configured, Components::Main)?;
    let kernel_set = fetch(
        "host-kernel",
        std::slice::from_ref(&config.kernel.package),
        Setup::Unpacked,
        Components::Main,
    )?;
    let firmware_set = match &config.packages_firmware[..] {
        [] => None,
        packages => Some(fetch(
            "host-firmware",
            packages,
            Setup::Unpacked,
            Components::Firmware,
        )?),
    };
    let tools = progress.step("packages: tools", || {
        Tools::prepare(
            &options.apt,
            "tools",
            &tools::BUILD,
            &config.suite,
            config.mirror.as_ref(),
        )
    })?;
    let job = tools.job()?;

    let kernel_tree = progress.step("kernel: unpack", || {
        tree("the kernel", &kernel_set.tar, |path| {
            path.starts_with("boot/") || root::is_module(config, path)
        })
    })?;
    let (release, vmlinuz, abilities) = kernel(config, &kernel_tree)?;
    let firmware_tree = match &firmware_set {
        Some(set) => tree("firmware", &set.tar, |path| !root::excluded(config, path))?,
        None => Tree::default(),
    };
    if let Some(archive) =
        firmware::microcode(&firmware_tree).map_err(|e| BuildError::Tree("microcode", e))?
    {
        job.write(uki::MICROCODE, archive)?;
    }
    let (root_tree, initrd) = progress.step("root: put together", || {
        let mut tree = tree("the packages", &system_set.tar, |path| {
            !root::excluded(config, path)
        })?;
        for (what, from, wanted) in [
            ("modules", &kernel_tree, is_in_modules as fn(&str) -> bool),
            ("firmware", &firmware_tree, firmware::is_for_root),
        ] {
            for (path, node) in from.iter().filter(|(path, _)| wanted(path)) {
                tree.insert(path, node.clone())
                    .map_err(|e| BuildError::Tree(what, e))?;
            }
        }
        depmod(&job, &mut tree, &release)?;
        place(&mut tree, "usr/bin/hostd", &hostd)?;
        for (path, content) in &programs {
            place(&mut tree, path, content)?;
        }
        root::assemble(&mut tree, config, keys.file("update.pub"))
            .map_err(|e| BuildError::Tree("files of systemd/", e))?;
        if let Some(ca) = &seed_ca {
            tree.add_file("usr/lib/decent-cloud/seed-ca.pem", 0o644, ca.as_slice())
                .map_err(|e| BuildError::Tree("[seed]", e))?;
        }
        let modules = initrd::modules(&tree, &release, &config.kernel.initrd)?;
        let mut initrd = initrd::cut(&tree, &modules, &config.kernel.initrd)?;
        depmod(&job, &mut initrd, &release)?;
        Ok::<_, BuildError>((tree, initrd))
    })?;
    let hash = progress.step("root: erofs and hash tree", || {
        root_image(&job, config, &root_tree)
    })?;
    drop(root_tree);
    let uki = progress.step("kernel image: compress, join, sign", || {
        job.write("vmlinuz", vmlinuz)?;
        job.write("initrd", compressed(&cpio::write(&initrd, 0))?)?;
        Ok::<_, BuildError>(uki::build(
            &job,
            config,
            &keys,
            &release,
            &uki::entries(config, &hash),
        )?)
    })?;
    let variables = uki::secure_boot_variables(&job, &keys)?;
    let boot = uki::sign(&job, &keys, &tools.read(uki::BOOT)?)?;

    let out = &config.output;
    fs::create_dir_all(out).map_err(|source| file("make", out, source))?;
    let label = config.label();
    let names = Names::of(&label);
    // The description goes first and comes back last: with it, the directory holds a whole image.
    remove(&out.join(image::FILE_NAME))?;
    let key_id = uki::reference_key_id(&job, &keys)?;
    let lists = KeyLists {
        pk: &variables[0].list,
        kek: &variables[1].list,
        db: &variables[2].list,
    };
    let (pcr_4, pcr_7) = (
        reference::boot_programs(&[&boot, &uki])?.hex(),
        reference::secure_boot(&lists).hex(),
    );
    let mut profiles = Vec::new();
    for (index, (entry, profile)) in uki::entries(config, &hash)
        .into_iter()
        .zip(&config.profiles)
        .enumerate()
    {
        let sections = reference::measured_sections(&uki, index)?;
        let pcr_11: Vec<String> = reference::kernel_image(&sections).iter().map(Pcr::hex).collect();
        let name = format!("{label}.{}.reference.json", profile.name);
        let signed = if profile.trusted {
            let untouched = reference::UNTOUCHED.map(|pcr| (pcr, vec![Pcr::default().hex()]));
            let values = [
                ("4", vec![pcr_4.clone()]),
                ("7", vec![pcr_7.clone()]),
                ("11", pcr_11.clone()),
            ];
            let statement = Statement {
                version: 1,
                image: format!("{} {} ({})", config.name, config.version, profile.name),
                pcrs: BTreeMap::from([(
                    "sha256".to_owned(),
                    values
                        .into_iter()
                        .chain(untouched)
                        .map(|(pcr, values)| (pcr.to_owned(), values))
                        .collect(),
                )]),
                sections: sections
                    .iter()
                    .map(|s| (s.name.to_owned(), sha256(s.content)))
                    .collect(),
                verity_root_hash: hash.hex().to_owned(),
            };
            Some(sign_statement(
                &job,
                &keys,
                &key_id,
                &statement,
                &out.join(&name),
            )?)
        } else {
            remove(&out.join(&name))?;
            None
        };
        profiles.push(image::Profile {
            name: entry.id,
            cmdline: entry.cmdline,
            reference: signed,
            pcr_11,
        });
    }
    let (root_offset, (disk_sha256, disk_size)) = progress.step("disk: partitions", || {
        let loader = format!(
            "default {}_*.efi\ntimeout 3\nconsole-mode keep\neditor no\nsecure-boot-enroll if-safe\n",
            config.name
        );
        // Three tries (Automatic Boot Assessment): the first boot that is good takes the counter away.
        let uki_path = format!("EFI/Linux/{label}+3-0.efi");
        let [pk, kek, db] = &variables;
        let references = update::references(out, &profiles).map_err(|source| file("read", out, source))?;
        let references_path = format!("{REFERENCES}/{}", update::references_name(&label));
        let files: [disk::EspFile<'_>; 9] = [
            ("EFI/BOOT/BOOTX64.EFI", &boot),
            ("EFI/systemd/systemd-bootx64.efi", &boot),
            (&uki_path, &uki),
            (&references_path, &references),
            ("loader/loader.conf", loader.as_bytes()),
            ("loader/entries.srel", b"type1\n"),
            ("loader/keys/auto/PK.auth", &pk.update),
            ("loader/keys/auto/KEK.auth", &kek.update),
            ("loader/keys/auto/db.auth", &db.update),
        ];
        disk::esp(&job, "esp", config.disk.esp_mib, &hash.hex()[..8], &files)?;
        let root_offset = disk::assemble(&job, "disk", config.disk, &label, &hash)?;
        write_file(&out.join(&names.uki), &uki)?;
        for (from, to) in [("root", &names.root), ("verity", &names.verity)] {
            move_file(&job.path(from), &out.join(to))?;
        }
        let compressed = compress_disk(&job.path("disk"), &out.join(&names.disk))?;
        Ok::<_, BuildError>((root_offset, compressed))
    })?;
    let live = if options.live || options.iso {
        let uki = progress.step("live image", || {
            let mut tree = initrd;
            let root = read(&out.join(&names.root))?;
            let payload = Payload {
                version: 1,
                name: config.name.to_string(),
                image_version: config.version.to_string(),
                disk_size,
                disk_min: disk_size + disk::made_at_first_boot(config.disk),
                disk_sha256: disk_sha256.clone(),
                root_offset,
                root_size: root.len() as u64,
            };
            let disk = read_rest(&payload, &job.path("disk"))?;
            initrd::add_root(&mut tree, root).map_err(|e| BuildError::Tree("the root", e))?;
            initrd::add_payload(&mut tree, &payload, disk).map_err(|e| BuildError::Tree("the payload", e))?;
            // Most of it is the root, which is compressed already.
            let archive = cpio::zstd(&cpio::write(&tree, 0), 3)
                .map_err(|source| file("compress", Path::new("the live image"), source))?;
            job.write("initrd", archive)?;
            let uki = uki::build(&job, config, &keys, &release, &uki::live_entries(config))?;
            write_file(&out.join(&names.live), &uki)?;
            Ok::<_, BuildError>(uki)
        })?;
        Some(uki)
    } else {
        remove(&out.join(&names.live))?;
        None
    };
    let described =
        |name: &str| image::describe(out, name).map_err(|source| file("read", &out.join(name), source));
    remove(&out.join(&names.iso))?;
    if let (Some(live), true) = (&live, options.iso) {
        progress.step("iso", || iso(&job, &hash, live, &out.join(&names.iso)))?;
    }
    let sets = [
        ("system", Some(&system_set)),
        ("host-kernel", Some(&kernel_set)),
        ("host-firmware", firmware_set.as_ref()),
    ];
    let sets = sets.into_iter().filter_map(|(name, set)| Some((name, set?)));
    let mut packages: Vec<_> = sets.clone().flat_map(|(_, set)| set.packages.clone()).collect();
    packages.sort();
    packages.dedup();
    let image = Image {
        version: 1,
        name: config.name.to_string(),
        image_version: config.version.to_string(),
        disk: described(&names.disk)?,
        disk_sha256,
        disk_size,
        uki: described(&names.uki)?,
        root: described(&names.root)?,
        verity: described(&names.verity)?,
        root_hash: hash.hex().to_owned(),
        live: live.map(|_| described(&names.live)).transpose()?,
        iso: options.iso.then(|| described(&names.iso)).transpose()?,
        pcr_4,
        pcr_7,
        profiles,
        kernel: release,
        cannot_host: abilities.cannot_host,
        hostd_sha256: sha256(&hostd),
        packages,
    };
    write_file(&out.join(image::FILE_NAME), &image.to_bytes())?;
    if let (Some(path), true) = (&config.lock, options.write_lock) {
        let sets = sets.map(|(name, set)| (name.to_owned(), set.packages.clone()));
        write_file(path, Lock { sets: sets.collect() }.to_text().as_bytes())?;
    }
    Ok(Built {
        image,
        dir: out.clone(),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Where the signed reference values lie on the ESP: those of the version that runs, and of the one that is tried next.
const REFERENCES: &str = "decent-cloud";

/// The names of an image's files.
struct Names {
    disk: String,
    uki: String,
    root: String,
    verity: String,
    live: String,
    iso: String,
}

impl Names {
    fn of(label: &str) -> Self {
        let name = |kind: &str| format!("{label}.{kind}");
        Self {
            disk: name("raw.zst"),
            uki: name("efi"),
            root: name("root"),
            verity: name("verity"),
            live: name("live.efi"),
            iso: name("iso"),
        }
    }
}

fn is_in_modules(path: &str) -> bool {
    path.starts_with("usr/lib/modules/")
}

fn kernel(config: &Config, tree: &Tree) -> Result<(String, Vec<u8>, kernel::Abilities), BuildError> {
    let (release, vmlinuz) = tree
        .iter()
        .filter_map(|(path, _)| Some((path.strip_prefix("boot/vmlinuz-")?, tree.file(path)?)))
        .max_by(|a, b| a.0.cmp(b.0))
        .ok_or_else(|| BuildError::NoKernel(config.kernel.package.to_string()))?;
    let options = tree.file(&format!("boot/config-{release}")).unwrap_or_default();
    let abilities = kernel::abilities(&String::from_utf8_lossy(options), &config.kernel);
    if !abilities.missing.is_empty() {
        return Err(BuildError::Kernel {
            release: release.to_owned(),
            missing: abilities.missing,
        });
    }
    Ok((release.to_owned(), vmlinuz.to_vec(), abilities))
}

/// Makes the tables of `tree`'s modules, which kmod reads.
fn depmod(job: &Job<'_>, tree: &mut Tree, release: &str) -> Result<(), BuildError> {
    let base = format!("usr/lib/modules/{release}");
    let scratch = tempfile::tempdir_in(job.path("")).map_err(|source| file("make", &job.path(""), source))?;
    let name = scratch
        .path()
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    for (path, node) in tree.iter().filter(|(path, _)| path.strip_prefix(&base).is_some()) {
        let at = scratch.path().join(path);
        let parent = at.parent().unwrap_or(scratch.path());
        if let crate::tree::Kind::File(content) = &node.kind {
            fs::create_dir_all(parent)
                .and_then(|()| fs::write(&at, content))
                .map_err(|source| file("write", &at, source))?;
        }
    }
    // depmod looks under lib/modules.
    std::os::unix::fs::symlink("usr/lib", scratch.path().join("lib"))
        .map_err(|source| file("write", scratch.path(), source))?;
    job.run("depmod", ["-b", &name, release])?;
    for table in [
        "alias",
        "alias.bin",
        "builtin.alias.bin",
        "builtin.bin",
        "dep",
        "dep.bin",
        "devname",
        "softdep",
        "symbols",
        "symbols.bin",
        "weakdep",
    ] {
        let path = format!("{base}/modules.{table}");
        let made = scratch.path().join(&path);
        if made.exists() {
            tree.add_file(&path, 0o644, read(&made)?)
                .map_err(|e| BuildError::Tree("tables of modules", e))?;
        }
    }
    Ok(())
}

/// Makes the job's files `root` and `verity`, and returns the top of the hash tree.
fn root_image(job: &Job<'_>, config: &Config, tree: &Tree) -> Result<RootHash, BuildError> {
    let tar = root::to_tar(tree).map_err(|source| file("write", &job.path("root.tar"), source))?;
    let id = sha256(&tar);
    job.write("root.tar", tar)?;
    let uuid = disk::uuid(&id[..32]);
    job.run(
        "mkfs.erofs",
        [
            "--tar=f",
            "-zlz4hc,9",
            "-C16384",
            "-T0",
            "--all-time",
            "-Enoinline_data",
            "-U",
            &uuid,
            "-L",
            "root",
            "root",
            "root.tar",
        ],
    )?;
    let args = [
        "format",
        "--hash=sha256",
        &*format!("--salt={id}"),
        &format!("--uuid={uuid}"),
        "root",
        "verity",
    ];
    let text = job.run_outside("veritysetup", args)?;
    for (what, key, mib) in [
        ("root", "root_mib", config.disk.root_mib),
        ("verity", "verity_mib", config.disk.verity_mib),
    ] {
        let path = job.path(what);
        let size = fs::metadata(&path)
            .map_err(|source| file("read", &path, source))?
            .len();
        let limit = u64::from(mib) << 20;
        if size > limit {
            return Err(BuildError::TooLarge {
                what,
                size,
                limit,
                key,
            });
        }
    }
    String::from_utf8_lossy(&text)
        .lines()
        .find_map(|line| RootHash::parse(line.strip_prefix("Root hash:")?.trim()))
        .ok_or(BuildError::RootHash)
}

fn sign_statement(
    job: &Job<'_>,
    keys: &Keys,
    key_id: &str,
    statement: &Statement,
    to: &Path,
) -> Result<ImageFile, BuildError> {
    let payload = statement.to_bytes();
    let signature = uki::sign_reference(job, keys, &attestation::tpm::reference_to_sign(&payload))?;
    let envelope = Envelope::of(&payload, key_id.to_owned(), &signature);
    let content = serde_json::to_vec_pretty(&envelope).expect("strings always serialise");
    write_file(to, &content)?;
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    Ok(ImageFile::of(&name, &content))
}

/// A hybrid ISO image: firmware starts the live image from a disc and from a stick.
fn iso(job: &Job<'_>, hash: &RootHash, live: &[u8], to: &Path) -> Result<(), BuildError> {
    let mib = (live.len() as u64).div_ceil(1 << 20) as u32 + 40;
    disk::esp(
        job,
        "iso-esp",
        mib,
        &hash.hex()[8..16],
        &[("EFI/BOOT/BOOTX64.EFI", live)],
    )?;
    let empty = job.path("iso-root");
    fs::create_dir_all(&empty).map_err(|source| file("make", &empty, source))?;
    let id = disk::uuid(&sha256(hash.hex().as_bytes())[..32]);
    let args = [
        "-as",
        "mkisofs",
        "-quiet",
        "-volid",
        "DECENT_CLOUD",
        "--modification-date=1970010200000000",
        "--gpt_disk_guid",
        &id,
        "-partition_offset",
        "16",
        "-append_partition",
        "2",
        "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
        "iso-esp",
        "-appended_part_as_gpt",
        "-e",
        "--interval:appended_partition_2:all::",
        "-no-emul-boot",
        "-o",
        "iso",
        "iso-root",
    ];
    job.run("xorriso", args)?;
    move_file(&job.path("iso"), to)
}

fn compressed(archive: &[u8]) -> Result<Vec<u8>, BuildError> {
    cpio::compress(archive, Compression::Zstd)
        .map_err(|source| file("compress", Path::new("the initrd"), source))
}

/// Compresses the disk, and returns SHA-256 and length of what went in.
fn compress_disk(from: &Path, to: &Path) -> Result<(String, u64), BuildError> {
    let fail = |source| file("write", to, source);
    let partial = tempfile::NamedTempFile::new_in(to.parent().unwrap_or(Path::new("."))).map_err(fail)?;
    let mut encoder = zstd::Encoder::new(partial.as_file(), 3).map_err(fail)?;
    encoder.include_checksum(true).map_err(fail)?;
    let source = BufReader::new(File::open(from).map_err(|source| file("read", from, source))?);
    let mut tee = Tee {
        from: source,
        to: &mut encoder,
    };
    let digest = flash::digest(&mut tee).map_err(fail)?;
    encoder.finish().map_err(fail)?;
    persist(partial, to)?;
    Ok(digest)
}

/// The disk without its root, compressed: what a live image doesn't have anyway.
fn read_rest(payload: &Payload, disk: &Path) -> Result<Vec<u8>, BuildError> {
    let fail = |source| file("read", disk, source);
    let whole = BufReader::new(File::open(disk).map_err(fail)?);
    zstd::encode_all(payload.with_root(whole, io::repeat(0)), 3).map_err(fail)
}

/// Hands on what is read.
struct Tee<R, W> {
    from: R,
    to: W,
}

impl<R: io::Read, W: io::Write> io::Read for Tee<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.from.read(buffer)?;
        self.to.write_all(&buffer[..length])?;
        Ok(length)
    }
}

fn tree(what: &'static str, tar: &Path, wanted: impl Fn(&str) -> bool) -> Result<Tree, BuildError> {
    let archive = File::open(tar).map_err(|source| file("read", tar, source))?;
    let mut tree = Tree::default();
    tree.add_tar(BufReader::new(archive), wanted)
        .map_err(|e| BuildError::Tree(what, e))?;
    Ok(tree)
}

fn place(tree: &mut Tree, path: &str, content: &[u8]) -> Result<(), BuildError> {
    tree.add_file(path, 0o755, content)
        .map_err(|e| BuildError::Tree("a program", e))
}

fn file(what: &'static str, path: &Path, source: io::Error) -> BuildError {
    BuildError::File {
        what,
        path: path.to_owned(),
        source,
    }
}

fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    fs::read(path).map_err(|source| file("read", path, source))
}

fn remove(path: &Path) -> Result<(), BuildError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file("remove", path, error)),
        _ => Ok(()),
    }
}

fn write_file(path: &Path, content: &[u8]) -> Result<(), BuildError> {
    let partial = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))
        .map_err(|source| file("write", path, source))?;
    fs::write(partial.path(), content).map_err(|source| file("write", path, source))?;
    persist(partial, path)
}

fn persist(partial: tempfile::NamedTempFile, path: &Path) -> Result<(), BuildError> {
    let fail = |source| file("write", path, source);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(partial.path(), mode).map_err(fail)?;
    partial.as_file().sync_all().map_err(fail)?;
    partial.persist(path).map_err(|e| fail(e.error))?;
    Ok(())
}

/// Moves a file, also to another file system.
fn move_file(from: &Path, to: &Path) -> Result<(), BuildError> {
    if fs::rename(from, to).is_ok() {
        return Ok(());
    }
    fs::copy(from, to).map_err(|source| file("write", to, source))?;
    remove(from)
}
