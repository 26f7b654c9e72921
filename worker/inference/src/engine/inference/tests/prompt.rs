//! What is told of prompts, and answers without tokens.

use emberline_protocol::event::TokenLogprob;
use emberline_protocol::job::RawPrompt;
use emberline_protocol::prompt::PromptToken;

use super::*;

/// So long that it is computed in several chunks, and crosses cache blocks.
fn tokens() -> Vec<u32> {
    (0..70_u32).map(|n| n * n % 251 % 120).collect()
}

fn raw(number: u8, tokens: Vec<u32>) -> Job {
    let plain = job(number);
    let request = GenerationRequest {
        messages: Vec::new(),
        prompt: Some(RawPrompt::Tokens(tokens)),
        max_tokens: Some(1),
        ..plain.request
    };
    Job { request, ..plain }
}

fn scored(number: u8, top: u32) -> Job {
    let mut job = raw(number, tokens());
    job.request.prompt_logprobs = Some(top);
    job
}

/// What a log tells of its prompt, after checking that it is whole and comes before the answer.
pub(super) fn prompt(log: &[EventKind]) -> Vec<PromptToken> {
    let mut told = Vec::new();
    let mut answered = false;
    for kind in log {
        match kind {
            EventKind::Prompt { position, tokens } => {
                assert_eq!(*position as usize, told.len());
                assert!(!answered && !tokens.is_empty());
                told.extend(tokens.clone());
            }
            EventKind::Tokens { .. } | EventKind::Finish { .. } => answered = true,
            _ => {}
        }
    }
    told
}

/// The log-probability of the token that follows `before`, when it is generated, and those beside it.
fn generated(runs: &mut Runs, before: &[u32], token: u32, top: u32) -> TokenLogprobs {
    let mut forced = raw(200, before.to_vec());
    forced.request.logprobs = Some(top);
    forced.request.sampling.temperature = 0.0;
    forced.request.sampling.logit_bias = vec![(token, 100.0)];
    forced.request.sampling.ignore_eos = true;
    let log = run(runs, forced);
    let told = log.iter().find_map(|kind| match kind {
        EventKind::Tokens { ids, logprobs, .. } => Some((ids[0], logprobs[0].clone())),
        _ => None,
    });
    let (id, logprobs) = told.unwrap();
    assert_eq!(id, token);
    logprobs
}

#[test]
fn a_prompts_token_is_as_probable_as_when_it_is_generated() {
    let mut runs = engine_with(|options| {
        options.prefill_budget = Some(11);
        // What is rounded in the cache is not the plain implementation's.
        options.cache_dtype = CacheDtype::F32;
    });
    let log = run(&mut runs, scored(1, 3));
    let (told, tokens) = (prompt(&log), tokens());
    assert_eq!(told.iter().map(|token| token.id).collect::<Vec<_>>(), tokens);
    assert!(told[0].score.is_none(), "nothing is before it");
    for position in [1, 2, 11, 12, 15, 16, 33, 69] {
        let score = told[position].score.clone().unwrap();
        let wanted = generated(&mut runs, &tokens[..position], tokens[position], 3);
        assert_eq!(score.logprob.to_bits(), wanted.token.logprob.to_bits(), "position {position}");
        let bits = |top: &[TokenLogprob]| -> Vec<(u32, u32)> {
            top.iter().map(|token| (token.id, token.logprob.to_bits())).collect()
        };
        assert_eq!(bits(&score.top), bits(&wanted.top));
        assert_eq!(told[position].bytes, wanted.token.bytes);
        match score.top.iter().position(|other| other.id == tokens[position]) {
            Some(place) => assert_eq!(score.rank as usize, place + 1),
            None => assert!(score.rank > 3),
        }
    }
    // And as the plain implementation has it.
    let logits = testing::reference(&testing::tensors(), &tokens[..50]);
    let exact = logits[tokens[50] as usize] - logits.iter().map(|logit| logit.exp()).sum::<f64>().ln();
    assert!((f64::from(told[50].score.as_ref().unwrap().logprob) - exact).abs() < 1e-3);
}

