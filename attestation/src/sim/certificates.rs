//! A certificate chain in the shape of AMD's (57230, "VCEK Certificate and KDS Interface"): ARK → ASK → VCEK, RSA-4096
//! with PSS and SHA-384 for the first two, a P-384 key in the last, with the chip's extensions.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PSS_SHA384};

use super::SimError;
use super::der::{bits, integer, oid, sequence, tlv};
use crate::snp::TcbVersion;

const AMD: [u32; 8] = [1, 3, 6, 1, 4, 1, 3704, 1];
pub(super) const NOT_BEFORE: &str = "240101000000Z";
pub(super) const NOT_AFTER: &str = "490101000000Z";

/// An RSA key with a name.
pub(super) struct Issuer {
    key: RsaKeyPair,
    common_name: String,
}

impl Issuer {
    pub(super) fn generate(common_name: String) -> Result<Self, SimError> {
        let key = RsaKeyPair::generate(KeySize::Rsa4096).map_err(|_| SimError("cannot make an RSA key"))?;
        Ok(Self { key, common_name })
    }

    /// A CA certificate for `subject`, signed by this key.
    pub(super) fn certify_ca(&self, subject: &Self, serial: u32) -> Result<Vec<u8>, SimError> {
        let spki = sequence(&[
            sequence(&[oid(&[1, 2, 840, 113549, 1, 1, 1]), tlv(0x05, &[])]),
            bits(subject.key.public_key().as_ref()),
        ]);
        let basic = sequence(&[tlv(0x01, &[0xff])]);
        let extensions = [
            extension(&[2, 5, 29, 19], Critical::Yes, &basic),
            extension(&[2, 5, 29, 15], Critical::Yes, &tlv(0x03, &[1, 0x06])), // keyCertSign, cRLSign
        ];
        self.certify(&subject.common_name, serial, &spki, &extensions)
    }

    /// A certificate of a TPM's attestation key. `usage`: arcs of its extended key usage.
    pub(super) fn certify_ak(&self, spki: &[u8], usage: Option<&[u32]>) -> Result<Vec<u8>, SimError> {
        let signs = extension(&[2, 5, 29, 15], Critical::Yes, &tlv(0x03, &[7, 0x80])); // digitalSignature
        let usage = usage.map(|arcs| extension(&[2, 5, 29, 37], Critical::No, &sequence(&[oid(arcs)])));
        let extensions: Vec<Vec<u8>> = [signs].into_iter().chain(usage).collect();
        self.certify("AK", 77, spki, &extensions)
    }

    /// The chip's certificate.
    pub(super) fn certify_vcek(
        &self,
        product_name: &str,
        point: &[u8],
        chip_id: &[u8],
        tcb: TcbVersion,
    ) -> Result<Vec<u8>, SimError> {
        let curve = sequence(&[oid(&[1, 2, 840, 10045, 2, 1]), oid(&[1, 3, 132, 0, 34])]);
        let spki = sequence(&[curve, bits(point)]);
        let struct_version = u8::from(tcb.fmc.is_some());
        let mut extensions = vec![
            amd(&[1], &integer(&[struct_version])),
            amd(&[2], &tlv(0x16, product_name.as_bytes())),
            amd(&[3, 1], &integer(&[tcb.bootloader])),
            amd(&[3, 2], &integer(&[tcb.tee])),
            amd(&[3, 3], &integer(&[tcb.snp])),
        ];
        extensions.extend((4..=7).map(|spl| amd(&[3, spl], &integer(&[0]))));
        extensions.push(amd(&[3, 8], &integer(&[tcb.microcode])));
        if let Some(fmc) = tcb.fmc {
            extensions.push(amd(&[3, 9], &integer(&[fmc])));
        }
        extensions.push(amd(&[4], chip_id));
        self.certify("SEV-VCEK", 0, &spki, &extensions)
    }

