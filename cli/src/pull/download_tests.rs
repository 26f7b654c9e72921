use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

use super::*;

/// How the test server answers requests, in order; the last answer repeats.
#[derive(Clone, Copy)]
enum Answer {
    /// A correct response whose connection ends after this many bytes of the body.
    CutAfter(usize),
    /// The whole file, whatever range was requested.
    IgnoreRange,
    /// As `IgnoreRange`, but the connection ends after this many bytes.
    IgnoreRangeCutAfter(usize),
    /// A correct response with the first byte of the body changed.
    Corrupt,
    Good,
    Status(u16),
    /// 206 for another range than was requested.
    WrongRange,
    /// A complete response of another length.
    OtherFile,
}

struct Server {
    url: String,
    ranges: Arc<Mutex<Vec<Option<u64>>>>,
}

impl Server {
    fn start(content: Vec<u8>, answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/file", listener.local_addr().unwrap());
        let ranges = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&ranges);
        // Ends with the test process; it owns nothing but its socket.
        std::thread::spawn(move || {
            for (i, stream) in listener.incoming().enumerate() {
                let answer = *answers.get(i).or(answers.last()).unwrap();
                let mut stream = stream.unwrap();
                let range = read_request(&stream);
                seen.lock().unwrap().push(range);
                let _ = stream.write_all(&respond(&content, range, answer));
            }
        });
        Self { url, ranges }
    }

    fn ranges(&self) -> Vec<Option<u64>> {
        self.ranges.lock().unwrap().clone()
    }
}

fn read_request(stream: &std::net::TcpStream) -> Option<u64> {
    let mut range = None;
    for line in BufReader::new(stream).lines() {
        let line = line.unwrap().to_ascii_lowercase();
        if let Some(from) = line.strip_prefix("range: bytes=") {
            range = Some(from.trim_end_matches('-').parse().unwrap());
        }
        if line.is_empty() {
            break;
        }
    }
    range
}

fn respond(content: &[u8], range: Option<u64>, answer: Answer) -> Vec<u8> {
    let from = usize::try_from(range.unwrap_or(0)).unwrap();
    let (status, from, body) = match answer {
        Answer::IgnoreRange | Answer::IgnoreRangeCutAfter(_) => (200, None, content.to_vec()),
        Answer::OtherFile => (200, None, b"<html>".to_vec()),
        Answer::Status(status) => (status, None, Vec::new()),
        Answer::WrongRange => (206, Some(from + 1), content[from + 1..].to_vec()),
        Answer::Corrupt => {
            let mut body = content[from..].to_vec();
            body[0] ^= 1;
            (if range.is_some() { 206 } else { 200 }, Some(from), body)
        }
        Answer::Good | Answer::CutAfter(_) if range.is_some() => (206, Some(from), content[from..].to_vec()),
        Answer::Good | Answer::CutAfter(_) => (200, None, content.to_vec()),
    };
    let mut head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    if let Some(from) = from.filter(|_| status == 206) {
        head += &format!("content-range: bytes {from}-{}/{}\r\n", content.len() - 1, content.len());
    }
    let sent = match answer {
        Answer::CutAfter(n) | Answer::IgnoreRangeCutAfter(n) => body[..n].to_vec(),
        _ => body,
    };
    [head.as_bytes(), b"\r\n", &sent].concat()
}

