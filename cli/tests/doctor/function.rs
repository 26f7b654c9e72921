//! Faults between a client and the function, and of this machine.

use std::os::unix::fs::PermissionsExt as _;

use emberline_test_kit::simulated::paced;
use emberline_test_kit::stack::{API_KEY, Stack};
use emberline_test_kit::wait;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Certificates, Doctor, Server, start};

/// How many words the simulated engine makes in a second.
const PACE: u32 = 50;

#[tokio::test]
async fn a_url_at_which_there_is_no_function_is_found() {
    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let other = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await;
    let proxy = Server::answering("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n").await;
    let elsewhere = Server::answering("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
    let at = |server: &Server| format!("http://{}/v1", server.address);
    for (url, words, remedy) in [
        (closed, "nothing answers", "start the function's host"),
        ("http://no-such-host.invalid".to_owned(), "no address for the name", "DNS"),
        (at(&other), "something else than the function answers", "URL"),
        (at(&proxy), "a proxy", "passes requests on"),
        (at(&elsewhere), "/health answers with status 404", "without a path"),
    ] {
        let diagnosis = Doctor::of_nothing().args(&["--url", &url]).diagnose().await;
        diagnosis.has_fault("function", words, remedy);
        diagnosis.has_faults_only_of(&["function"]);
    }
}

/// What an edge answers, by servers of the test's own.
#[tokio::test]
async fn an_edge_before_nothing_is_told_from_none() {
    let greeting =
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nINFO \r\n3\r\n{}\n\r\n0\r\n\r\n";
    let edge = Server::answering(greeting).await;
    let url = format!("http://{}", edge.address);
    let diagnosis = Doctor::of_nothing().args(&["--edge", &url]).diagnose().await;
    diagnosis.is_ok("edge");
    diagnosis.has_faults_only_of(&[]);

    for (answer, words, remedy) in [
        (
            "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 14\r\n\r\nno nats-server",
            "does not reach nats-server: status 502: no nats-server",
            "--nats",
        ),
        ("HTTP/1.1 503 Full\r\ncontent-length: 0\r\n\r\n", "takes no connection", "--max-connections"),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "is no edge: status 404", "path"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", "no nats-server's greeting", "--nats"),
    ] {
        let server = Server::answering(answer).await;
        let url = format!("http://{}", server.address);
        let diagnosis = Doctor::of_nothing().args(&["--edge", &url]).diagnose().await;
        diagnosis.has_fault("edge", words, remedy);
    }
}

/// A nats-server that begins with TLS stands for any server under https.
#[tokio::test]
async fn the_certificate_of_a_url_is_judged_too() {
    let certificates = Certificates::new();
    let config = certificates.tls("127.0.0.1", -5, "handshake_first: true");
    let server = start(certificates.folder.path(), &config).await;
    let url = format!("https://{}", server.address());
    let doctor = Doctor::of_nothing().args(&["--url", &url]).env("SSL_CERT_FILE", &certificates.authority);
    let diagnosis = doctor.diagnose().await;
    diagnosis.has_fault("certificate expiry", "has expired on", "renew");
    diagnosis.has_fault("function", "TLS fails", "certificate");
    diagnosis.has_faults_only_of(&["certificate expiry", "function"]);
}

#[tokio::test]
async fn the_key_the_bus_and_the_stream_of_a_real_function_are_checked() {
    let mut stack = Stack::start_with(paced(PACE, 4, &[])).await.unwrap();
    let url = stack.url.clone();
    let with_key = |url: &str| Doctor::of_nothing().args(&["--url", url, "--api-key", API_KEY]);

    // By the worker's own word, and without it.
    let doctor = Doctor::at("worker", &stack.nats.address());
    let diagnosis = doctor.args(&["--url", &url, "--api-key", API_KEY]).diagnose().await;
    for name in ["function", "function's bus", "key", "streaming", "workers"] {
        diagnosis.is_ok(name);
    }
    diagnosis.has_faults_only_of(&[]);
    with_key(&format!("{url}/v1/")).diagnose().await.is_ok("streaming");

    let diagnosis = Doctor::of_nothing().args(&["--url", &url, "--api-key", "sk-wrong"]).diagnose().await;
    diagnosis.has_fault("key", "refuses the API key", "emberline keys");

    let address = url.strip_prefix("http://").unwrap().to_owned();
    let buffering = buffering_proxy(address).await;
    for doctor in [
        with_key(&format!("http://{}", buffering.address)),
        Doctor::at("worker", &stack.nats.address()).args(&[
            "--url",
            &format!("http://{}", buffering.address),
            "--api-key",
            API_KEY,
        ]),
    ] {
        let diagnosis = doctor.diagnose().await;
        diagnosis.has_fault("streaming", "something holds answers back", "proxy_buffering off");
        diagnosis.has_faults_only_of(&["streaming"]);
    }

    stack.nats.stop();
    // What the function has read a moment ago counts for a second.
    wait::until("the function misses NATS", async || {
        Ok(!with_key(&url).diagnose().await.findings("function's bus", "fault").is_empty())
    })
    .await
    .unwrap();
    let diagnosis = with_key(&url).diagnose().await;
    diagnosis.has_fault("function's bus", "not ready (503)", "nats_server");
}

/// Passes on a stream when it has all of it, and anything else as it comes.
async fn buffering_proxy(server: String) -> Server {
    Server::start(move |client| {
        let server = server.clone();
        async move {
            let Ok(server) = TcpStream::connect(server).await else { return };
            let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                (client.into_split(), server.into_split());
            let there = async move {
                let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
            };
            let back = async move {
                let (mut held, mut bytes) = (Vec::new(), vec![0; 1 << 16]);
                while let Ok(length @ 1..) = from_server.read(&mut bytes).await {
                    held.extend_from_slice(&bytes[..length]);
                    let has = |text: &str| held.windows(text.len()).any(|window| window == text.as_bytes());
                    if has("text/event-stream") && !has("[DONE]") {
                        continue;
                    }
                    if to_client.write_all(&held).await.is_err() {
                        return;
                    }
                    held.clear();
                }
            };
            tokio::join!(there, back);
        }
    })
    .await
}

#[tokio::test]
async fn a_broken_gpu_driver_of_this_machine_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("nvidia-smi");
    let script = "#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n";
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let answering = Server::answering("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
    let url = format!("http://{}", answering.address);
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let doctor = || Doctor::of_nothing().args(&["--url", &url]).env("PATH", &path);
    doctor().diagnose().await.has_fault("gpu", "Driver/library version mismatch", "restart the machine");

    let script = "#!/bin/sh\necho 'NVIDIA H200, 570.1'\n";
    std::fs::write(&program, script).unwrap();
    let diagnosis = doctor().env("VK_DRIVER_FILES", folder.path().join("nothing.json")).diagnose().await;
    diagnosis.has_fault("gpu", "NVIDIA H200, 570.1: there is no Vulkan driver", "NVIDIA_DRIVER_CAPABILITIES");
}

#[tokio::test]
async fn what_cannot_be_run_at_all_has_an_exit_code_of_its_own() {
    let (code, report, said) = Doctor::of_nothing().output().await;
    assert!(code == Some(2) && report.is_empty() && said.contains("no stack is running"), "{code:?} {said}");
    let (code, _, said) = Doctor::of_nothing().args(&["--url", "nowhere"]).output().await;
    assert!(code == Some(2) && said.contains("--url"), "{code:?} {said}");
    let doctor = Doctor::of_nothing().args(&[
        "--url",
        "http://127.0.0.1:1",
        "--role",
        "admin",
        "--models",
        "a",
        "--pool",
    ]);
    let (code, _, said) = doctor.output().await;
    assert!(code == Some(2) && said.contains("--models is for workers"), "{code:?} {said}");
}
