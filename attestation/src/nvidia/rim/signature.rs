//! The signature of a manifest: XML Signature (W3C) as far as NVIDIA uses it. One enveloped signature over the whole
//! document, SHA-384, ECDSA P-384, certificates inside.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use roxmltree::{Node, NodeId};

use super::{RimError, canonical};
use crate::x509::Cert;

const DSIG: &str = "http://www.w3.org/2000/09/xmldsig#";
const ENVELOPED: &str = "http://www.w3.org/2000/09/xmldsig#enveloped-signature";
/// Canonical XML 1.1 and 1.0 without comments: the same for the documents that are accepted.
const CANONICAL: [&str; 2] = [
    "http://www.w3.org/2006/12/xml-c14n11",
    "http://www.w3.org/TR/2001/REC-xml-c14n-20010315",
];
const ECDSA_SHA384: &str = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384";
const DIGEST_SHA384: &str = "http://www.w3.org/2001/04/xmldsig-more#sha384";
const CERTIFICATES_MAX: usize = 8;

/// What a signature element says.
#[derive(Clone, Debug)]
pub(super) struct Signature {
    /// The digest that was signed.
    pub(super) digest: [u8; 48],
    /// Canonical form of `SignedInfo`: what the signature covers.
    pub(super) signed_info: Vec<u8>,
    /// r ‖ s.
    pub(super) value: [u8; 96],
    /// The signer's certificate first.
    pub(super) certs: Vec<Cert>,
}

impl Signature {
    /// Reads the one signature of a document, which must be a child of its root.
    pub(super) fn parse(root: Node<'_, '_>) -> Result<(Self, NodeId), RimError> {
        let mut all = root
            .descendants()
            .filter(|node| node.has_tag_name((DSIG, "Signature")));
        let node = match (all.next(), all.next()) {
            (Some(node), None) if node.parent() == Some(root) => node,
            _ => return wrong("expected one Signature, in the root element"),
        };
        let [info, value, key] = children(node, ["SignedInfo", "SignatureValue", "KeyInfo"])?;
        let [method, algorithm, reference] =
            children(info, ["CanonicalizationMethod", "SignatureMethod", "Reference"])?;
        one_of(method, &CANONICAL)?;
        one_of(algorithm, &[ECDSA_SHA384])?;
        if reference.attribute("URI") != Some("") {
            return wrong("the reference isn't to the whole document");
        }
        let [transforms, digest_method, digest] =
            children(reference, ["Transforms", "DigestMethod", "DigestValue"])?;
        one_of(digest_method, &[DIGEST_SHA384])?;
        let transforms: Vec<_> = elements(transforms).collect();
        match transforms[..] {
            [enveloped, canonical] => {
                one_of(enveloped, &[ENVELOPED])?;
                one_of(canonical, &CANONICAL)?;
            }
            _ => return wrong("expected two transforms"),
        }
        let [data] = children(key, ["X509Data"])?;
        let certs = elements(data)
            .take(CERTIFICATES_MAX + 1)
            .map(certificate)
            .collect::<Result<Vec<_>, _>>()?;
        if !(1..=CERTIFICATES_MAX).contains(&certs.len()) {
            return wrong(format!("{} certificates (1 to {CERTIFICATES_MAX})", certs.len()));
        }
        let signature = Self {
            digest: fixed(digest)?,
            signed_info: canonical::canonical(info, None),
            value: fixed(value)?,
            certs,
        };
        Ok((signature, node.id()))
    }
}

fn certificate(node: Node<'_, '_>) -> Result<Cert, RimError> {
    if !node.has_tag_name((DSIG, "X509Certificate")) {
        return wrong(format!("a {} among the certificates", node.tag_name().name()));
    }
    Cert::parse(&base64(node)?).map_err(|e| RimError::Signature(format!("a certificate: {e}")))
}

fn wrong<T>(what: impl Into<String>) -> Result<T, RimError> {
    Err(RimError::Signature(what.into()))
}

fn elements<'a, 'x>(node: Node<'a, 'x>) -> impl Iterator<Item = Node<'a, 'x>> {
    node.children().filter(Node::is_element)
}

/// Exactly these child elements, in this order.
fn children<'a, 'x, const N: usize>(
    node: Node<'a, 'x>,
    names: [&str; N],
) -> Result<[Node<'a, 'x>; N], RimError> {
    let found: Vec<_> = elements(node).collect();
    let right = found.len() == N
        && found
            .iter()
            .zip(names)
            .all(|(node, name)| node.has_tag_name((DSIG, name)));
    match found.try_into() {
        Ok(children) if right => Ok(children),
        _ => wrong(format!(
            "expected {} in {}",
            names.join(", "),
            node.tag_name().name()
        )),
    }
}

/// An element that names one of these algorithms, with nothing in it.
fn one_of(node: Node<'_, '_>, algorithms: &[&str]) -> Result<(), RimError> {
    let algorithm = node.attribute("Algorithm").unwrap_or_default();
    if algorithms.contains(&algorithm) && node.attributes().len() == 1 && !node.has_children() {
        return Ok(());
    }
    let name = node.tag_name().name();
    wrong(format!(
        "{name}: `{}` isn't supported",
        algorithm.escape_debug().take(80).collect::<String>()
    ))
}

/// Base64 with line breaks; the element holds one text and nothing else.
fn base64(node: Node<'_, '_>) -> Result<Vec<u8>, RimError> {
    let name = node.tag_name().name();
    let mut children = node.children();
    let text = match (children.next(), children.next()) {
        (Some(only), None) if only.is_text() => only.text().unwrap_or_default(),
        _ => return wrong(format!("{name} isn't one text")),
    };
    let text: String = text.split_ascii_whitespace().collect();
    STANDARD
        .decode(text)
        .or_else(|_| wrong(format!("{name} isn't base64")))
}

fn fixed<const N: usize>(node: Node<'_, '_>) -> Result<[u8; N], RimError> {
    let bytes = base64(node)?;
    let len = bytes.len();
    bytes
        .try_into()
        .or_else(|_| wrong(format!("{} of {len} bytes, not {N}", node.tag_name().name())))
}
