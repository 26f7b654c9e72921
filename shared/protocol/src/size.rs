//! How large a message on NATS may be.
//!
//! Whoever writes a message bounds it by [`max_message`], and the function, which shares a small memory between
//! many requests, reads none that is larger than [`max_frame`]. So the largest that can be written can be read.

/// Largest message that Emberline writes, headers included, however large the server's `max_payload` is.
/// `deploy/nats.conf` has the same.
pub const MAX_MESSAGE: usize = 8 * 1024 * 1024;
/// Headers that nats-server adds to a stored message when it is read: its stream, subject, sequence and time.
const ADDED_HEADERS: usize = 4096;

/// Largest message to write to a server with this `max_payload`; both count headers.
pub const fn max_message(max_payload: usize) -> usize {
    if max_payload < MAX_MESSAGE { max_payload } else { MAX_MESSAGE }
}

/// Largest message to expect of a server with this `max_payload`.
pub const fn max_frame(max_payload: usize) -> usize {
    max_message(max_payload).saturating_add(ADDED_HEADERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_bound_counts_up_to_ours() {
        assert_eq!((max_message(1 << 20), max_message(64 << 20)), (1 << 20, MAX_MESSAGE));
        assert!(max_frame(1 << 20) > 1 << 20 && max_frame(usize::MAX) > MAX_MESSAGE);
    }

    #[test]
    fn our_configuration_of_the_server_has_the_same_bound() {
        let conf = include_str!("../../../deploy/nats.conf");
        let line = conf.lines().find_map(|line| line.strip_prefix("max_payload: ")).unwrap();
        assert_eq!(line, format!("{}MB", MAX_MESSAGE >> 20));
    }
}
