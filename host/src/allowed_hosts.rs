//! The addresses that a component may connect to: parses `allowed_outbound_hosts` of the manifest as Spin does
//! (its `crates/outbound-networking-config/src/allowed_hosts.rs`).
//!
//! As on Spin, a raw socket connects only to an IP address. So an entry with a host name matches HTTP requests alone;
//! for one with the scheme `tcp` [`AllowedHosts::parse`] logs a warning.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use http::Uri;

use crate::variables::{Declaration, Template, VariableError, Variables};

/// Why an entry can't be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("allowed_outbound_hosts: '{entry}' {problem}")]
pub struct AllowedHostError {
    entry: String,
    problem: EntryProblem,
}

impl AllowedHostError {
    /// Whether Spin would start with such an entry.
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self.problem,
            EntryProblem::OtherScheme(_) | EntryProblem::Internal | EntryProblem::Undeclared(_)
        )
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum EntryProblem {
    #[error("can't be used: {0}")]
    Variable(#[from] VariableError),
    // Spin starts, but then refuses every connection.
    #[error("names the variable '{0}', which is not declared. Add it to [variables]")]
    Undeclared(String),
    #[error("with the default values is '{text}', which {problem}")]
    Default { text: String, problem: Box<Self> },
    #[error("has no scheme. Write it as tcp://ADDRESS:PORT")]
    NoScheme,
    #[error("has a scheme that is neither a word of letters nor *. Write tcp")]
    Scheme,
    #[error(
        "is for {0}; this host opens tcp sockets and sends HTTP requests. Remove it, or run the application with \
         `spin up`"
    )]
    OtherScheme(String),
    #[error("is for requests to the application itself, which this host does not send. Use `spin up`")]
    Internal,
    #[error("has no port. Write it as tcp://ADDRESS:PORT, or tcp://ADDRESS:* for all ports")]
    NoPort,
    #[error("has a port that is neither a number, FROM..TO nor *")]
    Port,
    #[error("has a path. Remove the path")]
    Path,
    #[error("has a host that is neither a name, an IP address, a range such as 10.0.0.0/8 nor *")]
    Host,
}

