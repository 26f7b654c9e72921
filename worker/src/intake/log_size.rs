//! How large a job's event log is, and may become.

use emberline_protocol::log_budget::{END_BYTES, MAX_LOG_BYTES};
use emberline_protocol::size::max_message;

/// Room in a message for its headers.
pub(super) const HEADERS: usize = 128;

/// The size of a log in its stream, all attempts together.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LogSize(u64);

/// An event for which there is no room was not appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum NoRoom {
    #[error("its log would be larger than {} MiB", MAX_LOG_BYTES >> 20)]
    Log,
    #[error("an event of {0} bytes is larger than a message may be")]
    Message(usize),
}

impl LogSize {
    /// Counts a message of `length` bytes, headers included.
    pub(super) fn add(&mut self, subject: &str, length: usize) {
        self.0 = self.with(subject, length);
    }

    fn with(&self, subject: &str, length: usize) -> u64 {
        self.0.saturating_add((subject.len() + length) as u64)
    }

    /// Whether there is room for a message of `length` bytes, headers included, and for the log's end after it.
    pub(super) fn check(&self, subject: &str, length: usize, max_payload: usize) -> Result<(), NoRoom> {
        if length > max_message(max_payload) {
            return Err(NoRoom::Message(length));
        }
        if self.with(subject, length).saturating_add(END_BYTES) > MAX_LOG_BYTES {
            return Err(NoRoom::Log);
        }
        Ok(())
    }

    /// In bytes.
    pub(super) fn bytes(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_keeps_room_for_its_end() {
        let mut size = LogSize::default();
        let half = usize::try_from((MAX_LOG_BYTES - END_BYTES) / 2).unwrap() - 1;
        assert_eq!(size.check("s", half, usize::MAX), Err(NoRoom::Message(half)), "larger than any message");
        size.add("s", half);
        assert_eq!(size.check("s", 1000, 1 << 20), Ok(()));
        size.add("s", half);
        assert_eq!(size.check("", 0, 1 << 20), Ok(()));
        assert_eq!(size.check("s", 0, 1 << 20), Err(NoRoom::Log));
        // Several workers, each of which writes the end of all choices.
        let ends = 16 * 4 * (HEADERS + 128);
        assert!(END_BYTES > ends as u64);
    }

    #[test]
    fn an_event_is_no_larger_than_a_message_may_be() {
        let size = LogSize::default();
        assert_eq!(size.check("s", 1000, 1000), Ok(()));
        assert_eq!(size.check("s", 1001, 1000), Err(NoRoom::Message(1001)));
    }
}
