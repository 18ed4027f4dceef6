//! What the commands do.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use candid::Principal;
use clap::CommandFactory;
use ledger::api::{
    Contract, ContractId, ContractState, EvidenceRecord, ExtendArgs, Grade, HostStatement, PenaliseArgs,
    TimeNs, TpmName,
};
use ledger::client::{Client, ClientError, ClientFile, Key};
use ledger::crypto;
use serde::Serialize;
use serde_json::json;

use crate::args::{
    Cli, Command, ContractCommand, DeveloperCommand, HostCommand, KeyCommand, ProviderCommand,
};
use crate::{host, is_refusal, parse, show};

/// How often a call that may safely be repeated is repeated when the way to the ledger breaks.
const ATTEMPTS: u32 = 5;

/// The ledger said no, in another way than by an error of its own (a contract that ended before it was active).
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct SaidNo(pub(crate) String);

/// Whether the ledger refused (exit code 1), rather than something being broken (2).
pub(crate) fn refused(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.is::<SaidNo>() || cause.downcast_ref::<ClientError>().is_some_and(is_refusal))
}

/// Settings and where results go.
pub(crate) struct Session {
    ledger: Option<PathBuf>,
    key: Option<PathBuf>,
    json: bool,
}

/// Does what was typed.
pub(crate) async fn run(cli: Cli) -> anyhow::Result<()> {
    let session = Session {
        ledger: cli.ledger,
        key: cli.key,
        json: cli.json,
    };
    match cli.command {
        Command::Key(command) => session.keys(command),
        Command::Info => {
            let info = session.reader()?.info().await?;
            session.print(&info, || show::info(&info))
        }
        Command::Balance { account } => session.balance(account).await,
        Command::Transfer { to, amount, from } => session.transfer(from, to, amount).await,
        Command::Approve {
            spender,
            amount,
            expires,
        } => session.approve(spender, amount, expires).await,
        Command::Allowance { spender, of } => session.allowance(of, spender).await,
        Command::History { last, of } => session.history(last, of).await,
        Command::Provider(ProviderCommand::Register { profile }) => {
            let (client, profile) = (session.signer()?, parse::profile(&profile)?);
            repeat(|| client.register_provider(profile.clone())).await?;
            session.registered(&client, "a provider")
        }
        Command::Provider(ProviderCommand::CheckIn { every_block }) => session.check_in(every_block).await,
        Command::Developer(DeveloperCommand::Register) => {
            let client = session.signer()?;
            repeat(|| client.register_developer()).await?;
            session.registered(&client, "a developer")
        }
        Command::Host(HostCommand::Delegate {
            host_key,
            profile,
            attestation_key,
            expires,
            out,
        }) => {
            session
                .delegate(&host_key, &profile, attestation_key, expires, &out)
                .await
        }
        Command::Host(HostCommand::Retire { host }) => {
            let client = session.signer()?;
            repeat(|| client.retire_host(host)).await?;
            session.print(&json!({ "retired": host }), || {
                format!("{host} never acts for you again\n")
            })
        }
        Command::Host(HostCommand::Show { host }) => {
            let client = session.reader()?;
            let (found, now) = (client.host(host).await?, client.info().await?.now);
            session.print(&found, || host::page(&found, now))
        }
        Command::Host(HostCommand::Evidence { host, out }) => {
            session.host_evidence(host, out.as_deref()).await
        }
        Command::Hosts => {
            let client = session.reader()?;
            let (found, now) = (client.hosts().await?, client.info().await?.now);
            session.print(&found, || host::list(&found, now))
        }
        Command::Match(request) => {
            let found = session.reader()?.match_offerings(request.request()).await?;
            session.print(&found, || show::matches(&found))
        }
        Command::WhyNot(request) => {
            let found = session.reader()?.why_not(request.request()).await?;
            session.print(&found, || show::misfits(&found))
        }
        Command::Offerings => {
            let found = session.reader()?.offerings().await?;
            session.print(&found, || show::offerings(&found))
        }
        Command::Rent(command) => session.rent(*command).await,
        Command::Contract(command) => session.contract(command).await,
        Command::Evidence { contract, out } => session.evidence(&contract, out.as_deref()).await,
        Command::Reputation { account } => {
            let client = session.reader()?;
            let account = session.or_own(account)?;
            let found = client.reputation(account).await?;
            session.print(&found, || show::reputation(&found))
        }
        Command::Penalise {
            contract,
            amount,
            reason,
            memo,
        } => {
            let client = session.signer()?;
            let arguments = PenaliseArgs {
                contract: resolve(&client, &contract).await?,
                amount,
                reason,
                memo: match memo {
                    Some(memo) => memo,
                    None => random()?,
                },
            };
            let done = repeat(|| client.penalise(arguments.clone())).await?;
            session.print(&done, || show::penalty(&done))
        }
        Command::Rewards => {
            let found = session.reader()?.rewards().await?;
            session.print(&found, || show::rewards(&found))
        }
        Command::Invariants => {
            let found = session.reader()?.invariants().await?;
            session.print(&found, || show::invariants(&found))?;
            if found.violations.is_empty() {
                return Ok(());
            }
            Err(SaidNo("the books are not in order".to_owned()).into())
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "decent", &mut std::io::stdout());
            Ok(())
        }
        Command::Man { dir } => {
            let cannot = || format!("cannot write to {}", dir.display());
            std::fs::create_dir_all(&dir).with_context(cannot)?;
            clap_mangen::generate_to(Cli::command(), &dir).with_context(cannot)
        }
    }
}

