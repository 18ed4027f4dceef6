//! A simulated GPU (or NVSwitch), with what its maker issues: certificates, reference manifests, OCSP responses.
//!
//! One root stands above all of it. As with [`super::Platform`], everything has the real format, and nothing trusts the
//! root unless somebody names it.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

use super::SimError;
use super::certificates::{Critical, extension, name};
use super::der::{bits, integer, oid, sequence, tlv};

/// A key with a name and its certificate.
struct Entity {
    name: String,
    serial: u8,
    pkcs8: Vec<u8>,
    certificate: Vec<u8>,
}

/// What a simulated device reports; [`GpuFacts::default`] is a Hopper GPU in good order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuFacts {
    /// The requester's nonce.
    pub nonce: [u8; 32],
    /// Values by index, the first is SPDM's index 1.
    pub measurements: Vec<Vec<u8>>,
    /// Fields of the opaque data: type and value.
    pub opaque: Vec<(u16, Vec<u8>)>,
}

/// What a simulated manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RimFacts {
    /// `GH100`.
    pub product: String,
    /// Of the driver or the VBIOS.
    pub version: String,
    /// Index (from 0), whether it counts, its alternatives.
    pub measurements: Vec<(u8, bool, Vec<Vec<u8>>)>,
}

/// What a simulated responder says of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OcspStatus {
    /// In force.
    Good,
    /// Revoked, key compromise.
    Revoked,
    /// Revoked, `certificateHold`.
    Hold,
    /// Unknown to the responder.
    Unknown,
}

/// Who signs a simulated OCSP response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OcspSigner {
    /// The certificate's issuer.
    Issuer,
    /// A responder that the issuer certified for it.
    Responder,
    /// A certificate of the issuer's that isn't for responses.
    NotAResponder,
}

/// One simulated device with its chain, and its maker.
pub struct Gpu {
    /// Root, identity, provisioner, ROM, firmware.
    chain: [Entity; 5],
    signer: Entity,
    responder: Entity,
    impostor: Entity,
}

/// Firmware identity of a new device.
const FWID: [u8; 48] = [0xf1; 48];
/// Validity of the manifests' signer, `YYMMDDhhmmssZ`; everything else is valid from 2024 to 2049.
const RIM_SIGNER_WINDOW: [&str; 2] = ["260101000000Z", "280101000000Z"];
const WINDOW: [&str; 2] = ["240101000000Z", "490101000000Z"];

impl Default for GpuFacts {
    fn default() -> Self {
        let text = |text: &str| [text.as_bytes(), &[0]].concat();
        Self {
            nonce: [7; 32],
            measurements: (0..64).map(|n| vec![n; 48]).collect(),
            opaque: vec![
                (6, vec![0x00, 0x9f, 0x00, 0x96, 0x01, 0, 0, 0]),
                (15, text("885")),
                (17, text("G520")),
                (18, text("0200")),
                (3, text("590.12")),
                (11, vec![0x55]),
                (20, FWID.to_vec()),
                (21, vec![0x55]),
                (34, vec![1, 0]),
                (36, vec![0, 0]),
            ],
        }
    }
}

impl GpuFacts {
    /// The same with one field of the opaque data replaced, added or (`None`) taken away.
    pub fn with_field(mut self, kind: u16, value: Option<&[u8]>) -> Self {
        self.opaque.retain(|(known, _)| *known != kind);
        self.opaque.extend(value.map(|value| (kind, value.to_vec())));
        self
    }
}

