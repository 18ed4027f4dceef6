//! What hosts run: quotes of a simulated TPM over a simulated boot, signed reference values, and what follows from them
//! for contracts.

use attestation::sim::{AkKind, BootImage, ReferenceSigner, Tpm};
use attestation::tpm::TpmEvidence;
use attestation::{
    Binding, Bundle, Composite, CpuEvidence, Evidence, GuestKeys, HostBinding, host_qualifying_data,
};

use super::*;

const IMAGE: &str = "provider-os 1.0 (plain)";

/// A ledger that knows one signer's images, and a host with a TPM that booted one of them.
struct Setting {
    world: World,
    signer: ReferenceSigner,
    tpm: Tpm,
    image: BootImage,
    references: Vec<Vec<u8>>,
}

fn name(tpm: &Tpm) -> TpmName {
    Bytes::from_slice(&tpm.name()).unwrap()
}

fn delegate(world: &mut World, key: Option<TpmName>, days: u64) {
    let statement = HostStatement {
        expires_at: (START_S + days * 86_400) * SECOND,
        attestation_key: key,
        ..delegation(1, world.host, "p.example").statement
    };
    let host = world.host;
    world.ok(host, Command::RegisterHost(sign(1, statement)));
}

impl Setting {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut Genesis)) -> Self {
        let signer = ReferenceSigner::create().unwrap();
        let mut genesis = genesis();
        genesis.host_images.keys = vec![signer.public_pem().unwrap()];
        change(&mut genesis);
        let mut world = World::with(genesis);
        let (tpm, image) = (Tpm::create(AkKind::P256).unwrap(), BootImage::named("1.0"));
        delegate(&mut world, Some(name(&tpm)), 31);
        Self {
            references: vec![signer.sign(IMAGE, &image).unwrap()],
            world,
            signer,
            tpm,
            image,
        }
    }

    /// A nonce, a minute after the last one.
    fn nonce(&mut self) -> Digest32 {
        self.world.pass(61);
        let host = self.world.host;
        match self.world.ok(host, Command::HostNonce) {
            Reply::Nonce(nonce) => nonce,
            other => panic!("{other:?}"),
        }
    }

    fn data(&self, nonce: &Digest32) -> [u8; 32] {
        let ledger = ledger();
        let binding = HostBinding {
            ledger: ledger.as_slice(),
            host: self.world.host.as_slice(),
            nonce: nonce.0,
        };
        binding.qualifying_data()
    }

    fn quote(&self, data: &[u8]) -> TpmEvidence {
        self.image.boot().evidence(&self.tpm, data).unwrap()
    }

    fn submit(&mut self, evidence: &TpmEvidence) -> Result<HostVerified, Vec<String>> {
        let bytes = self.bundle(evidence.to_cbor());
        self.submit_bytes(bytes)
    }

    fn bundle(&self, evidence: Vec<u8>) -> Vec<u8> {
        let endorsements = self.references.clone();
        Bundle {
            evidence,
            endorsements,
        }
        .to_cbor()
    }

    fn submit_bytes(&mut self, evidence: Vec<u8>) -> Result<HostVerified, Vec<String>> {
        let host = self.world.host;
        let command = Command::SubmitHostEvidence(HostEvidenceArgs { evidence });
        match self.world.apply(host, command) {
            Ok(Reply::HostVerified(verified)) => Ok(verified),
            Err(LedgerError::EvidenceRefused { reasons, .. }) => Err(reasons),
            other => panic!("{other:?}"),
        }
    }

    /// Quotes what it booted over a fresh nonce, and submits it.
    fn attest(&mut self) -> Result<HostVerified, Vec<String>> {
        let nonce = self.nonce();
        let evidence = self.quote(&self.data(&nonce));
        self.submit(&evidence)
    }

    fn info(&self) -> HostInfo {
        self.world.state.host_info(&self.world.host).unwrap()
    }

    fn grade(&self) -> Grade {
        self.info().grade(self.world.now)
    }

    fn rent(&mut self) -> Result<ContractId, LedgerError> {
        self.world
            .rent_with(|args| args.request.min_grade = Grade::HostVerified)
    }

    /// An accepted contract with its nonce.
    fn accepted(&mut self, least: Grade) -> (ContractId, Digest32) {
        let id = self
            .world
            .rent_with(|args| args.request.min_grade = least)
            .unwrap();
        let host = self.world.host;
        self.world.ok(host, Command::Accept(id));
        match self.world.ok(host, Command::ContractNonce(id)) {
            Reply::Nonce(nonce) => (id, nonce),
            other => panic!("{other:?}"),
        }
    }

    /// A contract's evidence, with what `quote` gives for the data that the host's quote must hold.
    fn confirm(
        &mut self,
        (id, nonce): (ContractId, Digest32),
        quote: impl FnOnce(&Self, [u8; 32]) -> Option<TpmEvidence>,
    ) -> Result<Confirmation, LedgerError> {
        let guest_keys = GuestKeys {
            wireguard: Some(id.0),
            ..Default::default()
        };
        let ledger = ledger();
        let binding = Binding {
            ledger: ledger.as_slice(),
            contract: id.0,
            nonce: nonce.0,
        };
        let host = quote(self, host_qualifying_data(&binding.report_data(&guest_keys)));
        let evidence = Composite {
            host,
            ..Composite::from(Evidence {
                cpu: CpuEvidence::None,
                guest_keys,
            })
        };
        let Command::SubmitEvidence(mut args) = self.world.plain_evidence(&id) else {
            panic!()
        };
        args.evidence = self.bundle(evidence.to_cbor());
        let caller = self.world.host;
        match self.world.apply(caller, Command::SubmitEvidence(args))? {
            Reply::Confirmed(confirmation) => Ok(confirmation),
            other => panic!("{other:?}"),
        }
    }
}

