//! What can be typed.

use std::path::PathBuf;

use candid::Principal;
use clap::{Args, Parser, Subcommand};
use icrc_ledger_types::icrc1::account::Account;
use ledger::api::{
    AtRest, Digest32, Grade, Measurement, PortRequest, Quota, Request, TcbFloor, TpmName, VmKind,
};
use ledger::client::KeyKind;

use crate::parse;

const AFTER: &str = "\
A first contract:
  decent key new --out dev.pem                        make a key; it is you
  export DECENT_LEDGER=client.toml DECENT_KEY=dev.pem
  decent developer register
  decent match --vcpus 1 --memory-mib 512 --storage-gib 4 --period 2h --kind sev-snp
  decent rent  --vcpus 1 --memory-mib 512 --storage-gib 4 --period 2h --kind sev-snp \\
      --image-url https://…/manifest.json --image-digest HEX --measurement HEX \\
      --ssh-key ~/.ssh/id_ed25519.pub --port tcp/22 --wait
  decent evidence CONTRACT --out evidence.cbor        then: attest verify evidence.cbor …

Amounts are DCT with at most 9 decimals (12.5). Periods are seconds, or 90m, 2h, 30d.
client.toml (URL, canister id, pinned root key) comes from whoever runs the ledger.

Exit codes: 0 done; 1 refused by the ledger; 2 wrong usage, or the ledger can't be reached or trusted.";