#[test]
fn chunks_company_and_cache_change_nothing() {
    let whole = prompt(&run(&mut engine(1), scored(1, 2)));
    assert_eq!(whole.len(), 70);
    for budget in [1, 7, 16, 64] {
        let mut runs = engine_with(|options| {
            options.slots = Some(4);
            options.prefill_budget = Some(budget);
        });
        // What the cache knows does not count.
        run(&mut runs, raw(9, tokens()));
        let jobs = [scored(1, 2), job(2), scored(3, 2), job(4)];
        let logs = run_all(&mut runs, jobs);
        for number in [1, 3] {
            let log = &logs[&job(number).id];
            assert!(matches!(&log[0], EventKind::Accepted(accepted) if accepted.cached_tokens == 0));
            assert_eq!(usage(log).cached_tokens, 0);
            assert_eq!(prompt(log), whole, "chunks of {budget}");
        }
    }
    // In a cache so small that prompts are put off.
    let mut tight = engine_with(|options| {
        options.slots = Some(6);
        options.cache = CacheSize::Blocks(6);
        options.prefill_budget = Some(9);
    });
    let mut jobs: Vec<Job> = (0..4).map(job).collect();
    jobs.iter_mut().for_each(|job| job.request.max_tokens = Some(40));
    jobs.push(scored(8, 2));
    let logs = run_all(&mut tight, jobs);
    assert!(tight.engine.stats().scheduler.preemptions > 0);
    assert_eq!(prompt(&logs[&job(8).id]), whole);
}

#[test]
fn choices_share_a_prompt_that_is_told_once() {
    let mut three = scored(1, 0);
    (three.request.n, three.request.max_tokens) = (3, Some(5));
    let mut runs = engine(4);
    let log = run(&mut runs, three.clone());
    let told = prompt(&log);
    assert_eq!(told.len(), 70);
    assert!(told.iter().skip(1).all(|token| token.score.as_ref().is_some_and(|score| score.top.is_empty())));
    // It changes nothing about the answer.
    three.request.prompt_logprobs = None;
    let plain = run(&mut runs, three);
    for number in 0..3 {
        assert_eq!(choice(&log, number), choice(&plain, number));
    }
}

#[test]
fn ids_are_told_before_anything_is_computed() {
    let mut told = raw(1, tokens());
    told.request.return_token_ids = true;
    let mut runs = engine(1);
    run(&mut runs, raw(2, tokens()));
    runs.submit(told);
    runs.read();
    let [EventKind::Accepted(accepted), EventKind::Prompt { position: 0, tokens: ids }] = runs.log(1) else {
        panic!("{:?}", runs.log(1))
    };
    assert_eq!(ids.iter().map(|token| token.id).collect::<Vec<_>>(), tokens());
    assert!(ids.iter().all(|token| token.bytes.is_empty() && token.score.is_none()));
    assert_eq!(accepted.cached_tokens, 64, "ids are known without computing");
    runs.finish();
    // Of a conversation, what the template made of it.
    let mut chat = job(3);
    chat.request.return_token_ids = true;
    let wanted = runs.engine.renderer.prepare(chat.clone(), Instant::now()).unwrap().prompt;
    let told = prompt(&run(&mut runs, chat));
    assert_eq!(told.into_iter().map(|token| token.id).collect::<Vec<_>>(), wanted);
}

#[test]
fn no_tokens_are_an_answer_where_only_the_prompt_is_of_interest() {
    let mut runs = engine(2);
    for (number, n) in [(1, 1), (2, 3)] {
        let mut silent = scored(number, 1);
        (silent.request.max_tokens, silent.request.n) = (Some(0), n);
        let log = run(&mut runs, silent);
        assert_eq!(prompt(&log).len(), 70);
        assert!(!log.iter().any(|kind| matches!(kind, EventKind::Tokens { .. })));
        for number in 0..n {
            let end = EventKind::Finish { choice: number, reason: FinishReason::Length };
            assert_eq!(log.iter().filter(|kind| **kind == end).count(), 1);
        }
        assert_eq!(usage(&log).completion_tokens, 0);
        assert_eq!(runs.engine.counts().rows % 70, 0, "nothing else is computed");
    }
    // Then the prompt may fill the context.
    let whole: Vec<u32> = tokens().into_iter().cycle().take(CONTEXT + 1).collect();
    for (length, fits) in [(CONTEXT, true), (CONTEXT + 1, false)] {
        let mut full = raw(3, whole[..length].to_vec());
        (full.request.prompt_logprobs, full.request.max_tokens) = (Some(0), Some(0));
        let log = run(&mut runs, full);
        if fits {
            assert_eq!(prompt(&log).len(), CONTEXT);
        } else {
            assert_eq!(error(&log).code, ErrorCode::ContextLengthExceeded);
        }
    }
    // An echo alone needs no log-probabilities either.
    let mut echo = raw(4, tokens());
    (echo.request.echo, echo.request.max_tokens) = (true, Some(0));
    let log = run(&mut runs, echo);
    assert!(matches!(&log[0], EventKind::Accepted(accepted) if accepted.prompt_text.is_some()));
    assert_eq!(usage(&log).completion_tokens, 0);
}

