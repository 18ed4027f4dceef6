//! The unified kernel image: kernel, initrd and all command lines in one signed PE file (UAPI.5), by ukify.
//!
//! Each command line is a profile. The first is the base: its sections hold unless another profile has its own.

use super::config::Config;
use super::disk::RootHash;
use super::keys::Keys;
use super::reference::PHASES;
use super::root::os_release;
use super::tools::{Job, ToolError};

const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";

/// Where systemd-boot lies in the tools folder.
pub const BOOT: &str = "usr/lib/systemd/boot/efi/systemd-bootx64.efi";

/// The job's file of microcode, if there is any.
pub const MICROCODE: &str = "microcode";

/// One command line of a kernel image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Short name.
    pub id: String,
    /// What the boot menu shows.
    pub title: String,
    /// The whole command line.
    pub cmdline: String,
}

/// The entries of the installed image.
pub fn entries(config: &Config, hash: &RootHash) -> Vec<Entry> {
    let entries = config.profiles.iter().map(|profile| Entry {
        id: profile.name.to_string(),
        title: profile.title.clone(),
        cmdline: format!("{} roothash={}", profile.cmdline, hash.hex()),
    });
    entries.collect()
}

/// The entries of the live image, whose root lies in its initrd: no disk is touched, and the state is in memory.
pub fn live_entries(config: &Config) -> Vec<Entry> {
    let entries = config.profiles.iter().map(|profile| Entry {
        id: profile.name.to_string(),
        title: format!("{} (live)", profile.title),
        cmdline: format!(
            "{} root=/root.erofs fstab=no luks=no systemd.mount-extra=tmpfs:/var:tmpfs:mode=0755 \
             systemd.mask=systemd-repart.service",
            profile.cmdline
        ),
    });
    entries.collect()
}

/// Makes a signed kernel image out of the job's files `vmlinuz`, `initrd` and [`MICROCODE`], and returns it.
pub fn build(
    job: &Job<'_>,
    config: &Config,
    keys: &Keys,
    release: &str,
    entries: &[Entry],
) -> Result<Vec<u8>, ToolError> {
    keys.lend(job, &["db.key", "db.crt", "pcr.key", "pcr.pub"])?;
    job.write("os-release", os_release(config, config.name.as_str()))?;
    let mut args: Vec<String> = [
        "build",
        "--linux=vmlinuz",
        "--initrd=initrd",
        "--os-release=@os-release",
        "--pcr-private-key=pcr.key",
        "--pcr-public-key=pcr.pub",
        "--pcr-banks=sha256",
        "--signtool=sbsign",
        "--secureboot-private-key=db.key",
        "--secureboot-certificate=db.crt",
        "--output=uki.efi",
    ]
    .map(str::to_owned)
    .to_vec();
    args.extend([
        format!("--stub={STUB}"),
        format!("--uname={release}"),
        format!("--phases={}", phase_paths().join(",")),
    ]);
    if job.path(MICROCODE).exists() {
        args.push(format!("--microcode={MICROCODE}"));
    }
    for (index, entry) in entries.iter().enumerate() {
        let (profile, cmdline) = (format!("profile-{index}"), format!("cmdline-{index}"));
        job.write(&profile, format!("ID={}\nTITLE={}\n", entry.id, entry.title))?;
        job.write(&cmdline, &entry.cmdline)?;
        let own = [format!("--profile=@{profile}"), format!("--cmdline=@{cmdline}")];
        if index == 0 {
            args.extend(own);
        } else {
            // systemd-boot 257 starts the first entry in the order of `IMAGE_ID`, version and file name. It takes the
            // boot counter out of the base profile's file name alone, which would then come last.
            let (output, os_release_file) = (format!("{profile}.efi"), format!("os-release-{index}"));
            job.write(
                &os_release_file,
                os_release(config, &format!("{}-{}", config.name, entry.id)),
            )?;
            let addon = [
                "build".to_owned(),
                format!("--output={output}"),
                format!("--os-release=@{os_release_file}"),
            ];
            job.run("ukify", addon.iter().chain(&own))?;
            args.push(format!("--join-profile={output}"));
        }
    }
    job.run("ukify", &args)?;
    job.read("uki.efi")
}

/// `enter-initrd`, `enter-initrd:leave-initrd`, …: the states of PCR 11 in which the TPM may open the state partition.
fn phase_paths() -> Vec<String> {
    (1..=PHASES.len())
        .map(|count| PHASES[..count].join(":"))
        .collect()
}

/// Signs a PE file with the key of secure boot.
pub fn sign(job: &Job<'_>, keys: &Keys, file: &[u8]) -> Result<Vec<u8>, ToolError> {
    keys.lend(job, &["db.key", "db.crt"])?;
    job.write("unsigned.efi", file)?;
    job.run(
        "sbsign",
        [
            "--key",
            "db.key",
            "--cert",
            "db.crt",
            "--output",
            "signed.efi",
            "unsigned.efi",
        ],
    )?;
    job.read("signed.efi")
}

/// One of secure boot's variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyVariable {
    /// Its content, a signature list (`EFI_SIGNATURE_LIST`).
    pub list: Vec<u8>,
    /// The signed update that a machine in setup mode enrols.
    pub update: Vec<u8>,
}

/// Secure boot's variables `PK`, `KEK` and `db`, in this order.
pub fn secure_boot_variables(job: &Job<'_>, keys: &Keys) -> Result<[KeyVariable; 3], ToolError> {
    keys.lend(job, &["PK.key", "PK.crt", "KEK.key", "KEK.crt", "db.crt"])?;
    // The owner of the entries, as a UUID: ours, by the platform key.
    let owner = super::disk::uuid(&crate::manifest::sha256(keys.file("PK.crt"))[..32]);
    let mut made = Vec::new();
    for (name, signer) in [("PK", "PK"), ("KEK", "PK"), ("db", "KEK")] {
        let file = |kind: &str| format!("{name}.{kind}");
        job.run("cert-to-efi-sig-list", ["-g", &owner, &file("crt"), &file("esl")])?;
        let (key, crt) = (format!("{signer}.key"), format!("{signer}.crt"));
        job.run(
            "sign-efi-sig-list",
            [
                "-t",
                "1970-01-02 00:00:00",
                "-g",
                &owner,
                "-k",
                &key,
                "-c",
                &crt,
                name,
                &file("esl"),
                &file("auth"),
            ],
        )?;
        made.push(KeyVariable {
            list: job.read(&file("esl"))?,
            update: job.read(&file("auth"))?,
        });
    }
    Ok(made.try_into().expect("three variables"))
}

/// Signs `content` with the key of the reference values: ECDSA P-256 with SHA-256, deterministic (RFC 6979), DER.
pub fn sign_reference(job: &Job<'_>, keys: &Keys, content: &[u8]) -> Result<Vec<u8>, ToolError> {
    keys.lend(job, &["reference.key"])?;
    job.write("statement", content)?;
    job.run(
        "openssl",
        [
            "dgst",
            "-sha256",
            "-sign",
            "reference.key",
            "-sigopt",
            "nonce-type:1",
            "-out",
            "statement.sig",
            "statement",
        ],
    )?;
    job.read("statement.sig")
}

/// SHA-256 of the reference key's SubjectPublicKeyInfo, in hex.
pub fn reference_key_id(job: &Job<'_>, keys: &Keys) -> Result<String, ToolError> {
    keys.lend(job, &["reference.pub"])?;
    let der = job.run(
        "openssl",
        ["pkey", "-pubin", "-in", "reference.pub", "-outform", "DER"],
    )?;
    Ok(crate::manifest::sha256(&der))
}
