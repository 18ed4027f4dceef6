//! A simulated TDX platform: quoting enclave, PCK, its CA, and Intel's collateral, under a root of its own.
//!
//! It issues quotes in the real format with collateral as Intel's service gives it. What a test wants otherwise it changes
//! in the text or the bytes and has signed again: [`TdxPlatform::sign_quote`], [`TdxPlatform::sign_text`].

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::SimError;
use super::certificates::{Critical, NOT_AFTER, NOT_BEFORE, extension, name};
use super::der::{bits, integer, oid, sequence, tlv};

const SGX: [u32; 7] = [1, 2, 840, 113_741, 1, 13, 1];
const HEADER: [u8; 28] = [
    4, 0, 2, 0, 0x81, 0, 0, 0, 0, 0, 0, 0, 0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d,
    0xb3, 0x95, 0x7f, 0x06, 0x07,
];
/// Of the simulated quoting enclave.
const MR_SIGNER: [u8; 32] = [0xd1; 32];
/// SVNs of the platform, of the TDX module, and of the quoting enclave.
const CPU_SVN: [u8; 16] = [3, 3, 2, 2, 4, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0];
const PCE_SVN: u8 = 11;
/// SVNs of a simulated platform's TDX module.
pub const TEE_TCB_SVN: [u8; 16] = [6, 1, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const QE_SVN: u16 = 8;
/// `FMSPC` of a simulated platform.
pub const FMSPC: [u8; 6] = [0xfe, 0x51, 0x00, 0xd0, 0x00, 0x00];
/// Serial number of a simulated platform's PCK certificate, and of its CA's.
pub const PCK_SERIAL: u32 = 0x5157;
/// Serial number of the certificate of its PCK's CA.
pub const PCK_CA_SERIAL: u32 = 0x0301;
/// `SEPT_VE_DISABLE`: what a TD should have.
pub const ATTRIBUTES: u64 = 1 << 28;

/// What a TD is, as its module reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Td {
    /// `ATTRIBUTES`.
    pub attributes: u64,
    /// `MRTD`.
    pub mr_td: [u8; 48],
    /// `MRCONFIGID`.
    pub mr_config_id: [u8; 48],
    /// `RTMR0` to `RTMR3`.
    pub rtmrs: [[u8; 48]; 4],
}

impl Default for Td {
    fn default() -> Self {
        Self {
            attributes: ATTRIBUTES,
            mr_td: [1; 48],
            mr_config_id: [0; 48],
            rtmrs: [[0; 48]; 4],
        }
    }
}

/// A key with the name that its certificates have.
struct Authority {
    key: EcdsaKeyPair,
    name: &'static str,
}

/// One simulated machine with everything above it.
pub struct TdxPlatform {
    root: Authority,
    ca: Authority,
    pck: Authority,
    signer: Authority,
    attestation_key: EcdsaKeyPair,
    root_der: Vec<u8>,
    ca_der: Vec<u8>,
    pck_der: Vec<u8>,
    signer_der: Vec<u8>,
    ppid: [u8; 16],
}

/// Who signs a revocation list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrlOf {
    /// The root: it may revoke the PCK's CA and the TCB signing key's certificate.
    Root,
    /// The PCK's CA: it may revoke PCKs.
    PckCa,
}

impl Authority {
    fn generate(name: &'static str) -> Result<Self, SimError> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING);
        Ok(Self {
            key: key.map_err(|_| SimError("cannot make a P-256 key"))?,
            name,
        })
    }

    fn certify(&self, subject: &Self, serial: u32, extensions: &[Vec<u8>]) -> Result<Vec<u8>, SimError> {
        let curve = sequence(&[oid(&[1, 2, 840, 10045, 2, 1]), oid(&[1, 2, 840, 10045, 3, 1, 7])]);
        let tbs = sequence(&[
            tlv(0xa0, &integer(&[2])),
            integer(&serial.to_be_bytes()),
            ecdsa_sha256(),
            name(self.name),
            sequence(&[tlv(0x17, NOT_BEFORE.as_bytes()), tlv(0x17, NOT_AFTER.as_bytes())]),
            name(subject.name),
            sequence(&[curve, bits(subject.key.public_key().as_ref())]),
            tlv(0xa3, &sequence(extensions)),
        ]);
        self.sign(tbs)
    }

    /// `SEQUENCE { to be signed, algorithm, signature }`.
    fn sign(&self, tbs: Vec<u8>) -> Result<Vec<u8>, SimError> {
        let signature = self.key.sign(&SystemRandom::new(), &tbs);
        let signature = signature.map_err(|_| SimError("cannot sign a certificate"))?;
        Ok(sequence(&[tbs, ecdsa_sha256(), bits(signature.as_ref())]))
    }

