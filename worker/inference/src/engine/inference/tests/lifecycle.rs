//! Jobs from submission to their end, beside others and in a small cache.

use super::*;

#[test]
fn a_job_is_accepted_generates_and_ends() {
    let mut engine = engine(2);
    let log = run(&mut engine, job(1));
    let EventKind::Accepted(Acceptance { prompt_tokens, cached_tokens: 0, fingerprint, .. }) = &log[0] else {
        panic!("{log:?}")
    };
    assert!(fingerprint.starts_with(concat!("emberline-", env!("CARGO_PKG_VERSION"), "-")), "{fingerprint}");
    let (reason, usage) = ending(&log);
    assert_eq!((reason, usage.completion_tokens), (FinishReason::Length, 12));
    assert_eq!(usage.prompt_tokens, *prompt_tokens);
    assert_eq!(ids(&log).len(), 12);
}

#[test]
fn interleaved_jobs_equal_their_solo_runs() {
    let mut engine = engine(3);
    let together = run_all(&mut engine, (0..7).map(job));
    assert_eq!(together.len(), 7);
    for number in 0..7 {
        let alone = run(&mut engine, job(number));
        assert_eq!(content(&together[&job(number).id]), content(&alone));
    }
}

#[test]
fn the_seed_decides() {
    let mut engine = engine(1);
    let first = ids(&run(&mut engine, job(1)));
    assert_eq!(first, ids(&run(&mut engine, job(1))));
    assert_ne!(first, ids(&run(&mut engine, Job { seed: 99, ..job(1) })));
}

#[test]
fn a_job_that_arrives_while_others_run_is_answered_at_once() {
    let mut runs = engine(1);
    runs.submit(job(1));
    runs.step();
    runs.submit(job(2));
    runs.step();
    assert!(matches!(runs.log(2), [EventKind::Accepted(_)]), "accepted, without a slot");
    assert!(ids(runs.log(1)).len() > 1);
}

#[test]
fn cancelling_frees_the_slot() {
    let mut runs = engine(1);
    (1..=3).for_each(|number| runs.submit(job(number)));
    for _ in 0..3 {
        runs.step();
    }
    let usage = runs.cancel(1).unwrap();
    assert_eq!(usage.completion_tokens, 3);
    assert_eq!(runs.cancel(1), None);
    assert_eq!(runs.cancel(2).unwrap().completion_tokens, 0, "it was waiting");
    let before = runs.log(1).len();
    runs.finish();
    assert_eq!(runs.log(1).len(), before);
    let third = content(runs.log(3));
    runs.logs.clear();
    assert_eq!(third, content(&run(&mut runs, job(3))));
}

#[test]
fn a_job_can_be_cancelled_before_any_step() {
    let mut runs = engine(1);
    runs.submit(job(1));
    assert_eq!(runs.cancel(1).unwrap().completion_tokens, 0);
    runs.finish();
    assert!(runs.receivers.get_mut(&job(1).id).unwrap().is_closed());
}

#[test]
fn a_job_that_nobody_listens_to_is_dropped() {
    let mut runs = engine(1);
    runs.submit(job(1));
    runs.step();
    runs.receivers.clear();
    runs.step();
    assert!(!runs.engine.has_work());
    assert_eq!(runs.cancel(1), None);
}

#[test]
fn what_does_not_fit_the_context_is_refused_with_the_counts() {
    let mut engine = engine(1);
    let mut long = job(1);
    long.request.messages[0].content = "x".repeat(CONTEXT);
    let mut greedy = job(2);
    greedy.request.max_tokens = Some(CONTEXT as u32);
    for job in [long.clone(), greedy] {
        let log = run(&mut engine, job);
        let error = error(&log);
        assert_eq!((error.status, error.code), (400, ErrorCode::ContextLengthExceeded));
        assert_eq!(error.param.as_deref(), Some("messages"));
        assert!(error.message.contains("96 tokens"), "{}", error.message);
    }
    long.request.max_tokens = None;
    assert_eq!(error(&run(&mut engine, long)).code, ErrorCode::ContextLengthExceeded);
    // So long that its tokens are not even counted.
    let mut huge = job(1);
    huge.request.messages[0].content = "x".repeat(1 << 20);
    let message = error(&run(&mut engine, huge)).message.clone();
    assert!(message.contains("at least") && message.contains("96 tokens"), "{message}");
}

#[test]
fn without_a_limit_the_answer_may_fill_the_context() {
    let mut engine = engine(1);
    let mut unlimited = job(4);
    unlimited.request.max_tokens = None;
    let (reason, usage) = ending(&run(&mut engine, unlimited));
    let total = usage.prompt_tokens + usage.completion_tokens;
    match reason {
        FinishReason::Length => assert_eq!(total as usize, CONTEXT),
        FinishReason::Stop => assert!((total as usize) < CONTEXT),
        FinishReason::Cancelled => panic!("nobody cancelled it"),
    }
}

#[test]
fn a_job_past_its_deadline_is_given_up() {
    let mut runs = engine(1);
    let log = run(&mut runs, Job { deadline: 1, ..job(1) });
    let [EventKind::Accepted(_), EventKind::Error(error)] = &log[..] else { panic!("{log:?}") };
    assert_eq!((error.status, error.code), (504, ErrorCode::Timeout));
    runs.submit(job(2));
    runs.step();
    runs.engine.requests.values_mut().for_each(|request| request.deadline = 1);
    runs.step();
    let log = runs.log(2);
    let Some(EventKind::Error(error)) = log.last() else { panic!("{log:?}") };
    assert_eq!(error.code, ErrorCode::Timeout);
    let (usage, stats) = (error.usage.unwrap(), runs.engine.stats());
    assert!(usage.prompt_tokens > 0);
    assert_eq!(u64::from(usage.completion_tokens), stats.generated_tokens, "what was generated is charged");
    assert!(!runs.engine.has_work());
    runs.finish();
}

