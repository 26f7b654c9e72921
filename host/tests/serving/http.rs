//! HTTP as clients see it, which is the same on this host as on the real Spin.

use super::support::{Connection, Server, manifest};

/// Sends a request to each server; returns the statuses, `None` for a closed connection.
fn each_answers(request: &str) -> Vec<Option<u16>> {
    let answer = |server: Server| {
        let mut client = server.connect();
        client.write(request.as_bytes());
        client.try_head().map(|(status, _)| status)
    };
    Server::each(&manifest("")).map(answer).collect()
}

/// Asserts that each server answers with `expected`, or closes the connection without an answer for `None`.
fn all_answer(request: &str, expected: Option<u16>) {
    for answer in each_answers(request) {
        assert_eq!(answer, expected, "{request:.100}");
    }
}

#[test]
fn a_request_that_names_no_host_or_two_gets_no_answer() {
    all_answer("GET /served HTTP/1.1\r\nHost: a\r\n\r\n", Some(200));
    all_answer("GET /served HTTP/1.1\r\n\r\n", None);
    all_answer("GET /served HTTP/1.1\r\nHost: a b\r\n\r\n", None);
    all_answer("GET http://a/served HTTP/1.1\r\nHost: b\r\n\r\n", None);
    all_answer("GET http://a/served HTTP/1.1\r\nHost: a\r\n\r\n", Some(200));
    all_answer("GET http://a/served HTTP/1.0\r\n\r\n", Some(200));
}

#[test]
fn a_host_name_for_internal_calls_counts_as_none() {
    all_answer("GET /served HTTP/1.1\r\nHost: fixture.spin.internal\r\n\r\n", None);
    all_answer("GET /served HTTP/1.1\r\nHost: a.b.spin.internal\r\n\r\n", Some(200));
}

#[test]
fn a_target_without_a_path_gets_no_answer() {
    all_answer("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", None);
    all_answer("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", Some(404));
}

#[test]
fn a_header_that_is_not_utf_8_is_a_500() {
    for server in Server::each(&manifest("")) {
        let mut client = server.connect();
        client.write(b"GET /served HTTP/1.1\r\nHost: a\r\nx: \xff\r\n\r\n");
        assert_eq!(client.response(), (500, String::new()));
    }
}

/// At so many bytes hyper refuses a head that is not complete (its `DEFAULT_MAX_BUFFER_SIZE`).
const HEAD_LIMIT: usize = 8192 + 100 * 4096;

#[test]
fn there_are_limits_to_headers() {
    let headers = |count: usize, size: usize| -> String {
        let headers = (0..count).map(|number| format!("x-{number}: {}\r\n", "x".repeat(size)));
        format!("GET /served HTTP/1.1\r\nHost: a\r\n{}\r\n", headers.collect::<String>())
    };
    all_answer(&headers(99, 1), Some(200));
    all_answer(&headers(100, 1), Some(431));
    all_answer(&headers(10, 30_000), Some(200));
    // A head that is complete may be longer than the limit: hyper compares only an incomplete one with it, and a
    // single read may bring the rest. So this one has no end, and as many bytes as the limit: all of them are read
    // before the refusal, which closes the connection, and unread bytes would reset it.
    all_answer(&headers(10, 50_000)[..HEAD_LIMIT], Some(431));
}

#[test]
fn http_2_is_served_to_clients_with_prior_knowledge() {
    for server in Server::each(&manifest("")) {
        let mut client = server.connect();
        client.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        client.write(&frame(SETTINGS, 0, 0, b""));
        // Fields in the encoding of RFC 7541: GET, http, a path, an authority.
        let path = b"/header?spin-full-url";
        let mut fields = vec![0x82, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
        fields.extend(path);
        fields.extend(b"\x01\x01a");
        client.write(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &fields));
        // 0x88 is status 200 in the static table.
        assert_eq!(wait_for_frame(&mut client, HEADERS)[0], 0x88);
        assert_eq!(wait_for_frame(&mut client, DATA), b"\"http://localhost/header?spin-full-url\"");
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// An HTTP/2 frame (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Reads up to the next frame of a kind; returns its payload.
fn wait_for_frame(client: &mut Connection, wanted: u8) -> Vec<u8> {
    loop {
        let head = client.bytes(9);
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let payload = client.bytes(length.try_into().unwrap());
        if head[3] == wanted {
            return payload;
        }
    }
}

#[test]
fn a_signal_cuts_responses_off() {
    for name in ["-TERM", "-INT"] {
        for server in Server::each(&manifest("")) {
            let mut client = server.connect();
            client.send("/ticks");
            client.head();
            client.chunk();
            server.signal(name);
            assert!(client.is_cut_off(), "{name}");
        }
    }
}
