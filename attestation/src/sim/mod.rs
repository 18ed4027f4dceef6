//! A simulated SEV-SNP platform: the chip and its maker's certificate chain, under a root of its own; in [`tdx`] a
//! simulated TDX platform.
//!
//! It issues reports in the real format, signed by a VCEK whose certificate carries the real extensions; the verifier
//! takes the same way through them as through AMD's. Only the root differs, and nothing trusts it unless somebody names
//! it ([`crate::Roots::with_test_root`]), which every result then says (`test-root`). For tests, the simulator and the
//! demo: never part of a shipped program (cargo feature `sim`).

mod boot;
mod certificates;
mod der;
mod nvidia;
pub mod tdx;
mod tpm;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};

use crate::snp::{Product, TcbVersion};
pub use boot::{BootImage, MeasuredBoot, ReferenceSigner};
pub use certificates::CrlIssuer;
use certificates::Issuer;
pub use nvidia::{Gpu, GpuFacts, OcspSigner, OcspStatus, RimFacts};
pub use tpm::{AK_ATTRIBUTES, AkIssuer, AkKind, Tpm};

/// What a launch measured: the chip reports it as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Launch {
    /// Launch digest ([`crate::measure`]).
    #[serde(with = "hex::serde")]
    pub measurement: [u8; 48],
    /// `HOST_DATA`, given by the VMM.
    pub host_data: [u8; 32],
    /// Guest policy, given by the VMM.
    pub policy: u64,
}

/// One simulated chip with its chain.
pub struct Platform {
    product: Product,
    tcb: TcbVersion,
    chip_id: [u8; 64],
    ark: Vec<u8>,
    ask: Vec<u8>,
    vcek: Vec<u8>,
    crl: Vec<u8>,
    key: EcdsaKeyPair,
    key_der: Vec<u8>,
}

/// What a platform is made of, to be kept in files: the chip's key is as secret as a test needs it to be.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Parts {
    /// Product line.
    pub product: Product,
    /// Root certificate, DER in hexadecimal.
    #[serde(with = "hex::serde")]
    pub ark: Vec<u8>,
    /// Intermediate.
    #[serde(with = "hex::serde")]
    pub ask: Vec<u8>,
    /// The chip's certificate.
    #[serde(with = "hex::serde")]
    pub vcek: Vec<u8>,
    /// The root's revocation list: empty, good until 2049.
    #[serde(with = "hex::serde")]
    pub crl: Vec<u8>,
    /// The chip's private key, PKCS#8.
    #[serde(with = "hex::serde")]
    pub key: Vec<u8>,
    /// `CHIP_ID`.
    #[serde(with = "hex::serde")]
    pub chip_id: Vec<u8>,
    /// TCB version, in the product's layout.
    pub tcb: [u8; 8],
}

