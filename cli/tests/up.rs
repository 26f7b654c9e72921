//! `emberline up` looks after its parts: a real nats-server, and scripts that stand in for the
//! worker and the function's host, so that what is tested is the looking after.

#![allow(clippy::unwrap_used, reason = "a step of a test that fails ends the test")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// Far more than anything here takes; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A worker that says its process id and when it is told to stop; so does the host.
const WORKER: &str = "#!/bin/sh
trap 'echo worker stops; exit 0' TERM
echo \"worker has pid $$\"
while :; do sleep 0.05; done
";

/// A host whose function is always ready.
const HOST: &str = r#"#!/usr/bin/env python3
import http.server, os, signal, sys
def stop(*_):
    print("function stops", flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
print("host has pid", os.getpid(), flush=True)
address, port = sys.argv[sys.argv.index("--listen") + 1].rsplit(":", 1)
http.server.HTTPServer((address, int(port)), Ready).serve_forever()
"#;

/// One checkout at a time: a program that is being written can't be run, and a process that another
/// test has just forked holds everything open for a moment.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A folder that looks like a checkout with everything built.
struct Checkout {
    dir: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Checkout {
    fn new(worker: &str, host: &str) -> Self {
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let checkout = Self { dir: tempfile::tempdir().unwrap(), _turn };
        let root = checkout.path("");
        for folder in ["bin", "build", "deploy", "cache/run"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for file in ["spin.toml", "build/function.wasm", "model.gguf"] {
            fs::write(root.join(file), "").unwrap();
        }
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/nats.conf");
        fs::copy(config, root.join("deploy/nats.conf")).unwrap();
        symlink(emberline_tests::nats::binary().unwrap(), root.join("bin/nats-server")).unwrap();
        // A copy, because it looks for its siblings beside itself.
        fs::copy(env!("CARGO_BIN_EXE_emberline"), root.join("bin/emberline")).unwrap();
        checkout.program("emberline-worker", worker);
        checkout.program("emberline-host", host);
        checkout
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts `emberline up` on ports that the system chooses.
    fn up(&self, env: &[(&str, &str)]) -> Up {
        Up::spawn(self.command().env("EMBERLINE_HOST", "local").envs(env.iter().copied()))
    }

    /// The same, and it chooses the function's host itself.
    fn up_on_any_host(&self) -> Up {
        Up::spawn(self.command().env_remove("EMBERLINE_HOST"))
    }

    fn command(&self) -> Command {
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new(self.path("bin/emberline"));
        command
            .arg("up")
            .current_dir(self.path(""))
            .env("PATH", format!("{}:{path}", self.path("bin").display()))
            .env("EMBERLINE_CACHE", self.path("cache"))
            .env("EMBERLINE_LISTEN", "127.0.0.1:0")
            .env("EMBERLINE_NATS_LISTEN", "127.0.0.1:0")
            .env("EMBERLINE_MODEL", "model.gguf")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// What the parts said until now.
    fn log(&self) -> String {
        fs::read_to_string(self.path("cache/run/up.log")).unwrap()
    }

    /// The process ids that parts of this name said.
    fn pids(&self, name: &str) -> Vec<Pid> {
        let said = format!("{name} has pid ");
        let log = self.log();
        log.lines().filter_map(|line| line.rsplit_once(&said)).map(|(_, pid)| parse_pid(pid)).collect()
    }

    /// The process ids of all parts.
    fn parts(&self) -> Vec<Pid> {
        let log = self.log();
        // nats-server begins each line with its own.
        let nats = log.lines().find_map(|line| line.strip_prefix("[nats-server] [")?.split_once(']'));
        let mut pids = vec![parse_pid(nats.unwrap().0)];
        pids.extend(self.pids("worker"));
        pids.extend(self.pids("host"));
        pids
    }

    fn program(&self, name: &str, text: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// A running `emberline up`; ends with the test.
struct Up {
    child: Child,
    lines: mpsc::Receiver<String>,
    said: String,
}

impl Up {
    fn spawn(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let (send, lines) = mpsc::channel();
        for stream in [
            Box::new(child.stdout.take().unwrap()) as Box<dyn Read + Send>,
            Box::new(child.stderr.take().unwrap()),
        ] {
            let send = send.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let _ = send.send(line);
                }
            });
        }
        Up { child, lines, said: String::new() }
    }

    /// Waits for a line that has `text` in it.
    fn wait_for(&mut self, text: &str) {
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line =
                line.unwrap_or_else(|e| panic!("{e} while waiting for '{text}' after:\n{}", self.said));
            self.said += &format!("{line}\n");
            if line.contains(text) {
                return;
            }
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits for the end; returns all that was said.
    fn end(mut self) -> (ExitStatus, String) {
        let status = wait_until("emberline up ended", || self.child.try_wait().unwrap());
        self.said.extend(self.lines.iter().map(|line| line + "\n"));
        (status, std::mem::take(&mut self.said))
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn parse_pid(text: &str) -> Pid {
    Pid::from_raw(text.parse().unwrap()).unwrap()
}

/// Whether a process runs; one that has ended and waits for its parent to notice does not.
fn is_alive(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = status.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    test_kill_process(pid).is_ok() && state != Some('Z')
}

#[test]
fn an_interrupt_stops_every_part_and_leaves_nothing() {
    for stop in [Signal::INT, Signal::TERM] {
        let checkout = Checkout::new(WORKER, HOST);
        let mut up = checkout.up(&[("EMBERLINE_WORKERS", "2")]);
        up.wait_for("Ctrl-C stops everything");
        assert!(up.said.contains("-H \"Authorization: Bearer sk-emb-"), "{}", up.said);
        assert!(checkout.path("cache/run/up.json").exists());
        let parts = checkout.parts();
        assert_eq!(parts.len(), 4, "nats-server, two workers and the host");
        assert!(parts.iter().copied().all(is_alive));
        kill_process(up.pid(), stop).unwrap();
        let (status, said) = up.end();
        assert!(status.success(), "{said}");
        assert_eq!(parts.into_iter().filter(|&pid| is_alive(pid)).count(), 0, "{said}");
        assert!(!checkout.path("cache/run/up.json").exists());
        assert!(!said.contains("killed"), "every part stopped by itself: {said}");
        let log = checkout.log();
        let order = ["function stops", "worker stops", "Initiating Shutdown"].map(|line| log.find(line));
        assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{log}");
    }
}

#[test]
fn a_dead_worker_is_started_again_and_the_third_death_ends_the_whole() {
    let checkout = Checkout::new(WORKER, HOST);
    let mut up = checkout.up(&[]);
    up.wait_for("Ctrl-C stops everything");
    for deaths in 1..=3 {
        wait_until("the worker said its pid", || {
            (checkout.log().matches("worker has pid").count() == deaths).then_some(())
        });
        kill_process(*checkout.pids("worker").last().unwrap(), Signal::KILL).unwrap();
        if deaths < 3 {
            up.wait_for("worker 1 died (killed by signal 9); starting it again");
        }
    }
    let (status, said) = up.end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("workers died 3 times within 60 s; the last was worker 1"), "{said}");
    assert!(said.contains("\n  worker has pid "), "its last lines are shown: {said}");
}

#[test]
fn a_worker_that_cannot_start_ends_the_whole_with_its_last_words() {
    let checkout = Checkout::new("#!/bin/sh\necho 'tensor 7 is corrupt' >&2\nexit 3\n", HOST);
    let (status, said) = checkout.up(&[]).end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("worker 1 ended (exit status 3)"), "{said}");
    assert!(said.contains("\n  tensor 7 is corrupt\n"), "{said}");
}

#[test]
fn the_death_of_the_function_ends_the_whole() {
    // Ready once, then gone.
    let host = HOST.replace("serve_forever()", "handle_request()");
    let checkout = Checkout::new(WORKER, &host);
    let (status, said) = checkout.up(&[]).end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("function ended (exit status 0)"), "{said}");
}

#[test]
fn what_the_function_leaves_behind_ends_with_it() {
    // As under `spin up` a child serves; this one is deaf to SIGTERM, and ends with a failed test too.
    let fork = "
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.alarm(120)
    print(\"child has pid\", os.getpid(), flush=True)
    Server((address, int(port)), Ready).serve_forever()
signal.pause()
";
    let host = HOST.replace("http.server.HTTPServer((address, int(port)), Ready).serve_forever()", fork);
    let host = host.replace("Server((", "http.server.HTTPServer((");
    let checkout = Checkout::new(WORKER, &host);
    let mut up = checkout.up(&[]);
    up.wait_for("Ctrl-C stops everything");
    let child = checkout.pids("child");
    assert!(child.len() == 1 && is_alive(child[0]));
    kill_process(checkout.pids("host")[0], Signal::KILL).unwrap();
    let (status, said) = up.end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("function ended (killed by signal 9)"), "{said}");
    wait_until("the child ended", || (!is_alive(child[0])).then_some(()));
}

#[test]
fn a_spin_that_cannot_run_the_function_is_said_and_not_used() {
    let checkout = Checkout::new(WORKER, HOST);
    for (answer, reason) in [
        ("spin 3.4.1 (abc 2025-09-01)", "is Spin 3.4.1, which can't run the function"),
        ("Spin Version 6.5.2 -- 6 December 2019", "so it is another program"),
    ] {
        checkout.program("spin", &format!("#!/bin/sh\necho '{answer}'\n"));
        let (status, said) = checkout.up(&[("EMBERLINE_HOST", "spin")]).end();
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("EMBERLINE_HOST=spin, but ") && said.contains(reason), "{said}");
        let mut up = checkout.up_on_any_host();
        up.wait_for("Ctrl-C stops everything");
        assert!(up.said.contains(&format!("{reason}; using the project's own host")), "{}", up.said);
        kill_process(up.pid(), Signal::TERM).unwrap();
        up.end();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn no_part_outlives_a_killed_emberline() {
    let checkout = Checkout::new(WORKER, HOST);
    let mut up = checkout.up(&[]);
    up.wait_for("Ctrl-C stops everything");
    let parts = checkout.parts();
    assert_eq!(parts.len(), 3);
    kill_process(up.pid(), Signal::KILL).unwrap();
    wait_until("every part ended", || (!parts.iter().any(|&pid| is_alive(pid))).then_some(()));
    // And the next start is not in the way of the one before.
    let mut up = checkout.up(&[]);
    up.wait_for("Ctrl-C stops everything");
}

#[test]
fn a_taken_port_is_named_before_anything_starts() {
    let checkout = Checkout::new(WORKER, HOST);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (status, said) = checkout.up(&[("EMBERLINE_NATS_LISTEN", &address)]).end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("nats-server") && said.contains("EMBERLINE_NATS_LISTEN"), "{said}");
    assert!(!checkout.path("cache/run/up.log").exists(), "nothing was started");
}
