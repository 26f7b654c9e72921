//! Which addresses a component may connect to: the manifest's `allowed_outbound_hosts`.
//!
//! As on Spin, a raw socket reaches an IP address only, so an entry that names a host is
//! accepted and never matches one; [`AllowedHosts::parse`] says so in the log.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use crate::variables::{Template, VariableError, Variables};

/// An entry that can't be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("allowed_outbound_hosts: '{entry}' {problem}")]
pub struct AllowedHostError {
    entry: String,
    problem: Problem,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("can't be used: {0}")]
    Variable(VariableError),
    #[error("has no scheme. Write it as tcp://ADDRESS:PORT")]
    NoScheme,
    #[error(
        "is for {0}; this host opens only tcp sockets. Take it out, or run the application with `spin up`"
    )]
    Scheme(String),
    #[error("has no port. Write it as tcp://ADDRESS:PORT, or tcp://ADDRESS:* for all ports")]
    NoPort,
    #[error("has a port that is neither a number, FROM..TO nor *")]
    Port,
    #[error("has a path. Take it out")]
    Path,
    #[error("has a host that is neither a name, an IP address, a range such as 10.0.0.0/8 nor *")]
    Host,
}

/// The entries of a component.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedHosts(Vec<Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    host: Host,
    port: Port,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Any,
    Network { address: IpAddr, prefix: u8 },
    Name,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Port {
    Any,
    One(u16),
    Range(Range<u16>),
}

impl AllowedHosts {
    /// Reads a component's entries, with variables put in.
    pub fn parse(entries: &[Template], variables: &Variables) -> Result<Self, AllowedHostError> {
        let mut read = Vec::with_capacity(entries.len());
        for template in entries {
            let text = variables.expand(template).map_err(|error| AllowedHostError {
                entry: template.to_string(),
                problem: Problem::Variable(error),
            })?;
            // An optional endpoint whose variable is empty; Spin passes over these.
            if !template.is_literal() && matches!(text.as_str(), "" | "http://" | "https://") {
                continue;
            }
            let entry =
                Entry::parse(&text).map_err(|problem| AllowedHostError { entry: text.clone(), problem })?;
            if entry.host == Host::Name {
                tracing::warn!(
                    "allowed_outbound_hosts: '{text}' names a host, and a socket connects to an IP address: \
                     it will never match. Write the IP address"
                );
            }
            read.push(entry);
        }
        Ok(Self(read))
    }

    /// True if a TCP connection to this address is allowed.
    pub fn allows(&self, address: SocketAddr) -> bool {
        self.0.iter().any(|entry| entry.host.contains(address.ip()) && entry.port.contains(address.port()))
    }
}

impl Entry {
    fn parse(text: &str) -> Result<Self, Problem> {
        let (scheme, rest) = text.trim().split_once("://").ok_or(Problem::NoScheme)?;
        if !matches!(scheme, "tcp" | "*") {
            return Err(Problem::Scheme(scheme.to_owned()));
        }
        // What is an address as a whole has no port: `::1`.
        if parse_network(rest).is_some() {
            return Err(Problem::NoPort);
        }
        let (host, port) = rest.rsplit_once(':').ok_or(Problem::NoPort)?;
        let port = match port.split_once('/') {
            Some((port, "")) => port,
            Some(_) => return Err(Problem::Path),
            None => port,
        };
        Ok(Self { port: Port::parse(port)?, host: Host::parse(host.trim())? })
    }
}

impl Host {
    fn parse(text: &str) -> Result<Self, Problem> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if let Some((address, prefix)) = parse_network(text) {
            return Ok(Self::Network { address, prefix });
        }
        if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let address = inner.parse().map_err(|_| Problem::Host)?;
            return Ok(Self::Network { address: IpAddr::V6(address), prefix: 128 });
        }
        let name = text.strip_prefix("*.").unwrap_or(text);
        let label = |label: &str| {
            !label.is_empty() && label.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_'))
        };
        if name.split('.').all(label) { Ok(Self::Name) } else { Err(Problem::Host) }
    }

    fn contains(&self, candidate: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Name => false,
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

/// `ADDRESS` or `ADDRESS/PREFIX`.
fn parse_network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        Some(prefix) => prefix.parse().ok().filter(|prefix| *prefix <= longest)?,
        None => longest,
    };
    Some((address, prefix))
}

impl Port {
    fn parse(text: &str) -> Result<Self, Problem> {
        if text.is_empty() {
            return Err(Problem::NoPort);
        }
        if text == "*" {
            return Ok(Self::Any);
        }
        let number = |text: &str| text.parse().map_err(|_| Problem::Port);
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

#[cfg(test)]
#[path = "allowed_hosts_tests.rs"]
mod tests;
