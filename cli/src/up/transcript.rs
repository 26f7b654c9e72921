//! The output of the stack's parts: every line goes to a log file, warnings and errors also to the terminal,
//! and the last lines of each part are kept for the message when it dies.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::console::Console;

/// Number of last lines kept of each part.
const TAIL_LINES: usize = 20;
/// Longest line that is kept or shown, in characters; the log file has the whole line.
const MAX_LINE_CHARS: usize = 500;

/// One process of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StackPart {
    Nats,
    /// Counted from 1.
    Worker(usize),
    Function,
    /// Between the function and nats-server, where the function has no sockets.
    Edge,
    /// A program that Emberline is compared with, which is no part of its stack.
    Peer(&'static str),
}

impl fmt::Display for StackPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nats => f.write_str("nats-server"),
            Self::Worker(n) => write!(f, "worker {n}"),
            Self::Function => f.write_str("function"),
            Self::Edge => f.write_str("edge"),
            Self::Peer(name) => f.write_str(name),
        }
    }
}

/// The log of one run; clones write to the same file.
#[derive(Debug, Clone)]
pub(crate) struct Transcript {
    inner: Arc<Mutex<Inner>>,
    path: PathBuf,
    console: Console,
}

#[derive(Debug)]
struct Inner {
    file: File,
    tails: BTreeMap<StackPart, VecDeque<String>>,
    is_muted: bool,
}

impl Transcript {
    /// Creates the log file; the previous one is kept with `.1` after its name.
    pub(crate) fn create(path: &Path, console: Console) -> io::Result<Self> {
        let mut before = path.as_os_str().to_owned();
        before.push(".1");
        match std::fs::rename(path, before) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let inner = Inner { file: File::create(path)?, tails: BTreeMap::new(), is_muted: false };
        Ok(Self { inner: Arc::new(Mutex::new(inner)), path: path.to_owned(), console })
    }

    /// The path of the log file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Records one line of a part's output.
    pub(crate) fn record(&self, part: StackPart, line: &str) {
        let shown: String = line.chars().take(MAX_LINE_CHARS).collect();
        let mut inner = self.lock();
        if is_important(line) && !inner.is_muted {
            self.console.print(&format!("[{part}] {shown}"));
        }
        // A full disk must not end the stack.
        let _ = writeln!(inner.file, "[{part}] {line}");
        let tail = inner.tails.entry(part).or_default();
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(shown);
    }

    /// Keeps further lines from the terminal: parts that are being stopped complain about each other.
    pub(crate) fn mute(&self) {
        self.lock().is_muted = true;
    }

    /// The last lines of a part, indented; a note if there are none.
    pub(crate) fn tail(&self, part: StackPart) -> String {
        let inner = self.lock();
        let lines: Vec<String> =
            inner.tails.get(&part).into_iter().flatten().map(|line| format!("  {line}")).collect();
        if lines.is_empty() { "  (no output)".to_owned() } else { lines.join("\n") }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a line is a warning, an error or a panic, as tracing, nats-server and Rust write them.
fn is_important(line: &str) -> bool {
    const MARKS: &[&str] = &[" WARN ", " ERROR ", "[WRN]", "[ERR]", "[FTL]", "panicked at"];
    // The passwords are random, and valid only while this server runs.
    const HARMLESS: &str = "Plaintext passwords detected";
    MARKS.iter().any(|mark| line.contains(mark)) && !line.contains(HARMLESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_has_every_line_and_the_tail_the_last_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("up.log");
        std::fs::write(&path, "before").unwrap();
        let transcript = Transcript::create(&path, Console::default()).unwrap();
        for n in 0..50 {
            transcript.record(StackPart::Worker(1), &format!("line {n}"));
        }
        transcript.record(StackPart::Nats, "hello");
        let log = std::fs::read_to_string(&path).unwrap();
        assert_eq!(log.lines().count(), 51);
        assert!(log.ends_with("[worker 1] line 49\n[nats-server] hello\n"), "{log}");
        let tail = transcript.tail(StackPart::Worker(1));
        assert_eq!((tail.lines().count(), tail.lines().next()), (TAIL_LINES, Some("  line 30")));
        assert_eq!(transcript.tail(StackPart::Function), "  (no output)");
        assert_eq!(std::fs::read_to_string(dir.path().join("up.log.1")).unwrap(), "before");
    }

    #[test]
    fn warnings_and_errors_are_important_and_other_lines_are_not() {
        for line in [
            "2026-01-01T00:00:00Z  WARN emberline_worker: slow",
            "[123] 2026/01/01 00:00:00.0 [ERR] no",
            "thread 'main' panicked at x",
        ] {
            assert!(is_important(line), "{line}");
        }
        for line in [
            "2026-01-01T00:00:00Z  INFO x: WARNING signs",
            "[1] 2026/01/01 00:00:00.0 [INF] Server is ready",
            "[1] 2026/01/01 00:00:00.0 [WRN] Plaintext passwords detected, use nkeys or bcrypt",
            "",
        ] {
            assert!(!is_important(line), "{line}");
        }
    }
}
