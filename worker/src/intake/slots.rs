//! How many jobs run, and how many more may.

use std::sync::Arc;

use tokio::sync::watch;

/// Counts a model's running jobs against its capacity, and those of all models together.
#[derive(Debug, Clone)]
pub struct Slots {
    capacity: u32,
    active: Arc<watch::Sender<u32>>,
    load: Arc<watch::Sender<u32>>,
}

/// One running job's place; free again when dropped.
#[derive(Debug)]
pub struct Slot {
    active: Arc<watch::Sender<u32>>,
    load: Arc<watch::Sender<u32>>,
}

impl Slots {
    /// All free; `load` counts the running jobs of whoever shares it.
    pub fn new(capacity: u32, load: Arc<watch::Sender<u32>>) -> Self {
        Self { capacity, active: Arc::new(watch::Sender::new(0)), load }
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
        if !taken {
            return None;
        }
        self.load.send_modify(|load| *load += 1);
        Some(Slot { active: Arc::clone(&self.active), load: Arc::clone(&self.load) })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        for count in [&self.active, &self.load] {
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
    }
}
