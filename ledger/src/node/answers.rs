//! What was answered to which request, until the request expires: a request that comes again gets the same answer and
//! is not executed again. Bounded in number and in bytes, for each caller and in all; when it is full the node is busy, it
//! never forgets early.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use candid::Principal;
use ic_transport_types::RequestId;

use super::certify::Outcome;

/// A request lives at most six minutes (envelope), so this is more than 1,000 calls a second for that long.
const ENTRIES_MAX: usize = 500_000;

/// Replies are small; evidence results are the largest, some kilobytes each.
const BYTES_MAX: usize = 256 * 1024 * 1024;

/// The part of both that one caller may take: nobody keeps the others from the ledger alone.
const CALLER_PART: usize = 4;

/// What an entry costs beside its reply.
const ENTRY_BYTES: usize = 200;

/// One remembered answer.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// Who asked: nobody else may read the answer.
    pub(crate) sender: Principal,
    /// How it came out.
    pub(crate) outcome: Arc<Outcome>,
    expiry: u64,
}

/// All answers to requests that may come again.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    known: HashMap<[u8; 32], Known>,
    by_expiry: BTreeSet<(u64, [u8; 32])>,
    all: Sum,
    of: HashMap<Principal, Sum>,
}

/// Answers and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    entries: usize,
    bytes: usize,
}

impl Sum {
    fn fills(self, part: usize) -> bool {
        self.entries >= ENTRIES_MAX / part || self.bytes >= BYTES_MAX / part
    }

    fn add(&mut self, bytes: usize) {
        self.entries += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.entries = self.entries.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// The bytes of a request id.
pub(crate) fn key(request: &RequestId) -> [u8; 32] {
    **request
}

impl Answers {
    pub(crate) fn get(&self, request: &RequestId) -> Option<&Known> {
        self.known.get(&key(request))
    }

    /// Whether another answer fits.
    pub(crate) fn full(&self) -> bool {
        self.all.fills(1)
    }

    /// Whether the caller has as many answers as one may have.
    pub(crate) fn full_of(&self, sender: &Principal) -> bool {
        self.of.get(sender).is_some_and(|sum| sum.fills(CALLER_PART))
    }

    /// Remembers an answer until `expiry`; the first one stays.
    pub(crate) fn insert(
        &mut self,
        request: [u8; 32],
        sender: Principal,
        expiry: u64,
        outcome: Arc<Outcome>,
    ) {
        if self.known.contains_key(&request) {
            return;
        }
        let bytes = outcome.size() + ENTRY_BYTES;
        self.all.add(bytes);
        self.of.entry(sender).or_default().add(bytes);
        self.by_expiry.insert((expiry, request));
        self.known.insert(
            request,
            Known {
                sender,
                outcome,
                expiry,
            },
        );
    }

    /// Forgets the requests that expired: the envelope check refuses them from now on.
    pub(crate) fn prune(&mut self, now: u64) {
        while let Some(&(expiry, request)) = self.by_expiry.first() {
            if expiry > now {
                return;
            }
            self.by_expiry.pop_first();
            if let Some(known) = self.known.remove(&request) {
                debug_assert_eq!(known.expiry, expiry);
                let bytes = known.outcome.size() + ENTRY_BYTES;
                self.all.remove(bytes);
                if let Entry::Occupied(mut of) = self.of.entry(known.sender) {
                    of.get_mut().remove(bytes);
                    if of.get().entries == 0 {
                        of.remove();
                    }
                }
            }
        }
    }

    /// How many are remembered.
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_lives_exactly_as_long_as_its_request() {
        let mut answers = Answers::default();
        let outcome = |byte| Arc::new(Outcome::Replied(vec![byte]));
        answers.insert([1; 32], Principal::anonymous(), 10, outcome(1));
        answers.insert([2; 32], Principal::anonymous(), 20, outcome(2));
        answers.insert([1; 32], Principal::anonymous(), 99, outcome(9));
        answers.prune(9);
        assert_eq!(answers.len(), 2);
        assert_eq!(
            *answers.known[&[1; 32]].outcome,
            Outcome::Replied(vec![1]),
            "the first answer stays"
        );
        answers.prune(10);
        assert_eq!(answers.len(), 1);
        answers.prune(u64::MAX);
        assert_eq!((answers.all, answers.by_expiry.len()), (Sum::default(), 0));
        assert!(answers.of.is_empty());
    }

    #[test]
    fn one_caller_fills_a_part_and_no_more() {
        let mut answers = Answers::default();
        let (one, other) = (Principal::from_slice(&[1]), Principal::from_slice(&[2]));
        let outcome = Arc::new(Outcome::Replied(Vec::new()));
        for number in 0..(ENTRIES_MAX / CALLER_PART) as u64 {
            assert!(!answers.full_of(&one));
            let mut request = [0; 32];
            request[..8].copy_from_slice(&number.to_be_bytes());
            answers.insert(request, one, 10, outcome.clone());
        }
        assert!(answers.full_of(&one) && !answers.full_of(&other) && !answers.full());
        let large = Arc::new(Outcome::Replied(vec![0; BYTES_MAX / CALLER_PART]));
        answers.insert([9; 32], other, 20, large);
        assert!(answers.full_of(&other));
        answers.prune(10);
        assert!(!answers.full_of(&one) && answers.full_of(&other));
    }
}
