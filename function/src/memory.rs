//! The memory of an instance: how much of it its requests hold, and whether there is room for another.
//!
//! An instance serves many requests in one small memory, and if that is used up, all of them end. So a request
//! reserves what it needs in any case before its body is read and before its jobs are queued
//! ([`Memory::reserve`]), and is refused if that does not fit. What grows beyond, because a client reads slowly or
//! an event log has to be read again, is counted as it grows ([`Held::set`]). It may take what is left, but never
//! the last quarter, which is for new requests.

use std::cell::Cell;
use std::rc::Rc;

use emberline_protocol::error::{ApiError, ErrorCode};

/// The memory of an instance, as far as it is counted.
#[derive(Debug)]
pub struct Memory {
    max: Cell<usize>,
    used: Cell<usize>,
}

/// What one request reserved, and what it holds.
#[derive(Debug)]
pub struct Reservation {
    memory: Rc<Memory>,
    reserved: usize,
    held: Cell<usize>,
}

/// What one part of a request holds; nothing once it is dropped.
#[derive(Debug)]
pub struct Held {
    reservation: Rc<Reservation>,
    bytes: usize,
}

/// The instance has no room for this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{wanted} more bytes do not fit into the instance's memory, of which {used} of {max} bytes are in use"
)]
pub struct NoMemory {
    wanted: usize,
    used: usize,
    max: usize,
}

impl Memory {
    /// Memory of `max` bytes, of which nothing is in use.
    pub fn new(max: usize) -> Rc<Self> {
        Rc::new(Self { max: Cell::new(max), used: Cell::new(0) })
    }

    /// Changes how much there is.
    pub fn set_max(&self, max: usize) {
        self.max.set(max);
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used.get()
    }

    /// Reserves `bytes` for a request.
    pub fn reserve(self: &Rc<Self>, bytes: usize) -> Result<Rc<Reservation>, NoMemory> {
        self.take(bytes, self.max.get())?;
        Ok(Rc::new(Reservation { memory: Rc::clone(self), reserved: bytes, held: Cell::new(0) }))
    }

    /// Takes `bytes` more if no more than `most` are in use then.
    fn take(&self, bytes: usize, most: usize) -> Result<(), NoMemory> {
        let used = self.used.get();
        match used.checked_add(bytes).filter(|sum| *sum <= most) {
            Some(sum) => {
                self.used.set(sum);
                Ok(())
            }
            None => Err(NoMemory { wanted: bytes, used, max: self.max.get() }),
        }
    }

    fn free(&self, bytes: usize) {
        self.used.set(self.used.get().saturating_sub(bytes));
    }

    /// How much may be in use when a request grows: a quarter stays for new ones.
    fn most_for_growth(&self) -> usize {
        let max = self.max.get();
        max.saturating_sub(max.div_euclid(4))
    }
}

impl Reservation {
    /// A part of the request that holds nothing yet.
    pub fn part(self: &Rc<Self>) -> Held {
        Held { reservation: Rc::clone(self), bytes: 0 }
    }

    /// What counts as used of a request that holds `held` bytes.
    fn counted(&self, held: usize) -> usize {
        held.max(self.reserved)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.memory.free(self.counted(self.held.get()));
    }
}

impl Held {
    /// Counts `bytes` as what this part holds now. After an error it counts what it held before; its owner is to
    /// give up.
    pub fn set(&mut self, bytes: usize) -> Result<(), NoMemory> {
        let Reservation { memory, held, .. } = &*self.reservation;
        let before = held.get();
        let after = before.saturating_sub(self.bytes).saturating_add(bytes);
        let (counted, wanted) = (self.reservation.counted(before), self.reservation.counted(after));
        match wanted.checked_sub(counted) {
            Some(0) => {}
            Some(more) => memory.take(more, memory.most_for_growth())?,
            None => memory.free(counted.saturating_sub(wanted)),
        }
        held.set(after);
        self.bytes = bytes;
        Ok(())
    }

    /// Counts `bytes` more.
    pub fn add(&mut self, bytes: usize) -> Result<(), NoMemory> {
        self.set(self.bytes.saturating_add(bytes))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // To hold less always fits.
        let _ = self.set(0);
    }
}

impl From<NoMemory> for ApiError {
    fn from(error: NoMemory) -> Self {
        let NoMemory { wanted, used, max } = error;
        if wanted > max {
            let message = format!(
                "This request and its answer may take {wanted} bytes of memory, and an instance of the function has \
                 {max} for all its requests. Ask for fewer choices, tokens or log-probabilities, or send a shorter \
                 conversation."
            );
            return Self::new(ErrorCode::RequestTooLarge, message);
        }
        let message = format!(
            "The memory of this instance of the function is in use: {used} of {max} bytes, and the request takes \
             {wanted} more. Try again shortly."
        );
        Self::new(ErrorCode::Overloaded, message)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_that_does_not_fit_is_refused_by_name() {
        let memory = Memory::new(100);
        let first = memory.reserve(60).unwrap();
        let error = ApiError::from(memory.reserve(50).unwrap_err());
        assert_eq!((error.code, error.code.status()), (ErrorCode::Overloaded, 503));
        assert!(error.message.contains("60 of 100 bytes") && error.message.contains("50 more"), "{error}");
        drop(first);
        let _second = memory.reserve(50).unwrap();
        let error = ApiError::from(memory.reserve(101).unwrap_err());
        assert_eq!(error.code, ErrorCode::RequestTooLarge, "no waiting will help");
    }

    #[test]
    fn what_was_reserved_is_there_and_growth_leaves_a_quarter() {
        let memory = Memory::new(100);
        let request = memory.reserve(50).unwrap();
        let (mut one, mut two) = (request.part(), request.part());
        one.set(30).unwrap();
        two.set(20).unwrap();
        assert_eq!(memory.used(), 50);
        two.set(45).unwrap();
        assert_eq!(memory.used(), 75);
        assert!(two.set(46).is_err());
        assert_eq!(memory.used(), 75);
        let other = memory.reserve(25).unwrap();
        let mut part = other.part();
        part.set(25).unwrap();
        assert!(part.add(1).is_err(), "what others have reserved is theirs");
        drop(two);
        assert_eq!(memory.used(), 75, "50 stay reserved");
        drop((one, request));
        assert_eq!(memory.used(), 25);
    }

    proptest! {
        #[test]
        fn nothing_leaks_and_the_bound_holds(
            requests in proptest::collection::vec((0..60_usize, proptest::collection::vec(0..60_usize, 0..5)), 0..8)
        ) {
            let memory = Memory::new(100);
            let mut kept = Vec::new();
            for (reserved, sizes) in requests {
                let Ok(request) = memory.reserve(reserved) else { continue };
                let mut part = request.part();
                for size in sizes {
                    let _ = part.set(size);
                    prop_assert!(memory.used() <= 100);
                }
                kept.push(part);
            }
            drop(kept);
            prop_assert_eq!(memory.used(), 0);
        }
    }
}
