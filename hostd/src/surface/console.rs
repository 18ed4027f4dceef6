//! A VM's console log, from the file that its VMM writes.

use std::io::SeekFrom;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path as UrlPath, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::model::Problem;
use super::{ApiError, App};

/// Between two looks at the file while it is followed. People watch it; a blink is enough.
const FOLLOW: Duration = Duration::from_millis(200);

/// Bytes in one piece.
const PIECE: usize = 16 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConsoleQuery {
    #[serde(default)]
    follow: bool,
    tail: Option<u64>,
}

struct Tail {
    file: File,
    follow: bool,
    /// Where the next read starts.
    at: u64,
    app: Arc<App>,
    record: crate::journal::Record,
}

/// The console log. The guest writes it: it may hold any bytes.
#[utoipa::path(get, path = "/v1/contracts/{id}/console",
    params(("id" = String, Path), ("follow" = Option<bool>, Query), ("tail" = Option<u64>, Query, description = "only the last bytes")),
    responses((status = 200, body = String), (status = 404, body = Problem)))]
pub(super) async fn console(
    State(app): State<Arc<App>>,
    UrlPath(id): UrlPath<String>,
    Query(query): Query<ConsoleQuery>,
) -> Result<Response, ApiError> {
    let record = app.find(&id).await?;
    let adapter = record
        .adapter
        .as_deref()
        .and_then(|name| app.ctx.adapter_named(name));
    let (Some(spec), Some(vmm)) = (&record.spec, adapter) else {
        return Err(ApiError::missing("the contract has no VM yet"));
    };
    let path = vmm.console_log(spec);
    let missing =
        |error: std::io::Error| ApiError::missing(&format!("no console log {}: {error}", path.display()));
    let mut file = File::open(&path).await.map_err(missing)?;
    let length = file.metadata().await.map_err(missing)?.len();
    let at = query.tail.map_or(0, |tail| length.saturating_sub(tail));
    file.seek(SeekFrom::Start(at)).await.map_err(missing)?;
    let tail = Tail {
        file,
        follow: query.follow,
        at,
        app: app.clone(),
        record,
    };
    let body = Body::from_stream(stream::unfold(tail, next_piece));
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

/// The next piece; the end of the stream at the end of the file, or, while it is followed, at the end of the VM.
async fn next_piece(mut tail: Tail) -> Option<(std::io::Result<Vec<u8>>, Tail)> {
    loop {
        let mut piece = vec![0; PIECE];
        match tail.file.read(&mut piece).await {
            Err(error) => return Some((Err(error), tail)),
            Ok(0) if !tail.follow => return None,
            Ok(0) => {
                // A log that has become shorter was cut to keep its bound: go on at its end.
                let length = tail.file.metadata().await.map(|m| m.len()).unwrap_or(tail.at);
                if length < tail.at {
                    tail.at = length;
                    tail.file.seek(SeekFrom::Start(length)).await.ok()?;
                }
                let process = tail.record.process.as_ref();
                let alive = process.is_none_or(|process| tail.app.ctx.host.processes.is_alive(process));
                if !alive {
                    return None;
                }
                tokio::time::sleep(FOLLOW).await;
            }
            Ok(count) => {
                piece.truncate(count);
                tail.at += count as u64;
                return Some((Ok(piece), tail));
            }
        }
    }
}
