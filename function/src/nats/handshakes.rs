//! How many TLS handshakes an instance does at once.
//!
//! A handshake takes milliseconds of the instance's one thread. If all requests of a burst began theirs together, all
//! would be done at the end of the last one, when some have waited too long. So a few go first, and the others
//! soon find the connections that these have given back.

/// Most handshakes at once, unless they are slow.
const AT_ONCE: usize = 4;
/// One that takes longer waits for the network, not for the processor, and holds up nobody. In nanoseconds.
const SLOW_NS: u64 = 25_000_000;

/// The handshakes that are under way.
#[derive(Debug, Default)]
pub struct Handshakes {
    /// When each began, by its number.
    begun: Vec<(u64, u64)>,
    next: u64,
}

impl Handshakes {
    /// The number of a handshake that may begin now, if one may.
    pub fn begin(&mut self, now_ns: u64) -> Option<u64> {
        let is_quick = |(_, since): &&(u64, u64)| now_ns.saturating_sub(*since) < SLOW_NS;
        if self.begun.iter().filter(is_quick).count() >= AT_ONCE {
            return None;
        }
        let number = self.next;
        self.next = number.wrapping_add(1);
        self.begun.push((number, now_ns));
        Some(number)
    }

    /// The handshake is done, or has failed.
    pub fn end(&mut self, number: u64) {
        self.begun.retain(|(of, _)| *of != number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_begin_and_the_next_when_one_ends() {
        let mut handshakes = Handshakes::default();
        let begun: Vec<_> = std::iter::from_fn(|| handshakes.begin(7)).collect();
        assert_eq!(begun, [0, 1, 2, 3]);
        handshakes.end(2);
        assert_eq!((handshakes.begin(8), handshakes.begin(8)), (Some(4), None));
    }

    #[test]
    fn slow_ones_hold_up_nobody() {
        let mut handshakes = Handshakes::default();
        let begun =
            |handshakes: &mut Handshakes, now_ns| std::iter::from_fn(|| handshakes.begin(now_ns)).count();
        assert_eq!(begun(&mut handshakes, 0), AT_ONCE);
        assert_eq!(begun(&mut handshakes, SLOW_NS - 1), 0);
        assert_eq!(begun(&mut handshakes, SLOW_NS), AT_ONCE);
        // The slow ones make no room when they end.
        (0..4).for_each(|number| handshakes.end(number));
        assert_eq!(begun(&mut handshakes, SLOW_NS + 1), 0);
    }
}