    fn crl(&self, revoked: &[u32], this_update: &str, next_update: &str) -> Result<Vec<u8>, SimError> {
        let time = |text: &str| tlv(0x17, text.as_bytes());
        let entry = |serial: &u32| sequence(&[integer(&serial.to_be_bytes()), time(this_update)]);
        let mut parts = vec![
            integer(&[1]),
            ecdsa_sha256(),
            name(self.name),
            time(this_update),
            time(next_update),
        ];
        if !revoked.is_empty() {
            parts.push(sequence(&revoked.iter().map(entry).collect::<Vec<_>>()));
        }
        let number = extension(&[2, 5, 29, 20], Critical::No, &integer(&[1]));
        let key_id = Sha256::digest(self.key.public_key().as_ref());
        let key_id = sequence(&[tlv(0x80, &key_id[..20])]);
        let authority = extension(&[2, 5, 29, 35], Critical::No, &key_id);
        parts.push(tlv(0xa0, &sequence(&[number, authority])));
        self.sign(sequence(&parts))
    }
}

fn ecdsa_sha256() -> Vec<u8> {
    sequence(&[oid(&[1, 2, 840, 10045, 4, 3, 2])])
}

fn sgx(arcs: &[u32], value: Vec<u8>) -> Vec<u8> {
    sequence(&[oid(&[&SGX[..], arcs].concat()), value])
}

/// What Intel writes into a PCK certificate.
fn sgx_extension(ppid: &[u8; 16]) -> Vec<u8> {
    let mut tcb: Vec<Vec<u8>> = (1..)
        .zip(CPU_SVN)
        .map(|(arc, svn)| sgx(&[2, arc], integer(&[svn])))
        .collect();
    tcb.push(sgx(&[2, 17], integer(&[PCE_SVN])));
    tcb.push(sgx(&[2, 18], tlv(0x04, &CPU_SVN)));
    let value = sequence(&[
        sgx(&[1], tlv(0x04, ppid)),
        sgx(&[2], sequence(&tcb)),
        sgx(&[3], tlv(0x04, &[0, 0])),
        sgx(&[4], tlv(0x04, &FMSPC)),
        sgx(&[5], tlv(0x0a, &[1])),
        sgx(&[6], tlv(0x04, &[7; 16])),
        sgx(
            &[7],
            sequence(&[
                sgx(&[7, 1], tlv(0x01, &[0xff])),
                sgx(&[7, 2], tlv(0x01, &[0])),
                sgx(&[7, 3], tlv(0x01, &[0xff])),
            ]),
        ),
    ]);
    extension(&SGX, Critical::No, &value)
}

