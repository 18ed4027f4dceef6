//! What goes into the image beside Debian's packages and hostd.

use super::config::{Config, Source};
use super::{BuildError, Options, read};
use crate::download;
use crate::manifest::sha256;

/// What others made, by its path in the image; each is what `image.toml` pins.
pub(super) fn programs(config: &Config, options: &Options<'_>) -> Result<Vec<(String, Vec<u8>)>, BuildError> {
    let programs = config.programs.iter().map(|program| {
        let path = match &program.from {
            Source::File(path) => path,
            Source::Url(url) => {
                let content = options.progress.step(&format!("fetch {}", program.to), || {
                    download::fetch(&options.apt.cache, url.as_str(), program.sha256.as_str())
                })?;
                return Ok((program.to.to_string(), content));
            }
        };
        let content = read(path)?;
        let found = sha256(&content);
        if found != program.sha256.as_str() {
            return Err(BuildError::Program {
                path: path.clone(),
                found,
                wanted: program.sha256.to_string(),
            });
        }
        Ok((program.to.to_string(), content))
    });
    programs.collect()
}

/// Everybody who has the image reads it, so a key must not come in by mistake.
pub(super) fn seed_ca(config: &Config) -> Result<Option<Vec<u8>>, BuildError> {
    let Some(path) = config.seed.as_ref().and_then(|seed| seed.ca.as_ref()) else {
        return Ok(None);
    };
    let content = read(path)?;
    let labels: Vec<&str> = std::str::from_utf8(&content)
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.strip_prefix("-----BEGIN "))
        .collect();
    if labels.is_empty() || labels.iter().any(|label| *label != "CERTIFICATE-----") {
        return Err(BuildError::SeedCa(path.clone()));
    }
    Ok(Some(content))
}
