//! Getting endorsements from their makers: AMD's key service (KDS), Intel's provisioning service (PCS, or a PCCS in
//! front of it), NVIDIA's reference manifests and OCSP responder.
//!
//! | stage | takes | gives |
//! |---|---|---|
//! | [`needed`] | evidence, and what is there already | [`Document`]s, and what can't be asked for |
//! | [`Document::request`] | [`Sources`] | one HTTP request |
//! | [`Document::check`] | an answer, roots, a time | the document is the one that was asked for, its maker signed it, and until when it is good |
//! | [`Fetcher`] | all of that | files in a folder that `--endorsements` takes |
//!
//! All but the last are pure. Only what passed its check comes into the folder, so a bad answer never replaces a good
//! file; and what lies there is checked again each time, so a file that somebody changed is fetched anew. The verifier
//! knows nothing of all this: it judges whatever it is given.

mod amd;
mod cache;
mod client;
mod document;
mod intel;
mod nvidia;

pub use cache::{Event, Fetcher, Found, Outcome};
pub use client::{FetchError, FetcherError, Patience};
pub use document::{Answer, Document, PckCa, Request, Sources, SourcesError};

use crate::snp::Product;
use crate::{AnyEvidence, CpuEvidence, Endorsements, Roots};

/// What evidence needs beside itself to be judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// In the order in which they are best fetched.
    pub documents: Vec<Document>,
    /// What is needed and can't be asked for; sentences.
    pub gaps: Vec<String>,
}

impl Needs {
    fn want(&mut self, document: Document) {
        if !self.documents.contains(&document) {
            self.documents.push(document);
        }
    }

    fn lack(&mut self, what: impl Into<String>) {
        let what = what.into();
        if !self.gaps.contains(&what) {
            self.gaps.push(what);
        }
    }
}

/// What `evidence` needs. Reference manifests have signers of their own, whose revocation is asked about when the
/// manifests are among `known`: ask again with what was fetched. `product`: of the processor, where the report doesn't say it
/// (version 2). `at`: Unix seconds.
pub fn needed(
    evidence: &AnyEvidence,
    known: &Endorsements,
    product: Option<Product>,
    roots: &Roots,
    at: u64,
) -> Needs {
    let mut needs = Needs::default();
    match evidence {
        AnyEvidence::Vm(composite) => {
            match &composite.vm.cpu {
                CpuEvidence::SevSnp {
                    report, certificates, ..
                } => amd::needs(report, certificates, known, product, &mut needs),
                CpuEvidence::Tdx { quote, .. } => intel::needs(quote, &mut needs),
                CpuEvidence::None => {}
            }
            nvidia::needs(&composite.gpus, known, roots, at, &mut needs);
        }
        AnyEvidence::Gpu(gpus) => nvidia::needs(gpus, known, roots, at, &mut needs),
        AnyEvidence::Azure(azure) => match (&azure.td_quote, azure.snp_report()) {
            (Some(quote), _) => intel::needs(quote, &mut needs),
            (None, Some(report)) => amd::needs(report, &azure.certificates, known, product, &mut needs),
            (None, None) => needs.lack("the evidence holds no report that could be read"),
        },
        // Its key is named by the policy, or has a certificate in the evidence.
        AnyEvidence::Tpm(_) => {}
    }
    needs
}