impl Gpu {
    /// A new Hopper GPU. `debug`: a Blackwell GPU, whose certificate says whether its firmware may be debugged.
    pub fn create(debug: Option<bool>) -> Result<Self, SimError> {
        let chip = if debug.is_some() { "GB100" } else { "GH100" };
        let (composite, flags): (&[u32], Option<bool>) = match debug {
            None => (&[2, 23, 133, 5, 4, 1], None),
            debug => (&[2, 23, 133, 5, 4, 1, 1], debug),
        };
        let fwid = sequence(&[oid(&[2, 16, 840, 1, 101, 3, 4, 2, 2]), tlv(0x04, &FWID)]);
        let firmware = match flags {
            None => sequence(&[integer(&[1]), sequence(&[]), fwid]),
            Some(debug) => {
                let flags = [0, if debug { 0x90 } else { 0x80 }, 0, 0, 1];
                sequence(&[tlv(0x80, b"NVIDIA"), tlv(0xa6, &fwid), tlv(0x87, &flags)])
            }
        };
        let ca = [
            extension(&[2, 5, 29, 19], Critical::Yes, &sequence(&[tlv(0x01, &[0xff])])),
            extension(&[2, 5, 29, 15], Critical::Yes, &tlv(0x03, &[1, 0x06])),
        ];
        let purpose = |arcs: &[u32]| vec![extension(&[2, 5, 29, 37], Critical::No, &sequence(&[oid(arcs)]))];
        let root = Entity::issue("SIMULATED device root".to_owned(), 1, None, &ca, WINDOW)?;
        let below = |issuer: &Entity, name: &str, serial, extensions: &[Vec<u8>], window| {
            Entity::issue(
                format!("{chip} SIMULATED {name}"),
                serial,
                Some(issuer),
                extensions,
                window,
            )
        };
        let identity = below(&root, "Identity", 2, &ca, WINDOW)?;
        let provisioner = below(&identity, "Provisioner", 3, &ca, WINDOW)?;
        let rom = below(&provisioner, "BROM", 4, &ca, WINDOW)?;
        let leaf = below(
            &rom,
            "FMC",
            5,
            &[extension(composite, Critical::No, &firmware)],
            WINDOW,
        )?;
        let signer = below(&root, "RIM signer", 6, &[], RIM_SIGNER_WINDOW)?;
        let responder = below(
            &provisioner,
            "responder",
            7,
            &purpose(&[1, 3, 6, 1, 5, 5, 7, 3, 9]),
            WINDOW,
        )?;
        let impostor = below(
            &provisioner,
            "server",
            8,
            &purpose(&[1, 3, 6, 1, 5, 5, 7, 3, 1]),
            WINDOW,
        )?;
        let chain = [root, identity, provisioner, rom, leaf];
        Ok(Self {
            chain,
            signer,
            responder,
            impostor,
        })
    }

    /// The root's certificate (DER).
    pub fn root(&self) -> &[u8] {
        &self.chain[0].certificate
    }

    /// The chain (DER), leaf first.
    pub fn chain(&self) -> Vec<Vec<u8>> {
        self.chain
            .iter()
            .rev()
            .map(|entity| entity.certificate.clone())
            .collect()
    }

    /// A report (request and response), signed by the device.
    pub fn report(&self, facts: &GpuFacts) -> Result<Vec<u8>, SimError> {
        let mut report = vec![0x11, 0xe0, 1, 0xff];
        report.extend(facts.nonce);
        report.extend([0, 0x11, 0x60, 0, 0, facts.measurements.len() as u8]);
        let mut record = Vec::new();
        for (index, value) in (1..).zip(&facts.measurements) {
            let len = value.len() as u16;
            record.extend([index, 1]);
            record.extend((len + 3).to_le_bytes());
            record.push(1);
            record.extend(len.to_le_bytes());
            record.extend(value);
        }
        report.extend(&(record.len() as u32).to_le_bytes()[..3]);
        report.extend(record);
        report.extend([9; 32]);
        let field = |(kind, value): &(u16, Vec<u8>)| {
            [
                &kind.to_le_bytes()[..],
                &(value.len() as u16).to_le_bytes(),
                value,
            ]
            .concat()
        };
        let opaque: Vec<u8> = facts.opaque.iter().flat_map(field).collect();
        report.extend((opaque.len() as u16).to_le_bytes());
        report.extend(opaque);
        let signature = self.chain[4].sign_fixed(&report)?;
        report.extend(signature);
        Ok(report)
    }

