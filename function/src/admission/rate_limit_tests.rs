use super::*;
use proptest::prelude::*;

const MINUTE: u64 = 60_000;
/// The start of a minute.
const NOW: u64 = 28_000_000 * MINUTE;

fn key() -> KeyId {
    KeyId::of_key(b"abc")
}

fn limits(text: &str) -> KeyLimits {
    KeyLimits::parse(text).unwrap()
}

fn window(limit: u64, previous: u64, current: u64, elapsed: u64) -> Window {
    Window {
        counter: Counter::RequestsMinute,
        unit: Unit::Requests,
        limit,
        length: MINUTE,
        elapsed,
        previous,
        current,
    }
}

fn counters<'a>(key: &'a KeyId, limits: &'a KeyLimits, now_ms: u64, job_life_ms: u64) -> KeyCounters<'a> {
    KeyCounters { key, limits, model: Some("m"), now_ms, job_life_ms }
}

/// A function instance's side of an admission, against counters that add like NATS's.
fn admit(sums: &mut Sums, limits: &KeyLimits, now_ms: u64, tokens: u64) -> Result<HeaderMap, Refusal> {
    let key = key();
    let counters = counters(&key, limits, now_ms, 600_000);
    let increments = counters.increments(tokens, 1);
    for (bucket, amount) in &increments {
        *sums.entry(bucket.clone()).or_default() += amount;
    }
    let state = counters.state(sums);
    if let Err(refusal) = state.check(tokens) {
        for (bucket, amount) in increments {
            *sums.get_mut(&bucket).unwrap() -= amount;
        }
        return Err(refusal);
    }
    Ok(state.headers())
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.to_str().unwrap())
}

#[test]
fn exactly_as_many_pass_as_there_is_room_for() {
    let (mut sums, limits) = (Sums::new(), limits("requests_per_minute=60,jobs_at_once=1000"));
    let passed = (0..500).filter(|_| admit(&mut sums, &limits, NOW, 0).is_ok()).count();
    assert_eq!(passed, 60);
    // Half a minute into the next one, half of them count.
    let passed = (0..500).filter(|_| admit(&mut sums, &limits, NOW + 3 * MINUTE / 2, 0).is_ok()).count();
    assert_eq!(passed, 30);
    let passed = (0..500).filter(|_| admit(&mut sums, &limits, NOW + 3 * MINUTE, 0).is_ok()).count();
    assert_eq!(passed, 60);
}

#[test]
fn the_headers_speak_both_dialects() {
    let (mut sums, limits) = (Sums::new(), limits("requests_per_minute=10,tokens_per_minute=1000"));
    let headers = admit(&mut sums, &limits, NOW + 15_000, 100).unwrap();
    assert_eq!(text(&headers, "x-ratelimit-limit-requests"), "10");
    assert_eq!(text(&headers, "x-ratelimit-remaining-requests"), "9");
    assert_eq!(text(&headers, "x-ratelimit-reset-requests"), "45.001s");
    assert_eq!(text(&headers, "x-ratelimit-limit-tokens"), "1000");
    assert_eq!(text(&headers, "x-ratelimit-remaining-tokens"), "900");
    assert_eq!(text(&headers, "x-ratelimit-limit"), "10");
    assert_eq!(text(&headers, "x-ratelimit-remaining"), "9");
    assert_eq!(text(&headers, "x-ratelimit-reset"), (NOW / 1000 + 61).to_string());
    assert_eq!(text(&headers, "x-ratelimit-window"), "60");
}

#[test]
fn the_window_that_leaves_least_is_told() {
    let (mut sums, limits) = (Sums::new(), limits("requests_per_minute=10,requests_per_day=2"));
    let headers = admit(&mut sums, &limits, NOW, 0).unwrap();
    assert_eq!(text(&headers, "x-ratelimit-limit-requests"), "2");
    assert_eq!(text(&headers, "x-ratelimit-window"), "86400");
    let none = admit(&mut Sums::new(), &KeyLimits::default(), NOW, 5).unwrap();
    assert!(none.is_empty());
}

