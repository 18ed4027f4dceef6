//! A P-256 key that a TPM made and never gives out.
//!
//! The TPM keeps nothing: the key is a child of the storage primary key of the owner hierarchy, which the TPM derives anew
//! from its seed and the TCG's template, and it lies beside us as a blob that only this TPM can load. `fixedTPM`,
//! `fixedParent`, sign only, not restricted (it signs the Internet Computer's messages, hashed here), no authorization:
//! whoever is root on this machine can sign with it while the machine runs, and nobody can take it away. Clearing the
//! TPM (owner hierarchy) destroys it; the provider then delegates to a new one.
//!
//! File: "ASN.1 Specification for TPM 2.0 Key Files" (draft-bottomley-tpm2-keys, section 3), PEM, as OpenSSL's tpm2 provider
//! and tpm2-tools have it; `parent` is the owner hierarchy.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use candid::Principal;
use der::asn1::{ObjectIdentifier, OctetString};
use der::{Decode, Encode, Sequence};
use ic_agent::agent::EnvelopeContent;
use ic_agent::{Identity, Signature as IcSignature};
use ledger::client::{Key, KeyError};
use sha2::{Digest as _, Sha256};
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::constants::response_code::Tss2ResponseCodeKind;
use tss_esapi::constants::tss::{TPM2_RH_NULL, TPM2_ST_HASHCHECK};
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::structures::{
    Digest, EccPoint, EccScheme, HashScheme, KeyDerivationFunctionScheme, Private, Public, PublicBuilder,
    PublicEccParametersBuilder, Signature, SignatureScheme, SymmetricDefinitionObject,
};
use tss_esapi::traits::{Marshall, UnMarshall};
use tss_esapi::tss2_esys::TPMT_TK_HASHCHECK;
use tss_esapi::{Context, TctiNameConf};

use super::TSS2_LABEL;

/// `id-loadablekey`: a key that is loaded under its parent.
const LOADABLE_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.10.1.3");

/// TPM_RH_OWNER: the parent is the owner hierarchy's storage primary key by the TCG's ECC template.
const OWNER: u32 = 0x4000_0001;

/// SubjectPublicKeyInfo of P-256, up to the coordinates of an uncompressed point (RFC 5480).
const SPKI_PREFIX: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];

/// Why the TPM's key can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TpmKeyError {
    /// No TPM.
    #[error(
        "cannot use the TPM `{tcti}`; is it there (AMD fTPM or Intel PTT on in the firmware), and may this user open it?"
    )]
    Open {
        /// Its name.
        tcti: String,
        /// Why.
        #[source]
        source: tss_esapi::Error,
    },
    /// The TPM refused.
    #[error("the TPM refused to {what}")]
    Command {
        /// What was asked of it.
        what: &'static str,
        /// Why.
        #[source]
        source: tss_esapi::Error,
    },
    /// Another TPM's key, or one from before the TPM was cleared.
    #[error(
        "this TPM doesn't know the host's key: the file is another machine's, or the TPM was cleared or replaced. Take \
         the file away, let a new key be made, and have the provider sign a delegation for it"
    )]
    Foreign(#[source] tss_esapi::Error),
    /// The file isn't a key of ours.
    #[error("the key file is damaged, or not one of hostd's ({0})")]
    Format(String),
}

#[derive(Sequence)]
struct KeyFile {
    kind: ObjectIdentifier,
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", optional = "true")]
    empty_auth: Option<bool>,
    parent: u32,
    public: OctetString,
    private: OctetString,
}

/// A key that lives in a TPM.
pub struct TpmKey {
    tcti: String,
    public: Public,
    private: Private,
    spki: Vec<u8>,
    /// The TPM with the key in it; opened again when a command fails (the machine slept, the resource manager restarted).
    loaded: Mutex<Option<Loaded>>,
}

struct Loaded {
    context: Context,
    key: KeyHandle,
}

impl fmt::Debug for TpmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TpmKey({}, {})", self.tcti, self.principal())
    }
}

impl TpmKey {
    /// Has the TPM make a new key.
    pub fn create(tcti: &str) -> Result<Self, TpmKeyError> {
        const WHAT: &str = "make a key";
        let mut context = open(tcti)?;
        let parent = primary(&mut context)?;
        let template = command(WHAT, signing_template())?;
        let created = context.execute_with_nullauth_session(|context| {
            context.create(parent, template, None, None, None, None)
        });
        command("forget a key", context.flush_context(parent.into()))?;
        let created = command(WHAT, created)?;
        drop(context);
        Self::new(tcti, created.out_public, created.out_private)
    }

