//! `attest fetch`: the makers' documents that evidence needs, into a folder for `attest verify --endorsements`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use attestation::Roots;
use attestation::fetch::{Event, Fetcher, Found, Outcome, Sources};
use attestation::snp::Product;
use serde_json::{Value, json};

use super::input;

/// Gets VCEK certificates, revocation lists, Intel's collateral and NVIDIA's manifests. What the folder has and is still
/// good isn't asked for again; nothing comes into it that its maker didn't sign.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 all is there, 2 something is missing (each is named).
Example: attest fetch report.bin --out endorsements && attest verify report.bin --endorsements endorsements")]
pub(super) struct Args {
    /// Evidence of any kind, or a bundle
    evidence: PathBuf,
    /// The folder; made if it isn't there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Ask nobody: only say what the folder has and what is missing
    #[arg(long)]
    offline: bool,
    /// Renew what ends within so many hours
    #[arg(long, value_name = "HOURS", default_value_t = 24)]
    renew: u16,
    /// The processor, where a report of version 2 doesn't say it: milan or genoa
    #[arg(long)]
    product: Option<Product>,
    /// AMD's key distribution service, or a mirror of it
    #[arg(long, value_name = "URL")]
    kds: Option<String>,
    /// Intel's provisioning certification service, or a PCCS
    #[arg(long, value_name = "URL")]
    pcs: Option<String>,
    /// NVIDIA's service of reference manifests
    #[arg(long, value_name = "URL")]
    rim: Option<String>,
    /// NVIDIA's OCSP responder
    #[arg(long, value_name = "URL")]
    ocsp: Option<String>,
    /// A test root to believe, too (DER or PEM)
    #[arg(long, value_name = "FILE")]
    trust_root: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let mut roots = Roots::pinned();
    for path in &args.trust_root {
        roots = roots.with_test_root(&input::root(path)?)?;
    }
    let mut given = input::Found::default();
    let evidence =
        input::evidence(&args.evidence, &mut given).with_context(|| args.evidence.display().to_string())?;
    let [kds, pcs, rim, ocsp] = [&args.kds, &args.pcs, &args.rim, &args.ocsp].map(Option::as_deref);
    let sources = Sources::new(kds, pcs, rim, ocsp)?;
    let sources = Some(sources).filter(|_| !args.offline);
    let fetcher = Fetcher::new(&args.out, sources, roots)?.with_product(args.product);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ahead = u64::from(args.renew) * 3600;
    let mut hear = |event: Event<'_>| match event {
        Event::Waits {
            document,
            error,
            pause,
        } => eprintln!("waiting  {document}: {error}; again in {} s", pause.as_secs()),
        Event::Done(found) => eprintln!("{}", line(found)),
    };
    let completing = fetcher.complete(&evidence, &given.endorsements, input::now(), ahead, &mut hear);
    let (found, needs) = runtime.block_on(completing);
    for gap in &needs.gaps {
        eprintln!("missing  {gap}");
    }
    let complete = needs.gaps.is_empty() && found.iter().all(|found| !found.files.is_empty());
    if args.json {
        let documents: Vec<Value> = found.iter().map(show).collect();
        outln!(
            "{:#}",
            json!({ "complete": complete, "documents": documents, "missing": needs.gaps })
        );
    } else if found.is_empty() && needs.gaps.is_empty() {
        eprintln!("attest: this evidence needs nothing from its maker");
    }
    Ok(ExitCode::from(if complete { 0 } else { 2 }))
}

fn line(found: &Found) -> String {
    let document = &found.document;
    match &found.outcome {
        Outcome::Kept => format!("kept     {document}"),
        Outcome::Fetched => format!("fetched  {document}"),
        Outcome::Unkept(why) => format!("lost     {document}: {why}"),
        Outcome::Stale(why) => format!("old      {document}: good for now, but could not be renewed: {why}"),
        Outcome::Missing(why) => format!("missing  {document}: {why}"),
    }
}

fn show(found: &Found) -> Value {
    let (state, why) = match &found.outcome {
        Outcome::Kept => ("kept", None),
        Outcome::Fetched => ("fetched", None),
        Outcome::Unkept(why) => ("lost", Some(why.to_string())),
        Outcome::Stale(why) => ("old", Some(why.to_string())),
        Outcome::Missing(why) => ("missing", Some(why.to_string())),
    };
    json!({
        "document": found.document.to_string(),
        "state": state,
        "why": why,
        "files": found.files,
        "good_until": found.until,
    })
}
