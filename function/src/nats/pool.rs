//! Idle connections, waiting for the next request that this instance serves.

use std::collections::VecDeque;

/// Most connections that wait.
const MAX_IDLE: usize = 64;
/// Longest wait, in nanoseconds. Well below the server's ping interval, so that nothing waits
/// in an idle connection.
const MAX_IDLE_NS: u64 = 10_000_000_000;

/// Connections of type `C` to one endpoint of type `E`.
#[derive(Debug)]
pub struct Pool<E, C> {
    endpoint: Option<E>,
    /// When each was put here, oldest first.
    idle: VecDeque<(u64, C)>,
}

impl<E: PartialEq + Clone, C> Pool<E, C> {
    /// A pool with nothing in it.
    pub const fn new() -> Self {
        Self { endpoint: None, idle: VecDeque::new() }
    }

    /// Takes the connection to `endpoint` that has waited least, if there is a fresh one.
    pub fn take(&mut self, endpoint: &E, now_ns: u64) -> Option<C> {
        self.retire(endpoint, now_ns);
        self.idle.pop_back().map(|(_, connection)| connection)
    }

    /// The same, if it was put here at `since_ns` or later.
    pub fn take_newer(&mut self, endpoint: &E, now_ns: u64, since_ns: u64) -> Option<C> {
        self.retire(endpoint, now_ns);
        self.idle.pop_back_if(|(put_ns, _)| *put_ns >= since_ns).map(|(_, connection)| connection)
    }

    /// Drops them all.
    pub fn clear(&mut self) {
        self.idle.clear();
    }

    /// Keeps a connection on which nothing is pending.
    pub fn put(&mut self, endpoint: &E, now_ns: u64, connection: C) {
        self.retire(endpoint, now_ns);
        if self.idle.len() < MAX_IDLE {
            self.idle.push_back((now_ns, connection));
        }
    }

    fn retire(&mut self, endpoint: &E, now_ns: u64) {
        if self.endpoint.as_ref() != Some(endpoint) {
            self.idle.clear();
            self.endpoint = Some(endpoint.clone());
        }
        while self.idle.front().is_some_and(|(since, _)| now_ns.saturating_sub(*since) > MAX_IDLE_NS) {
            self.idle.pop_front();
        }
    }
}

impl<E: PartialEq + Clone, C> Default for Pool<E, C> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_freshest_is_taken_and_the_stale_dropped() {
        let mut pool = Pool::new();
        pool.put(&"a", 0, 1);
        pool.put(&"a", 5, 2);
        pool.put(&"a", 6, 3);
        assert_eq!(pool.take(&"a", 7), Some(3));
        assert_eq!(pool.take(&"a", MAX_IDLE_NS + 1), Some(2));
        assert_eq!(pool.take(&"a", MAX_IDLE_NS + 1), None);
    }

    #[test]
    fn whoever_waits_takes_only_what_was_given_back_meanwhile() {
        let mut pool = Pool::new();
        pool.put(&"a", 5, 1);
        assert_eq!(pool.take_newer(&"a", 6, 6), None);
        pool.put(&"a", 6, 2);
        assert_eq!(pool.take_newer(&"a", 7, 6), Some(2));
        assert_eq!(pool.take(&"a", 7), Some(1));
    }

    #[test]
    fn another_endpoint_gets_none_of_them() {
        let mut pool = Pool::new();
        pool.put(&"a", 0, 1);
        assert_eq!(pool.take(&"b", 0), None);
        assert_eq!(pool.take(&"a", 0), None);
        pool.put(&"a", 0, 1);
        pool.clear();
        assert_eq!(pool.take(&"a", 0), None);
    }

    #[test]
    fn it_keeps_only_so_many() {
        let mut pool = Pool::new();
        (0..1000).for_each(|n| pool.put(&(), 0, n));
        assert_eq!(std::iter::from_fn(|| pool.take(&(), 0)).count(), MAX_IDLE);
    }
}
