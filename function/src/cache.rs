//! What was read a moment ago: a bounded map whose entries expire, shared by the requests of an instance.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;

/// Values by key, each believed for a while.
#[derive(Debug)]
pub struct Cache<K, V> {
    max_entries: usize,
    max_age_ns: u64,
    /// When each was asked for.
    entries: RefCell<HashMap<K, (u64, V)>>,
}

impl<K: Clone + Eq + Hash, V: Clone> Cache<K, V> {
    /// An empty cache of values that are believed for `max_age_ns`.
    pub fn new(max_entries: usize, max_age_ns: u64) -> Self {
        Self { max_entries, max_age_ns, entries: RefCell::default() }
    }

    /// What was known of `key` at most the maximal age ago.
    pub fn get(&self, key: &K, now_ns: u64) -> Option<V> {
        let entries = self.entries.try_borrow().ok()?;
        let (since, value) = entries.get(key)?;
        (now_ns.saturating_sub(*since) < self.max_age_ns).then(|| value.clone())
    }

    /// Forgets `key`.
    pub fn remove(&self, key: &K) {
        if let Ok(mut entries) = self.entries.try_borrow_mut() {
            entries.remove(key);
        }
    }

    /// Keeps what was asked for at `asked_ns`: it may have changed since.
    pub fn put(&self, key: K, asked_ns: u64, value: V) {
        let Ok(mut entries) = self.entries.try_borrow_mut() else { return };
        if entries.len() >= self.max_entries {
            let max_age = self.max_age_ns;
            entries.retain(|_, (since, _)| asked_ns.saturating_sub(*since) < max_age);
        }
        if entries.len() >= self.max_entries && !entries.contains_key(&key) {
            let oldest = entries.iter().min_by_key(|(_, (since, _))| *since).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                entries.remove(&oldest);
            }
        }
        entries.insert(key, (asked_ns, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_believed_for_a_while() {
        let cache = Cache::new(10, 100);
        cache.put("a", 50, 1);
        assert_eq!((cache.get(&"a", 149), cache.get(&"a", 150), cache.get(&"b", 50)), (Some(1), None, None));
        cache.put("a", 150, 2);
        assert_eq!(cache.get(&"a", 200), Some(2));
        cache.remove(&"a");
        assert_eq!(cache.get(&"a", 200), None);
    }

    #[test]
    fn it_is_bounded() {
        let cache = Cache::new(10, 100);
        (0..1000_u64).for_each(|n| cache.put(n, n, ()));
        assert!(cache.entries.borrow().len() <= 10);
        assert!(cache.get(&999, 999).is_some());
    }

    #[test]
    fn where_it_is_full_the_oldest_makes_room() {
        let crowded = Cache::new(10, 100);
        (0..15_u64).for_each(|n| crowded.put(n, n, ()));
        crowded.put(14, 15, ());
        let known: Vec<u64> = (0..15).filter(|n| crowded.get(n, 15).is_some()).collect();
        assert_eq!(known, (5..15).collect::<Vec<_>>());
    }
}
