//! The certificate table that a host hands to an SEV-SNP guest along with its report.
//!
//! ```text
//! table = entry* ‖ entry of zeroes ‖ contents          (AMD 56421, GHCB, 4.1.8.1)
//! entry = GUID (16 bytes) ‖ offset from the table's start (u32 LE) ‖ length (u32 LE)
//! ```
//!
//! All of it is the host's word: nothing authenticates it, and the verifier judges the certificates. So a table that
//! lies costs the evidence its certificates, never the report; [`Table`] says what was wrong.

use std::ops::Range;

use crate::evidence::{CERTIFICATE_LEN_MAX, CERTIFICATES_MAX};
use crate::x509::check_certificate;

/// One entry of the header, in bytes.
const ENTRY: usize = 24;
/// More than any host has reason to give.
const ENTRIES_MAX: usize = 16;
/// Certificate revocation list: belongs into the table, but not into evidence.
const CRL: u128 = 0x92f81bc3_5811_4d3d_97ff_d19f88dc67ea;
/// VCEK, ASK, ARK, as the GHCB specification names them.
const CHAIN: [u128; 3] = [
    0x63da758d_e664_4564_adc5_f4b93be8accd,
    0x4ab7b379_bbac_4fe4_a02f_05aef327c782,
    0xc0b406a4_a803_4952_9743_3fb6014cd0ae,
];

/// What a certificate table holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Its certificates (DER), in the table's order and whatever their GUIDs say: the verifier sorts them.
    pub certificates: Vec<Vec<u8>>,
    /// What of it is unusable.
    pub faults: Vec<TableFault>,
}

/// What is wrong with a certificate table, or with one entry of it (counted from 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableFault {
    /// The header runs into the table's end, or on for too long.
    #[error("no empty entry ends the header")]
    NoEnd,
    /// An entry points into the header or behind the table.
    #[error("entry {0} points outside of the contents")]
    Outside(usize),
    /// Two entries claim the same bytes.
    #[error("entry {0} overlaps with one before it")]
    Overlap(usize),
    /// The content is no certificate in DER.
    #[error("entry {0} is no X.509 certificate")]
    NoCertificate(usize),
    /// One that evidence has no room for.
    #[error("entry {0} is longer than a certificate may be")]
    TooLong(usize),
    /// More certificates than evidence has room for.
    #[error("more than {CERTIFICATES_MAX} certificates")]
    TooMany,
}

impl Table {
    /// Reads a table; an empty one, or one of zeroes, holds nothing.
    pub fn parse(table: &[u8]) -> Self {
        let mut found = Self::default();
        if table.iter().all(|byte| *byte == 0) {
            return found;
        }
        let header = table.chunks_exact(ENTRY).take(ENTRIES_MAX + 1);
        let Some(count) = header.clone().position(|entry| entry == [0; ENTRY]) else {
            found.faults.push(TableFault::NoEnd);
            return found;
        };
        let contents = (count + 1) * ENTRY;
        let mut taken: Vec<Range<usize>> = Vec::new();
        for (n, entry) in header.take(count).enumerate() {
            match content(entry, table, contents, &mut taken, n) {
                Ok(Some(_)) if found.certificates.len() == CERTIFICATES_MAX => {
                    found.faults.push(TableFault::TooMany);
                    break;
                }
                Ok(certificate) => found.certificates.extend(certificate.map(<[u8]>::to_vec)),
                Err(fault) => found.faults.push(fault),
            }
        }
        found
    }

    /// A table with these certificates: the VEK first, then its issuers; at most three.
    pub fn of_chain(certificates: &[Vec<u8>]) -> Vec<u8> {
        let mut offset = ENTRY * (certificates.len().min(CHAIN.len()) + 1);
        let (mut table, mut contents) = (Vec::new(), Vec::new());
        for (guid, der) in CHAIN.iter().zip(certificates) {
            table.extend(guid.to_be_bytes());
            table.extend((offset as u32).to_le_bytes());
            table.extend((der.len() as u32).to_le_bytes());
            contents.extend_from_slice(der);
            offset += der.len();
        }
        table.extend([0; ENTRY]);
        table.extend(contents);
        table
    }
}

