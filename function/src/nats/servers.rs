//! Which of several servers to try first, and when not to try at all.

/// How long nobody is tried after nobody has answered, in nanoseconds: what is asked meanwhile is
/// refused at no cost.
const REST_NS: u64 = 500_000_000;

/// What was found out about the servers of one endpoint of type `E`.
#[derive(Debug)]
pub struct Servers<E> {
    endpoint: Option<E>,
    /// The one to try first.
    first: usize,
    rest_until_ns: u64,
}

impl<E: PartialEq + Clone> Servers<E> {
    /// Nothing found out yet.
    pub const fn new() -> Self {
        Self { endpoint: None, first: 0, rest_until_ns: 0 }
    }

    /// In which order to try the `count` servers of `endpoint`: the one that worked last, then the
    /// others.
    pub fn order(&self, endpoint: &E, count: usize) -> impl Iterator<Item = usize> + use<E> {
        let first = if self.knows(endpoint) { self.first } else { 0 };
        (0..count).filter_map(move |n| n.saturating_add(first).checked_rem(count))
    }

    /// A server has accepted a connection.
    pub fn worked(&mut self, endpoint: &E, server: usize) {
        *self = Self { endpoint: Some(endpoint.clone()), first: server, rest_until_ns: 0 };
    }

    /// No server accepts a connection, or the one that did has stopped to answer.
    pub fn failed(&mut self, endpoint: &E, now_ns: u64) {
        let first = if self.knows(endpoint) { self.first.saturating_add(1) } else { 0 };
        let rest_until_ns = now_ns.saturating_add(REST_NS);
        *self = Self { endpoint: Some(endpoint.clone()), first, rest_until_ns };
    }

    /// Whether that was so a moment ago.
    pub fn rests(&self, endpoint: &E, now_ns: u64) -> bool {
        self.knows(endpoint) && now_ns < self.rest_until_ns
    }

    fn knows(&self, endpoint: &E) -> bool {
        self.endpoint.as_ref() == Some(endpoint)
    }
}

impl<E: PartialEq + Clone> Default for Servers<E> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(servers: &Servers<&'static str>, endpoint: &'static str) -> Vec<usize> {
        servers.order(&endpoint, 3).collect()
    }

    #[test]
    fn the_one_that_worked_comes_first_and_one_that_hangs_last() {
        let mut servers = Servers::new();
        assert_eq!(order(&servers, "a"), [0, 1, 2]);
        servers.worked(&"a", 1);
        assert_eq!(order(&servers, "a"), [1, 2, 0]);
        servers.failed(&"a", 0);
        assert_eq!(order(&servers, "a"), [2, 0, 1]);
        servers.failed(&"a", 0);
        assert_eq!(order(&servers, "a"), [0, 1, 2]);
        servers.worked(&"a", 2);
        assert_eq!(order(&servers, "b"), [0, 1, 2], "others are other servers");
        assert_eq!(servers.order(&"a", 0).count(), 0);
    }

    #[test]
    fn after_a_failure_nobody_is_tried_for_a_moment() {
        let mut servers = Servers::new();
        assert!(!servers.rests(&"a", 0));
        servers.failed(&"a", 7);
        assert!(servers.rests(&"a", 7) && servers.rests(&"a", 6 + REST_NS));
        assert!(!servers.rests(&"a", 7 + REST_NS) && !servers.rests(&"b", 7));
        servers.worked(&"a", 0);
        assert!(!servers.rests(&"a", 7));
    }
}
