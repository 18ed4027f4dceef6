//! The verbs about the provider's image.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use image_builder::appliance::config::Config;
use image_builder::appliance::image::Image;
use image_builder::appliance::qemu::{Machine, Part, Serial};
use image_builder::appliance::seed::Seed;
use image_builder::appliance::tools::{self, Tools};
use image_builder::appliance::{self, Built, Options, keys, report, update, verify};
use image_builder::apt::Apt;
use image_builder::progress::Progress;

use crate::default_cache;

/// Where packages and tools are kept.
#[derive(clap::Args)]
struct Cache {
    /// Where downloaded packages and tools are kept [default: the user's cache directory]
    #[arg(long, env = "IMAGE_BUILDER_CACHE")]
    cache: Option<PathBuf>,
}

impl Cache {
    fn apt(self, refresh: bool) -> anyhow::Result<Apt> {
        Ok(Apt {
            cache: self.cache.map_or_else(default_cache, Ok)?,
            refresh,
        })
    }
}

#[derive(clap::Args)]
pub(crate) struct Keys {
    /// The folder to make; existing keys are never overwritten
    #[arg(long, default_value = "keys")]
    dir: PathBuf,
    /// The suite whose tools make them
    #[arg(long, default_value = "trixie")]
    suite: image_builder::config::Suite,
    #[command(flatten)]
    cache: Cache,
}

impl Keys {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let apt = self.cache.apt(false)?;
        let progress = Progress::default();
        let tools = progress.step("packages: tools", || {
            Tools::prepare(&apt, "tools", &tools::BUILD, &self.suite, None)
        })?;
        for file in progress.step("keys", || keys::make(&tools, &self.dir))? {
            println!("wrote {}", self.dir.join(file).display());
        }
        println!("Keep it: without these keys no new image boots on the machines that trust them.");
        Ok(())
    }
}

