//! A simulated measured boot: what firmware and systemd-stub measure when they start an image, the event log that they
//! write, the PCRs that result, and reference values that somebody signed for it.
//!
//! A TPM (simulated or swtpm) that is extended with [`MeasuredBoot::measured`] and quoted with [`MeasuredBoot::log`]
//! beside it shows what a machine shows that booted the image.

use std::collections::BTreeMap;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::SimError;
use crate::eventlog::HashAlg;
use crate::tpm::{PcrValues, REFERENCE_PAYLOAD_TYPE, TpmEvidence, reference_to_sign};

const EV_SEPARATOR: u32 = 4;
const EV_IPL: u32 = 0xd;
const EV_EFI_VARIABLE_DRIVER_CONFIG: u32 = 0x8000_0001;
const EV_EFI_BOOT_SERVICES_APPLICATION: u32 = 0x8000_0003;
const GLOBAL_VARIABLE: [u8; 16] = [
    0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c,
];

/// What a simulated machine boots. The command line names the root file system by its verity hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootImage {
    /// Whether Secure Boot is on.
    pub secure_boot: bool,
    /// The boot loader.
    pub loader: Vec<u8>,
    /// The kernel image's `.linux`.
    pub kernel: Vec<u8>,
    /// Its `.initrd`.
    pub initrd: Vec<u8>,
    /// Its `.cmdline`.
    pub cmdline: String,
    /// What an addon or the firmware's settings put behind the command line: measured into PCR 12 alone.
    pub extra_cmdline: Option<String>,
}

impl BootImage {
    /// An image that differs from others in everything that `name` goes into.
    pub fn named(name: &str) -> Self {
        let part = |part: &str| format!("{part} of {name}").into_bytes();
        Self {
            secure_boot: true,
            loader: part("loader"),
            kernel: part("kernel"),
            initrd: part("initrd"),
            cmdline: format!("roothash={}", hex::encode(Sha256::digest(part("root")))),
            extra_cmdline: None,
        }
    }

    fn sections(&self) -> [(&'static str, &[u8]); 3] {
        [
            (".linux", &self.kernel),
            (".cmdline", self.cmdline.as_bytes()),
            (".initrd", &self.initrd),
        ]
    }

    /// Boots it.
    pub fn boot(&self) -> MeasuredBoot {
        let mut boot = MeasuredBoot::default();
        let secure = [u8::from(self.secure_boot)];
        boot.event(7, EV_EFI_VARIABLE_DRIVER_CONFIG, &variable("SecureBoot", &secure));
        for pcr in 0..=7 {
            boot.event(pcr, EV_SEPARATOR, &[0; 4]);
        }
        let uki = self.sections().map(|(_, content)| content).concat();
        for program in [&self.loader, &uki] {
            boot.event(4, EV_EFI_BOOT_SERVICES_APPLICATION, program);
        }
        for (name, content) in self.sections() {
            boot.event(11, EV_IPL, format!("{name}\0").as_bytes());
            boot.event(11, EV_IPL, content);
        }
        if let Some(extra) = &self.extra_cmdline {
            boot.event(12, EV_IPL, extra.as_bytes());
        }
        boot
    }
}

/// `UEFI_VARIABLE_DATA` of one of UEFI's own variables.
fn variable(name: &str, value: &[u8]) -> Vec<u8> {
    let mut data = GLOBAL_VARIABLE.to_vec();
    data.extend((name.len() as u64).to_le_bytes());
    data.extend((value.len() as u64).to_le_bytes());
    data.extend(name.encode_utf16().flat_map(u16::to_le_bytes));
    data.extend(value);
    data
}

/// What was measured during a boot, in order: PCR, type, data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeasuredBoot(Vec<(u32, u32, Vec<u8>)>);

impl MeasuredBoot {
    /// Measures `data` with the log's type `kind`.
    pub fn event(&mut self, pcr: u32, kind: u32, data: &[u8]) {
        self.0.push((pcr, kind, data.to_vec()));
    }

    /// PCRs and the SHA-256 digests that they are extended with.
    pub fn measured(&self) -> impl Iterator<Item = (u32, [u8; 32])> {
        self.0
            .iter()
            .map(|(pcr, _, data)| (*pcr, Sha256::digest(data).into()))
    }

