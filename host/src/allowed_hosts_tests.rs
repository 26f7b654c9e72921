use std::collections::BTreeMap;
use std::env::VarError;

use proptest::prelude::*;

use super::*;

fn parse(entry: &str) -> Result<AllowedHosts, AllowedHostError> {
    AllowedHosts::parse(&[Template::parse(entry).unwrap()], &Variables::default())
}

fn allows(entry: &str, address: &str) -> bool {
    parse(entry).unwrap().allows(address.parse().unwrap())
}

fn with_value(entry: &str, value: &str) -> Result<AllowedHosts, AllowedHostError> {
    let given = BTreeMap::from([("server".to_owned(), value.to_owned())]);
    let declared = BTreeMap::from([("server".to_owned(), Declaration::default())]);
    let variables = Variables::resolve(&declared, &given, |_| Err(VarError::NotPresent)).unwrap();
    AllowedHosts::parse(&[Template::parse(entry).unwrap()], &variables)
}

#[test]
fn an_address_and_a_port_allow_just_that() {
    assert!(allows("tcp://127.0.0.1:4222", "127.0.0.1:4222"));
    assert!(allows("tcp://127.0.0.1:4222/", "127.0.0.1:4222"));
    assert!(!allows("tcp://127.0.0.1:4222", "127.0.0.1:4223"));
    assert!(!allows("tcp://127.0.0.1:4222", "127.0.0.2:4222"));
    assert!(allows("tcp://[::1]:4222", "[::1]:4222"));
    assert!(!allows("tcp://[::1]:4222", "127.0.0.1:4222"));
}

#[test]
fn a_variable_may_hold_a_whole_address() {
    let server = |value| with_value("tcp://{{ server }}", value);
    let hosts = server("10.1.2.3:4300").unwrap();
    assert!(hosts.allows("10.1.2.3:4300".parse().unwrap()));
    assert!(!hosts.allows("10.1.2.3:4222".parse().unwrap()));
    assert!(server("[fd00::1]:4300").unwrap().allows("[fd00::1]:4300".parse().unwrap()));
    // Port 0 stands for an unused server variable.
    assert!(!server("127.0.0.1:0").unwrap().allows("127.0.0.1:4222".parse().unwrap()));
    for bad in ["", "10.1.2.3", ":4300", "10.1.2.3:4300,10.1.2.4:4300"] {
        assert!(server(bad).is_err(), "{bad}");
    }
}

#[test]
fn networks_wildcards_and_port_ranges() {
    assert!(allows("tcp://10.0.0.0/8:4222", "10.200.3.4:4222"));
    assert!(!allows("tcp://10.0.0.0/8:4222", "11.0.0.1:4222"));
    assert!(allows("tcp://10.9.9.9/8:4222", "10.1.1.1:4222"));
    assert!(allows("tcp://0.0.0.0/0:4222", "203.0.113.5:4222"));
    assert!(allows("tcp://fd00::/8:4222", "[fd12::1]:4222"));
    assert!(allows("tcp://127.1:4222", "127.0.0.1:4222"));
    assert!(allows("tcp://*:4222", "[2001:db8::1]:4222"));
    assert!(allows("*://*:*", "198.51.100.1:1"));
    assert!(allows("tcp://127.0.0.1:*", "127.0.0.1:65535"));
    assert!(allows("tcp://127.0.0.1:4000..5000", "127.0.0.1:4000"));
    assert!(!allows("tcp://127.0.0.1:4000..5000", "127.0.0.1:5000"));
}

#[test]
fn a_name_is_accepted_and_never_matches() {
    for name in ["localhost", "nats.example.com", "*.example.com", "self"] {
        assert!(!allows(&format!("tcp://{name}:4222"), "127.0.0.1:4222"), "{name}");
    }
}

