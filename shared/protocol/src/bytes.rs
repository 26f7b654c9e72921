//! Amounts of memory, as people write and read them.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// An amount of memory, such as `512MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "Amount")]
pub struct Bytes(pub u64);

/// A text that is no amount of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("give an amount of memory, such as 512MiB or 2GB")]
pub struct NotBytes;

impl FromStr for Bytes {
    type Err = NotBytes;

    fn from_str(text: &str) -> Result<Self, NotBytes> {
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit: f64 = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "tb" => 1e12,
            "kib" => 1024.0,
            "mib" => 1_048_576.0,
            "gib" => 1_073_741_824.0,
            "tib" => 1_099_511_627_776.0,
            _ => return Err(NotBytes),
        };
        let bytes = number.parse::<f64>().map_err(|_| NotBytes)? * unit;
        // The largest integer up to which a float has every integer.
        if bytes > 9_007_199_254_740_992.0 {
            return Err(NotBytes);
        }
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["KiB", "MiB", "GiB", "TiB"];
        let mut amount = self.0 as f64;
        let mut unit = "bytes";
        for larger in units {
            if amount < 1024.0 {
                break;
            }
            amount /= 1024.0;
            unit = larger;
        }
        let digits = usize::from(unit != "bytes");
        write!(f, "{amount:.digits$} {unit}")
    }
}

/// As it stands in a file: a number of bytes, or a text with a unit.
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
