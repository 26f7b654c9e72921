use proptest::prelude::*;

use super::*;

fn assembler(stops: &[&str]) -> Detokenizer {
    Detokenizer::new(&stops.iter().map(|&stop| stop.to_owned()).collect::<Vec<_>>())
}

fn sent(text: &str) -> Pushed {
    Pushed { text: text.to_owned(), stopped: false }
}

fn stopped(text: &str) -> Pushed {
    Pushed { text: text.to_owned(), stopped: true }
}

#[test]
fn characters_wait_for_their_last_byte() {
    let mut text = assembler(&[]);
    assert_eq!(text.push(&[b'a', 0xF0, 0x9F]), sent("a"));
    assert_eq!(text.push(&[0x99]), sent(""));
    assert_eq!(text.push(&[0x82, b'b']), sent("🙂b"));
    assert_eq!(text.finish(), "");
}

#[test]
fn bytes_that_are_no_character_are_replaced() {
    let mut text = assembler(&[]);
    assert_eq!(text.push(&[0xFF, b'a', 0xE2, 0x82]), sent("\u{FFFD}a"));
    assert_eq!(text.push(b"b"), sent("\u{FFFD}b"));
    assert_eq!(text.push(&[0xE2]), sent(""));
    assert_eq!(text.finish(), "\u{FFFD}");
}

#[test]
fn a_beginning_of_a_stop_string_is_held_back() {
    let mut text = assembler(&["END"]);
    assert_eq!(text.push(b"the E"), sent("the "));
    assert_eq!(text.push(b"N"), sent(""));
    assert_eq!(text.push(b"EN"), sent("EN"));
    assert_eq!(text.push(b"D of it"), stopped(""));
    assert_eq!(text.push(b"more"), stopped(""));
    assert_eq!(text.finish(), "");
}

#[test]
fn what_was_held_back_comes_at_the_end() {
    let mut text = assembler(&["\n\n"]);
    assert_eq!(text.push(b"a\n"), sent("a"));
    assert_eq!(text.finish(), "\n");
}

#[test]
fn the_stop_string_that_is_complete_first_counts() {
    assert_eq!(assembler(&["abcdef", "cd"]).push(b"abcdef"), stopped("ab"));
    assert_eq!(assembler(&["cd", "bcd"]).push(b"abcd"), stopped("a"));
    assert_eq!(assembler(&["", "b"]).push(b"ab"), stopped("a"));
    assert_eq!(assembler(&["aab"]).push(b"aaab"), stopped("a"));
}

#[test]
fn a_stop_string_can_end_in_what_is_replaced_at_the_end() {
    let mut text = assembler(&["b\u{FFFD}"]);
    assert_eq!(text.push(&[b'a', b'b', 0xE2]), sent("a"));
    assert_eq!(text.finish(), "");
}

/// Where the stop string that ends first begins; the longest of several.
fn first_stop(text: &str, stops: &[String]) -> Option<usize> {
    (1..=text.len()).find_map(|end| {
        let text = text.as_bytes();
        let fitting = stops.iter().filter(|stop| !stop.is_empty() && text[..end].ends_with(stop.as_bytes()));
        fitting.map(|stop| end - stop.len()).min()
    })
}

/// Text of few characters, so that stop strings occur, of one to four bytes.
fn text(length: std::ops::Range<usize>) -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!['a', 'b', 'é', 'è', '日', '🙂', '🙃']), length)
        .prop_map(|characters| characters.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_split_gives_the_text_before_the_first_stop_string(
        text in text(0..40),
        stops in prop::collection::vec(text(0..5), 0..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.index(text.len() + 1)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let end = first_stop(&text, &stops);
        let expected = &text[..end.unwrap_or(text.len())];

        let mut assembler = Detokenizer::new(&stops);
        let mut output = String::new();
        let mut stopped = false;
        for cut in cuts.windows(2) {
            let pushed = assembler.push(&text.as_bytes()[cut[0]..cut[1]]);
            output.push_str(&pushed.text);
            prop_assert!(expected.starts_with(&output), "{output:?} of {expected:?}");
            stopped |= pushed.stopped;
        }
        prop_assert_eq!(stopped, end.is_some());
        output.push_str(&assembler.finish());
        prop_assert_eq!(output, expected);
    }

    #[test]
    fn any_bytes_give_what_lossy_decoding_gives(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..4), 0..20),
    ) {
        let mut assembler = Detokenizer::new(&[]);
        let mut output: String = pieces.iter().map(|piece| assembler.push(piece).text).collect();
        output.push_str(&assembler.finish());
        prop_assert_eq!(output, String::from_utf8_lossy(&pieces.concat()).into_owned());
    }

    /// Nothing is held back that could not become a stop string.
    #[test]
    fn text_is_sent_as_soon_as_it_may_be(text in text(1..30), stops in prop::collection::vec(text(1..5), 1..3)) {
        let mut assembler = Detokenizer::new(&stops);
        let pushed = assembler.push(text.as_bytes());
        let held = &text[pushed.text.len()..];
        prop_assert!(pushed.stopped || held.is_empty() || stops.iter().any(|stop| stop.starts_with(held)));
    }
}
