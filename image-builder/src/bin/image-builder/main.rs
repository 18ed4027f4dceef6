//! `image-builder`: see the crate's documentation, or `image-builder --help`.

mod appliance;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{CommandFactory, Parser, Subcommand};
use image_builder::appliance::config;
use image_builder::apt::Apt;
use image_builder::config::{Config, TEMPLATE};
use image_builder::progress::Progress;
use image_builder::tenant::{self, Built, Options};

/// Builds the images of the provider OS from Debian packages, without root mounts, byte for byte reproducible.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Writes a commented configuration to start from: image.toml, or tenant.toml if the path is called so
    Init {
        /// Where to; an existing file is never overwritten
        #[arg(default_value = "image.toml")]
        path: PathBuf,
    },
    /// Makes the keys that sign images: secure boot, the state partition's policy, reference values
    Keys(appliance::Keys),
    /// Builds the provider's image
    Build(appliance::Build),
    /// As `build --iso`: a disc or stick that starts the live system, which installs itself
    Iso(appliance::Build),
    /// As `build --netboot`: the live system in one file, for PXE
    Netboot(appliance::Build),
    /// Boots an image in QEMU, with secure boot and a TPM
    Run(appliance::Run),
    /// Writes an image to a disk or stick, and reads it back
    Flash(appliance::Flash),
    /// Checks an image's files, signatures and reference values
    Verify(appliance::Verify),
    /// Puts images into the folder from which machines update themselves, and signs it
    UpdateRepo(appliance::UpdateRepo),
    /// Prints what is in an image, as SPDX
    Sbom(appliance::Sbom),
    /// Says how two images differ
    Diff(appliance::Diff),
    /// Builds the image that tenant VMs boot, and prints its id
    Tenant(Box<Tenant>),
    /// Prints a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(clap::Args)]
struct Tenant {
    /// The configuration; `image-builder init` writes one
    #[arg(long, default_value = "tenant.toml")]
    config: PathBuf,
    /// The guest agent, a static binary [default: `agent` of the configuration]
    #[arg(long)]
    agent: Option<PathBuf>,
    /// The seed reader, a static binary [default: beside the agent, else `guest_setup` of the configuration]
    #[arg(long)]
    guest_setup: Option<PathBuf>,
    /// The image directory to write [default: `output` of the configuration]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Where downloaded packages are kept [default: the user's cache directory]
    #[arg(long, env = "IMAGE_BUILDER_CACHE")]
    cache: Option<PathBuf>,
    /// Get the packages anew even if the cache has them
    #[arg(long)]
    refresh: bool,
    /// Write the lock file that the configuration names, instead of obeying it
    #[arg(long)]
    write_lock: bool,
    /// Build a second time from scratch, without the cache, and compare every byte
    #[arg(long)]
    check_reproducible: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().verb {
        Verb::Init { path } => init(&path),
        Verb::Keys(args) => args.run(),
        Verb::Build(args) => args.run(),
        Verb::Iso(args) => args.with_iso().run(),
        Verb::Netboot(args) => args.with_netboot().run(),
        Verb::Run(args) => args.run(),
        Verb::Flash(args) => args.run(),
        Verb::Verify(args) => args.run(),
        Verb::UpdateRepo(args) => args.run(),
        Verb::Sbom(args) => args.run(),
        Verb::Diff(args) => args.run(),
        Verb::Tenant(args) => build_tenant(*args),
        Verb::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "image-builder",
                &mut std::io::stdout(),
            );
            Ok(())
        }
    }
}

fn init(path: &Path) -> anyhow::Result<()> {
    let mut file = fs::File::create_new(path).with_context(|| {
        format!(
            "cannot make {}; an existing file is never overwritten",
            path.display()
        )
    })?;
    let tenant = path
        .file_name()
        .is_some_and(|name| name.to_string_lossy().contains("tenant"));
    file.write_all(if tenant { TEMPLATE } else { config::TEMPLATE }.as_bytes())?;
    println!("wrote {}", path.display());
    Ok(())
}

fn build_tenant(args: Tenant) -> anyhow::Result<()> {
    let mut config = Config::read(&args.config)?;
    if let Some(agent) = args.agent {
        let beside = agent.with_file_name("guest-setup");
        if beside.exists() {
            config.guest_setup = beside;
        }
        config.agent = agent;
    }
    if let Some(guest_setup) = args.guest_setup {
        config.guest_setup = guest_setup;
    }
    if let Some(out) = args.out {
        config.output = out;
    }
    if args.write_lock && config.lock.is_none() {
        bail!("--write-lock needs `lock = \"…\"` in {}", args.config.display());
    }
    let cache = args.cache.map_or_else(default_cache, Ok)?;
    let progress = Progress::default();
    let epoch = epoch()?;
    let options = |cache: PathBuf| Options {
        apt: Apt {
            cache,
            refresh: args.refresh,
        },
        write_lock: args.write_lock,
        epoch,
        progress: &progress,
    };
    let built = tenant::build(&config, &options(cache))?;
    if args.check_reproducible {
        check_reproducible(&config, &options, &built)?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&built)?);
    } else {
        print_result(&built, args.check_reproducible);
    }
    Ok(())
}

fn check_reproducible<'a>(
    config: &Config,
    options: &impl Fn(PathBuf) -> Options<'a>,
    first: &Built,
) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir().context("cannot make a directory for the second build")?;
    let again = Config {
        output: scratch.path().join("image"),
        ..config.clone()
    };
    let mut options = options(scratch.path().join("cache"));
    options.write_lock = false;
    let second = tenant::build(&again, &options)?;
    if first.manifest != second.manifest {
        bail!(
            "the second build differs:\n{}",
            [(&first.manifest, "first"), (&second.manifest, "second")]
                .map(|(m, which)| format!("  {which}: {}", serde_json::to_string(m).unwrap_or_default()))
                .join("\n")
        );
    }
    let mut differences = first.manifest.differences(&first.dir);
    differences.extend(first.manifest.differences(&second.dir));
    if !differences.is_empty() {
        bail!("files differ from the manifest:\n  {}", differences.join("\n  "));
    }
    Ok(())
}

fn print_result(built: &Built, reproducible: bool) {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("image id     {}", built.image_id);
    println!("directory    {}", built.dir.display());
    println!(
        "kernel       {} ({:.1} MiB)",
        built.kernel_release,
        mib(built.manifest.kernel.size)
    );
    println!(
        "initrd       {:.1} MiB ({:.1} MiB unpacked, {} packages)",
        mib(built.manifest.initrd.size),
        mib(built.initrd_unpacked),
        built.packages
    );
    println!("agent        {}", built.manifest.agent_version);
    println!(
        "time         {:.1} s{}",
        built.seconds,
        if built.from_cache {
            " (packages from the cache)"
        } else {
            ""
        }
    );
    if reproducible {
        println!("reproducible yes: a second build from scratch gave the same bytes");
    }
}

pub(crate) fn default_cache() -> anyhow::Result<PathBuf> {
    let base = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(cache), _) if Path::new(&cache).is_absolute() => PathBuf::from(cache),
        (_, Some(home)) => Path::new(&home).join(".cache"),
        _ => bail!("neither XDG_CACHE_HOME nor HOME is set; give --cache"),
    };
    Ok(base.join("decent-cloud/image-builder"))
}

/// `SOURCE_DATE_EPOCH` (reproducible-builds.org), or 0.
fn epoch() -> anyhow::Result<u32> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(value) => value
            .parse()
            .with_context(|| format!("SOURCE_DATE_EPOCH={value:?} is not a number of seconds")),
        Err(_) => Ok(0),
    }
}