/// Repeats a call that the ledger recognises when it comes again, while the way to the ledger is broken.
pub(crate) async fn repeat<T, F: Future<Output = Result<T, ClientError>>>(
    mut call: impl FnMut() -> F,
) -> Result<T, ClientError> {
    let mut attempt = 1;
    loop {
        match call().await {
            Err(error) if error.is_transient() && attempt < ATTEMPTS => {
                eprintln!("decent: {error}; trying again");
                tokio::time::sleep(Duration::from_millis(200) * 2u32.pow(attempt)).await;
                attempt += 1;
            }
            result => return result,
        }
    }
}

impl Session {
    /// Prints a result: JSON of the type itself, or a page.
    pub(crate) fn print<T: Serialize>(&self, value: &T, page: impl FnOnce() -> String) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(value)?)?;
        } else {
            out.write_all(page().as_bytes())?;
        }
        out.flush()?;
        Ok(())
    }

    fn ledger_file(&self) -> anyhow::Result<ClientFile> {
        let path = self.ledger.as_deref().context(
            "which ledger? Give --ledger client.toml, or set DECENT_LEDGER; whoever runs the ledger has the file",
        )?;
        Ok(ClientFile::read(path)?)
    }

    pub(crate) fn own_key(&self) -> anyhow::Result<Key> {
        let path = self.key.as_deref().context(
            "who are you? Give --key PEM, or set DECENT_KEY; `decent key new --out PEM` makes a key",
        )?;
        Ok(Key::read(path)?)
    }

    /// A client that may be nobody.
    pub(crate) fn reader(&self) -> anyhow::Result<Client> {
        let key = if self.key.is_some() {
            self.own_key()?
        } else {
            Key::anonymous()
        };
        Ok(Client::connect(self.ledger_file()?.with_key(key))?)
    }

    /// A client that must be somebody.
    pub(crate) fn signer(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(self.ledger_file()?.with_key(self.own_key()?))?)
    }

    fn or_own(&self, account: Option<Principal>) -> anyhow::Result<Principal> {
        account.map_or_else(|| Ok(self.own_key()?.principal()), Ok)
    }

    fn registered(&self, client: &Client, what: &str) -> anyhow::Result<()> {
        let principal = client.principal();
        self.print(&json!({ "principal": principal }), || {
            format!("{principal} is {what}\n")
        })
    }

    fn keys(&self, command: KeyCommand) -> anyhow::Result<()> {
        let (key, file) = match command {
            KeyCommand::New { kind, out } => (Key::create(kind, &out)?, out),
            KeyCommand::Show { file } => {
                let file = file
                    .or_else(|| self.key.clone())
                    .context("which key? Give its file")?;
                (Key::read(&file)?, file)
            }
        };
        let public = hex::encode(key.public_key().unwrap_or_default());
        let principal = key.principal();
        self.print(
            &json!({ "principal": principal, "public_key": public, "file": file }),
            || {
                format!(
                    "principal   {principal}\npublic key  {public}\nfile        {} (secret)\n",
                    file.display()
                )
            },
        )
    }

    /// On the ledger's clock.
    pub(crate) async fn time_of(&self, expiry: parse::Expiry) -> anyhow::Result<TimeNs> {
        let too_far = "that is too far ahead";
        let nanos = |seconds: u64| seconds.checked_mul(1_000_000_000).context(too_far);
        match expiry {
            parse::Expiry::At(seconds) => nanos(seconds),
            parse::Expiry::In(seconds) => {
                let info = self.reader()?.info().await;
                let now = info
                    .context("the ledger's time is needed; or give --expires @SECONDS")?
                    .now;
                now.checked_add(nanos(seconds)?).context(too_far)
            }
        }
    }

    async fn delegate(
        &self,
        host: &str,
        profile: &Path,
        attestation_key: Option<TpmName>,
        expires: parse::Expiry,
        out: &Path,
    ) -> anyhow::Result<()> {
        let (provider, file) = (self.own_key()?, self.ledger_file()?);
        let (host, profile) = (host_principal(host)?, parse::profile(profile)?);
        let expires_at = self.time_of(expires).await?;
        let statement = HostStatement {
            ledger: file.canister_id,
            profile,
            host,
            expires_at,
            attestation_key,
        };
        let delegation = provider.sign_host_delegation(statement)?;
        std::fs::write(out, candid::encode_one(&delegation)?)
            .with_context(|| format!("cannot write {}", out.display()))?;
        let principal = provider.principal();
        self.print(&json!({ "provider": principal, "host": host, "expires_at": expires_at, "file": out }), || {
            format!(
                "{host} may act for {principal} until {}\nwritten to {}; give it to hostd as `delegation`\n",
                show::time(expires_at),
                out.display()
            )
        })
    }

    async fn contract(&self, command: ContractCommand) -> anyhow::Result<()> {
        match command {
            ContractCommand::Show { contract } => {
                let client = self.reader()?;
                let found = client.contract(resolve(&client, &contract).await?).await?;
                let host = client.host(found.host).await?;
                self.print(&found, || {
                    show::contract(&found) + &host::maintenance(&host, &found)
                })
            }
            ContractCommand::List { of } => {
                let of = self.or_own(of)?;
                let found = self.reader()?.account_contracts(of).await?;
                self.print(&found, || show::contracts(&found))
            }
            ContractCommand::Watch {
                contract,
                until_active,
            } => {
                let client = self.reader()?;
                let id = resolve(&client, &contract).await?;
                let found = follow(&client, id, until_active).await?;
                self.print(&found, || show::contract(&found))
            }
            ContractCommand::Extend {
                contract,
                period,
                max_total,
                memo,
            } => {
                let client = self.signer()?;
                let contract = resolve(&client, &contract).await?;
                let max_total = match max_total {
                    Some(max_total) => max_total,
                    None => {
                        let hour = client.contract(contract).await?.price_per_hour;
                        let total = (u128::from(hour) * u128::from(period)).div_ceil(3_600);
                        u64::try_from(total).context("that costs more than there is")?
                    }
                };
                let memo = match memo {
                    Some(memo) => memo,
                    None => random()?,
                };
                let arguments = ExtendArgs {
                    contract,
                    period_s: period,
                    max_total,
                    memo,
                };
                let found = repeat(|| client.extend(arguments.clone())).await?;
                self.print(&found, || show::contract(&found))
            }
            ContractCommand::Cancel { contract } => {
                let client = self.signer()?;
                let id = resolve(&client, &contract).await?;
                let found = repeat(|| client.cancel(id)).await?;
                self.print(&found, || show::contract(&found))
            }
            ContractCommand::Settle { contract } => {
                let client = self.signer()?;
                let id = resolve(&client, &contract).await?;
                let found = repeat(|| client.settle(id)).await?;
                self.print(&found, || show::contract(&found))
            }
        }
    }

    async fn check_in(&self, every_block: bool) -> anyhow::Result<()> {
        let client = self.signer()?;
        loop {
            let done = repeat(|| client.check_in()).await?;
            self.print(&done, || show::check_in(&done))?;
            if !every_block {
                return Ok(());
            }
            let info = repeat(|| client.info()).await?;
            let left = Duration::from_nanos(done.ends_at.saturating_sub(info.now)) / info.clock_rate.max(1);
            tokio::time::sleep(left + Duration::from_millis(50)).await;
        }
    }

    async fn host_evidence(&self, host: Principal, out: Option<&Path>) -> anyhow::Result<()> {
        let client = self.reader()?;
        let (record, info) = (client.host_evidence(host).await?, client.host(host).await?);
        let ledger = client.info().await?;
        let files = match out {
            Some(out) => Some(host::write(out, &info, &record, &ledger)?),
            None => None,
        };
        self.print(&record, || host::evidence(&info, &record, files.as_ref()))
    }

    async fn evidence(&self, contract: &str, out: Option<&Path>) -> anyhow::Result<()> {
        let client = self.reader()?;
        let id = resolve(&client, contract).await?;
        let (record, contract) = (client.evidence(id).await?, client.contract(id).await?);
        // What the host's quote is judged by, where the grade rests on it.
        let policy = match record.confirmation.grade {
            Grade::HostVerified => {
                let (host, ledger) = (client.host(contract.host).await?, client.info().await?);
                Some(host::policy(&host, &ledger, None)?)
            }
            _ => None,
        };
        let files = match out {
            Some(out) => Some(write_evidence(
                out,
                &record,
                &contract,
                client.principal(),
                policy.as_deref(),
            )?),
            None => None,
        };
        let ledger = client.canister_id().to_text();
        self.print(&record, || {
            show::evidence(&contract, &ledger, &record, files.as_ref())
        })
    }
}

