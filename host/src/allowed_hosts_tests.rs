use std::collections::BTreeMap;
use std::env::VarError;

use proptest::prelude::*;

use super::*;
use crate::variables::Declaration;

fn parse(entry: &str) -> Result<AllowedHosts, AllowedHostError> {
    AllowedHosts::parse(&[Template::parse(entry).unwrap()], &Variables::default())
}

fn allows(entry: &str, address: &str) -> bool {
    parse(entry).unwrap().allows(address.parse().unwrap())
}

fn nats(host: &str, port: &str) -> Result<AllowedHosts, AllowedHostError> {
    let given = [("nats_host", host), ("nats_port", port)];
    let given: BTreeMap<_, _> = given.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let declared = given.keys().map(|name| (name.clone(), Declaration::default())).collect();
    let variables = Variables::resolve(&declared, &given, |_| Err(VarError::NotPresent)).unwrap();
    let entry = Template::parse("tcp://{{ nats_host }}:{{ nats_port }}").unwrap();
    AllowedHosts::parse(&[entry], &variables)
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
fn variables_are_put_into_host_and_port() {
    let hosts = nats("10.1.2.3", "4300").unwrap();
    assert!(hosts.allows("10.1.2.3:4300".parse().unwrap()));
    assert!(!hosts.allows("10.1.2.3:4222".parse().unwrap()));
    // A server that there isn't.
    assert!(!nats("127.0.0.1", "0").unwrap().allows("127.0.0.1:4222".parse().unwrap()));
    assert!(nats("", "4300").is_err());
    assert!(nats("10.1.2.3", "").is_err());
}

#[test]
fn networks_wildcards_and_port_ranges() {
    assert!(allows("tcp://10.0.0.0/8:4222", "10.200.3.4:4222"));
    assert!(!allows("tcp://10.0.0.0/8:4222", "11.0.0.1:4222"));
    assert!(allows("tcp://10.9.9.9/8:4222", "10.1.1.1:4222"));
    assert!(allows("tcp://0.0.0.0/0:4222", "203.0.113.5:4222"));
    assert!(allows("tcp://fd00::/8:4222", "[fd12::1]:4222"));
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
fn nothing_is_allowed_by_default() {
    assert!(!AllowedHosts::default().allows("127.0.0.1:4222".parse().unwrap()));
}

#[test]
fn entries_that_mean_nothing_here_are_refused_with_a_remedy() {
    for (entry, says) in [
        ("127.0.0.1:4222", "no scheme"),
        ("http://127.0.0.1:80", "only tcp sockets"),
        ("udp://127.0.0.1:53", "only tcp sockets"),
        ("nats://127.0.0.1:4222", "only tcp sockets"),
        ("tcp://127.0.0.1", "no port"),
        ("tcp://localhost", "no port"),
        ("tcp://::1", "no port"),
        ("tcp://127.0.0.1:", "no port"),
        ("tcp://127.0.0.1:http", "neither a number"),
        ("tcp://127.0.0.1:70000", "neither a number"),
        ("tcp://127.0.0.1:4222/path", "has a path"),
        ("tcp://10.0.0.0/33:4222", "has a host"),
        ("tcp://a*b:4222", "has a host"),
        ("tcp://[nonsense]:4222", "has a host"),
        ("tcp://:4222", "has a host"),
    ] {
        let error = parse(entry).expect_err(entry).to_string();
        assert!(error.contains(entry) && error.contains(says), "{entry}: {error}");
    }
}

#[test]
fn an_optional_endpoint_that_is_empty_is_passed_over() {
    let declared = BTreeMap::from([("extra".to_owned(), Declaration { default: Some(String::new()) })]);
    let variables = Variables::resolve(&declared, &BTreeMap::new(), |_| Err(VarError::NotPresent)).unwrap();
    let entry = Template::parse("{{ extra }}").unwrap();
    assert_eq!(AllowedHosts::parse(&[entry], &variables), Ok(AllowedHosts::default()));
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
    fn any_text_is_read_or_refused_without_panic(text in r"(tcp://)?[\PC:/\[\].*0-9]*") {
        _ = Entry::parse(&text);
    }
}
