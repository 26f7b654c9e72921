//! Requests for tokens that wait for their turn: a bounded number of them, of bounded size.

use std::collections::VecDeque;

use async_nats::Message;
use emberline_protocol::tokens::DEADLINE_HEADER;

/// Largest number of requests that wait.
const MAX_WAITING: usize = 256;
/// Largest size of all of them.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// Requests in the order in which they arrived.
#[derive(Debug, Default)]
pub(super) struct TokensQueue {
    waiting: VecDeque<Message>,
    bytes: usize,
}

impl TokensQueue {
    /// Whether none waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Appends a request, or returns it if there is no room.
    pub(super) fn push(&mut self, request: Message) -> Result<(), Box<Message>> {
        let bytes = self.bytes + request.payload.len();
        if self.waiting.len() >= MAX_WAITING || bytes > MAX_BYTES {
            return Err(Box::new(request));
        }
        self.bytes = bytes;
        self.waiting.push_back(request);
        Ok(())
    }

    /// The next request; those that nobody waits for any more at `now_ms` (Unix milliseconds) are dropped.
    pub(super) fn pop(&mut self, now_ms: u64) -> Option<Message> {
        while let Some(request) = self.waiting.pop_front() {
            self.bytes -= request.payload.len();
            if deadline_ms(&request).is_none_or(|deadline| now_ms < deadline) {
                return Some(request);
            }
        }
        None
    }
}

/// When nobody waits for the answer any more, if the request says so.
fn deadline_ms(request: &Message) -> Option<u64> {
    request.headers.as_ref()?.get(DEADLINE_HEADER)?.as_str().parse().ok()
}

#[cfg(test)]
mod tests {
    use async_nats::HeaderMap;

    use super::*;

    fn request(number: usize, bytes: usize, deadline_ms: Option<u64>) -> Message {
        let headers = deadline_ms.map(|deadline| {
            let mut headers = HeaderMap::new();
            headers.insert(DEADLINE_HEADER, deadline.to_string());
            headers
        });
        Message {
            subject: number.to_string().into(),
            reply: None,
            payload: vec![b'x'; bytes].into(),
            headers,
            status: None,
            description: None,
            length: bytes,
        }
    }

    #[test]
    fn only_so_many_wait() {
        let mut queue = TokensQueue::default();
        (0..MAX_WAITING).for_each(|n| queue.push(request(n, 1, None)).unwrap());
        assert_eq!(queue.push(request(MAX_WAITING, 1, None)).unwrap_err().subject.as_str(), "256");
        assert_eq!(queue.pop(0).unwrap().subject.as_str(), "0");
        queue.push(request(MAX_WAITING, 1, None)).unwrap();
    }

    #[test]
    fn only_so_many_bytes_wait() {
        let mut queue = TokensQueue::default();
        (0..4).for_each(|n| queue.push(request(n, MAX_BYTES / 4, None)).unwrap());
        assert!(queue.push(request(4, 1, None)).is_err());
        assert!(queue.pop(0).is_some() && queue.push(request(4, MAX_BYTES / 4, None)).is_ok());
        assert_eq!(std::iter::from_fn(|| queue.pop(0)).count(), 4);
        assert!(queue.is_empty() && queue.bytes == 0);
    }

    #[test]
    fn what_nobody_waits_for_is_dropped() {
        let mut queue = TokensQueue::default();
        for (number, deadline) in [(0, Some(99)), (1, Some(100)), (2, Some(101)), (3, None)] {
            queue.push(request(number, 1, deadline)).unwrap();
        }
        let left = std::iter::from_fn(|| queue.pop(100)).map(|request| request.subject.to_string());
        assert_eq!(left.collect::<Vec<_>>(), ["2", "3"]);
        assert_eq!(queue.bytes, 0);
    }
}
