//! The addresses that the stack listens on: parses them, and checks that they are free and different.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::str::FromStr;

/// An address to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ListenAddress(SocketAddr);

/// A text that is not an address to listen on.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not an address to listen on, such as 127.0.0.1:3000")]
pub(crate) struct InvalidListenAddress(String);

impl FromStr for ListenAddress {
    type Err = InvalidListenAddress;

    /// Parses `ADDRESS:PORT`. A host name is looked up, and its IPv4 address preferred.
    fn from_str(text: &str) -> Result<Self, InvalidListenAddress> {
        let found: Vec<SocketAddr> =
            text.to_socket_addrs().map_err(|_| InvalidListenAddress(text.to_owned()))?.collect();
        let address = found.iter().find(|a| a.is_ipv4()).or(found.first());
        address.copied().map(Self).ok_or_else(|| InvalidListenAddress(text.to_owned()))
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An address that a part wants to listen on, and the environment variable that sets it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PortClaim {
    pub(crate) listen: ListenAddress,
    pub(crate) part: &'static str,
    pub(crate) variable: &'static str,
}

/// Why a part can't listen on its address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    #[error(
        "port {} is taken, and the {part} wants {listen}. Stop what listens there, or set {variable} to another address",
        listen.0.port()
    )]
    Taken { listen: ListenAddress, part: &'static str, variable: &'static str },
    #[error("the {part} can't listen on {listen}: {source}. Set {variable} to another address")]
    Unusable { listen: ListenAddress, part: &'static str, variable: &'static str, source: io::Error },
}

/// Checks that every address is free. Port 0 becomes a port that the system chooses.
pub(crate) fn check<const N: usize>(claims: [PortClaim; N]) -> Result<[SocketAddr; N], PortError> {
    let mut addresses = claims.map(|claim| claim.listen.0);
    // All listeners stay open until the last is checked, so that no two get the same port.
    let mut held = Vec::new();
    for (claim, address) in claims.into_iter().zip(&mut addresses) {
        let PortClaim { listen, part, variable } = claim;
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

/// The address at which this machine reaches a listener: loopback for an unspecified one.
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

    fn claim(listen: &str) -> PortClaim {
        PortClaim { listen: listen.parse().unwrap(), part: "function", variable: "EMBERLINE_LISTEN" }
    }

    #[test]
    fn a_taken_port_is_reported_with_the_part_and_the_variable_to_set() {
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
        assert_eq!("localhost:80".parse::<ListenAddress>().unwrap().to_string(), "127.0.0.1:80");
        for bad in ["", "127.0.0.1", "3000", "127.0.0.1:99999", ":"] {
            assert!(bad.parse::<ListenAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_unspecified_address_is_reached_by_loopback() {
        assert_eq!(reachable("0.0.0.0:1".parse().unwrap()), "127.0.0.1:1".parse().unwrap());
        assert_eq!(reachable("[::]:1".parse().unwrap()), "[::1]:1".parse().unwrap());
        assert_eq!(reachable("10.0.0.1:1".parse().unwrap()), "10.0.0.1:1".parse().unwrap());
    }
}
