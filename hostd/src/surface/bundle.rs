//! The support bundle: what somebody else needs to see to help, and nothing that is the tenants'.
//!
//! In it: status, contracts with their steps and generated configs, inventory, doctor, metrics, the config file's
//! values. Never in it: keys, user data, SSH keys, disks, consoles, evidence.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::{ApiError, App};
use crate::journal::JournalError;

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec_pretty(value).unwrap_or_else(|error| error.to_string().into_bytes())
}

impl App {
    /// The files of a bundle.
    pub(super) async fn bundle_files(&self) -> Result<Vec<(String, Vec<u8>)>, JournalError> {
        let status = self.status().await?;
        let mut files = vec![
            ("status.json".to_owned(), json(&status)),
            ("contracts.json".to_owned(), json(&self.lines(true).await?)),
            ("inventory.json".to_owned(), json(&self.inventory)),
            ("metrics.txt".to_owned(), self.metrics(&status).await.into_bytes()),
            // Paths and numbers only; keys are in files of their own, which aren't read here.
            (
                "config.txt".to_owned(),
                format!("{:#?}\n", self.config).into_bytes(),
            ),
        ];
        match self.doctor().await {
            Ok(report) => files.push(("doctor.json".to_owned(), json(&report))),
            Err(error) => files.push(("doctor.txt".to_owned(), error.text.into_bytes())),
        }
        for record in self.ctx.journal.all_records().await? {
            let explanation = self.explain(&record).await?;
            files.push((format!("contracts/{}.json", record.id), json(&explanation)));
        }
        Ok(files)
    }
}

/// A tar of all that is not secret.
#[utoipa::path(get, path = "/v1/support-bundle", responses((status = 200, content_type = "application/x-tar", body = Vec<u8>)))]
pub(super) async fn support_bundle(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let failed = |error: std::io::Error| ApiError {
        code: axum::http::StatusCode::INTERNAL_SERVER_ERROR,
        text: format!("cannot write the bundle: {error}"),
    };
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in app.bundle_files().await? {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(crate::journal::now_ms() / 1000).unwrap_or(0));
        tar.append_data(&mut header, format!("hostd-support/{name}"), &content[..])
            .map_err(failed)?;
    }
    let bytes = tar.into_inner().map_err(failed)?;
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], bytes).into_response())
}
