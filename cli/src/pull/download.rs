//! One file over HTTP: resumed after an interruption, and checked before anybody sees it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::ProgressBar;
use ureq::http::HeaderMap;
use ureq::tls::{RootCerts, TlsConfig};

use crate::catalogue::{Digest, sha256_of};

/// Attempts in a row that bring nothing new before a source is given up.
const MAX_FRUITLESS: u32 = 4;

/// Fetches files.
pub(crate) struct Downloader {
    agent: ureq::Agent,
    pause: Duration,
}

/// A file could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DownloadError {
    #[error("the server answered {0}")]
    Status(u16),
    #[error("the connection failed {attempts} times in a row, at last: {last}")]
    Interrupted { attempts: u32, last: String },
    #[error("it offers {got} bytes instead of {wanted}, so it is another file")]
    WrongSize { wanted: u64, got: u64 },
    #[error("what came has the SHA-256 {got} instead of {wanted}, so it was not used")]
    WrongContent { wanted: String, got: String },
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
}

/// Why one request did not complete the file.
enum Setback {
    /// Another request may go on from here.
    Again(String),
    Final(DownloadError),
}

impl Downloader {
    /// Trusts what the system trusts and uses the proxy that the environment names.
    pub(crate) fn new() -> Self {
        Self::with_pause(Duration::from_millis(500))
    }

    /// `pause` comes before the second attempt and doubles with each further one.
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

    /// Makes `part` the file that `digest` describes, going on from what lies there already.
    ///
    /// Nobody else may write to `part` meanwhile.
    pub(crate) fn fetch(
        &self,
        url: &str,
        digest: &Digest,
        part: &Path,
        progress: &ProgressBar,
    ) -> Result<(), DownloadError> {
        let at = |source| DownloadError::File { path: part.to_owned(), source };
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(part).map_err(at)?;
        let mut again = true;
        loop {
            let pieced = self.complete(url, digest, &mut file, part, progress)?;
            let got = sha256_of(part).map_err(at)?;
            if got == digest.sha256 {
                return Ok(());
            }
            file.set_len(0).map_err(at)?;
            // The bytes of an earlier run or answer may be those of another version of the file.
            if !(pieced && again) {
                return Err(DownloadError::WrongContent { wanted: digest.sha256.clone(), got });
            }
            again = false;
        }
    }

    /// Requests the rest of the file until it has its full size; `Ok(true)` if not all of it came
    /// in one answer.
    fn complete(
        &self,
        url: &str,
        digest: &Digest,
        file: &mut File,
        part: &Path,
        progress: &ProgressBar,
    ) -> Result<bool, DownloadError> {
        let at = |source| DownloadError::File { path: part.to_owned(), source };
        let (mut most, mut fruitless, mut pieced) = (0, 0, false);
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
                (most, fruitless) = (have, 0);
            }
            match self.request_rest(url, digest, file, have, progress) {
                Ok(resumed) => {
                    pieced |= resumed;
                    return Ok(pieced);
                }
                Err(Setback::Final(error)) => return Err(error),
                Err(Setback::Again(last)) => {
                    pieced = true;
                    fruitless += 1;
                    if fruitless >= MAX_FRUITLESS {
                        return Err(DownloadError::Interrupted { attempts: fruitless, last });
                    }
                    std::thread::sleep(self.pause * 2_u32.pow(fruitless - 1));
                }
            }
        }
    }

    /// One request for everything after the first `have` bytes; `Ok(true)` if it went on from there.
    fn request_rest(
        &self,
        url: &str,
        digest: &Digest,
        file: &mut File,
        have: u64,
        progress: &ProgressBar,
    ) -> Result<bool, Setback> {
        let mut request = self.agent.get(url).header("accept-encoding", "identity");
        if have > 0 {
            request = request.header("range", format!("bytes={have}-"));
        }
        let response = request.call().map_err(|e| Setback::Again(e.to_string()))?;
        let start = match response.status().as_u16() {
            200 => 0,
            206 if range_start(response.headers()) == Some(have) => have,
            206 | 416 => {
                file.set_len(0).map_err(|e| Setback::Again(e.to_string()))?;
                return Err(Setback::Again("the server can't go on where the download stopped".to_owned()));
            }
            status @ (408 | 429 | 500..) => {
                return Err(Setback::Again(format!("the server answered {status}")));
            }
            status => return Err(Setback::Final(DownloadError::Status(status))),
        };
        let body = response.into_body();
        if let Some(rest) = body.content_length()
            && start + rest != digest.size
        {
            let wrong = DownloadError::WrongSize { wanted: digest.size, got: start + rest };
            return Err(Setback::Final(wrong));
        }
        let reader = body.into_with_config().limit(u64::MAX).reader();
        receive(reader, digest.size, file, start, progress)?;
        Ok(start > 0)
    }
}

/// Writes `reader` into `file` from `start` on, until the file is `size` long.
fn receive(
    mut reader: impl Read,
    size: u64,
    file: &mut File,
    start: u64,
    progress: &ProgressBar,
) -> Result<(), Setback> {
    let again = |e: io::Error| Setback::Again(e.to_string());
    file.set_len(start).map_err(again)?;
    file.seek(SeekFrom::Start(start)).map_err(again)?;
    let mut buffer = vec![0; 64 * 1024];
    let mut have = start;
    loop {
        progress.set_position(have);
        let read = reader.read(&mut buffer).map_err(again)?;
        if read == 0 {
            break;
        }
        have += read as u64;
        if have > size {
            return Err(Setback::Final(DownloadError::WrongSize { wanted: size, got: have }));
        }
        file.write_all(buffer.get(..read).unwrap_or_default()).map_err(again)?;
    }
    if have < size {
        return Err(Setback::Again(format!("the connection was closed after {have} of {size} bytes")));
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
