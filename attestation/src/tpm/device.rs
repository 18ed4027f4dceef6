//! The host's side: a TPM that makes quotes (by tpm2-tss).
//!
//! The attestation key is a primary key of the endorsement hierarchy: the TPM derives the same one each time from a seed
//! that its maker gave it, so nothing has to be kept, and it stays the same until the TPM gets another seed. Its template
//! is P-256, restricted, ECDSA with SHA-256, no authorization.
//!
//! The TPM is named as tpm2-tss names it: `device:/dev/tpmrm0`, `swtpm:host=127.0.0.1,port=2321`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tss_esapi::abstraction::{AsymmetricAlgorithmSelection, ek, pcr};
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::constants::SessionType;
use tss_esapi::handles::{AuthHandle, KeyHandle, SessionHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{
    Data, EccPoint, EccScheme, EncryptedSecret, HashScheme, IdObject, KeyDerivationFunctionScheme,
    PcrSelectionList, PcrSlot, Public, PublicBuilder, PublicEccParametersBuilder, SignatureScheme,
    SymmetricDefinition,
};
use tss_esapi::traits::Marshall;
use tss_esapi::{Context, TctiNameConf, WrapperErrorKind};

use super::attest::{Quote, QuoteError};
use super::credential::Credential;
use super::evidence::{PcrValues, TpmEvidence};
use crate::eventlog::{HashAlg, LOG_LEN_MAX};

/// The PCRs that are quoted: all that no program may reset.
const PCRS: [PcrSlot; 16] = [
    PcrSlot::Slot0,
    PcrSlot::Slot1,
    PcrSlot::Slot2,
    PcrSlot::Slot3,
    PcrSlot::Slot4,
    PcrSlot::Slot5,
    PcrSlot::Slot6,
    PcrSlot::Slot7,
    PcrSlot::Slot8,
    PcrSlot::Slot9,
    PcrSlot::Slot10,
    PcrSlot::Slot11,
    PcrSlot::Slot12,
    PcrSlot::Slot13,
    PcrSlot::Slot14,
    PcrSlot::Slot15,
];
/// How often a quote is made again because a PCR changed between quoting and reading.
const ATTEMPTS: usize = 5;

/// A TPM that answers.
pub struct TpmDevice(Context);

/// Why a TPM didn't do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TpmDeviceError {
    /// No TPM there.
    #[error("cannot use the TPM `{tcti}`; is it there, and may this user open it (group tss)?")]
    Open {
        /// Its name.
        tcti: String,
        /// Why.
        #[source]
        source: tss_esapi::Error,
    },
    /// The TPM refused a command.
    #[error("the TPM refused to {what}")]
    Command {
        /// What was asked of it.
        what: &'static str,
        /// Why.
        #[source]
        source: tss_esapi::Error,
    },
    /// No SHA-256 bank.
    #[error("the TPM has no SHA-256 bank of PCRs: switch it on in the firmware's setup")]
    NoBank,
    /// PCRs changed all the time.
    #[error("PCRs changed while they were read, {ATTEMPTS} times; ask again")]
    Busy,
    /// The answer isn't a quote.
    #[error("the TPM answered with something else than a quote")]
    Answer(#[from] QuoteError),
    /// An event log that is there and can't be read.
    #[error("cannot read the event log {}", path.display())]
    Log {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Where the event logs are. A file that isn't there is a log that nobody writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLogFiles {
    /// The firmware's, as the kernel shows it.
    pub firmware: PathBuf,
    /// systemd's.
    pub userspace: PathBuf,
}

impl Default for EventLogFiles {
    fn default() -> Self {
        Self {
            firmware: "/sys/kernel/security/tpm0/binary_bios_measurements".into(),
            userspace: "/run/log/systemd/tpm2-measure.log".into(),
        }
    }
}

impl TpmDevice {
    /// Connects to the TPM that tpm2-tss calls `tcti`.
    pub fn open(tcti: &str) -> Result<Self, TpmDeviceError> {
        let name = TctiNameConf::from_str(tcti);
        let context = name.and_then(Context::new);
        context.map(Self).map_err(|source| TpmDeviceError::Open {
            tcti: tcti.to_owned(),
            source,
        })
    }

    /// The attestation key (`TPMT_PUBLIC`).
    pub fn attestation_key(&mut self) -> Result<Vec<u8>, TpmDeviceError> {
        let (handle, public) = self.create_ak()?;
        self.flush(handle)?;
        command("show its attestation key", public.marshall())
    }

    /// The endorsement key of the TCG's default template for RSA (`TPMT_PUBLIC`).
    pub fn endorsement_key(&mut self) -> Result<Vec<u8>, TpmDeviceError> {
        let handle = self.create_ek()?;
        let public = self.0.read_public(handle);
        self.flush(handle)?;
        let (public, _, _) = command("show its endorsement key", public)?;
        command("show its endorsement key", public.marshall())
    }

    /// Quotes the SHA-256 bank's PCRs 0 to 15 with `qualifying_data` (at most 64 bytes, and no longer than the TPM's
    /// longest digest), and adds their values and the event logs. Certificates are the caller's to add.
    pub fn evidence(
        &mut self,
        qualifying_data: &[u8],
        logs: &EventLogFiles,
    ) -> Result<TpmEvidence, TpmDeviceError> {
        let (handle, public) = self.create_ak()?;
        let quoted = self.quote(handle, qualifying_data);
        self.flush(handle)?;
        let evidence = quoted?;
        Ok(TpmEvidence {
            ak: command("show its attestation key", public.marshall())?,
            // After the quote: a log may be longer than what was quoted, never shorter.
            firmware_log: read_log(&logs.firmware)?,
            userspace_log: read_log(&logs.userspace)?,
            ..evidence
        })
    }

    /// Opens a credential: proves to whoever made it that the attestation key lives in this TPM (see
    /// [`super::make_credential`]).
    pub fn activate_credential(&mut self, credential: &Credential) -> Result<Vec<u8>, TpmDeviceError> {
        const WHAT: &str = "activate a credential";
        let blob = command(WHAT, IdObject::try_from(credential.blob.clone()))?;
        let seed = command(WHAT, EncryptedSecret::try_from(credential.encrypted_seed.clone()))?;
        let ek = self.create_ek()?;
        let created = self.create_ak();
        let secret = created.and_then(|(ak, _)| {
            let secret = command(WHAT, activate(&mut self.0, ak, ek, blob, seed));
            self.flush(ak).and(secret)
        });
        self.flush(ek)?;
        secret
    }

    fn quote(&mut self, ak: KeyHandle, qualifying_data: &[u8]) -> Result<TpmEvidence, TpmDeviceError> {
        const WHAT: &str = "quote its PCRs";
        let data = command(WHAT, Data::try_from(qualifying_data.to_vec()))?;
        let selection = PcrSelectionList::builder().with_selection(HashingAlgorithm::Sha256, &PCRS);
        let selection = command(WHAT, selection.build())?;
        for _ in 0..ATTEMPTS {
            let quoted = self.0.execute_with_nullauth_session(|context| {
                context.quote(ak, data.clone(), SignatureScheme::Null, selection.clone())
            });
            let (attest, signature) = command(WHAT, quoted)?;
            let quote = Quote::parse(&command(WHAT, attest.marshall())?)?;
            let pcrs = self.read_pcrs(&selection)?;
            let values: Vec<&[u8]> = pcrs
                .values()
                .flat_map(BTreeMap::values)
                .map(Vec::as_slice)
                .collect();
            if HashAlg::Sha256.digest(&values).as_ref() == Some(&quote.pcr_digest) {
                return Ok(TpmEvidence {
                    quote: quote.raw().to_vec(),
                    signature: command(WHAT, signature.marshall())?,
                    pcrs,
                    ..TpmEvidence::default()
                });
            }
        }
        Err(TpmDeviceError::Busy)
    }

    fn read_pcrs(&mut self, selection: &PcrSelectionList) -> Result<PcrValues, TpmDeviceError> {
        let data = command("read its PCRs", pcr::read_all(&mut self.0, selection.clone()))?;
        let bank = data
            .pcr_bank(HashingAlgorithm::Sha256)
            .ok_or(TpmDeviceError::NoBank)?;
        let value = |(number, slot): (u8, PcrSlot)| Some((number, bank.get_digest(slot)?.to_vec()));
        let values = (0..).zip(PCRS).filter_map(value).collect();
        Ok([(HashAlg::Sha256, values)].into())
    }

    fn create_ak(&mut self) -> Result<(KeyHandle, Public), TpmDeviceError> {
        const WHAT: &str = "make its attestation key (is there an endorsement authorization?)";
        let template = command(WHAT, ak_template())?;
        let created = self.0.execute_with_nullauth_session(|context| {
            context.create_primary(Hierarchy::Endorsement, template, None, None, None, None)
        });
        command(WHAT, created).map(|created| (created.key_handle, created.out_public))
    }

    fn create_ek(&mut self) -> Result<KeyHandle, TpmDeviceError> {
        let kind = AsymmetricAlgorithmSelection::Rsa(RsaKeyBits::Rsa2048);
        command(
            "make its endorsement key",
            ek::create_ek_object_2(&mut self.0, kind, None),
        )
    }

    fn flush(&mut self, handle: KeyHandle) -> Result<(), TpmDeviceError> {
        command("forget a key", self.0.flush_context(handle.into()))
    }
}

fn command<T>(what: &'static str, result: tss_esapi::Result<T>) -> Result<T, TpmDeviceError> {
    result.map_err(|source| TpmDeviceError::Command { what, source })
}

fn ak_template() -> tss_esapi::Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(true)
        .with_sign_encrypt(true)
        .build()?;
    let parameters = PublicEccParametersBuilder::new()
        .with_ecc_scheme(EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256)))
        .with_curve(EccCurve::NistP256)
        .with_is_signing_key(true)
        .with_restricted(true)
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

