//! Images against a real HTTP server on loopback, with bad habits.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use ledger::api::{Bytes, ImageRef};
use sha2::{Digest as _, Sha256};

use super::super::*;
use super::{config, store};

fn digest(bytes: &[u8]) -> Digest32 {
    Bytes(Sha256::digest(bytes).into())
}

/// An image's files, named, and its manifest.
struct TestImage {
    files: HashMap<String, Vec<u8>>,
    id: Digest32,
}

impl TestImage {
    fn new(kernel: &[u8]) -> Self {
        let initrd = vec![0x1D; 300_000];
        let manifest = serde_json::json!({
            "version": 1, "name": "test", "cmdline": "console=ttyS0 console=hvc0",
            "kernel": {"file": "vmlinuz", "sha256": digest(kernel), "size": kernel.len()},
            "initrd": {"file": "initrd.img", "sha256": digest(&initrd), "size": initrd.len()},
            "firmware": null, "root": null, "agent_version": "0.1.0",
        });
        Self::with_manifest(kernel, &initrd, manifest.to_string().into_bytes())
    }

    fn with_manifest(kernel: &[u8], initrd: &[u8], manifest: Vec<u8>) -> Self {
        let id = digest(&manifest);
        let files = [
            ("vmlinuz", kernel.to_vec()),
            ("initrd.img", initrd.to_vec()),
            ("manifest.json", manifest),
        ];
        Self {
            files: files.into_iter().map(|(n, b)| (n.to_owned(), b)).collect(),
            id,
        }
    }

