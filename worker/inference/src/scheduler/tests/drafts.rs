//! Rows of tokens that may follow.

use super::*;

/// Computes a step in which each decoding sequence has this draft; it is not complete yet.
fn drafted(runs: &mut Runs, draft: &[u32]) -> SchedulerStep {
    let mut step = runs.scheduler.plan();
    runs.scheduler.add_drafts(&mut step, |_| draft.to_vec());
    let spans: Vec<StepSpan<'_>> = step.spans.iter().map(|span| runs.scheduler.span(span)).collect();
    runs.model.forward(&spans);
    step
}

#[test]
fn a_right_draft_saves_steps() {
    let mut runs = Runs::new(ROOMY);
    runs.submit(&text(20), 1, 30);
    runs.step();
    let rest = runs.requests[0].solo[0][1..9].to_vec();
    let step = drafted(&mut runs, &rest);
    let span = &step.spans[0];
    assert_eq!((span.positions.clone(), span.drafted, span.logit_rows()), (20..29, 8, 9));
    assert_eq!(runs.scheduler.span(span).tokens[1..], rest);
    runs.scheduler.complete(&step);
    let id = span.id;
    assert!(rest.iter().all(|token| runs.scheduler.push(id, *token)));
    assert!(!runs.scheduler.push(id, 7));
    assert_eq!(runs.scheduler.plan().spans[0].positions, 29..30);
}

#[test]
fn a_wrong_draft_leaves_nothing_behind() {
    let mut runs = Runs::new(ROOMY);
    runs.submit(&text(20), 1, 30);
    runs.step();
    let answer = runs.requests[0].solo[0].clone();
    let draft = [&answer[1..3], &[1000; 30]].concat();
    let step = drafted(&mut runs, &draft);
    assert_eq!((step.spans[0].positions.clone(), runs.scheduler.stats().blocks_used), (20..53, 4));
    runs.scheduler.complete(&step);
    let id = step.spans[0].id;
    let pushed: Vec<bool> = answer[1..4].iter().map(|token| runs.scheduler.push(id, *token)).collect();
    assert_eq!(pushed, [true, true, false]);
    assert_eq!(runs.scheduler.stats().blocks_used, 2);
    runs.requests[0].answers[0] = answer[..4].to_vec();
    runs.finish();
    runs.assert_answers();
    let known = [&text(20)[..], &answer, &[9]].concat();
    assert_eq!(runs.scheduler.cached_tokens(&known.into()), (20 + 29) / BLOCK_SIZE * BLOCK_SIZE);
    let wrong = [&text(20)[..], &answer[..3], &[1000; 30]].concat();
    assert_eq!(runs.scheduler.cached_tokens(&wrong.into()), 16, "of a draft nothing is found");
}

#[test]
fn a_draft_takes_only_what_is_left() {
    let mut runs = Runs::new(SchedulerLimits { blocks: 4, draft_budget: 20, ..ROOMY });
    runs.submit(&text(20), 1, 30);
    runs.submit(&[5; 10], 1, 6);
    runs.step();
    let step = drafted(&mut runs, &[1; 50]);
    // The first takes what the budget allows, with the last free block.
    let spans: Vec<_> = step.spans.iter().map(|span| (span.positions.clone(), span.drafted)).collect();
    assert_eq!(spans, [(20..41, 20), (10..11, 0)]);
    let mut runs = Runs::new(SchedulerLimits { blocks: 4, draft_budget: 60, ..ROOMY });
    runs.submit(&text(20), 1, 30);
    runs.submit(&[5; 10], 1, 6);
    runs.step();
    let step = drafted(&mut runs, &[1; 50]);
    let spans: Vec<_> = step.spans.iter().map(|span| (span.positions.clone(), span.drafted)).collect();
    assert_eq!(spans, [(20..48, 27), (10..16, 5)], "the other one has the rest of its block");
    assert_eq!(runs.scheduler.stats().preemptions, 0);
}

#[test]
fn prompts_get_no_drafts() {
    let mut runs = Runs::new(ROOMY);
    runs.submit(&text(100), 3, 4);
    for _ in 0..2 {
        let step = drafted(&mut runs, &[1, 2, 3]);
        assert!(step.spans.iter().all(|span| span.drafted == 0));
        runs.scheduler.complete(&step);
    }
}

#[test]
fn choices_draft_for_themselves() {
    let mut runs = Runs::drafting(ROOMY, 3);
    runs.submit(&text(40), 4, 60);
    let mut steps = 0;
    while runs.scheduler.has_work() {
        runs.step();
        steps += 1;
    }
    assert!(steps < 40 && runs.accepted > 100, "{steps} steps, {} accepted", runs.accepted);
    assert_eq!(runs.rows, 40 + 4 * 59 + runs.drafted - runs.accepted);
    runs.assert_answers();
}
