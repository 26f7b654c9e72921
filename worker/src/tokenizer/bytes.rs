//! The bytes that tokens stand for.
//!
//! A byte-level vocabulary writes each byte as a character: printable ones as themselves, the rest
//! as the characters from U+0100 on, in order (GPT-2's table).

use super::token_type;

/// Every token's bytes, one after the other.
#[derive(Debug)]
pub(super) struct TokenBytes {
    bytes: Vec<u8>,
    /// Where each token's bytes end.
    ends: Vec<usize>,
}

impl TokenBytes {
    pub(super) fn new(tokens: &[String], types: &[i32]) -> Self {
        let mut all = Self { bytes: Vec::new(), ends: Vec::with_capacity(tokens.len()) };
        for (token, &kind) in tokens.iter().zip(types) {
            match kind {
                token_type::NORMAL => all.push_byte_level(token),
                token_type::USER_DEFINED => all.bytes.extend_from_slice(token.as_bytes()),
                // Control, unknown and unused tokens have no text.
                _ => {}
            }
            all.ends.push(all.bytes.len());
        }
        all
    }

    pub(super) fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..end]
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn longest(&self) -> usize {
        let starts = std::iter::once(&0).chain(&self.ends);
        self.ends.iter().zip(starts).map(|(end, start)| end - start).max().unwrap_or(0)
    }

    /// A token with a character that is no byte's stands for itself.
    fn push_byte_level(&mut self, token: &str) {
        let start = self.bytes.len();
        for character in token.chars() {
            let Some(byte) = byte_of(character) else {
                self.bytes.truncate(start);
                self.bytes.extend_from_slice(token.as_bytes());
                return;
            };
            self.bytes.push(byte);
        }
    }
}

/// The byte that a character of the vocabulary writes.
fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    let byte = match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        // The others in order: 0 to 0x20, 0x7F to 0xA0, 0xAD.
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_byte_has_exactly_one_character() {
        let written: Vec<u8> = ('\0'..='\u{FFFF}').filter_map(byte_of).collect();
        assert_eq!(written.len(), 256);
        assert_eq!(written.into_iter().collect::<HashSet<_>>().len(), 256);
    }

    #[test]
    fn characters_of_gpt_2s_table() {
        for (character, byte) in [
            ('Ġ', b' '),
            ('Ċ', b'\n'),
            ('ĉ', b'\t'),
            ('Ā', 0),
            ('ġ', 0x7F),
            ('ł', 0xA0),
            ('Ń', 0xAD),
            ('é', 0xE9),
        ] {
            assert_eq!(byte_of(character), Some(byte), "{character}");
        }
        assert_eq!(byte_of(' '), None);
        assert_eq!(byte_of('ń'), None);
    }

    #[test]
    fn bytes_by_type_of_token() {
        let tokens = ["Ġtheń", "Ġthe", "<|im_end|>", "<think> é", "Ã", "[UNUSED]"].map(String::from);
        let bytes = TokenBytes::new(&tokens, &[1, 1, 3, 4, 1, 5]);
        let read: Vec<&[u8]> = (0..7).map(|id| bytes.get(id)).collect();
        assert_eq!(read, ["Ġtheń".as_bytes(), b" the", b"", "<think> é".as_bytes(), &[0xC3], b"", b""]);
        assert_eq!(bytes.len(), 6);
        assert_eq!(bytes.longest(), "<think> é".len());
    }
}