    fn certify(
        &self,
        subject: &str,
        serial: u32,
        spki: &[u8],
        extensions: &[Vec<u8>],
    ) -> Result<Vec<u8>, SimError> {
        let tbs = sequence(&[
            tlv(0xa0, &integer(&[2])),
            integer(&serial.to_be_bytes()),
            rsa_pss_sha384(),
            name(&self.common_name),
            sequence(&[tlv(0x17, NOT_BEFORE.as_bytes()), tlv(0x17, NOT_AFTER.as_bytes())]),
            name(subject),
            spki.to_vec(),
            tlv(0xa3, &sequence(extensions)),
        ]);
        self.sign(tbs)
    }

    /// `SEQUENCE { to be signed, algorithm, signature }`.
    fn sign(&self, tbs: Vec<u8>) -> Result<Vec<u8>, SimError> {
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(&RSA_PSS_SHA384, &SystemRandom::new(), &tbs, &mut signature)
            .map_err(|_| SimError("cannot sign a certificate"))?;
        Ok(sequence(&[tbs, rsa_pss_sha384(), bits(&signature)]))
    }
}

/// Signs revocation lists of one platform's root.
pub struct CrlIssuer(pub(super) Issuer);

impl CrlIssuer {
    /// A list of revoked serial numbers, valid from `this_update` to `next_update` (UTCTime: `260819000000Z`).
    pub fn crl(&self, revoked: &[u32], this_update: &str, next_update: &str) -> Result<Vec<u8>, SimError> {
        let issuer = &self.0;
        let time = |text: &str| tlv(0x17, text.as_bytes());
        let entry = |serial: &u32| sequence(&[integer(&serial.to_be_bytes()), time(this_update)]);
        let mut parts = vec![
            integer(&[1]),
            rsa_pss_sha384(),
            name(&issuer.common_name),
            time(this_update),
            time(next_update),
        ];
        if !revoked.is_empty() {
            parts.push(sequence(&revoked.iter().map(entry).collect::<Vec<_>>()));
        }
        let number = extension(&[2, 5, 29, 20], Critical::No, &integer(&[1]));
        parts.push(tlv(0xa0, &sequence(&[number])));
        issuer.sign(sequence(&parts))
    }
}

pub(super) enum Critical {
    Yes,
    No,
}

pub(super) fn extension(id: &[u32], critical: Critical, value: &[u8]) -> Vec<u8> {
    let mut parts = vec![oid(id)];
    if matches!(critical, Critical::Yes) {
        parts.push(tlv(0x01, &[0xff]));
    }
    parts.push(tlv(0x04, value));
    sequence(&parts)
}

fn amd(arcs: &[u32], value: &[u8]) -> Vec<u8> {
    extension(&[&AMD[..], arcs].concat(), Critical::No, value)
}

/// `C=US, O=…, CN=…`; the organisation says what this is, for whoever looks at such a certificate.
pub(super) fn name(common_name: &str) -> Vec<u8> {
    let attribute = |arcs: &[u32], text: &str| tlv(0x31, &sequence(&[oid(arcs), tlv(0x0c, text.as_bytes())]));
    sequence(&[
        attribute(&[2, 5, 4, 10], "Decent Cloud SIMULATED platform, for tests only"),
        attribute(&[2, 5, 4, 3], common_name),
    ])
}

/// RSASSA-PSS with SHA-384, MGF1 with SHA-384, 48 bytes of salt (RFC 4055).
fn rsa_pss_sha384() -> Vec<u8> {
    let sha384 = sequence(&[oid(&[2, 16, 840, 1, 101, 3, 4, 2, 2]), tlv(0x05, &[])]);
    let mgf1 = sequence(&[oid(&[1, 2, 840, 113549, 1, 1, 8]), sha384.clone()]);
    let parameters = sequence(&[
        tlv(0xa0, &sha384),
        tlv(0xa1, &mgf1),
        tlv(0xa2, &integer(&[48])),
        tlv(0xa3, &integer(&[1])),
    ]);
    sequence(&[oid(&[1, 2, 840, 113549, 1, 1, 10]), parameters])
}