fn content() -> Vec<u8> {
    (0..200_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

struct Outcome {
    result: Result<(), DownloadError>,
    file: Vec<u8>,
    ranges: Vec<Option<u64>>,
}

/// Downloads [`content`] from a server with these answers; an earlier run left `before`.
fn fetch(before: &[u8], answers: Vec<Answer>) -> Outcome {
    let server = Server::start(content(), answers);
    let dir = tempfile::tempdir().unwrap();
    let part = dir.path().join("x.part");
    if !before.is_empty() {
        std::fs::write(&part, before).unwrap();
    }
    let digest =
        FileDigest { size: content().len() as u64, sha256: HEXLOWER.encode(&Sha256::digest(content())) };
    let downloader = Downloader::with_pause(Duration::ZERO);
    let result = downloader.fetch(&server.url, &digest, &part, &ProgressBar::hidden());
    Outcome { result, file: std::fs::read(&part).unwrap(), ranges: server.ranges() }
}

#[test]
fn an_interrupted_download_goes_on_where_it_stopped() {
    let outcome = fetch(&[], vec![Answer::CutAfter(70_000), Answer::CutAfter(50_000), Answer::Good]);
    outcome.result.unwrap();
    assert!(outcome.file == content());
    assert_eq!(outcome.ranges, [None, Some(70_000), Some(120_000)]);
}

#[test]
fn the_bytes_of_an_earlier_run_are_not_fetched_again() {
    let outcome = fetch(&content()[..150_000], vec![Answer::Good]);
    outcome.result.unwrap();
    assert!(outcome.file == content());
    assert_eq!(outcome.ranges, [Some(150_000)]);
}

#[test]
fn a_complete_file_of_an_earlier_run_needs_no_request() {
    let outcome = fetch(&content(), vec![Answer::Status(500)]);
    outcome.result.unwrap();
    assert!(outcome.ranges.is_empty());
}

#[test]
fn a_server_without_ranges_sends_everything_again() {
    let outcome = fetch(&[], vec![Answer::CutAfter(70_000), Answer::IgnoreRange]);
    outcome.result.unwrap();
    assert!(outcome.file == content());
    assert_eq!(outcome.ranges, [None, Some(70_000)]);
}

#[test]
fn a_server_that_answers_with_another_range_is_asked_for_the_whole() {
    let outcome = fetch(&content()[..10], vec![Answer::WrongRange, Answer::Good]);
    outcome.result.unwrap();
    assert_eq!(outcome.ranges, [Some(10), None]);
}

#[test]
fn corrupt_bytes_are_never_used() {
    let outcome = fetch(&[], vec![Answer::Corrupt]);
    assert!(matches!(outcome.result, Err(DownloadError::WrongContent { .. })));
    assert!(outcome.file.is_empty());
    assert_eq!(outcome.ranges.len(), 1, "the same source would send the same bytes");
}

#[test]
fn corrupt_bytes_of_an_earlier_run_are_replaced() {
    for len in [1000, content().len()] {
        let mut before = content()[..len].to_vec();
        before[7] ^= 1;
        let outcome = fetch(&before, vec![Answer::Good]);
        outcome.result.unwrap();
        assert!(outcome.file == content());
        assert_eq!(outcome.ranges.last(), Some(&None));
    }
}

#[test]
fn a_file_longer_than_it_can_be_is_begun_anew() {
    let mut before = content();
    before.push(0);
    let outcome = fetch(&before, vec![Answer::Good]);
    outcome.result.unwrap();
    assert_eq!(outcome.ranges, [None]);
}

#[test]
fn a_server_that_brings_nothing_new_is_given_up() {
    // Cuts at different places are no progress: what was received before is discarded each time.
    let answers =
        vec![Answer::CutAfter(60), Answer::IgnoreRangeCutAfter(20), Answer::IgnoreRangeCutAfter(50)];
    let outcome = fetch(&[], answers);
    assert!(matches!(outcome.result, Err(DownloadError::Interrupted { attempts: MAX_ATTEMPTS, .. })));
    let outcome = fetch(&[], vec![Answer::Status(503)]);
    assert!(outcome.result.unwrap_err().to_string().ends_with("the server answered 503"));
}

#[test]
fn a_file_that_is_not_there_or_is_another_one_is_not_asked_for_twice() {
    let outcome = fetch(&[], vec![Answer::Status(404)]);
    assert!(matches!(outcome.result, Err(DownloadError::Status(404))));
    assert_eq!(outcome.ranges.len(), 1);
    let outcome = fetch(&[], vec![Answer::OtherFile]);
    assert!(matches!(outcome.result, Err(DownloadError::WrongSize { got: 6, .. })));
    assert_eq!(outcome.ranges.len(), 1);
}
