//! The PCK certificate: the chain in a quote, and what Intel writes into the leaf about the platform.
//!
//! Format: Intel, "SGX PCK Certificate and Certificate Revocation List Profile Specification", section 1.3.5.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use der::asn1::{AnyRef, ObjectIdentifier, OctetStringRef};
use der::{Decode, Reader, SliceReader, Tagged};
use serde_json::{Value, json};

use super::tcb::PlatformSvn;
use crate::memory::Memory;
use crate::result::Reason;
use crate::show;
use crate::x509::Cert;

const SGX: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1");
/// Arcs below [`SGX`].
const PPID: u8 = 1;
const TCB: u8 = 2;
const PCE_ID: u8 = 3;
const FMSPC: u8 = 4;
const SGX_TYPE: u8 = 5;
const PLATFORM_INSTANCE: u8 = 6;
const CONFIGURATION: u8 = 7;
/// Arcs below [`TCB`]: 1 to 16 are the components.
const PCE_SVN: u8 = 17;
const CPU_SVN: u8 = 18;

const CHAIN_MAX: usize = 8;
const LINE: usize = 64;
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// What a PCK certificate says about its platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Platform {
    /// Names the processor package; the key to Intel's records of it.
    pub(crate) ppid: [u8; 16],
    pub(crate) svn: PlatformSvn,
    pub(crate) pce_id: [u8; 2],
    /// Family, model, stepping, platform and custom SKU.
    pub(crate) fmspc: [u8; 6],
    sgx_type: u8,
    /// Names a machine of several packages; Platform CA only.
    pub(crate) instance: Option<[u8; 16]>,
    dynamic_platform: Option<bool>,
    cached_keys: Option<bool>,
    smt: Option<bool>,
}

/// Why a PCK certificate's extension can't be used.
pub(crate) type ExtensionError = (Reason, String);

fn malformed(what: &str) -> ExtensionError {
    (
        Reason::ExtensionMalformed,
        format!("unreadable {what} in the PCK certificate"),
    )
}

/// `SEQUENCE OF SEQUENCE { OBJECT IDENTIFIER, ANY }`, whose identifiers are `parent` and one arc more, each once.
fn entries<'a>(
    list: AnyRef<'a>,
    parent: ObjectIdentifier,
    what: &str,
) -> Result<Vec<(u8, AnyRef<'a>)>, ExtensionError> {
    let error = |_| malformed(what);
    let mut found: Vec<(u8, AnyRef<'a>)> = Vec::new();
    let mut rest = SliceReader::new(list.value()).map_err(error)?;
    while list.tag() == der::Tag::Sequence && !rest.is_finished() {
        let (id, value) = rest
            .sequence(|reader| {
                Ok::<_, der::Error>((ObjectIdentifier::decode(reader)?, AnyRef::decode(reader)?))
            })
            .map_err(error)?;
        let arc = id.arcs().last().and_then(|arc| u8::try_from(arc).ok());
        match arc {
            Some(arc) if id.parent() == Some(parent) && found.iter().all(|(seen, _)| *seen != arc) => {
                found.push((arc, value));
            }
            _ => return Err(malformed(what)),
        }
    }
    Ok(found)
}

fn entry<'a>(entries: &[(u8, AnyRef<'a>)], arc: u8, what: &str) -> Result<AnyRef<'a>, ExtensionError> {
    let found = entries.iter().find(|(found, _)| *found == arc);
    found.map(|(_, value)| *value).ok_or_else(|| {
        (
            Reason::ExtensionMissing,
            format!("no {what} in the PCK certificate"),
        )
    })
}

fn octets<const N: usize>(value: AnyRef<'_>, what: &str) -> Result<[u8; N], ExtensionError> {
    let octets: &OctetStringRef = value.decode_as().map_err(|_| malformed(what))?;
    octets.as_bytes().try_into().map_err(|_| malformed(what))
}

