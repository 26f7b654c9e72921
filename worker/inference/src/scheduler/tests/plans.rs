//! What is planned for given sequences.

use super::*;

#[test]
fn a_prompt_is_computed_in_chunks_and_then_one_token_at_a_time() {
    let mut runs = Runs::new(ROOMY);
    runs.submit(&text(150), 1, 3);
    let rows: Vec<usize> = std::iter::from_fn(|| Some(runs.step().rows()).filter(|rows| *rows > 0)).collect();
    assert_eq!(rows, [64, 64, 22, 1, 1]);
    runs.assert_answers();
}

#[test]
fn a_long_prompt_gives_running_sequences_their_turn_at_each_step() {
    let mut runs = Runs::new(ROOMY);
    runs.submit(&[1, 2], 1, 40);
    runs.submit(&[3], 1, 40);
    runs.step();
    runs.submit(&text(1000), 1, 2);
    for _ in 0..15 {
        let rows: Vec<usize> = runs.step().spans.iter().map(|span| span.positions.len()).collect();
        assert_eq!(rows, [1, 1, 64]);
    }
    assert_eq!(runs.step().rows(), 2 + 1000 - 15 * 64);
    runs.finish();
    runs.assert_answers();
}

#[test]
fn prompts_share_a_chunk_oldest_first() {
    let mut runs = Runs::new(ROOMY);
    for length in [30, 20, 40] {
        runs.submit(&vec![length; length as usize], 1, 1);
    }
    let step = runs.step();
    let rows: Vec<usize> = step.spans.iter().map(|span| span.positions.len()).collect();
    assert_eq!(rows, [30, 20, 14]);
    assert_eq!(runs.step().rows(), 26);
    runs.assert_answers();
}

#[test]
fn a_short_prompt_is_not_held_up_by_a_long_one_nor_the_long_one_by_many_short_ones() {
    let mut runs = Runs::new(ROOMY);
    let long = runs.submit(&text(2000), 1, 1);
    let other = runs.submit(&[5; 500], 1, 1);
    runs.step();
    for number in 0..20 {
        runs.submit(&[100 + number; 20], 1, 1);
        let rows: Vec<(u64, usize)> =
            runs.step().spans.iter().map(|span| (span.id.request, span.positions.len())).collect();
        assert_eq!(rows, [(long, 44), (other + 1 + u64::from(number), 20)]);
    }
    // As many as fit beside the oldest, shortest first.
    let short: Vec<u64> = [15, 20, 12].map(|length| runs.submit(&vec![length; length as usize], 1, 1)).into();
    let rows: Vec<(u64, usize)> =
        runs.step().spans.iter().map(|span| (span.id.request, span.positions.len())).collect();
    assert_eq!(rows, [(long, 37), (short[0], 15), (short[2], 12)]);
    runs.finish();
    runs.assert_answers();
}

#[test]
fn a_known_beginning_is_not_computed_again() {
    let mut runs = Runs::new(ROOMY);
    runs.submit(&text(1000), 1, 1);
    runs.finish();
    assert_eq!(runs.rows, 1000);
    let question = [text(1000), vec![7; 9]].concat();
    assert_eq!(runs.scheduler.cached_tokens(&question.clone().into()), 992);
    runs.submit(&question, 1, 1);
    let step = runs.step();
    assert_eq!(step.started[0].cached, 992);
    assert_eq!(runs.rows, 1000 + 8 + 9);
    runs.assert_answers();
}

#[test]
fn a_prompt_whose_logits_are_wanted_is_computed_though_it_is_known() {
    let mut runs = Runs::new(ROOMY);
    runs.submit(&text(150), 1, 1);
    runs.finish();
    for (from, cached) in [(0, 0), (31, 16), (32, 32), (149, 144)] {
        runs.rows = 0;
        let number = runs.submit_scored(&text(150), from, 3, 4);
        let step = runs.step();
        assert_eq!(step.started, [StartedPrompt { id: SequenceId { request: number, choice: 0 }, cached }]);
        runs.finish();
        assert_eq!(runs.rows, 150 - cached + 3 * 3);
    }
    // Others find it, and it waits for none that is just being computed.
    runs.submit(&[text(320), vec![1]].concat(), 1, 1);
    runs.submit_scored(&text(30), 0, 1, 1);
    assert_eq!(runs.step().started.len(), 2);
    runs.finish();
    runs.assert_answers();
}

#[test]
fn only_prompts_with_the_same_salt_share_what_is_known() {
    let mut runs = Runs::new(ROOMY);
    let salted = |salt: &str| SequencePrompt {
        salt: CacheSalt::of_request(Some(salt)),
        ..SequencePrompt::from(text(100))
    };
    runs.submit_prompt(salted("a"), 1, 1);
    runs.finish();
    let cached =
        [salted("a"), salted("b"), text(100).into()].map(|prompt| runs.scheduler.cached_tokens(&prompt));
    assert_eq!(cached, [96, 0, 0]);
    runs.submit(&text(100), 1, 1);
    runs.finish();
    assert_eq!(runs.rows, 200);
    assert_eq!(runs.scheduler.cached_tokens(&salted("")), 0);
    // Those that come together do not wait for each other either.
    runs.submit_prompt(salted("c"), 1, 1);
    runs.submit_prompt(salted("d"), 1, 1);
    runs.finish();
    assert_eq!(runs.rows, 400);
    runs.assert_answers();
}

#[test]
fn an_answer_is_known_too() {
    let mut runs = Runs::new(ROOMY);
    runs.submit(&text(20), 1, 30);
    runs.finish();
    let again = [&text(20)[..], &runs.requests[0].answers[0], &[9]].concat();
    // The last token of an answer is never computed.
    assert_eq!(runs.scheduler.cached_tokens(&again.into()), (20 + 29) / BLOCK_SIZE * BLOCK_SIZE);
}