fn pem(ders: &[&[u8]]) -> String {
    let mut text = String::new();
    for der in ders {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let base64 = STANDARD.encode(der);
        for line in base64.as_bytes().chunks(64) {
            text.extend(line.iter().map(|byte| char::from(*byte)));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

impl TdxPlatform {
    /// A new machine with keys of its own.
    pub fn create() -> Result<Self, SimError> {
        let root = Authority::generate("Intel SGX Root CA")?;
        let ca = Authority::generate("Intel SGX PCK Platform CA")?;
        let pck = Authority::generate("Intel SGX PCK Certificate")?;
        let signer = Authority::generate("Intel SGX TCB Signing")?;
        let attestation_key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
            .map_err(|_| SimError("cannot make a P-256 key"))?;
        let mut ppid = [0; 16];
        SystemRandom::new()
            .fill(&mut ppid)
            .map_err(|_| SimError("no random numbers"))?;
        let issues = [
            extension(&[2, 5, 29, 19], Critical::Yes, &sequence(&[tlv(0x01, &[0xff])])),
            extension(&[2, 5, 29, 15], Critical::Yes, &tlv(0x03, &[1, 0x06])), // keyCertSign, cRLSign
        ];
        let signs = [
            extension(&[2, 5, 29, 19], Critical::Yes, &sequence(&[])),
            extension(&[2, 5, 29, 15], Critical::Yes, &tlv(0x03, &[6, 0xc0])), // digitalSignature, nonRepudiation
        ];
        let describes = [&signs[..], &[sgx_extension(&ppid)]].concat();
        Ok(Self {
            root_der: root.certify(&root, 1, &issues)?,
            ca_der: root.certify(&ca, PCK_CA_SERIAL, &issues)?,
            pck_der: ca.certify(&pck, PCK_SERIAL, &describes)?,
            signer_der: root.certify(&signer, 2, &signs)?,
            root,
            ca,
            pck,
            signer,
            attestation_key,
            ppid,
        })
    }

    /// The root certificate (DER): what a test names to trust this platform.
    pub fn root(&self) -> &[u8] {
        &self.root_der
    }

    /// The platform's `PPID`.
    pub fn ppid(&self) -> [u8; 16] {
        self.ppid
    }

    /// PCK, its CA, the root (DER).
    pub fn chain(&self) -> [&[u8]; 3] {
        [&self.pck_der, &self.ca_der, &self.root_der]
    }

    /// Header and body of a quote of version 4, as the TDX module and the quoting enclave write them.
    pub fn unsigned_quote(&self, td: &Td, report_data: &[u8; 64]) -> Vec<u8> {
        let mut quote = vec![0; 632];
        let mut put = |at: usize, bytes: &[u8]| quote[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &HEADER);
        let body = 48;
        put(body, &TEE_TCB_SVN);
        put(body + 16, &[0x5e; 48]); // MRSEAM
        put(body + 120, &td.attributes.to_le_bytes());
        put(body + 128, &0xe7u64.to_le_bytes()); // XFAM
        put(body + 136, &td.mr_td);
        put(body + 184, &td.mr_config_id);
        for (n, rtmr) in td.rtmrs.iter().enumerate() {
            put(body + 328 + 48 * n, rtmr);
        }
        put(body + 520, report_data);
        quote
    }

    /// Header and body of a quote of version 5 with a TD 1.5 report: the SVNs that the module has now, and the hash of the
    /// service TDs.
    pub fn unsigned_quote_td15(
        &self,
        td: &Td,
        report_data: &[u8; 64],
        tee_tcb_svn2: [u8; 16],
        mr_service_td: [u8; 48],
    ) -> Vec<u8> {
        let old = self.unsigned_quote(td, report_data);
        let (header, body) = old.split_at(48);
        let mut quote = header.to_vec();
        quote[0] = 5;
        quote.extend(3u16.to_le_bytes());
        quote.extend(648u32.to_le_bytes());
        quote.extend(body);
        quote.extend(tee_tcb_svn2);
        quote.extend(mr_service_td);
        quote
    }

    /// A quote of version 4.
    pub fn quote(&self, td: &Td, report_data: &[u8; 64]) -> Result<Vec<u8>, SimError> {
        self.sign_quote(&self.unsigned_quote(td, report_data))
    }

    /// The report of the quoting enclave, with `report_data`'s 64 bytes in it.
    fn qe_report(&self, auth_data: &[u8]) -> [u8; 384] {
        let mut report = [0; 384];
        let mut put = |at: usize, bytes: &[u8]| report[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &CPU_SVN);
        put(48, &[0x15, 0, 0, 0, 0, 0, 0, 0, 0xe7]);
        put(64, &[0x9e; 32]);
        put(128, &MR_SIGNER);
        put(256, &2u16.to_le_bytes());
        put(258, &QE_SVN.to_le_bytes());
        let point = &self.attestation_key.public_key().as_ref()[1..];
        put(
            320,
            &Sha256::new()
                .chain_update(point)
                .chain_update(auth_data)
                .finalize(),
        );
        report
    }

    /// Signs header and body, whatever they say: this is how tests forge what only Intel's enclave could.
    pub fn sign_quote(&self, unsigned: &[u8]) -> Result<Vec<u8>, SimError> {
        self.sign_quote_with(unsigned, |_| {})
    }

    /// Like [`Self::sign_quote`], with a quoting enclave whose report is changed before the PCK signs it.
    pub fn sign_quote_with(
        &self,
        unsigned: &[u8],
        change: impl FnOnce(&mut [u8; 384]),
    ) -> Result<Vec<u8>, SimError> {
        let no = |_| SimError("cannot sign a quote");
        let random = SystemRandom::new();
        let auth_data = [0x20; 32];
        let mut report = self.qe_report(&auth_data);
        change(&mut report);
        let signature = self.attestation_key.sign(&random, unsigned).map_err(no)?;
        let report_signature = fixed(self.pck.key.sign(&random, &report).map_err(no)?.as_ref())?;
        let chain = pem(&self.chain());
        let certification = [
            &report[..],
            &report_signature,
            &32u16.to_le_bytes(),
            &auth_data,
            &5u16.to_le_bytes(),
            &(chain.len() as u32).to_le_bytes(),
            chain.as_bytes(),
        ]
        .concat();
        let data = [
            signature.as_ref(),
            &self.attestation_key.public_key().as_ref()[1..],
            &6u16.to_le_bytes(),
            &(certification.len() as u32).to_le_bytes(),
            &certification,
        ]
        .concat();
        Ok([unsigned, &(data.len() as u32).to_le_bytes(), &data].concat())
    }

    /// A TCB info on which the platform is `UpToDate`; for tests to change. Times: `2026-09-01T00:00:00Z`.
    pub fn tcb_info(&self, issued: &str, next: &str) -> serde_json::Value {
        let components = |svn: [u8; 16]| svn.map(|svn| json!({ "svn": svn }));
        let level = |tdx: [u8; 16], status: &str, advisories: &[&str]| {
            json!({
                "tcb": {
                    "sgxtcbcomponents": components(CPU_SVN),
                    "pcesvn": PCE_SVN,
                    "tdxtcbcomponents": components(tdx),
                },
                "tcbDate": "2026-08-01T00:00:00Z",
                "tcbStatus": status,
                "advisoryIDs": advisories,
            })
        };
        let module = json!({ "mrsigner": "00".repeat(48), "attributes": "00".repeat(8), "attributesMask": "FF".repeat(8) });
        let mut identity = module.clone();
        identity["id"] = json!("TDX_01");
        identity["tcbLevels"] = json!([
            { "tcb": { "isvsvn": TEE_TCB_SVN[0] }, "tcbDate": "2026-08-01T00:00:00Z", "tcbStatus": "UpToDate" },
            { "tcb": { "isvsvn": 2 }, "tcbDate": "2025-08-01T00:00:00Z", "tcbStatus": "OutOfDate" },
        ]);
        let mut old = TEE_TCB_SVN;
        old[2] -= 1;
        json!({
            "id": "TDX",
            "version": 3,
            "issueDate": issued,
            "nextUpdate": next,
            "fmspc": hex::encode(FMSPC),
            "pceId": "0000",
            "tcbType": 0,
            "tcbEvaluationDataNumber": 20,
            "tdxModule": module,
            "tdxModuleIdentities": [identity],
            "tcbLevels": [
                level(TEE_TCB_SVN, "UpToDate", &[]),
                level(old, "OutOfDate", &["INTEL-SA-00001", "INTEL-SA-00002"]),
            ],
        })
    }

    /// The identity of the simulated quoting enclave, on which it is `UpToDate`; for tests to change.
    pub fn qe_identity(&self, issued: &str, next: &str) -> serde_json::Value {
        json!({
            "id": "TD_QE",
            "version": 2,
            "issueDate": issued,
            "nextUpdate": next,
            "tcbEvaluationDataNumber": 20,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11000000000000000000000000000000",
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": hex::encode_upper(MR_SIGNER),
            "isvprodid": 2,
            "tcbLevels": [{ "tcb": { "isvsvn": QE_SVN }, "tcbDate": "2026-08-01T00:00:00Z", "tcbStatus": "UpToDate" }],
        })
    }

    /// The signature of the simulated TCB signing key over a text, in hex.
    pub fn sign_text(&self, text: &str) -> Result<String, SimError> {
        let signature = self.signer.key.sign(&SystemRandom::new(), text.as_bytes());
        Ok(hex::encode(fixed(
            signature.map_err(|_| SimError("cannot sign a text"))?.as_ref(),
        )?))
    }

    /// A revocation list, valid from `this_update` to `next_update` (UTCTime: `260819000000Z`).
    pub fn crl(
        &self,
        of: CrlOf,
        revoked: &[u32],
        this_update: &str,
        next_update: &str,
    ) -> Result<Vec<u8>, SimError> {
        let issuer = match of {
            CrlOf::Root => &self.root,
            CrlOf::PckCa => &self.ca,
        };
        issuer.crl(revoked, this_update, next_update)
    }

    /// `QuoteCollateralV3` JSON of these two documents and CRLs, signed.
    pub fn collateral(
        &self,
        tcb_info: &serde_json::Value,
        qe_identity: &serde_json::Value,
        root_crl: &[u8],
        pck_crl: &[u8],
    ) -> Result<String, SimError> {
        let (tcb_info, qe_identity) = (tcb_info.to_string(), qe_identity.to_string());
        let signers = pem(&[&self.signer_der, &self.root_der]);
        let collateral = json!({
            "pck_crl_issuer_chain": pem(&[&self.ca_der, &self.root_der]),
            "root_ca_crl": hex::encode(root_crl),
            "pck_crl": hex::encode(pck_crl),
            "tcb_info_issuer_chain": signers,
            "tcb_info_signature": self.sign_text(&tcb_info)?,
            "tcb_info": tcb_info,
            "qe_identity_issuer_chain": signers,
            "qe_identity_signature": self.sign_text(&qe_identity)?,
            "qe_identity": qe_identity,
        });
        Ok(collateral.to_string())
    }
}

/// r ‖ s of an ECDSA signature in DER.
fn fixed(der: &[u8]) -> Result<[u8; 64], SimError> {
    crate::x509::ecdsa_fixed::<32, 64>(der).ok_or(SimError("an ECDSA signature that isn't DER"))
}