impl Platform {
    pub(crate) fn of(cert: &Cert) -> Result<Self, ExtensionError> {
        let missing = || {
            (
                Reason::ExtensionMissing,
                "no SGX extension in the PCK certificate".to_owned(),
            )
        };
        let extension = cert.extension(&SGX).ok_or_else(missing)?;
        let outer = AnyRef::from_der(extension).map_err(|_| malformed("SGX extension"))?;
        let all = entries(outer, SGX, "SGX extension")?;
        let below = |arc: u8| SGX.push_arc(arc.into()).map_err(|_| malformed("SGX extension"));
        let tcb = entry(&all, TCB, "TCB")?;
        let tcb = entries(tcb, below(TCB)?, "TCB")?;
        let number = |arc: u8, what: &str| -> Result<u16, ExtensionError> {
            entry(&tcb, arc, what)?.decode_as().map_err(|_| malformed(what))
        };
        let mut components = [0; 16];
        for (arc, svn) in (1..).zip(&mut components) {
            *svn = u8::try_from(number(arc, "TCB component")?).map_err(|_| malformed("TCB component"))?;
        }
        octets::<16>(entry(&tcb, CPU_SVN, "CPUSVN")?, "CPUSVN")?;
        let pcesvn = number(PCE_SVN, "PCESVN")?;
        let optional = |arc: u8| {
            all.iter()
                .find(|(found, _)| *found == arc)
                .map(|(_, value)| *value)
        };
        let instance = optional(PLATFORM_INSTANCE)
            .map(|value| octets(value, "platform instance"))
            .transpose()?;
        let flags = match optional(CONFIGURATION) {
            Some(value) => entries(value, below(CONFIGURATION)?, "configuration")?,
            None => Vec::new(),
        };
        let flag = |arc: u8| -> Result<Option<bool>, ExtensionError> {
            let value = flags
                .iter()
                .find(|(found, _)| *found == arc)
                .map(|(_, value)| *value);
            value
                .map(|value| value.decode_as().map_err(|_| malformed("configuration")))
                .transpose()
        };
        let sgx_type = entry(&all, SGX_TYPE, "SGX type")?;
        let [sgx_type] = *sgx_type.value() else {
            return Err(malformed("SGX type"));
        };
        Ok(Self {
            ppid: octets(entry(&all, PPID, "PPID")?, "PPID")?,
            svn: PlatformSvn { components, pcesvn },
            pce_id: octets(entry(&all, PCE_ID, "PCEID")?, "PCEID")?,
            fmspc: octets(entry(&all, FMSPC, "FMSPC")?, "FMSPC")?,
            sgx_type,
            instance,
            dynamic_platform: flag(1)?,
            cached_keys: flag(2)?,
            smt: flag(3)?,
        })
    }

    pub(crate) fn claims(&self) -> Value {
        json!({
            "ppid": show::hex(self.ppid),
            "fmspc": show::hex(self.fmspc),
            "pce_id": show::hex(self.pce_id),
            "cpu_svn": show::hex(self.svn.components),
            "pce_svn": self.svn.pcesvn,
            "sgx_type": match self.sgx_type {
                0 => json!("standard"),
                1 => json!("scalable"),
                2 => json!("scalable-with-integrity"),
                other => json!(other),
            },
            "platform_instance": self.instance.map(show::hex),
            "dynamic_platform": self.dynamic_platform,
            "cached_keys": self.cached_keys,
            "smt": self.smt,
        })
    }
}

/// A quote's chain, read but not believed.
pub(super) struct Chain {
    /// As the quote has them: PCK, CA, root.
    pub(super) certs: Vec<Cert>,
    /// What the first certificate says.
    pub(super) platform: Result<Platform, ExtensionError>,
}

static READ: Memory<Arc<Chain>> = Memory::new();

/// Forgets the chains that were read.
#[cfg(feature = "sim")]
pub(crate) fn forget() {
    READ.forget();
}

impl Chain {
    /// Every quote of a platform brings the same one, so what was read is remembered.
    pub(super) fn read(bytes: &[u8]) -> Result<Arc<Self>, (Reason, String)> {
        READ.read(bytes, |bytes| {
            let ders = chain(bytes).map_err(|what| (Reason::Malformed, what))?;
            let parse = |der: &Vec<u8>| {
                Cert::parse(der).map_err(|e| (Reason::Malformed, format!("an unreadable certificate: {e}")))
            };
            let certs: Vec<Cert> = ders.iter().map(parse).collect::<Result<_, _>>()?;
            let platform = match certs.first() {
                Some(pck) => Platform::of(pck),
                None => Err(malformed("chain")),
            };
            Ok(Arc::new(Self { certs, platform }))
        })
    }
}

