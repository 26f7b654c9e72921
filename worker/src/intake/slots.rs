//! How many jobs run, how many more may run, and how fast they end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use super::pace::Pace;

/// Limits a model's concurrent jobs, and counts those of all models.
#[derive(Debug, Clone)]
pub struct Slots {
    capacity: u32,
    active: Arc<watch::Sender<u32>>,
    load: Arc<watch::Sender<u32>>,
    pace: Arc<Mutex<Pace>>,
}

/// A job's slot; free again when dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Slots,
    /// Whether the job ends when the slot is dropped.
    ends: bool,
}

impl Slots {
    /// All free; `load` is the number of running jobs of all models.
    pub fn new(capacity: u32, load: Arc<watch::Sender<u32>>) -> Self {
        let pace = Arc::new(Mutex::new(Pace::new(Instant::now())));
        Self { capacity, active: Arc::new(watch::Sender::new(0)), load, pace }
    }

    /// Most concurrent jobs.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The number of running jobs, and its changes.
    pub fn active(&self) -> watch::Receiver<u32> {
        self.active.subscribe()
    }

    /// Free slots.
    pub fn free(&self) -> u32 {
        self.capacity.saturating_sub(*self.active.borrow())
    }

    /// Completed jobs per second, lately; 0 if not known.
    pub fn pace(&self) -> f64 {
        self.pace_until_now().per_second()
    }

    fn pace_until_now(&self) -> MutexGuard<'_, Pace> {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.pass(Instant::now(), *self.active.borrow() > 0);
        pace
    }

    /// Takes a slot, if one is free.
    pub fn take(&self) -> Option<Slot> {
        drop(self.pace_until_now());
        let taken = self.active.send_if_modified(|active| {
            let free = *active < self.capacity;
            *active += u32::from(free);
            free
        });
        if !taken {
            return None;
        }
        self.load.send_modify(|load| *load += 1);
        Some(Slot { slots: self.clone(), ends: true })
    }

    /// Holds a slot for a job that has ended and is not settled, though none may be free: no job is taken for it.
    pub fn hold(&self) -> Slot {
        drop(self.pace_until_now());
        for count in [&self.active, &self.load] {
            count.send_modify(|active| *active += 1);
        }
        Slot { slots: self.clone(), ends: false }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Slots { active, load, .. } = &self.slots;
        let mut pace = self.slots.pace_until_now();
        if self.ends {
            pace.ended();
        }
        drop(pace);
        for count in [active, load] {
            count.send_modify(|active| *active = active.saturating_sub(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_capacity_and_each_comes_back() {
        let load = Arc::new(watch::Sender::new(0));
        let (slots, others) = (Slots::new(2, Arc::clone(&load)), Slots::new(1, Arc::clone(&load)));
        let (first, second) = (slots.take(), slots.take());
        let other = others.take();
        assert!(first.is_some() && second.is_some() && other.is_some() && slots.take().is_none());
        assert_eq!((slots.free(), *slots.active().borrow(), *load.borrow()), (0, 2, 3));
        drop(first);
        assert_eq!((slots.free(), others.free(), *load.borrow()), (1, 0, 2));
        assert!(slots.take().is_some());
        assert!(slots.pace() > 0.0 && others.pace() == 0.0, "each model has a pace of its own");
    }

    #[test]
    fn a_job_that_is_not_settled_holds_a_slot_and_ends_once() {
        let slots = Slots::new(1, Arc::new(watch::Sender::new(0)));
        let (held, also_held) = (slots.hold(), slots.hold());
        assert!(slots.free() == 0 && slots.take().is_none());
        drop(held);
        assert!(slots.take().is_none());
        drop(also_held);
        assert_eq!((slots.free(), slots.pace()), (1, 0.0));
    }
}
