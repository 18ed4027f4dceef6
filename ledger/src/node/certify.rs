//! The node's two keys, and the certificates they make.
//!
//! The BLS *root key* stands in for the Internet Computer's threshold key: clients pin its public half, and every
//! certificate is signed with it. The Ed25519 *node key* signs query answers; a certificate names it.

use std::collections::BTreeMap;

use candid::Principal;
use ic_transport_types::{
    NodeSignature, QueryResponse, RejectCode, RejectResponse, ReplyResponse, RequestId,
};
use ic_verify_bls_signature::PrivateKey;
use icrc_ledger_types::icrc3::blocks::ICRC3DataCertificate;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::tree::{Node, Path};
use crate::protocol::State;

/// The DER header of a BLS12-381 public key as the Internet Computer writes it; 96 bytes of key follow.
const ROOT_KEY_PREFIX: [u8; 37] = [
    0x30, 0x81, 0x82, 0x30, 0x1d, 0x06, 0x0d, 0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0xdc, 0x7c, 0x05, 0x03,
    0x01, 0x02, 0x01, 0x06, 0x0c, 0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0xdc, 0x7c, 0x05, 0x03, 0x02, 0x01,
    0x03, 0x61, 0x00,
];

/// What the root key signs is prefixed with this (interface specification, "Certification").
const STATE_ROOT_DOMAIN: &[u8; 14] = b"\x0Dic-state-root";

/// How a call came out. Refusals by the ledger's rules are replies; a reject is the machinery's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The method's Candid reply.
    Replied(Vec<u8>),
    /// No reply.
    Rejected(RejectResponse),
}

impl Outcome {
    /// A reject with one of the specification's codes.
    pub(crate) fn rejected(code: RejectCode, error_code: &str, message: impl Into<String>) -> Self {
        Self::Rejected(RejectResponse {
            reject_code: code,
            reject_message: message.into(),
            error_code: Some(error_code.to_owned()),
        })
    }

    /// Bytes that it takes to keep this.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Replied(reply) => reply.len(),
            Self::Rejected(reject) => reject.reject_message.len(),
        }
    }
}

/// What `certified_data` is the root hash of: the end of the ledger's chain and of the token's log.
pub(crate) fn tips(state: &State) -> Node {
    let (index, hash) = state.token_tip();
    let mut tree = Node::default();
    tree.insert(&[b"decent_tip"], state.tip().0.to_vec());
    tree.insert(&[LAST_BLOCK_HASH], hash.0.to_vec());
    tree.insert(&[LAST_BLOCK_INDEX], leb128(index));
    tree
}

/// The labels of ICRC-3's tip certificate.
const LAST_BLOCK_HASH: &[u8] = b"last_block_hash";
const LAST_BLOCK_INDEX: &[u8] = b"last_block_index";

/// The canister's own part of the state tree.
#[derive(Clone, Debug, Default)]
pub(crate) struct CanisterState {
    /// `certified_data`: see [`tips`].
    pub(crate) certified_data: Vec<u8>,
    /// `metadata/candid:service`.
    pub(crate) interface: String,
}

/// The node's keys and the names derived from them.
pub(crate) struct Signer {
    root: PrivateKey,
    node: ic_ed25519::PrivateKey,
    /// The public root key, DER.
    pub(crate) root_key: Vec<u8>,
    node_key: Vec<u8>,
    /// The one subnet: named by the root key, as the root subnet is on the Internet Computer.
    pub(crate) subnet: Principal,
    node_id: Principal,
    /// The one canister.
    pub(crate) canister: Principal,
}

impl Signer {
    /// From the two secret keys. The canister id is derived from the root key, so that evidence bound to this ledger
    /// is bound to no other.
    pub(crate) fn new(root: PrivateKey, node: ic_ed25519::PrivateKey) -> Self {
        let root_key = [ROOT_KEY_PREFIX.as_slice(), &root.public_key().serialize()].concat();
        let node_key = node.public_key().serialize_rfc8410_der();
        // An opaque id (specification, "Principals"): eight bytes that are ours, two that say "canister".
        let digest = Sha256::digest([b"\x0fdecent-canister".as_slice(), &root_key].concat());
        let mut canister = digest[..8].to_vec();
        canister.extend_from_slice(&[1, 1]);
        Self {
            subnet: Principal::self_authenticating(&root_key),
            node_id: Principal::self_authenticating(&node_key),
            canister: Principal::from_slice(&canister),
            root,
            node,
            root_key,
            node_key,
        }
    }