    fn write_to(&self, dir: &Path) -> ImageRef {
        for (name, bytes) in &self.files {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
        ImageRef {
            manifest: self.id,
            url: format!("file://{}/manifest.json", dir.display()),
        }
    }
}

/// A server whose habits a test chooses.
#[derive(Clone)]
struct Server {
    files: Arc<HashMap<String, Vec<u8>>>,
    requests: Arc<AtomicUsize>,
    ranges: Arc<AtomicUsize>,
    habit: Habit,
}

#[derive(Clone, Copy, PartialEq)]
enum Habit {
    Honest,
    NoRanges,
    /// The body stops in the middle and the connection stays open.
    Hangs,
    /// Bytes without end.
    Endless,
    RedirectsTo(&'static str),
    NotFound,
    SlowStart,
}

async fn serve(State(server): State<Server>, UrlPath(name): UrlPath<String>, headers: HeaderMap) -> Response {
    server.requests.fetch_add(1, Ordering::SeqCst);
    let file = match (server.habit, server.files.get(&name)) {
        (Habit::NotFound, _) | (_, None) => return StatusCode::NOT_FOUND.into_response(),
        (Habit::RedirectsTo(to), _) => return (StatusCode::FOUND, [(header::LOCATION, to)]).into_response(),
        (_, Some(file)) => file.clone(),
    };
    let is_blob = name != "manifest.json";
    if server.habit == Habit::SlowStart {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    if server.habit == Habit::Hangs && is_blob {
        let first = tokio_stream_of(vec![file[..file.len() / 2].to_vec()], true);
        return Response::new(first);
    }
    if server.habit == Habit::Endless && is_blob {
        return Response::new(tokio_stream_of(vec![vec![0; 1 << 20]; 64], false));
    }
    let from = headers.get(header::RANGE).and_then(|r| {
        r.to_str()
            .ok()?
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    });
    match from {
        Some(from) if server.habit == Habit::Honest => {
            server.ranges.fetch_add(1, Ordering::SeqCst);
            let range = format!("bytes {from}-{}/{}", file.len() - 1, file.len());
            (
                StatusCode::PARTIAL_CONTENT,
                [(header::CONTENT_RANGE, range)],
                file[from..].to_vec(),
            )
                .into_response()
        }
        _ => file.into_response(),
    }
}

fn tokio_stream_of(chunks: Vec<Vec<u8>>, then_hang: bool) -> Body {
    let (mut write, read) = tokio::io::duplex(1 << 16);
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        for chunk in chunks {
            if write.write_all(&chunk).await.is_err() {
                return;
            }
        }
        if then_hang {
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
    });
    Body::from_stream(tokio_util::io::ReaderStream::new(read))
}

async fn start(image: &TestImage, habit: Habit) -> (Server, ImageRef) {
    let server = Server {
        files: Arc::new(image.files.clone()),
        requests: Arc::default(),
        ranges: Arc::default(),
        habit,
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/manifest.json", listener.local_addr().unwrap());
    let app = Router::new()
        .route("/{name}", axum::routing::get(serve))
        .with_state(server.clone());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (
        server,
        ImageRef {
            manifest: image.id,
            url,
        },
    )
}

fn files_in(dir: &Path, folder: &str) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir.join(folder))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn an_image_is_fetched_once_however_many_ask_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let image = TestImage::new(b"kernel");
    let (server, image_ref) = start(&image, Habit::SlowStart).await;
    let store = store(&dir);
    let asks = (0..20).map(|_| {
        let (store, image_ref) = (store.clone(), image_ref.clone());
        tokio::spawn(async move { store.ensure_image(&image_ref).await })
    });
    let mut answers = Vec::new();
    for ask in asks.collect::<Vec<_>>() {
        answers.push(ask.await.unwrap().unwrap());
    }
    assert_eq!(
        server.requests.load(Ordering::SeqCst),
        3,
        "manifest, kernel, initrd"
    );
    assert!(answers.iter().all(|files| files == &answers[0]));
    assert_eq!(std::fs::read(&answers[0].kernel).unwrap(), b"kernel");
    assert_eq!(answers[0].cmdline, "console=ttyS0 console=hvc0");
    assert_eq!(
        std::fs::metadata(&answers[0].kernel)
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o444
    );
    assert_eq!(files_in(dir.path(), "partial"), [""; 0]);
    // Once more, and after a restart: nothing is fetched.
    store.ensure_image(&image_ref).await.unwrap();
    Store::open(config(dir.path()))
        .unwrap()
        .ensure_image(&image_ref)
        .await
        .unwrap();
    assert_eq!(server.requests.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn who_gives_up_waiting_does_not_stop_the_download_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let (server, image_ref) = start(&TestImage::new(b"kernel"), Habit::SlowStart).await;
    let store = store(&dir);
    let impatient = tokio::time::timeout(Duration::from_millis(20), store.ensure_image(&image_ref)).await;
    assert!(impatient.is_err());
    store.ensure_image(&image_ref).await.unwrap();
    assert_eq!(
        server.requests.load(Ordering::SeqCst),
        3,
        "one download: manifest, kernel, initrd"
    );
}

#[tokio::test]
async fn a_failed_download_is_tried_anew_by_the_next_who_asks() {
    let dir = tempfile::tempdir().unwrap();
    let image = TestImage::new(b"kernel");
    let mut broken = TestImage::new(b"kernel");
    broken.files.remove("initrd.img");
    let source = tempfile::tempdir().unwrap();
    let image_ref = broken.write_to(source.path());
    let store = store(&dir);
    assert!(matches!(
        store.ensure_image(&image_ref).await,
        Err(StorageError::Fetch { .. })
    ));
    image.write_to(source.path());
    store.ensure_image(&image_ref).await.unwrap();
}

#[tokio::test]
async fn a_file_that_differs_in_one_byte_is_refused_and_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut image = TestImage::new(b"kernel");
    image.files.insert("vmlinuz".into(), b"kernes".to_vec());
    let (_, image_ref) = start(&image, Habit::Honest).await;
    let error = store(&dir).ensure_image(&image_ref).await.unwrap_err();
    assert!(
        matches!(&error, StorageError::Digest { what, .. } if what == "vmlinuz"),
        "{error}"
    );
    assert_eq!(
        (
            files_in(dir.path(), "blobs").len(),
            files_in(dir.path(), "partial").len()
        ),
        (0, 0)
    );
}

#[tokio::test]
async fn another_manifest_than_the_contract_names_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_, mut image_ref) = start(&TestImage::new(b"kernel"), Habit::Honest).await;
    image_ref.manifest = Bytes([9; 32]);
    let error = store(&dir).ensure_image(&image_ref).await.unwrap_err();
    assert!(matches!(error, StorageError::Digest { .. }), "{error}");
}