/// The endorsement key is used under its policy: whoever may use the endorsement hierarchy.
fn activate(
    context: &mut Context,
    ak: KeyHandle,
    ek: KeyHandle,
    blob: IdObject,
    seed: EncryptedSecret,
) -> tss_esapi::Result<Vec<u8>> {
    let (kind, cipher) = (SessionType::Policy, SymmetricDefinition::AES_128_CFB);
    let session = context.start_auth_session(None, None, None, kind, cipher, HashingAlgorithm::Sha256)?;
    let no_session = tss_esapi::Error::WrapperError(WrapperErrorKind::InvalidHandleState);
    let session = session.ok_or(no_session)?;
    let policy = PolicySession::try_from(session)?;
    let endorsed = context.execute_with_session(Some(AuthSession::Password), |context| {
        let (nonce, hash, reference) = Default::default();
        context.policy_secret(policy, AuthHandle::Endorsement, nonce, hash, reference, None)
    });
    let sessions = (Some(AuthSession::Password), Some(session), None);
    let secret = endorsed.and_then(|_| {
        context.execute_with_sessions(sessions, |context| {
            context.activate_credential(ak, ek, blob, seed)
        })
    });
    // A session that was used is gone; one that wasn't must be given back.
    if secret.is_err() {
        context.flush_context(SessionHandle::from(session).into())?;
    }
    secret.map(|secret| secret.to_vec())
}

/// A log file, in bounds; `None` if there is none.
fn read_log(path: &Path) -> Result<Option<Vec<u8>>, TpmDeviceError> {
    let failed = |source| TpmDeviceError::Log {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut log = Vec::new();
    file.take(LOG_LEN_MAX as u64 + 1)
        .read_to_end(&mut log)
        .map_err(failed)?;
    if log.len() > LOG_LEN_MAX {
        return Err(failed(io::Error::other("it is longer than any event log")));
    }
    Ok(Some(log))
}