    /// The state tree at `now` (wall clock) with the outcomes of some requests. A request that a tree doesn't hold
    /// isn't shown as absent to anyone who didn't ask that very tree about it.
    pub(crate) fn tree<'a>(
        &self,
        now: u64,
        canister: &CanisterState,
        requests: impl IntoIterator<Item = (RequestId, &'a Outcome)>,
    ) -> Node {
        let (id, subnet) = (self.canister.as_slice(), self.subnet.as_slice());
        let mut tree = Node::default();
        tree.insert(&[b"time"], leb128(now));
        tree.insert(
            &[b"canister", id, b"certified_data"],
            canister.certified_data.clone(),
        );
        tree.insert(&[b"canister", id, b"controllers"], cbor(&Vec::<Principal>::new()));
        tree.insert(
            &[b"canister", id, b"metadata", b"candid:service"],
            canister.interface.clone().into_bytes(),
        );
        // The same ranges twice: where today's agents look (sharded), and where those before looked.
        let ranges = cbor(&[(self.canister, self.canister)]);
        tree.insert(&[b"canister_ranges", subnet, id], ranges.clone());
        tree.insert(&[b"subnet", subnet, b"canister_ranges"], ranges);
        tree.insert(&[b"subnet", subnet, b"public_key"], self.root_key.clone());
        tree.insert(
            &[b"subnet", subnet, b"node", self.node_id.as_slice(), b"public_key"],
            self.node_key.clone(),
        );
        // Present even when empty, so that a request that isn't known is provably absent.
        if let Node::Map(map) = &mut tree {
            map.insert(b"request_status".to_vec(), Node::default());
        }
        for (request, outcome) in requests {
            let mut put = |field: &str, value: Vec<u8>| {
                tree.insert(&[b"request_status", request.as_slice(), field.as_bytes()], value);
            };
            match outcome {
                Outcome::Replied(reply) => {
                    put("status", b"replied".to_vec());
                    put("reply", reply.clone());
                }
                Outcome::Rejected(reject) => {
                    put("status", b"rejected".to_vec());
                    put("reject_code", leb128(reject.reject_code as u64));
                    put("reject_message", reject.reject_message.clone().into_bytes());
                    if let Some(code) = &reject.error_code {
                        put("error_code", code.clone().into_bytes());
                    }
                }
            }
        }
        tree
    }

    /// Signs a tree's root; witnesses of it are certificates then. This is the expensive part (a BLS signature), done
    /// once for all calls of one commit.
    pub(crate) fn sign(&self, tree: Node) -> Signed {
        let message = [STATE_ROOT_DOMAIN.as_slice(), &tree.digest()].concat();
        Signed {
            signature: self.root.sign(&message).serialize().to_vec(),
            tree,
        }
    }

    /// `icrc3_get_tip_certificate`: the canister's certified data, and what it is the root hash of.
    pub(crate) fn tip_certificate(
        &self,
        now: u64,
        canister: &CanisterState,
        tips: &Node,
    ) -> ICRC3DataCertificate {
        let certified: Path = [
            b"canister".as_slice(),
            self.canister.as_slice(),
            b"certified_data",
        ]
        .map(<[u8]>::to_vec)
        .to_vec();
        let shown = [LAST_BLOCK_HASH, LAST_BLOCK_INDEX].map(|label| vec![label.to_vec()]);
        let shown = shown.each_ref().map(Vec::as_slice);
        ICRC3DataCertificate {
            certificate: self
                .sign(self.tree(now, canister, []))
                .certificate(&[certified])
                .into(),
            hash_tree: cbor(&tips.witness(&shown)).into(),
        }
    }

    /// Signs a query's answer with the node key.
    pub(crate) fn query_response(&self, request: RequestId, now: u64, outcome: Outcome) -> QueryResponse {
        let with = |signatures| match outcome.clone() {
            Outcome::Replied(arg) => QueryResponse::Replied {
                reply: ReplyResponse { arg },
                signatures,
            },
            Outcome::Rejected(reject) => QueryResponse::Rejected { reject, signatures },
        };
        let signable = with(Vec::new()).signable(request, now);
        with(vec![NodeSignature {
            timestamp: now,
            signature: self.node.sign_message(&signable).to_vec(),
            identity: self.node_id,
        }])
    }
}

/// A signed state tree.
pub(crate) struct Signed {
    tree: Node,
    signature: Vec<u8>,
}

impl Signed {
    /// The certificate (CBOR) that shows `paths`; the time is always shown.
    pub(crate) fn certificate(&self, paths: &[Path]) -> Vec<u8> {
        let time: Path = vec![b"time".to_vec()];
        let paths: Vec<&[Vec<u8>]> = paths.iter().chain([&time]).map(Vec::as_slice).collect();
        cbor(&ic_certification::Certificate {
            tree: self.tree.witness(&paths),
            signature: self.signature.clone(),
            delegation: None,
        })
    }
}

/// The path to all that is known of a request.
pub(crate) fn request_path(request: RequestId) -> Path {
    vec![b"request_status".to_vec(), request.as_slice().to_vec()]
}

fn leb128(number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    leb128::write::unsigned(&mut bytes, number).expect("writing to memory doesn't fail");
    bytes
}

/// CBOR with the self-describing tag 55799, which clients expect.
pub(crate) fn cbor<T: Serialize>(value: &T) -> Vec<u8> {
    let mut serializer = serde_cbor::Serializer::new(Vec::new());
    serializer
        .self_describe()
        .expect("writing to memory doesn't fail");
    value
        .serialize(&mut serializer)
        .expect("these types have string keys and known lengths only");
    serializer.into_inner()
}

/// A map of text to CBOR values: the status answer.
pub(crate) fn status_cbor(root_key: &[u8], height: u64) -> Vec<u8> {
    #[derive(Serialize)]
    struct Status<'a> {
        #[serde(with = "serde_bytes")]
        root_key: &'a [u8],
        replica_health_status: &'static str,
        impl_version: &'static str,
        certified_height: u64,
        values: BTreeMap<&'static str, u64>,
    }
    cbor(&Status {
        root_key,
        replica_health_status: "healthy",
        impl_version: env!("CARGO_PKG_VERSION"),
        certified_height: height,
        values: BTreeMap::new(),
    })
}
