//! Getting bytes from where a contract says they are, without becoming the tenant's hand inside our own networks.

use std::error::Error as _;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Client, StatusCode, Url, redirect};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Scheme, StorageConfig, StorageError};

const URL_BYTES_MAX: usize = 2048;
const REDIRECTS_MAX: usize = 5;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens URLs inside the rules of the configuration.
pub(super) struct Fetcher {
    /// An error here (no CA certificates) only matters when something is fetched by https.
    client: Result<Client, String>,
    /// For http on such a machine.
    without_tls: Option<Client>,
    rules: Rules,
    idle: Duration,
    slots: Arc<Semaphore>,
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetcher")
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Debug)]
struct Rules {
    schemes: std::collections::BTreeSet<Scheme>,
    allow_private: bool,
}

impl Rules {
    /// Whether this URL may be fetched, as far as the URL itself tells; names are judged when they are resolved.
    fn check(&self, url: &Url) -> Result<Scheme, String> {
        let scheme = match url.scheme() {
            "https" => Scheme::Https,
            "http" => Scheme::Http,
            "file" => Scheme::File,
            other => return Err(format!("scheme {other:?} isn't known; use https")),
        };
        if !self.schemes.contains(&scheme) {
            return Err(format!(
                "scheme {:?} isn't allowed on this host (`storage.allow_schemes`)",
                url.scheme()
            ));
        }
        if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
            return Err("user names, passwords and fragments have no place in it".into());
        }
        match url.host() {
            Some(url::Host::Ipv4(ip)) => self.check_address(ip.into())?,
            Some(url::Host::Ipv6(ip)) => self.check_address(ip.into())?,
            Some(url::Host::Domain(_)) if scheme != Scheme::File => {}
            Some(url::Host::Domain(_)) => return Err("a file URL has no host: file:///path".into()),
            None if scheme == Scheme::File => {}
            None => return Err("it has no host".into()),
        }
        Ok(scheme)
    }

    fn check_address(&self, ip: IpAddr) -> Result<(), String> {
        if self.allow_private || is_public(ip) {
            return Ok(());
        }
        Err(format!(
            "{ip} is not a public address; images come from public servers (`storage.allow_private_addresses`)"
        ))
    }
}

/// Resolves names and leaves out addresses that tenants must not make us talk to. The connection goes to exactly the
/// addresses that were judged here, so a name that changes its mind (DNS rebinding) gains nothing.
struct PublicOnly(Rules);

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let rules = self.0.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let allowed: Vec<SocketAddr> = found
                .iter()
                .filter(|a| rules.check_address(a.ip()).is_ok())
                .copied()
                .collect();
            if let (Some(first), true) = (found.first(), allowed.is_empty()) {
                rules.check_address(first.ip())?;
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// A body on its way in.
pub(super) struct Body {
    /// Where in the file the first chunk belongs: what was asked, or 0 when the server can't resume.
    pub(super) offset: u64,
    url: String,
    idle: Duration,
    from: From,
}

enum From {
    Http(Box<reqwest::Response>),
    File(tokio::fs::File),
}

impl Body {
    /// The next piece; `None` at the end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Vec<u8>>, StorageError> {
        let next = async {
            match &mut self.from {
                From::Http(response) => match response.chunk().await {
                    Ok(chunk) => Ok(chunk.map(|bytes| bytes.to_vec())),
                    Err(e) => Err(words(e)),
                },
                From::File(file) => {
                    let mut buffer = vec![0u8; 256 << 10];
                    match file.read(&mut buffer).await {
                        Ok(0) => Ok(None),
                        Ok(n) => {
                            buffer.truncate(n);
                            Ok(Some(buffer))
                        }
                        Err(e) => Err(e.to_string()),
                    }
                }
            }
        };
        match tokio::time::timeout(self.idle, next).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(why)) => Err(StorageError::Fetch {
                url: self.url.clone(),
                why,
            }),
            Err(_) => Err(StorageError::Fetch {
                url: self.url.clone(),
                why: format!("silent for {:?}", self.idle),
            }),
        }
    }
}

impl Fetcher {
    pub(super) fn new(config: &StorageConfig) -> Result<Self, StorageError> {
        let rules = Rules {
            schemes: config.allow_schemes.clone(),
            allow_private: config.allow_private_addresses,
        };
        let idle = Duration::from_secs(config.fetch_idle_s.max(1));
        let builder = || {
            Client::builder()
                .user_agent(concat!("hostd/", env!("CARGO_PKG_VERSION")))
                .redirect(policy(rules.clone()))
                .dns_resolver(Arc::new(PublicOnly(rules.clone())))
                .no_proxy() // a proxy would resolve names for us, behind the rule about addresses
                .referer(false)
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(idle)
        };
        let client = builder().build().map_err(|e| {
            let why = words(e);
            format!("no HTTPS client ({why}); are CA certificates installed (package ca-certificates)?")
        });
        let without_tls = builder().tls_certs_only(std::iter::empty()).build().ok();
        Ok(Self {
            client,
            without_tls,
            rules,
            idle,
            slots: Arc::new(Semaphore::new(config.fetches_max.max(1))),
        })
    }

