//! The key distribution service of the simulated chip's maker, at the paths of AMD's (AMD 57230, section 4).

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use attestation::fetch::{Document, Sources, needed};
use attestation::sim::Launch;
use attestation::{AnyEvidence, Endorsements, Roots};
use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::load;

/// Serves what the maker publishes about the chip in `dir`, until the process ends.
pub fn serve(dir: &Path, address: SocketAddr) -> Result<()> {
    let platform = load(dir)?;
    let [vcek, ask, ark] = <[Vec<u8>; 3]>::try_from(platform.certificates())
        .map_err(|found| anyhow::anyhow!("{} certificates, not three", found.len()))?;
    let pem = |der: &[u8]| {
        let body = STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
    };
    // Whoever holds a report of the chip's asks at these paths.
    let launch = Launch {
        measurement: [0; 48],
        host_data: [0; 32],
        policy: 0x3_0000,
    };
    let evidence = AnyEvidence::parse(&platform.report(&launch, &[0; 64])?)?;
    let needs = needed(&evidence, &Endorsements::none(), None, &Roots::pinned(), 0);
    let mut published = Vec::new();
    for document in needs.documents {
        let url = document.request(&Sources::default())?.url;
        let path = format!(
            "{}{}",
            url.path(),
            url.query().map(|q| format!("?{q}")).unwrap_or_default()
        );
        let content = match document {
            Document::Vcek { .. } => vcek.clone(),
            Document::AmdChain { .. } => (pem(&ask) + &pem(&ark)).into_bytes(),
            _ => platform.crl().to_vec(),
        };
        published.push((path, content));
    }
    let answer = move |request: Request| {
        let asked = request.uri().path_and_query().map_or("", |path| path.as_str());
        let found = published.iter().find(|(path, _)| path == asked);
        let content = found
            .map(|(_, content)| content.clone())
            .ok_or(StatusCode::NOT_FOUND);
        async move { content }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("cannot listen at {address}"))?;
        Ok(axum::serve(listener, Router::new().fallback(answer)).await?)
    })
}
