//! Keys, from the list of hashes to a request's headers: only a key whose hash is listed opens the
//! door.

#![no_main]

use arbitrary::Arbitrary;
use emberline_function::auth::{KeyHashes, authenticate};
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;

/// SHA-256 of `abc`, from FIPS 180-2.
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    list: &'a str,
    bearer: Option<&'a [u8]>,
    plain: Option<&'a [u8]>,
}

fuzz_target!(|input: Input<'_>| {
    let mut headers = HeaderMap::new();
    for (name, value) in [("authorization", input.bearer), ("x-api-key", input.plain)] {
        if let Some(value) = value.and_then(|value| HeaderValue::from_bytes(value).ok()) {
            headers.insert(name, value);
        }
    }
    if let Ok(keys) = KeyHashes::parse(input.list) {
        let _ = authenticate(&headers, &keys);
    }
    let keys = KeyHashes::parse(ABC).expect("a hash");
    if authenticate(&headers, &keys).is_ok() {
        let brought = |value: Option<&[u8]>| value.is_some_and(|value| value.trim_ascii().ends_with(b"abc"));
        assert!(brought(input.bearer) || brought(input.plain), "{headers:?}");
    }
});