#[tokio::test]
async fn servers_with_bad_habits_end_in_an_error_in_time() {
    for (habit, want) in [
        (Habit::NotFound, "404"),
        (Habit::Hangs, "silent"),
        (Habit::Endless, "bytes in the manifest"),
        (Habit::RedirectsTo("file:///etc/passwd"), "302"),
        (Habit::RedirectsTo("ftp://example.org/x"), "scheme \"ftp\""),
        (Habit::RedirectsTo("/manifest.json"), "too many redirects"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (_, image_ref) = start(&TestImage::new(&[7; 200_000]), habit).await;
        let began = std::time::Instant::now();
        let error = store(&dir)
            .ensure_image(&image_ref)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(want) || (want == "silent" && error.contains("timed out")),
            "{want}: {error}"
        );
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{want}: {:?}",
            began.elapsed()
        );
        assert!(
            files_in(dir.path(), "blobs").is_empty() && files_in(dir.path(), "images").is_empty(),
            "{want}"
        );
    }
}

#[tokio::test]
async fn a_download_goes_on_where_it_stopped_and_starts_over_when_what_is_there_is_damaged() {
    let kernel: Vec<u8> = (0..500_000u32).map(|n| n as u8).collect();
    let image = TestImage::new(&kernel);
    for (left, habit, requests, ranges) in [
        (kernel[..200_000].to_vec(), Habit::Honest, 3, 1),
        (kernel[..200_000].to_vec(), Habit::NoRanges, 3, 0),
        (vec![0xEE; 200_000], Habit::Honest, 4, 1), // damaged by a power cut: found out at the end, fetched anew
        (vec![0xEE; 600_000], Habit::Honest, 3, 0), // longer than the file can be
        (kernel.clone(), Habit::Honest, 2, 0),      // complete, only not yet renamed
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (_, bad_ref) = start(&image, Habit::Hangs).await;
        let store = store(&dir);
        store.ensure_image(&bad_ref).await.unwrap_err();
        let partial = files_in(dir.path(), "partial");
        assert_eq!(partial.len(), 1, "the hanging server left half a kernel");
        let (server, image_ref) = start(&image, habit).await;
        // The same download, had the server stayed where it was.
        let name = format!(
            "{}-{}.part",
            digest(&kernel),
            digest(format!("{} {}", image.id, image_ref.url).as_bytes()).short()
        );
        std::fs::write(dir.path().join("partial").join(name), &left).unwrap();
        let files = store.ensure_image(&image_ref).await.unwrap();
        assert_eq!(std::fs::read(files.kernel).unwrap(), kernel);
        assert_eq!(
            server.requests.load(Ordering::SeqCst),
            requests,
            "{} left",
            left.len()
        );
        assert_eq!(
            server.ranges.load(Ordering::SeqCst),
            ranges,
            "{} left",
            left.len()
        );
    }
}

