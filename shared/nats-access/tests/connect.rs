//! Connections to a real nats-server by all proofs and with TLS, and what is said where there is none.

#![allow(clippy::unwrap_used, reason = "a step of a test that fails ends the test")]

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use async_nats::ServerAddr;
use clap::Parser;
use emberline_nats_access::{ConnectFailure, NatsAccess, NatsArgs, Secret, Secrets, parse_server};
use emberline_test_kit::certificates::{Authority, CertificateFiles};
use emberline_test_kit::jwt::Operator;
use emberline_test_kit::nats::NatsServer;
use nkeys::KeyPair;
use tokio::net::TcpListener;

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    nats: NatsArgs,
}

fn access(server: &str, args: &[&str], secrets: Secrets) -> Result<NatsAccess> {
    let servers: Vec<ServerAddr> = vec![parse_server(server)?];
    let args = Program::try_parse_from([&["program"], args].concat())?.nats;
    Ok(args.access(servers, secrets, "worker")?)
}

/// Whether a message comes back that the connection itself has published.
async fn connects(access: &NatsAccess) -> Result<()> {
    let client = access.connect(access.options()).await?;
    client.flush().await?;
    anyhow::ensure!(client.new_inbox().starts_with("_INBOX_worker."), "{}", client.new_inbox());
    Ok(())
}

/// What is said where there is no connection: one line.
async fn failure(access: &NatsAccess) -> ConnectFailure {
    let options = access.options().connection_timeout(Duration::from_secs(2));
    let failure = access.connect(options).await.unwrap_err();
    assert_eq!(failure.to_string().lines().count(), 1, "{failure}");
    failure
}

async fn assert_fails(access: &NatsAccess, expected: &str) {
    let failure = failure(access).await;
    assert!(failure.to_string().contains(expected) && !failure.may_pass(), "{failure}\nlacks: {expected}");
}

async fn server(folder: &Path, config: &str) -> Result<NatsServer> {
    let file = folder.join("nats.conf");
    fs::write(&file, config)?;
    NatsServer::start_with(&file).await
}

/// The block `tls` of a configuration.
fn tls(files: &CertificateFiles, more: &str) -> String {
    let CertificateFiles { certificate, key } = files;
    format!("tls {{ cert_file: '{}', key_file: '{}', {more} }}\n", certificate.display(), key.display())
}

fn secret(text: &str) -> Option<Secret> {
    Some(Secret { variable: "VARIABLE", text: text.to_owned() })
}

fn port(server: &NatsServer) -> String {
    server.address().rsplit_once(':').unwrap().1.to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn passwords_tokens_and_nkeys_prove_who_connects() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (known, unknown) = (KeyPair::new_user(), KeyPair::new_user());
    let users = format!(
        "authorization {{ users: [{{user: worker, password: right}}, {{nkey: {}}}] }}\n",
        known.public_key()
    );
    let nats = server(folder.path(), &users).await?;
    let address = nats.address();
    let password = |text| Secrets { password: secret(text), ..Secrets::default() };
    connects(&access(&address, &[], password("right"))?).await?;
    assert_fails(&access(&address, &[], password("wrong"))?, "user 'worker'. Check --nats-user and VARIABLE")
        .await;
    let nkey = |key: &KeyPair| Secrets { nkey_seed: secret(&key.seed().unwrap()), ..Secrets::default() };
    connects(&access(&address, &[], nkey(&known))?).await?;
    assert_fails(
        &access(&address, &[], nkey(&unknown))?,
        &format!("the NKEY {}. Put it", unknown.public_key()),
    )
    .await;
    assert_fails(
        &access(&address, &[], Secrets::default())?,
        "does not say who it is. Set EMBERLINE_NATS_NKEY_SEED",
    )
    .await;

    // A file with a seed is read again for each connection.
    let file = folder.path().join("seed");
    fs::write(&file, unknown.seed()?)?;
    let by_file = access(&address, &["--nats-nkey-file", text(&file)], Secrets::default())?;
    failure(&by_file).await;
    fs::write(&file, known.seed()?)?;
    connects(&by_file).await?;
    fs::remove_file(&file)?;
    assert_fails(&by_file, "No such file").await;

    let nats = server(folder.path(), "authorization { token: right }\n").await?;
    let token = |text| Secrets { token: secret(text), ..Secrets::default() };
    connects(&access(&nats.address(), &[], token("right"))?).await?;
    assert_fails(&access(&nats.address(), &[], token("wrong"))?, "the token. Check VARIABLE").await;
    Ok(())
}

#[tokio::test]
async fn credentials_prove_who_connects_until_they_expire() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (operator, other) = (Operator::default(), Operator::default());
    let nats = server(folder.path(), &operator.config()?).await?;
    let file = folder.path().join("worker.creds");
    let credentials = || access(&nats.address(), &["--nats-credentials", text(&file)], Secrets::default());
    fs::write(&file, operator.credentials(None)?)?;
    let good = credentials()?;
    connects(&good).await?;
    fs::write(&file, operator.credentials(Some(SystemTime::now() + Duration::from_secs(3600)))?)?;
    connects(&good).await?;
    fs::write(&file, other.credentials(None)?)?;
    assert_fails(&good, "the credentials in").await;
    fs::write(&file, operator.credentials(Some(SystemTime::UNIX_EPOCH + Duration::from_secs(86_400)))?)?;
    assert_fails(&good, "expired on 1970-01-02 (UTC)").await;
    let error = credentials().unwrap_err().to_string();
    assert!(error.contains("expired on 1970-01-02 (UTC)"), "{error}");
    Ok(())
}

