//! What a tenant asked its VM to be set up with, as one digest, and the contract id that commits to it.
//!
//! The contract id is the launch's `HOST_DATA` (TDX: `MRCONFIGID`). A guest that compares it with the settings it was
//! given, before it applies any, can't be set up with others, whatever its host writes on the seed disk.

use sha2::{Digest, Sha256};

/// First bytes of what [`settings_digest`] hashes.
pub const SETTINGS_DOMAIN: &[u8] = b"decent-cloud settings v1\0";

/// First bytes of what [`contract_id`] hashes.
pub const CONTRACT_DOMAIN: &[u8] = b"decent-cloud contract v1\0";

/// The id of a contract: `SHA-256(domain ‖ salt ‖ settings)`.
///
/// `salt` makes it the contract's own: the ledger hashes its tip, who rents and what into it. `settings` is
/// [`settings_digest`]. All three have 32 bytes, so nobody finds another salt and other settings for the same id.
pub fn contract_id(salt: &[u8; 32], settings: &[u8; 32]) -> [u8; 32] {
    Sha256::new()
        .chain_update(CONTRACT_DOMAIN)
        .chain_update(salt)
        .chain_update(settings)
        .finalize()
        .into()
}

/// The digest of a tenant's settings: the SSH keys in their order, each without the white space around it, and the user
/// data byte by byte.
///
/// `SHA-256(domain ‖ u32 BE count ‖ per key: u32 BE length ‖ key ‖ u32 BE length ‖ user data)`.
///
/// The guest computes it from the seed that it was given, the relying party from what it asked for. Host name, names in
/// the TLS certificate and network settings are not in it: they are the host's to choose.
pub fn settings_digest<'a>(ssh_public_keys: impl Iterator<Item = &'a str>, user_data: &[u8]) -> [u8; 32] {
    let mut sha = Sha256::new();
    let mut count = 0u32;
    let mut parts = Vec::new();
    for key in ssh_public_keys {
        let key = key.trim().as_bytes();
        count += 1;
        parts.extend((key.len() as u32).to_be_bytes());
        parts.extend(key);
    }
    sha.update(SETTINGS_DOMAIN);
    sha.update(count.to_be_bytes());
    sha.update(parts);
    sha.update((user_data.len() as u32).to_be_bytes());
    sha.update(user_data);
    sha.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_settings_share_a_digest_but_for_space_around_keys() {
        let digest = |keys: &[&str], data: &[u8]| settings_digest(keys.iter().copied(), data);
        let mut all = vec![
            digest(&[], b""),
            digest(&[""], b""),
            digest(&["a"], b""),
            digest(&["b"], b""),
            digest(&["a", "b"], b""),
            digest(&["b", "a"], b""),
            digest(&["ab"], b""),
            digest(&["a", "a"], b""),
            digest(&["a"], b"b"),
            digest(&["a"], b"b\n"),
            digest(&[], b"ab"),
        ];
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert_eq!(digest(&[" a\n"], b"x"), digest(&["a"], b"x"));
    }

    #[test]
    fn another_salt_and_other_settings_are_another_contract() {
        let bytes = [&b"decent-cloud contract v1\0"[..], &[1; 32], &[2; 32]].concat();
        let expected: [u8; 32] = Sha256::digest(bytes).into();
        assert_eq!(contract_id(&[1; 32], &[2; 32]), expected);
        for (salt, settings) in [(2, 1), (1, 1), (2, 2)] {
            assert_ne!(contract_id(&[salt; 32], &[settings; 32]), expected);
        }
    }

    #[test]
    fn the_format_is_the_documented_one() {
        let bytes = b"decent-cloud settings v1\0\0\0\0\x02\0\0\0\x01a\0\0\0\x02bc\0\0\0\x03#!x";
        let expected: [u8; 32] = Sha256::digest(bytes).into();
        assert_eq!(settings_digest(["a", "bc"].into_iter(), b"#!x"), expected);
    }
}