#[test]
fn a_prompt_of_one_token_has_no_log_probability() {
    let mut one = raw(1, vec![65]);
    one.request.prompt_logprobs = Some(1);
    let told = prompt(&run(&mut engine(1), one));
    assert_eq!(told, [PromptToken { id: 65, bytes: b"A".to_vec(), score: None }]);
}

#[test]
fn named_tokens_are_told_instead_of_the_most_probable_ones() {
    let mut runs = engine(1);
    let mut named = job(3);
    named.request.logprobs = Some(1);
    let logprobs = |log: &[EventKind]| -> Vec<TokenLogprobs> {
        log.iter()
            .filter_map(
                |kind| if let EventKind::Tokens { logprobs, .. } = kind { Some(logprobs) } else { None },
            )
            .flatten()
            .cloned()
            .collect()
    };
    let plain = logprobs(&run(&mut runs, named.clone()));
    named.request.logprob_token_ids = vec![70, 66];
    let told = logprobs(&run(&mut runs, named.clone()));
    assert_eq!(told.len(), plain.len());
    for (told, plain) in told.iter().zip(&plain) {
        assert_eq!(told.token, plain.token);
        assert_eq!(told.top.iter().map(|token| token.id).collect::<Vec<_>>(), [70, 66]);
        assert!(told.top.iter().all(|token| token.logprob <= plain.top[0].logprob));
    }
    named.request.logprob_token_ids = vec![testing::VOCABULARY as u32];
    assert_eq!(error(&run(&mut runs, named)).param.as_deref(), Some("logprob_token_ids[0]"));
}

/// A job whose answer is letters; the tiny model's tokens are bytes.
pub(super) fn in_letters(number: u8) -> Job {
    let mut job = job(number);
    job.request.sampling.logit_bias = (97..123).map(|letter| (letter, 50.0)).collect();
    job
}

#[test]
fn bad_words_do_not_appear() {
    let mut runs = engine(1);
    let plain = run(&mut runs, in_letters(5));
    let (said, tokens) = (text(&plain), ids(&plain));
    let pair: String = said.chars().skip(3).take(2).collect();
    let letter: String = said.chars().nth(1).unwrap().into();
    let mut avoiding = in_letters(5);
    avoiding.request.sampling.bad_words = vec![pair.clone()];
    let log = run(&mut runs, avoiding.clone());
    assert!(!text(&log).contains(&pair));
    let same = tokens.iter().zip(ids(&log)).take_while(|(a, b)| **a == *b).count();
    assert_eq!(Some(same), said.find(&pair).map(|at| at + 1), "all is as before until the word would end");
    avoiding.request.sampling.bad_words.push(letter.clone());
    let log = run(&mut runs, avoiding);
    assert!(!text(&log).contains(&letter) && !text(&log).contains(&pair));
    let mut empty = job(6);
    empty.request.sampling.bad_words = vec!["x".to_owned(), "  ".to_owned()];
    assert_eq!(error(&run(&mut runs, empty)).param.as_deref(), Some("bad_words[1]"));
}

#[test]
fn only_the_same_salt_shares_the_cache() {
    let mut runs = engine(1);
    let mut cached = |salt: Option<&str>| {
        let mut salted = raw(1, tokens());
        salted.request.cache_salt = salt.map(str::to_owned);
        usage(&run(&mut runs, salted)).cached_tokens
    };
    assert_eq!(cached(Some("a")), 0);
    assert_eq!(cached(Some("a")), 64);
    assert_eq!(cached(Some("b")), 0);
    assert_eq!(cached(None), 0);
    assert_eq!(cached(None), 64);
}
