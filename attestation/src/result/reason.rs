//! Why evidence is refused or can't be judged.

use serde::Serialize;

/// One list of names and what they mean, for the documentation, too.
macro_rules! reasons {
    ($($(#[$attribute:meta])* $name:ident = $meaning:literal,)*) => {
        /// Why evidence is refused or can't be judged. The names are stable; they appear in JSON as they are here.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[non_exhaustive]
        pub enum Reason {
            $(#[doc = $meaning] $(#[$attribute])* $name,)*
        }

        impl Reason {
            /// All of them, format by format.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// What it means, as a sentence.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => $meaning,)*
                }
            }
        }
    };
}

reasons! {
    Malformed = "Wrong length, or reserved bits that aren't zero.",
    UnsupportedVersion = "A report version that this verifier doesn't know.",
    UnsupportedAlgorithm = "A signature algorithm that this verifier doesn't know.",
    UnsupportedProduct = "A processor that this verifier doesn't know.",
    SignatureInvalid = "Wrong signature over the report.",
    ChainInvalid = "The certificates don't lead from the report's key to a root.",
    UntrustedRoot = "They lead to a root that isn't trusted.",
    CertificateExpired = "A certificate that had ended at the time asked about.",
    CertificateNotYetValid = "A certificate that hadn't begun at the time asked about.",
    ExtensionMissing = "A certificate without a field that it must have.",
    ExtensionMalformed = "A certificate with a field that can't be read.",
    VekKindMismatch = "Signed by another kind of key than allowed or said.",
    ChipIdMismatch = "The report's chip isn't the certificate's.",
    ChipNotAllowed = "The report's chip isn't one of those allowed.",
    TcbMismatch = "The report's TCB version isn't the certificate's.",
    ProductMismatch = "Report and certificate speak of different products.",
    ProductRefused = "A product that the policy refuses.",
    CrlRevoked = "A certificate of the chain is revoked.",
    CrlStale = "A CRL outside its window.",
    CrlInvalid = "A CRL with a wrong signature, or of another product.",
    CrlMissing = "No CRL although the policy requires one.",
    EndorsementsMissing = "No certificate for the key that signed the report.",
    DebugAllowed = "The guest may be debugged by its host.",
    MigrateMaAllowed = "The guest may be moved by a migration agent.",
    PolicyBitsMissing = "Guest policy bits that must be set aren't.",
    PlatformInfoMismatch = "Platform bits that must be set aren't, or the other way round.",
    VmplTooLow = "The report comes from a less privileged level than allowed.",
    ReportDataMismatch = "`REPORT_DATA` isn't the expected one: old evidence, or another machine's.",
    MeasurementMismatch = "The measurement isn't one of those allowed.",
    HostDataMismatch = "`HOST_DATA` isn't the expected one.",
    ContractIdMismatch = "The contract id doesn't stand for this salt and these settings.",
    SettingsMismatch = "The VM wasn't set up with the settings that were asked for.",
    SettingsMissing = "The evidence doesn't say what the VM was set up with.",
    FamilyIdMismatch = "`FAMILY_ID` isn't the expected one.",
    ImageIdMismatch = "`IMAGE_ID` isn't the expected one.",
    IdKeyDigestMismatch = "The ID key isn't one of those allowed.",
    AuthorKeyDigestMismatch = "The author key isn't one of those allowed.",
    TcbTooLow = "A part of a TCB version below its floor.",
    InconsistentTcb = "TCB versions that contradict each other.",
    FirmwareTooOld = "Firmware older than allowed.",
    MitigationMissing = "A required mitigation isn't active.",
    ReferenceMissing = "A policy that requires a check without giving its reference value.",
    NoHardwareEvidence = "No hardware speaks for this VM.",
    Unreadable = "A file that was named can't be read, or isn't what it should be.",
    GpuCountMismatch = "Another number of GPUs than asked for.",

    // TDX.
    NotAQuote = "A TDREPORT or something else of Intel's that only its own machine can check.",
    DebugTd = "The TD may be debugged by its host.",
    TdAttributes = "TD attributes that must be set aren't, or the other way round.",
    ServiceTdPresent = "A service TD is bound to this TD.",
    MrConfigMismatch = "`MRCONFIGID`, `MROWNER` or `MROWNERCONFIG` isn't the expected one.",
    TdxModuleMismatch = "The TDX module (`MRSEAM`, `MRSIGNERSEAM`) isn't one that Intel names, or one allowed.",
    RtmrMismatch = "The event log doesn't replay to the run-time measurements, or these aren't those allowed.",
    QeIdentityMismatch = "The quoting enclave isn't the one that Intel names.",
    QeBindingInvalid = "The quoting enclave's report doesn't bind the key that signed the quote.",
    TcbUnrecognised = "No TCB level of Intel's matches.",
    OutOfDate = "The platform's TCB is out of date.",
    ConfigurationNeeded = "The platform needs another configuration.",
    OutOfDateConfigurationNeeded = "Both.",
    ConfigurationAndSWHardeningNeeded = "The platform needs another configuration, and the software in the TD must defend itself.",
    TDRelaunchAdvised = "The TD was launched on a TCB that was out of date and has been updated since.",
    TDRelaunchAdvisedConfigurationNeeded = "That, and the platform needs another configuration.",
    AdvisoryRefused = "An advisory of Intel's that the policy refuses.",
    Revoked = "Intel revoked the TCB level, or NVIDIA a certificate (OCSP).",
    CollateralMismatch = "The collateral is of another platform, kind or maker.",
    CollateralSignatureInvalid = "The collateral's signature doesn't hold over its exact bytes.",
    CollateralExpired = "Collateral outside its window: over.",
    CollateralNotYetValid = "Collateral outside its window: not begun.",
    CollateralMissing = "No TCB info, quoting enclave identity or CRL for this platform.",
    PckRevoked = "Intel revoked the platform's certificate.",

    // NVIDIA GPU.
    NonceMismatch = "The nonce isn't the expected one.",
    FwidMismatch = "The firmware id in the evidence isn't the certificate's.",
    RimExpired = "A reference manifest after its certificate's time.",
    RimNotYetValid = "A reference manifest before its certificate's time.",
    RimSignatureInvalid = "A reference manifest with a wrong signature.",
    RimMalformed = "A reference manifest that can't be read, or of another schema.",
    RimConflict = "Reference manifests of driver and VBIOS that speak of the same measurement.",
    CcModeMismatch = "The GPU isn't in a mode of confidential computing that is accepted.",
    DuplicateDevice = "Evidence of one device that passes for two.",
    #[serde(rename = "Revoked(hold)")]
    RevokedHold = "NVIDIA put a certificate on hold (OCSP).",
    OcspInvalid = "An OCSP response with a wrong signature or of another certificate.",
    OcspStale = "An OCSP response outside its window.",

    // TPM 2.0.
    NotTpmGenerated = "It doesn't begin as what TPMs make does.",
    AkMismatch = "An attestation key that isn't one of those allowed.",
    AkAttributes = "A key that isn't a restricted signing key, made in its TPM and fixed to it.",
    PcrDigestMismatch = "The quoted PCR digest isn't that of the PCR values given.",
    PcrBankRefused = "No PCR of a bank that a verdict may rest on; SHA-1 isn't one.",
    PcrSelectionIncomplete = "A PCR that must be quoted isn't.",
    PcrMismatch = "A PCR isn't one of the values allowed.",
    EventLogMissing = "No event log, and the policy needs one.",
    EventLogMismatch = "The event log doesn't replay to the PCR values.",
    ReferenceSignatureInvalid = "Reference values that no key of the policy signed.",
    SecureBootOff = "Secure Boot is off.",
    RuntimeDataMismatch = "The runtime data isn't what the report binds.",
}