    /// Reads a key file and loads the key, so that a foreign one is found at once.
    pub fn from_pem(text: &str, tcti: &str) -> Result<Self, TpmKeyError> {
        let wrong = |what: &dyn fmt::Display| TpmKeyError::Format(what.to_string());
        let body = text
            .split_once(&format!("-----BEGIN {TSS2_LABEL}-----"))
            .and_then(|(_, rest)| rest.split_once(&format!("-----END {TSS2_LABEL}-----")))
            .map(|(body, _)| body.split_whitespace().collect::<String>())
            .ok_or_else(|| wrong(&"no PEM block of a TPM's key"))?;
        let der = BASE64_STANDARD.decode(body).map_err(|e| wrong(&e))?;
        let file = KeyFile::from_der(&der).map_err(|e| wrong(&e))?;
        if file.kind != LOADABLE_KEY || file.parent != OWNER {
            return Err(wrong(&"its kind or parent is another"));
        }
        let public = sized(file.public.as_bytes()).ok_or_else(|| wrong(&"its public part's length"))?;
        let public = Public::unmarshall(public).map_err(|e| wrong(&e))?;
        let private = sized(file.private.as_bytes()).ok_or_else(|| wrong(&"its private part's length"))?;
        let private = Private::try_from(private.to_vec()).map_err(|e| wrong(&e))?;
        Self::new(tcti, public, private)
    }

    /// The key file.
    pub fn to_pem(&self) -> String {
        let file = KeyFile {
            kind: LOADABLE_KEY,
            empty_auth: Some(true),
            parent: OWNER,
            public: octets(
                &self
                    .public
                    .marshall()
                    .expect("a public area that came from a TPM"),
            ),
            private: octets(&self.private),
        };
        let der = file.to_der().expect("a few hundred bytes");
        let mut text = format!("-----BEGIN {TSS2_LABEL}-----\n");
        for line in BASE64_STANDARD.encode(der).as_bytes().chunks(64) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text + &format!("-----END {TSS2_LABEL}-----\n")
    }

    fn new(tcti: &str, public: Public, private: Private) -> Result<Self, TpmKeyError> {
        let Public::Ecc {
            parameters, unique, ..
        } = &public
        else {
            return Err(TpmKeyError::Format("not an elliptic curve's".to_owned()));
        };
        if parameters.ecc_curve() != EccCurve::NistP256 {
            return Err(TpmKeyError::Format("not on the curve P-256".to_owned()));
        }
        let mut spki = SPKI_PREFIX.to_vec();
        for coordinate in [unique.x(), unique.y()] {
            let padded =
                pad(coordinate).ok_or_else(|| TpmKeyError::Format("a long coordinate".to_owned()))?;
            spki.extend(padded);
        }
        let key = Self {
            tcti: tcti.to_owned(),
            public,
            private,
            spki,
            loaded: Mutex::default(),
        };
        let loaded = key.load()?;
        *key.lock() = Some(loaded);
        Ok(key)
    }

    /// The public key, DER SubjectPublicKeyInfo.
    pub fn public_key(&self) -> &[u8] {
        &self.spki
    }

    /// Who the key is to the ledger.
    pub fn principal(&self) -> Principal {
        Principal::self_authenticating(&self.spki)
    }

    /// As the ledger's client takes it.
    pub fn into_key(self) -> Result<Key, KeyError> {
        Key::from_identity(Arc::new(self))
    }