/// The evidence, and beside it what the VM must have been set up with: what `attest verify` is given.
fn write_evidence(
    out: &Path,
    record: &EvidenceRecord,
    contract: &Contract,
    reader: Principal,
    policy: Option<&str>,
) -> anyhow::Result<show::EvidenceFiles> {
    let write = |suffix: &str, content: &[u8]| {
        let mut path = out.as_os_str().to_owned();
        path.push(suffix);
        std::fs::write(&path, content)
            .with_context(|| format!("cannot write {}", Path::new(&path).display()))?;
        Ok::<_, anyhow::Error>(path.to_string_lossy().into_owned())
    };
    let args = &contract.args;
    let keys: String = args
        .ssh_public_keys
        .iter()
        .map(|key| format!("{key}\n"))
        .collect();
    // Others get contracts without their user data.
    let settings_known = [contract.developer, contract.host].contains(&reader);
    Ok(show::EvidenceFiles {
        evidence: write("", &record.evidence)?,
        policy: policy
            .map(|policy| write(".policy.toml", policy.as_bytes()))
            .transpose()?,
        ssh_keys: match settings_known && !keys.is_empty() {
            true => Some(write(".ssh-keys", keys.as_bytes())?),
            false => None,
        },
        user_data: match settings_known && !args.user_data.is_empty() {
            true => Some(write(".user-data", &args.user_data)?),
            false => None,
        },
        settings_known,
    })
}

