//! Remembers what bytes say: evidence from one platform brings the same certificates every time, and reading them costs
//! more than comparing them.
//!
//! What a certificate says depends on its bytes alone, and reading isn't believing: signatures, dates and revocation are
//! judged each time.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The values of the last [`Memory::COUNT_MAX`] different bytes, none of them longer than [`Memory::LEN_MAX`].
pub(crate) struct Memory<T>(Mutex<VecDeque<(Box<[u8]>, T)>>);

impl<T: Clone> Memory<T> {
    /// Enough for the chains of the platforms that a service sees again and again.
    const COUNT_MAX: usize = 128;
    /// A chain of three certificates as text.
    const LEN_MAX: usize = 8192;

    pub(crate) const fn new() -> Self {
        Self(Mutex::new(VecDeque::new()))
    }

    fn entries(&self) -> MutexGuard<'_, VecDeque<(Box<[u8]>, T)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recall(&self, bytes: &[u8]) -> Option<T> {
        let entries = self.entries();
        let entry = entries.iter().find(|(known, _)| **known == *bytes);
        entry.map(|(_, value)| value.clone())
    }

    /// What `bytes` say: remembered, or by `read`, and then remembered. Errors aren't.
    pub(crate) fn read<E>(&self, bytes: &[u8], read: impl FnOnce(&[u8]) -> Result<T, E>) -> Result<T, E> {
        if let Some(value) = self.recall(bytes) {
            return Ok(value);
        }
        let value = read(bytes)?;
        if bytes.len() <= Self::LEN_MAX {
            let mut entries = self.entries();
            if entries.len() == Self::COUNT_MAX {
                entries.pop_front();
            }
            entries.push_back((bytes.into(), value.clone()));
        }
        Ok(value)
    }

    /// Forgets everything.
    #[cfg(feature = "sim")]
    pub(crate) fn forget(&self) {
        self.entries().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_recalled_by_all_their_bytes_and_memory_is_bounded() {
        let memory = Memory::new();
        let ask = |bytes: &[u8], answer| memory.read(bytes, |_| answer);
        assert_eq!(ask(b"one", Err("unreadable")), Err("unreadable"));
        assert_eq!(ask(b"one", Ok(1)), Ok(1), "an error isn't remembered");
        assert_eq!(ask(b"one", Err("asked again")), Ok(1), "a value is");
        for other in [&b"ons"[..], b"on", b"onee", b""] {
            assert_eq!(ask(other, Err("asked")), Err("asked"), "{other:?}");
        }
        let long = vec![7; Memory::<i32>::LEN_MAX + 1];
        ask(&long, Ok(2)).unwrap();
        assert_eq!(ask(&long, Ok(3)), Ok(3), "what is long isn't kept");
        for n in 0..2 * Memory::<i32>::COUNT_MAX {
            ask(&n.to_be_bytes(), Ok(4)).unwrap();
        }
        assert_eq!(memory.entries().len(), Memory::<i32>::COUNT_MAX);
        assert_eq!(ask(b"one", Ok(5)), Ok(5), "the oldest goes first");
    }
}
