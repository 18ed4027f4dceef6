//! Remembers signatures that held: makers' certificates and collateral come again with every piece of evidence.
//!
//! Whether a signature holds depends on key, message and signature alone, so what is remembered under the key and a digest
//! of the two is true for ever, and a verdict with memory is the verdict without. Dates, revocation and everything else are
//! judged each time. Only what held is remembered: forgeries displace nothing.

use std::collections::VecDeque;
use std::sync::Mutex;

use sha2::{Digest, Sha256};

/// Enough for the chains and collateral of a day's platforms; 300 KiB if all keys are RSA-4096.
const REMEMBERED_MAX: usize = 512;

/// A signature that held.
struct Held {
    statement: Statement,
    scheme: &'static str,
    key: Box<[u8]>,
}

static HELD: Mutex<VecDeque<Held>> = Mutex::new(VecDeque::new());

/// A message with its signature, as a digest that may be kept beside them: collateral is long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Statement([u8; 32]);

impl Statement {
    /// The lengths count, too.
    pub(crate) fn of(message: &[u8], signature: &[u8]) -> Self {
        let mut hash = Sha256::new();
        for part in [message, signature] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }
}

/// `check`'s answer, unless the same key, message and signature are remembered to hold. `scheme` tells the signature
/// algorithms apart.
pub(crate) fn remembered(
    scheme: &'static str,
    key: &[u8],
    statement: Statement,
    check: impl FnOnce() -> bool,
) -> bool {
    let held = || HELD.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let same = |held: &Held| held.statement == statement && held.scheme == scheme && *held.key == *key;
    if held().iter().any(same) {
        return true;
    }
    let holds = check();
    if holds {
        let mut held = held();
        if held.len() == REMEMBERED_MAX {
            held.pop_front();
        }
        held.push_back(Held {
            statement,
            scheme,
            key: key.into(),
        });
    }
    holds
}

/// Forgets everything, certificates that were read, too: to measure what the first verdict costs.
#[cfg(feature = "sim")]
pub fn forget_signatures() {
    crate::x509::forget();
    crate::tdx::forget();
    HELD.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_message_and_signature_are_remembered() {
        let parts = ["memory test", "key", "message", "signature"];
        let ask = |parts: [&'static str; 4], answer: bool| {
            let [scheme, key, message, signature] = parts;
            let mut asked = false;
            let check = || {
                asked = true;
                answer
            };
            let statement = Statement::of(message.as_bytes(), signature.as_bytes());
            let holds = remembered(scheme, key.as_bytes(), statement, check);
            (holds, asked)
        };
        assert_eq!(ask(parts, false), (false, true));
        assert_eq!(ask(parts, true), (true, true), "a failure isn't remembered");
        assert_eq!(ask(parts, false), (true, false), "what held is");
        for changed in 0..4 {
            let mut other = parts;
            other[changed] = "other";
            assert_eq!(ask(other, false), (false, true), "part {changed}");
        }
        // The lengths count: the same bytes divided otherwise are something else.
        let shifted = ["memory test", "key", "messages", "ignature"];
        assert_eq!(ask(shifted, false), (false, true));
    }
}
