use proptest::prelude::*;

use super::*;
use crate::event::{Timings, Usage};

fn event(attempt: u32, index: u32, kind: EventKind) -> Chunk {
    Chunk::of(attempt, index, kind)
}

fn taken(attempt: u32) -> Chunk {
    event(attempt, 0, EventKind::Taken { worker: format!("worker {attempt}"), ack: None })
}

fn accepted(attempt: u32, index: u32) -> Chunk {
    event(attempt, index, EventKind::Accepted(Acceptance::default()))
}

/// Token `n` has the text `n` modulo ten.
fn text_of(positions: std::ops::Range<u32>) -> String {
    positions.map(|id| (id % 10).to_string()).collect()
}

fn tokens(attempt: u32, index: u32, positions: std::ops::Range<u32>) -> Chunk {
    let (position, text) = (positions.start, text_of(positions.clone()));
    let ids = positions.collect();
    event(attempt, index, EventKind::Tokens { choice: 0, position, ids, text, logprobs: Vec::new() })
}

fn done(attempt: u32, index: u32) -> Chunk {
    event(attempt, index, EventKind::Done { usage: Usage::default(), timings: Timings::default(), at: None })
}

fn read(stored: &[Chunk]) -> (EventLog, Reading) {
    let mut log = EventLog::new(1, false);
    let reading = log.read(stored, |_, _, _| {});
    (log, reading)
}

#[test]
fn events_stored_in_another_order_count_in_that_of_their_indexes() {
    let begun = [taken(1), accepted(1, 1), tokens(1, 2, 0..1), tokens(1, 3, 1..2)];
    let (fourth, fifth, sixth) = (tokens(1, 4, 2..3), tokens(1, 5, 3..4), done(1, 6));
    let (log, reading) = read(&[&begun[..], &[fifth, sixth, fourth]].concat());
    assert_eq!((log.choices()[0].text(), log.end().is_some()), ("0123", true));
    assert_eq!(reading, Reading::default());
}

#[test]
fn only_what_is_new_in_an_event_is_fresh() {
    let stored = [
        taken(1),
        accepted(1, 1),
        tokens(1, 2, 0..2),
        tokens(1, 3, 2..3),
        taken(2),
        // From a known position, but cut into other events.
        tokens(2, 1, 2..5),
    ];
    let mut fresh = Vec::new();
    let mut log = EventLog::new(1, false);
    log.read(&stored, |chunk, _, Fresh { first_token, .. }| {
        fresh.push((chunk.attempt, chunk.index, first_token));
    });
    assert_eq!(fresh[2..], [(1, 2, 0), (1, 3, 0), (2, 0, 0), (2, 1, 1)]);
    assert_eq!((log.choices()[0].text(), log.choices()[0].ids()), ("01234", &[0, 1, 2, 3, 4][..]));
    log.read(&stored, |_, event, _| panic!("{event:?} counts twice"));
}

#[test]
fn an_attempt_with_a_hole_is_behind_until_another_one_goes_on() {
    let mut stored = vec![taken(1), accepted(1, 1), tokens(1, 3, 1..2)];
    assert!(read(&stored).1.is_behind);
    stored.push(taken(2));
    assert!(!read(&stored).1.is_behind);
    stored.push(tokens(2, 1, 1..2));
    assert!(read(&stored).1.is_behind, "it goes on from what is not known");
    stored.extend([taken(3), tokens(3, 1, 0..2)]);
    let (log, reading) = read(&stored);
    assert_eq!((log.choices()[0].text(), reading), ("01", Reading::default()));
}

#[test]
fn what_contradicts_the_text_ends_what_counts_of_its_attempt() {
    let other =
        EventKind::Tokens { choice: 0, position: 0, ids: vec![7], text: "7".into(), logprobs: Vec::new() };
    let stored = [
        taken(1),
        accepted(1, 1),
        tokens(1, 2, 0..2),
        taken(2),
        event(2, 1, other),
        tokens(2, 2, 1..3),
        taken(3),
        tokens(3, 1, 2..3),
    ];
    let (log, reading) = read(&stored);
    assert_eq!(log.choices()[0].text(), "012");
    assert_eq!(reading.conflict, Some(Conflict::Differs { attempt: 2, position: 0 }));
}

#[test]
fn text_without_tokens_is_no_part_of_what_another_worker_goes_on_with() {
    let held_back = EventKind::Tokens {
        choice: 0,
        position: 2,
        ids: Vec::new(),
        text: "\u{fffd}".into(),
        logprobs: Vec::new(),
    };
    let stored = [taken(1), accepted(1, 1), tokens(1, 2, 0..2), event(1, 3, held_back)];
    let (log, _) = read(&stored);
    let choice = &log.choices()[0];
    assert_eq!((choice.text(), choice.text_of_tokens()), ("01\u{fffd}", "01"));
    assert_eq!(LogState::of(&stored, 1, false).choices[0].text, "01");
}

#[test]
fn attempts_that_add_nothing_are_counted() {
    let dead = |attempt| taken(attempt);
    let fruitless = |stored: &[Chunk]| LogState::of(stored, 1, false).fruitless;
    assert_eq!(fruitless(&[dead(1), dead(2), dead(3)]), 3);
    let with_token = [dead(1), dead(2), dead(3), accepted(3, 1), tokens(3, 2, 0..1), dead(4)];
    assert_eq!(fruitless(&with_token), 1);
    assert_eq!(fruitless(&[dead(1), dead(2), event(2, 1, EventKind::HandedBack), dead(3)]), 1);
    let again =
        [dead(1), accepted(1, 1), tokens(1, 2, 0..3), dead(2), accepted(2, 1), tokens(2, 2, 0..2), dead(3)];
    assert_eq!(fruitless(&again), 2, "to write the same again is no progress");
}

