//! The evidence verifier as a WebAssembly module, for browsers and other hosts of wasm32.
//!
//! The module imports nothing: it has no clock, no network, no randomness to ask for. A host writes its question into
//! the module's memory and reads the answer from it; all numbers are the WebAssembly types named:
//!
//! | export | for |
//! |---|---|
//! | `allocate(len: i32) -> i32` | memory for a question: an address |
//! | `verify(evidence: i32, len: i32, policy: i32, len: i32, at: i64) -> i32` | judges; takes both memories back; gives the answer's address |
//! | `answer_len() -> i32` | how long the last answer is |
//!
//! `evidence` is what `attest verify` takes: raw evidence, or a bundle with endorsements. `policy` is JSON of a policy
//! file, empty for the default. `at` is Unix seconds. The answer is JSON in UTF-8, valid until the next call: an
//! attestation result, or `{"error": …}` for a question that makes no sense.

use std::cell::RefCell;

use attestation::{AnyEvidence, Bundle, Endorsements, Policy, Roots, refuse_malformed, verify_any};
use serde_json::{Value, json};

/// The longest question or answer, in bytes.
const LEN_MAX: usize = Bundle::LEN_MAX;

thread_local! {
    /// Memory that a host was given and hasn't given back, and the last answer.
    static STATE: RefCell<State> = const { RefCell::new(State { questions: Vec::new(), answer: Vec::new() }) };
}

struct State {
    questions: Vec<Vec<u8>>,
    answer: Vec<u8>,
}

/// Memory of `len` bytes for the host to write to; null (0) if it asks for too much.
#[expect(
    unsafe_code,
    reason = "an export needs a name that the linker keeps; nothing else is unsafe here"
)]
#[unsafe(no_mangle)]
pub extern "C" fn allocate(len: usize) -> *mut u8 {
    if len > LEN_MAX {
        return std::ptr::null_mut();
    }
    // Never empty, so that every address is its own.
    let mut memory = vec![0; len.max(1)];
    let address = memory.as_mut_ptr();
    STATE.with_borrow_mut(|state| state.questions.push(memory));
    address
}

/// Judges evidence; see the module's documentation.
#[expect(
    unsafe_code,
    reason = "an export needs a name that the linker keeps; nothing else is unsafe here"
)]
#[unsafe(no_mangle)]
pub extern "C" fn verify(
    evidence: *const u8,
    evidence_len: usize,
    policy: *const u8,
    policy_len: usize,
    at: u64,
) -> *const u8 {
    STATE.with_borrow_mut(|state| {
        let policy = state.take(policy, policy_len);
        let evidence = state.take(evidence, evidence_len);
        let answer = match (evidence, policy) {
            (Some(evidence), Some(policy)) => judge(&evidence, &policy, at),
            _ => Err("memory that `allocate` didn't give, or a length beyond it".to_owned()),
        };
        state.answer = answer
            .unwrap_or_else(|error| json!({ "error": error }))
            .to_string()
            .into_bytes();
        state.answer.as_ptr()
    })
}

/// The length of the last answer, in bytes.
#[expect(
    unsafe_code,
    reason = "an export needs a name that the linker keeps; nothing else is unsafe here"
)]
#[unsafe(no_mangle)]
pub extern "C" fn answer_len() -> usize {
    STATE.with_borrow(|state| state.answer.len())
}

impl State {
    /// Takes back what [`allocate`] gave; `None`: it didn't give that, or not so much. Nothing (0, 0) is an empty text.
    fn take(&mut self, address: *const u8, len: usize) -> Option<Vec<u8>> {
        if len == 0 && address.is_null() {
            return Some(Vec::new());
        }
        let at = self
            .questions
            .iter()
            .position(|memory| memory.as_ptr() == address && len <= memory.len())?;
        let mut memory = self.questions.swap_remove(at);
        memory.truncate(len);
        Some(memory)
    }
}

fn judge(evidence: &[u8], policy: &[u8], at: u64) -> Result<Value, String> {
    let policy = match policy {
        [] => Policy::default(),
        json => {
            let file = serde_json::from_slice(json).map_err(|error| format!("policy: {error}"))?;
            Policy::from_file(&file).map_err(|error| error.to_string())?
        }
    };
    let mut endorsements = Endorsements::none();
    let malformed = |error: &dyn std::error::Error| Ok(refuse_malformed(&error.to_string(), at).to_json());
    let mut bundle = Bundle {
        evidence: evidence.to_vec(),
        ..Bundle::default()
    };
    if Bundle::is_one(evidence) {
        bundle = match Bundle::from_cbor(evidence) {
            Ok(bundle) => bundle,
            Err(error) => return malformed(&error),
        };
        if let Err(error) = bundle.add_to(&mut endorsements) {
            return malformed(&error);
        }
    }
    match AnyEvidence::parse(&bundle.evidence) {
        Ok(evidence) => Ok(verify_any(&evidence, &endorsements, &Roots::pinned(), &policy, at).to_json()),
        Err(error) => malformed(&error),
    }
}