#[tokio::test]
async fn tls_is_spoken_with_servers_whose_certificate_is_right() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (authority, other) = (Authority::new()?, Authority::new()?);
    let ca = authority.write(folder.path(), "ca.pem")?;
    let other_ca = other.write(folder.path(), "other-ca.pem")?;
    let files = authority.certificate(folder.path(), "nats", &["localhost"])?;
    let nats = server(folder.path(), &tls(&files, "timeout: 5")).await?;
    let at = |host: &str| format!("{host}:{}", port(&nats));
    let by = |address: &str, ca: &Path| access(address, &["--nats-ca", text(ca)], Secrets::default());
    connects(&by(&at("tls://localhost"), &ca)?).await?;
    // The scheme is not needed where an option says that there is TLS.
    connects(&by(&at("nats://localhost"), &ca)?).await?;
    assert_fails(
        &by(&at("tls://localhost"), &other_ca)?,
        "a CA that is not known here. Give the CA's certificate with --nats-ca",
    )
    .await;
    assert_fails(&by(&at("tls://127.0.0.1"), &ca)?, "its certificate is for localhost, not for 127.0.0.1")
        .await;
    // A server that wants TLS gets it, also behind nats://.
    let unknown = access(&at("nats://localhost"), &[], Secrets::default())?;
    let said = failure(&unknown).await.to_string();
    assert!(said.contains("--nats-ca"), "{said}");
    let first =
        access(&at("tls://localhost"), &["--nats-tls-first", "--nats-ca", text(&ca)], Secrets::default())?;
    assert_fails(&first, "Leave --nats-tls-first out").await;

    let old = authority.expired_certificate(folder.path(), "old", &["localhost"])?;
    let nats = server(folder.path(), &tls(&old, "timeout: 5")).await?;
    let expired = by(&format!("tls://localhost:{}", port(&nats)), &ca)?;
    assert_fails(&expired, "its certificate expired on ").await;
    Ok(())
}

#[tokio::test]
async fn a_server_without_tls_is_not_spoken_to_behind_tls() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let ca = Authority::new()?.write(folder.path(), "ca.pem")?;
    let nats = server(folder.path(), "").await?;
    let plain = nats.address();
    connects(&access(&plain, &[], Secrets::default())?).await?;
    for address in [format!("tls://{plain}"), format!("nats://{plain}")] {
        let tls = access(&address, &["--nats-ca", text(&ca)], Secrets::default())?;
        assert_fails(&tls, "it offers none. Write nats:// in place of tls://").await;
    }
    Ok(())
}

#[tokio::test]
async fn tls_comes_first_where_nats_server_wants_that() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let authority = Authority::new()?;
    let ca = authority.write(folder.path(), "ca.pem")?;
    let files = authority.certificate(folder.path(), "nats", &["localhost"])?;
    let nats = server(folder.path(), &tls(&files, "handshake_first: true, timeout: 1")).await?;
    let address = format!("tls://localhost:{}", port(&nats));
    let first = ["--nats-ca", text(&ca), "--nats-tls-first"];
    connects(&access(&address, &first, Secrets::default())?).await?;
    let later = failure(&access(&address, &first[..2], Secrets::default())?).await;
    assert!(later.to_string().contains("set --nats-tls-first"), "{later}");
    Ok(())
}

#[tokio::test]
async fn a_client_shows_its_certificate() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (authority, other) = (Authority::new()?, Authority::new()?);
    let ca = authority.write(folder.path(), "ca.pem")?;
    let files = authority.certificate(folder.path(), "nats", &["localhost"])?;
    let mine = authority.certificate(folder.path(), "mine", &["worker"])?;
    let foreign = other.certificate(folder.path(), "foreign", &["worker"])?;
    let block = tls(&files, &format!("ca_file: '{}', verify_and_map: true, timeout: 5", ca.display()));
    let nats =
        server(folder.path(), &format!("{block}authorization {{ users: [{{user: worker}}] }}\n")).await?;
    let by = |shown: Option<&CertificateFiles>| {
        let address = format!("tls://localhost:{}", port(&nats));
        let mut args = vec!["--nats-ca", text(&ca)];
        if let Some(CertificateFiles { certificate, key }) = shown {
            args.extend(["--nats-client-certificate", text(certificate), "--nats-client-key", text(key)]);
        }
        access(&address, &args, Secrets::default())
    };
    connects(&by(Some(&mine))?).await?;
    let none = failure(&by(None)?).await.to_string();
    assert!(none.contains("Give one with --nats-client-certificate"), "{none}");
    let wrong = failure(&by(Some(&foreign))?).await.to_string();
    assert!(wrong.contains("refuses the certificate of --nats-client-certificate"), "{wrong}");
    let halves = CertificateFiles { certificate: mine.certificate.clone(), key: foreign.key };
    let error = by(Some(&halves)).err().context("two halves")?.to_string();
    assert!(error.contains("is not the key of --nats-client-certificate"), "{error}");
    Ok(())
}

#[tokio::test]
async fn where_nothing_listens_it_is_worth_trying_again() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let silent = failure(&access(&address, &[], Secrets::default())?).await;
    assert!(silent.may_pass() && silent.to_string().contains("sends nothing"), "{silent}");
    drop(listener);
    let closed = failure(&access(&address, &[], Secrets::default())?).await;
    assert!(
        closed.may_pass() && closed.to_string().contains("can't reach nats-server at 127.0.0.1:"),
        "{closed}"
    );
    Ok(())
}