/// The Decent Cloud ledger's client: find, rent, watch and pay for VMs; register as a provider
#[derive(Parser)]
#[command(name = "decent", version, after_help = AFTER)]
pub(crate) struct Cli {
    /// The ledger's client.toml
    #[arg(long, global = true, env = "DECENT_LEDGER", value_name = "FILE")]
    pub(crate) ledger: Option<PathBuf>,
    /// Who you are: a PEM private key (`decent key new` makes one). Reading needs none
    #[arg(long, global = true, env = "DECENT_KEY", value_name = "PEM")]
    pub(crate) key: Option<PathBuf>,
    /// Print results as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make and show keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// What this ledger is: name, time, fees; whether it is a demo
    Info,
    /// Your balance, or somebody's
    Balance {
        /// A principal, or an ICRC-1 account
        account: Option<Account>,
    },
    /// Send DCT
    Transfer {
        /// A principal, or an ICRC-1 account
        to: Account,
        /// DCT
        #[arg(value_parser = parse::amount)]
        amount: u64,
        /// Not from your account, but from one that has approved you (ICRC-2)
        #[arg(long, value_name = "ACCOUNT")]
        from: Option<Account>,
    },
    /// Let somebody spend your DCT, transfer fees included (ICRC-2)
    #[command(after_help = "\
It takes the place of what they might spend before; 0 ends it. It is no promise that the DCT are there.")]
    Approve {
        /// Who may: a principal, or an ICRC-1 account
        spender: Account,
        /// DCT
        #[arg(value_parser = parse::amount)]
        amount: u64,
        /// Until then: 30d, 12h, or @SECONDS since 1970
        #[arg(long, value_parser = parse::expiry)]
        expires: Option<parse::Expiry>,
    },
    /// How much of an account's DCT somebody else may spend (ICRC-2)
    Allowance {
        /// Who may: a principal, or an ICRC-1 account
        spender: Account,
        /// Of this account, in place of yours
        #[arg(long, value_name = "ACCOUNT")]
        of: Option<Account>,
    },
    /// The token's last movements, each checked against the hash that the ledger signs (ICRC-3)
    History {
        /// So many blocks
        #[arg(long, default_value_t = 20, value_name = "N")]
        last: u64,
        /// Of them, only what concerns this account
        #[arg(long, value_name = "ACCOUNT")]
        of: Option<Account>,
    },
    /// Be a provider
    #[command(subcommand)]
    Provider(ProviderCommand),
    /// Let a host act for you, its provider; look at hosts
    #[command(subcommand)]
    Host(HostCommand),
    /// All hosts, with what the ledger verified of each
    Hosts,
    /// Be a developer
    #[command(subcommand)]
    Developer(DeveloperCommand),
    /// Offerings that fit a request, best first
    Match(RequestArgs),
    /// Offerings that don't fit a request, each with every reason
    WhyNot(RequestArgs),
    /// All offerings
    Offerings,
    /// Rent a VM: money goes to escrow, the contract's id comes back
    Rent(Box<RentCommand>),
    /// Look at and change contracts
    #[command(subcommand)]
    Contract(ContractCommand),
    /// A contract's verified evidence, for you to verify again
    Evidence {
        /// The contract's id, or its first digits if it is yours
        contract: String,
        /// Write the evidence (CBOR) here
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Somebody's reputation with its history
    Reputation {
        /// Whose; without it yours
        account: Option<Principal>,
    },
    /// Spend reputation to lower that of a contract's other side, by twice as much
    Penalise {
        /// The contract's id, or its first digits if it is yours
        contract: String,
        /// How much of your own to spend
        #[arg(long, value_name = "REPUTATION", value_parser = parse::amount)]
        amount: u64,
        /// Why, for everybody to read
        #[arg(long)]
        reason: String,
        /// The same penalty with the same memo happens once; without it a random one
        #[arg(long)]
        memo: Option<u64>,
    },
    /// The block reward that runs now: what is shared, when, and by how many
    Rewards,
    /// The books, computed anew: supply = Σ balances, funded = held + released + refunded
    Invariants,
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages, one for each command
    Man {
        /// The folder, such as ~/.local/share/man/man1
        dir: PathBuf,
    },
}

#[derive(Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a new key in a new file that only you may read
    New {
        /// ed25519, p256 (as in TPMs) or secp256k1
        #[arg(long, default_value = "ed25519")]
        kind: KeyKind,
        /// Where to write it; nothing is overwritten
        #[arg(long, value_name = "PEM")]
        out: PathBuf,
    },
    /// Show the principal and the public key of a key file
    Show {
        /// The key file; without it the one of --key
        file: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
pub(crate) enum ProviderCommand {
    /// Register, or change your profile
    Register {
        /// TOML with name, domain, contact, legal_contract (SHA-256 of the contract's text, hexadecimal)
        #[arg(long, value_name = "FILE")]
        profile: PathBuf,
    },
    /// Take part in the block reward that runs; its hundredth is kept from your share
    CheckIn {
        /// And in each one after it, until stopped
        #[arg(long)]
        every_block: bool,
    },
}

#[derive(Subcommand)]
pub(crate) enum HostCommand {
    /// Sign that a host may accept, confirm and settle for you; sends nothing, so your key may stay offline
    Delegate {
        /// The host's key: its principal, or a PEM file (public or private)
        #[arg(long, value_name = "PRINCIPAL|PEM")]
        host_key: String,
        /// Your profile (TOML; see `provider register`)
        #[arg(long, value_name = "FILE")]
        profile: PathBuf,
        /// The key that the host's TPM quotes with, as `hostd evidence` names it there. You vouch that it lives in that
        /// machine's TPM; without it no contract on the host is ever host-verified
        #[arg(long, value_name = "name:HEX", value_parser = parse::tpm_name)]
        attestation_key: Option<TpmName>,
        /// When it ends: a period from now (asks the ledger for its time), or @SECONDS since 1970 (asks nobody)
        #[arg(long, default_value = "365d", value_parser = parse::expiry)]
        expires: parse::Expiry,
        /// Where to write it: Candid, for hostd's `delegation`
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// End a host's key for ever: stolen, lost, or sold. It takes no contracts any more; those that it has can end
    Retire {
        /// Its principal
        host: Principal,
    },
    /// One host: whose it is, and what the ledger verified of what it runs
    Show {
        /// Its principal
        host: Principal,
    },
    /// A host's verified evidence, for you to verify again
    Evidence {
        /// Its principal
        host: Principal,
        /// Write the evidence here, and beside it (FILE.policy.toml) what it must hold
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
pub(crate) enum DeveloperCommand {
    /// Register
    Register,
}

/// All request fields of the paper (5.3), and what this product adds.
#[derive(Args, Clone)]
pub(crate) struct RequestArgs {
    /// The most you pay per hour, DCT; without it any price
    #[arg(long, value_name = "DCT", value_parser = parse::amount)]
    pub(crate) max_price: Option<u64>,
    /// Virtual CPUs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) vcpus: u32,
    /// Memory, MiB
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(64..))]
    pub(crate) memory_mib: u64,
    /// Disk, GiB, or `unlimited`
    #[arg(long, default_value = "4", value_parser = parse::quota)]
    pub(crate) storage_gib: Quota,
    /// Bandwidth, Mbit/s, or `unlimited`
    #[arg(long, default_value = "1", value_parser = parse::quota)]
    pub(crate) bandwidth_mbps: Quota,
    /// The least reputation of the provider
    #[arg(long, default_value = "0", value_name = "REPUTATION", value_parser = parse::amount)]
    pub(crate) min_provider_reputation: u64,
    /// How long: seconds, or 90m, 2h, 30d
    #[arg(long, value_parser = parse::period)]
    pub(crate) period: u64,
    /// plain, sev-snp or tdx
    #[arg(long, default_value = "plain", value_parser = parse::kind)]
    pub(crate) kind: VmKind,
    /// host-signed, host-verified or hardware-verified; the contract is never confirmed below it. Default: the best
    /// that the kind can have (plain: host-signed, others: hardware-verified)
    #[arg(long, value_parser = parse::grade)]
    pub(crate) min_grade: Option<Grade>,
    /// any, or encrypted: LUKS2 with a key of its own, or no contract
    #[arg(long, default_value = "any", value_parser = parse::at_rest)]
    pub(crate) at_rest: AtRest,
    /// Whole GPUs
    #[arg(long, default_value_t = 0)]
    pub(crate) gpus: u32,
    /// Region, if it matters
    #[arg(long)]
    pub(crate) region: Option<String>,
}

impl RequestArgs {
    /// The request that these flags mean.
    pub(crate) fn request(self) -> Request {
        let default = if self.kind == VmKind::Plain {
            Grade::HostSigned
        } else {
            Grade::HardwareVerified
        };
        Request {
            max_price_per_hour: self.max_price.unwrap_or(u64::MAX),
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            storage_gib: self.storage_gib,
            bandwidth_mbps: self.bandwidth_mbps,
            min_provider_reputation: self.min_provider_reputation,
            period_s: self.period,
            kind: self.kind,
            min_grade: self.min_grade.unwrap_or(default),
            at_rest: self.at_rest,
            gpus: self.gpus,
            region: self.region,
        }
    }
}

#[derive(Args)]
pub(crate) struct RentCommand {
    #[command(flatten)]
    pub(crate) request: RequestArgs,
    /// The offering picked; without it the first that `match` shows
    #[arg(long, value_name = "NUMBER")]
    pub(crate) offering: Option<u64>,
    /// Where the image's manifest is (its files lie beside it)
    #[arg(long, value_name = "URL")]
    pub(crate) image_url: String,
    /// SHA-256 of the manifest: this alone decides what boots
    #[arg(long, value_name = "HEX", value_parser = parse::hexadecimal::<32>)]
    pub(crate) image_digest: Digest32,
    /// OpenSSH public key file; may be given again
    #[arg(long, value_name = "FILE.pub")]
    pub(crate) ssh_key: Vec<PathBuf>,
    /// cloud-init user data, at most 64 KiB. The ledger is public: no secrets
    #[arg(long, value_name = "FILE")]
    pub(crate) user_data: Option<PathBuf>,
    /// A DNS name to route to the VM, beside the derived one; `contract show` says which TXT record proves it
    #[arg(long, value_name = "NAME")]
    pub(crate) tls_name: Option<String>,
    /// A port to lease, as in tcp/22; may be given again
    #[arg(long, value_name = "tcp/PORT", value_parser = parse::port)]
    pub(crate) port: Vec<PortRequest>,
    /// A launch measurement that you accept (`attest measure` computes it); may be given again
    #[arg(long, value_name = "HEX", value_parser = parse::hexadecimal::<48>)]
    pub(crate) measurement: Vec<Measurement>,
    /// Least firmware versions of the platform, as in snp=22,microcode=213
    #[arg(long, value_name = "NAME=N,…", value_parser = parse::tcb)]
    pub(crate) min_tcb: Option<TcbFloor>,
    /// The most that may go to escrow for each VM, DCT; without it what `match` says now
    #[arg(long, value_name = "DCT", value_parser = parse::amount)]
    pub(crate) max_total: Option<u64>,
    /// So many VMs, all or none (at most 64): on different hosts first, each a contract of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64), conflicts_with = "tls_name")]
    pub(crate) nodes: u16,
    /// The same request with the same memo is one contract, so it can be repeated safely; without it a random one. Further
    /// nodes take the memos behind it
    #[arg(long)]
    pub(crate) memo: Option<u64>,
    /// Wait until the VM is confirmed (or the contract ended), telling what happens
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Subcommand)]
pub(crate) enum ContractCommand {
    /// Everything about one contract
    Show {
        /// The contract's id, or its first digits if it is yours
        contract: String,
    },
    /// Your contracts, as developer or provider
    List {
        /// Of somebody else
        #[arg(long, value_name = "PRINCIPAL")]
        of: Option<Principal>,
    },
    /// Tell what happens to a contract until it has ended
    Watch {
        /// The contract's id, or its first digits if it is yours
        contract: String,
        /// Stop as soon as the VM is confirmed
        #[arg(long)]
        until_active: bool,
    },
    /// Pay for more time
    Extend {
        /// The contract's id, or its first digits if it is yours
        contract: String,
        /// How much longer: seconds, or 90m, 2h, 30d
        #[arg(long, value_parser = parse::period)]
        period: u64,
        /// The most that may go to escrow, DCT; without it the contract's own price for that time
        #[arg(long, value_name = "DCT", value_parser = parse::amount)]
        max_total: Option<u64>,
        /// The same extension with the same memo happens once; without it a random one
        #[arg(long)]
        memo: Option<u64>,
    },
    /// End a contract now; unused money comes back
    Cancel {
        /// The contract's id, or its first digits if it is yours
        contract: String,
    },
    /// Push an overdue step, and pay what has accrued
    Settle {
        /// The contract's id, or its first digits if it is yours
        contract: String,
    },
}
