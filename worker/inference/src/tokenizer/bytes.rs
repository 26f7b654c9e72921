//! The bytes that tokens stand for.

/// Every token's bytes, one after the other.
#[derive(Debug, Default)]
pub(super) struct TokenBytes {
    bytes: Vec<u8>,
    /// Where each token's bytes end.
    ends: Vec<usize>,
}

impl TokenBytes {
    /// The next token, which `write` appends.
    pub(super) fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        self.ends.push(self.bytes.len());
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
}

/// How a vocabulary spells the text of its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Notation {
    /// Each byte is a character: printable ones are themselves, the rest are the characters from
    /// U+0100 on, in order (GPT-2's table).
    ByteLevel,
    /// Text in which some strings stand for others: SentencePiece's `▁` for a space.
    Pieces {
        /// What stands for what.
        replaced: Vec<(String, String)>,
        /// `<0x0A>` stands for a byte.
        byte_fallback: bool,
    },
}

impl Notation {
    /// SentencePiece's own.
    pub(super) fn sentence_piece() -> Self {
        Self::Pieces { replaced: vec![("▁".to_owned(), " ".to_owned())], byte_fallback: true }
    }

    /// Appends what `token` stands for.
    pub(super) fn write(&self, token: &str, out: &mut Vec<u8>) {
        match self {
            Self::ByteLevel => write_byte_level(token, out),
            Self::Pieces { replaced, byte_fallback } => match byte_of_piece(token) {
                Some(byte) if *byte_fallback => out.push(byte),
                _ => {
                    let replace = |text: String, (from, to): &(String, String)| text.replace(from, to);
                    out.extend(replaced.iter().fold(token.to_owned(), replace).as_bytes());
                }
            },
        }
    }
}

/// A token with a character that is no byte's stands for itself.
fn write_byte_level(token: &str, out: &mut Vec<u8>) {
    let start = out.len();
    for character in token.chars() {
        let Some(byte) = byte_of(character) else {
            out.truncate(start);
            out.extend_from_slice(token.as_bytes());
            return;
        };
        out.push(byte);
    }
}

/// Whether a byte-level vocabulary can encode every text; `has` says whether a string is a token.
pub(super) fn all_bytes(has: impl Fn(&str) -> bool) -> bool {
    let mut characters = ('\u{21}'..='\u{143}').filter(|&character| byte_of(character).is_some());
    characters.all(|character| has(character.encode_utf8(&mut [0; 4])))
}

/// The name of a byte's piece.
pub(super) fn piece_of_byte(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

/// The byte whose piece this is.
fn byte_of_piece(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// The byte that a character of a byte-level vocabulary writes.
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
        assert!(all_bytes(|character| character.chars().all(|c| byte_of(c).is_some())));
        assert!(!all_bytes(|character| character != "Ń"));
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
    fn bytes_have_pieces() {
        for byte in 0..=255 {
            assert_eq!(byte_of_piece(&piece_of_byte(byte)), Some(byte));
        }
        assert_eq!(piece_of_byte(10), "<0x0A>");
        for other in ["<0x0>", "<0x00A>", "<0xGG>", "0x0A", "<0x+1>x", "<0x>"] {
            assert_eq!(byte_of_piece(other), None, "{other}");
        }
    }

    #[test]
    fn each_notation_is_read() {
        let read = |notation: &Notation, token: &str| {
            let mut bytes = Vec::new();
            notation.write(token, &mut bytes);
            bytes
        };
        assert_eq!(read(&Notation::ByteLevel, "Ġthe"), b" the");
        assert_eq!(read(&Notation::ByteLevel, "Ġtheń"), "Ġtheń".as_bytes());
        assert_eq!(read(&Notation::ByteLevel, "Ã"), [0xC3]);
        let pieces = Notation::sentence_piece();
        assert_eq!(read(&pieces, "▁the▁"), b" the ");
        assert_eq!(read(&pieces, "<0xC3>"), [0xC3]);
        assert_eq!(read(&pieces, "Ġ"), "Ġ".as_bytes());
    }

    #[test]
    fn tokens_keep_their_places() {
        let mut bytes = TokenBytes::default();
        for token in ["a", "", "bcd"] {
            bytes.push(|out| out.extend_from_slice(token.as_bytes()));
        }
        let read: Vec<&[u8]> = (0..4).map(|id| bytes.get(id)).collect();
        assert_eq!(read, [&b"a"[..], b"", b"bcd", b""]);
        assert_eq!((bytes.len(), bytes.longest()), (3, 3));
    }
}
