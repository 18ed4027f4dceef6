//! Authentication of requests: the envelope around each call, query and read_state.
//!
//! | checked | how |
//! |---|---|
//! | size | before it comes here |
//! | CBOR | strict types; `serde_cbor` bounds the nesting |
//! | addressed to us | the content's canister is the one of the URL and ours |
//! | fresh | not expired, and not further ahead than the specification lets a request live |
//! | sender | the self-authenticating principal of `sender_pubkey`, or anonymous without any signature |
//! | delegations | each signed by the key before it, unexpired, for this canister and this kind of request |
//! | signature | by the last key, over `"\x0Aic-request" ‖ request id` |

use std::time::Duration;

use candid::Principal;
use ic_transport_types::{DelegationPermissions, Envelope, EnvelopeContent, RequestId, SignedDelegation};

use crate::crypto::{CryptoError, PublicKey};

/// How long a request may live (the specification's maximum).
pub(crate) const INGRESS_TTL: Duration = Duration::from_secs(5 * 60);

/// How much further ahead an expiry may be, for clients whose clock is ahead (what the Internet Computer grants).
const CLOCK_DRIFT: Duration = Duration::from_secs(60);

/// The longest chain of delegations (the specification's maximum).
const DELEGATIONS_MAX: usize = 20;

/// The most targets that one delegation may name (the specification's maximum).
const TARGETS_MAX: usize = 1_000;

/// Why a request isn't authentic or isn't well-formed. The node answers HTTP status 400 with this text.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EnvelopeError {
    #[error("the body is not the CBOR of an envelope: {0}")]
    Cbor(String),
    #[error(
        "the request says it expires at {expiry}, and it is {now} (nanoseconds since 1970): send it again"
    )]
    Expired { expiry: u64, now: u64 },
    #[error(
        "the request expires at {expiry}, more than {} minutes from now ({now}, nanoseconds since 1970): \
         is the client's clock right?",
        INGRESS_TTL.as_secs() / 60
    )]
    TooFarAhead { expiry: u64, now: u64 },
    #[error("an anonymous request carries no key, signature or delegation")]
    AnonymousSigned,
    #[error("the request lacks sender_pubkey or sender_sig, and its sender isn't anonymous")]
    Unsigned,
    #[error("sender_pubkey is not the key of the sender {0}")]
    Sender(Principal),
    #[error("{what}: {error}")]
    Crypto { what: String, error: CryptoError },
    #[error("delegation {index} {why}")]
    Delegation { index: usize, why: String },
    #[error("sender_info is not supported by this ledger")]
    SenderInfo,
}

/// An authentic request.
#[derive(Debug)]
pub(crate) struct Verified {
    /// What is asked.
    pub(crate) content: EnvelopeContent,
    /// Its name: the hash of the content.
    pub(crate) id: RequestId,
}

/// Parses and authenticates a request that arrived at `now` (wall clock) for `canister`.
pub(crate) fn verify(body: &[u8], canister: Principal, now: u64) -> Result<Verified, EnvelopeError> {
    let envelope: Envelope<'_> =
        serde_cbor::from_slice(body).map_err(|error| EnvelopeError::Cbor(error.to_string()))?;
    let content = envelope.content.into_owned();
    let expiry = content.ingress_expiry();
    if expiry <= now {
        return Err(EnvelopeError::Expired { expiry, now });
    }
    let ahead = u64::try_from((INGRESS_TTL + CLOCK_DRIFT).as_nanos()).unwrap_or(u64::MAX);
    if expiry - now > ahead {
        return Err(EnvelopeError::TooFarAhead { expiry, now });
    }
    if let EnvelopeContent::Call {
        sender_info: Some(_), ..
    }
    | EnvelopeContent::Query {
        sender_info: Some(_), ..
    } = &content
    {
        return Err(EnvelopeError::SenderInfo);
    }
    let id = content.to_request_id();
    let sender = *content.sender();
    let delegations = envelope.sender_delegation.unwrap_or_default();
    if sender == Principal::anonymous() {
        let signed =
            envelope.sender_pubkey.is_some() || envelope.sender_sig.is_some() || !delegations.is_empty();
        return if signed {
            Err(EnvelopeError::AnonymousSigned)
        } else {
            Ok(Verified { content, id })
        };
    }
    let (Some(key), Some(signature)) = (envelope.sender_pubkey, envelope.sender_sig) else {
        return Err(EnvelopeError::Unsigned);
    };
    if Principal::self_authenticating(&key) != sender {
        return Err(EnvelopeError::Sender(sender));
    }
    let updates = matches!(content, EnvelopeContent::Call { .. });
    let signer = follow(&key, &delegations, canister, updates, now)?;
    signer
        .verify(&id.signable(), &signature)
        .map_err(|error| EnvelopeError::Crypto {
            what: "sender_sig".to_owned(),
            error,
        })?;
    Ok(Verified { content, id })
}

/// Walks a chain of delegations from `key`; the answer is the key that must have signed the request.
fn follow(
    key: &[u8],
    chain: &[SignedDelegation],
    canister: Principal,
    updates: bool,
    now: u64,
) -> Result<PublicKey, EnvelopeError> {
    let parse = |what: String, der: &[u8]| {
        PublicKey::from_der(der).map_err(|error| EnvelopeError::Crypto { what, error })
    };
    let mut signer = parse("sender_pubkey".to_owned(), key)?;
    if chain.len() > DELEGATIONS_MAX {
        return Err(EnvelopeError::Delegation {
            index: DELEGATIONS_MAX,
            why: format!("is one too many: at most {DELEGATIONS_MAX}"),
        });
    }
    for (index, signed) in chain.iter().enumerate() {
        let wrong = |why: String| Err(EnvelopeError::Delegation { index, why });
        let delegation = &signed.delegation;
        if delegation.expiration <= now {
            return wrong(format!("expired at {}", delegation.expiration));
        }
        if let Some(targets) = &delegation.targets {
            if targets.len() > TARGETS_MAX {
                return wrong(format!("names more than {TARGETS_MAX} targets"));
            }
            if !targets.contains(&canister) {
                return wrong(format!("is not for this ledger ({canister})"));
            }
        }
        if updates && matches!(delegation.permissions, Some(DelegationPermissions::Queries)) {
            return wrong("permits queries only".to_owned());
        }
        signer
            .verify(&delegation.signable(), &signed.signature)
            .map_err(|error| EnvelopeError::Crypto {
                what: format!("delegation {index}"),
                error,
            })?;
        signer = parse(format!("the key of delegation {index}"), &delegation.pubkey)?;
    }
    Ok(signer)
}
