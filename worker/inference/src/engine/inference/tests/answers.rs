//! What answers are made of, and what ends them.

use super::*;

/// The first of many seeds whose answer ends by itself before its last token, and that answer.
fn ended_early(engine: &mut Runs) -> (Job, Vec<EventKind>) {
    let ended = (0..=255).find_map(|number| {
        let log = run(engine, job(number));
        let (reason, usage) = ending(&log);
        (reason == FinishReason::Stop && usage.completion_tokens < 8).then_some((job(number), log))
    });
    ended.expect("no seed draws the end token early")
}

#[test]
fn a_stop_string_ends_the_answer_and_is_not_sent() {
    let mut engine = engine(1);
    let whole = text(&run(&mut engine, job(5)));
    let stop: String = whole.chars().skip(3).take(2).collect();
    let mut stopped = job(5);
    stopped.request.stop = vec![stop.clone()];
    let log = run(&mut engine, stopped);
    let (reason, usage) = ending(&log);
    assert_eq!(reason, FinishReason::Stop);
    assert!(usage.completion_tokens < 12);
    assert_eq!(text(&log), whole.split(&stop).next().unwrap());
    assert_eq!(ids(&log).len(), usage.completion_tokens as usize);
}

#[test]
fn the_end_token_counts_but_is_not_sent() {
    let mut engine = engine(1);
    // Among many seeds, some soon draw the end token.
    let ended = (0..=255).find_map(|number| {
        let log = run(&mut engine, job(number));
        (ending(&log).0 == FinishReason::Stop).then_some(log)
    });
    let log = ended.expect("no seed draws the end token");
    assert_eq!(ids(&log).len() + 1, ending(&log).1.completion_tokens as usize);
}

#[test]
fn the_least_tokens_come_before_the_end() {
    let mut engine = engine(1);
    let (mut job, early) = ended_early(&mut engine);
    let before = ids(&early);
    job.request.sampling.min_tokens = before.len() as u32;
    assert_eq!(content(&run(&mut engine, job.clone())), content(&early), "just as many are enough");
    job.request.sampling.min_tokens += 1;
    let later = run(&mut engine, job.clone());
    assert_eq!(ids(&later)[..before.len()], before);
    assert!(ids(&later).len() > before.len());
    job.request.sampling.min_tokens = 12;
    assert_eq!(ids(&run(&mut engine, job)).len(), 12);
}

#[test]
fn an_ignored_end_token_is_a_token_without_text() {
    let mut engine = engine(1);
    let (mut job, early) = ended_early(&mut engine);
    job.request.sampling.ignore_eos = true;
    let log = run(&mut engine, job);
    let (reason, usage) = ending(&log);
    assert_eq!((reason, usage.completion_tokens), (FinishReason::Length, 12));
    let before = ids(&early);
    assert_eq!(ids(&log)[..before.len()], before);
    assert_eq!(ids(&log)[before.len()], END);
    assert!(text(&log).starts_with(&text(&early)) && !text(&log).contains("<|im_end|>"));
}

#[test]
fn a_stop_token_ends_the_answer_and_is_not_sent() {
    let mut engine = engine(1);
    let whole = ids(&run(&mut engine, job(5)));
    let stop = whole[4];
    let mut stopped = job(5);
    stopped.request.sampling.stop_token_ids = vec![END, stop];
    stopped.request.sampling.ignore_eos = true;
    let log = run(&mut engine, stopped.clone());
    let before: Vec<u32> = whole.iter().copied().take_while(|&id| id != stop).collect();
    assert_eq!(ids(&log), before);
    let (reason, usage) = ending(&log);
    assert_eq!((reason, usage.completion_tokens as usize), (FinishReason::Stop, before.len() + 1));
    stopped.request.sampling.min_tokens = 12;
    let log = run(&mut engine, stopped);
    assert_eq!(ending(&log).0, FinishReason::Length);
    assert!(!ids(&log).contains(&stop) && !ids(&log).contains(&END));
}

#[test]
fn a_repetition_penalty_knows_the_prompt() {
    let mut engine = engine(1);
    let mut weakened = job(6);
    weakened.request.messages[0].content = "zzzz".to_owned();
    weakened.request.sampling.logit_bias = vec![(u32::from(b'z'), 20.0)];
    weakened.request.max_tokens = Some(1);
    assert_eq!(ids(&run(&mut engine, weakened.clone())), [u32::from(b'z')]);
    weakened.request.sampling.repetition_penalty = 1e6;
    assert_ne!(ids(&run(&mut engine, weakened)), [u32::from(b'z')]);
}

#[test]
fn options_that_the_model_can_not_honour_are_refused() {
    let mut engine = engine(1);
    let vocabulary = testing::VOCABULARY as u32;
    let mut good = job(1);
    good.request.sampling.logit_bias = vec![(0, 1.0), (vocabulary - 1, 1.0)];
    good.request.sampling.stop_token_ids = vec![vocabulary - 1];
    ending(&run(&mut engine, good));

    let mut biased = job(1);
    biased.request.sampling.logit_bias = vec![(0, 1.0), (vocabulary, 1.0)];
    let mut stopped = job(1);
    stopped.request.sampling.stop_token_ids = vec![0, u32::MAX];
    let mut long = job(1);
    long.request.max_tokens = None;
    long.request.sampling.min_tokens = CONTEXT as u32;
    for (job, code, param) in [
        (biased, ErrorCode::InvalidValue, "logit_bias.258"),
        (stopped, ErrorCode::InvalidValue, "stop_token_ids[1]"),
        (long, ErrorCode::ContextLengthExceeded, "min_tokens"),
    ] {
        let log = run(&mut engine, job);
        let error = error(&log);
        assert_eq!((error.status, error.code, error.param.as_deref()), (400, code, Some(param)));
    }
}