#[test]
fn the_fingerprint_is_that_of_the_file() {
    let (folder, file) = testing::builder(&testing::tensors()).open();
    let fingerprint = load::fingerprint;
    let first = fingerprint(file.path(), "tiny").unwrap();
    assert_eq!(first, fingerprint(file.path(), "tiny").unwrap());
    let mut tensors = testing::tensors();
    tensors[1].2[0] += 1.0;
    let (_other_folder, other) = testing::builder(&tensors).open();
    assert_ne!(first, fingerprint(other.path(), "tiny").unwrap());
    drop(folder);
    assert!(fingerprint(file.path(), "tiny").is_err());
}

#[test]
fn a_known_beginning_is_reported() {
    let mut runs = engine(1);
    let mut first = job(1);
    first.request.messages[0].content = "x".repeat(40);
    first.request.max_tokens = Some(4);
    let before = run(&mut runs, first.clone());
    let mut second = first.clone();
    second.id = JobId::from_random(99);
    let after = run(&mut runs, second);
    let EventKind::Accepted(Acceptance { prompt_tokens, cached_tokens, .. }) = after[0] else {
        panic!("{after:?}")
    };
    assert_eq!(cached_tokens, (prompt_tokens - 1) / 16 * 16);
    assert!(cached_tokens >= 32);
    assert_eq!(usage(&after).cached_tokens, cached_tokens);
    assert_eq!(usage(&before).cached_tokens, 0);
    assert_eq!(content(&before), content(&after));
}

#[test]
fn a_cache_that_is_too_small_delays_jobs_and_changes_nothing() {
    let mut roomy = engine(6);
    let jobs: Vec<Job> = (0..6)
        .map(|number| {
            let mut job = job(number);
            job.request.max_tokens = Some(60);
            job.request.n = 1 + u32::from(number % 3 == 0);
            job.request.sampling.ignore_eos = true;
            job
        })
        .collect();
    let expected = run_all(&mut roomy, jobs.clone());
    assert_eq!(roomy.engine.stats().scheduler.preemptions, 0);
    let mut tight = engine_with(|options| {
        options.slots = Some(6);
        options.cache = CacheSize::Blocks(7);
        options.prefill_budget = Some(5);
    });
    let logs = run_all(&mut tight, jobs);
    assert!(tight.engine.stats().scheduler.preemptions > 0);
    for (job, log) in logs {
        let wanted = &expected[&job];
        for number in 0..wanted.iter().filter(|kind| matches!(kind, EventKind::Finish { .. })).count() {
            assert_eq!(choice(&log, number as u32), choice(wanted, number as u32));
        }
        assert_eq!(usage(&log).completion_tokens, usage(wanted).completion_tokens);
    }
}

#[test]
fn a_context_that_the_cache_can_not_hold_is_not_promised() {
    let mut runs = engine_with(|options| options.cache = CacheSize::Blocks(2));
    assert_eq!(runs.engine.models()[0].context_length, 32);
    let mut long = job(1);
    long.request.max_tokens = Some(30);
    assert_eq!(error(&run(&mut runs, long)).code, ErrorCode::ContextLengthExceeded);
    let per_block = runs.engine.network.block_bytes(KvType::F16);
    let runs = engine_with(|options| options.cache = CacheSize::Bytes(3 * per_block + 1));
    assert_eq!(runs.engine.stats().scheduler.blocks_total, 3);
    let runs = engine_with(|options| options.context_length = Some(50));
    assert_eq!((runs.engine.models()[0].context_length, runs.engine.stats().scheduler.blocks_total), (50, 4));
}

#[test]
fn statistics_count_sequences_tokens_and_blocks() {
    let mut runs = engine(1);
    for number in 1..=2 {
        let mut job = job(number);
        job.request.messages[0].content = "x".repeat(40);
        runs.submit(job);
    }
    runs.step();
    let stats = runs.engine.stats();
    assert_eq!((stats.scheduler.running, stats.scheduler.waiting, stats.generated_tokens), (1, 1, 1));
    assert!(stats.scheduler.blocks_used > 0 && stats.scheduler.blocks_used < stats.scheduler.blocks_total);
    runs.finish();
    let usages = [1, 2].map(|number| usage(runs.log(number)));
    let stats = runs.engine.stats();
    assert_eq!((stats.scheduler.running, stats.scheduler.waiting, stats.scheduler.blocks_used), (0, 0, 0));
    let sum = |of: fn(&Usage) -> u32| usages.iter().map(|usage| u64::from(of(usage))).sum::<u64>();
    let (prompts, cached) = (sum(|usage| usage.prompt_tokens), sum(|usage| usage.cached_tokens));
    assert_eq!((stats.scheduler.prefix_queries, stats.scheduler.prefix_hits), (prompts, cached));
    assert_eq!(stats.generated_tokens, sum(|usage| usage.completion_tokens));
    assert_eq!(stats.computed_tokens, prompts - cached + stats.generated_tokens - 2);
    assert!(cached > 0, "the prompts begin alike");
}
