//! The addresses that the stack listens on: read, checked and kept apart before anything starts.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::str::FromStr;

/// Where to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listen(SocketAddr);

/// Text that is no address to listen on.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not an address to listen on, such as 127.0.0.1:3000")]
pub(crate) struct InvalidListen(String);

impl FromStr for Listen {
    type Err = InvalidListen;

    /// Reads `ADDRESS:PORT`; a host name is looked up, IPv4 first.
    fn from_str(text: &str) -> Result<Self, InvalidListen> {
        let found: Vec<SocketAddr> =
            text.to_socket_addrs().map_err(|_| InvalidListen(text.to_owned()))?.collect();
        let address = found.iter().find(|a| a.is_ipv4()).or(found.first());
        address.copied().map(Self).ok_or_else(|| InvalidListen(text.to_owned()))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who wants to listen, and which variable says where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim {
    pub(crate) listen: Listen,
    pub(crate) part: &'static str,
    pub(crate) variable: &'static str,
}

/// Nobody can listen there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    #[error(
        "port {} is taken, and the {part} wants {listen}. Stop what listens there, or set {variable} to another address",
        listen.0.port()
    )]
    Taken { listen: Listen, part: &'static str, variable: &'static str },
    #[error("the {part} can't listen on {listen}: {source}. Set {variable} to another address")]
    Unusable { listen: Listen, part: &'static str, variable: &'static str, source: io::Error },
}

/// Checks that every address is free; a port of 0 becomes one that the system chooses.
pub(crate) fn check<const N: usize>(claims: [Claim; N]) -> Result<[SocketAddr; N], PortError> {
    let mut addresses = claims.map(|claim| claim.listen.0);
    // Held together until all are checked, so that no two get the same.
    let mut held = Vec::new();
    for (claim, address) in claims.into_iter().zip(&mut addresses) {
        let Claim { listen, part, variable } = claim;
        let listener = TcpListener::bind(listen.0).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => PortError::Taken { listen, part, variable },
            _ => PortError::Unusable { listen, part, variable, source },
        })?;
        *address =
            listener.local_addr().map_err(|source| PortError::Unusable { listen, part, variable, source })?;
        held.push(listener);
    }
    Ok(addresses)
}

/// The address at which this machine reaches a listener.
pub(crate) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(listen: &str) -> Claim {
        Claim { listen: listen.parse().unwrap(), part: "function", variable: "EMBERLINE_LISTEN" }
    }

    #[test]
    fn a_taken_port_is_named_with_who_wants_it_and_what_to_set() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let holder = TcpListener::bind(taken).unwrap();
        let error = check([claim(&taken.to_string())]).unwrap_err().to_string();
        assert!(error.contains(&format!("port {} is taken", taken.port())), "{error}");
        assert!(error.contains("function") && error.contains("EMBERLINE_LISTEN"), "{error}");
        drop(holder);
        assert_eq!(check([claim(&taken.to_string())]).unwrap(), [taken]);
    }

    #[test]
    fn the_system_chooses_different_ports() {
        let [a, b] = check([claim("127.0.0.1:0"), claim("127.0.0.1:0")]).unwrap();
        assert!(a.port() != 0 && b.port() != 0 && a != b);
    }

    #[test]
    fn an_address_of_another_machine_is_unusable() {
        // 192.0.2.0/24 is for documentation (RFC 5737): no machine has it.
        assert!(matches!(check([claim("192.0.2.1:0")]), Err(PortError::Unusable { .. })));
    }

    #[test]
    fn names_are_looked_up_and_nonsense_is_refused() {
        assert_eq!("localhost:80".parse::<Listen>().unwrap().to_string(), "127.0.0.1:80");
        for bad in ["", "127.0.0.1", "3000", "127.0.0.1:99999", ":"] {
            assert!(bad.parse::<Listen>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_unspecified_address_is_reached_by_loopback() {
        assert_eq!(reachable("0.0.0.0:1".parse().unwrap()), "127.0.0.1:1".parse().unwrap());
        assert_eq!(reachable("[::]:1".parse().unwrap()), "[::1]:1".parse().unwrap());
        assert_eq!(reachable("10.0.0.1:1".parse().unwrap()), "10.0.0.1:1".parse().unwrap());
    }
}