/// The simulator can't do its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("simulated platform: {0}")]
pub struct SimError(&'static str);

/// Serial number of a platform's intermediate certificate.
pub const ASK_SERIAL: u32 = 0x02_0002;

/// The TCB version that a new platform has.
pub const TCB: TcbVersion = TcbVersion {
    fmc: None,
    bootloader: 10,
    tee: 0,
    snp: 23,
    microcode: 84,
};

impl Platform {
    /// A new chip of the Genoa line, with a chain of its own. Takes a second or two: two RSA-4096 keys are made.
    pub fn create() -> Result<Self, SimError> {
        Ok(Self::create_with_crls()?.0)
    }

    /// As [`Self::create`], with what can revoke its intermediate (serial number [`ASK_SERIAL`]).
    pub fn create_with_crls() -> Result<(Self, CrlIssuer), SimError> {
        let product = Product::Genoa;
        let ark = Issuer::generate(format!("ARK-{}", product.name()))?;
        let ask = Issuer::generate(format!("SEV-{}", product.name()))?;
        let (ark_der, ask_der) = (ark.certify_ca(&ark, 1)?, ark.certify_ca(&ask, ASK_SERIAL)?);
        let key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING)
            .map_err(|_| SimError("cannot make a P-384 key"))?;
        let key_der = key
            .to_pkcs8v1()
            .map_err(|_| SimError("cannot encode the chip's key"))?
            .as_ref()
            .to_vec();
        let mut chip_id = [0; 64];
        SystemRandom::new()
            .fill(&mut chip_id)
            .map_err(|_| SimError("no random numbers"))?;
        let vcek = ask.certify_vcek(product.name(), key.public_key().as_ref(), &chip_id, TCB)?;
        let crls = CrlIssuer(ark);
        let platform = Self {
            product,
            tcb: TCB,
            chip_id,
            ark: ark_der,
            ask: ask_der,
            vcek,
            crl: crls.crl(&[], "240101000000Z", "490101000000Z")?,
            key,
            key_der,
        };
        Ok((platform, crls))
    }

    /// What [`Self::from_parts`] needs.
    pub fn to_parts(&self) -> Parts {
        Parts {
            product: self.product,
            ark: self.ark.clone(),
            ask: self.ask.clone(),
            vcek: self.vcek.clone(),
            crl: self.crl.clone(),
            key: self.key_der.clone(),
            chip_id: self.chip_id.to_vec(),
            tcb: self.tcb.to_bytes(self.product),
        }
    }

    /// The same chip again.
    pub fn from_parts(parts: Parts) -> Result<Self, SimError> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &parts.key)
            .map_err(|_| SimError("the chip's key is not a P-384 key in PKCS#8"))?;
        let chip_id = parts
            .chip_id
            .try_into()
            .map_err(|_| SimError("a chip id has 64 bytes"))?;
        let tcb = TcbVersion::from_bytes(parts.tcb, parts.product);
        let Parts {
            product,
            ark,
            ask,
            vcek,
            crl,
            key: key_der,
            ..
        } = parts;
        Ok(Self {
            product,
            tcb,
            chip_id,
            ark,
            ask,
            vcek,
            crl,
            key,
            key_der,
        })
    }

    /// The root certificate (DER): what a test names to trust this platform.
    pub fn root(&self) -> &[u8] {
        &self.ark
    }

    /// VCEK, ASK, ARK (DER).
    pub fn certificates(&self) -> Vec<Vec<u8>> {
        vec![self.vcek.clone(), self.ask.clone(), self.ark.clone()]
    }

    /// The root's revocation list (DER): nothing is revoked.
    pub fn crl(&self) -> &[u8] {
        &self.crl
    }

    /// What the guest's question with `report_data` is answered with: a signed report of version 3 (AMD 56860,
    /// `ATTESTATION_REPORT`, 1,184 bytes).
    pub fn report(&self, launch: &Launch, report_data: &[u8; 64]) -> Result<Vec<u8>, SimError> {
        let mut report = vec![0; 0x4a0];
        let mut put = |at: usize, bytes: &[u8]| report[at..at + bytes.len()].copy_from_slice(bytes);
        let tcb = self.tcb.to_bytes(self.product);
        let firmware = [37, 55, 1]; // build, minor, major
        let mut report_id = [0; 32];
        SystemRandom::new()
            .fill(&mut report_id)
            .map_err(|_| SimError("no random numbers"))?;
        put(0x000, &3u32.to_le_bytes());
        put(0x008, &launch.policy.to_le_bytes());
        put(0x034, &1u32.to_le_bytes()); // ECDSA P-384 with SHA-384
        put(0x038, &tcb); // current
        put(0x040, &0b10_0001u64.to_le_bytes()); // SMT, alias check complete
        put(0x050, report_data);
        put(0x090, &launch.measurement);
        put(0x0c0, &launch.host_data);
        put(0x140, &report_id);
        put(0x160, &[0xff; 32]); // no migration agent
        put(0x180, &tcb); // reported
        put(0x188, &[0x19, 0x11, 0x01]); // CPUID family, model, stepping of Genoa
        put(0x1a0, &self.chip_id);
        put(0x1e0, &tcb); // committed
        put(0x1e8, &firmware);
        put(0x1ec, &firmware);
        put(0x1f0, &tcb); // launch
        self.sign(&mut report)?;
        Ok(report)
    }

    /// Signs a report anew, whatever it says: this is how tests forge what only the chip could.
    pub fn sign(&self, report: &mut [u8]) -> Result<(), SimError> {
        let signed = report.get(..0x2a0).ok_or(SimError("a report is longer"))?;
        let signature = self
            .key
            .sign(&SystemRandom::new(), signed)
            .map_err(|_| SimError("cannot sign a report"))?;
        let (r, s) = signature.as_ref().split_at(48);
        for (at, number) in [(0x2a0, r), (0x2e8, s)] {
            let little: Vec<u8> = number.iter().rev().copied().collect();
            let place = report
                .get_mut(at..at + 48)
                .ok_or(SimError("a report is longer"))?;
            place.copy_from_slice(&little);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_survives_its_files_and_signs_reports_of_the_real_size() {
        let platform = Platform::create().unwrap();
        let again = Platform::from_parts(platform.to_parts()).unwrap();
        assert_eq!(again.certificates(), platform.certificates());
        for certificate in again.certificates() {
            crate::x509::check_certificate(&certificate).unwrap();
        }
        let launch = Launch {
            measurement: [1; 48],
            host_data: [2; 32],
            policy: 0x3_0000,
        };
        let report = again.report(&launch, &[3; 64]).unwrap();
        assert_eq!(report.len(), 1184);
        assert_ne!(report, again.report(&launch, &[4; 64]).unwrap());
    }
}