#[tokio::test]
async fn urls_outside_the_rules_are_refused_before_anything_is_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let strict = StorageConfig {
        dir: dir.path().to_owned(),
        ..StorageConfig::default()
    };
    let open = StorageConfig {
        allow_schemes: BTreeSet::from([Scheme::Https, Scheme::Http, Scheme::File]),
        ..strict.clone()
    };
    for (config, url, want) in [
        (&strict, "http://example.org/manifest.json", "isn't allowed"),
        (&strict, "file:///etc/passwd", "isn't allowed"),
        (&strict, "gopher://example.org/", "isn't known"),
        (&strict, "manifest.json", "relative URL"),
        (&strict, "https://user:pw@example.org/", "user names"),
        (&strict, "https://127.0.0.1/m", "not a public address"),
        (&strict, "https://2130706433/m", "not a public address"), // 127.0.0.1 as one number
        (&strict, "https://0x7f.1/m", "not a public address"),
        (&strict, "https://[::1]/m", "not a public address"),
        (
            &strict,
            "https://[::ffff:169.254.169.254]/m",
            "not a public address",
        ),
        (
            &open,
            "http://169.254.169.254/latest/meta-data",
            "not a public address",
        ),
        (&open, "http://localhost:1/m", "not a public address"), // found out when the name is resolved
        (&open, "file://host/m", "has no host"),
    ] {
        let image = ImageRef {
            manifest: Bytes([1; 32]),
            url: url.to_owned(),
        };
        let error = Store::open(config.clone())
            .unwrap()
            .ensure_image(&image)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(want), "{url}: {error}");
    }
    let long = ImageRef {
        manifest: Bytes([1; 32]),
        url: format!("https://example.org/{}", "x".repeat(3000)),
    };
    assert!(
        Store::open(strict)
            .unwrap()
            .ensure_image(&long)
            .await
            .unwrap_err()
            .to_string()
            .contains("at most 2048")
    );
}

#[test]
fn public_addresses() {
    for (ip, want) in [
        ("1.1.1.1", true),
        ("100.63.255.255", true),
        ("100.64.0.1", false),
        ("10.0.0.1", false),
        ("172.32.0.1", true),
        ("172.31.0.1", false),
        ("169.254.169.254", false),
        ("0.0.0.0", false),
        ("224.0.0.1", false),
        ("255.255.255.255", false),
        ("203.0.113.1", false),
        ("2606:4700::1", true),
        ("fe80::1", false),
        ("fd00::1", false),
        ("2002:7f00:1::", false),
        ("64:ff9b::7f00:1", false),
        ("::ffff:8.8.8.8", true),
    ] {
        assert_eq!(fetch::is_public(ip.parse::<IpAddr>().unwrap()), want, "{ip}");
    }
}

#[test]
fn manifests() {
    let good =
        r#"{"version":1,"name":"n","cmdline":"c","kernel":{"file":"vmlinuz","sha256":"SHA","size":1}}"#;
    let sha = "11".repeat(32);
    let with = |from: &str, to: &str| good.replace(from, to).replace("SHA", &sha);
    assert!(Manifest::parse(with("", "").as_bytes()).is_ok());
    for (row, text, want) in [
        (
            "unknown key",
            with("\"version\":1", "\"version\":1,\"extra\":1"),
            "unknown field `extra`",
        ),
        (
            "unknown key inside",
            with("\"size\":1", "\"size\":1,\"mode\":1"),
            "unknown field `mode`",
        ),
        (
            "doubled key",
            with("\"version\":1", "\"version\":1,\"version\":1"),
            "duplicate field",
        ),
        ("version 2", with("\"version\":1", "\"version\":2"), "version 2"),
        (
            "no kernel",
            r#"{"version":1,"name":"n","cmdline":"c"}"#.into(),
            "missing field `kernel`",
        ),
        ("parent folder", with("vmlinuz", "../vmlinuz"), "not a file name"),
        ("absolute", with("vmlinuz", "/etc/shadow"), "not a file name"),
        (
            "another host",
            with("vmlinuz", "//evil.example/x"),
            "not a file name",
        ),
        ("scheme", with("vmlinuz", "file:x"), "not a file name"),
        ("query", with("vmlinuz", "x?y"), "not a file name"),
        ("percent", with("vmlinuz", "%2e%2e"), "not a file name"),
        ("dot", with("vmlinuz", "."), "not a file name"),
        ("empty name", with("vmlinuz", ""), "not a file name"),
        ("size 0", with("\"size\":1", "\"size\":0"), "can't be empty"),
        (
            "negative size",
            with("\"size\":1", "\"size\":-1"),
            "invalid value",
        ),
        ("short digest", with("SHA", "11"), "expected 32 bytes"),
        (
            "newline in cmdline",
            with("\"c\"", "\"a\\nb\""),
            "not a kernel command line",
        ),
        (
            "long cmdline",
            with("\"c\"", &format!("\"{}\"", "c".repeat(2048))),
            "not a kernel command line",
        ),
        ("trailing garbage", with("", "") + "x", "trailing characters"),
        ("too large", " ".repeat(70_000), "at most 65536"),
        ("deep nesting", "[".repeat(10_000), ""),
    ] {
        let error = Manifest::parse(text.as_bytes()).expect_err(row).to_string();
        assert!(error.contains(want), "{row}: {error}");
    }
}

