//! Who may use the API: keys by `Authorization: Bearer` or `X-API-Key`, known by their hashes.

use emberline_shared::error::{ApiError, ErrorCode};
use emberline_shared::key::{KeyId, KeyLimits};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// SHA-256 hashes of the accepted keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyHashes(Vec<[u8; 32]>);

/// Who asks, and what they may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The key that they brought.
    pub key: KeyId,
    /// Models that they may use, by the models' own names; `None` for all.
    pub models: Option<Vec<String>>,
    /// How much they may use.
    pub limits: KeyLimits,
}

/// Text that is not the hash of a key. The text itself may be a key, so it is not repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("entry {0} is not a SHA-256 in 64 hexadecimal digits; make one with `printf %s KEY | sha256sum`")]
pub struct InvalidKeyHash(usize);

impl KeyHashes {
    /// Reads a comma-separated list; empty entries don't count.
    pub fn parse(list: &str) -> Result<Self, InvalidKeyHash> {
        let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let hashes = entries.zip(1..).map(|(entry, n)| decode_hex(entry).ok_or(InvalidKeyHash(n)));
        hashes.collect::<Result<_, _>>().map(Self)
    }

    /// Whether `key` is one of the accepted keys, in a time that does not depend on which.
    fn accept(&self, key: &[u8]) -> bool {
        let hash: [u8; 32] = Sha256::digest(key).into();
        let compare = |found: Choice, known: &[u8; 32]| found | known.ct_eq(&hash);
        self.0.iter().fold(Choice::from(0), compare).into()
    }
}

fn decode_hex(text: &str) -> Option<[u8; 32]> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
    let (pairs, rest) = digits.as_deref()?.as_chunks::<2>();
    let bytes: Vec<u8> = pairs.iter().map(|[high, low]| (high << 4) | low).collect();
    if rest.is_empty() { bytes.try_into().ok() } else { None }
}

/// Lets a request pass that brings an accepted key.
pub fn authenticate(headers: &HeaderMap, keys: &KeyHashes) -> Result<Caller, ApiError> {
    let Some(key) = key_of(headers) else {
        let message =
            "No API key. Send it as 'Authorization: Bearer YOUR_API_KEY' or 'X-API-Key: YOUR_API_KEY'.";
        return Err(ApiError::new(ErrorCode::MissingAuthHeader, message));
    };
    if keys.accept(key) {
        return Ok(Caller { key: KeyId::of_key(key), models: None, limits: KeyLimits::default() });
    }
    Err(ApiError::new(ErrorCode::InvalidApiKey, "This API key is not valid. Check it for typing errors."))
}

fn key_of(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(b"Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
    });
    let plain = || headers.get("x-api-key").map(http::HeaderValue::as_bytes);
    bearer.or_else(plain).map(<[u8]>::trim_ascii).filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// SHA-256 of `abc`, from FIPS 180-2.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn check(header: &'static str, value: &str) -> Result<(), ErrorCode> {
        let keys = KeyHashes::parse(&format!("{},{}", "00".repeat(32), ABC.to_uppercase())).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header, value.parse().unwrap());
        authenticate(&headers, &keys).map(drop).map_err(|e| e.code)
    }

    #[test]
    fn both_headers_carry_keys() {
        assert_eq!(check("authorization", "Bearer abc"), Ok(()));
        assert_eq!(check("authorization", "bearer  abc"), Ok(()));
        assert_eq!(check("x-api-key", "abc"), Ok(()));
    }

    #[test]
    fn a_wrong_key_and_no_key_differ() {
        for value in ["Bearer abd", "Bearer abc def", "Bearer ab"] {
            assert_eq!(check("authorization", value), Err(ErrorCode::InvalidApiKey), "{value}");
        }
        for value in ["Bearer", "Bearer ", "Basic abc", "abc", ""] {
            assert_eq!(check("authorization", value), Err(ErrorCode::MissingAuthHeader), "{value}");
        }
        assert_eq!(check("x-other", "abc"), Err(ErrorCode::MissingAuthHeader));
    }

    #[test]
    fn without_hashes_no_key_is_valid() {
        let mut headers = HeaderMap::new();
        headers.insert("x-api-key", "abc".parse().unwrap());
        assert!(authenticate(&headers, &KeyHashes::default()).is_err());
    }

    #[test]
    fn a_broken_hash_is_counted_not_shown() {
        let error = KeyHashes::parse(&format!("{ABC}, ,secret")).unwrap_err();
        assert_eq!(error, InvalidKeyHash(2));
        assert!(!error.to_string().contains("secret"));
        assert!(KeyHashes::parse(&ABC[1..]).is_err());
        assert!(KeyHashes::parse(&format!("{ABC}00")).is_err());
    }

    proptest! {
        #[test]
        fn only_the_key_itself_is_accepted(key in "[!-~]{1,40}") {
            prop_assert_eq!(check("x-api-key", &key).is_ok(), key == "abc");
        }
    }
}