#[derive(clap::Args)]
pub(crate) struct Build {
    /// The configuration; `image-builder init` writes one
    #[arg(long, default_value = "image.toml")]
    config: PathBuf,
    /// The host daemon [default: `hostd` of the configuration]
    #[arg(long)]
    hostd: Option<PathBuf>,
    /// The folder of the keys [default: `keys` of the configuration]
    #[arg(long)]
    keys: Option<PathBuf>,
    /// The directory to write [default: `output` of the configuration]
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    cache: Cache,
    /// Get the packages anew even if the cache has them
    #[arg(long)]
    refresh: bool,
    /// Write the lock file that the configuration names, instead of obeying it
    #[arg(long)]
    write_lock: bool,
    /// Make the live kernel image too: the whole system in memory, for PXE or a stick
    #[arg(long)]
    netboot: bool,
    /// Make the hybrid ISO image too, with the live image on it
    #[arg(long)]
    iso: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl Build {
    pub(crate) fn with_iso(self) -> Self {
        Self { iso: true, ..self }
    }

    pub(crate) fn with_netboot(self) -> Self {
        Self {
            netboot: true,
            ..self
        }
    }

    pub(crate) fn run(self) -> anyhow::Result<()> {
        let mut config = Config::read(&self.config)?;
        config.hostd = self.hostd.unwrap_or(config.hostd);
        config.keys = self.keys.unwrap_or(config.keys);
        config.output = self.out.unwrap_or(config.output);
        if self.write_lock && config.lock.is_none() {
            anyhow::bail!("--write-lock needs `lock = \"…\"` in {}", self.config.display());
        }
        let progress = Progress::default();
        let options = Options {
            apt: self.cache.apt(self.refresh)?,
            write_lock: self.write_lock,
            live: self.netboot,
            iso: self.iso,
            progress: &progress,
        };
        let built = appliance::build(&config, &options)?;
        if self.json {
            print!("{}", String::from_utf8_lossy(&built.image.to_bytes()));
        } else {
            print_built(&built);
        }
        Ok(())
    }
}

fn print_built(built: &Built) {
    let image = &built.image;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("image        {} {}", image.name, image.image_version);
    println!("directory    {}", built.dir.display());
    for file in image.files() {
        println!("  {:<44} {:7.1} MiB  {}", file.file, mib(file.size), file.sha256);
    }
    println!("kernel       {}", image.kernel);
    for (kind, missing) in &image.cannot_host {
        println!(
            "  cannot host {kind} VMs: the kernel lacks {}",
            missing.join(", ")
        );
    }
    println!("root hash    {}", image.root_hash);
    println!("packages     {}", image.packages.len());
    println!("time         {:.1} s", built.seconds);
}

#[derive(clap::Args)]
pub(crate) struct Run {
    /// The directory of the image
    image: PathBuf,
    /// Where disk, TPM and firmware variables live: run again with the same folder and it is a reboot [default: a new one]
    #[arg(long)]
    state: Option<PathBuf>,
    /// Memory in MiB
    #[arg(long, default_value_t = 2048)]
    memory: u32,
    /// CPUs
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Size of the disk in MiB
    #[arg(long, default_value_t = 8192)]
    disk: u32,
    /// Use this machine's KVM instead of emulation
    #[arg(long)]
    kvm: bool,
    /// A part that the machine shall lack: to see what the image says then
    #[arg(long, value_enum)]
    without: Vec<Part>,
    /// Lead a TCP port of this machine to one of the guest: HERE:THERE
    #[arg(long, value_parser = forward)]
    forward: Vec<(u16, u16)>,
    /// Write the serial port to a file instead of the terminal; keys come through the unix socket beside it (.sock)
    #[arg(long)]
    serial: Option<PathBuf>,
    /// The suite of QEMU
    #[arg(long, default_value = "trixie")]
    suite: image_builder::config::Suite,
    #[command(flatten)]
    cache: Cache,
    /// Further arguments for QEMU
    #[arg(last = true)]
    qemu: Vec<String>,
}

fn forward(text: &str) -> Result<(u16, u16), String> {
    let (here, there) = text.split_once(':').ok_or("wants HERE:THERE")?;
    let port = |text: &str| text.parse().map_err(|_| format!("{text:?} is not a port"));
    Ok((port(here)?, port(there)?))
}

impl Run {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let image = Image::read(&self.image)?;
        let apt = self.cache.apt(false)?;
        let progress = Progress::default();
        let tools = progress.step("packages: QEMU, firmware, TPM", || {
            Tools::prepare(&apt, "run", &tools::RUN, &self.suite, None)
        })?;
        let scratch = tempfile::tempdir()?;
        let machine = Machine {
            dir: self.state.unwrap_or_else(|| scratch.path().to_owned()),
            memory_mib: self.memory,
            cpus: self.cpus,
            disk_mib: self.disk,
            kvm: self.kvm,
            without: self.without,
            forward: self.forward,
            extra: self.qemu,
        };
        progress.step("disk: unpack", || {
            machine.insert_disk(&self.image.join(&image.disk.file))
        })?;
        let serial = self.serial.map_or(Serial::Terminal, Serial::File);
        if matches!(serial, Serial::Terminal) {
            eprintln!("Ctrl-A X ends the machine, Ctrl-A C shows QEMU's monitor.");
        }
        let status = machine.start(&tools, &serial)?.wait()?;
        if !status.success() {
            let log = std::fs::read_to_string(machine.dir.join("qemu.log")).unwrap_or_default();
            bail!("QEMU ended with {status}:\n{log}");
        }
        Ok(())
    }
}

#[derive(clap::Args)]
pub(crate) struct Flash {
    /// The directory of the image
    image: PathBuf,
    /// The disk, such as /dev/sdb, or a file
    target: PathBuf,
    /// The disk's name, typed already: for scripts
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
    /// The provider's settings (`hostd seed init`), for the disk's seed partition; the host wipes it when it has read them
    #[arg(long, value_name = "FILE")]
    seed: Option<PathBuf>,
}

