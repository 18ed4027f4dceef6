//! AMD's certificates, for showing.

use serde_json::{Value, json};

use super::{Product, VekKind, vek};
use crate::show;
use crate::x509::Cert;

/// A certificate's fields, for showing; nothing is verified.
pub fn certificate_claims(der: &[u8]) -> Value {
    let cert = match Cert::parse(der) {
        Ok(cert) => cert,
        Err(e) => return json!({ "unreadable": e.to_string() }),
    };
    let issued = vek::issued_by(&cert.issuer_cn);
    let product = issued.map(|(_, product)| product);
    let is_vek = vek::kind(&cert).is_some();
    let show =
        |claim: Result<Value, vek::ExtensionError>| claim.unwrap_or_else(|e| json!({ "unreadable": e.what }));
    json!({
        "subject": cert.subject_cn,
        "issuer": cert.issuer_cn,
        "serial": show::hex(&cert.serial),
        "not_before": show::time(cert.not_before),
        "not_after": show::time(cert.not_after),
        "product": product.map(Product::name),
        "product_name": is_vek.then(|| show(vek::product_name(&cert).map(|name| json!(name)))),
        "tcb": product.filter(|_| is_vek).map(|product| show(vek::tcb(&cert, product).map(|tcb| json!(tcb)))),
        "hardware_id": (vek::kind(&cert) == Some(VekKind::Vcek))
            .then(|| show(vek::hardware_id(&cert).map(|id| json!(show::hex(id.as_chip_id()))))),
    })
}
