//! From a log's digests to the registers' values.

use std::collections::BTreeMap;

use super::{EventLog, HashAlg};

/// The registers that a log touched, with the values that they have if nothing else was measured.
pub type Registers = BTreeMap<u32, Vec<u8>>;

/// Why a log can't be replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The log has no digests of that algorithm.
    #[error("the event log has no {0} digests")]
    NoBank(HashAlg),
    /// An algorithm that isn't computed here.
    #[error("{0} isn't computed here: no verdict can rest on it")]
    Algorithm(HashAlg),
}

impl EventLog<'_> {
    /// Replays the bank of `algorithm`: every register named by an event, from its value at reset on (TPM 2.0 Part 1,
    /// "Extend of a PCR"; UEFI 2.10, 38.3, for CCEL).
    pub fn replay(&self, algorithm: HashAlg) -> Result<Registers, ReplayError> {
        if !self.algorithms().contains(&algorithm) {
            return Err(ReplayError::NoBank(algorithm));
        }
        let mut registers = Registers::new();
        for event in self.events().iter().filter(|event| !event.is_no_action()) {
            let digest = event.digest(algorithm).ok_or(ReplayError::NoBank(algorithm))?;
            let value = registers.entry(event.register).or_insert_with(|| {
                let mut value = vec![0; algorithm.size()];
                if let (0, Some(last)) = (event.register, value.last_mut()) {
                    *last = self.startup_locality();
                }
                value
            });
            extend(algorithm, value, digest)?;
        }
        Ok(registers)
    }
}

/// One measurement: `value` becomes H(`value` ‖ `digest`).
pub fn extend(algorithm: HashAlg, value: &mut Vec<u8>, digest: &[u8]) -> Result<(), ReplayError> {
    *value = algorithm
        .digest(&[value, digest])
        .ok_or(ReplayError::Algorithm(algorithm))?;
    Ok(())
}
