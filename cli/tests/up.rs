//! How `emberline up` starts, restarts and stops its parts, with a real nats-server and with scripts in place of
//! the worker and the function's host.

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

/// How long to wait for anything; only a failure takes so long.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A worker that prints its process id, and a line when it is stopped; so does the host.
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

/// One checkout at a time: a program that is open for writing can't be executed, and a process that another
/// test has just forked keeps all files open for a moment.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A folder that looks like a checkout in which everything is built.
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
        symlink(emberline_test_kit::nats::binary().unwrap(), root.join("bin/nats-server")).unwrap();
        // A copy, because it looks for the other programs beside itself.
        fs::copy(env!("CARGO_BIN_EXE_emberline"), root.join("bin/emberline")).unwrap();
        checkout.program("emberline-worker", worker);
        checkout.program("emberline-host", host);
        checkout
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts `emberline up` with the local host, on ports that the system chooses.
    fn up(&self, env: &[(&str, &str)]) -> Up {
        Up::spawn(self.command().env("EMBERLINE_HOST", "local").envs(env.iter().copied()))
    }

    /// Starts `emberline up`, which chooses the function's host itself.
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

    /// The log of all parts so far.
    fn log(&self) -> String {
        fs::read_to_string(self.path("cache/run/up.log")).unwrap()
    }

    /// The process ids that the parts of this name have printed.
    fn pids(&self, name: &str) -> Vec<Pid> {
        let prefix = format!("{name} has pid ");
        let log = self.log();
        log.lines().filter_map(|line| line.rsplit_once(&prefix)).map(|(_, pid)| parse_pid(pid)).collect()
    }

    /// The process ids of all parts.
    fn parts(&self) -> Vec<Pid> {
        let log = self.log();
        // nats-server begins each line with its process id.
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

/// A running `emberline up`; killed at the end of the test.
struct Up {
    child: Child,
    lines: mpsc::Receiver<String>,
    output: String,
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
        Up { child, lines, output: String::new() }
    }

    /// Waits for a line that contains `text`.
    fn wait_for(&mut self, text: &str) {
        loop {
            let line = self.lines.recv_timeout(TIMEOUT);
            let line =
                line.unwrap_or_else(|e| panic!("{e} while waiting for '{text}' after:\n{}", self.output));
            self.output += &format!("{line}\n");
            if line.contains(text) {
                return;
            }
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits for the end; returns the exit status and all output.
    fn end(mut self) -> (ExitStatus, String) {
        let status = wait_until("emberline up ended", || self.child.try_wait().unwrap());
        self.output.extend(self.lines.iter().map(|line| line + "\n"));
        (status, std::mem::take(&mut self.output))
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
        assert!(began.elapsed() < TIMEOUT, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn parse_pid(text: &str) -> Pid {
    Pid::from_raw(text.parse().unwrap()).unwrap()
}

/// Whether a process is running; a zombie is not.
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
        assert!(up.output.contains("-H \"Authorization: Bearer sk-emb-"), "{}", up.output);
        assert!(checkout.path("cache/run/up.json").exists());
        let parts = checkout.parts();
        assert_eq!(parts.len(), 4, "nats-server, two workers and the host");
        assert!(parts.iter().copied().all(is_alive));
        kill_process(up.pid(), stop).unwrap();
        let (status, output) = up.end();
        assert!(status.success(), "{output}");
        assert_eq!(parts.into_iter().filter(|&pid| is_alive(pid)).count(), 0, "{output}");
        assert!(!checkout.path("cache/run/up.json").exists());
        assert!(!output.contains("killed"), "every part stopped by itself: {output}");
        let log = checkout.log();
        let order = ["function stops", "worker stops", "Initiating Shutdown"].map(|line| log.find(line));
        assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{log}");
    }
}

#[test]
fn a_dead_worker_is_restarted_and_the_third_death_ends_the_stack() {
    let checkout = Checkout::new(WORKER, HOST);
    let mut up = checkout.up(&[]);
    up.wait_for("Ctrl-C stops everything");
    for deaths in 1..=3 {
        wait_until("the worker printed its pid", || {
            (checkout.log().matches("worker has pid").count() == deaths).then_some(())
        });
        kill_process(*checkout.pids("worker").last().unwrap(), Signal::KILL).unwrap();
        if deaths < 3 {
            up.wait_for("worker 1 died (killed by signal 9); starting it again");
        }
    }
    let (status, output) = up.end();
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("workers died 3 times within 60 s; the last was worker 1"), "{output}");
    assert!(output.contains("\n  worker has pid "), "its last lines are shown: {output}");
}

#[test]
fn a_worker_that_cannot_start_ends_the_stack_and_its_last_lines_are_shown() {
    let checkout = Checkout::new("#!/bin/sh\necho 'tensor 7 is corrupt' >&2\nexit 3\n", HOST);
    let (status, output) = checkout.up(&[]).end();
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("worker 1 ended (exit status 3)"), "{output}");
    assert!(output.contains("\n  tensor 7 is corrupt\n"), "{output}");
}

#[test]
fn the_death_of_the_function_ends_the_stack() {
    // Ready once, then gone.
    let host = HOST.replace("serve_forever()", "handle_request()");
    let checkout = Checkout::new(WORKER, &host);
    let (status, output) = checkout.up(&[]).end();
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("function ended (exit status 0)"), "{output}");
}

#[test]
fn processes_that_the_function_leaves_behind_are_killed() {
    // As under `spin up`, a child serves. This one ignores SIGTERM, and ends by itself after a failed test.
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
    let (status, output) = up.end();
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("function ended (killed by signal 9)"), "{output}");
    wait_until("the child ended", || (!is_alive(child[0])).then_some(()));
}

#[test]
fn a_spin_that_cannot_run_the_function_is_reported_and_not_used() {
    let checkout = Checkout::new(WORKER, HOST);
    for (answer, reason) in [
        ("spin 3.4.1 (abc 2025-09-01)", "is Spin 3.4.1, which can't run the function"),
        ("Spin Version 6.5.2 -- 6 December 2019", "so it is another program"),
    ] {
        checkout.program("spin", &format!("#!/bin/sh\necho '{answer}'\n"));
        let (status, output) = checkout.up(&[("EMBERLINE_HOST", "spin")]).end();
        assert_eq!(status.code(), Some(1), "{output}");
        assert!(output.contains("EMBERLINE_HOST=spin, but ") && output.contains(reason), "{output}");
        let mut up = checkout.up_on_any_host();
        up.wait_for("Ctrl-C stops everything");
        assert!(up.output.contains(&format!("{reason}; using the project's own host")), "{}", up.output);
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
    // The next start is not hindered by what the killed one left.
    let mut up = checkout.up(&[]);
    up.wait_for("Ctrl-C stops everything");
}

#[test]
fn a_taken_port_is_named_before_anything_starts() {
    let checkout = Checkout::new(WORKER, HOST);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (status, output) = checkout.up(&[("EMBERLINE_NATS_LISTEN", &address)]).end();
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("nats-server") && output.contains("EMBERLINE_NATS_LISTEN"), "{output}");
    assert!(!checkout.path("cache/run/up.log").exists(), "nothing was started");
}
