//! Checking an image: are the files those of the build, are they signed with the owner's keys, do the reference values
//! say what the files give, and is the hash tree the root's.

use std::fs;
use std::path::Path;

use super::image::{self, Image, ImageError};
use super::keys::{Keys, KeysError};
use super::reference::{self, Envelope};
use super::tools::{ToolError, Tools};

/// Why an image couldn't be looked at; what is wrong *with* it is in the list of [`Check`]s.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Its description.
    #[error("cannot use the image")]
    Image(#[from] ImageError),
    /// The keys.
    #[error("cannot use the keys")]
    Keys(#[from] KeysError),
    /// A tool couldn't be started.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What, for people.
    pub what: String,
    /// What is wrong, or nothing.
    pub fault: Option<String>,
}

/// Checks the image in `dir` against `keys`.
pub fn verify(dir: &Path, keys: &Keys, tools: &Tools) -> Result<Vec<Check>, VerifyError> {
    let image = Image::read(dir)?;
    let mut checks = Vec::new();
    let mut check = |what: String, fault: Option<String>| checks.push(Check { what, fault });
    for wanted in image.files() {
        let fault = match image::describe(dir, &wanted.file) {
            Err(error) => Some(error.to_string()),
            Ok(found) => {
                (found != *wanted).then(|| format!("sha256 {} instead of {}", found.sha256, wanted.sha256))
            }
        };
        check(format!("{} is the file of the build", wanted.file), fault);
    }
    let disk = fs::File::open(dir.join(&image.disk.file))
        .and_then(zstd::Decoder::new)
        .and_then(flash::digest);
    let fault = match disk {
        Err(error) => Some(error.to_string()),
        Ok(found) if found == (image.disk_sha256.clone(), image.disk_size) => None,
        Ok((sha256, size)) => Some(format!("sha256 {sha256}, {size} bytes")),
    };
    check("the disk unpacks to what image.json says".to_owned(), fault);

    let job = tools.job()?;
    keys.lend(&job, &["db.crt", "reference.pub"])?;
    for name in [Some(&image.uki), image.live.as_ref()].into_iter().flatten() {
        let content = fs::read(dir.join(&name.file)).unwrap_or_default();
        job.write("program.efi", &content)?;
        let fault = said(job.run("sbverify", ["--cert", "db.crt", "program.efi"]))?;
        check(format!("{} is signed with this db key", name.file), fault);
    }
    let (root, verity) = (dir.join(&image.root.file), dir.join(&image.verity.file));
    let args = [
        "verify".into(),
        absolute(&root),
        absolute(&verity),
        image.root_hash.clone().into(),
    ];
    check(
        "the hash tree is the root's".to_owned(),
        said(job.run_outside("veritysetup", args))?,
    );
    let uki = fs::read(dir.join(&image.uki.file)).unwrap_or_default();
    for (index, profile) in image.profiles.iter().enumerate() {
        let values = reference::measured_sections(&uki, index).map(|sections| {
            let cmdline = sections
                .iter()
                .find(|section| section.name == ".cmdline")
                .map(|s| s.content.to_vec());
            let pcrs: Vec<String> = reference::kernel_image(&sections)
                .iter()
                .map(reference::Pcr::hex)
                .collect();
            (cmdline, pcrs)
        });
        let fault = match values {
            Err(error) => Some(error.to_string()),
            Ok((cmdline, _)) if cmdline.as_deref() != Some(profile.cmdline.as_bytes()) => {
                Some("another command line".to_owned())
            }
            Ok((_, pcrs)) if pcrs != profile.pcr_11 => Some(format!("PCR 11 would be {}", pcrs.join(", "))),
            Ok(_) => None,
        };
        check(
            format!("profile {}: PCR 11 follows from the kernel image", profile.name),
            fault,
        );
        if let Some(file) = &profile.reference {
            let fault = reference_fault(dir, &image, profile, &file.file, &job)?;
            check(
                format!(
                    "profile {}: reference values are signed and say the same",
                    profile.name
                ),
                fault,
            );
        }
    }
    Ok(checks)
}

fn absolute(path: &Path) -> std::ffi::OsString {
    fs::canonicalize(path)
        .unwrap_or_else(|_| path.to_owned())
        .into_os_string()
}

/// A tool's refusal is an answer; that it can't be started isn't.
fn said(result: Result<Vec<u8>, ToolError>) -> Result<Option<String>, ToolError> {
    match result {
        Ok(_) => Ok(None),
        Err(ToolError::Failed { log, .. }) => Ok(Some(log.lines().last().unwrap_or("refused").to_owned())),
        Err(error) => Err(error),
    }
}

fn reference_fault(
    dir: &Path,
    image: &Image,
    profile: &image::Profile,
    file: &str,
    job: &super::tools::Job<'_>,
) -> Result<Option<String>, ToolError> {
    let content = fs::read(dir.join(file)).unwrap_or_default();
    let envelope: Option<Envelope> = serde_json::from_slice(&content).ok();
    let Some((statement, signed, signature)) = envelope.as_ref().and_then(Envelope::open) else {
        return Ok(Some("not an envelope of reference values".to_owned()));
    };
    job.write("statement", signed)?;
    job.write("statement.sig", signature)?;
    let args = [
        "dgst",
        "-sha256",
        "-verify",
        "reference.pub",
        "-signature",
        "statement.sig",
        "statement",
    ];
    if let Some(refused) = said(job.run("openssl", args))? {
        return Ok(Some(format!("signature: {refused}")));
    }
    let pcrs = statement.pcrs.get("sha256");
    let says = |pcr: &str, wanted: &[String]| {
        pcrs.and_then(|pcrs| pcrs.get(pcr))
            .is_some_and(|values| values == wanted)
    };
    let agrees = says("4", std::slice::from_ref(&image.pcr_4))
        && says("7", std::slice::from_ref(&image.pcr_7))
        && says("11", &profile.pcr_11)
        && reference::UNTOUCHED
            .iter()
            .all(|pcr| says(pcr, &[reference::Pcr::default().hex()]))
        && statement.verity_root_hash == image.root_hash;
    Ok((!agrees).then(|| "other values than image.json".to_owned()))
}