/// The certificates (DER) of a quote's chain. Nothing signs the text around them, so it must be exactly as Intel writes
/// it: PEM in lines of 64 characters, at most one NUL behind the end. DER is read too, in the order in which Intel's test
/// tool writes it: the root first.
pub(crate) fn chain(bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    if bytes.first() == Some(&0x30) {
        return der_chain(bytes);
    }
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|_| "a PCK certificate chain that isn't text")?;
    let mut lines = text
        .split('\n')
        .map(|line| line.strip_suffix('\r').unwrap_or(line))
        .peekable();
    let mut certs = Vec::new();
    while let Some(line) = lines.next() {
        if line.is_empty() && lines.peek().is_none() && !certs.is_empty() {
            break; // the end of the last line
        }
        if line != BEGIN {
            return Err("a PCK certificate chain with something between its certificates".to_owned());
        }
        if certs.len() == CHAIN_MAX {
            return Err(format!(
                "a PCK certificate chain of more than {CHAIN_MAX} certificates"
            ));
        }
        let mut base64 = String::new();
        let mut short = false;
        loop {
            match lines.next() {
                Some(END) if !base64.is_empty() => break,
                Some(line) if !short && (1..=LINE).contains(&line.len()) => {
                    short = line.len() < LINE;
                    base64.push_str(line);
                }
                _ => {
                    return Err("a PCK certificate chain that isn't PEM in lines of 64 characters".to_owned());
                }
            }
        }
        let der = STANDARD
            .decode(&base64)
            .map_err(|_| "a PCK certificate that isn't base64")?;
        certs.push(der);
    }
    Ok(certs)
}

fn der_chain(bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let error = |_| "a PCK certificate chain that isn't DER".to_owned();
    let mut reader = SliceReader::new(bytes).map_err(error)?;
    let mut certs = Vec::new();
    while !reader.is_finished() && certs.len() < CHAIN_MAX {
        certs.push(reader.tlv_bytes().map_err(error)?.to_vec());
    }
    reader.finish().map_err(error)?;
    certs.reverse();
    Ok(certs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_pem_without_anything_else() {
        let block = format!("{BEGIN}\n{}\nQUJD\n{END}", "QUJD".repeat(16));
        let der = [b"ABC".repeat(16), b"ABC".to_vec()].concat();
        for (text, want) in [
            (block.clone(), Some(1)),
            (format!("{block}\n"), Some(1)),
            (format!("{block}\n\0"), Some(1)),
            (format!("{block}\n{block}\n{block}\n"), Some(3)),
            (format!("{block}\n{block}").replace('\n', "\r\n"), Some(2)),
            (format!("{block}\n\n"), None),
            (format!("{block}\0\0"), None),
            (format!("{block}\n{block}x"), None),
            (format!(" {block}"), None),
            (format!("{block}\n\n{block}"), None),
            (block.replace("QUJD\n-", "QUI=D\n-"), None),
            (block.replacen('Q', " ", 1), None),
            (block.replace("QUJD\n-", "QUJ=\n-"), None), // bits that mean nothing
            (format!("{BEGIN}\nQUJD\nQUJD\n{END}"), None),
            (format!("{BEGIN}\n{END}"), None),
            (BEGIN.to_owned(), None),
            (String::new(), None),
        ] {
            let found = chain(text.as_bytes()).ok().filter(|certs| !certs.is_empty());
            assert_eq!(found, want.map(|count| vec![der.clone(); count]), "{text:?}");
        }
    }

    #[test]
    fn a_chain_may_be_der() {
        assert_eq!(
            chain(&[0x30, 1, 5, 0x30, 0]),
            Ok(vec![vec![0x30, 0], vec![0x30, 1, 5]])
        );
        assert!(chain(&[0x30, 1, 5, 0x30]).is_err());
        assert!(chain(&[0x30, 0].repeat(CHAIN_MAX + 1)).is_err());
    }
}