    /// ECDSA with SHA-256 over `message`: r ‖ s, 64 bytes.
    pub fn sign(&self, message: &[u8]) -> Result<[u8; 64], TpmKeyError> {
        const WHAT: &str = "sign";
        let digest = command(WHAT, Digest::try_from(Sha256::digest(message).to_vec()))?;
        let mut loaded = self.lock();
        let mut signed = match loaded.as_mut() {
            Some(loaded) => loaded.sign(digest.clone()).ok(),
            None => None,
        };
        if signed.is_none() {
            // The old context goes first: some TPMs serve one at a time.
            *loaded = None;
            signed = Some(command(WHAT, loaded.insert(self.load()?).sign(digest))?);
        }
        match signed {
            Some(Signature::EcDsa(signature)) => [signature.signature_r(), signature.signature_s()]
                .into_iter()
                .map(|number| pad(number))
                .collect::<Option<Vec<_>>>()
                .and_then(|numbers| numbers.concat().try_into().ok())
                .ok_or_else(|| TpmKeyError::Format("the TPM's signature is too long".to_owned())),
            _ => Err(TpmKeyError::Format(
                "the TPM's signature is of another kind".to_owned(),
            )),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Loaded>> {
        // What a panic left there is at worst a context that fails, and is opened again then.
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self) -> Result<Loaded, TpmKeyError> {
        let mut context = open(&self.tcti)?;
        let parent = primary(&mut context)?;
        let loaded = context.execute_with_nullauth_session(|context| {
            context.load(parent, self.private.clone(), self.public.clone())
        });
        command("forget a key", context.flush_context(parent.into()))?;
        let key = loaded.map_err(|source| match source {
            // A blob that its parent, derived from this TPM's seed, didn't seal (TPM 2.0 part 3, TPM2_Load).
            tss_esapi::Error::Tss2Error(code) if code.kind() == Some(Tss2ResponseCodeKind::Integrity) => {
                TpmKeyError::Foreign(source)
            }
            source => TpmKeyError::Command {
                what: "load the host's key",
                source,
            },
        })?;
        Ok(Loaded { context, key })
    }
}

impl Loaded {
    fn sign(&mut self, digest: Digest) -> tss_esapi::Result<Signature> {
        // The digest was made outside of the TPM: there is no ticket to show.
        let no_ticket = TPMT_TK_HASHCHECK {
            tag: TPM2_ST_HASHCHECK,
            hierarchy: TPM2_RH_NULL,
            digest: Default::default(),
        };
        let key = self.key;
        self.context.execute_with_nullauth_session(|context| {
            context.sign(key, digest, SignatureScheme::Null, no_ticket.try_into()?)
        })
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // A resource manager does it when the connection ends; a bare TPM has only a few places.
        let _ = self.context.flush_context(self.key.into());
    }
}

impl Identity for TpmKey {
    fn sender(&self) -> Result<Principal, String> {
        Ok(self.principal())
    }

    fn public_key(&self) -> Option<Vec<u8>> {
        Some(self.spki.clone())
    }

    fn sign(&self, content: &EnvelopeContent) -> Result<IcSignature, String> {
        self.sign_arbitrary(&content.to_request_id().signable())
    }

    fn sign_arbitrary(&self, content: &[u8]) -> Result<IcSignature, String> {
        use tokio::runtime::{Handle, RuntimeFlavor};
        // A TPM takes its time: other tasks of this thread go on elsewhere meanwhile.
        let many =
            Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
        let signed = if many {
            tokio::task::block_in_place(|| TpmKey::sign(self, content))
        } else {
            TpmKey::sign(self, content)
        };
        let signature = signed.map_err(|error| crate::wiring::chain(&error))?;
        Ok(IcSignature {
            public_key: Some(self.spki.clone()),
            signature: Some(signature.to_vec()),
            delegations: None,
        })
    }
}

fn open(tcti: &str) -> Result<Context, TpmKeyError> {
    TctiNameConf::from_str(tcti)
        .and_then(Context::new)
        .map_err(|source| TpmKeyError::Open {
            tcti: tcti.to_owned(),
            source,
        })
}

fn command<T>(what: &'static str, result: tss_esapi::Result<T>) -> Result<T, TpmKeyError> {
    result.map_err(|source| TpmKeyError::Command { what, source })
}

/// The storage primary key: the same each time, from the TPM's own seed.
fn primary(context: &mut Context) -> Result<KeyHandle, TpmKeyError> {
    const WHAT: &str =
        "derive its storage key (has the owner hierarchy an authorization? Clear the TPM in the firmware)";
    let template = command(WHAT, storage_template())?;
    let created = context.execute_with_nullauth_session(|context| {
        context.create_primary(Hierarchy::Owner, template, None, None, None, None)
    });
    command(WHAT, created).map(|created| created.key_handle)
}

/// What both templates have in common.
fn template(
    restricted: bool,
    signs: bool,
    parameters: PublicEccParametersBuilder,
) -> tss_esapi::Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(restricted)
        .with_sign_encrypt(signs)
        .with_decrypt(!signs)
        .build()?;
    let parameters = parameters
        .with_curve(EccCurve::NistP256)
        .with_is_signing_key(signs)
        .with_is_decryption_key(!signs)
        .with_restricted(restricted)
        .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
        .build()?;
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(parameters)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

/// TCG TPM v2.0 Provisioning Guidance, the ECC storage primary key.
fn storage_template() -> tss_esapi::Result<Public> {
    let parameters = PublicEccParametersBuilder::new()
        .with_symmetric(SymmetricDefinitionObject::AES_128_CFB)
        .with_ecc_scheme(EccScheme::Null);
    template(true, false, parameters)
}

fn signing_template() -> tss_esapi::Result<Public> {
    let scheme = EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256));
    template(
        false,
        true,
        PublicEccParametersBuilder::new().with_ecc_scheme(scheme),
    )
}

/// A TPM2B: what its length says, if that is all that is there.
fn sized(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    (usize::from(u16::from_be_bytes(*length)) == rest.len()).then_some(rest)
}

/// A TPM2B.
fn octets(content: &[u8]) -> OctetString {
    let length = u16::try_from(content.len()).expect("the TPM's own limit is below 64 KiB");
    OctetString::new([&length.to_be_bytes(), content].concat()).expect("a few hundred bytes")
}

/// A number of at most 32 bytes, with zeros before it.
fn pad(number: &[u8]) -> Option<[u8; 32]> {
    let mut padded = [0; 32];
    padded
        .get_mut(32usize.checked_sub(number.len())?..)?
        .copy_from_slice(number);
    Some(padded)
}
