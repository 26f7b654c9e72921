//! Keys, from the list of hashes and a bucket's record to a request's headers: only a key that is
//! known opens the door.

#![no_main]

use arbitrary::Arbitrary;
use emberline_function::access::caller::{Caller, Credential, KeyHashes, read_record};
use emberline_protocol::key::{KeyLimits, KeyState};
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;

/// SHA-256 of `abc`, from FIPS 180-2.
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    list: &'a str,
    bearer: Option<&'a [u8]>,
    plain: Option<&'a [u8]>,
    now_ms: u64,
    limits: &'a str,
    record: &'a [u8],
}

fuzz_target!(|input: Input<'_>| {
    let mut headers = HeaderMap::new();
    for (name, value) in [("authorization", input.bearer), ("x-api-key", input.plain)] {
        if let Some(value) = value.and_then(|value| HeaderValue::from_bytes(value).ok()) {
            headers.insert(name, value);
        }
    }
    let limits = KeyLimits::parse(input.limits).unwrap_or_default();
    if let Ok(key) = Credential::find(&headers) {
        if let Ok(keys) = KeyHashes::parse(input.list) {
            let _ = Caller::configured(&key, &keys, limits);
        }
        let known = KeyHashes::parse(ABC).expect("a hash");
        let brought = |value: Option<&[u8]>| value.is_some_and(|value| value.trim_ascii().ends_with(b"abc"));
        if Caller::configured(&key, &known, limits).is_some() {
            assert!(brought(input.bearer) || brought(input.plain), "{headers:?}");
        }
    }
    if let Ok(record) = read_record(input.record) {
        let active = record.state(input.now_ms) == KeyState::Active;
        assert_eq!(Caller::recorded(Some(record), limits, input.now_ms).is_ok(), active);
    }
});
