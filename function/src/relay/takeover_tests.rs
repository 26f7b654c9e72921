//! Jobs of several choices and attempts, over a subscription that loses, repeats and reorders.

use emberline_shared::answer::Choice;
use emberline_shared::event::{EventKind, Timings, TokenLogprob};
use proptest::prelude::*;

use super::*;

/// Text of each token; some complete no character.
const TOKENS: [&str; 12] = ["Hel", "lo", "", "é", " ", "wor", "", "", "漢字", "ld", "!", "."];
const USAGE: Usage = Usage { prompt_tokens: 3, cached_tokens: 2, completion_tokens: 24 };

/// What a choice says; each another text, the fourth one nothing.
fn script(choice: u32) -> Vec<&'static str> {
    let choice = choice as usize;
    TOKENS.into_iter().cycle().skip(choice).take(12 - 4 * choice).collect()
}

/// The same for each attempt.
fn logprobs_of(choice: u32, positions: std::ops::Range<usize>) -> Vec<TokenLogprobs> {
    let script = script(choice);
    let token = |position: usize| TokenLogprobs {
        token: TokenLogprob { bytes: script[position].into(), logprob: -(position as f32) },
        top: vec![TokenLogprob { bytes: b"x".to_vec(), logprob: -(choice as f32) }],
    };
    positions.map(token).collect()
}

/// One attempt: how far before the end of each choice its worker takes over, which choice it
/// writes next and how many tokens of it, and how many of its last words reach the log after
/// its successor's first one: it is a zombie that does not know of it.
#[derive(Debug, Clone)]
struct Attempt {
    back: [usize; 4],
    turns: Vec<(u32, usize)>,
    late: usize,
}

fn attempt() -> impl Strategy<Value = Attempt> {
    let turns = proptest::collection::vec((0_u32..4, 1_usize..4), 0..14);
    (any::<[u8; 4]>(), turns, 0_usize..4).prop_map(|(back, turns, late)| Attempt {
        back: back.map(|b| usize::from(b % 4)),
        turns,
        late,
    })
}

/// Writes one attempt after the other.
struct Writer {
    limits: Limits,
    log: Vec<Event>,
    /// For each choice, where events of the log begin or end.
    borders: Vec<Vec<usize>>,
}

impl Writer {
    fn new(limits: Limits) -> Self {
        let borders = (0..limits.choices).map(|_| vec![0]).collect();
        Self { limits, log: Vec::new(), borders }
    }

    /// What an attempt says of its turns, and for each event its choice and where it ends.
    fn words(&self, attempt: &Attempt) -> Vec<(EventKind, usize)> {
        let mut at: Vec<usize> = Vec::new();
        for (borders, back) in self.borders.iter().zip(attempt.back) {
            at.push(borders[borders.len().saturating_sub(1 + back)]);
        }
        let mut finished = vec![false; at.len()];
        let mut words = Vec::new();
        for (choice, count) in attempt.turns.iter().copied() {
            let choice = choice % self.limits.choices;
            let (at, finished) = (&mut at[choice as usize], &mut finished[choice as usize]);
            let script = script(choice);
            let end = (*at + count).min(script.len());
            if end > *at {
                let asked = self.limits.logprobs.is_some();
                words.push((
                    EventKind::Tokens {
                        choice,
                        position: *at as u32,
                        ids: vec![7; end - *at],
                        text: script[*at..end].concat(),
                        logprobs: if asked { logprobs_of(choice, *at..end) } else { Vec::new() },
                    },
                    end,
                ));
                *at = end;
            } else if !std::mem::replace(finished, true) {
                words.push((EventKind::Finish { choice, reason: FinishReason::Stop }, end));
            }
        }
        words
    }

