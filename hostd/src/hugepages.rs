//! Reserving hugepages before VMs need them: at boot, while memory isn't in pieces yet.
//!
//! The pool only grows here: what the kernel's command line reserved stays, and so do pages that VMs use.

use std::fs;
use std::io;
use std::path::Path;

/// The pool of 2 MiB pages over all NUMA nodes; the kernel spreads them evenly.
const POOL: &str = "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// Why the pool isn't what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum HugepagesError {
    /// The kernel's file.
    #[error("cannot {what} /{POOL}; does this kernel have hugepages?")]
    Pool {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Not enough memory in one piece.
    #[error(
        "only {got} of {wanted} MiB could be reserved: lower vmm.reserve_hugepages_mib, or reserve them on the kernel's \
         command line (hugepagesz=2M hugepages=N, N = MiB / 2)"
    )]
    TooFew {
        /// MiB in the pool now.
        got: u64,
        /// MiB asked for.
        wanted: u64,
    },
}

/// Grows the pool of 2 MiB pages to at least `wanted_mib`; returns its MiB. `root` is `/`, or a made-up tree.
pub fn reserve(root: &Path, wanted_mib: u64) -> Result<u64, HugepagesError> {
    let path = root.join(POOL);
    let pool = |what| move |source| HugepagesError::Pool { what, source };
    let pages = || -> Result<u64, HugepagesError> {
        let text = fs::read_to_string(&path).map_err(pool("read"))?;
        let pages = text.trim().parse();
        pages.map_err(|_| pool("read")(io::Error::other(format!("{text:?} isn't a number"))))
    };
    let wanted = wanted_mib.div_ceil(2);
    if pages()? < wanted {
        fs::write(&path, wanted.to_string()).map_err(pool("write"))?;
    }
    let got = pages()? * 2;
    if got < wanted_mib {
        return Err(HugepagesError::TooFew {
            got,
            wanted: wanted_mib,
        });
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_grows_to_what_is_asked_and_never_shrinks() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(POOL);
        let error = reserve(root.path(), 2).unwrap_err();
        assert!(
            matches!(error, HugepagesError::Pool { what: "read", .. }),
            "{error}"
        );
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        for (before, wanted_mib, after, got) in
            [("0\n", 0, "0\n", 0), ("0\n", 5, "3", 6), ("9\n", 5, "9\n", 18)]
        {
            fs::write(&path, before).unwrap();
            assert_eq!(reserve(root.path(), wanted_mib).unwrap(), got);
            assert_eq!(fs::read_to_string(&path).unwrap(), after);
        }
        fs::write(&path, "many").unwrap();
        assert!(reserve(root.path(), 5).is_err());
    }

    #[test]
    fn a_pool_that_stays_too_small_is_said() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(POOL);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // A number of this kernel that can't be changed.
        std::os::unix::fs::symlink("/proc/sys/kernel/ngroups_max", &path).unwrap();
        let error = reserve(root.path(), 1 << 20).unwrap_err();
        assert!(
            matches!(
                error,
                HugepagesError::Pool { what: "write", .. } | HugepagesError::TooFew { .. }
            ),
            "{error}"
        );
    }
}
