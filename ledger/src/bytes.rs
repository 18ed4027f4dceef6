//! Byte strings of a fixed length: `blob` in Candid, hexadecimal text in JSON and on the command line.

use std::fmt;
use std::str::FromStr;

use candid::CandidType;
use candid::types::{Serializer as CandidSerializer, Type, TypeInner};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

/// `N` bytes, neither more nor less. Holding one proves the length and nothing else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes<const N: usize>(pub [u8; N]);

/// The text is not `N` bytes in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BytesError {
    /// Another number of bytes.
    #[error("expected {expected} bytes, found {found}")]
    Length {
        /// What the type holds.
        expected: usize,
        /// What was given.
        found: usize,
    },
    /// A character outside `0-9 a-f A-F`, or an odd number of them.
    #[error("not hexadecimal")]
    NotHex,
}

impl<const N: usize> Bytes<N> {
    /// The bytes, if there are `N` of them.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, BytesError> {
        bytes.try_into().map(Self).map_err(|_| BytesError::Length {
            expected: N,
            found: bytes.len(),
        })
    }

    /// The first 8 hexadecimal digits: enough for people and for names on one host.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..4.min(N)])
    }
}

impl<const N: usize> fmt::Display for Bytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl<const N: usize> fmt::Debug for Bytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<const N: usize> FromStr for Bytes<N> {
    type Err = BytesError;
    fn from_str(text: &str) -> Result<Self, BytesError> {
        let bytes = hex::decode(text).map_err(|_| BytesError::NotHex)?;
        Self::from_slice(&bytes)
    }
}

impl<const N: usize> AsRef<[u8]> for Bytes<N> {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl<const N: usize> CandidType for Bytes<N> {
    fn _ty() -> Type {
        TypeInner::Vec(TypeInner::Nat8.into()).into()
    }
    fn idl_serialize<S: CandidSerializer>(&self, serializer: S) -> Result<(), S::Error> {
        serializer.serialize_blob(&self.0)
    }
}

impl<const N: usize> Serialize for Bytes<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_bytes(&self.0)
        }
    }
}

impl<'de, const N: usize> Deserialize<'de> for Bytes<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BytesVisitor<const N: usize>;
        impl<'de, const N: usize> Visitor<'de> for BytesVisitor<N> {
            type Value = Bytes<N>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{N} bytes")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                Bytes::from_slice(bytes).map_err(E::custom)
            }
        }
        if deserializer.is_human_readable() {
            deserializer.deserialize_str(BytesVisitor)
        } else {
            deserializer.deserialize_bytes(BytesVisitor)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candid_and_json_round_trip_and_refuse_other_lengths() {
        let id = Bytes::<32>([7; 32]);
        let wire = candid::encode_one(id).unwrap();
        assert_eq!(candid::decode_one::<Bytes<32>>(&wire).unwrap(), id);
        assert!(candid::decode_one::<Bytes<32>>(&candid::encode_one(vec![1u8; 31]).unwrap()).is_err());
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("\"{}\"", "07".repeat(32)));
        assert_eq!(serde_json::from_str::<Bytes<32>>(&json).unwrap(), id);
        assert_eq!(
            "07".parse::<Bytes<32>>(),
            Err(BytesError::Length {
                expected: 32,
                found: 1
            })
        );
        assert_eq!("zz".parse::<Bytes<1>>(), Err(BytesError::NotHex));
    }
}
