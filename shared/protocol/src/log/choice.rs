//! The state of one choice of a job, from its log.

use super::{Conflict, Fresh};
use crate::chunk::Chunk;
use crate::event::FinishReason;

/// The tokens and the text that the log has of one choice.
#[derive(Debug, Clone, Default)]
pub struct ChoiceLog {
    text: String,
    ids: Vec<u32>,
    finish: Option<FinishReason>,
    /// Whether the log has the token that ended it.
    has_end_token: bool,
    /// For each position at which an event began or ended, its byte offset in `text`; ascending.
    offsets: Vec<(u32, usize)>,
    cursor: Option<Cursor>,
}

/// Where the current attempt continues.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    attempt: u32,
    position: u32,
    offset: usize,
}

impl ChoiceLog {
    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The ids of all tokens of the text.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The text that the tokens complete. [`Self::text`] may be longer: the last event of a choice may have
    /// text without tokens, which had been held back. A worker that ends the choice anew writes it again.
    pub fn text_of_tokens(&self) -> &str {
        let end = self.offset_of(self.next()).unwrap_or(self.text.len());
        self.text.get(..end).unwrap_or_default()
    }

    /// The tokens from `position` on, and the text that they complete; `None` if no event began there.
    pub fn tokens_from(&self, position: u32) -> Option<(&[u32], &str)> {
        let ids = self.ids.get(usize::try_from(position).ok()?..)?;
        let text = self.text_of_tokens().get(self.offset_of(position)?..)?;
        Some((ids, text))
    }

    /// Why it ended; `None` if it has not.
    pub fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Number of tokens in the log, including the one that ended the choice if the log has it.
    pub fn token_count(&self) -> u32 {
        self.next().saturating_add(u32::from(self.has_end_token))
    }

    /// The position of the next token.
    fn next(&self) -> u32 {
        u32::try_from(self.ids.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn forget_attempts(&mut self) {
        self.cursor = None;
    }

    /// Ends the choice with `reason` unless it has ended.
    pub(super) fn cancel(&mut self, reason: FinishReason) {
        self.finish.get_or_insert(reason);
    }

    /// Ends the choice with `reason`; false if it has ended for another reason.
    pub(super) fn complete(&mut self, reason: FinishReason) -> bool {
        *self.finish.get_or_insert(reason) == reason
    }

    /// Records that the log has its end token; returns whether that was known.
    pub(super) fn end(&mut self) -> bool {
        std::mem::replace(&mut self.has_end_token, true)
    }

    /// Writes tokens from `position` on; `None` if the offset of `position` in the text is not known.
    pub(super) fn write(
        &mut self,
        chunk: &Chunk,
        position: u32,
        ids: &[u32],
        text: &str,
    ) -> Result<Option<Fresh>, Conflict> {
        let (attempt, index) = (chunk.attempt, chunk.index);
        let misplaced = Conflict::Position { attempt, index, position };
        let cursor = self.cursor.filter(|cursor| cursor.attempt == attempt);
        // A chunk that sums up what came one by one before begins earlier, with the same text.
        let is_repeated = cursor.is_some_and(|cursor| cursor.position > position);
        let start = match cursor {
            Some(cursor) if cursor.position == position => cursor.offset,
            Some(cursor) if cursor.position < position => return Err(misplaced),
            _ => match self.offset_of(position) {
                Some(offset) => offset,
                None if is_repeated => return Err(misplaced),
                None => return Ok(None),
            },
        };
        let known = self.text.get(start..).unwrap_or_default();
        let shared = known.len().min(text.len());
        if known.as_bytes().get(..shared) != text.as_bytes().get(..shared) {
            return Err(if is_repeated { misplaced } else { Conflict::Differs { attempt, position } });
        }
        let fresh_text = text.get(shared..).unwrap_or_default();
        let first_token = usize::try_from(self.next().saturating_sub(position)).unwrap_or(usize::MAX);
        let fresh_ids = ids.get(first_token..).unwrap_or_default();
        if self.finish.is_some() && !(fresh_text.is_empty() && fresh_ids.is_empty()) {
            return Err(Conflict::OutOfOrder { attempt, index });
        }
        self.note_offset(position, start);
        self.text.push_str(fresh_text);
        self.ids.extend_from_slice(fresh_ids);
        let end = start.saturating_add(text.len());
        let next = position.saturating_add(u32::try_from(ids.len()).unwrap_or(u32::MAX));
        self.note_offset(next, end);
        if cursor.is_none_or(|cursor| cursor.position <= next) {
            self.cursor = Some(Cursor { attempt, position: next, offset: end });
        }
        Ok(Some(Fresh { first_token, first_byte: shared }))
    }

    /// The byte offset in the text at which the token at `position` begins.
    fn offset_of(&self, position: u32) -> Option<usize> {
        if position == 0 {
            return Some(0);
        }
        let at = self.offsets.binary_search_by_key(&position, |(position, _)| *position).ok()?;
        self.offsets.get(at).map(|(_, offset)| *offset)
    }

    fn note_offset(&mut self, position: u32, offset: usize) {
        if let Err(at) = self.offsets.binary_search_by_key(&position, |(position, _)| *position)
            && at <= self.offsets.len()
        {
            self.offsets.insert(at, (position, offset));
        }
    }
}
