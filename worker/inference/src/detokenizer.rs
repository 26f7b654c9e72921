//! Turns a choice's tokens into text, and ends it at stop strings.
//!
//! Tokens end anywhere: inside a character, inside a stop string. [`Detokenizer::push`] returns whole
//! characters that belong to no stop string, and never has to take any back. How the bytes are split
//! into tokens makes no difference: generation stops at the stop string that is complete first (at the
//! longest, if several end together).

/// The result of a push.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pushed {
    /// Text to send now; may be empty.
    pub text: String,
    /// A stop string is complete: no more text follows.
    pub stopped: bool,
}

/// Turns the bytes of one choice's tokens into text.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    stops: Vec<StopMatcher>,
    /// The beginning of an incomplete character.
    partial: Vec<u8>,
    /// Text that may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

impl Detokenizer {
    /// Without any bytes yet. Empty stop strings are ignored.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).map(|stop| StopMatcher::new(stop)).collect();
        Self { stops, partial: Vec::new(), held: String::new(), stopped: false }
    }

    /// Adds a token's bytes.
    pub fn push(&mut self, bytes: &[u8]) -> Pushed {
        self.partial.extend_from_slice(bytes);
        let text = take_whole_characters(&mut self.partial);
        self.advance(&text)
    }

    /// Ends the text and returns what was held back. An incomplete character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.partial);
        let mut pushed = self.advance(&String::from_utf8_lossy(&rest));
        if !pushed.stopped {
            pushed.text.push_str(&std::mem::take(&mut self.held));
        }
        // No later byte can complete a stop string.
        self.stopped = true;
        pushed.text
    }

    fn advance(&mut self, text: &str) -> Pushed {
        if self.stopped {
            return Pushed { text: String::new(), stopped: true };
        }
        for (offset, &byte) in text.as_bytes().iter().enumerate() {
            let complete = self.stops.iter_mut().filter_map(|stop| stop.advance(byte)).max();
            if let Some(length) = complete {
                self.stopped = true;
                let end = self.held.len() + offset + 1;
                self.held.push_str(text);
                self.held.truncate(end - length);
                return Pushed { text: std::mem::take(&mut self.held), stopped: true };
            }
        }
        self.held.push_str(text);
        let keep = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - keep);
        Pushed { text: std::mem::replace(&mut self.held, kept), stopped: false }
    }
}

/// Removes the whole characters from the front of `bytes`; invalid bytes become U+FFFD.
fn take_whole_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut incomplete = 0;
    let mut chunks = bytes.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        text.push_str(chunk.valid());
        let invalid = chunk.invalid();
        if chunks.peek().is_none() && is_incomplete(invalid) {
            incomplete = invalid.len();
        } else if !invalid.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    bytes.drain(..bytes.len() - incomplete);
    text
}

/// Whether more bytes could make this a character.
fn is_incomplete(invalid: &[u8]) -> bool {
    std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none())
}

/// Finds one stop string in a stream of bytes, in constant time per byte (Knuth, Morris and Pratt 1977).
/// Its state is how much of the stop string's beginning the text ends with.
///
/// Matching bytes is enough: a prefix of a string begins with the first byte of a character.
#[derive(Debug, Clone)]
struct StopMatcher {
    stop: Box<[u8]>,
    /// For each length of match, the next shorter match that ends at the same place.
    shorter: Box<[usize]>,
    matched: usize,
}

impl StopMatcher {
    fn new(stop: &str) -> Self {
        let stop: Box<[u8]> = stop.as_bytes().into();
        let mut shorter = vec![0; stop.len() + 1];
        for end in 1..stop.len() {
            shorter[end + 1] = next_match(&stop, &shorter, shorter[end], stop[end]);
        }
        Self { stop, shorter: shorter.into(), matched: 0 }
    }

    /// Adds the next byte; returns the stop string's length once it is complete.
    fn advance(&mut self, byte: u8) -> Option<usize> {
        self.matched = next_match(&self.stop, &self.shorter, self.matched, byte);
        (self.matched == self.stop.len()).then_some(self.matched)
    }
}

/// The length of the match after one more byte. `matched` is less than the stop string's length.
fn next_match(stop: &[u8], shorter: &[usize], mut matched: usize, byte: u8) -> usize {
    while matched > 0 && stop[matched] != byte {
        matched = shorter[matched];
    }
    if stop[matched] == byte { matched + 1 } else { 0 }
}

#[cfg(test)]
#[path = "detokenizer_tests.rs"]
mod tests;