pub(crate) fn random() -> anyhow::Result<u64> {
    getrandom::u64().map_err(|error| anyhow::anyhow!("no random numbers from the operating system: {error}"))
}

/// A host's principal, or that of the key in a PEM file.
fn host_principal(text: &str) -> anyhow::Result<Principal> {
    let principal = match Principal::from_text(text) {
        Ok(principal) => principal,
        Err(_) => {
            let path = Path::new(text);
            let bytes = parse::file(path, 16 * 1024).with_context(|| {
                format!("{text:?} is neither a principal nor a key file that can be read")
            })?;
            let pem = String::from_utf8(bytes).with_context(|| format!("{text} is not PEM"))?;
            if pem.contains("PRIVATE KEY") {
                Key::from_pem(&pem)?.principal()
            } else {
                use p256::pkcs8::Document;
                let (_, der) =
                    Document::from_pem(&pem).map_err(|error| anyhow::anyhow!("{text}: {error}"))?;
                crypto::principal_of(der.as_bytes())?
            }
        }
    };
    if principal.as_slice().len() != 29 || principal.as_slice().last() != Some(&2) {
        bail!("{principal} is not the principal of a key");
    }
    Ok(principal)
}

/// A contract's id: all its digits, or enough of the first ones if it is the caller's.
async fn resolve(client: &Client, text: &str) -> anyhow::Result<ContractId> {
    if text.len() == 64 {
        return parse::hexadecimal(text).map_err(|error| anyhow::anyhow!("{text}: {error}"));
    }
    let wrong =
        "a contract's id has 64 hexadecimal digits; of your own contracts the first 6 or more are enough";
    if text.len() < 6 || text.len() > 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        bail!("{text:?}: {wrong}");
    }
    let text = text.to_ascii_lowercase();
    let own = client.account_contracts(client.principal()).await?;
    let mut found = own
        .iter()
        .filter(|contract| contract.id.to_string().starts_with(&text));
    match (found.next(), found.next()) {
        (Some(contract), None) => Ok(contract.id),
        (Some(_), Some(_)) => bail!("several of your contracts begin with {text}: give more digits"),
        (None, _) => bail!("none of your contracts begins with {text}; {wrong}"),
    }
}