impl Flash {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let image = Image::read(&self.image)?;
        let seed = self.seed.as_deref().map(Seed::read).transpose()?;
        // A damaged image is found before the disk is touched.
        let mut disk = image.disk(&self.image)?;
        let target = flash::Target::open(&self.target, &image.wanted())?;
        let typed = match self.confirm {
            Some(name) => name,
            None => {
                let gib = target.size() as f64 / f64::from(1 << 30);
                eprintln!(
                    "Everything on {} ({gib:.1} GiB) will be lost.",
                    self.target.display()
                );
                eprint!("Type {} to go on: ", target.name());
                std::io::stderr().flush()?;
                let mut line = String::new();
                std::io::stdin()
                    .read_line(&mut line)
                    .context("cannot read the answer")?;
                line
            }
        };
        let confirmed = target.confirm(&typed)?;
        confirmed.write_with_bar(&mut disk, &image.wanted())?;
        if let Some(seed) = &seed {
            seed.write(&self.target)?;
        }
        println!(
            "{} holds {} {}; read back and compared",
            self.target.display(),
            image.name,
            image.image_version
        );
        Ok(())
    }
}

#[derive(clap::Args)]
pub(crate) struct Verify {
    /// The directory of the image
    image: PathBuf,
    /// The folder of the keys (certificates and public keys are enough to look, but all files must be there)
    #[arg(long, default_value = "keys")]
    keys: PathBuf,
    /// The suite whose tools look
    #[arg(long, default_value = "trixie")]
    suite: image_builder::config::Suite,
    #[command(flatten)]
    cache: Cache,
}

impl Verify {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let apt = self.cache.apt(false)?;
        let tools = Tools::prepare(&apt, "tools", &tools::BUILD, &self.suite, None)?;
        let checks = verify::verify(&self.image, &keys::Keys::read(&self.keys)?, &tools)?;
        for check in &checks {
            match &check.fault {
                None => println!("    ok  {}", check.what),
                Some(fault) => println!("FAILED  {}: {fault}", check.what),
            }
        }
        if checks.iter().any(|check| check.fault.is_some()) {
            bail!("the image is not what it should be");
        }
        Ok(())
    }
}

#[derive(clap::Args)]
#[command(after_help = "\
Serve the folder over https, or copy it onto a stick; [update] in hostd.toml says where machines look. Run it again with
a newer image to add a version. What the folder holds already is kept, if its signature and digests are yours.

  image-builder update-repo --out updates build/appliance
  rsync -a updates/ www:/srv/updates/")]
pub(crate) struct UpdateRepo {
    /// The directories of the images to add
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// The folder to make or to add to
    #[arg(long, default_value = "updates")]
    out: PathBuf,
    /// The folder of the keys; machines take updates that are signed with the key whose public part their image holds
    #[arg(long, default_value = "keys")]
    keys: PathBuf,
    /// The suite whose tools sign and read back
    #[arg(long, default_value = "trixie")]
    suite: image_builder::config::Suite,
    #[command(flatten)]
    cache: Cache,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl UpdateRepo {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let keys = keys::Keys::read(&self.keys)?;
        let apt = self.cache.apt(false)?;
        let progress = Progress::default();
        let tools = progress.step("packages: tools", || {
            Tools::prepare(&apt, "tools", &tools::BUILD, &self.suite, None)
        })?;
        let published = update::publish(&self.images, &self.out, &keys, &tools, &progress)?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&published)?);
        } else {
            println!("folder       {}", published.dir.display());
            println!("versions     {}", published.versions.join(", "));
            for (name, sha256) in &published.files {
                println!("  {sha256}  {name}");
            }
        }
        Ok(())
    }
}

#[derive(clap::Args)]
pub(crate) struct Sbom {
    /// The directory of the image
    image: PathBuf,
}

impl Sbom {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let document = report::spdx(&Image::read(&self.image)?);
        // A reader may have had enough: that is no fault of the document.
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&document)?)?;
        Ok(())
    }
}

#[derive(clap::Args)]
pub(crate) struct Diff {
    /// The directory of the first image
    a: PathBuf,
    /// The directory of the second
    b: PathBuf,
}

impl Diff {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let lines = report::diff(&Image::read(&self.a)?, &Image::read(&self.b)?);
        if lines.is_empty() {
            println!("the images are the same");
        }
        for line in lines {
            println!("{line}");
        }
        Ok(())
    }
}