/// Attempts with their events in any order, some repeated and some missing.
fn log() -> impl Strategy<Value = Vec<Chunk>> {
    let attempt = (0_u32..4, proptest::collection::vec(1_u32..4, 0..6), any::<bool>(), any::<u64>());
    proptest::collection::vec(attempt, 1..5).prop_map(|attempts| {
        let mut stored: Vec<Chunk> = Vec::new();
        for ((back, pieces, is_accepted, order), number) in attempts.into_iter().zip(1..) {
            let known = read(&stored).0.choices()[0].ids().len();
            let mut position = u32::try_from(known).unwrap().saturating_sub(back);
            let mut own = vec![taken(number)];
            own.extend(is_accepted.then(|| accepted(number, 1)));
            for count in pieces {
                let index = u32::try_from(own.len()).unwrap();
                own.push(tokens(number, index, position..position + count));
                position += count;
            }
            // Repeats one, drops one, and stores the rest in another order.
            let pick = |part: u32, len: usize| usize::try_from((order >> part) % len as u64).unwrap();
            own.push(own[pick(0, own.len())].clone());
            if order % 3 == 0 {
                own.remove(pick(8, own.len()));
            }
            let turn = pick(16, own.len());
            own.rotate_left(turn);
            stored.extend(own);
        }
        stored
    })
}

proptest! {
    /// A reader that follows a log knows at least what a reader of the whole log knows. It may know more,
    /// from an attempt that continues from tokens that only a later one wrote, but never different tokens.
    #[test]
    fn a_log_says_the_same_however_often_it_is_read(stored in log()) {
        let (whole, reading) = read(&stored);
        let mut followed = EventLog::new(1, false);
        let mut text = String::new();
        let mut last = Reading::default();
        for end in 0..=stored.len() {
            last = followed.read(&stored[..end], |_, _, _| {});
            let known = followed.choices()[0].text();
            prop_assert!(known.starts_with(&text), "{known} after {text}");
            text = known.to_owned();
        }
        prop_assert!(reading.is_behind || !last.is_behind);
        prop_assert_eq!(followed.newest(), whole.newest());
        for (log, ids) in [(&followed, followed.choices()[0].ids()), (&whole, whole.choices()[0].ids())] {
            let expected = text_of(0..u32::try_from(ids.len()).unwrap());
            prop_assert_eq!(log.choices()[0].text(), expected);
        }
        let whole = &whole.choices()[0];
        prop_assert!(text.starts_with(whole.text()), "{text} and {}", whole.text());
        let snapshot = Chunk::new(1, 0, summary(&stored, 1, false));
        let (summed_up, _) = read(&[snapshot]);
        prop_assert_eq!(summed_up.choices()[0].text(), whole.text());
        prop_assert_eq!(summed_up.choices()[0].ids(), whole.ids());
        let progress = LogState::of(&stored, 1, false);
        prop_assert_eq!((&progress.choices[0].ids[..], &progress.choices[0].text[..]), (whole.ids(), whole.text()));
    }

    /// Chunks of the log sum up what was published one by one. A reader that has followed any part of that, and
    /// then reads a log that is cut into any chunks, knows what the log says.
    #[test]
    fn however_events_are_summed_up_they_say_the_same(
        pieces in proptest::collection::vec((0_u32..2, 1_u32..4), 1..12),
        cuts in proptest::collection::vec(any::<bool>(), 16),
        lost in proptest::collection::vec(any::<bool>(), 16),
        read_at in 0_usize..16,
    ) {
        let mut next = [0; 2];
        let tokens = pieces.iter().map(|(choice, count)| {
            let position = next[*choice as usize];
            next[*choice as usize] += count;
            let text = text_of(position..position + count);
            let ids = (position..position + count).collect();
            EventKind::Tokens { choice: *choice, position, ids, text, logprobs: Vec::new() }
        });
        let begin = [EventKind::Taken { worker: "w".into(), ack: None }, EventKind::Accepted(Acceptance::default())];
        let live: Vec<EventKind> = begin.into_iter().chain(tokens.collect::<Vec<_>>()).collect();
        let mut stored = vec![Chunk::new(1, 0, Vec::new())];
        for (event, cut) in live.iter().zip(cuts.iter().cycle()) {
            let last = stored.last_mut().unwrap();
            crate::chunk::merge(&mut last.events, event.clone());
            last.end += 1;
            let end = last.end;
            if *cut {
                stored.push(Chunk::new(1, end, Vec::new()));
            }
        }
        let mut log = EventLog::new(2, false);
        for ((event, index), lost) in live.into_iter().zip(0..).zip(lost.iter().cycle()) {
            if usize::try_from(index).unwrap() == read_at {
                let so_far: Vec<Chunk> = stored.iter().filter(|chunk| chunk.end <= index).cloned().collect();
                log.read(&so_far, |_, _, _| {});
            }
            if !lost {
                log.apply(&Chunk::of(1, index, event), |_, _| {}).unwrap();
            }
        }
        let reading = log.read(&stored, |_, _, _| {});
        prop_assert_eq!(reading, Reading::default());
        for (choice, count) in log.choices().iter().zip(next) {
            prop_assert_eq!(choice.text(), text_of(0..count));
            prop_assert_eq!(choice.ids(), (0..count).collect::<Vec<_>>());
        }
    }
}
