//! Faults between this machine and nats-server: names, ports, TLS, logins, and the server's own settings.

use emberline_test_kit::nats::NatsServer;

use crate::support::{Certificates, Doctor, Server, config, start};

#[tokio::test]
async fn a_server_that_is_not_there_is_told_from_a_name_that_nobody_knows() {
    let diagnosis = Doctor::at("worker", "nats://no-such-host.invalid:4222").diagnose().await;
    diagnosis.has_fault("address", "no address for the name no-such-host.invalid", "DNS");
    diagnosis.has_faults_only_of(&["address"]);

    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let diagnosis = Doctor::at("worker", &closed).diagnose().await;
    diagnosis.has_fault("connection", "nothing answers", "start nats-server");
    diagnosis.has_faults_only_of(&["connection"]);
}

#[tokio::test]
async fn what_is_no_nats_server_is_named() {
    let other = Server::saying("SSH-2.0-OpenSSH_9.9\r\n").await;
    let diagnosis = Doctor::at("worker", &other.address.to_string()).diagnose().await;
    diagnosis.has_fault("connection", "is no nats-server: it says 'SSH-2.0-OpenSSH_9.9'", "4222");

    let silent = Server::saying("").await;
    let diagnosis = Doctor::at("worker", &silent.address.to_string()).diagnose().await;
    diagnosis.has_fault("connection", "says nothing", "4222");

    let closing = Server::start(|stream| async move { drop(stream) }).await;
    let diagnosis = Doctor::at("worker", &closing.address.to_string()).diagnose().await;
    diagnosis.has_fault("connection", "closes them at once", "load balancer");

    let (code, _, said) = Doctor::at("worker", "http://127.0.0.1:1").output().await;
    assert!(code == Some(2) && said.contains("write nats://HOST:PORT"), "{code:?} {said}");
}

#[tokio::test]
async fn tls_and_its_absence_are_found_on_either_side() {
    let plain = NatsServer::start().await.unwrap();
    let diagnosis = Doctor::at("worker", &format!("tls://{}", plain.address())).diagnose().await;
    diagnosis.has_fault("tls", "the server speaks no TLS", "cert_file");
    diagnosis.has_faults_only_of(&["tls"]);

    let certificates = Certificates::new();
    let server = start(certificates.folder.path(), &certificates.tls("127.0.0.1", 60, "")).await;
    let trusting =
        |address: String| Doctor::at("worker", &address).env("SSL_CERT_FILE", &certificates.authority);
    let diagnosis = trusting(format!("nats://{}", server.address())).diagnose().await;
    diagnosis.has_warning("tls", "the server insists on TLS", "tls://");
    let diagnosis = trusting(format!("tls://{}", server.address())).diagnose().await;
    for name in ["tls", "certificate name", "certificate issuer", "certificate expiry", "login"] {
        diagnosis.is_ok(name);
    }
}

#[tokio::test]
async fn each_fault_of_a_certificate_has_a_line() {
    let certificates = Certificates::new();
    for (name, days, trusted, fault, words, remedy) in [
        ("127.0.0.1", 60, false, "certificate issuer", "CN=Planted CA", "--nats-ca"),
        ("gpu.example", 60, true, "certificate name", "for gpu.example, not for 127.0.0.1", "subjectAltName"),
        ("127.0.0.1", -3, true, "certificate expiry", "has expired on", "renew"),
    ] {
        let server = start(certificates.folder.path(), &certificates.tls(name, days, "")).await;
        let address = format!("tls://{}", server.address());
        let mut doctor = Doctor::at("worker", &address);
        if trusted {
            doctor = doctor.env("SSL_CERT_FILE", &certificates.authority);
        }
        let diagnosis = doctor.diagnose().await;
        diagnosis.has_fault(fault, words, remedy);
        diagnosis.has_faults_only_of(&[fault]);
    }
    let server = start(certificates.folder.path(), &certificates.tls("127.0.0.1", 9, "")).await;
    let doctor = Doctor::at("worker", &format!("tls://{}", server.address()));
    let diagnosis = doctor.env("SSL_CERT_FILE", &certificates.authority).diagnose().await;
    diagnosis.has_warning("certificate expiry", "9 days from now", "renew");
}