#[tokio::test]
async fn an_image_that_is_too_large_or_does_not_fit_is_refused_before_its_files_are_fetched() {
    let image = TestImage::new(b"kernel");
    let (server, image_ref) = start(&image, Habit::Honest).await;
    type Change = fn(&mut StorageConfig);
    let rows: [(Change, &str); 2] = [
        (|c| c.image_bytes_max = 1000, "image_bytes_max"),
        (|c| c.keep_free_bytes = u64::MAX, "are available in"),
    ];
    for (n, (change, want)) in rows.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        change(&mut config);
        let error = Store::open(config)
            .unwrap()
            .ensure_image(&image_ref)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(want), "{error}");
        assert_eq!(server.requests.load(Ordering::SeqCst), n + 1, "only the manifest");
    }
}

#[tokio::test]
async fn gc_removes_what_no_contract_names_and_nothing_else() {
    let (dir, source_a, source_b) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let (a, b) = (TestImage::new(b"kernel a"), TestImage::new(b"kernel b")); // they share the initrd
    let (ref_a, ref_b) = (a.write_to(source_a.path()), b.write_to(source_b.path()));
    let store = store(&dir);
    let files_a = store.ensure_image(&ref_a).await.unwrap();
    let files_b = store.ensure_image(&ref_b).await.unwrap();
    assert_eq!(files_a.initrd, files_b.initrd);
    assert_eq!(files_in(dir.path(), "blobs").len(), 3);
    assert_eq!(
        store.gc(BTreeSet::new()).await.unwrap(),
        GcReport::default(),
        "all were used a moment ago"
    );
    for id in [a.id, b.id] {
        let path = dir.path().join(format!("images/{id}.json"));
        let old = SystemTime::now() - Duration::from_secs(48 * 3600);
        std::fs::File::open(path).unwrap().set_modified(old).unwrap();
    }
    let report = store.gc(BTreeSet::from([a.id])).await.unwrap();
    assert_eq!((report.images, report.blobs, report.bytes), (1, 1, 8));
    assert!(files_a.kernel.exists() && files_a.initrd.unwrap().exists() && !files_b.kernel.exists());
    assert_eq!(
        store.ensure_image(&ref_b).await.unwrap(),
        files_b,
        "it can be fetched again"
    );
}

proptest::proptest! {
    #[test]
    fn no_bytes_and_no_url_make_the_parsers_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), url in "\\PC{0,60}") {
        let _ = Manifest::parse(&bytes);
        let config = StorageConfig { allow_schemes: BTreeSet::from([Scheme::Https, Scheme::File]), ..StorageConfig::default() };
        let fetcher = FETCHER.get_or_init(|| fetch::Fetcher::new(&config).unwrap());
        if let Ok(url) = fetcher.url(&url) {
            proptest::prop_assert!(["https", "file"].contains(&url.scheme()));
        }
    }
}

static FETCHER: std::sync::OnceLock<fetch::Fetcher> = std::sync::OnceLock::new();
