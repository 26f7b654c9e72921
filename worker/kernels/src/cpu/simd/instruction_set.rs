//! Which instruction sets may be used.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

/// The instruction sets that kernels are written for, from the slowest to the fastest.
///
/// All of them compute the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum InstructionSet {
    /// What every processor has.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX2 with products of bytes.
    AvxVnni,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with products of bytes.
    Avx512Vnni,
}

/// The best one that may be used.
static LIMIT: AtomicU8 = AtomicU8::new(InstructionSet::Avx512Vnni as u8);

/// Has this process use no better instruction set than `best`, to compare them on one machine. Called
/// before anything is computed.
pub fn limit_instruction_set(best: InstructionSet) {
    LIMIT.store(best as u8, Ordering::Relaxed);
}

/// A name that is no [`InstructionSet`]'s.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no instruction set '{0}'; give portable, avx2, avx-vnni, avx512 or avx512-vnni")]
pub struct UnknownInstructionSet(String);

impl FromStr for InstructionSet {
    type Err = UnknownInstructionSet;

    fn from_str(name: &str) -> Result<Self, UnknownInstructionSet> {
        Self::ALL
            .into_iter()
            .find(|set| set.name() == name)
            .ok_or_else(|| UnknownInstructionSet(name.to_owned()))
    }
}

impl fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl InstructionSet {
    const ALL: [Self; 5] = [Self::Portable, Self::Avx2, Self::AvxVnni, Self::Avx512, Self::Avx512Vnni];

    fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512-vnni",
        }
    }

    /// Whether it is within the limit.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn is_allowed(self) -> bool {
        self as u8 <= LIMIT.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_set_is_read_by_the_name_that_is_shown() {
        for set in InstructionSet::ALL {
            assert_eq!(set.to_string().parse(), Ok(set));
        }
        let error = "avx3".parse::<InstructionSet>().unwrap_err().to_string();
        assert!(InstructionSet::ALL.iter().all(|set| error.contains(set.name())), "{error}");
    }
}
