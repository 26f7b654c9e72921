//! Generates API keys, passwords and NKEYs.

use std::fmt;
use std::io;

use nkeys::{KeyPair, KeyPairType};
use rand::TryRng;
use rand::rngs::SysRng;

/// Generates an API key: `sk-emb-` and 32 random bytes of the operating system in base 62.
pub(crate) fn new_api_key() -> io::Result<String> {
    Ok(format!("sk-emb-{}", random_text()?))
}

/// An NKEY: nats-server knows its public key, and the seed proves who connects.
#[derive(Clone)]
pub(crate) struct Nkey {
    pub(crate) public: String,
    pub(crate) seed: String,
}

impl Nkey {
    /// Generates one for a user of NATS.
    pub(crate) fn random() -> io::Result<Self> {
        let key = KeyPair::new_from_raw(KeyPairType::User, random_bytes()?).map_err(io::Error::other)?;
        Ok(Self { public: key.public_key(), seed: key.seed().map_err(io::Error::other)? })
    }
}

impl fmt::Debug for Nkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nkey({})", self.public)
    }
}

/// Generates a password for a user of NATS. It begins with a letter, so that nats-server reads it as a text.
pub(crate) fn new_password() -> io::Result<String> {
    Ok(format!("p{}", random_text()?))
}

/// 32 random bytes of the operating system in base 62.
fn random_text() -> io::Result<String> {
    random_bytes().map(base62)
}

fn random_bytes() -> io::Result<[u8; 32]> {
    let mut secret = [0; 32];
    SysRng.try_fill_bytes(&mut secret).map_err(io::Error::other)?;
    Ok(secret)
}

/// Writes a 256-bit number, most significant byte first, as 43 digits: `0` to `9`, `A` to `Z`, `a` to `z`.
fn base62(mut number: [u8; 32]) -> String {
    const BASE: u16 = 62;
    // 62^43 is the smallest power of 62 above 2^256.
    let mut digits = [0_u8; 43];
    for digit in digits.iter_mut().rev() {
        let mut rest = 0;
        for byte in &mut number {
            let part = rest << 8 | u16::from(*byte);
            *byte = (part / BASE) as u8;
            rest = part % BASE;
        }
        *digit = match rest as u8 {
            digit @ 0..10 => b'0' + digit,
            upper @ 10..36 => b'A' + upper - 10,
            lower => b'a' + lower - 36,
        };
    }
    digits.map(char::from).iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_nkey_is_a_users_and_its_seed_is_not_shown() {
        let (one, other) = (Nkey::random().unwrap(), Nkey::random().unwrap());
        assert!(one.public != other.public && one.public.starts_with('U') && one.seed.starts_with("SU"));
        assert_eq!(KeyPair::from_seed(&one.seed).unwrap().public_key(), one.public);
        assert_eq!(format!("{one:?}"), format!("Nkey({})", one.public));
    }

    #[test]
    fn base_62_is_positional() {
        let number = |low: u16| {
            let mut bytes = [0; 32];
            bytes[30..].copy_from_slice(&low.to_be_bytes());
            base62(bytes)
        };
        for (low, end) in
            [(0, "000"), (9, "009"), (10, "00A"), (61, "00z"), (62, "010"), (62 * 62 + 36, "10a")]
        {
            assert_eq!(number(low), format!("{}{end}", "0".repeat(40)));
        }
        // Computed with Python's integers.
        assert_eq!(base62([255; 32]), "yhjskwdA6OZ1AL1YmHWZWm8LLG7HjnuCA2j5rOw8Xp1");
    }
}
