//! Addresses of NATS servers, each with the way to it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::Uri;

/// Where an edge listens if its address has no path.
const EDGE_PATH: &str = "/nats";

/// The way to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// A TCP connection in clear text.
    Nats,
    /// A TCP connection with TLS inside.
    Tls,
    /// A request and its response through an edge (`emberline edge`), in clear text.
    Http,
    /// The same with TLS, which is the host's.
    Https,
}

impl Scheme {
    const ALL: [Self; 4] = [Self::Nats, Self::Tls, Self::Http, Self::Https];

    fn name(self) -> &'static str {
        match self {
            Self::Nats => "nats",
            Self::Tls => "tls",
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Nats | Self::Tls => 4222,
            Self::Http => 80,
            Self::Https => 443,
        }
    }

    /// Whether an edge is between.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Https)
    }
}

/// Where a server is, and the way to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerUrl {
    /// The way.
    pub scheme: Scheme,
    /// A name or an IP address, without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
    /// The path at an edge; empty without one.
    pub path: String,
}

/// A list of addresses that can't be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages are the documentation
pub enum InvalidServers {
    #[error(
        "'{0}' is not the address of a NATS server. Write it like nats://127.0.0.1:4222, tls://nats.example.com:4222 \
         or https://edge.example.com"
    )]
    Malformed(String),
    #[error("'{0}' has a user or a password in it. Put them into nats_user and nats_password")]
    Secret(String),
    #[error("'{0}' has a path, which only the address of an edge (https://) may have. Remove it")]
    Path(String),
    #[error("no server is named: each address has port 0. Give nats-server's port")]
    None,
}

impl ServerUrl {
    /// Parses addresses that are separated by commas. One with port 0 stands for no server.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, InvalidServers> {
        let mut servers = Vec::new();
        for address in text.split(',') {
            servers.extend(Self::parse(address.trim())?);
        }
        if servers.is_empty() { Err(InvalidServers::None) } else { Ok(servers) }
    }

    fn parse(text: &str) -> Result<Option<Self>, InvalidServers> {
        let malformed = || InvalidServers::Malformed(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| malformed())?;
        let scheme = uri.scheme_str().and_then(|scheme| Scheme::ALL.into_iter().find(|s| s.name() == scheme));
        let (Some(scheme), Some(authority)) = (scheme, uri.authority()) else { return Err(malformed()) };
        if authority.as_str().contains('@') {
            return Err(InvalidServers::Secret(without_secret(text)));
        }
        let host = authority.host();
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            // Without a zone, which has no place in an allow list of hosts.
            Some(v6) => v6.parse::<Ipv6Addr>().map_err(|_| malformed())?.to_string(),
            None => host.to_owned(),
        };
        let port = match authority.as_str().rsplit_once(':') {
            Some((_, port)) if !port.ends_with(']') => port.parse().map_err(|_| malformed())?,
            _ => scheme.default_port(),
        };
        if host.is_empty() || uri.query().is_some() {
            return Err(malformed());
        }
        let path = match (scheme.is_http(), uri.path()) {
            (true, "" | "/") => EDGE_PATH.to_owned(),
            (true, path) => path.to_owned(),
            (false, "" | "/") => String::new(),
            (false, _) => return Err(InvalidServers::Path(text.to_owned())),
        };
        Ok(Some(Self { scheme, host, port, path }).filter(|server| server.port != 0))
    }

    /// A server at an address, in clear text.
    pub fn plain(address: SocketAddr) -> Self {
        Self {
            scheme: Scheme::Nats,
            host: address.ip().to_string(),
            port: address.port(),
            path: String::new(),
        }
    }

    /// The host, if it is not a name.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Host and port, an IPv6 address in brackets.
    pub fn authority(&self) -> String {
        match self.ip() {
            Some(ip) => SocketAddr::new(ip, self.port).to_string(),
            None => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme.name(), self.authority(), self.path)
    }
}

/// An address without what stands before its `@`.
fn without_secret(text: &str) -> String {
    match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://…@{rest}"),
        _ => "…".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<String> {
        ServerUrl::parse_list(text).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_are_read_with_the_way_to_them() {
        assert_eq!(shown("nats://127.0.0.1:4222"), ["nats://127.0.0.1:4222"]);
        assert_eq!(
            shown(" nats://[::1]:4222 , tls://nats.example.com "),
            ["nats://[::1]:4222", "tls://nats.example.com:4222"]
        );
        assert_eq!(
            shown("https://edge.example.com,http://10.0.0.7:8080/bus/"),
            ["https://edge.example.com:443/nats", "http://10.0.0.7:8080/bus/"]
        );
        assert_eq!(shown("https://[::1]"), ["https://[::1]:443/nats"]);
    }

    #[test]
    fn port_0_is_no_server() {
        assert_eq!(
            shown("nats://127.0.0.1:0,nats://10.0.0.3:4223,tls://127.0.0.1:0/"),
            ["nats://10.0.0.3:4223"]
        );
        assert_eq!(ServerUrl::parse_list("nats://127.0.0.1:0"), Err(InvalidServers::None));
    }

    #[test]
    fn what_is_no_address_is_refused_with_its_text() {
        for text in [
            "",
            "127.0.0.1:4222",
            "localhost",
            "ws://127.0.0.1",
            "nats://",
            "nats://:4222",
            "nats://127.0.0.1:65536",
            "nats://127.0.0.1:-1",
            "nats://127.0.0.1:",
            "nats://[::1",
            "nats://[127.0.0.1]:4222",
            "nats://[fe80::1%2]:4222",
            "nats://::1",
            "https://edge.example.com?a=b",
        ] {
            assert_eq!(
                ServerUrl::parse_list(text),
                Err(InvalidServers::Malformed(text.to_owned())),
                "{text}"
            );
        }
        let path = "tls://a:4222/nats";
        assert_eq!(ServerUrl::parse_list(path), Err(InvalidServers::Path(path.to_owned())));
    }

    #[test]
    fn a_secret_in_an_address_is_refused_and_not_repeated() {
        let error = ServerUrl::parse_list("nats://me:secret@10.0.0.1:4222").unwrap_err();
        assert_eq!(error, InvalidServers::Secret("nats://…@10.0.0.1:4222".to_owned()));
    }
}
