//! What a cache block depends on besides its tokens.

use sha2::{Digest, Sha256};

/// What prompts must have in common, besides their tokens, to share cache blocks.
///
/// A digest of any number of parts. Today there is one, a request's `cache_salt`; whatever else changes
/// the keys and values of equal tokens, such as an adapter or an image, adds a part with
/// [`CacheSalt::with`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct CacheSalt(Option<[u8; 32]>);

impl CacheSalt {
    /// Tokens alone decide.
    pub const NONE: Self = Self(None);

    /// The salt of a request with this `cache_salt`, if it has one.
    pub fn of_request(cache_salt: Option<&str>) -> Self {
        cache_salt.map_or(Self::NONE, |text| Self::NONE.with("cache_salt", text.as_bytes()))
    }

    /// Adds a part. Parts of different kinds differ even if their bytes are equal, and their order counts.
    #[must_use]
    pub fn with(self, kind: &str, bytes: &[u8]) -> Self {
        let mut digest = Sha256::new();
        digest.update(self.0.unwrap_or_default());
        for part in [kind.as_bytes(), bytes] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        Self(Some(digest.finalize().into()))
    }

    /// The part of a prompt's salt that is in the key of its `block`-th block: all of it in the first.
    /// Later blocks depend on it through their parents.
    pub(super) fn of_block(self, block: usize) -> Self {
        if block == 0 { self } else { Self::NONE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_differ_by_kind_bytes_and_order() {
        let salts = [
            CacheSalt::NONE,
            CacheSalt::of_request(Some("")),
            CacheSalt::of_request(Some("a")),
            CacheSalt::NONE.with("adapter", b"a"),
            CacheSalt::of_request(Some("a")).with("adapter", b"a"),
            CacheSalt::NONE.with("adapter", b"a").with("cache_salt", b"a"),
            CacheSalt::NONE.with("cache_salt", b"aadapter"),
        ];
        for (index, salt) in salts.iter().enumerate() {
            assert!(salts.iter().skip(index + 1).all(|other| other != salt), "{index}");
        }
        assert_eq!(CacheSalt::of_request(Some("a")), CacheSalt::of_request(Some("a")));
        assert_eq!(CacheSalt::of_request(None), CacheSalt::default());
    }
}
