//! Answers that obey.

use emberline_protocol::job::Constraint;
use serde_json::{Value, json};

use super::*;

fn constrained(number: u8, constraint: Constraint) -> Job {
    let mut job = job(number);
    job.request.constraint = Some(constraint);
    job.request.max_tokens = Some(40);
    job
}

fn regex(number: u8, regex: &str) -> Job {
    constrained(number, Constraint::Regex(regex.to_owned()))
}

/// Objects of at most 30 bytes.
fn small_object(number: u8) -> Job {
    let schema = json!({
        "type": "object",
        "properties": { "a": { "enum": ["x", "yy"] }, "b": { "type": "integer", "minimum": 0, "maximum": 99 } },
        "required": ["a", "b"],
    });
    constrained(number, Constraint::JsonSchema { schema, strict: false })
}

fn assert_small_object(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap();
    assert!(
        ["x", "yy"].contains(&value["a"].as_str().unwrap()) && value["b"].as_u64().unwrap() < 100,
        "{text}"
    );
}

#[test]
fn neighbours_say_what_they_say_alone() {
    let mut engine = engine(8);
    let jobs = || (0..8).map(|number| if number % 2 == 0 { job(number) } else { small_object(number) });
    let together = run_all(&mut engine, jobs());
    for job in jobs() {
        let (log, id) = (&together[&job.id], job.id.clone());
        if job.request.constraint.is_some() {
            assert_small_object(&text(log));
            assert_eq!(ending(log).0, FinishReason::Stop);
        }
        assert_eq!(content(log), content(&run(&mut engine, job)), "{id}");
    }
    let counts = engine.engine.counts();
    assert!(counts.masks > 0 && counts.mask_time > Duration::ZERO);
    assert!(counts.mask_wait <= counts.step_time && counts.step_time > Duration::ZERO);
}

#[test]
fn an_answer_that_is_complete_ends_with_its_last_token() {
    let mut engine = engine(1);
    let mut job = regex(1, "[a-c]{7}");
    // Not one token more is needed to find out, nor wanted.
    job.request.max_tokens = Some(7);
    job.request.sampling.min_tokens = 7;
    job.request.sampling.ignore_eos = true;
    let log = run(&mut engine, job);
    assert_eq!((text(&log).len(), ending(&log).1.completion_tokens), (7, 7));
    assert_eq!(ending(&log).0, FinishReason::Stop);
    let log = run(&mut engine, regex(1, "[a-c]{60}"));
    assert_eq!((text(&log).len(), ending(&log).0), (40, FinishReason::Length));
}

#[test]
fn the_least_tokens_put_off_the_end_where_the_grammar_lets_them() {
    let mut engine = engine(1);
    for seed in 0..10 {
        let mut job = regex(1, "[a-z]*");
        job.seed = seed;
        job.request.sampling.min_tokens = 5;
        job.request.sampling.logit_bias = vec![(END, 20.0)];
        let log = run(&mut engine, job.clone());
        assert_eq!((text(&log).len(), ending(&log).0), (5, FinishReason::Stop));
        // Nothing but the end is allowed after this.
        job.request.constraint = Some(Constraint::Regex("a".into()));
        assert_eq!(text(&run(&mut engine, job)), "a");
    }
}

#[test]
fn the_end_is_allowed_where_the_grammar_may_end_whatever_is_ignored() {
    let mut job = regex(1, "(ab)*");
    job.request.sampling.ignore_eos = true;
    job.request.sampling.logit_bias = vec![(END, 20.0)];
    let log = run(&mut engine(1), job);
    assert_eq!((text(&log).as_str(), ending(&log).0), ("", FinishReason::Stop));
}

