//! Downloads one file over HTTP: resumes after interruptions and verifies the checksum before use.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::ProgressBar;
use ureq::http::HeaderMap;
use ureq::tls::{RootCerts, TlsConfig};

use crate::catalogue::{FileDigest, sha256_of};

/// Attempts in a row without progress after which the download fails.
const MAX_ATTEMPTS: u32 = 4;

/// Downloads files.
pub(crate) struct Downloader {
    agent: ureq::Agent,
    pause: Duration,
}

/// Why a file can't be downloaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DownloadError {
    #[error("the server answered {0}")]
    Status(u16),
    #[error("the connection failed {attempts} times in a row; the last error: {last}")]
    Interrupted { attempts: u32, last: String },
    #[error("the server's file has {got} bytes instead of {wanted}, so it is another file")]
    WrongSize { wanted: u64, got: u64 },
    #[error("the downloaded file has the SHA-256 {got} instead of {wanted} and was discarded")]
    WrongContent { wanted: String, got: String },
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
}

/// Why one request did not complete the file.
enum RequestError {
    /// Another request may continue the download.
    Retry(String),
    Fatal(DownloadError),
}

impl Downloader {
    /// Trusts the system's certificates and uses the proxy that the environment names.
    pub(crate) fn new() -> Self {
        Self::with_pause(Duration::from_millis(500))
    }

    /// Waits for `pause` before the second attempt, and twice as long before each further one.
    fn with_pause(pause: Duration) -> Self {
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)));
        Self { agent: config.build().into(), pause }
    }

    /// Downloads the file that `digest` describes to `part`, continuing what `part` already holds.
    ///
    /// The caller makes sure that nobody else writes to `part` at the same time.
    pub(crate) fn fetch(
        &self,
        url: &str,
        digest: &FileDigest,
        part: &Path,
        progress: &ProgressBar,
    ) -> Result<(), DownloadError> {
        let at = |source| DownloadError::File { path: part.to_owned(), source };
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(part).map_err(at)?;
        let mut may_restart = true;
        loop {
            let resumed = self.complete(url, digest, &mut file, part, progress)?;
            let got = sha256_of(part).map_err(at)?;
            if got == digest.sha256 {
                return Ok(());
            }
            file.set_len(0).map_err(at)?;
            // Bytes of an earlier run or response may belong to another version of the file.
            if !(resumed && may_restart) {
                return Err(DownloadError::WrongContent { wanted: digest.sha256.clone(), got });
            }
            may_restart = false;
        }
    }

    /// Requests the rest of the file until it has its full size. `Ok(true)` if it is not all from one
    /// response.
    fn complete(
        &self,
        url: &str,
        digest: &FileDigest,
        file: &mut File,
        part: &Path,
        progress: &ProgressBar,
    ) -> Result<bool, DownloadError> {
        let at = |source| DownloadError::File { path: part.to_owned(), source };
        let (mut most, mut attempts, mut resumed) = (0, 0, false);
        loop {
            let mut have = file.metadata().map_err(at)?.len();
            if have > digest.size {
                file.set_len(0).map_err(at)?;
                have = 0;
            }
            if have == digest.size {
                return Ok(true);
            }
            if have > most {
                (most, attempts) = (have, 0);
            }
            match self.request_rest(url, digest, file, have, progress) {
                Ok(continued) => return Ok(resumed || continued),
                Err(RequestError::Fatal(error)) => return Err(error),
                Err(RequestError::Retry(last)) => {
                    resumed = true;
                    attempts += 1;
                    if attempts >= MAX_ATTEMPTS {
                        return Err(DownloadError::Interrupted { attempts, last });
                    }
                    std::thread::sleep(self.pause * 2_u32.pow(attempts - 1));
                }
            }
        }
    }

    /// Requests everything after the first `have` bytes. `Ok(true)` if the response continues from there,
    /// `Ok(false)` if it holds the whole file.
    fn request_rest(
        &self,
        url: &str,
        digest: &FileDigest,
        file: &mut File,
        have: u64,
        progress: &ProgressBar,
    ) -> Result<bool, RequestError> {
        let mut request = self.agent.get(url).header("accept-encoding", "identity");
        if have > 0 {
            request = request.header("range", format!("bytes={have}-"));
        }
        let response = request.call().map_err(|e| RequestError::Retry(e.to_string()))?;
        let start = match response.status().as_u16() {
            200 => 0,
            206 if range_start(response.headers()) == Some(have) => have,
            206 | 416 => {
                file.set_len(0).map_err(|e| RequestError::Retry(e.to_string()))?;
                return Err(RequestError::Retry("the server can't resume the download".to_owned()));
            }
            status @ (408 | 429 | 500..) => {
                return Err(RequestError::Retry(format!("the server answered {status}")));
            }
            status => return Err(RequestError::Fatal(DownloadError::Status(status))),
        };
        let body = response.into_body();
        if let Some(rest) = body.content_length()
            && start + rest != digest.size
        {
            let wrong = DownloadError::WrongSize { wanted: digest.size, got: start + rest };
            return Err(RequestError::Fatal(wrong));
        }
        let reader = body.into_with_config().limit(u64::MAX).reader();
        receive(reader, digest.size, file, start, progress)?;
        Ok(start > 0)
    }
}

/// Writes `reader` to `file` from `start` on, until the file is `size` bytes long.
fn receive(
    mut reader: impl Read,
    size: u64,
    file: &mut File,
    start: u64,
    progress: &ProgressBar,
) -> Result<(), RequestError> {
    let retry = |e: io::Error| RequestError::Retry(e.to_string());
    file.set_len(start).map_err(retry)?;
    file.seek(SeekFrom::Start(start)).map_err(retry)?;
    let mut buffer = vec![0; 64 * 1024];
    let mut have = start;
    loop {
        progress.set_position(have);
        let read = reader.read(&mut buffer).map_err(retry)?;
        if read == 0 {
            break;
        }
        have += read as u64;
        if have > size {
            return Err(RequestError::Fatal(DownloadError::WrongSize { wanted: size, got: have }));
        }
        file.write_all(buffer.get(..read).unwrap_or_default()).map_err(retry)?;
    }
    if have < size {
        return Err(RequestError::Retry(format!("the connection was closed after {have} of {size} bytes")));
    }
    Ok(())
}

/// The first byte's position in `content-range: bytes 7-99/100`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get("content-range")?.to_str().ok()?;
    value.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}

#[cfg(test)]
#[path = "download_tests.rs"]
mod tests;
