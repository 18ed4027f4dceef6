//! Files that others publish, pinned by their SHA-256: fetched once, by apt's downloader, which knows this machine's proxies.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

/// Part of the package `apt`.
const HELPER: &str = "/usr/lib/apt/apt-helper";

/// Why a file isn't there.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The cache.
    #[error("cannot {what} {path}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The server, the way there, or another file than the pinned one.
    #[error("cannot fetch {url}: {why}")]
    Refused {
        /// From where.
        url: String,
        /// apt's words.
        why: String,
    },
}

/// The file behind `url` whose SHA-256 is `sha256` (64 hexadecimal digits), from the cache if it is there.
pub fn fetch(cache: &Path, url: &str, sha256: &str) -> Result<Vec<u8>, DownloadError> {
    let folder = cache.join("downloads");
    let path = folder.join(sha256);
    let file = |what, path: &Path| {
        let path = path.to_owned();
        move |source| DownloadError::File { what, path, source }
    };
    match fs::read(&path) {
        Ok(content) if hex::encode(Sha256::digest(&content)) == sha256 => return Ok(content),
        Ok(_) => fs::remove_file(&path).map_err(file("remove", &path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(file("read", &path)(error)),
    }
    fs::create_dir_all(&folder).map_err(file("make", &folder))?;
    let scratch = tempfile::tempdir_in(&folder).map_err(file("make a folder in", &folder))?;
    let partial = scratch.path().join("file");
    let refused = |why: String| DownloadError::Refused {
        url: url.to_owned(),
        why,
    };
    let output = Command::new(HELPER)
        .args(["-qq", "-o", "APT::Sandbox::User=", "download-file", url])
        .arg(&partial)
        .arg(format!("SHA256:{sha256}"))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| {
            refused(format!(
                "{HELPER} can't be started ({error}); it is part of the package apt"
            ))
        })?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let words: Vec<&str> = words
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        return Err(refused(words.join("; ")));
    }
    let content = fs::read(&partial).map_err(file("read", &partial))?;
    let found = hex::encode(Sha256::digest(&content));
    if found != sha256 {
        return Err(refused(format!("its SHA-256 is {found}, not {sha256}")));
    }
    fs::rename(&partial, &path).map_err(file("keep", &path))?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    use super::*;

    /// Serves `content` to the next `times` requests, and returns the address.
    fn serve(content: &'static [u8], times: usize) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/program", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().take(times) {
                let mut stream = stream.unwrap();
                let lines = BufReader::new(&stream).lines().map_while(Result::ok);
                lines.take_while(|line| !line.is_empty()).for_each(drop);
                let length = content.len();
                write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
                )
                .unwrap();
                stream.write_all(content).unwrap();
            }
        });
        url
    }

    #[test]
    fn a_pinned_file_is_fetched_once_and_another_one_never() {
        let cache = tempfile::tempdir().unwrap();
        let digest = hex::encode(Sha256::digest(b"a program"));
        let url = serve(b"a program", 1);
        assert_eq!(fetch(cache.path(), &url, &digest).unwrap(), b"a program");
        // The server is gone.
        assert_eq!(fetch(cache.path(), &url, &digest).unwrap(), b"a program");
        // A damaged cache is no answer.
        let kept = cache.path().join("downloads").join(&digest);
        fs::write(&kept, b"a progrum").unwrap();
        let url = serve(b"a program", 1);
        assert_eq!(fetch(cache.path(), &url, &digest).unwrap(), b"a program");
        fs::remove_file(&kept).unwrap();

        let url = serve(b"a trojan!", 4);
        let refused = fetch(cache.path(), &url, &digest).unwrap_err().to_string();
        assert!(refused.contains("Hash Sum mismatch"), "{refused}");
        let left: Vec<_> = fs::read_dir(cache.path().join("downloads")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        let nobody = "http://127.0.0.1:9/program";
        let refused = fetch(cache.path(), nobody, &digest).unwrap_err().to_string();
        assert!(refused.contains("127.0.0.1"), "{refused}");
    }
}
