//! `make bench`: how fast and how big, as one table. Real ledgerd, hostd and kernel networks. The fleet's VMs are the fake
//! Cloud Hypervisor's, so that hostd's own share shows; the part `boot` rents real VMs, and splits the way from payment to
//! the first TLS handshake by step.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use hostd::surface::model::Explanation;
use integration::fleet::{Fleet, Options, wait_for};
use integration::main_job::world::{self, HOST_ADDRESS, Place, World};
use integration::main_job::{self, timing};
use integration::timeline::Timeline;
use ledger::api::{ContractState, EndReason};
use netns::{Config, Desired, Lease, Network, Slot, TenantId, Transport, VmNet};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Measures hostd and netns against their targets and prints a table. Needs root; takes a few minutes.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Only this part.
    #[arg(long)]
    only: Option<Part>,
    /// VMs in the fleet.
    #[arg(long, default_value_t = 100)]
    vms: u32,
    /// Tenants of the large network; the small one has 10.
    #[arg(long, default_value_t = 1000)]
    tenants: u16,
    /// Folder that `image-builder tenant` made; the part `boot` needs it.
    #[arg(long, required_if_eq("only", "boot"))]
    image: Option<PathBuf>,
    /// hostd of the fleet [default: the one beside this program].
    #[arg(long)]
    hostd: Option<PathBuf>,
    /// Real VMs to rent, one after the other.
    #[arg(long, default_value_t = 3)]
    boots: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Leases and routes among few and many tenants.
    Network,
    /// hostd with many VMs.
    Fleet,
    /// Payment to the first TLS handshake, with real VMs.
    Boot,
}

/// What the names of each part start with.
const PREFIXES: [&str; 3] = ["dcbn", "dcbf", "dcbb"];

#[derive(serde::Serialize)]
struct Row {
    what: String,
    measured: String,
    target: &'static str,
    met: Option<bool>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let programs = std::env::current_exe()?
        .parent()
        .context("a program without a folder")?
        .to_owned();
    clean_up_on_signals()?;
    let mut rows = Vec::new();
    let wanted = |part| cli.only.is_none_or(|only| only == part);
    if wanted(Part::Network) {
        rows.extend(network(&programs, cli.tenants)?);
    }
    if wanted(Part::Fleet) {
        rows.extend(fleet(&programs, cli.hostd.clone(), cli.vms)?);
    }
    match &cli.image {
        Some(image) if wanted(Part::Boot) => rows.extend(boots(&programs, image, cli.boots)?),
        None if wanted(Part::Boot) => progress("no --image: real VMs are left out"),
        _ => {}
    }
    if cli.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    let width = rows.iter().map(|row| row.what.chars().count()).max().unwrap_or(0);
    for row in &rows {
        let met = match row.met {
            Some(true) => "ok",
            Some(false) => "MISSED",
            None => "",
        };
        println!(
            "{:<width$}  {:>14}  {:<10} {met}",
            row.what, row.measured, row.target
        );
    }
    Ok(())
}

/// Ctrl-C and SIGTERM end the run, and nothing stays.
fn clean_up_on_signals() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut terminate = {
        let _inside = runtime.enter();
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
        });
        eprintln!("bench: stopping; removing everything that this run made …");
        for prefix in PREFIXES {
            if let Err(error) = world::clean(prefix) {
                eprintln!("bench: {error:#}");
            }
        }
        std::process::exit(130);
    });
    Ok(())
}

fn progress(text: &str) {
    eprintln!("bench: {text} …");
}

fn ms(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1e3)
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples[samples.len() / 2]
}

fn tenants(count: u16) -> Desired {
    let vm = |slot: Slot| VmNet {
        slot,
        tenant: TenantId::of(&slot.to_be_bytes()),
        bandwidth_mbps: None,
    };
    Desired {
        vms: (1..=count).map(|slot| (slot, vm(slot))).collect(),
        leases: BTreeSet::new(),
        routes: BTreeMap::new(),
    }
}

