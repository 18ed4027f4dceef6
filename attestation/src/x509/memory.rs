//! Remembers certificates that were read: evidence from one platform brings the same chain every time, and reading DER
//! costs more than comparing it.
//!
//! What a certificate says depends on its bytes alone, and reading isn't believing: signatures, dates and revocation are
//! judged each time.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Cert;

/// Enough for the chains of the platforms that a service sees again and again; 1 MiB.
const CERTS_MAX: usize = 128;
const DER_LEN_MAX: usize = 4096;

static READ: Mutex<VecDeque<Cert>> = Mutex::new(VecDeque::new());

fn read() -> MutexGuard<'static, VecDeque<Cert>> {
    READ.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn recall(der: &[u8]) -> Option<Cert> {
    read().iter().find(|cert| cert.der == der).cloned()
}

pub(super) fn remember(cert: &Cert) {
    if cert.der.len() > DER_LEN_MAX {
        return;
    }
    let mut read = read();
    if read.len() == CERTS_MAX {
        read.pop_front();
    }
    read.push_back(cert.clone());
}

/// Forgets everything.
#[cfg(feature = "sim")]
pub(crate) fn forget() {
    read().clear();
}
