//! Keys, their limits, and the usage that headers and `emberline usage` report.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use emberline_test_kit::cases;
use emberline_test_kit::cli::{emberline, new_key};
use emberline_test_kit::proxy::CountingProxy;
use emberline_test_kit::sse::{Reading, Transcript};
use emberline_test_kit::stack::{API_KEY, Options, SIMULATED_MODEL as MODEL, Stack};
use emberline_test_kit::wait;
use futures::FutureExt as _;
use futures::future::try_join_all;
use reqwest::Response;
use serde_json::{Value, json};

/// More answers than any test here waits for at once, each within moments.
const FAST: [&str; 4] = ["--slots", "64", "--simulated-tokens-per-s", "0"];

fn question(max_tokens: u32) -> Value {
    json!({"model": MODEL, "max_tokens": max_tokens, "messages": [{"role": "user", "content": "two words"}]})
}

async fn post(stack: &Stack, url: &str, key: &str, body: &Value) -> Result<Response> {
    let request = stack.http.post(format!("{url}/v1/chat/completions"));
    Ok(request.bearer_auth(key).json(body).send().await?)
}

async fn get(stack: &Stack, url: &str, key: &str, path: &str) -> Result<Response> {
    Ok(stack.http.get(format!("{url}{path}")).bearer_auth(key).send().await?)
}

fn header<'a>(response: &'a Response, name: &str) -> Result<&'a str> {
    let value = response.headers().get(name).with_context(|| format!("no {name} in {response:?}"))?;
    Ok(value.to_str()?)
}

fn number(response: &Response, name: &str) -> Result<u64> {
    header(response, name)?.parse().with_context(|| name.to_owned())
}

async fn code(response: Response) -> Result<(u16, String, String)> {
    let status = response.status().as_u16();
    let error = response.json::<Value>().await?["error"].clone();
    let text = |name: &str| error[name].as_str().map(str::to_owned).with_context(|| name.to_owned());
    Ok((status, text("code")?, text("message")?))
}

/// Runs a test that counts within one minute of the clock; again, with another number, if a minute ended
/// meanwhile.
async fn within_a_minute(test: impl AsyncFn(u32) -> Result<()>) -> Result<()> {
    let minute = || anyhow::Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs() / 60);
    for number in 0.. {
        let began = minute()?;
        let outcome = AssertUnwindSafe(test(number)).catch_unwind().await;
        match outcome {
            Ok(Ok(())) => break,
            _ if minute()? > began && number < 3 => println!("a minute ended; once more"),
            Ok(failed) => return failed,
            Err(panic) => resume_unwind(panic),
        }
    }
    Ok(())
}

/// Asks until `wanted` accepts the answer; when that was.
async fn until(
    what: &str,
    ask: impl AsyncFn() -> Result<Response>,
    wanted: impl Fn(&Response) -> bool,
) -> Result<Instant> {
    wait::until(what, async || Ok(wanted(&ask().await?))).await?;
    Ok(Instant::now())
}

#[tokio::test]
async fn of_a_burst_over_four_functions_exactly_as_many_pass_as_the_limit_says() -> Result<()> {
    let options = Options::simulated(&FAST);
    let mut stack = Stack::start_with(options.clone()).await?;
    let mut urls = vec![stack.url.clone()];
    for _ in 1..4 {
        urls.push(stack.add_function(&options).await?);
    }
    within_a_minute(async |number| burst(&stack, &urls, &format!("burst-{number}")).await).await
}

async fn burst(stack: &Stack, urls: &[String], name: &str) -> Result<()> {
    let key = new_key(&stack.nats, name, &["--requests-per-minute", "60", "--jobs-at-once", "500"]).await?;
    let began = Instant::now();
    let body = question(1);
    let requests = (0..500).map(|n| post(stack, &urls[n % 4], &key, &body));
    let answers = try_join_all(requests).await?;
    println!("500 requests in {:?}", began.elapsed());
    let (passed, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status() == 200);
    assert_eq!(passed.len(), 60);
    for answer in &refused {
        assert_eq!(answer.status(), 429);
        assert_eq!(header(answer, "x-ratelimit-remaining-requests")?, "0");
        let (seconds, ms) = (number(answer, "retry-after")?, number(answer, "retry-after-ms")?);
        ensure!((1..=62).contains(&seconds) && seconds == ms.div_ceil(1000), "{seconds} s, {ms} ms");
    }
    // No refused request holds a place: all 500 jobs at once are free again.
    let left = get(stack, &urls[3], &key, "/v1/models").await?;
    assert_eq!((left.status().as_u16(), header(&left, "x-ratelimit-remaining-requests")?), (200, "0"));
    Ok(())
}