/// Adding a lease and a route shouldn't take longer among many tenants than among few.
fn network(programs: &Path, many: u16) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut few: Option<(Duration, Duration)> = None;
    for count in [10, many] {
        progress(&format!("a network of {count} tenants"));
        let mut world = World::new(PREFIXES[0], programs)?;
        let host = File::open(format!("/run/netns/{}", world.netns(Place::Host)))?;
        let mut config = Config::new("wan0".parse()?, HOST_ADDRESS.parse()?);
        config.prefix = PREFIXES[0].parse()?;
        config.haproxy = Some(serde_json::from_value(serde_json::json!({
            "run_dir": world.path("haproxy"), "manage": "spawn"
        }))?);
        let runtime = tokio::runtime::Runtime::new()?;
        let (lease, route) = runtime.block_on(async {
            let network = Network::open_in(config, host.into()).await?;
            let mut desired = tenants(count);
            network.converge(&desired).await?;
            let first = network.config().lease_ports.first();
            let (mut leases, mut routes) = (Vec::new(), Vec::new());
            for n in 0..21 {
                let lease = Lease {
                    transport: Transport::Tcp,
                    public_port: first + n,
                    slot: 1,
                    vm_port: 22,
                };
                desired.leases.insert(lease);
                let begun = Instant::now();
                network.adjust(&desired).await?;
                leases.push(begun.elapsed());
                desired.routes.insert(format!("n{n}.bench.test").parse()?, 1);
                let begun = Instant::now();
                network.adjust(&desired).await?;
                routes.push(begun.elapsed());
            }
            network.remove_all().await?;
            anyhow::Ok((median(leases), median(routes)))
        })?;
        let left = world.remove()?;
        ensure!(left.is_empty(), "left behind: {left:?}");
        // Twice the time at a hundred times the tenants isn't growth with their number.
        let grew = |before: Duration, now: Duration| now > before * 2 + Duration::from_millis(5);
        let met =
            |pick: fn(&(Duration, Duration)) -> Duration, now| few.as_ref().map(|few| !grew(pick(few), now));
        let (lease_met, route_met) = (met(|few| few.0, lease), met(|few| few.1, route));
        for (what, took, met) in [("lease", lease, lease_met), ("route", route, route_met)] {
            let what = format!("add a {what} among {count} tenants, p50");
            rows.push(Row {
                what,
                measured: ms(took),
                target: "flat",
                met,
            });
        }
        few = Some((lease, route));
    }
    Ok(rows)
}

/// Contracts that are paid one at a time.
const SINGLES: u32 = 9;

/// The median of each part of the way.
fn split(timelines: &[Timeline]) -> Vec<(String, Duration)> {
    let p50 = |pick: &dyn Fn(&Timeline) -> Duration| median(timelines.iter().map(pick).collect());
    let mut parts = vec![("payment until hostd's first step".to_owned(), p50(&|t| t.seen))];
    for step in timelines
        .iter()
        .flat_map(|t| t.steps.keys())
        .collect::<BTreeSet<_>>()
    {
        let took = p50(&|t| t.steps.get(step).copied().unwrap_or_default());
        parts.push((format!("step {}", step.name()), took));
    }
    parts.push(("payment to Active".to_owned(), p50(&|t| t.active)));
    parts
}

/// Real VMs of the tenant image, confidential ones, one after the other.
fn boots(programs: &Path, image: &Path, count: u64) -> Result<Vec<Row>> {
    progress(&format!("{count} real VMs, one after the other"));
    let samples = timing::sample(
        &main_job::Options {
            image: image.to_owned(),
            programs: programs.to_owned(),
            prefix: PREFIXES[2].to_owned(),
            stop: Arc::default(),
            keep_logs: None,
        },
        count,
    )?;
    let timelines: Vec<Timeline> = samples.iter().map(|sample| sample.timeline.clone()).collect();
    let mut parts = split(&timelines);
    let first_tls = median(samples.iter().map(|sample| sample.first_tls).collect());
    parts.push(("payment to the first TLS handshake".to_owned(), first_tls));
    Ok(parts
        .into_iter()
        .map(|(what, took)| Row {
            what: format!("real VM, emulated: {what}, p50"),
            measured: ms(took),
            target: "",
            met: None,
        })
        .collect())
}