/// Tells on stderr what happens to a contract, until it has ended (or is active, if that is enough).
pub(crate) async fn follow(client: &Client, id: ContractId, until_active: bool) -> anyhow::Result<Contract> {
    let started = Instant::now();
    let (mut last, mut refusals, mut misses) = (None, 0, 0);
    loop {
        // The height first: whatever happens after it was read ends the wait below.
        let seen = match client.wait(0, Duration::ZERO).await {
            Ok(height) => client.contract(id).await.map(|contract| (height, contract)),
            Err(error) => Err(error),
        };
        let (height, contract) = match seen {
            Ok(seen) => seen,
            Err(error) if error.is_transient() && misses < 60 => {
                if misses == 0 {
                    eprintln!("decent: {error}; trying for a minute");
                }
                misses += 1;
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        misses = 0;
        for refusal in contract.refusals.iter().skip(refusals) {
            tell(started, &format!("evidence refused: {}", show::clean(refusal)));
        }
        refusals = contract.refusals.len();
        if last.replace(contract.state) != Some(contract.state) {
            let mut text = show::state(contract.state);
            if contract.state == ContractState::Active {
                text = format!("{text}, {}", show::grade(contract.grade));
            }
            if let Some(deadline) = contract.deadline {
                text = format!("{text} (until {})", show::time(deadline));
            }
            tell(started, &text);
        }
        let done = match contract.state {
            ContractState::Ended(_) => true,
            ContractState::Active => until_active,
            _ => false,
        };
        if done {
            return Ok(contract);
        }
        // A transient failure shows up again above, where it is counted.
        let _ = client.wait(height, Duration::from_secs(20)).await;
    }
}

fn tell(started: Instant, text: &str) {
    let seconds = started.elapsed().as_secs_f64();
    if std::io::stderr().is_terminal() {
        eprintln!("\u{2192} {seconds:6.1} s  {text}");
    } else {
        eprintln!("{seconds:6.1} s  {text}");
    }
}