#[test]
fn the_last_token_is_computed_even_of_a_known_prompt() {
    let mut runs = Runs::new(ROOMY);
    for (length, again) in [(32, 16), (33, 1), (47, 15), (1, 1)] {
        runs.submit(&text(length), 1, 1);
        runs.finish();
        runs.rows = 0;
        runs.submit(&text(length), 1, 1);
        runs.finish();
        assert_eq!(runs.rows, again, "of {length}");
    }
    runs.assert_answers();
}

#[test]
fn prompts_that_come_together_compute_their_common_beginning_once() {
    for prefill_budget in [64, 1000] {
        let mut runs = Runs::new(SchedulerLimits { prefill_budget, ..ROOMY });
        for number in 0..8 {
            runs.submit(&[text(320), vec![number; 5]].concat(), 1, 1);
        }
        runs.finish();
        assert_eq!(runs.rows, 320 + 8 * 5);
        runs.assert_answers();
    }
}

#[test]
fn a_prompt_waits_for_a_common_beginning_only_as_long_as_it_comes() {
    let mut runs = Runs::new(ROOMY);
    let first = runs.submit(&text(320), 1, 1);
    runs.submit(&text(300), 1, 1);
    runs.step();
    runs.cancel(first);
    runs.finish();
    assert_eq!(runs.rows, 64 + 300 - 64);
    runs.assert_answers();
}

#[test]
fn choices_share_the_prompt_and_copy_the_block_that_they_write_to() {
    let mut runs = Runs::new(ROOMY);
    runs.submit(&text(40), 4, 5);
    assert_eq!(runs.step().rows(), 40);
    assert_eq!(runs.scheduler.stats().blocks_used, 3);
    let step = runs.step();
    assert_eq!((step.rows(), step.copies.len()), (4, 3), "the last one need not copy");
    assert_eq!(runs.scheduler.stats().blocks_used, 2 + 4);
    runs.finish();
    assert_eq!(runs.rows, 40 + 4 * 4);
    runs.assert_answers();
}

#[test]
fn full_blocks_are_not_copied() {
    let mut runs = Runs::new(ROOMY);
    runs.submit(&text(32), 3, 2);
    runs.step();
    assert_eq!((runs.step().copies.len(), runs.scheduler.stats().blocks_used), (0, 0));
    runs.assert_answers();
}

#[test]
fn the_youngest_gives_way_and_is_computed_again() {
    let mut runs = Runs::new(SchedulerLimits { blocks: 8, ..ROOMY });
    for first in 0..3 {
        runs.submit(&[first; 20], 1, 60);
    }
    let mut preempted = Vec::new();
    while runs.scheduler.has_work() {
        preempted.extend(runs.step().preempted);
    }
    assert_eq!(preempted.first(), Some(&SequenceId { request: 2, choice: 0 }));
    assert!(preempted.iter().all(|id| id.request != 0), "{preempted:?}");
    runs.assert_answers();
}

#[test]
fn a_prompt_starts_when_there_is_room_for_it_and_for_those_that_run() {
    let mut runs = Runs::new(SchedulerLimits { blocks: 6, ..ROOMY });
    runs.submit(&[1; 17], 1, 31);
    runs.submit(&[2; 33], 1, 1);
    runs.step();
    assert_eq!(runs.requests[1].answers[0].len(), 1, "one block is left");
    let mut runs = Runs::new(SchedulerLimits { blocks: 5, ..ROOMY });
    runs.submit(&[1; 17], 1, 31);
    runs.submit(&[2; 33], 1, 1);
    runs.step();
    assert_eq!(runs.requests[1].answers[0].len(), 0, "none would be left");
    runs.finish();
    assert_eq!(runs.preempted, 0);
}

#[test]
fn the_end_of_what_is_known_is_forgotten_first() {
    let mut runs = Runs::new(SchedulerLimits { blocks: 8, ..ROOMY });
    runs.submit(&text(96), 1, 1);
    runs.finish();
    runs.submit(&[9; 64], 1, 1);
    runs.finish();
    assert_eq!(runs.scheduler.cached_tokens(&text(97).into()), 64);
}

#[test]
fn a_sequence_may_need_the_whole_pool() {
    let mut runs = Runs::new(SchedulerLimits { blocks: 4, ..ROOMY });
    runs.submit(&text(10), 3, 55);
    runs.submit(&text(64), 1, 1);
    runs.finish();
    assert!(runs.preempted > 0);
    runs.assert_answers();
}

#[test]
fn only_so_many_sequences_run_at_once() {
    let mut runs = Runs::new(SchedulerLimits { sequences: 3, ..ROOMY });
    runs.submit(&[1], 2, 3);
    runs.submit(&[2], 2, 3);
    runs.submit(&[3], 1, 3);
    assert_eq!(runs.step().spans.len(), 1, "no place for two more choices, and none overtakes");
    runs.submit(&[4], 16, 3);
    runs.finish();
    runs.assert_answers();
}

#[test]
fn a_cancelled_request_leaves_nothing_behind() {
    let mut runs = Runs::new(ROOMY);
    let a = runs.submit(&text(100), 4, 10);
    let b = runs.submit(&text(70), 1, 10);
    runs.cancel(b);
    runs.step();
    runs.step();
    runs.step();
    runs.cancel(a);
    assert!(!runs.scheduler.has_work());
    assert_eq!(runs.scheduler.stats().blocks_used, 0);
    runs.assert_answers();
}