#[test]
fn a_refusal_says_when_to_retry() {
    let (mut sums, limits) = (Sums::new(), limits("requests_per_minute=2"));
    admit(&mut sums, &limits, NOW, 0).unwrap();
    admit(&mut sums, &limits, NOW, 0).unwrap();
    let refusal = admit(&mut sums, &limits, NOW + 59_000, 0).unwrap_err();
    assert_eq!(text(&refusal.headers(), "retry-after"), "2");
    assert_eq!(text(&refusal.headers(), "retry-after-ms"), "1001");
    assert!(admit(&mut sums.clone(), &limits, NOW + 60_000, 0).is_err());
    assert!(admit(&mut sums, &limits, NOW + 60_001, 0).is_ok());
    let error = ApiError::from(refusal);
    assert_eq!(error.code.status(), 429);
    assert!(error.message.contains("2 requests a minute"), "{}", error.message);
}

#[test]
fn requests_that_are_refused_at_the_same_time_make_the_wait_no_longer() {
    let alone = window(60, 0, 61, 40_000);
    let crowded = window(60, 0, 500, 40_000);
    assert_eq!(refusal(&crowded, 0), refusal(&alone, 0));
    assert_eq!(refusal(&crowded, 0).wait_ms, 20_001);
}

#[test]
fn what_can_never_pass_is_told_not_to_retry() {
    let limits = limits("tokens_per_minute=100");
    let refusal = admit(&mut Sums::new(), &limits, NOW, 101).unwrap_err();
    assert_eq!(text(&refusal.headers(), "x-should-retry"), "false");
    assert!(refusal.message.contains("max_tokens"), "{}", refusal.message);
    assert!(admit(&mut Sums::new(), &limits, NOW, 100).is_ok());
}

#[test]
fn jobs_are_counted_until_they_end_or_their_deadline_has_passed() {
    let (mut sums, limits) = (Sums::new(), limits("jobs_at_once=2"));
    let first = NOW + 1;
    admit(&mut sums, &limits, first, 0).unwrap();
    admit(&mut sums, &limits, NOW + 300_000, 0).unwrap();
    for now in [300_001, 500_000, 600_000] {
        assert!(admit(&mut sums, &limits, NOW + now, 0).is_err(), "{now}");
    }
    // The first one's slice of 75 s ends after its deadline, and with it what was never taken back.
    assert!(admit(&mut sums, &limits, NOW + 675_001, 0).is_ok());
    assert!(admit(&mut sums, &limits, NOW + 675_002, 0).is_err());
    // A worker that ends a job makes room.
    let of_key = |(bucket, sum): &(&Bucket, &mut i64)| bucket.counter == Counter::Jobs && **sum == 1;
    *sums.iter_mut().rfind(of_key).unwrap().1 -= 1;
    let (key, now) = (key(), NOW + 675_002);
    assert_eq!(counters(&key, &limits, now, 600_000).state(&sums).jobs_of_key, 1);
}

#[test]
fn jobs_are_counted_for_every_key_and_for_the_model_of_all() {
    let (mut sums, [ada, bob]) = (Sums::new(), [b"ada", b"bob"].map(|key| KeyId::of_key(key)));
    let unlimited = KeyLimits::default();
    let mut count = |key: &KeyId, model, jobs| {
        let counters = KeyCounters { model: Some(model), ..counters(key, &unlimited, NOW, 600_000) };
        for (bucket, amount) in counters.increments(10, jobs) {
            *sums.entry(bucket).or_default() += amount;
        }
        let state = counters.state(&sums);
        let lanes: Vec<u8> = state.lanes(jobs).map(u8::from).collect();
        (lanes, state.jobs_of_model())
    };
    assert_eq!(count(&ada, "m", 1), (vec![0], 1));
    assert_eq!(count(&ada, "m", 3), (vec![1, 1, 1], 4));
    assert_eq!(count(&bob, "m", 1), (vec![0], 5));
    assert_eq!(count(&ada, "m", 6), (vec![1, 1, 1, 1, 2, 2], 11));
    assert_eq!(count(&bob, "other", 1), (vec![1], 1), "a key's jobs are counted over all models");
    let outside = KeyCounters { model: None, ..counters(&ada, &unlimited, NOW, 600_000) };
    assert!(outside.buckets().is_empty() && outside.increments(1, 0).is_empty());
}

#[test]
fn counters_that_were_lost_count_for_nothing() {
    let (key, limits) = (key(), limits("tokens_per_minute=10,jobs_at_once=1"));
    let counters = counters(&key, &limits, NOW, 1000);
    let sums = counters.buckets().into_iter().map(|bucket| (bucket, -5)).collect();
    assert!(counters.state(&sums).check(0).is_ok());
    assert_eq!(text(&counters.state(&sums).headers(), "x-ratelimit-remaining-tokens"), "10");
}