#[tokio::test]
async fn a_key_is_refused_when_it_is_revoked_or_expired() -> Result<()> {
    let options = Options::simulated(&FAST);
    let mut stack = Stack::start_with(options.clone()).await?;
    let other = stack.add_function(&options).await?;
    let key = new_key(&stack.nats, "ada", &[]).await?;
    let body = question(1);
    for url in [&stack.url, &other] {
        assert_eq!(post(&stack, url, &key, &body).await?.status(), 200);
    }
    // Both functions have the key in their caches now.
    let began = Instant::now();
    emberline(&stack.nats, &["keys", "revoke", "ada"]).await?;
    let revoked = Instant::now();
    let refused = async |url: &str| {
        until("the key is refused", async || post(&stack, url, &key, &body).await, |a| a.status() == 401)
            .await
    };
    let (here, there) = tokio::try_join!(refused(&stack.url), refused(&other))?;
    let longest = here.max(there).saturating_duration_since(revoked);
    println!("revoked in {:?}, refused everywhere {longest:?} later", revoked - began);
    let (_, error, message) = code(post(&stack, &other, &key, &body).await?).await?;
    assert_eq!(error, "invalid_api_key");
    assert!(message.contains("revoked"), "{message}");

    let short = new_key(&stack.nats, "short", &["--expires", "3s"]).await?;
    let models = async || get(&stack, &stack.url, &short, "/v1/models").await;
    assert_eq!(models().await?.status(), 200);
    until("the key expires", models, |answer| answer.status() == 401).await?;
    assert!(code(models().await?).await?.2.contains("expired"));

    // A key that nobody made, and one of the configuration.
    let (status, error, message) = code(get(&stack, &other, "sk-emb-nobody", "/v1/models").await?).await?;
    assert_eq!((status, error.as_str()), (401, "invalid_api_key"));
    assert!(!message.contains("revoked") && !message.contains("expired"), "{message}");
    assert_eq!(get(&stack, &other, API_KEY, "/v1/models").await?.status(), 200);
    Ok(())
}

#[tokio::test]
async fn on_one_stack() -> Result<()> {
    let stack = Stack::start_with(Options::simulated(&FAST)).await?;
    let cases = cases![&stack;
        a_key_sees_and_uses_its_models_only,
        every_answer_says_how_the_key_stands_and_usage_is_what_clients_saw,
    ];
    cases::run(2, cases).await
}

async fn a_key_sees_and_uses_its_models_only(stack: &Stack) -> Result<()> {
    let alias_only = new_key(&stack.nats, "alias", &["--models", "vllm-primary"]).await?;
    let by_name = new_key(&stack.nats, "name", &["--models", MODEL]).await?;
    let elsewhere = new_key(&stack.nats, "elsewhere", &["--models", "another"]).await?;
    let asked = async |key: &str, model: &str| {
        let mut body = question(1);
        body["model"] = model.into();
        anyhow::Ok(post(stack, &stack.url, key, &body).await?.status().as_u16())
    };
    let listed = async |key: &str| {
        let list: Value = get(stack, &stack.url, key, "/v1/models").await?.json().await?;
        let ids = list["data"].as_array().context("data")?.iter();
        anyhow::Ok(ids.filter_map(|model| model["id"].as_str().map(str::to_owned)).collect::<Vec<_>>())
    };
    assert_eq!((asked(&alias_only, "vllm-primary").await?, asked(&alias_only, MODEL).await?), (200, 403));
    assert_eq!(listed(&alias_only).await?, ["vllm-primary"]);
    assert_eq!((asked(&by_name, "vllm-primary").await?, asked(&by_name, MODEL).await?), (200, 200));
    assert_eq!(listed(&by_name).await?, [MODEL, "vllm-primary"]);
    assert!(listed(&elsewhere).await?.is_empty());
    let refused = post(stack, &stack.url, &elsewhere, &question(1)).await?;
    assert_eq!(header(&refused, "x-ratelimit-limit")?, "60000");
    let (status, error, message) = code(refused).await?;
    assert_eq!((status, error.as_str()), (403, "model_not_allowed"));
    assert!(message.contains("another"), "{message}");
    let hidden = get(stack, &stack.url, &elsewhere, &format!("/v1/models/{MODEL}")).await?;
    assert_eq!(hidden.status(), 403);
    Ok(())
}

async fn every_answer_says_how_the_key_stands_and_usage_is_what_clients_saw(stack: &Stack) -> Result<()> {
    within_a_minute(async |number| headers_and_usage(stack, &format!("ada-{number}")).await).await
}

