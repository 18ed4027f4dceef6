//! Reference integrity manifests (RIM): NVIDIA's lists of the measurements that a driver or a VBIOS gives, as SWID tags
//! (ISO/IEC 19770-2, TCG RIM information model) with an enveloped XML signature.
//!
//! [`Rim::parse`] reads one and computes what its signature needs; [`Rim::faults`] says whether NVIDIA signed it. What
//! is read and what is digested come from one tree, and a manifest has exactly one signature, a child of its root,
//! over the whole document: nothing can stand beside what was signed.

mod canonical;
mod signature;

use roxmltree::Node;
use sha2::{Digest, Sha384};

pub(crate) use canonical::DOCUMENT_LEN_MAX;
use signature::Signature;

use crate::crypto::CRYPTO;
use crate::result::{Check, Reason, Trust};
use crate::roots::{RootKind, Roots};
use crate::x509::{Cert, PublicKey, dates, find_path};

const SWID: &str = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd";
const TCG_RIM: &str =
    "https://trustedcomputinggroup.org/resource/tcg-reference-integrity-manifest-rim-information-model/";
const SHA384: &str = "http://www.w3.org/2001/04/xmlenc#sha384";
const ALTERNATIVES_MAX: usize = 64;
const VALUE_LEN_MAX: usize = 64;

/// A well-formed manifest, not believed yet.
#[derive(Clone, Debug)]
pub(crate) struct Rim {
    /// `GH100`, `GB100`, `LS10`.
    pub(crate) product: String,
    /// The version of the driver or VBIOS that it describes.
    pub(crate) version: String,
    /// IANA number of the maker; NVIDIA is 5703.
    pub(crate) manufacturer: String,
    /// SWID's name for this manifest.
    pub(crate) tag_id: String,
    /// The measurements that count.
    pub(crate) active: Vec<Golden>,
    signature: Signature,
    /// SHA-384 of the whole document's canonical form without its signature.
    digest: [u8; 48],
}

/// What one measurement may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Golden {
    /// From 0: one less than SPDM's.
    pub(crate) index: u8,
    pub(crate) name: String,
    /// Any of these is right.
    pub(crate) alternatives: Vec<Vec<u8>>,
}

/// Why bytes are no manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RimError {
    #[error("a manifest of {len} bytes (at most {DOCUMENT_LEN_MAX})")]
    Length { len: usize },
    #[error("XML: {0}")]
    Xml(String),
    #[error("schema: {0}")]
    Schema(String),
    #[error("XML signature: {0}")]
    Signature(String),
}

/// What is wrong with a manifest's authenticity, and what its chain rests on.
pub(crate) struct Authenticity {
    pub(crate) checks: Vec<Check>,
    pub(crate) trust: Trust,
    /// The signature holds and leads to a trusted root, whatever the dates say.
    pub(crate) genuine: bool,
}

impl Authenticity {
    /// Genuine, and its certificates are valid.
    pub(crate) fn is_good(&self) -> bool {
        !self.checks.iter().any(Check::is_failed)
    }
}

impl Rim {
    pub(crate) fn parse(xml: &str) -> Result<Self, RimError> {
        let document = canonical::read(xml)?;
        let root = document.root_element();
        if !root.has_tag_name((SWID, "SoftwareIdentity")) {
            return schema("the root isn't a SWID tag (SoftwareIdentity of ISO/IEC 19770-2:2015)");
        }
        let (signature, signature_node) = Signature::parse(root)?;
        let digest = Sha384::digest(canonical::canonical(root, Some(signature_node))).into();
        let meta = only_child(root, "Meta")?;
        let payload = only_child(root, "Payload")?;
        only_child(root, "Entity")?;
        let [product, version, payload_type] =
            ["product", "colloquialVersion", "PayloadType"].map(|name| attribute(meta, name));
        if payload_type? != "direct" {
            return schema("PayloadType isn't `direct`");
        }
        let manufacturer = meta
            .attribute((TCG_RIM, "FirmwareManufacturerId"))
            .ok_or_else(|| RimError::Schema("Meta without FirmwareManufacturerId".to_owned()))?;
        Ok(Self {
            product: product?.to_owned(),
            version: version?.to_owned(),
            manufacturer: manufacturer.to_owned(),
            tag_id: attribute(root, "tagId")?.to_owned(),
            active: measurements(payload)?,
            signature,
            digest,
        })
    }

    /// Whether it describes `version` of one of the `products`.
    pub(crate) fn fits(&self, products: &[&str], version: &str) -> bool {
        let product = products
            .iter()
            .any(|product| self.product.eq_ignore_ascii_case(product));
        product && self.is_of_version(version)
    }

    /// Whether it says to describe `version`, of whatever product.
    pub(crate) fn is_of_version(&self, version: &str) -> bool {
        self.version.eq_ignore_ascii_case(version)
    }

    /// What a person calls it.
    pub(crate) fn shown(&self) -> String {
        format!("{} {}", self.product, self.version)
    }