#[test]
fn durations_are_written_as_in_openais_headers() {
    for (ms, written) in [
        (0, "0s"),
        (12, "12ms"),
        (1000, "1s"),
        (8640, "8.64s"),
        (360_000, "6m0s"),
        (86_399_001, "23h59m59.001s"),
    ] {
        assert_eq!(duration(ms), written);
    }
}

proptest! {
    #[test]
    fn the_wait_is_the_shortest_that_is_enough(
        previous in 0..200_u64, current in 0..200_u64, elapsed in 0..MINUTE, wanted in 0..200_u64
    ) {
        // What the window is after so long, if nothing is added.
        let after = |wait: u64| {
            let at = elapsed + wait;
            match at / MINUTE {
                0 => window(100, previous, current, at).used(),
                1 => window(100, current, 0, at % MINUTE).used(),
                _ => 0,
            }
        };
        let wait = window(100, previous, current, elapsed).wait_for(wanted);
        prop_assert!(after(wait) <= wanted, "{wait}: {}", after(wait));
        prop_assert!(wait == 0 || after(wait - 1) > wanted, "{wait}");
    }

    #[test]
    fn no_numbers_panic(limit in 1..u64::MAX, sums in proptest::collection::vec(any::<i64>(), 48), now: u64, tokens: u64) {
        let (key, limits) = (key(), KeyLimits {
            requests_per_minute: Some(limit),
            tokens_per_minute: Some(limit),
            tokens_per_day: Some(limit),
            jobs_at_once: Some(limit),
            ..KeyLimits::default()
        });
        let counters = counters(&key, &limits, now, limit);
        let sums = counters.buckets().into_iter().chain(counters.increments(tokens, 1).into_iter().map(|(b, _)| b)).zip(sums).collect();
        let state = counters.state(&sums);
        let _ = state.check(tokens).map_err(|refusal| refusal.headers());
        let _ = state.without(tokens).headers();
    }

    /// Requests of instances whose clocks differ, each raising its counters one after the other while
    /// the others do so, too. What is not raised is read at the very beginning, which is worst.
    #[test]
    fn at_the_change_of_slices_none_too_many_pass(
        clocks in proptest::collection::vec(0..SKEW_MS, 12), order in proptest::collection::vec(0..12_usize, 100)
    ) {
        let (key, limits) = (key(), limits("jobs_at_once=5"));
        // A slice ends 600 s, the life of a job, after this.
        let change = NOW.next_multiple_of(75_000) - SKEW_MS / 2;
        let gauges: Vec<_> = clocks.iter().map(|clock| counters(&key, &limits, change + clock, 600_000)).collect();
        let mut left: Vec<_> = gauges.iter().map(|counters| counters.increments(0, 1).into_iter()).collect();
        let (mut counters, mut seen) = (Sums::new(), vec![Sums::new(); gauges.len()]);
        let rest = (0..12).cycle().take(12 * 8);
        for instance in order.into_iter().chain(rest) {
            if let Some((bucket, amount)) = left[instance].next() {
                let sum = counters.entry(bucket.clone()).or_default();
                *sum += amount;
                seen[instance].insert(bucket, *sum);
            }
        }
        let passed = gauges.iter().zip(&seen).filter(|(counters, sums)| counters.state(sums).check(0).is_ok());
        prop_assert!(passed.count() <= 5);
    }

    #[test]
    fn a_job_is_counted_as_long_as_it_may_run(now in NOW..NOW + 10 * MINUTE, life in 1..86_400_000_u64, later in 0..86_400_000_u64) {
        let (key, limits) = (key(), limits("jobs_at_once=1"));
        let at = |now_ms| counters(&key, &limits, now_ms, life);
        let sums: Sums = at(now).increments(0, 1).into_iter().collect();
        let state = at(now + later).state(&sums);
        let running = state.jobs_of_key;
        prop_assert_eq!(state.jobs_of_model(), running);
        let slice = life.div_ceil(8).max(1000);
        if later <= life {
            prop_assert_eq!(running, 1);
        } else if later > life + slice {
            prop_assert_eq!(running, 0);
        }
    }
}