#[test]
fn requests_are_allowed_by_scheme_name_and_port() {
    let allows = |entry: &str, uri: &str| parse(entry).unwrap().allows_request(&uri.parse().unwrap());
    assert!(allows("https://edge.example.com", "https://edge.example.com/nats"));
    assert!(allows("https://edge.example.com", "https://EDGE.example.com:443/"));
    assert!(!allows("https://edge.example.com", "https://edge.example.com:8443/"));
    assert!(!allows("https://edge.example.com", "http://edge.example.com:443/"));
    assert!(!allows("https://edge.example.com", "https://example.com/"));
    assert!(allows("https://*.example.com", "https://edge.example.com/"));
    assert!(!allows("https://*.example.com", "https://example.com/"));
    assert!(!allows("https://*.example.com", "https://edge-example.com/"));
    assert!(allows("*://10.0.0.7:8080", "http://10.0.0.7:8080/nats"));
    assert!(allows("http://[::1]:8080", "http://[::1]:8080/nats"));
    assert!(!allows("tcp://10.0.0.7:8080", "http://10.0.0.7:8080/nats"));
    assert!(!parse("http://10.0.0.7:8080").unwrap().allows("10.0.0.7:8080".parse().unwrap()));
}

#[test]
fn nothing_is_allowed_by_default() {
    assert!(!AllowedHosts::default().allows("127.0.0.1:4222".parse().unwrap()));
}

// Which entries are refused is tested in tests/manifests; this tests the messages.
#[test]
fn an_error_says_what_to_write() {
    for (entry, says) in [
        ("127.0.0.1:4222", "no scheme"),
        ("tcp+tls://127.0.0.1:80", "Write tcp"),
        ("redis://127.0.0.1:80", "tcp sockets and sends HTTP"),
        ("tcp://127.0.0.1", "tcp://ADDRESS:PORT"),
        ("tcp://[::1]", "has no port"),
        ("tcp://127.0.0.1:http", "neither a number"),
        ("tcp://127.0.0.1:4222/path", "has a path"),
        ("tcp://a*b:4222", "has a host"),
    ] {
        let error = parse(entry).expect_err(entry).to_string();
        assert!(error.contains(entry) && error.contains(says), "{entry}: {error}");
    }
}

#[test]
fn defaults_are_checked_before_there_are_values() {
    let check = |entry: &str, default: Option<&str>| {
        let declared = Declaration { default: default.map(str::to_owned) };
        AllowedHosts::check(&[entry.to_owned()], &BTreeMap::from([("server".to_owned(), declared)]))
    };
    assert!(check("tcp://{{ server }}", Some("127.0.0.1:1")).is_ok());
    assert!(check("tcp://{{ server }}", None).is_ok());
    let error = check("tcp://{{ server }}", Some("nowhere")).unwrap_err().to_string();
    assert!(error.contains("default values is 'tcp://nowhere', which has no port"), "{error}");
    let error = check("tcp://{{ sever }}:1", None).unwrap_err();
    assert!(error.is_unsupported() && error.to_string().contains("'sever'"), "{error}");
}

#[test]
fn an_optional_endpoint_that_is_empty_is_ignored() {
    assert_eq!(with_value("{{ server }}", ""), Ok(AllowedHosts::default()));
    assert!(with_value("tcp://{{ server }}", "").is_err());
}

proptest! {
    #[test]
    fn an_entry_allows_its_own_address_and_no_other_port(ip: IpAddr, port: u16, other: u16) {
        let address = SocketAddr::new(ip, port);
        let hosts = parse(&format!("tcp://{address}")).unwrap();
        prop_assert!(hosts.allows(address));
        prop_assert_eq!(hosts.allows(SocketAddr::new(address.ip(), other)), other == address.port());
    }

    #[test]
    fn a_network_holds_what_shares_its_prefix(network: u32, candidate: u32, prefix in 0u8..=32) {
        let entry = format!("tcp://{}/{prefix}:1", std::net::Ipv4Addr::from_bits(network));
        let inside = prefix == 0 || network >> (32 - prefix) == candidate >> (32 - prefix);
        let address = SocketAddr::new(IpAddr::V4(candidate.into()), 1);
        prop_assert_eq!(parse(&entry).unwrap().allows(address), inside);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in r"(tcp://)?[\PC:/\[\].*0-9]*") {
        _ = Entry::parse(&text);
    }
}