fn fleet(programs: &Path, hostd: Option<PathBuf>, vms: u32) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut row = |what: String, measured: String, target, met| {
        rows.push(Row {
            what,
            measured,
            target,
            met,
        })
    };
    progress("a ledger, hostd");
    let mut fleet = Fleet::start(&Options {
        storage_gib: 2 * vms,
        hostd,
        ..Options::new(PREFIXES[1], PathBuf::from(programs))
    })?;
    fleet.start_hostd(None)?;
    fleet.wait_offering(Duration::from_secs(60))?;
    let free = fleet.status()?.capacity;
    std::thread::sleep(Duration::from_secs(2)); // start-up's own memory is given back meanwhile
    let idle = fleet.hostd_rss_kib()?;
    let mib = |kib: u64| format!("{:.1} MiB", kib as f64 / 1024.0);
    row(
        "hostd idle, resident".into(),
        mib(idle),
        "< 25 MiB",
        Some(idle < 25 * 1024),
    );

    progress("payment to Active, one at a time");
    let mut timelines = Vec::new();
    let mut ids = Vec::new();
    for _ in 0..SINGLES {
        let id = fleet.rent(1)?;
        let paid = SystemTime::now();
        let path = format!("/v1/contracts/{}", id[0]);
        timelines.push(wait_for("hostd to confirm", Duration::from_secs(60), || {
            let Ok(text) = fleet.get(&path) else {
                return Ok(None); // hostd may not know of it yet
            };
            let explanation: Explanation = serde_json::from_str(&text)?;
            Ok(Timeline::new(paid, &explanation.steps))
        })?);
        ids.extend(id);
    }
    for (what, took) in split(&timelines) {
        row(format!("fake VMM: {what}, p50"), ms(took), "", None);
    }
    let own = median(timelines.iter().map(Timeline::own_share).collect());
    row(
        "payment to Active without VMM and guest, p50".into(),
        ms(own),
        "< 100 ms",
        Some(own < Duration::from_millis(100)),
    );

    progress(&format!("{vms} contracts at once"));
    let begun = Instant::now();
    let many = fleet.rent(vms.saturating_sub(SINGLES))?;
    fleet.wait_active(&many, Duration::from_secs(300))?;
    row(
        format!("{} contracts at once, all Active", many.len()),
        ms(begun.elapsed()),
        "none stuck",
        Some(true),
    );
    ids.extend(many);
    let loaded = fleet.hostd_rss_kib()?;
    let each = loaded.saturating_sub(idle) / ids.len() as u64;
    row(
        format!("hostd with {} VMs, resident", ids.len()),
        mib(loaded),
        "",
        None,
    );
    row("hostd, resident per VM".into(), format!("{each} KiB"), "", None);

    progress("re-adoption after kill -9");
    fleet.kill_hostd()?;
    let begun = Instant::now();
    fleet.start_hostd(None)?;
    fleet.wait_hostd(Duration::from_secs(60))?;
    wait_for("all VMs to be adopted", Duration::from_secs(60), || {
        Ok((fleet.status()?.contracts.running >= ids.len() as u64).then_some(()))
    })?;
    let took = begun.elapsed();
    let what = format!("{} VMs re-adopted, from the start of the process", ids.len());
    row(what, ms(took), "< 1 s", Some(took < Duration::from_secs(1)));

    progress("a VMM dies");
    let victim = *fleet.vmms()?.first().context("no VMM runs")?;
    let begun = Instant::now();
    kill(Pid::from_raw(victim.cast_signed()), Signal::SIGKILL)?;
    wait_for("the ledger to know", Duration::from_secs(30), || {
        let gone =
            |contract: &ledger::api::Contract| contract.state == ContractState::Ended(EndReason::VmGone);
        Ok(fleet.contracts()?.iter().any(gone).then_some(()))
    })?;
    let took = begun.elapsed();
    let what = "a VMM's death until the ledger shows it (polled every 20 ms)".to_owned();
    row(
        what,
        ms(took),
        "<= 100 ms",
        Some(took <= Duration::from_millis(100)),
    );

    progress("everything ends");
    let open: Vec<_> = fleet
        .contracts()?
        .into_iter()
        .filter(|c| c.state == ContractState::Active)
        .map(|c| c.id)
        .collect();
    let begun = Instant::now();
    fleet.cancel(&open)?;
    fleet.wait_released(&ids, Duration::from_secs(300))?;
    row(
        format!("{} contracts cancelled, all released", open.len()),
        ms(begun.elapsed()),
        "",
        None,
    );
    let now = fleet.status()?.capacity; // free disk space is the whole machine's and changes by itself
    let shares = |c: &hostd::surface::model::CapacityStatus| (c.vcpus, c.memory_mib, c.ports);
    let exact = shares(&now) == shares(&free) && fleet.leftovers()?.is_empty();
    row(
        "capacity afterwards".into(),
        if exact { "exact" } else { "off" }.into(),
        "exact",
        Some(exact),
    );
    let books = fleet.invariants()?;
    ensure!(
        books.violations.is_empty(),
        "the ledger's books: {:?}",
        books.violations
    );
    fleet.remove()?;
    Ok(rows)
}
