//! Why a call has no result, sorted by what the caller can do about it.

use ic_agent::AgentError;
use ic_agent::agent::{RejectCode, RejectResponse};
use icrc_ledger_types::icrc1::transfer::TransferError;
use icrc_ledger_types::icrc2::approve::ApproveError;
use icrc_ledger_types::icrc2::transfer_from::TransferFromError;

use crate::api::LedgerError;

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The way to the ledger is broken, or the ledger is busy. Passing: try again. An update may have happened.
    #[error("{method}: the ledger can't be reached: {why}")]
    Transport {
        /// What was called.
        method: &'static str,
        /// What broke.
        why: String,
    },
    /// The answer doesn't authenticate against the pinned root key: not this ledger, or someone in between.
    #[error(
        "{method}: the answer is not authentic: {why}; check url, canister_id, root_key and this machine's clock"
    )]
    Untrusted {
        /// What was called.
        method: &'static str,
        /// What failed.
        why: String,
    },
    /// The node or the canister's machinery refused to run the call (an Internet Computer reject).
    #[error("{method}: rejected ({code:?}): {message}")]
    Rejected {
        /// What was called.
        method: &'static str,
        /// The interface specification's code.
        code: RejectCode,
        /// The node's words.
        message: String,
    },
    /// The ledger's rules say no. This is an answer: trying again changes nothing.
    #[error(transparent)]
    Refused(#[from] LedgerError),
    /// A token transfer was refused.
    #[error("transfer refused: {0}")]
    Transfer(TransferError),
    /// Spending of another's tokens was refused.
    #[error("transfer refused: {0}")]
    TransferFrom(TransferFromError),
    /// An approval was refused.
    #[error("approval refused: {0}")]
    Approve(ApproveError),
    /// Client and ledger speak different versions of a type.
    #[error("{method}: client and ledger disagree on the Candid types: {why}")]
    Candid {
        /// What was called.
        method: &'static str,
        /// Where.
        why: String,
    },
    /// This client can't sign or build the call.
    #[error("{method}: cannot make the call: {why}")]
    Local {
        /// What was called.
        method: &'static str,
        /// Why.
        why: String,
    },
}

impl ClientError {
    /// Whether the same call may well succeed later without anything else changing.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Transport { .. }
                | Self::Rejected {
                    code: RejectCode::SysTransient,
                    ..
                }
        )
    }

    /// The ledger's own answer, if this is one.
    pub fn refusal(&self) -> Option<&LedgerError> {
        match self {
            Self::Refused(error) => Some(error),
            _ => None,
        }
    }

    pub(super) fn from_agent(method: &'static str, error: AgentError) -> Self {
        use AgentError as A;
        let why = chain(&error);
        match error {
            A::CertifiedReject { reject, .. } | A::UncertifiedReject { reject, .. } => {
                let RejectResponse {
                    reject_code,
                    reject_message,
                    ..
                } = reject;
                Self::Rejected {
                    method,
                    code: reject_code,
                    message: reject_message,
                }
            }
            A::CertificateVerificationFailed()
            | A::QuerySignatureVerificationFailed
            | A::CertificateNotAuthorized()
            | A::CertificateOutdated(_)
            | A::CertificateHasTooManyDelegations
            | A::MissingSignature
            | A::MalformedSignature
            | A::MalformedPublicKey
            | A::TooManySignatures { .. }
            | A::DerKeyLengthMismatch { .. }
            | A::DerPrefixMismatch { .. }
            | A::LookupPathAbsent(_)
            | A::LookupPathUnknown(_)
            | A::LookupPathError(_) => Self::Untrusted { method, why },
            A::SigningError(_)
            | A::CannotCalculateRequestId(_)
            | A::InvalidReplicaUrl(_)
            | A::UrlParseError(_)
            | A::CallDataMismatch { .. } => Self::Local { method, why },
            A::HttpError(ref payload) if (400..500).contains(&payload.status) && payload.status != 429 => {
                Self::Rejected {
                    method,
                    code: RejectCode::SysFatal,
                    message: format!(
                        "HTTP status {}: {}",
                        payload.status,
                        String::from_utf8_lossy(&payload.content)
                    ),
                }
            }
            _ => Self::Transport { method, why },
        }
    }
}

/// An error with its causes: reqwest keeps the reason ("connection refused") at the end of the chain.
pub(super) fn chain(error: &AgentError) -> String {
    let mut text = error.to_string();
    if let AgentError::TransportError(ic_agent::agent_error::TransportError::Reqwest(inner)) = error {
        text = causes(inner);
    }
    text
}

/// An error's text followed by those of its causes.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