    fn write(&mut self, attempts: &[Attempt], last: &Attempt) {
        let mut late = Vec::new();
        for (attempt, number) in attempts.iter().chain([last]).zip(1..) {
            let words = self.words(attempt);
            let start = EventKind::Accepted {
                prompt_tokens: 3,
                cached_tokens: 2,
                fingerprint: "fp".into(),
                tool_format: None,
                prompt_text: None,
            };
            self.log.push(Event { v: 1, attempt: number, index: 0, kind: start });
            self.log.append(&mut late);
            let is_last = number as usize > attempts.len();
            let in_time = if is_last { words.len() } else { words.len().saturating_sub(attempt.late) };
            for ((kind, end), index) in words.into_iter().zip(1..) {
                let in_time = index as usize <= in_time;
                if in_time && let EventKind::Tokens { choice, .. } = &kind {
                    let borders = &mut self.borders[*choice as usize];
                    borders.push(end);
                    borders.sort_unstable();
                    borders.dedup();
                }
                let log = if in_time { &mut self.log } else { &mut late };
                log.push(Event { v: 1, attempt: number, index, kind });
            }
        }
        let done = EventKind::Done { usage: USAGE, timings: Timings::default() };
        let (attempt, index) = self.log.last().map(|event| (event.attempt, event.index + 1)).unwrap();
        self.log.push(Event { v: 1, attempt, index, kind: done });
    }
}

/// The log that these attempts leave; the last one comes to the end.
fn log_of(limits: Limits, attempts: &[Attempt], mut last: Attempt) -> Vec<Event> {
    let rest = (0..limits.choices).flat_map(|choice| [(choice, TOKENS.len()), (choice, 1)]);
    last.turns.extend(rest);
    let mut writer = Writer::new(limits);
    writer.write(attempts, &last);
    writer.log
}

/// What the subscription brings of a log, each with its place there: some lost, some twice,
/// some swapped.
fn live(log: &[Event], fates: &[u8], swaps: &[usize]) -> Vec<(usize, Event)> {
    let mut live: Vec<(usize, Event)> = Vec::new();
    for ((place, event), fate) in log.iter().cloned().enumerate().zip(fates) {
        match fate {
            0 => {}
            1 => live.extend([(place, event.clone()), (place, event)]),
            _ => live.push((place, event)),
        }
    }
    for &swap in swaps {
        if swap + 1 < live.len() {
            live.swap(swap, swap + 1);
        }
    }
    live
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn everything_is_told_exactly_once(
        choices in 1_u32..5,
        asked in any::<bool>(),
        attempts in proptest::collection::vec(attempt(), 0..4),
        last in attempt(),
        fates in proptest::collection::vec(0_u8..8, 150),
        swaps in proptest::collection::vec(0_usize..80, 0..10),
        lag in 0_usize..4,
    ) {
        let limits = Limits { choices, tokens: 12, logprobs: asked.then_some(1) };
        let log = log_of(limits, &attempts, last);
        let mut relay = Relay::new(limits);
        let mut outputs = Vec::new();
        let mut stored = 0;
        for (place, event) in live(&log, &fates, &swaps) {
            outputs.extend(relay.on_event(event).unwrap());
            stored = stored.max(place + 1);
            if relay.has_gap() {
                outputs.extend(relay.rebuild(&log[..stored.saturating_sub(lag)]).unwrap());
            }
        }
        // In the end silence makes the caller look at the log.
        outputs.extend(relay.rebuild(&log).unwrap());
        prop_assert!(relay.is_over() && !relay.has_gap());

        let mut whole = Whole::new(limits);
        let mut finished = vec![false; choices as usize];
        for (place, output) in outputs.iter().enumerate() {
            match output {
                Output::Accepted(_) => prop_assert_eq!(place, 0),
                Output::Text { choice, text, logprobs } => {
                    prop_assert!(!finished[*choice as usize], "told after its end");
                    prop_assert_eq!(logprobs.is_some(), asked);
                    prop_assert!(!text.is_empty() || logprobs.iter().any(|logprobs| !logprobs.is_empty()));
                }
                Output::Finish { choice, .. } => {
                    prop_assert!(!std::mem::replace(&mut finished[*choice as usize], true), "two ends");
                }
                Output::Done(usage) => {
                    prop_assert_eq!(*usage, USAGE);
                    prop_assert_eq!(place + 1, outputs.len());
                }
                Output::Failed(error) => prop_assert!(false, "{}", error),
            }
            whole.push(output.clone());
        }
        let expected = (0..choices).map(|choice| Choice {
            text: script(choice).concat(),
            logprobs: asked.then(|| logprobs_of(choice, 0..script(choice).len())),
            finish_reason: Some(FinishReason::Stop),
        });
        prop_assert_eq!(whole.into_choices(), expected.collect::<Vec<_>>());
        prop_assert!(matches!(outputs.last(), Some(Output::Done(_))));
    }
}