    /// Waits for one of the `fetches_max` places.
    pub(super) async fn slot(&self) -> OwnedSemaphorePermit {
        self.slots
            .clone()
            .acquire_owned()
            .await
            .expect("the semaphore is never closed")
    }

    /// Parses a URL and holds it against the rules.
    pub(super) fn url(&self, text: &str) -> Result<Url, StorageError> {
        let refuse = |why: String| StorageError::Url {
            url: text.chars().take(200).collect(),
            why,
        };
        if text.len() > URL_BYTES_MAX {
            return Err(refuse(format!("{} bytes; at most {URL_BYTES_MAX}", text.len())));
        }
        let url = Url::parse(text).map_err(|e| refuse(e.to_string()))?;
        self.rules.check(&url).map_err(refuse)?;
        Ok(url)
    }

    /// Opens the URL, from byte `from` on where the server can.
    pub(super) async fn open(&self, url: &Url, from: u64) -> Result<Body, StorageError> {
        let failed = |why: String| StorageError::Fetch {
            url: url.to_string(),
            why,
        };
        if url.scheme() == "file" {
            let path: PathBuf = url
                .to_file_path()
                .map_err(|()| failed("not a path of this host".into()))?;
            let mut file = open_regular(path).await.map_err(|e| failed(e.to_string()))?;
            file.seek(std::io::SeekFrom::Start(from))
                .await
                .map_err(|e| failed(e.to_string()))?;
            return Ok(Body {
                offset: from,
                url: url.to_string(),
                idle: self.idle,
                from: From::File(file),
            });
        }
        let client = match (&self.client, &self.without_tls) {
            (Ok(client), _) => client,
            (Err(_), Some(client)) if url.scheme() == "http" => client,
            (Err(why), _) => return Err(failed(why.clone())),
        };
        let mut request = client.get(url.clone());
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let response = tokio::time::timeout(CONNECT_TIMEOUT + self.idle, request.send())
            .await
            .map_err(|_| failed("no answer".into()))?
            .map_err(|e| failed(words(e)))?;
        let resumed = || {
            let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
            range
                .strip_prefix("bytes ")?
                .split('-')
                .next()?
                .parse::<u64>()
                .ok()
        };
        let offset = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT if from > 0 && resumed() == Some(from) => from,
            status => return Err(failed(format!("the server answered {status}"))),
        };
        Ok(Body {
            offset,
            url: url.to_string(),
            idle: self.idle,
            from: From::Http(Box::new(response)),
        })
    }
}

/// Redirects stay inside the rules, too.
fn policy(rules: Rules) -> redirect::Policy {
    redirect::Policy::custom(move |attempt| {
        if attempt.previous().len() > REDIRECTS_MAX {
            return attempt.error("too many redirects");
        }
        match rules.check(attempt.url()) {
            // A redirect into the file system is never meant, whatever is allowed.
            Ok(Scheme::File) => attempt.error("redirected to a file"),
            Ok(_) => attempt.follow(),
            Err(why) => attempt.error(why),
        }
    })
}

/// Only regular files: a FIFO or a device would hang or never end.
async fn open_regular(path: PathBuf) -> std::io::Result<tokio::fs::File> {
    if !tokio::fs::metadata(&path).await?.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    tokio::fs::File::open(path).await
}

/// An error of reqwest with its causes and without the URL, which our own error names.
fn words(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text.push_str(": ");
        text.push_str(&e.to_string());
        cause = e.source();
    }
    text
}

/// Whether an address is one of the public Internet (IANA's special-purpose registries, RFC 6890, as of 2025).
pub(super) fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public4(ip),
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(inner) => is_public4(inner),
            None => is_public6(ip),
        },
    }
}

fn is_public4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_documentation()
        || a == 0
        || (a == 100 && (64..128).contains(&b)) // shared address space; our tenants' own addresses
        || (a, b, c) == (192, 0, 0)
        || (a, b, c) == (192, 88, 99)
        || (a == 198 && (b == 18 || b == 19))
        || a >= 224)
}

fn is_public6(ip: Ipv6Addr) -> bool {
    let [a, b, ..] = ip.segments();
    // Global unicast only, less protocol assignments (Teredo, ORCHID), documentation, and 6to4, which hides an IPv4.
    (0x2000..0x4000).contains(&a)
        && !(a == 0x2001 && b < 0x0200)
        && !(a == 0x2001 && b == 0x0db8)
        && a != 0x2002
        && a != 0x3fff
}