#[tokio::test]
async fn tls_of_a_kind_that_the_options_do_not_fit_is_found() {
    let certificates = Certificates::new();
    let config = certificates.tls("127.0.0.1", 60, "handshake_first: true");
    let server = start(certificates.folder.path(), &config).await;
    let diagnosis = Doctor::at("worker", &format!("tls://{}", server.address())).diagnose().await;
    diagnosis.has_fault("tls", "handshake_first", "--nats-tls-first");

    let ca = format!("verify: true, ca_file: '{}'", certificates.authority.display());
    let config = certificates.tls("127.0.0.1", 60, &ca);
    let server = start(certificates.folder.path(), &config).await;
    let doctor = Doctor::at("worker", &format!("tls://{}", server.address()));
    let diagnosis = doctor.env("SSL_CERT_FILE", &certificates.authority).diagnose().await;
    diagnosis.has_fault("login", "asks for a client certificate", "--nats-client-certificate");
}

#[tokio::test]
async fn who_is_not_let_in_is_told_and_who_is_let_in_without_asking() {
    let nats = NatsServer::start().await.unwrap();
    let stranger = nkeys::KeyPair::new_user().seed().unwrap();
    let doctor = Doctor::at("worker", &nats.address()).env("EMBERLINE_NATS_NKEY_SEED", stranger);
    let diagnosis = doctor.diagnose().await;
    diagnosis.has_fault("login", "refuses the user worker", "key");
    diagnosis.has_faults_only_of(&["login"]);

    let folder = tempfile::tempdir().unwrap();
    let open = start(folder.path(), "max_payload: 8MB\njetstream {}\n").await;
    let diagnosis = Doctor::at("worker", &open.address()).diagnose().await;
    diagnosis.has_warning("login", "lets anybody in", "deploy/nats.conf");
    diagnosis.has_warning("permissions", "may do more", "emberline nats user add worker");
}

#[tokio::test]
async fn a_servers_settings_are_compared_with_what_emberline_needs() {
    // An older nats-server can't be had here, so a server of the test's own greets as one.
    let old = Server::saying(
        "INFO {\"version\":\"2.9.25\",\"headers\":false,\"jetstream\":true,\"max_payload\":8388608,\"auth_required\":true}\r\n",
    )
    .await;
    let diagnosis = Doctor::at("worker", &old.address.to_string()).diagnose().await;
    diagnosis.has_fault("version", "2.9.25 is too old", "2.12");
    diagnosis.has_fault("headers", "off", "no_header_support");

    let folder = tempfile::tempdir().unwrap();
    let without = start(folder.path(), &config().replace("jetstream {}", "")).await;
    let diagnosis = Doctor::at("worker", &without.address()).diagnose().await;
    diagnosis.has_fault("jetstream", "JetStream off", "--nats-jetstream-domain");

    for (payload, outcome) in [("64KB", "fault"), ("1MB", "warning")] {
        let small =
            start(folder.path(), &config().replace("max_payload: 8MB", &format!("max_payload: {payload}")))
                .await;
        let diagnosis = Doctor::at("worker", &small.address()).diagnose().await;
        assert_eq!(diagnosis.findings("payload", outcome).len(), 1, "{diagnosis:#?}");
    }
}

#[tokio::test]
async fn each_of_several_servers_is_looked_at() {
    let nats = NatsServer::start().await.unwrap();
    let other = Server::saying("hello\r\n").await;
    let addresses = format!("{}, {}", other.address, nats.address());
    let diagnosis = Doctor::at("worker", &addresses).diagnose().await;
    diagnosis.has_fault("connection", &format!("{}: ", other.address), "4222");
    assert!(diagnosis.findings("login", "ok")[0].starts_with(&nats.address()), "{diagnosis:#?}");
    // What is in NATS is looked at through the one that works.
    diagnosis.is_ok("streams");
}