/// The certificate that entry `n` points to; `None`: something else that may stand there.
fn content<'a>(
    entry: &[u8],
    table: &'a [u8],
    contents: usize,
    taken: &mut Vec<Range<usize>>,
    n: usize,
) -> Result<Option<&'a [u8]>, TableFault> {
    let number = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
    let start = number(16) as usize;
    let range = start..start.saturating_add(number(20) as usize);
    let der = table
        .get(range.clone())
        .filter(|der| start >= contents && !der.is_empty());
    let der = der.ok_or(TableFault::Outside(n))?;
    if taken
        .iter()
        .any(|other| range.start < other.end && other.start < range.end)
    {
        return Err(TableFault::Overlap(n));
    }
    taken.push(range);
    if entry.starts_with(&CRL.to_be_bytes()) {
        return Ok(None);
    }
    if der.len() > CERTIFICATE_LEN_MAX {
        return Err(TableFault::TooLong(n));
    }
    check_certificate(der).map_err(|_| TableFault::NoCertificate(n))?;
    Ok(Some(der))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vector(name: &str) -> Vec<u8> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/snp/");
        std::fs::read(format!("{path}{name}")).unwrap()
    }

    /// AMD's own.
    fn chain() -> Vec<Vec<u8>> {
        ["ask", "ark"]
            .map(|name| vector(&format!("ca/milan/{name}.der")))
            .to_vec()
    }

    fn put(table: &mut [u8], entry: usize, field: usize, value: u32) {
        let at = entry * ENTRY + field;
        table[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    const OFFSET: usize = 16;
    const LENGTH: usize = 20;

    #[test]
    fn a_table_gives_back_the_certificates_that_went_in() {
        let chain = chain();
        let table = Table::of_chain(&chain);
        let want = Table {
            certificates: chain,
            faults: vec![],
        };
        assert_eq!(Table::parse(&table), want);
        // The kernel gives the whole buffer, with zeroes behind the table.
        assert_eq!(Table::parse(&[table, vec![0; 5000]].concat()), want);
        assert_eq!(Table::parse(&[]), Table::default());
        assert_eq!(
            Table::parse(&[0; 16384]),
            Table::default(),
            "a host that gives none"
        );
        assert_eq!(Table::parse(&[0; 7]), Table::default());
    }

    #[test]
    fn what_a_host_lies_about_is_named_and_the_rest_is_kept() {
        let chain = chain();
        let good = Table::of_chain(&chain);
        let first = (ENTRY * (chain.len() + 1)) as u32;
        let second = first + chain[0].len() as u32;
        type Lie = Box<dyn Fn(&mut Vec<u8>)>;
        let lies: Vec<(&str, Lie, usize, TableFault)> = vec![
            (
                "behind the table",
                Box::new(|t| put(t, 0, OFFSET, u32::MAX)),
                1,
                TableFault::Outside(0),
            ),
            (
                "sum beyond 32 bits",
                Box::new(|t| put(t, 1, LENGTH, u32::MAX)),
                1,
                TableFault::Outside(1),
            ),
            (
                "one byte too long",
                Box::new(|t| t.truncate(t.len() - 1)),
                1,
                TableFault::Outside(1),
            ),
            (
                "into the header",
                Box::new(|t| put(t, 0, OFFSET, 24)),
                1,
                TableFault::Outside(0),
            ),
            (
                "empty",
                Box::new(|t| put(t, 1, LENGTH, 0)),
                1,
                TableFault::Outside(1),
            ),
            (
                "the same twice",
                Box::new(move |t| put(t, 1, OFFSET, first)),
                1,
                TableFault::Overlap(1),
            ),
            (
                "into the one before",
                Box::new(move |t| put(t, 1, OFFSET, second - 1)),
                1,
                TableFault::Overlap(1),
            ),
            (
                "cut short",
                Box::new(|t| put(t, 1, LENGTH, 100)),
                1,
                TableFault::NoCertificate(1),
            ),
            (
                "not DER",
                Box::new(move |t| t[first as usize] = 0),
                1,
                TableFault::NoCertificate(0),
            ),
            (
                "header without an end",
                Box::new(|t| t.truncate(2 * ENTRY)),
                0,
                TableFault::NoEnd,
            ),
            (
                "no whole entry",
                Box::new(|t| t.truncate(ENTRY - 1)),
                0,
                TableFault::NoEnd,
            ),
            (
                "endless header",
                Box::new(|t| *t = vec![1; 1 << 20]),
                0,
                TableFault::NoEnd,
            ),
            (
                "huge certificate",
                Box::new(|t| {
                    t.resize(64 * 1024, 0x30);
                    put(t, 1, LENGTH, 20_000);
                }),
                1,
                TableFault::TooLong(1),
            ),
        ];
        for (name, lie, kept, fault) in lies {
            let mut table = good.clone();
            lie(&mut table);
            let found = Table::parse(&table);
            assert_eq!(
                (found.certificates.len(), found.faults.as_slice()),
                (kept, &[fault][..]),
                "{name}"
            );
        }
    }

    #[test]
    fn a_revocation_list_is_left_out_and_evidence_is_never_overfilled() {
        let chain = chain();
        let mut table = Table::of_chain(&chain);
        table[..16].copy_from_slice(&CRL.to_be_bytes());
        let found = Table::parse(&table);
        assert_eq!(found.certificates, chain[1..]);
        assert_eq!(found.faults, []);

        let count = CERTIFICATES_MAX + 2;
        let mut many = Vec::new();
        for n in 0..count {
            many.extend(CHAIN[0].to_be_bytes());
            many.extend(((ENTRY * (count + 1) + n * chain[0].len()) as u32).to_le_bytes());
            many.extend((chain[0].len() as u32).to_le_bytes());
        }
        many.extend([0; ENTRY]);
        (0..count).for_each(|_| many.extend(&chain[0]));
        let found = Table::parse(&many);
        assert_eq!(found.certificates.len(), CERTIFICATES_MAX);
        assert_eq!(found.faults, [TableFault::TooMany]);
    }

    proptest! {
        #[test]
        fn any_bytes_give_bounded_certificates(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let found = Table::parse(&bytes);
            prop_assert!(found.certificates.len() <= CERTIFICATES_MAX && found.faults.len() <= ENTRIES_MAX);
        }
    }
}
