//! The beginning of a connection: whether Emberline can run on the server, and `CONNECT` with our user.

use emberline_protocol::jetstream_domain::JetStreamDomain;
use emberline_protocol::subject::{MIN_NATS_VERSION, is_supported_nats};
use watermelon_proto::proto::ClientOp;
use watermelon_proto::{Connect, NonStandardConnect, ServerInfo};

use crate::nats::NatsEndpoint;

/// Why Emberline can't run on a server.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages are the documentation
pub enum Unsuitable {
    #[error(
        "nats-server {version} is too old; Emberline needs {major}.{minor} or newer",
        major = MIN_NATS_VERSION.0,
        minor = MIN_NATS_VERSION.1
    )]
    TooOld { version: String },
    #[error(
        "JetStream is off; switch it on in nats-server's configuration (`jetstream {{}}`), or name the domain of the \
         servers that have it (`nats_jetstream_domain`)"
    )]
    NoJetStream,
    #[error("the server does not support headers; remove `no_header_support` from its configuration")]
    NoHeaders,
    #[error("the server demands TLS, which raw sockets of a function don't have; give it a listener without")]
    Tls,
    #[error("the server is shutting down")]
    LameDuck,
}

/// Whether Emberline can run on the server that sent `info`. A server of another domain than that of the streams, such
/// as a leaf node, needs no JetStream of its own.
pub fn check(info: &ServerInfo, domain: &JetStreamDomain) -> Result<(), Unsuitable> {
    if !is_supported_nats(&info.version) {
        return Err(Unsuitable::TooOld { version: info.version.clone() });
    }
    match info {
        _ if !info.supports_jetstream && !domain.is_named() => Err(Unsuitable::NoJetStream),
        _ if !info.supports_headers => Err(Unsuitable::NoHeaders),
        _ if info.tls_required => Err(Unsuitable::Tls),
        _ if info.lame_duck_mode => Err(Unsuitable::LameDuck),
        _ => Ok(()),
    }
}

/// What we answer to `INFO`.
pub fn connect(endpoint: &NatsEndpoint) -> ClientOp {
    let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let connect = Connect {
        verbose: false,
        pedantic: false,
        require_tls: false,
        auth_token: None,
        username: given(&endpoint.user),
        password: given(&endpoint.user).map(|_| endpoint.password.clone()),
        client_name: Some("emberline-function".to_owned()),
        client_lang: "rust",
        client_version: env!("CARGO_PKG_VERSION"),
        protocol: 1,
        echo: false,
        signature: None,
        jwt: None,
        supports_no_responders: true,
        supports_headers: true,
        nkey: None,
        non_standard: NonStandardConnect::default(),
    };
    ClientOp::Connect { connect: Box::new(connect) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::codec::{Decoder, encode};
    use watermelon_proto::proto::ServerOp;

    /// `INFO` of nats-server 2.15.1, with some of its values replaced.
    fn info(version: &str, more: &str) -> ServerInfo {
        let mut decoder = Decoder::default();
        decoder.feed(
            format!(
                r#"INFO {{"server_id":"N","server_name":"N","version":"{version}","proto":1,"git_commit":"b2fd3ef","go":"go1.27.2","host":"127.0.0.1","port":4222,"max_payload":1048576,"client_id":5,"client_ip":"127.0.0.1","api_lvl":5{more}}}"#
            )
            .as_bytes(),
        );
        decoder.feed(b" \r\n");
        let Ok(Some(ServerOp::Info { info })) = decoder.decode() else { panic!("no INFO") };
        *info
    }

    const GOOD: &str = r#","headers":true,"jetstream":true"#;

    #[test]
    fn servers_from_2_12_on_will_do() {
        for version in ["2.12.0", "2.15.1", "2.15.1-beta.1", "3.0.0", "2.12"] {
            assert_eq!(check(&info(version, GOOD), &JetStreamDomain::default()), Ok(()), "{version}");
        }
        for version in ["2.11.9", "1.99.0", "", "two"] {
            assert_eq!(
                check(&info(version, GOOD), &JetStreamDomain::default()),
                Err(Unsuitable::TooOld { version: version.into() }),
                "{version}"
            );
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        for (more, wanted) in [
            (r#","headers":true"#, Unsuitable::NoJetStream),
            (r#","headers":false,"jetstream":true"#, Unsuitable::NoHeaders),
            (r#","headers":true,"jetstream":true,"tls_required":true"#, Unsuitable::Tls),
            (r#","headers":true,"jetstream":true,"ldm":true"#, Unsuitable::LameDuck),
        ] {
            assert_eq!(check(&info("2.15.1", more), &JetStreamDomain::default()), Err(wanted));
        }
    }

    #[test]
    fn a_leaf_node_needs_no_jetstream_of_its_own() {
        let leaf = info("2.15.1", r#","headers":true"#);
        assert_eq!(check(&leaf, &"hub".parse().unwrap()), Ok(()));
    }

    #[test]
    fn we_say_who_we_are() {
        let mut endpoint = NatsEndpoint {
            servers: vec!["127.0.0.1:4222".parse().unwrap()],
            user: "function".into(),
            password: "p\"w".into(),
            domain: JetStreamDomain::default(),
        };
        let json = |endpoint: &NatsEndpoint| -> serde_json::Value {
            let bytes = encode(&connect(endpoint));
            serde_json::from_slice(bytes.strip_prefix(b"CONNECT ").unwrap()).unwrap()
        };
        let sent = json(&endpoint);
        assert_eq!((&sent["user"], &sent["pass"]), (&"function".into(), &"p\"w".into()));
        assert_eq!((&sent["no_responders"], &sent["headers"]), (&true.into(), &true.into()));
        endpoint.user.clear();
        assert!(json(&endpoint)["user"].is_null() && json(&endpoint)["pass"].is_null());
    }
}