async fn headers_and_usage(stack: &Stack, name: &str) -> Result<()> {
    let settings = ["--requests-per-minute", "6", "--requests-per-day", "100", "--tokens-per-minute", "2000"];
    let key = new_key(&stack.nats, name, &settings).await?;
    let requests = |answer: &Response| {
        ensure!(number(answer, "x-ratelimit-limit")? == 6, "limit");
        ensure!(number(answer, "x-ratelimit-window")? == 60, "window");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        ensure!(number(answer, "x-ratelimit-reset")? <= now + 122, "reset");
        ensure!(header(answer, "x-ratelimit-reset-requests")?.ends_with('s'), "duration");
        let remaining = number(answer, "x-ratelimit-remaining-requests")?;
        ensure!(remaining == number(answer, "x-ratelimit-remaining")?, "the dialects differ");
        Ok(remaining)
    };
    // What has come back of the tokens that were reserved.
    let tokens = |answer: &Response| number(answer, "x-ratelimit-remaining-tokens");
    let list = async || get(stack, &stack.url, &key, "/v1/models").await;

    let before = list().await?;
    assert_eq!((requests(&before)?, tokens(&before)?), (6, 2000));
    assert_eq!(header(&before, "x-ratelimit-reset-tokens")?, "0s");

    let answer = post(stack, &stack.url, &key, &question(8)).await?;
    // Of "two words" 3 tokens are taken for the prompt, 4 for its place in the template.
    assert_eq!((requests(&answer)?, tokens(&answer)?), (5, 2000 - 7 - 8));
    let usage = answer.json::<Value>().await?["usage"].clone();
    let mut used = usage["total_tokens"].as_u64().context("usage")?;
    let after = list().await?;
    assert_eq!((requests(&after)?, tokens(&after)?), (5, 2000 - used));

    let mut body = question(5);
    (body["stream"], body["stream_options"]) = (true.into(), json!({"include_usage": true}));
    let stream = post(stack, &stack.url, &key, &body).await?;
    assert_eq!(requests(&stream)?, 4);
    let transcript = Transcript::read(stream).await?;
    let usage = transcript.chunks.last().context("no chunks")?["usage"]["total_tokens"].clone();
    used += usage.as_u64().context("usage")?;
    assert_eq!(tokens(&list().await?)?, 2000 - used);

    // A mistake costs nothing; what the worker refuses counts as a request.
    let mistake = post(stack, &stack.url, &key, &json!({"model": MODEL})).await?;
    assert_eq!((mistake.status().as_u16(), requests(&mistake)?), (400, 4));
    let missing = get(stack, &stack.url, &key, "/v1/models/nothing").await?;
    assert_eq!((missing.status().as_u16(), requests(&missing)?), (404, 4));

    // More tokens than are left, and more than there ever are.
    let costly = post(stack, &stack.url, &key, &question(1990)).await?;
    assert_eq!((costly.status().as_u16(), requests(&costly)?), (429, 4));
    assert_eq!(tokens(&costly)?, 2000 - used);
    assert!(costly.headers().contains_key("retry-after") && !costly.headers().contains_key("x-should-retry"));
    let hopeless = post(stack, &stack.url, &key, &question(8000)).await?;
    assert_eq!((hopeless.status().as_u16(), header(&hopeless, "x-should-retry")?), (429, "false"));
    let (_, error, message) = code(hopeless).await?;
    assert_eq!(error, "rate_limit_exceeded");
    assert!(message.contains("max_tokens"), "{message}");
    // What was refused was given back.
    let after = list().await?;
    assert_eq!((requests(&after)?, tokens(&after)?), (4, 2000 - used));

    // Everybody has limits, also the key of the configuration.
    assert_eq!(header(&stack.get("/v1/models").await?, "x-ratelimit-limit-tokens")?, "60000000");
    // An unknown key sees no limits.
    let stranger = get(stack, &stack.url, "sk-emb-nobody", "/v1/models").await?;
    assert!(!stranger.headers().contains_key("x-ratelimit-limit"));

    let csv = emberline(&stack.nats, &["usage", "--by", "key", "--csv"]).await?;
    let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    let [line] = lines.iter().filter(|line| line[1] == name).collect::<Vec<_>>()[..] else {
        anyhow::bail!("not one line for {name}: {csv}");
    };
    assert_eq!(line[2..5], ["2", "0", "0"], "{csv}");
    let sum: u64 = line[5].parse::<u64>()? + line[7].parse::<u64>()?;
    assert_eq!(sum, used, "{csv}");
    let models = emberline(&stack.nats, &["usage", "--by", "model", "--since", "1d"]).await?;
    assert!(models.contains(MODEL), "{models}");
    assert_eq!(emberline(&stack.nats, &["usage", "--since", "2999-01-01"]).await?, "nothing was used");
    Ok(())
}