    /// Signature, chain and dates. `ids`: names of the three lines.
    pub(crate) fn authenticate(&self, ids: [&'static str; 3], roots: &Roots, at: u64) -> Authenticity {
        let [signature_id, chain_id, dates_id] = ids;
        let roots: Vec<_> = roots.of(RootKind::NvidiaRim).collect();
        let certs = &self.signature.certs;
        let leaf = certs.first();
        let path = leaf.map(|leaf| find_path(leaf, &certs[1..], &roots, at));
        let digest_holds = self.digest == self.signature.digest;
        let signed = leaf.is_some_and(|leaf| match &leaf.key {
            PublicKey::P384(key) => {
                CRYPTO.p384_sha384(key, &self.signature.signed_info, &self.signature.value)
            }
            _ => false,
        });
        let led = matches!(path, Some(Ok(_)));
        let found = match (digest_holds, signed, led) {
            (false, _, _) => format!(
                "{}: the document was changed: another digest was signed",
                self.shown()
            ),
            (_, false, _) => format!("{}: the signature isn't its certificate's", self.shown()),
            (_, _, false) => format!("{}: signed by somebody else", self.shown()),
            (true, true, true) => format!("{}: valid", self.shown()),
        };
        let genuine = digest_holds && signed && led;
        let expected = "an XML signature that leads to NVIDIA's root of manifests";
        let mut checks = vec![Check::of(
            signature_id,
            genuine,
            Reason::RimSignatureInvalid,
            expected,
            found,
        )];
        let mut trust = Trust::None;
        match path {
            Some(Ok(path)) => {
                trust = path.trust;
                let names: Vec<&str> = path.certs.iter().map(|cert| cert.subject_cn.as_str()).collect();
                checks.push(Check::passed(chain_id, names.join(" ← ")));
                let mut line = dates(dates_id, &path.certs, at);
                if let crate::Outcome::Failed(reason) = &mut line.outcome {
                    *reason = match reason {
                        Reason::CertificateNotYetValid => Reason::RimNotYetValid,
                        _ => Reason::RimExpired,
                    };
                }
                checks.push(line);
            }
            Some(Err(e)) => {
                checks.push(Check::of(
                    chain_id,
                    false,
                    e.reason,
                    "a chain to NVIDIA's root of manifests",
                    e.found,
                ));
            }
            None => checks.push(Check::of(
                chain_id,
                false,
                Reason::ChainInvalid,
                "a certificate",
                "none",
            )),
        }
        Authenticity {
            checks,
            trust,
            genuine,
        }
    }

    /// The certificates in the manifest, the signer's first.
    pub(crate) fn certs(&self) -> &[Cert] {
        &self.signature.certs
    }
}

/// The digest and the bytes that a manifest's signature must cover; for the simulator that signs one.
#[cfg(feature = "sim")]
pub(crate) fn to_be_signed(xml: &str) -> Option<([u8; 48], Vec<u8>)> {
    let rim = Rim::parse(xml).ok()?;
    Some((rim.digest, rim.signature.signed_info))
}

fn schema<T>(what: impl Into<String>) -> Result<T, RimError> {
    Err(RimError::Schema(what.into()))
}

fn only_child<'a, 'x>(node: Node<'a, 'x>, name: &str) -> Result<Node<'a, 'x>, RimError> {
    let mut found = node.children().filter(|child| child.has_tag_name((SWID, name)));
    match (found.next(), found.next()) {
        (Some(only), None) => Ok(only),
        _ => schema(format!("expected one {name}")),
    }
}

fn attribute<'a>(node: Node<'a, '_>, name: &str) -> Result<&'a str, RimError> {
    match node.attribute(name) {
        Some(value) if !value.is_empty() && value.len() <= 256 => Ok(value),
        _ => schema(format!("{} without {name}", node.tag_name().name())),
    }
}

fn number(node: Node<'_, '_>, name: &str) -> Result<usize, RimError> {
    let text = attribute(node, name)?;
    let number = text
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten();
    number.ok_or_else(|| RimError::Schema(format!("{name} isn't a number: {}", text.escape_debug())))
}

/// The active measurements. Every entry must be whole, also those that don't count.
fn measurements(payload: Node<'_, '_>) -> Result<Vec<Golden>, RimError> {
    let mut active = Vec::new();
    let mut seen = [false; 256];
    for node in payload.children().filter(Node::is_element) {
        if !node.has_tag_name((SWID, "Resource")) || attribute(node, "type")? != "Measurement" {
            return schema(format!(
                "a {} in the payload that is no measurement",
                node.tag_name().name()
            ));
        }
        let index = number(node, "index")?;
        match seen.get_mut(index) {
            // SPDM counts from 1 in one byte.
            Some(seen) if index < 255 && !*seen => *seen = true,
            _ => return schema(format!("measurement {index} twice, or not in 0..=254")),
        }
        let is_active = match attribute(node, "active")? {
            "True" => true,
            "False" => false,
            _ => return schema(format!("measurement {index}: active is neither True nor False")),
        };
        let size = number(node, "size")?;
        let count = number(node, "alternatives")?;
        if !(1..=ALTERNATIVES_MAX).contains(&count) || !(1..=VALUE_LEN_MAX).contains(&size) {
            return schema(format!(
                "measurement {index}: {count} alternatives of {size} bytes"
            ));
        }
        let hashes = node
            .attributes()
            .filter(|attribute| attribute.namespace() == Some(SHA384))
            .count();
        let alternative = |n| {
            let hex = node
                .attribute((SHA384, format!("Hash{n}").as_str()))
                .unwrap_or_default();
            hex::decode(hex).ok().filter(|value| value.len() == size)
        };
        let alternatives: Option<Vec<_>> = (0..count).map(alternative).collect();
        match alternatives {
            Some(alternatives) if hashes == count => {
                let name = attribute(node, "name")?.to_owned();
                if is_active {
                    active.push(Golden {
                        index: index as u8,
                        name,
                        alternatives,
                    });
                }
            }
            _ => {
                return schema(format!(
                    "measurement {index}: expected {count} values of {size} bytes"
                ));
            }
        }
    }
    if active.is_empty() {
        return schema("no active measurement: the manifest says nothing");
    }
    Ok(active)
}