    /// A signed manifest.
    pub fn rim(&self, facts: &RimFacts) -> Result<String, SimError> {
        let (product, version) = (&facts.product, &facts.version);
        let mut resources = String::new();
        for (index, active, values) in &facts.measurements {
            let active = if *active { "True" } else { "False" };
            let hash = |(n, value): (usize, &Vec<u8>)| format!(" ns2:Hash{n}=\"{}\"", hex::encode(value));
            let hashes: String = values.iter().enumerate().map(hash).collect();
            let (count, size) = (values.len(), values.first().map_or(0, Vec::len));
            resources += &format!(
                "<ns0:Resource type=\"Measurement\" index=\"{index}\" active=\"{active}\" alternatives=\"{count}\"\
                 {hashes} name=\"Measurement_{index}\" size=\"{size}\"/>\n"
            );
        }
        let certificate = |entity: &Entity| {
            let der = STANDARD.encode(&entity.certificate);
            format!("<ds:X509Certificate>{der}\n</ds:X509Certificate>")
        };
        let certificates = [&self.signer, &self.chain[0]].map(certificate).concat();
        let document = |digest: &[u8; 48], value: &[u8; 96]| {
            format!(
                "<SoftwareIdentity xmlns=\"http://standards.iso.org/iso/19770/-2/2015/schema.xsd\" \
                 xmlns:ns0=\"http://standards.iso.org/iso/19770/-2/2015/schema.xsd\" \
                 xmlns:ns2=\"http://www.w3.org/2001/04/xmlenc#sha384\" name=\"{product}\" tagId=\"simulated\">\n\
                 <ns0:Entity name=\"SIMULATED\" role=\"softwareCreator tagCreator\"/>\n\
                 <ns0:Meta xmlns:ns1=\"https://trustedcomputinggroup.org/resource/tcg-reference-integrity-manifest-rim-information-model/\" \
                 colloquialVersion=\"{version}\" product=\"{product}\" PayloadType=\"direct\" ns1:FirmwareManufacturerId=\"5703\"/>\n\
                 <ns0:Payload>\n{resources}</ns0:Payload>\n\
                 <ds:Signature xmlns:ds=\"http://www.w3.org/2000/09/xmldsig#\"><ds:SignedInfo>\
                 <ds:CanonicalizationMethod Algorithm=\"http://www.w3.org/2006/12/xml-c14n11\"/>\
                 <ds:SignatureMethod Algorithm=\"http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384\"/>\
                 <ds:Reference URI=\"\"><ds:Transforms>\
                 <ds:Transform Algorithm=\"http://www.w3.org/2000/09/xmldsig#enveloped-signature\"/>\
                 <ds:Transform Algorithm=\"http://www.w3.org/2006/12/xml-c14n11\"/></ds:Transforms>\
                 <ds:DigestMethod Algorithm=\"http://www.w3.org/2001/04/xmldsig-more#sha384\"/>\
                 <ds:DigestValue>{}</ds:DigestValue></ds:Reference></ds:SignedInfo>\
                 <ds:SignatureValue>{}</ds:SignatureValue>\
                 <ds:KeyInfo><ds:X509Data>{certificates}</ds:X509Data></ds:KeyInfo></ds:Signature></SoftwareIdentity>\n",
                STANDARD.encode(digest),
                STANDARD.encode(value)
            )
        };
        let to_be_signed = |xml: &str| {
            crate::nvidia::rim_to_be_signed(xml).ok_or(SimError("a manifest that can't be read back"))
        };
        let (digest, _) = to_be_signed(&document(&[0; 48], &[0; 96]))?;
        let (_, signed_info) = to_be_signed(&document(&digest, &[0; 96]))?;
        let value = self.signer.sign_fixed(&signed_info)?;
        Ok(document(&digest, &value))
    }

    /// An OCSP response about the ROM's certificate (`index` 1 of the chain), the provisioner's (2), the identity's (3)
    /// or the manifests' signer (0). Times as `20260819000000Z`. Responders exist for the ROM's certificate only.
    pub fn ocsp(
        &self,
        index: usize,
        status: OcspStatus,
        signer: OcspSigner,
        [this_update, next_update]: [&str; 2],
    ) -> Result<Vec<u8>, SimError> {
        let (subject, issuer) = match index {
            0 => (&self.signer, &self.chain[0]),
            1..=3 => (&self.chain[4 - index], &self.chain[3 - index]),
            _ => return Err(SimError("no such certificate")),
        };
        let time = |text: &str| tlv(0x18, text.as_bytes());
        let sha1 = |bytes: &[u8]| tlv(0x04, &Sha1::digest(bytes));
        let id = sequence(&[
            sequence(&[oid(&[1, 3, 14, 3, 2, 26]), tlv(0x05, &[])]),
            sha1(&name(&issuer.name)),
            sha1(&issuer.point()?),
            integer(&[subject.serial]),
        ]);
        let revoked = |reason: u8| {
            tlv(
                0xa1,
                &[time(this_update), tlv(0xa0, &tlv(0x0a, &[reason]))].concat(),
            )
        };
        let status = match status {
            OcspStatus::Good => tlv(0x80, &[]),
            OcspStatus::Revoked => revoked(1),
            OcspStatus::Hold => revoked(6),
            OcspStatus::Unknown => tlv(0x82, &[]),
        };
        let single = sequence(&[id, status, time(this_update), tlv(0xa0, &time(next_update))]);
        let data = sequence(&[
            tlv(0xa2, &sha1(&issuer.point()?)),
            time(this_update),
            sequence(&[single]),
        ]);
        let signer = match signer {
            OcspSigner::Issuer => issuer,
            OcspSigner::Responder => &self.responder,
            OcspSigner::NotAResponder => &self.impostor,
        };
        let signature = signer.sign(&data)?;
        let certificates = tlv(0xa0, &sequence(std::slice::from_ref(&signer.certificate)));
        let basic = sequence(&[data, ecdsa_sha384(), bits(&signature), certificates]);
        let body = sequence(&[oid(&[1, 3, 6, 1, 5, 5, 7, 48, 1, 1]), tlv(0x04, &basic)]);
        Ok(sequence(&[tlv(0x0a, &[0]), tlv(0xa0, &body)]))
    }

