//! How many jobs run, and how many more may.

use std::sync::Arc;

use tokio::sync::watch;

/// Counts running jobs against the engine's capacity.
#[derive(Debug, Clone)]
pub struct Slots {
    capacity: u32,
    active: Arc<watch::Sender<u32>>,
}

/// One running job's place; free again when dropped.
#[derive(Debug)]
pub struct Slot(Arc<watch::Sender<u32>>);

impl Slots {
    /// All free.
    pub fn new(capacity: u32) -> Self {
        Self { capacity, active: Arc::new(watch::Sender::new(0)) }
    }

    /// Jobs at once.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The number of running jobs, and its changes.
    pub fn active(&self) -> watch::Receiver<u32> {
        self.active.subscribe()
    }

    /// Places that are free now.
    pub fn free(&self) -> u32 {
        self.capacity.saturating_sub(*self.active.borrow())
    }

    /// Takes a place, if there is one.
    pub fn take(&self) -> Option<Slot> {
        let taken = self.active.send_if_modified(|active| {
            let free = *active < self.capacity;
            *active += u32::from(free);
            free
        });
        taken.then(|| Slot(Arc::clone(&self.active)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.send_modify(|active| *active = active.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_capacity_and_each_comes_back() {
        let slots = Slots::new(2);
        let (first, second) = (slots.take(), slots.take());
        assert!(first.is_some() && second.is_some() && slots.take().is_none());
        assert_eq!((slots.free(), *slots.active().borrow()), (0, 2));
        drop(first);
        assert_eq!(slots.free(), 1);
        assert!(slots.take().is_some());
    }
}
