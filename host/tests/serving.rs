//! What a component experiences on this host, which is the same as on Spin.

// In a test, a failed step fails the test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "serving/http.rs"]
mod http;
mod support;

use std::collections::HashMap;
use std::io::Write;
use std::net::TcpListener;

use support::{Gate, Host, manifest, refused};

/// Allows connections to all ports of the loopback address.
const LOOPBACK: &str = "allowed_outbound_hosts = [\"tcp://127.0.0.1:*\"]";

#[test]
fn a_body_is_streamed_in_and_out_piece_by_piece() {
    let host = Host::start(&manifest(""), &[]);
    let mut client = host.connect();
    client.write(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.write(b"5\r\nfirst\r\n");
    assert_eq!(client.head().0, 200);
    assert_eq!(client.chunk(), b"first");
    client.write(b"6\r\nsecond\r\n");
    assert_eq!(client.chunk(), b"second");
    client.write(b"0\r\n\r\n");
    assert_eq!(client.chunk(), b"");

    // The connection stays open for the next request.
    client.send("/header?host");
    assert_eq!(client.response().0, 200);
}

#[test]
fn a_large_body_goes_through_whole() {
    let host = Host::start(&manifest(""), &[]);
    let body: String = (0..500_000).map(|number| format!("{number} ")).collect();
    let mut client = host.connect();
    let mut writer = client.writer();
    let request = format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    // The echo begins before the request ends, so both must proceed at the same time.
    let sending = std::thread::spawn(move || writer.write_all(request.as_bytes()));
    let (status, echo) = client.response();
    sending.join().unwrap().unwrap();
    assert_eq!(status, 200);
    assert!(echo == body, "{} bytes of {}", echo.len(), body.len());
}

#[test]
fn routes_and_spins_headers() {
    let text = manifest("").replace("route = \"/...\"", "route = \"/header/...\"");
    let text = format!("{text}\n[[trigger.http]]\nroute = \"/header\"\ncomponent = \"fixture\"\n");
    let host = Host::start(&text, &[]);
    assert_eq!(host.get("/served").0, 404);
    assert_eq!(host.get("/.well-known/spin/health"), (200, "OK".to_owned()));
    let info = "{\n  \"name\": \"test\"\n}".to_owned();
    assert_eq!(host.get("/.well-known/spin/info"), (200, info));
    assert_eq!(host.get("/.well-known/spin/other").0, 404);
    assert_eq!(host.get("/header?spin-full-url").1, "\"http://localhost/header?spin-full-url\"");
    assert_eq!(host.get("/header?spin-matched-route").1, "\"/header\"");
}

#[test]
fn variables_come_from_the_manifest_and_the_command_line() {
    let component =
        "[component.fixture.variables]\naddress = \"{{ host }}:{{ port }}\"\nfixed = \"as it is\"\n";
    let host = Host::start(&manifest(component), &["--variable", "port=4222"]);
    assert_eq!(host.get("/variable?address").1, "127.0.0.1:4222");
    assert_eq!(host.get("/variable?fixed").1, "as it is");
    // A component sees only its own variables, not the application's.
    assert!(host.get("/variable?host").1.starts_with("Error::Undefined"));
    assert!(host.get("/variable?No_Name").1.starts_with("Error::InvalidName"));
}

#[test]
fn the_environment_is_the_manifests_alone() {
    let host = Host::start(&manifest("environment = { COLOUR = \"green\" }"), &[]);
    assert_eq!(host.get("/environment?COLOUR").1, "Ok(\"green\")");
    assert_eq!(host.get("/environment?PATH").1, "Err(NotPresent)");
}

#[test]
fn a_connection_needs_an_entry_with_its_address_and_port() {
    let allowed = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let component = "allowed_outbound_hosts = [\"tcp://{{ host }}:{{ port }}\", \"tcp://localhost:*\"]";
    let port = format!("port={}", allowed.local_addr().unwrap().port());
    let host = Host::start(&manifest(component), &["--variable", &port]);
    let (allowed, other) = (allowed.local_addr().unwrap(), other.local_addr().unwrap());
    assert_eq!(host.get(&format!("/connect?{allowed}")).1, "Ok(())");
    assert_eq!(host.get(&format!("/connect-p2?{allowed}")).1, "Ok(())");
    let refused = host.get(&format!("/connect?{other}")).1;
    assert!(refused.contains("AccessDenied"), "{refused}");
    let refused = host.get(&format!("/connect-p2?{other}")).1;
    assert!(refused.contains("PermissionDenied"), "{refused}");
    host.wait_for_log("'tcp://localhost:*' names a host");
    host.wait_for_log(&format!("TcpConnect {other} is refused"));
}

#[test]
fn all_other_uses_of_the_network_are_refused() {
    let host = Host::start(&manifest("allowed_outbound_hosts = [\"*://*:*\"]"), &[]);
    for target in ["/lookup?localhost", "/udp?127.0.0.1:9", "/listen", "/bind", "/fetch?http://127.0.0.1:9/"]
    {
        let (status, outcome) = host.get(target);
        assert!(status == 200 && outcome.starts_with("Err("), "{target}: {status} {outcome}");
    }
}

#[test]
fn a_trap_before_the_head_is_a_500_and_the_host_goes_on() {
    let host = Host::start(&manifest(""), &[]);
    assert_eq!(host.get("/trap"), (500, String::new()));
    host.wait_for_log("an instance failed");
    assert_eq!(host.get("/fail").0, 500);
    assert_eq!(host.get("/header?host").0, 200);
}

#[test]
fn a_trap_after_the_head_ends_the_body() {
    let gate = Gate::new();
    let host = Host::start(&manifest(LOOPBACK), &[]);
    let mut client = host.connect();
    client.send(&format!("/trap-late?{}", gate.address));
    assert_eq!(client.head().0, 200);
    assert_eq!(client.chunk(), b"before");
    drop(gate.arrival());
    assert_eq!(client.chunk(), b"");
    host.wait_for_log("an instance failed");
    assert_eq!(host.get("/header?host").0, 200);
}

#[test]
fn a_client_that_leaves_makes_the_next_write_fail() {
    let host = Host::start(&manifest(""), &[]);
    let mut client = host.connect();
    client.send("/ticks");
    assert_eq!(client.head().0, 200);
    assert!(client.chunk().ends_with(b"\n"));
    assert_eq!(client.chunk(), b"tick\n");
    drop(client);
    host.wait_for_log("ticks: nobody reads");
}

#[test]
fn a_client_that_leaves_before_the_head_shows_only_when_the_body_is_written() {
    let gate = Gate::new();
    let host = Host::start(&manifest(LOOPBACK), &[]);
    let mut client = host.connect();
    client.send(&format!("/wait-then-stream?{}", gate.address));
    let waiting = gate.arrival();
    drop(client);
    host.wait_for_log("the connection ended");
    drop(waiting);
    // The request went on to its response, whose body nobody reads.
    host.wait_for_log("ticks: nobody reads");
}

#[test]
fn what_a_component_prints_is_logged_by_lines() {
    let host = Host::start(&manifest(""), &[]);
    assert_eq!(host.get("/print").0, 204);
    for line in ["guest: fixture: one line", "guest: fixture: another line"] {
        assert!(host.wait_for_log(line).ends_with(line));
    }
}

/// The instance that a `/served` response names, and the number of requests that it has served.
fn served((_, body): &(u16, String)) -> (String, usize) {
    let (instance, count) = body.split_once(' ').unwrap();
    (instance.to_owned(), count.parse().unwrap())
}

#[test]
fn an_instance_serves_128_requests_and_no_more() {
    let host = Host::start(&manifest(""), &[]);
    let mut client = host.connect();
    let mut highest = 0;
    for _ in 0..2_000 {
        client.send("/served");
        let (_, count) = served(&client.response());
        assert!(count <= 128, "an instance served {count} requests");
        highest = highest.max(count);
    }
    assert_eq!(highest, 128);
}

#[test]
fn an_instance_has_16_requests_before_their_heads_and_no_more() {
    let gate = Gate::new();
    let host = Host::start(&manifest(LOOPBACK), &[]);
    let ask = |_| {
        let mut client = host.connect();
        client.send(&format!("/wait?{}", gate.address));
        client
    };
    let mut clients: Vec<_> = (0..40).map(ask).collect();
    let waiting: Vec<_> = clients.iter().map(|_| gate.arrival()).collect();
    drop(waiting);
    let mut at_once: HashMap<String, usize> = HashMap::new();
    for client in &mut clients {
        *at_once.entry(client.response().1).or_default() += 1;
    }
    assert!(at_once.values().all(|count| *count <= 16), "{at_once:?}");
    assert!(at_once.values().any(|count| *count > 1), "nothing is shared: {at_once:?}");
}

#[test]
fn streaming_bodies_do_not_count_among_the_16() {
    let host = Host::start(&manifest(""), &[]);
    let mut open = Vec::new();
    let mut streams: HashMap<Vec<u8>, usize> = HashMap::new();
    while streams.values().all(|count| *count < 17) {
        assert!(open.len() < 300, "{streams:?}");
        let mut client = host.connect();
        client.send("/ticks");
        client.head();
        *streams.entry(client.chunk()).or_default() += 1;
        open.push(client);
    }
}

#[test]
fn an_idle_instance_is_dropped() {
    let host = Host::start(&manifest(""), &[]);
    let (first, count) = served(&host.get("/served"));
    assert_eq!(count, 1);
    host.wait_for_log("an instance ended");
    let (second, count) = served(&host.get("/served"));
    assert_eq!(count, 1);
    assert_ne!(first, second);
}

#[test]
fn a_signal_lets_running_responses_finish() {
    let gate = Gate::new();
    let mut host = Host::start(&manifest(LOOPBACK), &["--grace-s", "600"]);
    let mut idle = host.connect();
    idle.send("/header?host");
    idle.response();
    let mut client = host.connect();
    client.send(&format!("/wait?{}", gate.address));
    let waiting = gate.arrival();
    host.signal("-TERM");
    assert!(idle.ends(), "a connection without a request is closed");
    drop(waiting);
    assert_eq!(client.response().0, 200);
    assert_eq!(host.wait().code(), Some(0));
}

#[test]
fn the_grace_time_and_a_second_signal_cut_responses_off() {
    for (arguments, second_signal) in [(&[][..], false), (&["--grace-s", "600"], true)] {
        let mut host = Host::start(&manifest(""), arguments);
        let mut client = host.connect();
        client.send("/ticks");
        client.head();
        host.signal("-INT");
        if second_signal {
            host.wait_for_log("stopping");
            host.signal("-INT");
        }
        assert_eq!(host.wait().code(), Some(0));
    }
}

#[test]
fn a_request_is_cut_when_its_time_is_over() {
    let gate = Gate::new();
    let host = Host::start(&manifest(LOOPBACK), &["--request-time-limit", "3"]);
    let mut stream = host.connect();
    stream.send("/ticks");
    assert_eq!(stream.head().0, 200);
    assert!(stream.is_cut_off());
    host.wait_for_log("ticks: nobody reads");

    let mut client = host.connect();
    client.send(&format!("/wait?{}", gate.address));
    let waiting = gate.arrival();
    assert_eq!(client.response(), (504, String::new()));
    drop(waiting);
    assert_eq!(host.get("/served").0, 200);
}

#[test]
fn errors_at_the_start_name_the_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let required = manifest("").replace("port = { default = \"1\" }", "port = { required = true }");
    let no_file = manifest("").replace("fixture.wasm", "missing.wasm");
    let no_component = manifest("").replace("source = ", "source = \"spin.toml\" #");
    let name = manifest("allowed_outbound_hosts = [\"nats://127.0.0.1:4222\"]");
    let store = manifest("key_value_stores = [\"default\"]");
    let good = manifest("");
    for (manifest, arguments, words) in [
        (&good, &["--listen", taken.as_str()][..], &["can't listen on", taken.as_str(), "--listen"][..]),
        (&required, &[], &["'port'", "SPIN_VARIABLE_PORT"]),
        (&good, &["--variable", "typo=1"], &["'typo'", "not declared"]),
        (&no_file, &[], &["missing.wasm", "Build the component"]),
        (&no_component, &[], &["spin.toml is not a WebAssembly component"]),
        (&name, &[], &["component.fixture", "nats://127.0.0.1:4222", "opens tcp sockets"]),
        (&store, &[], &["component.fixture.key_value_stores", "spin up"]),
    ] {
        let (status, log) = refused(manifest, arguments, &[]);
        assert_eq!(status.code(), Some(1), "{log}");
        for word in words {
            assert!(log.contains(word), "no '{word}' in: {log}");
        }
    }
}

#[test]
fn a_variable_of_the_environment_is_used() {
    let text = manifest("allowed_outbound_hosts = [\"tcp://{{ host }}:{{ port }}\"]");
    let (status, log) = refused(&text, &[], &[("SPIN_VARIABLE_PORT", "no-port")]);
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("tcp://127.0.0.1:no-port"), "{log}");
}