#[test]
fn stop_strings_and_tokens_cut_what_is_not_complete() {
    let mut engine = engine(1);
    let mut job = regex(1, "abcdef");
    job.request.stop = vec!["cd".into()];
    let log = run(&mut engine, job);
    assert_eq!((text(&log).as_str(), ending(&log).0), ("ab", FinishReason::Stop));
    let mut job = regex(1, "abcdef");
    job.request.sampling.stop_token_ids = vec![u32::from(b'd')];
    let log = run(&mut engine, job);
    assert_eq!((text(&log).as_str(), ending(&log).0), ("abc", FinishReason::Stop));
}

#[test]
fn an_answer_that_can_not_go_on_fails_and_its_neighbours_do_not() {
    let mut engine = engine(3);
    let stuck = constrained(1, Constraint::Grammar("start: \"ab\" X\nX: /c/ & /d/\n".into()));
    let logs = run_all(&mut engine, [stuck, job(2), small_object(3)]);
    let failed: Vec<_> = logs[&job(1).id].iter().filter(|kind| matches!(kind, EventKind::Error(_))).collect();
    let [EventKind::Error(error)] = failed[..] else { panic!("{:?}", logs[&job(1).id]) };
    assert_eq!(error.code, ErrorCode::InvalidValue);
    // What was generated before is charged.
    let usage = error.usage.unwrap();
    assert_eq!(usage.completion_tokens as usize, ids(&logs[&job(1).id]).len());
    assert!(usage.completion_tokens > 0 && usage.prompt_tokens > 0, "{usage:?}");
    assert_eq!(content(&logs[&job(2).id]), content(&run(&mut engine, job(2))));
    assert_small_object(&text(&logs[&job(3).id]));
}

#[test]
fn each_choice_goes_its_own_way_through_the_grammar() {
    let mut job = small_object(1);
    job.request.n = 4;
    let log = run(&mut engine(4), job);
    let texts: Vec<_> = (0..4).map(|number| choice(&log, number)).collect();
    for (_, text, reason) in &texts {
        assert_small_object(text);
        assert_eq!(*reason, FinishReason::Stop);
    }
    assert!(texts.iter().any(|other| other.1 != texts[0].1), "{texts:?}");
}

#[test]
fn answers_that_have_to_start_again_still_obey() {
    let mut crowded = engine_with(|options| {
        options.slots = Some(6);
        options.cache = CacheSize::Blocks(7);
        options.prefill_budget = Some(5);
    });
    let long = |number| {
        let mut job = regex(number, "([a-c]{5}-){9}");
        job.request.max_tokens = Some(60);
        job
    };
    let logs = run_all(&mut crowded, (0..6).map(long));
    assert!(crowded.engine.stats().scheduler.preemptions > 0, "nothing was crowded out");
    let mut roomy = engine(6);
    for number in 0..6 {
        let log = &logs[&job(number).id];
        assert_eq!((text(log).len(), ending(log).0), (54, FinishReason::Stop));
        assert_eq!(content(log), content(&run(&mut roomy, long(number))));
    }
}

#[test]
fn log_probabilities_are_the_networks_own() {
    let mut job = regex(1, "[ab]");
    job.request.logprobs = Some(20);
    let log = run(&mut engine(1), job);
    let logprobs = log.iter().find_map(|kind| match kind {
        EventKind::Tokens { logprobs, .. } => logprobs.first(),
        _ => None,
    });
    let other = |bytes: &[u8]| bytes != b"a" && bytes != b"b";
    assert!(
        logprobs.unwrap().top.iter().any(|token| other(&token.bytes) && token.logprob > IMPOSSIBLE_LOGPROB)
    );
}

#[test]
fn what_can_not_be_enforced_is_refused_before_anything_is_computed() {
    let schema = json!({ "not": { "type": "string" } });
    let log = run(&mut engine(1), constrained(1, Constraint::JsonSchema { schema, strict: true }));
    assert_eq!(error(&log).code, ErrorCode::UnsupportedParameter);
    assert_eq!(error(&log).param.as_deref(), Some("response_format.json_schema.schema.not"));
}