    /// A CRL of the issuer of the chain's certificate `index` (1 to 3), which lists that certificate or none. `forged`:
    /// signed by somebody else. Times as `260819000000Z`.
    pub fn crl(
        &self,
        index: usize,
        lists: bool,
        forged: bool,
        [this_update, next_update]: [&str; 2],
    ) -> Result<Vec<u8>, SimError> {
        if !(1..=3).contains(&index) {
            return Err(SimError("no such certificate"));
        }
        let (subject, issuer) = (&self.chain[4 - index], &self.chain[3 - index]);
        let time = |text: &str| tlv(0x17, text.as_bytes());
        let mut parts = vec![
            integer(&[1]),
            ecdsa_sha384(),
            name(&issuer.name),
            time(this_update),
            time(next_update),
        ];
        if lists {
            let entry = sequence(&[integer(&[subject.serial]), time(this_update)]);
            parts.push(sequence(&[entry]));
        }
        let number = extension(&[2, 5, 29, 20], Critical::No, &integer(&[1]));
        parts.push(tlv(0xa0, &sequence(&[number])));
        let tbs = sequence(&parts);
        let signer = if forged { &self.signer } else { issuer };
        let signature = signer.sign(&tbs)?;
        Ok(sequence(&[tbs, ecdsa_sha384(), bits(&signature)]))
    }
}

impl Entity {
    fn issue(
        common_name: String,
        serial: u8,
        issuer: Option<&Self>,
        extensions: &[Vec<u8>],
        [from, to]: [&str; 2],
    ) -> Result<Self, SimError> {
        let key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING)
            .map_err(|_| SimError("cannot make a P-384 key"))?;
        let pkcs8 = key
            .to_pkcs8v1()
            .map_err(|_| SimError("cannot encode a key"))?
            .as_ref()
            .to_vec();
        let mut entity = Self {
            name: common_name,
            serial,
            pkcs8,
            certificate: Vec::new(),
        };
        let issuer = issuer.unwrap_or(&entity);
        let curve = sequence(&[oid(&[1, 2, 840, 10045, 2, 1]), oid(&[1, 3, 132, 0, 34])]);
        let mut parts = vec![
            tlv(0xa0, &integer(&[2])),
            integer(&[serial]),
            ecdsa_sha384(),
            name(&issuer.name),
            sequence(&[tlv(0x17, from.as_bytes()), tlv(0x17, to.as_bytes())]),
            name(&entity.name),
            sequence(&[curve, bits(key.public_key().as_ref())]),
        ];
        if !extensions.is_empty() {
            parts.push(tlv(0xa3, &sequence(extensions)));
        }
        let tbs = sequence(&parts);
        let signature = issuer.sign(&tbs)?;
        entity.certificate = sequence(&[tbs, ecdsa_sha384(), bits(&signature)]);
        Ok(entity)
    }

    /// In DER, as X.509 has it.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SimError> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, &self.pkcs8);
        let signature = key
            .ok()
            .and_then(|key| key.sign(&SystemRandom::new(), message).ok());
        Ok(signature.ok_or(SimError("cannot sign"))?.as_ref().to_vec())
    }

    /// r ‖ s, as SPDM and XML signatures have it.
    fn sign_fixed(&self, message: &[u8]) -> Result<[u8; 96], SimError> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &self.pkcs8);
        let signature = key
            .ok()
            .and_then(|key| key.sign(&SystemRandom::new(), message).ok());
        signature
            .and_then(|signature| signature.as_ref().try_into().ok())
            .ok_or(SimError("cannot sign"))
    }

    fn point(&self) -> Result<Vec<u8>, SimError> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, &self.pkcs8);
        Ok(key
            .map_err(|_| SimError("an unreadable key"))?
            .public_key()
            .as_ref()
            .to_vec())
    }
}

fn ecdsa_sha384() -> Vec<u8> {
    sequence(&[oid(&[1, 2, 840, 10045, 4, 3, 3])])
}
