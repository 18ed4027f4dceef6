//! What was answered to which request, until the request expires: a request that comes again gets the same answer and
//! is not executed again. Bounded in number and in bytes; when it is full the node is busy, it never forgets early.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use candid::Principal;
use ic_transport_types::RequestId;

use super::certify::Outcome;

/// A request lives at most six minutes (envelope), so this is more than 1,000 calls a second for that long.
const ENTRIES_MAX: usize = 500_000;

/// Replies are small; evidence results are the largest, some kilobytes each.
const BYTES_MAX: usize = 256 * 1024 * 1024;

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
    bytes: usize,
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
        self.known.len() >= ENTRIES_MAX || self.bytes >= BYTES_MAX
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
        self.bytes += outcome.size() + ENTRY_BYTES;
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
                self.bytes = self.bytes.saturating_sub(known.outcome.size() + ENTRY_BYTES);
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
        assert_eq!((answers.len(), answers.bytes, answers.by_expiry.len()), (0, 0, 0));
    }
}