#[track_caller]
fn says(reasons: &[String], words: &str) {
    assert!(
        reasons.iter().any(|reason| reason.contains(words)),
        "{reasons:?} lack {words:?}"
    );
}

#[test]
fn a_host_that_runs_a_known_image_is_matched_and_confirmed_as_host_verified() {
    let mut s = Setting::new();
    assert_eq!(s.grade(), Grade::HostSigned);
    let error = s.rent().unwrap_err().to_string();
    assert!(error.contains("hasn't verified what the host runs"), "{error}");
    let verified = s.attest().unwrap();
    assert_eq!((verified.image.as_str(), s.grade()), (IMAGE, Grade::HostVerified));
    assert_eq!(
        verified.until,
        s.world.now + 86_400 * SECOND,
        "counted from its nonce"
    );
    let record = s.world.state.host_evidence(&s.world.host).unwrap();
    assert_eq!(record.confirmation.trust, "policy");

    let asked = s.accepted(Grade::HostVerified);
    // Its host's word isn't enough: no silent downgrade.
    let error = s.confirm(asked, |_, _| None).unwrap_err().to_string();
    assert!(error.contains("NoHardwareEvidence"), "{error}");
    let confirmation = s.confirm(asked, |s, data| Some(s.quote(&data))).unwrap();
    assert_eq!(
        (confirmation.grade, confirmation.trust.as_str()),
        (Grade::HostVerified, "policy")
    );
    assert_eq!(s.world.contract(&asked.0).grade, Grade::HostVerified);
    s.world.assert_replay();
}

#[test]
fn a_flipped_byte_of_what_was_booted_takes_the_grade_away() {
    type Change = fn(&mut BootImage);
    let table: &[(&str, Change, &str)] = &[
        ("boot loader", |i| i.loader[0] ^= 1, "PCR 4"),
        ("kernel", |i| i.kernel[0] ^= 1, ".linux"),
        ("initrd", |i| i.initrd[0] ^= 1, ".initrd"),
        (
            "root",
            |i| i.cmdline = i.cmdline.replace("roothash=", "roothash=0"),
            ".cmdline",
        ),
        ("command line", |i| i.cmdline.push('x'), "PCR 11"),
        (
            "added command line",
            |i| i.extra_cmdline = Some("debug".into()),
            "PCR 12",
        ),
        ("secure boot", |i| i.secure_boot = false, "SecureBootOff"),
    ];
    let mut s = Setting::new();
    let good = s.image.clone();
    for (what, change, reason) in table {
        s.image = good.clone();
        s.attest().unwrap();
        let asked = s.accepted(Grade::HostVerified);
        change(&mut s.image);
        let error = s
            .confirm(asked, |s, data| Some(s.quote(&data)))
            .unwrap_err()
            .to_string();
        assert!(error.contains(reason), "{what}: {error}");
        let word = s.accepted(Grade::HostSigned);
        let confirmation = s.confirm(word, |s, data| Some(s.quote(&data))).unwrap();
        assert_eq!(confirmation.grade, Grade::HostSigned, "{what}");
        says(&s.world.contract(&word.0).refusals, reason);
        says(&s.attest().unwrap_err(), reason);
        assert_eq!(s.grade(), Grade::HostSigned, "{what}: the last evidence decides");
        says(&s.info().refusals, reason);
        assert!(s.rent().is_err(), "{what}");
        s.world.pass(2 * HOUR);
        for id in [asked.0, word.0] {
            let _ = s.world.apply(s.world.developer, Command::Cancel(id));
            s.world.ok(s.world.host, Command::Released(id));
        }
    }
    s.world.assert_replay();
}

