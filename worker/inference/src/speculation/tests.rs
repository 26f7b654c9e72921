use super::*;

const ID: SequenceId = SequenceId { request: 1, choice: 0 };
const STEP: Duration = Duration::from_millis(5);

/// The time of a step that costs five times as much as a row, besides its rows.
fn timed(rows: usize) -> Duration {
    STEP + STEP / 5 * rows as u32
}

fn draft(lookup: &mut PromptLookup, tokens: &[u32], rows: usize, most: usize) -> Vec<u32> {
    lookup.draft(&DraftRequest { id: ID, tokens, rows, most })
}

/// A look-up for which rows cost nothing.
fn free() -> PromptLookup {
    let mut lookup = PromptLookup::default();
    (1..20).cycle().take(400).for_each(|rows| lookup.step_ended(rows, 0, STEP));
    lookup
}

#[test]
fn what_followed_before_is_drafted() {
    let tokens = [1, 2, 3, 4, 5, 6, 7, 9, 1, 2, 3, 4];
    assert_eq!(draft(&mut free(), &tokens, 1, 3), [5, 6, 7]);
    assert_eq!(draft(&mut free(), &tokens, 1, 5), [5, 6, 7, 9, 1]);
    assert_eq!(draft(&mut free(), &tokens, 1, 0), [0; 0]);
    assert_eq!(draft(&mut free(), &[1, 2, 3, 4], 1, 5), [0; 0]);
    // A period goes on.
    assert_eq!(draft(&mut free(), &[8, 1, 2, 1, 2], 1, 7), [1, 2, 1, 2, 1, 2, 1]);
    assert_eq!(draft(&mut free(), &[3, 3, 3], 1, 4), [3; 4]);
}

#[test]
fn drafts_grow_while_they_are_right_and_stop_while_they_are_wrong() {
    let mut lookup = PromptLookup::default();
    let period: Vec<u32> = (0..10).collect();
    let mut tokens = [&period[..], &period].concat();
    let mut lengths = Vec::new();
    for _ in 0..60 {
        let drafted = draft(&mut lookup, &tokens, 1, 8);
        lengths.push(drafted.len());
        let token = tokens[tokens.len() - 10];
        lookup.sampled(ID, token);
        lookup.step_ended(1 + drafted.len(), 0, timed(1 + drafted.len()));
        tokens.push(token);
    }
    assert!(lengths[0] > 0 && lengths[0] < 8, "{lengths:?}");
    assert_eq!(lengths[59], 8, "{lengths:?}");
    // The same beginning, and always another end.
    for wrong in 100..140 {
        let drafted = draft(&mut lookup, &tokens, 1, 8);
        lookup.sampled(ID, wrong);
        lookup.step_ended(1 + drafted.len(), 0, timed(1 + drafted.len()));
        tokens.push(wrong);
        tokens.extend(&period);
    }
    assert_eq!(draft(&mut lookup, &tokens, 1, 8), [0; 0]);
    // Nothing is drafted, and yet it is noticed that it would pay again.
    for _ in 0..60 {
        let drafted = draft(&mut lookup, &tokens, 1, 8);
        let token = tokens[tokens.len() - 11];
        lookup.sampled(ID, token);
        lookup.step_ended(1 + drafted.len(), 0, timed(1 + drafted.len()));
        tokens.push(token);
    }
    assert!(!draft(&mut lookup, &tokens, 1, 8).is_empty());
}

#[test]
fn a_large_batch_gets_no_drafts_where_its_rows_cost_as_much_as_tokens_alone() {
    let tokens = [vec![5; 40], vec![6; 40], vec![5; 20]].concat();
    let mut lookup = PromptLookup::default();
    assert!(!draft(&mut lookup, &tokens, 1, 8).is_empty());
    assert!(draft(&mut lookup, &tokens, 64, 8).is_empty());
    assert!(!draft(&mut free(), &tokens, 64, 8).is_empty());
}

#[test]
fn a_forgotten_request_leaves_nothing() {
    let mut lookup = PromptLookup::default();
    for choice in 0..3 {
        lookup.draft(&DraftRequest { id: SequenceId { choice, ..ID }, tokens: &[1, 1, 1], rows: 1, most: 1 });
    }
    lookup.draft(&DraftRequest { id: SequenceId { request: 2, choice: 0 }, tokens: &[1], rows: 1, most: 1 });
    lookup.forget(ID.request);
    assert_eq!(lookup.sequences.len(), 1);
    lookup.sampled(ID, 1);
}

#[test]
fn it_is_on_where_it_was_measured() {
    for (speculation, class, drafts) in [
        (Speculation::Auto, DeviceClass::Host, true),
        (Speculation::Auto, DeviceClass::Gpu, false),
        (Speculation::Auto, DeviceClass::Software, false),
        (Speculation::PromptLookup, DeviceClass::Gpu, true),
        (Speculation::Off, DeviceClass::Host, false),
    ] {
        assert_eq!(speculation.drafter(class).is_some(), drafts, "{speculation:?} on {class:?}");
    }
}