    /// Values of PCR 0 to 15 of the SHA-256 bank.
    pub fn pcrs(&self) -> PcrValues {
        let mut values: BTreeMap<u8, Vec<u8>> = (0..16).map(|pcr| (pcr, vec![0; 32])).collect();
        for (pcr, digest) in self.measured() {
            if let Some(value) = u8::try_from(pcr).ok().and_then(|pcr| values.get_mut(&pcr)) {
                let before = std::mem::take(value);
                *value = Sha256::new()
                    .chain_update(before)
                    .chain_update(digest)
                    .finalize()
                    .to_vec();
            }
        }
        [(HashAlg::Sha256, values)].into()
    }

    /// The event log, as firmware writes it (`TCG_PCR_EVENT2` behind a header that names the bank).
    pub fn log(&self) -> Vec<u8> {
        let mut spec = b"Spec ID Event03\0".to_vec();
        spec.extend([0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0b, 0, 32, 0, 0]);
        let mut log = [0u32.to_le_bytes(), 3u32.to_le_bytes()].concat();
        log.extend([0; 20]);
        log.extend((spec.len() as u32).to_le_bytes());
        log.extend(spec);
        for (pcr, kind, data) in &self.0 {
            log.extend([pcr.to_le_bytes(), kind.to_le_bytes(), 1u32.to_le_bytes()].concat());
            log.extend([0x0b, 0]);
            log.extend(Sha256::digest(data));
            log.extend((data.len() as u32).to_le_bytes());
            log.extend(data);
        }
        log
    }

    /// Evidence of a simulated TPM that saw this boot.
    pub fn evidence(&self, tpm: &super::Tpm, qualifying_data: &[u8]) -> Result<TpmEvidence, SimError> {
        Ok(TpmEvidence {
            firmware_log: Some(self.log()),
            ..tpm.evidence(&self.pcrs(), qualifying_data)?
        })
    }
}

/// Somebody who signs reference values of images.
pub struct ReferenceSigner(EcdsaKeyPair);

impl ReferenceSigner {
    /// A new P-256 key.
    pub fn create() -> Result<Self, SimError> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING);
        key.map(Self)
            .map_err(|_| SimError("cannot make a key for reference values"))
    }

    /// Its public key, PEM.
    pub fn public_pem(&self) -> Result<String, SimError> {
        let spki: Result<PublicKeyX509Der<'_>, _> = self.0.public_key().as_der();
        let spki = spki.map_err(|_| SimError("cannot encode the key for reference values"))?;
        let body = STANDARD.encode(spki.as_ref());
        let lines: Vec<&str> = body
            .as_bytes()
            .chunks(64)
            .filter_map(|line| std::str::from_utf8(line).ok())
            .collect();
        Ok(format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            lines.join("\n")
        ))
    }

    /// Signed reference values of PCR 4, 7, 11, 12 and 13 for an image, called `name`.
    pub fn sign(&self, name: &str, image: &BootImage) -> Result<Vec<u8>, SimError> {
        let pcrs = image.boot().pcrs();
        let values = pcrs.values().flatten();
        let values: BTreeMap<String, Vec<String>> = values
            .filter(|(pcr, _)| [4, 7, 11, 12, 13].contains(*pcr))
            .map(|(pcr, value)| (pcr.to_string(), vec![hex::encode(value)]))
            .collect();
        let sections = image.sections();
        let sections: BTreeMap<&str, String> = sections
            .into_iter()
            .map(|(name, content)| (name, hex::encode(Sha256::digest(content))))
            .collect();
        let payload = json!({
            "version": 1,
            "image": name,
            "pcrs": { "sha256": values },
            "sections": sections,
        })
        .to_string();
        let signature = self
            .0
            .sign(&SystemRandom::new(), &reference_to_sign(payload.as_bytes()))
            .map_err(|_| SimError("cannot sign reference values"))?;
        let envelope = json!({
            "payloadType": REFERENCE_PAYLOAD_TYPE,
            "payload": STANDARD.encode(payload),
            "signatures": [{ "keyid": "", "sig": STANDARD.encode(signature) }],
        });
        Ok(envelope.to_string().into_bytes())
    }
}
