//! `attest verify`, and the policy files that it reads.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use attestation::{
    AnyEvidence, AttestationResult, Binding, Evidence, Grade, GuestKeys, Outcome, Policy, Reason,
    Requirement, Roots, Verdict, refuse_malformed, settings_digest, unreadable, verify_any,
};

use super::input::{self, Found, NoEvidence};
use super::pins;

const POLICY_FILE_MAX: u64 = 1024 * 1024;
/// The ledger's own bound.
const USER_DATA_MAX: u64 = 64 * 1024;
const POLICY_TEMPLATE: &str = include_str!("policy.toml");

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Evidence: an SNP report, a TDX quote, GPU evidence, a TPM quote (raw, hex, base64 or JSON), this program's CBOR,
    /// or a bundle with endorsements
    evidence: PathBuf,
    /// Certificates, CRLs, Intel's collateral, NVIDIA's manifests: files, or folders in which what fits is found
    #[arg(long, value_name = "PATH")]
    endorsements: Vec<PathBuf>,
    /// The time that counts: Unix seconds, 2026-08-19 or 2026-08-19T14:09:01Z [default: now]
    #[arg(long, value_name = "TIME", value_parser = input::time)]
    at: Option<u64>,
    /// Policy file (see `attest policy init`)
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The REPORT_DATA that the report must have: all 64 bytes. For a GPU on its own also 32, for a TPM fewer: the nonce
    #[arg(long, value_name = "HEX", value_parser = expected)]
    expect_report_data: Option<Expected>,
    /// Trust this root certificate too; the result is then marked `test-root`
    #[arg(long, value_name = "FILE")]
    trust_root: Vec<PathBuf>,
    /// A launch measurement to accept (repeat for more)
    #[arg(long, value_name = "HEX", value_parser = input::hex_bytes::<48>)]
    measurement: Vec<[u8; 48]>,
    /// What must have been checked for the verdict `verified`: freshness, revocation, measurement, tcb
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    require: Vec<Requirement>,
    /// The least grade to accept: host-signed, host-verified, hardware-verified
    #[arg(long, value_name = "GRADE", value_parser = grade)]
    min_grade: Option<Grade>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    contract: ContractArgs,
    #[command(flatten)]
    pins: PinArgs,
}

/// A Decent Cloud contract that the evidence must be bound to.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Contract (what HOST_DATA and REPORT_DATA must be bound to)")]
struct ContractArgs {
    /// Contract id
    #[arg(long, value_name = "HEX", value_parser = input::hex_bytes::<32>, requires_all = ["ledger", "nonce"],
        conflicts_with = "expect_report_data")]
    contract: Option<[u8; 32]>,
    /// The ledger's id: a principal, or its bytes in hex
    #[arg(long, value_name = "PRINCIPAL|HEX", value_parser = LedgerParser, requires = "contract")]
    ledger: Option<Ledger>,
    /// The ledger's nonce for this evidence
    #[arg(long, value_name = "HEX", value_parser = input::hex_bytes::<32>, requires = "contract")]
    nonce: Option<[u8; 32]>,
    /// The .pub files given to `decent rent --ssh-key`, in the same order: the VM must say that it let in these keys
    /// (repeat for more). Without this and --user-data the settings aren't checked
    #[arg(long, value_name = "FILE", requires = "contract")]
    ssh_key: Vec<PathBuf>,
    /// The file given to `decent rent --user-data`: the VM must say that it applied it, or none if only --ssh-key is
    /// given
    #[arg(long, value_name = "FILE", requires = "contract")]
    user_data: Option<PathBuf>,
    /// The contract's salt (`decent evidence` prints it): the contract id must be the digest of it and of the settings,
    /// so that HOST_DATA names what the VM may be set up with. No --ssh-key and no --user-data then means: none
    #[arg(long, value_name = "HEX", value_parser = input::hex_bytes::<32>, requires = "contract")]
    salt: Option<[u8; 32]>,
}