#[test]
fn choices_share_a_prompt_and_say_what_each_says_alone() {
    let mut runs = engine(4);
    let mut three = job(7);
    three.request.n = 3;
    let log = run(&mut runs, three.clone());
    let rows = runs.engine.counts().rows;
    let texts: Vec<_> = (0..3).map(|number| choice(&log, number)).collect();
    assert!(texts[0].0 != texts[1].0 && texts[1].0 != texts[2].0);
    let tokens = usage(&log);
    assert_eq!(u64::from(tokens.prompt_tokens + tokens.completion_tokens - 3), rows, "the prompt once");
    assert_eq!(tokens.cached_tokens, 0);
    // The first is what the only one would be; all are the same with fewer slots than choices.
    assert_eq!(choice(&run(&mut runs, job(7)), 0), texts[0]);
    let mut narrow = engine(1);
    let log = run(&mut narrow, three);
    assert_eq!((0..3).map(|number| choice(&log, number)).collect::<Vec<_>>(), texts);
}

#[test]
fn each_choice_ends_by_itself() {
    let mut runs = engine(4);
    let mut many = job(5);
    many.request.n = 4;
    let whole = run(&mut runs, many.clone());
    let first = choice(&whole, 0).1;
    let stop: String = first.chars().skip(2).take(2).collect();
    many.request.stop = vec![stop.clone()];
    let log = run(&mut runs, many);
    let mut tokens = 0;
    for number in 0..4 {
        let (ids, text, reason) = choice(&log, number);
        let before = choice(&whole, number);
        if before.1.contains(&stop) {
            assert_eq!((text.as_str(), reason), (before.1.split(&stop).next().unwrap(), FinishReason::Stop));
            tokens += ids.len();
        } else {
            assert_eq!((&ids, &text, reason), (&before.0, &before.1, before.2));
            tokens += ids.len() + usize::from(reason == FinishReason::Stop);
        }
    }
    assert!(first.contains(&stop));
    assert_eq!(usage(&log).completion_tokens as usize, tokens, "what came after a stop does not count");
}

#[test]
fn log_probabilities_come_with_every_token() {
    let mut runs = engine_with(|options| {
        options.slots = Some(2);
        // What is rounded in the cache is not the reference's.
        options.cache_dtype = CacheDtype::F32;
    });
    let mut scored = job(3);
    scored.request.logprobs = Some(3);
    scored.request.n = 2;
    // They are those of the network: no option changes them.
    scored.request.sampling.temperature = 1.7;
    scored.request.sampling.logit_bias = vec![(7, -5.0)];
    let log = run(&mut runs, scored.clone());
    for kind in &log {
        let EventKind::Tokens { ids, logprobs, .. } = kind else { continue };
        assert_eq!(ids.len(), logprobs.len());
        for scores in logprobs {
            assert_eq!(scores.top.len(), 3);
            assert!(scores.top.is_sorted_by(|a, b| a.logprob >= b.logprob));
            let likeliest = scores.top[0].logprob;
            assert!((IMPOSSIBLE_LOGPROB..=likeliest).contains(&scores.token.logprob) && likeliest <= 0.0);
        }
    }
    let first = |log: &[EventKind]| {
        log.iter().find_map(|kind| match kind {
            EventKind::Tokens { ids, logprobs, .. } => Some((ids[0], logprobs[0].clone())),
            _ => None,
        })
    };
    let (id, scores) = first(&log).unwrap();
    // The tiny model's tokens are bytes.
    assert_eq!(scores.token.bytes, [id as u8]);
    let prompt = runs.engine.renderer.prepare(scored.clone(), Instant::now()).unwrap().prompt;
    let logits = testing::reference(&testing::tensors(), &prompt);
    let exact = logits[id as usize] - logits.iter().map(|logit| logit.exp()).sum::<f64>().ln();
    assert!((f64::from(scores.token.logprob) - exact).abs() < 1e-3);
    // None but the token's own.
    scored.request.logprobs = Some(0);
    let (_, scores) = first(&run(&mut runs, scored)).unwrap();
    assert!(scores.top.is_empty());
}

#[test]
fn what_the_device_picks_is_what_the_host_picks() {
    // Large differences between logits, so that rounding decides nothing.
    let jobs = || {
        (0..24_u8).map(|number| {
            let mut job = job(number);
            job.request.sampling = SamplingOptions {
                temperature: [0.0, 0.3, 1.0, 1.6][usize::from(number % 4)],
                top_k: [0, 5, 1][usize::from(number % 3)],
                top_p: [1.0, 0.8][usize::from(number % 2)],
                min_p: [0.0, 0.0, 0.1, 0.0, 0.2][usize::from(number % 5)],
                // Some are sampled on the host for all that.
                presence_penalty: if number % 7 == 0 { 0.5 } else { 0.0 },
                min_tokens: u32::from(number % 6) / 2,
                ..SamplingOptions::default()
            };
            job.request.logprobs = (number % 8 == 7).then_some(1);
            job.request.n = 1 + u32::from(number % 4 == 1);
            job
        })
    };
    let mut runs = engine(8);
    let on_host = run_all(&mut runs, jobs());
    runs.engine.sampler.on_device = true;
    let on_device = run_all(&mut runs, jobs());
    for (job, log) in on_host {
        assert_eq!(content(&log), content(&on_device[&job]));
    }
}
