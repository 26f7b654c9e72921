//! The beginning of a connection: whether Emberline can run on the server, and `CONNECT` with our user.

use emberline_protocol::jetstream_domain::JetStreamDomain;
use emberline_protocol::subject::{MIN_NATS_VERSION, is_supported_nats};
use watermelon_proto::proto::ClientOp;
use watermelon_proto::{Connect, NonStandardConnect, ServerInfo};

use super::address::{Scheme, ServerUrl};
use super::credentials::{Credentials, InvalidCredentials};
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
    #[error(
        "the server demands TLS; write its address with tls:// in nats_url (in spin.toml: nats_scheme = \"tls\"). An \
         edge needs a listener without"
    )]
    Tls,
    #[error(
        "the server offers no TLS, though its address has tls://; give it a block tls {{}}, or write nats://"
    )]
    NoTls,
    #[error("the server is shutting down")]
    LameDuck,
}

/// Whether Emberline can run on the server that sent `info`. A server of another domain than that of the streams, such
/// as a leaf node, needs no JetStream of its own.
pub fn check(info: &ServerInfo, domain: &JetStreamDomain, scheme: Scheme) -> Result<(), Unsuitable> {
    if !is_supported_nats(&info.version) {
        return Err(Unsuitable::TooOld { version: info.version.clone() });
    }
    match info {
        _ if !info.supports_jetstream && !domain.is_named() => Err(Unsuitable::NoJetStream),
        _ if !info.supports_headers => Err(Unsuitable::NoHeaders),
        _ if info.tls_required && scheme != Scheme::Tls => Err(Unsuitable::Tls),
        _ if scheme == Scheme::Tls && !(info.tls_required || info.tls_available) => Err(Unsuitable::NoTls),
        _ if info.lame_duck_mode => Err(Unsuitable::LameDuck),
        _ => Ok(()),
    }
}

/// What may be wrong where a server does not begin: `what` it does instead, and the setting to look at.
pub fn no_beginning(what: &str, endpoint: &NatsEndpoint, server: &ServerUrl) -> String {
    let hint = match (server.scheme, endpoint.tls.handshake_first) {
        (Scheme::Tls, false) => "; if it is set to `handshake_first`, set nats_tls_handshake_first to true",
        (Scheme::Tls, true) => {
            "; if it is not set to `handshake_first`, set nats_tls_handshake_first to false"
        }
        (Scheme::Nats, _) => "; if it is set to TLS with `handshake_first`, write its address with tls://",
        (Scheme::Http | Scheme::Https, _) => "",
    };
    format!("{what}{hint}")
}

/// What we answer to `INFO`. `nonce` is what the server wants signed.
pub fn connect(credentials: &Credentials, nonce: Option<&str>) -> Result<ClientOp, InvalidCredentials> {
    let mut connect = Connect {
        verbose: false,
        pedantic: false,
        require_tls: false,
        auth_token: None,
        username: None,
        password: None,
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
    credentials.apply(&mut connect, nonce)?;
    Ok(ClientOp::Connect { connect: Box::new(connect) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::codec::{Decoder, encode};
    use crate::nats::credentials::Proof;
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
            assert_eq!(
                check(&info(version, GOOD), &JetStreamDomain::default(), Scheme::Nats),
                Ok(()),
                "{version}"
            );
        }
        for version in ["2.11.9", "1.99.0", "", "two"] {
            assert_eq!(
                check(&info(version, GOOD), &JetStreamDomain::default(), Scheme::Nats),
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
            assert_eq!(check(&info("2.15.1", more), &JetStreamDomain::default(), Scheme::Nats), Err(wanted));
        }
    }

    #[test]
    fn a_leaf_node_needs_no_jetstream_of_its_own() {
        let leaf = info("2.15.1", r#","headers":true"#);
        assert_eq!(check(&leaf, &"hub".parse().unwrap(), Scheme::Nats), Ok(()));
    }

    #[test]
    fn clear_text_and_tls_are_not_confused() {
        let offers =
            |more| check(&info("2.15.1", &format!("{GOOD}{more}")), &JetStreamDomain::default(), Scheme::Tls);
        assert_eq!(offers(r#","tls_required":true"#), Ok(()));
        assert_eq!(offers(r#","tls_available":true"#), Ok(()));
        assert_eq!(offers(""), Err(Unsuitable::NoTls));
    }

    #[test]
    fn we_say_who_we_are() {
        let json = |user: &str, proof| -> serde_json::Value {
            let credentials = Credentials { user: user.to_owned(), proof };
            let bytes = encode(&connect(&credentials, Some("nonce")).unwrap());
            serde_json::from_slice(bytes.strip_prefix(b"CONNECT ").unwrap()).unwrap()
        };
        let sent = json("function", Proof::Password("p\"w".into()));
        assert_eq!((&sent["user"], &sent["pass"]), (&"function".into(), &"p\"w".into()));
        assert_eq!((&sent["no_responders"], &sent["headers"]), (&true.into(), &true.into()));
        let sent = json("", Proof::None);
        assert!(sent["user"].is_null() && sent["pass"].is_null());
        let sent = json("function", Proof::Token("t".into()));
        assert!(sent["auth_token"] == "t" && sent["user"].is_null());
        let seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY".to_owned();
        let sent = json("function", Proof::Nkey(seed.clone()));
        assert!(
            sent["nkey"].as_str().unwrap().starts_with('U')
                && sent["sig"].is_string()
                && sent["user"].is_null()
        );
        let sent = json("function", Proof::Jwt { jwt: "e.y.J".into(), seed });
        assert!(sent["jwt"] == "e.y.J" && sent["sig"].is_string() && sent["nkey"].is_null());
    }
}