#[test]
fn a_quote_counts_for_its_ledger_host_and_nonce_alone_and_once() {
    let mut s = Setting::new();
    let first = s.nonce();
    let old = s.quote(&s.data(&first));
    s.submit(&old).unwrap();
    // The same bytes are answered again; over another nonce they prove nothing.
    assert!(s.submit(&old).is_ok());
    s.nonce();
    let mut replayed = old.clone();
    replayed.certificates = vec![vec![0x30, 0]]; // other bytes, the same quote
    says(&s.submit(&replayed).unwrap_err(), "ReportDataMismatch");
    let host = s.world.host;
    let unasked = Command::SubmitHostEvidence(HostEvidenceArgs { evidence: vec![1] });
    s.world.refused(host, unasked, "call host_nonce first");
    s.world.refused(host, Command::HostNonce, "one nonce a minute");

    let nonce = s.nonce();
    let ledger_id = ledger();
    let of = |ledger: &[u8], host: &[u8]| {
        let nonce = nonce.0;
        HostBinding { ledger, host, nonce }.qualifying_data().to_vec()
    };
    let wrong = [
        of(&[1], host.as_slice()),
        of(ledger_id.as_slice(), s.world.other.as_slice()),
        nonce.0.to_vec(),
        Vec::new(),
    ];
    for data in wrong {
        s.nonce();
        let evidence = s.quote(&data);
        says(&s.submit(&evidence).unwrap_err(), "ReportDataMismatch");
        assert_eq!(s.grade(), Grade::HostSigned);
    }
    // A host's own quote doesn't confirm a contract, nor one made for another contract.
    s.attest().unwrap();
    let (asked, other) = (s.accepted(Grade::HostVerified), s.accepted(Grade::HostVerified));
    let mut made = None;
    s.confirm(other, |s, data| {
        made = Some(s.quote(&data));
        made.clone()
    })
    .unwrap();
    for evidence in [old, made.unwrap()] {
        let error = s.confirm(asked, |_, _| Some(evidence)).unwrap_err().to_string();
        assert!(error.contains("ReportDataMismatch"), "{error}");
    }
    s.confirm(asked, |s, data| Some(s.quote(&data))).unwrap();
}

#[test]
fn only_the_key_that_the_provider_named_counts() {
    let mut s = Setting::new();
    s.attest().unwrap();
    let (own, stranger) = (name(&s.tpm), Tpm::create(AkKind::P256).unwrap());
    s.tpm = stranger;
    says(&s.attest().unwrap_err(), "AkMismatch");
    // The provider names another one, in a delegation that ends later: what the old one proved is over.
    let named = name(&s.tpm);
    delegate(&mut s.world, Some(named), 40);
    s.attest().unwrap();
    delegate(&mut s.world, Some(own), 50);
    assert_eq!(
        (s.grade(), s.info().attestation_key),
        (Grade::HostSigned, Some(own))
    );
    delegate(&mut s.world, None, 60);
    s.world.pass(61);
    s.world
        .refused(s.world.host, Command::HostNonce, "names no attestation key");
    let asked = s.accepted(Grade::HostSigned);
    let confirmation = s.confirm(asked, |s, data| Some(s.quote(&data))).unwrap();
    assert_eq!(confirmation.grade, Grade::HostSigned);
    says(&s.world.contract(&asked.0).refusals, "names no attestation key");
}

