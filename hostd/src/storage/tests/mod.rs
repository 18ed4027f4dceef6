//! The store against a real folder.

mod disks;
mod images;

use super::*;

fn config(dir: &Path) -> StorageConfig {
    StorageConfig {
        dir: dir.to_owned(),
        allow_schemes: BTreeSet::from([Scheme::Http, Scheme::File]),
        allow_private_addresses: true,
        keep_free_bytes: 0,
        fetch_idle_s: 1,
        ..StorageConfig::default()
    }
}

fn store(dir: &tempfile::TempDir) -> Store {
    Store::open(config(dir.path())).unwrap()
}