#[tokio::test]
async fn jobs_at_once_are_free_again_when_they_end_and_when_their_worker_dies() -> Result<()> {
    let options = Options::simulated(&["--slots", "8", "--simulated-tokens-per-s", "20"]);
    let mut stack = Stack::start_with(options.clone()).await?;
    let key = new_key(&stack.nats, "ada", &["--jobs-at-once", "5", "--requests-per-minute", "1000"]).await?;
    let mut long = question(6000);
    long["stream"] = true.into();
    let begin = async || {
        let response = post(&stack, &stack.url, &key, &long).await?;
        ensure!(response.status() == 200, "{:?}", code(response).await?);
        Ok(Reading::new(response))
    };
    let mut running = try_join_all((0..5).map(|_| begin())).await?;
    let sixth = async || post(&stack, &stack.url, &key, &question(1)).await;
    let refused = sixth().await?;
    assert_eq!((refused.status().as_u16(), number(&refused, "retry-after")?), (429, 1));
    let (_, error, message) = code(refused).await?;
    assert_eq!(error, "rate_limit_exceeded");
    assert!(message.contains("5 jobs at once"), "{message}");

    // One client goes, and there is room for one.
    running.pop();
    until("room for one", sixth, |answer| answer.status() == 200).await?;
    // A client that asks again as soon as it has its answer finds its place free.
    for _ in 0..5 {
        assert_eq!(sixth().await?.status(), 200);
    }
    running.push(begin().await?);
    assert_eq!(sixth().await?.status(), 429);

    // The worker is killed with five jobs running; another one takes them over, and ends them when
    // their clients go.
    let killed = stack.heartbeat(|beat| beat.active == 5).await?.worker;
    stack.kill_worker().await?;
    stack.start_worker(&options)?;
    stack.heartbeat(|beat| beat.worker != killed && beat.active == 5).await?;
    drop(running);
    let mut again = Vec::new();
    let asking = async {
        // Each that is let in stays, so that the last one tells that none was left.
        while again.len() < 5 {
            let response = post(&stack, &stack.url, &key, &long).await?;
            match response.status().as_u16() {
                200 => again.push(Reading::new(response)),
                429 => tokio::time::sleep(Duration::from_millis(100)).await,
                _ => anyhow::bail!("{:?}", code(response).await?),
            }
        }
        Ok(())
    };
    wait::within("jobs that have ended are no longer counted", asking).await
}

#[tokio::test]
async fn who_asks_and_whether_there_is_room_takes_two_round_trips() -> Result<()> {
    let direct = Stack::start_with(Options::simulated(&FAST)).await?;
    let proxy = CountingProxy::start(direct.nats.address()).await?;
    let server = format!("127.0.0.1:{}", proxy.port);
    let through = Options { through: vec![server], ..Options::simulated(&FAST) };
    let mut stack = direct;
    let url = stack.add_function(&through).await?;
    let limits = ["--requests-per-minute", "5", "--requests-per-day", "5", "--tokens-per-minute", "1"];
    let limits = [&limits[..], &["--tokens-per-day", "1", "--jobs-at-once", "5"]].concat();
    let keys = [new_key(&stack.nats, "a", &limits).await?, new_key(&stack.nats, "b", &limits).await?];
    let once = new_key(&stack.nats, "once", &["--requests-per-day", "1"]).await?;
    // Leaves a connection.
    assert_eq!(get(&stack, &url, API_KEY, "/v1/models").await?.status(), 200);
    assert_eq!(post(&stack, &url, &once, &question(5)).await?.status(), 200);
    let cases = [
        (&keys[0], "new", 2),
        (&keys[0], "known", 1),
        (&keys[1], "another", 2),
        (&once, "refused before", 1),
    ];
    for (key, what, most) in cases {
        // On a busy machine what is known of a key may be too old by the time of the next request.
        let mut least = usize::MAX;
        for _ in 0..3 {
            proxy.reset();
            let began = Instant::now();
            assert_eq!(post(&stack, &url, key, &question(5)).await?.status(), 429);
            println!("{what} key: {} round trips, {:?}", proxy.round_trips(), began.elapsed());
            least = least.min(proxy.round_trips());
        }
        ensure!(least <= most, "{what} key: {least} round trips");
    }
    Ok(())
}
