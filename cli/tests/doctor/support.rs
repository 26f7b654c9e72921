//! Runs `emberline doctor`, and makes what is wrong.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use async_nats::{Client, ConnectOptions};
use emberline_protocol::streams::Layout;
use emberline_test_kit::nats::{ADMIN_SEED, CONFIG, FUNCTION_SEED, NatsServer, WORKER_SEED, set_up};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinSet;

/// What doctor says.
#[derive(Debug)]
pub(crate) struct Diagnosis {
    code: Option<i32>,
    report: Value,
}

/// `emberline doctor --json` for the user of `role` at `nats`, in a cache folder in which no stack runs.
pub(crate) struct Doctor {
    command: Command,
    _cache: TempDir,
}

impl Doctor {
    /// Looks at no NATS.
    pub(crate) fn of_nothing() -> Self {
        let cache = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_emberline"));
        command.args(["doctor", "--json"]).env("EMBERLINE_CACHE", cache.path()).kill_on_drop(true);
        for variable in ["EMBERLINE_API_KEY", "EMBERLINE_NATS_NKEY_SEED", "SSL_CERT_FILE"] {
            command.env_remove(variable);
        }
        Self { command, _cache: cache }
    }

    pub(crate) fn at(role: &str, nats: &str) -> Self {
        let seed = match role {
            "function" => FUNCTION_SEED,
            "admin" => ADMIN_SEED,
            _ => WORKER_SEED,
        };
        Self::of_nothing().args(&["--role", role, "--nats", nats]).env("EMBERLINE_NATS_NKEY_SEED", seed)
    }

    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Exit code, standard output and standard error.
    pub(crate) async fn output(mut self) -> (Option<i32>, String, String) {
        let output = self.command.output().await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    pub(crate) async fn diagnose(self) -> Diagnosis {
        let (code, report, said) = self.output().await;
        let report = serde_json::from_str(&report).unwrap_or_else(|error| panic!("{error}: {report}{said}"));
        Diagnosis { code, report }
    }
}

impl Diagnosis {
    /// The findings of this name and outcome.
    pub(crate) fn findings(&self, name: &str, outcome: &str) -> Vec<&str> {
        let checks = self.report["checks"].as_array().unwrap().iter();
        checks
            .filter(|check| check["name"] == name && check["outcome"] == outcome)
            .map(|check| check["finding"].as_str().unwrap())
            .collect()
    }