/// The parsed entries of a component.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedHosts(Vec<Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    scheme: SchemePattern,
    host: HostPattern,
    port: PortPattern,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SchemePattern {
    Any,
    Tcp,
    Http,
    Https,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum HostPattern {
    Any,
    Network {
        address: IpAddr,
        prefix: u8,
    },
    Name(String),
    /// All names under this one.
    NamesUnder(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum PortPattern {
    Any,
    One(u16),
    Range(Range<u16>),
}

impl AllowedHosts {
    /// Checks the entries before variables have values. An entry with variables must be valid with their
    /// defaults, if all of them have one.
    pub fn check(
        entries: &[String],
        declared: &BTreeMap<String, Declaration>,
    ) -> Result<Vec<Template>, AllowedHostError> {
        let defaults = Variables::defaults(declared);
        let check = |text: &String| {
            let template = Template::parse(text)?;
            if let Some(name) = template.undeclared(declared) {
                return Err(EntryProblem::Undeclared(name));
            }
            if template.is_literal() {
                Entry::parse(text)?;
            } else if let Ok(text) = defaults.expand(&template)
                && !is_left_out(&text)
            {
                Entry::parse(&text)
                    .map_err(|problem| EntryProblem::Default { text, problem: problem.into() })?;
            }
            Ok(template)
        };
        let check = |text| check(text).map_err(|problem| AllowedHostError { entry: text.clone(), problem });
        entries.iter().map(check).collect()
    }

    /// Parses the entries of a component with the values of `variables`.
    pub fn parse(entries: &[Template], variables: &Variables) -> Result<Self, AllowedHostError> {
        let mut read = Vec::with_capacity(entries.len());
        for template in entries {
            let failed = |entry: &str, problem| AllowedHostError { entry: entry.to_owned(), problem };
            let text =
                variables.expand(template).map_err(|error| failed(&template.to_string(), error.into()))?;
            if !template.is_literal() && is_left_out(&text) {
                continue;
            }
            let entry = Entry::parse(&text).map_err(|problem| failed(&text, problem))?;
            if entry.scheme == SchemePattern::Tcp && !entry.host.is_address() {
                tracing::warn!(
                    "allowed_outbound_hosts: '{text}' names a host, but sockets connect to IP addresses, so it \
                     never matches. Write the IP address"
                );
            }
            read.push(entry);
        }
        Ok(Self(read))
    }

    /// Whether a TCP connection to this address is allowed.
    pub fn allows(&self, address: SocketAddr) -> bool {
        let schemes = [SchemePattern::Any, SchemePattern::Tcp];
        let mut of_tcp = self.0.iter().filter(|entry| schemes.contains(&entry.scheme));
        of_tcp.any(|entry| entry.host.contains(address.ip()) && entry.port.contains(address.port()))
    }

    /// Whether an HTTP request to this address is allowed.
    pub fn allows_request(&self, uri: &Uri) -> bool {
        let (scheme, default_port) = match uri.scheme_str() {
            Some("http") => (SchemePattern::Http, 80),
            Some("https") => (SchemePattern::Https, 443),
            _ => return false,
        };
        let (Some(host), port) = (uri.host(), uri.port_u16().unwrap_or(default_port)) else { return false };
        let host = host.trim_matches(['[', ']']);
        let schemes = [SchemePattern::Any, scheme];
        let mut of_scheme = self.0.iter().filter(|entry| schemes.contains(&entry.scheme));
        of_scheme.any(|entry| entry.host.contains_host(host) && entry.port.contains(port))
    }
}

/// Whether an entry is an optional endpoint whose variable is empty; Spin ignores those.
fn is_left_out(text: &str) -> bool {
    matches!(text, "" | "http://" | "https://")
}

impl Entry {
    fn parse(text: &str) -> Result<Self, EntryProblem> {
        let (scheme, rest) = text.trim().split_once("://").ok_or(EntryProblem::NoScheme)?;
        let (host, port) = match rest.rsplit_once(':') {
            None => (rest, ""),
            // The whole is an address without a port: `[::1]`, `ff00::/8`.
            Some((_, tail)) if !tail.is_empty() && HostPattern::parse(rest).is_ok() => (rest, ""),
            Some((host, tail)) => match tail.split_once('/') {
                None => (host, tail),
                Some((port, "")) => (host, port),
                Some(_) => return Err(EntryProblem::Path),
            },
        };
        let port = PortPattern::parse(port, scheme)?;
        if scheme != "*" && scheme.chars().any(|c| !c.is_alphabetic()) {
            return Err(EntryProblem::Scheme);
        }
        let host = HostPattern::parse(host)?;
        let scheme = match scheme {
            "*" => SchemePattern::Any,
            "tcp" => SchemePattern::Tcp,
            "http" => SchemePattern::Http,
            "https" => SchemePattern::Https,
            other => return Err(EntryProblem::OtherScheme(other.to_owned())),
        };
        if matches!(scheme, SchemePattern::Http | SchemePattern::Https) && host.is_internal() {
            return Err(EntryProblem::Internal);
        }
        Ok(Self { scheme, host, port })
    }
}

impl HostPattern {
    fn parse(text: &str) -> Result<Self, EntryProblem> {
        let text = text.trim();
        if text == "*" {
            return Ok(Self::Any);
        }
        if let Some(network) = parse_network(text) {
            return Ok(network);
        }
        let text = text.strip_suffix('/').unwrap_or(text);
        if text.contains('/') {
            return Err(EntryProblem::Path);
        }
        let (name, is_wildcard) = match text.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (text, false),
        };
        // Spin reserves braces for lists.
        if name.contains('*') || text.starts_with('{') {
            return Err(EntryProblem::Host);
        }
        match (url::Host::parse(name).map_err(|_| EntryProblem::Host)?, is_wildcard) {
            (url::Host::Domain(name), false) => Ok(Self::Name(name)),
            (url::Host::Domain(name), true) => Ok(Self::NamesUnder(name)),
            (_, true) => Err(EntryProblem::Host),
            (url::Host::Ipv4(address), false) => Ok(Self::Network { address: address.into(), prefix: 32 }),
            (url::Host::Ipv6(address), false) => Ok(Self::Network { address: address.into(), prefix: 128 }),
        }
    }

    /// Whether Spin serves it without the network.
    fn is_internal(&self) -> bool {
        match self {
            Self::Any | Self::Network { .. } => false,
            Self::Name(name) => name == "self" || name.ends_with(".spin.internal"),
            Self::NamesUnder(name) => name == "spin.internal",
        }
    }

    /// Whether it can match the address of a socket.
    fn is_address(&self) -> bool {
        matches!(self, Self::Any | Self::Network { .. })
    }

    /// Whether a request to this host, which is a name or an address, is meant.
    fn contains_host(&self, candidate: &str) -> bool {
        match (self, candidate.parse()) {
            (_, Ok(address)) => self.contains(address),
            (Self::Any, Err(_)) => true,
            (Self::Network { .. }, Err(_)) => false,
            (Self::Name(name), Err(_)) => name.eq_ignore_ascii_case(candidate),
            (Self::NamesUnder(name), Err(_)) => {
                let candidate = candidate.to_ascii_lowercase();
                candidate.strip_suffix(name).is_some_and(|rest| rest.ends_with('.') && rest.len() > 1)
            }
        }
    }

    fn contains(&self, candidate: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Name(_) | Self::NamesUnder(_) => false,
            Self::Network { address, prefix } => match (address, candidate) {
                (IpAddr::V4(network), IpAddr::V4(candidate)) => {
                    let differing = network.to_bits() ^ candidate.to_bits();
                    differing.leading_zeros() >= u32::from(*prefix)
                }
                (IpAddr::V6(network), IpAddr::V6(candidate)) => {
                    let differing = network.to_bits() ^ candidate.to_bits();
                    differing.leading_zeros() >= u32::from(*prefix)
                }
                _ => false,
            },
        }
    }
}

/// Parses `ADDRESS/PREFIX`.
fn parse_network(text: &str) -> Option<HostPattern> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.parse().ok().filter(|prefix| *prefix <= longest)?;
    Some(HostPattern::Network { address, prefix })
}

impl PortPattern {
    fn parse(text: &str, scheme: &str) -> Result<Self, EntryProblem> {
        if text.is_empty() {
            return well_known_port(scheme).map(Self::One).ok_or(EntryProblem::NoPort);
        }
        if text == "*" {
            return Ok(Self::Any);
        }
        let number = |text: &str| text.parse().map_err(|_| EntryProblem::Port);
        match text.split_once("..") {
            Some((from, to)) => Ok(Self::Range(number(from)?..number(to)?)),
            None => Ok(Self::One(number(text)?)),
        }
    }

    fn contains(&self, candidate: u16) -> bool {
        match self {
            Self::Any => true,
            Self::One(port) => *port == candidate,
            Self::Range(range) => range.contains(&candidate),
        }
    }
}

/// The default port of a scheme.
fn well_known_port(scheme: &str) -> Option<u16> {
    match scheme {
        "postgres" => Some(5432),
        "mysql" => Some(3306),
        "redis" => Some(6379),
        "mqtt" => Some(1883),
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

#[cfg(test)]
#[path = "allowed_hosts_tests.rs"]
mod tests;
