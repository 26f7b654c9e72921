//! Amounts of memory in options, configuration files and messages.

use std::fmt;
use std::str::FromStr;

use bytesize::ByteSize;
use serde::Deserialize;

/// An amount of memory, such as `512MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "Amount")]
pub struct Bytes(pub u64);

/// The largest amount that is read, 8 PiB: `bytesize` rounds larger fractions and saturates on overflow.
const MAX: u64 = 1 << 53;

/// A text that does not name an amount of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("give an amount of memory, such as 512MiB or 2GB")]
pub struct NotBytes;

impl FromStr for Bytes {
    type Err = NotBytes;

    fn from_str(text: &str) -> Result<Self, NotBytes> {
        let ByteSize(bytes) = text.parse().map_err(|_| NotBytes)?;
        if bytes > MAX { Err(NotBytes) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1024 {
            return write!(f, "{} bytes", self.0);
        }
        ByteSize(self.0).display().iec().fmt(f)
    }
}

/// The two forms in a file: a number of bytes, or a text with a unit.
#[derive(Deserialize)]
#[serde(untagged, expecting = "an amount of memory, such as \"512MiB\" or 2000000000")]
enum Amount {
    Number(u64),
    Text(String),
}

impl TryFrom<Amount> for Bytes {
    type Error = NotBytes;

    fn try_from(amount: Amount) -> Result<Self, NotBytes> {
        match amount {
            Amount::Number(bytes) => Ok(Self(bytes)),
            Amount::Text(text) => text.parse(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn amounts_of_memory_have_units() {
        for (text, bytes, shown) in [
            ("0", 0, "0 bytes"),
            ("512MiB", 512 << 20, "512.0 MiB"),
            ("1.5 gib", 3 << 29, "1.5 GiB"),
            ("2GB", 2_000_000_000, "1.9 GiB"),
            ("1000", 1000, "1000 bytes"),
            ("512M", 512_000_000, "488.3 MiB"),
        ] {
            let read: Bytes = text.parse().unwrap();
            assert_eq!((read.0, read.to_string().as_str()), (bytes, shown));
        }
        for bad in ["", "GiB", "-1", "1.2.3", "5 apples", "1e9", "99999999 TiB", "12MiBB"] {
            assert_eq!(bad.parse::<Bytes>(), Err(NotBytes), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,20}") {
            let _ = text.parse::<Bytes>();
        }
    }
}