    /// Expects a finding with these words, and a remedy with those.
    #[track_caller]
    fn has(&self, outcome: &str, name: &str, words: &str, remedy: &str) {
        let checks = self.report["checks"].as_array().unwrap();
        let contains =
            |check: &Value, field: &str, words: &str| check[field].as_str().unwrap_or("").contains(words);
        let found = checks.iter().any(|check| {
            check["name"] == name
                && check["outcome"] == outcome
                && contains(check, "finding", words)
                && contains(check, "remedy", remedy)
                && check["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty())
        });
        assert!(found, "no {outcome} {name} with '{words}' and '{remedy}': {self:#?}");
    }

    /// Expects this fault, and the exit code that tells of it.
    #[track_caller]
    pub(crate) fn has_fault(&self, name: &str, words: &str, remedy: &str) {
        self.has("fault", name, words, remedy);
        assert_eq!(self.code, Some(1), "{self:#?}");
    }

    #[track_caller]
    pub(crate) fn has_warning(&self, name: &str, words: &str, remedy: &str) {
        self.has("warning", name, words, remedy);
    }

    /// Expects that these are the only faults, besides what this machine's GPU has.
    #[track_caller]
    pub(crate) fn has_faults_only_of(&self, names: &[&str]) {
        let checks = self.report["checks"].as_array().unwrap().iter();
        let faults = checks.filter(|check| check["outcome"] == "fault");
        let mut found: Vec<&str> = faults.map(|check| check["name"].as_str().unwrap()).collect();
        assert_eq!(self.code, Some(i32::from(!found.is_empty())), "{self:#?}");
        found.retain(|name| *name != "gpu");
        found.dedup();
        assert_eq!(found, names, "{self:#?}");
    }

    #[track_caller]
    pub(crate) fn is_ok(&self, name: &str) {
        assert!(!self.findings(name, "ok").is_empty(), "{name} is not ok: {self:#?}");
    }
}

/// deploy/nats.conf.
pub(crate) fn config() -> String {
    std::fs::read_to_string(CONFIG).unwrap()
}

/// A nats-server with deploy/nats.conf, the streams, and the user of [`unlimited`].
pub(crate) async fn start_with_unlimited_user(folder: &Path) -> NatsServer {
    let user = "users: [ { user: unlimited, password: unlimited-test }\n";
    let nats = start(folder, &config().replacen("users: [\n", user, 1)).await;
    set_up(&nats, &Layout::default()).await.unwrap();
    nats
}

/// A connection as a user who may do everything.
pub(crate) async fn unlimited(nats: &NatsServer) -> Client {
    let options = ConnectOptions::with_user_and_password("unlimited".into(), "unlimited-test".into());
    options.connect(nats.address()).await.unwrap()
}

/// A nats-server with this configuration; the folder has to live as long.
pub(crate) async fn start(folder: &Path, config: &str) -> NatsServer {
    let path = folder.join("nats.conf");
    std::fs::write(&path, config).unwrap();
    NatsServer::start_with(&path).await.unwrap()
}

/// Certificates in files of a folder, and the authority that issued them.
pub(crate) struct Certificates {
    pub(crate) folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
    pub(crate) authority: PathBuf,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Planted CA");
        let key = KeyPair::generate().unwrap();
        let authority = folder.path().join("authority.pem");
        std::fs::write(&authority, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key), authority }
    }

    /// nats-server's `tls` block with a certificate for this name; its time ends in `days`, or has ended so long ago.
    pub(crate) fn tls(&self, name: &str, days: i64, more: &str) -> String {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        let day = Duration::from_secs(24 * 60 * 60);
        let end = day * u32::try_from(days.unsigned_abs()).unwrap();
        // An hour more, for the test takes time.
        let now = SystemTime::now() + Duration::from_secs(60 * 60);
        params.not_before = (now - day * 90).into();
        params.not_after = if days < 0 { (now - end).into() } else { (now + end).into() };
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (certificate_file, key_file) =
            (self.folder.path().join("server.pem"), self.folder.path().join("server.key"));
        std::fs::write(&certificate_file, certificate.pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        format!(
            "{}\ntls {{ cert_file: '{}', key_file: '{}'\n{more}\n}}\n",
            config(),
            certificate_file.display(),
            key_file.display()
        )
    }
}

/// A server of one's own; ends when dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Server {
    /// Has `serve` talk with each who connects.
    pub(crate) async fn start<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream));
            }
        });
        Self { address, _tasks: tasks }
    }

    /// Says one thing and then nothing.
    pub(crate) async fn saying(text: &'static str) -> Self {
        Self::start(move |mut stream| async move {
            let _ = stream.write_all(text.as_bytes()).await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await
    }

    /// Answers each HTTP request with this, and closes the connection.
    pub(crate) async fn answering(answer: &'static str) -> Self {
        Self::start(move |mut stream| async move {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        })
        .await
    }

    /// Passes on what a client and `server` send each other; `change` may change what the server sends.
    pub(crate) async fn before<F: Future<Output = Vec<u8>> + Send>(
        server: String,
        change: impl Fn(Vec<u8>) -> F + Copy + Send + Sync + 'static,
    ) -> Self {
        Self::start(move |client| {
            let server = server.clone();
            async move {
                let Ok(server) = TcpStream::connect(server).await else { return };
                let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                    (client.into_split(), server.into_split());
                let there = async move {
                    let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
                };
                let back = async move {
                    let mut bytes = vec![0; 1 << 16];
                    while let Ok(length @ 1..) = from_server.read(&mut bytes).await {
                        if to_client.write_all(&change(bytes[..length].to_vec()).await).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::join!(there, back);
            }
        })
        .await
    }
}
