//! A makers' service on loopback: answers what a test told it to, and keeps what it was asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Method, Request, Response};

/// What a server does about one question.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// An answer with headers.
    Give(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// A body without an end.
    Flood,
    /// The same, a byte now and then.
    Drip,
}

impl Reply {
    pub(crate) fn ok(content: impl Into<Vec<u8>>) -> Self {
        Self::Give(200, Vec::new(), content.into())
    }

    pub(crate) fn status(status: u16) -> Self {
        Self::Give(status, Vec::new(), b"<html>no</html>".to_vec())
    }
}

#[derive(Default)]
struct Told {
    /// By path and query; the last reply of a list is repeated.
    replies: HashMap<String, Vec<Reply>>,
    asked: Vec<String>,
    bodies: Vec<Vec<u8>>,
}

pub(crate) struct Server {
    told: Arc<Mutex<Told>>,
    pub(crate) url: String,
}

impl Server {
    /// Serves until the runtime ends.
    pub(crate) async fn start() -> Self {
        let told = Arc::new(Mutex::new(Told::default()));
        let app = axum::Router::new().fallback(answer).with_state(told.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { told, url }
    }

    pub(crate) fn tell(&self, path: &str, replies: Vec<Reply>) {
        self.told.lock().unwrap().replies.insert(path.to_owned(), replies);
    }

    /// Paths with queries, in the order they came, and forgets them.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.told.lock().unwrap().asked)
    }

    pub(crate) fn bodies(&self) -> Vec<Vec<u8>> {
        self.told.lock().unwrap().bodies.clone()
    }
}

async fn answer(State(told): State<Arc<Mutex<Told>>>, request: Request<Body>) -> Response<Body> {
    let path = request
        .uri()
        .path_and_query()
        .map_or("", |path| path.as_str())
        .to_owned();
    let post = request.method() == Method::POST;
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let reply = {
        let mut told = told.lock().unwrap();
        if post {
            told.bodies.push(body.to_vec());
        }
        told.asked.push(path.clone());
        let replies = told.replies.get_mut(&path);
        match replies {
            Some(replies) if replies.len() > 1 => replies.remove(0),
            Some(replies) => replies[0].clone(),
            None => Reply::status(404),
        }
    };
    match reply {
        Reply::Give(status, headers, content) => {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            response.body(Body::from(content)).unwrap()
        }
        Reply::Flood => {
            let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
            let endless = futures_util::stream::repeat_with(move || Ok::<_, std::io::Error>(chunk.clone()));
            Response::new(Body::from_stream(endless))
        }
        Reply::Drip => {
            let drops = futures_util::stream::unfold((), |()| async {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                Some((Ok::<_, std::io::Error>(Bytes::from_static(b"x")), ()))
            });
            Response::new(Body::from_stream(drops))
        }
    }
}