/// What to take along; only written when verified.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Pins (written only when verified)")]
struct PinArgs {
    /// How SSH reaches the VM, for the known_hosts line
    #[arg(long, value_name = "HOST[:PORT]", requires = "out_known_hosts")]
    known_hosts: Option<pins::HostPort>,
    /// Write a known_hosts file with the VM's SSH host key
    #[arg(long, value_name = "FILE", requires = "known_hosts")]
    out_known_hosts: Option<PathBuf>,
    /// Write the TLS key's pin (curl --pinnedpubkey)
    #[arg(long, value_name = "FILE")]
    out_tls_pin: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum PolicyCommand {
    /// Print a policy file with every setting explained
    Init,
    /// Read a policy file strictly
    Check {
        /// The file
        file: PathBuf,
    },
}

/// What evidence must carry: 1 to 64 bytes.
#[derive(Clone, Debug)]
struct Expected(Vec<u8>);

fn expected(text: &str) -> Result<Expected, String> {
    let bytes = hex::decode(text.strip_prefix("0x").unwrap_or(text)).map_err(|e| e.to_string())?;
    match bytes.len() {
        1..=64 => Ok(Expected(bytes)),
        len => Err(format!("expected at most 64 bytes in hex, found {len}")),
    }
}

/// A ledger's id.
#[derive(Clone, Debug)]
struct Ledger(Vec<u8>);

#[derive(Clone, Debug)]
struct LedgerParser;

impl clap::builder::TypedValueParser for LedgerParser {
    type Value = Ledger;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<Ledger, clap::Error> {
        let parse = |text: &str| input::ledger(text).map(Ledger);
        clap::builder::TypedValueParser::parse_ref(&parse, command, arg, value)
    }
}

fn grade(text: &str) -> Result<Grade, String> {
    match text {
        "host-signed" => Ok(Grade::HostSigned),
        "host-verified" => Ok(Grade::HostVerified),
        "hardware-verified" => Ok(Grade::HardwareVerified),
        _ => Err("known: host-signed, host-verified, hardware-verified".to_owned()),
    }
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let at = args.at.unwrap_or_else(input::now);
    let mut found = input::endorsements(&args.endorsements)?;
    let mut roots = Roots::pinned();
    for path in &args.trust_root {
        roots = roots.with_test_root(&input::root(path)?)?;
    }
    let result = match input::evidence(&args.evidence, &mut found) {
        Ok(evidence) => judge(args, &evidence, &found, &roots, at)?,
        Err(NoEvidence::Malformed(why)) => refuse_malformed(&why, at),
        Err(NoEvidence::Unreadable(error)) => unreadable(&format!("{:#}", anyhow::Error::from(error)), at),
    };
    if args.json {
        outln!("{:#}", result.to_json());
    } else {
        out!("{result}");
    }
    Ok(match result.verdict {
        Verdict::Verified => ExitCode::SUCCESS,
        Verdict::Refused => ExitCode::from(1),
        Verdict::Indeterminate => ExitCode::from(2),
    })
}

fn judge(
    args: &Args,
    evidence: &AnyEvidence,
    found: &Found,
    roots: &Roots,
    at: u64,
) -> Result<AttestationResult> {
    let no_keys = GuestKeys::default();
    let vm = match evidence {
        AnyEvidence::Vm(composite) => Some(&composite.vm),
        _ => None,
    };
    let mut policy = policy_of(args, vm.map_or(&no_keys, |vm| &vm.guest_keys))?;
    let expected = args
        .expect_report_data
        .as_ref()
        .map(|Expected(bytes)| bytes.as_slice());
    let whole = expected.map(|expected| report_data(expected, evidence));
    policy.report_data = whole.flatten().or(policy.report_data);
    let mut result = verify_any(evidence, &found.endorsements, roots, &policy, at);
    if let (Some(expected), Some(None)) = (expected, whole) {
        let reason = match evidence {
            AnyEvidence::Gpu(_) => Reason::NonceMismatch,
            _ => Reason::ReportDataMismatch,
        };
        result = result.with_short_report_data(expected, reason);
    }
    result
        .warnings
        .extend(found.passed_over.iter().map(|file| format!("not used: {file}")));
    let result = found
        .unreadable
        .iter()
        .fold(result, |result, file| result.with_unreadable(file));
    let wants_pins = args.pins.out_known_hosts.is_some() || args.pins.out_tls_pin.is_some();
    if wants_pins && result.is_verified() {
        let evidence = vm.context("no pins are written: this evidence holds no keys of a VM")?;
        write_pins(args, evidence, &result)?;
    }
    Ok(result)
}

/// The 64 bytes that are meant. A GPU's nonce has 32, a TPM takes any number: zeros stand behind. `None`: the evidence has
/// room for more, and nobody may have meant that.
fn report_data(expected: &[u8], evidence: &AnyEvidence) -> Option<[u8; 64]> {
    let fits = match evidence {
        AnyEvidence::Tpm(_) | AnyEvidence::Azure(_) => true,
        AnyEvidence::Gpu(_) => expected.len() >= 32,
        _ => expected.len() == 64,
    };
    let mut whole = [0; 64];
    whole[..expected.len()].copy_from_slice(expected);
    fits.then_some(whole)
}

fn policy_of(args: &Args, keys: &GuestKeys) -> Result<Policy> {
    let mut policy = match &args.policy {
        Some(path) => read_policy(path)?,
        None => Policy::default(),
    };
    if !args.measurement.is_empty() {
        policy.allowed_measurements = Some(args.measurement.clone());
    }
    if let (Some(contract), Some(Ledger(ledger)), Some(nonce)) =
        (args.contract.contract, &args.contract.ledger, args.contract.nonce)
    {
        policy.report_data = Some(
            Binding {
                ledger,
                contract,
                nonce,
            }
            .report_data(keys),
        );
        policy.host_data = Some(contract);
    }
    policy.salt = args.contract.salt.or(policy.salt);
    policy.settings = settings_of(&args.contract)?.or(policy.settings);
    if args.contract.salt.is_some() {
        // A contract may have neither keys nor user data.
        policy.settings = policy.settings.or(Some(settings_digest([].into_iter(), &[])));
    }
    policy.min_grade = args.min_grade.unwrap_or(policy.min_grade);
    policy.required.extend(args.require.iter().copied());
    Ok(policy)
}

/// What the VM must have been set up with; `None`: the caller gave no settings.
fn settings_of(args: &ContractArgs) -> Result<Option<[u8; 32]>> {
    if args.ssh_key.is_empty() && args.user_data.is_none() {
        return Ok(None);
    }
    let mut keys = Vec::new();
    for path in &args.ssh_key {
        keys.extend(input::ssh_keys(path)?);
    }
    let user_data = match &args.user_data {
        Some(path) => input::read(path, USER_DATA_MAX)?,
        None => Vec::new(),
    };
    Ok(Some(settings_digest(keys.iter().map(String::as_str), &user_data)))
}

/// The keys count only if the report binds them, or if the caller is content with the host's word.
fn write_pins(args: &Args, evidence: &Evidence, result: &AttestationResult) -> Result<()> {
    let bound = args.contract.contract.is_some()
        && result
            .checks
            .iter()
            .any(|c| c.id == "appraise.report-data" && c.outcome == Outcome::Passed);
    ensure!(
        bound || result.grade == Grade::HostSigned,
        "no pins are written: give --contract, --ledger and --nonce, so that the VM's keys are known to be its own"
    );
    let keys = &evidence.guest_keys;
    if let (Some(host), Some(path)) = (&args.pins.known_hosts, &args.pins.out_known_hosts) {
        let key = keys
            .ssh_host_key
            .as_ref()
            .context("the evidence has no SSH host key")?;
        pins::write(path, host.known_hosts_line(key).as_bytes())?;
    }
    if let Some(path) = &args.pins.out_tls_pin {
        let spki = keys.tls_spki.as_ref().context("the evidence has no TLS key")?;
        pins::write(path, pins::tls_pin(spki).as_bytes())?;
    }
    Ok(())
}

fn read_policy(path: &Path) -> Result<Policy> {
    let text = input::read(path, POLICY_FILE_MAX)?;
    let Ok(text) = std::str::from_utf8(&text) else {
        bail!("{} is not UTF-8", path.display());
    };
    let file = toml::from_str(text).with_context(|| format!("{} is not a policy", path.display()))?;
    Policy::from_file(&file).with_context(|| format!("{}", path.display()))
}

pub(super) fn policy(command: &PolicyCommand) -> Result<ExitCode> {
    match command {
        PolicyCommand::Init => out!("{POLICY_TEMPLATE}"),
        PolicyCommand::Check { file } => {
            read_policy(file)?;
            outln!("{} is a valid policy", file.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_a_policy_that_asks_for_nothing_beyond_the_default() {
        let file = toml::from_str(POLICY_TEMPLATE).unwrap();
        assert_eq!(Policy::from_file(&file).unwrap(), Policy::default());
        // With every setting switched on it is still one.
        let on: String = POLICY_TEMPLATE
            .lines()
            .map(|line| line.strip_prefix("#= ").unwrap_or(line))
            .fold(String::new(), |text, line| text + line + "\n");
        let file = toml::from_str(&on).unwrap();
        assert_ne!(Policy::from_file(&file).unwrap(), Policy::default());
    }
}