#[test]
fn only_images_that_a_known_key_signed_for_count_and_refused_ones_do_not() {
    let mut s = Setting::with(|genesis| genesis.host_images.refused = vec!["provider-os 0.9 (plain)".into()]);
    let known = s.references.clone();
    // Two versions at once, while hosts are being updated.
    s.references.push(
        s.signer
            .sign("provider-os 1.1 (plain)", &BootImage::named("1.1"))
            .unwrap(),
    );
    s.attest().unwrap();
    s.image = BootImage::named("1.1");
    assert_eq!(s.attest().unwrap().image, "provider-os 1.1 (plain)");
    s.references = known.clone();
    says(&s.attest().unwrap_err(), "MeasurementMismatch");
    s.references = vec![s.signer.sign("provider-os 0.9 (plain)", &s.image).unwrap()];
    says(
        &s.attest().unwrap_err(),
        "an image that the policy doesn't refuse",
    );
    let foreign = ReferenceSigner::create().unwrap();
    s.references = vec![foreign.sign("provider-os 1.1 (plain)", &s.image).unwrap()];
    says(&s.attest().unwrap_err(), "ReferenceSignatureInvalid");
    s.references.clear();
    says(&s.attest().unwrap_err(), "ReferenceMissing");
    // A ledger that knows nobody's images verifies no host.
    let mut s = Setting::with(|genesis| genesis.host_images.keys.clear());
    says(
        &s.attest().unwrap_err(),
        "names no key that signs reference values",
    );
}

#[test]
fn a_log_that_does_not_explain_the_quote_is_refused() {
    let mut s = Setting::new();
    type Change = fn(&mut TpmEvidence);
    let table: &[(&str, Change)] = &[
        ("EventLogMissing", |e| e.firmware_log = None),
        ("EventLogMismatch", |e| {
            e.firmware_log = Some(BootImage::named("2.0").boot().log())
        }),
        ("Malformed", |e| e.firmware_log.as_mut().unwrap().truncate(90)),
        ("PcrDigestMismatch", |e| {
            let bank = e.pcrs.values_mut().next().unwrap();
            bank.insert(11, vec![7; 32]);
        }),
        ("SignatureInvalid", |e| *e.signature.last_mut().unwrap() ^= 1),
    ];
    for (reason, change) in table {
        let nonce = s.nonce();
        let mut evidence = s.quote(&s.data(&nonce));
        change(&mut evidence);
        says(&s.submit(&evidence).unwrap_err(), reason);
        assert_eq!(s.grade(), Grade::HostSigned, "{reason}");
    }
    for garbage in [vec![], b"garbage".to_vec(), vec![0xa9; 100]] {
        s.nonce();
        says(&s.submit_bytes(garbage).unwrap_err(), "not evidence");
    }
    s.world.assert_replay();
}

#[test]
fn evidence_lapses_and_with_it_matching_and_extending() {
    let mut s = Setting::with(|genesis| genesis.host_images.valid_s = 2 * HOUR);
    s.attest().unwrap();
    let asked = s.accepted(Grade::HostVerified);
    s.confirm(asked, |s, data| Some(s.quote(&data))).unwrap();
    let extend = |memo| {
        Command::Extend(ExtendArgs {
            contract: asked.0,
            period_s: HOUR,
            max_total: 100 * DCT,
            memo,
        })
    };
    let developer = s.world.developer;
    s.world.ok(developer, extend(1));
    s.world.pass(2 * HOUR);
    assert_eq!(s.grade(), Grade::HostSigned);
    let error = s.rent().unwrap_err().to_string();
    assert!(error.contains("the host's evidence is too old"), "{error}");
    let request = Request {
        min_grade: Grade::HostVerified,
        ..request()
    };
    assert_eq!(
        s.world
            .state
            .match_offerings(developer, &request, s.world.now)
            .unwrap(),
        vec![]
    );
    s.world
        .refused(developer, extend(2), "no current evidence of its host");
    assert_eq!(
        s.world.contract(&asked.0).grade,
        Grade::HostVerified,
        "what was confirmed stays"
    );
    s.attest().unwrap();
    s.world.ok(developer, extend(2));
    assert_eq!(
        s.world
            .state
            .match_offerings(developer, &request, s.world.now)
            .unwrap()
            .len(),
        1
    );
}
