//! The lanes of a model's queue, which keep the queue fair between keys.
//!
//! A job's lane depends on how many jobs of its key wait or run: the only job of a key is in the first lane,
//! and most jobs of a key with hundreds are in the last. Workers take jobs from the lanes in [`Turns`]. Every
//! second job comes from the first lane, so a key's only job waits for at most one job of a busy key. Every
//! eighth job comes from the last lane, so no lane starves.
//!
//! A job finds room in the queue only as far as its lane may fill it ([`Lane::share`]): keys with many jobs leave
//! a part of it to keys with few.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One lane of a model's queue: 0 to 3.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Lane(u8);

/// A number or text that is not a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("lanes are numbered from 0 to 3")]
pub struct InvalidLane;

impl Lane {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self(0), Self(1), Self(2), Self(3)];

    /// The lane of a job whose key has `outstanding` jobs that wait or run, this one included.
    pub fn of(outstanding: u64) -> Self {
        match outstanding {
            0..=1 => Self(0),
            2..=8 => Self(1),
            9..=64 => Self(2),
            65.. => Self(3),
        }
    }

    /// How many of a queue's `limit` places may be filled, by jobs of any lane, for a job of this lane to be
    /// admitted: all, seven eighths, three quarters, half; rounded up.
    pub fn share(self, limit: u64) -> u64 {
        let eighths: u128 = match self.0 {
            0 => 8,
            1 => 7,
            2 => 6,
            _ => 4,
        };
        let share = u128::from(limit).saturating_mul(eighths).div_ceil(8);
        // Never more than the limit, so it fits.
        u64::try_from(share).unwrap_or(limit)
    }

    /// How many jobs a key has waiting or running, in words, with the one that is in this lane.
    pub fn outstanding(self) -> &'static str {
        match self.0 {
            0 => "one job",
            1 => "2 to 8 jobs",
            2 => "9 to 64 jobs",
            _ => "more than 64 jobs",
        }
    }

    /// Its index in [`Lane::ALL`].
    pub fn index(self) -> usize {
        self.0.into()
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Lane {
    type Err = InvalidLane;

    /// Parses what `Display` writes, and nothing else.
    fn from_str(text: &str) -> Result<Self, InvalidLane> {
        match text.as_bytes() {
            [digit @ b'0'..=b'3'] => Ok(Self(digit - b'0')),
            _ => Err(InvalidLane),
        }
    }
}

impl TryFrom<u8> for Lane {
    type Error = InvalidLane;

    fn try_from(number: u8) -> Result<Self, InvalidLane> {
        Self::ALL.into_iter().find(|lane| lane.0 == number).ok_or(InvalidLane)
    }
}

impl From<Lane> for u8 {
    fn from(lane: Lane) -> Self {
        lane.0
    }
}

/// The order in which a worker takes jobs from the lanes: 0 1 0 2 0 1 0 3, repeated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Turns(u8);

impl Turns {
    /// The next lane in the order that `may` accepts; `None` if it accepts no lane.
    pub fn next(&mut self, may: impl Fn(Lane) -> bool) -> Option<Lane> {
        let mut turns = (1..=8).map(|n| self.0.wrapping_add(n));
        let turn = turns.find(|turn| may(Self::lane(*turn)))?;
        self.0 = turn;
        Some(Self::lane(turn))
    }

    /// The ruler sequence: each lane comes half as often as the one before it, except that the last two lanes
    /// come equally often.
    fn lane(turn: u8) -> Lane {
        // The lane is the number of trailing zero bits, at most 3.
        Lane::ALL.into_iter().find(|lane| turn & (1 << lane.0) != 0).unwrap_or(Lane(3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_with_few_jobs_is_in_a_low_lane() {
        for (outstanding, lane) in
            [(0, 0), (1, 0), (2, 1), (8, 1), (9, 2), (64, 2), (65, 3), (1000, 3), (u64::MAX, 3)]
        {
            assert_eq!(Lane::of(outstanding), Lane(lane), "{outstanding}");
        }
    }

    #[test]
    fn the_more_jobs_a_key_has_the_less_of_the_queue_it_may_fill() {
        let shares = |limit| Lane::ALL.map(|lane| lane.share(limit));
        assert_eq!(shares(1000), [1000, 875, 750, 500]);
        assert_eq!(shares(10), [10, 9, 8, 5]);
        assert_eq!((shares(2), shares(1), shares(0)), ([2, 2, 2, 1], [1; 4], [0; 4]));
        assert_eq!(shares(u64::MAX)[0], u64::MAX);
    }

    #[test]
    fn turns_are_as_the_marks_on_a_ruler() {
        let mut turns = Turns::default();
        let numbers: Vec<u8> = (0..16).map(|_| turns.next(|_| true).unwrap().into()).collect();
        assert_eq!(numbers, [0, 1, 0, 2, 0, 1, 0, 3, 0, 1, 0, 2, 0, 1, 0, 3]);
        assert_eq!(turns.next(|_| false), None);
    }

    #[test]
    fn a_lane_is_read_as_it_is_written() {
        for lane in Lane::ALL {
            assert_eq!(lane.to_string().parse(), Ok(lane));
            assert_eq!(serde_json::from_str::<Lane>(&serde_json::to_string(&lane).unwrap()).unwrap(), lane);
            assert_eq!(Lane::ALL[lane.index()], lane);
        }
        for other in ["", "4", "-1", "00", "+1", "a"] {
            assert_eq!(other.parse::<Lane>(), Err(InvalidLane), "{other}");
        }
        assert!(serde_json::from_str::<Lane>("4").is_err());
    }

    proptest! {
        /// Whichever other lanes have jobs, the first lane waits for at most one turn of another lane, and
        /// every lane for at most seven.
        #[test]
        fn no_lane_starves(before: u8, others in proptest::collection::vec(proptest::bits::u8::masked(0xf), 8)) {
            for waiting in Lane::ALL {
                let mut turns = Turns(before);
                let longest = if waiting == Lane(0) { 1 } else { 7 };
                let mut waited = 0;
                for others in &others {
                    let there = |lane: Lane| lane == waiting || others & (1 << lane.0) != 0;
                    if turns.next(there) == Some(waiting) {
                        break;
                    }
                    waited += 1;
                }
                prop_assert!(waited <= longest, "{waiting:?} waited for {waited}");
            }
        }

        #[test]
        fn every_second_turn_is_the_first_lanes(before: u8, others in proptest::collection::vec(any::<bool>(), 3)) {
            let mut turns = Turns(before);
            let there = |lane: Lane| lane.index().checked_sub(1).is_none_or(|other| others[other]);
            let taken: Vec<_> = (0..32).map(|_| turns.next(there).unwrap()).collect();
            prop_assert!(taken.windows(2).all(|two| two.contains(&Lane(0))));
        }
    }
}
