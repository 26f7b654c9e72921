//! Jobs of several choices and attempts, over a subscription that loses, repeats and reorders, with a
//! log that is read too early, has holes, and is lost.

use emberline_api::answer::Choice;
use emberline_protocol::chunk::merge;
use emberline_protocol::event::{Acceptance, Timings, TokenLogprob};
use emberline_protocol::log::LogState;
use emberline_protocol::prompt::PromptScore;
use proptest::prelude::*;

use super::*;

/// Text of each token; some complete no character.
const TOKENS: [&str; 12] = ["Hel", "lo", "", "é", " ", "wor", "", "", "漢字", "ld", "!", "."];
const USAGE: Usage = Usage { prompt_tokens: 3, cached_tokens: 2, completion_tokens: 24 };

/// What a choice says; each another text, the fourth one nothing.
fn script(choice: u32) -> Vec<&'static str> {
    let choice = choice as usize;
    TOKENS.into_iter().cycle().skip(choice).take(12 - 4 * choice).collect()
}

/// The same for each attempt.
fn logprobs_of(choice: u32, positions: std::ops::Range<usize>) -> Vec<TokenLogprobs> {
    let script = script(choice);
    let token = |position: usize| TokenLogprobs {
        token: TokenLogprob { id: 7, bytes: script[position].into(), logprob: -(position as f32) },
        top: vec![TokenLogprob { id: 8, bytes: b"x".to_vec(), logprob: -(choice as f32) }],
    };
    positions.map(token).collect()
}

/// The prompt's tokens, as far as they are asked for.
fn prompt_tokens(limits: PromptLimits) -> Vec<PromptToken> {
    let scored = |id: u32| PromptScore { logprob: -(id as f32), rank: id, top: Vec::new() };
    let token = |id| PromptToken {
        id,
        bytes: Vec::new(),
        score: limits.logprobs.filter(|_| id > 0).map(|_| scored(id)),
    };
    (0..USAGE.prompt_tokens).map(token).collect()
}

/// What is special about one attempt.
#[derive(Debug, Clone)]
struct Attempt {
    /// How many events before the end of each choice its worker goes on from.
    back: [usize; 4],
    /// Tokens in each piece of the prompt.
    piece: usize,
    /// Which choice it writes next, and how many tokens of it.
    turns: Vec<(u32, usize)>,
    /// How many of its last words reach the log after its successor's first one: it is a zombie that
    /// does not know of it.
    late: usize,
    /// A word that is never stored.
    hole: Option<usize>,
    /// The log is lost before this word, or after the last one; it goes on. Where nothing is written after that, the
    /// next attempt has the number 1 again, as if the job had been queued anew: otherwise workers number attempts by
    /// deliveries, too.
    loss: Option<usize>,
}

fn attempt() -> impl Strategy<Value = Attempt> {
    let turns = proptest::collection::vec((0_u32..4, 1_usize..4), 0..14);
    let rarely = |words| proptest::option::weighted(0.2, 0..words);
    (any::<[u8; 4]>(), 1..4_usize, turns, 0_usize..4, rarely(8_usize), rarely(14_usize)).prop_map(
        |(back, piece, turns, late, hole, loss)| Attempt {
            // Mostly where the one before it ended.
            back: back.map(|b| usize::from(b % 8).saturating_sub(4)),
            piece,
            turns,
            late,
            hole,
            loss,
        },
    )
}

/// What happens, one after the other.
#[derive(Debug, Clone)]
enum Step {
    Published {
        chunk: Chunk,
        is_stored: bool,
    },
    /// Whoever follows the job has read the log.
    Read,
    /// nats-server was started again.
    Lost,
}

/// How far a choice has come by the log.
#[derive(Debug, Clone, Default)]
struct Progress {
    /// Where events begin or end, ascending.
    borders: Vec<usize>,
    finished: bool,
}

/// What a worker reads in a log: the newest attempt, how far the prompt, and how far each choice has come.
fn fold(log: &[Chunk], choices: u32) -> (u32, usize, Vec<Progress>) {
    let mut prompt = 0;
    let mut progress = vec![Progress { borders: vec![0], finished: false }; choices as usize];
    let newest = log.iter().map(|chunk| chunk.attempt).max().unwrap_or(0);
    for attempt in 1..=newest {
        let end = log.iter().position(|chunk| chunk.attempt > attempt).unwrap_or(log.len());
        for index in 0.. {
            let of_index = |chunk: &&Chunk| chunk.attempt == attempt && chunk.index == index;
            match log[..end].iter().find(of_index).map(|chunk| &chunk.events[0]) {
                Some(EventKind::Tokens { choice, position, ids, .. }) => {
                    let progress = &mut progress[*choice as usize];
                    progress.borders.retain(|border| *border <= *position as usize);
                    assert_eq!(progress.borders.last().map(|last| *last as u32), Some(*position));
                    progress.borders.push(*position as usize + ids.len());
                    progress.finished = false;
                }
                Some(EventKind::Prompt { position, tokens }) => {
                    assert!(*position as usize <= prompt);
                    prompt = prompt.max(*position as usize + tokens.len());
                }
                Some(EventKind::Finish { choice, .. }) => progress[*choice as usize].finished = true,
                Some(_) => {}
                None => break,
            }
        }
    }
    (newest, prompt, progress)
}

/// Writes one attempt after the other.
struct Writer {
    limits: OutputLimits,
    log: Vec<Chunk>,
    steps: Vec<Step>,
}

impl Writer {
    fn publish(&mut self, attempt: u32, index: usize, kind: EventKind, is_stored: bool) {
        let chunk = Chunk::of(attempt, index as u32, kind);
        if is_stored {
            self.log.push(chunk.clone());
        }
        self.steps.push(Step::Published { chunk, is_stored });
    }

    fn lose(&mut self) {
        self.log.clear();
        self.steps.push(Step::Lost);
    }

    /// What an attempt says of its turns.
    fn words(&self, attempt: &Attempt, prompt: usize, progress: &[Progress]) -> Vec<EventKind> {
        let mut choices: Vec<(usize, bool)> = progress
            .iter()
            .zip(attempt.back)
            .map(|(Progress { borders, finished }, back)| {
                (borders[borders.len().saturating_sub(1 + back)], *finished && back == 0)
            })
            .collect();
        let mut words = Vec::new();
        if let Some(limits) = self.limits.prompt {
            let tokens = prompt_tokens(limits);
            let rest = tokens[prompt..].chunks(attempt.piece);
            let pieces = rest.zip((prompt..).step_by(attempt.piece));
            words.extend(pieces.map(|(tokens, position)| EventKind::Prompt {
                position: position as u32,
                tokens: tokens.to_vec(),
            }));
        }
        for (choice, count) in attempt.turns.iter().copied() {
            let choice = choice % self.limits.choices;
            let (at, finished) = &mut choices[choice as usize];
            let script = script(choice);
            let end = (*at + count).min(script.len());
            if *finished {
            } else if end > *at {
                let asked = self.limits.logprobs.is_some();
                words.push(EventKind::Tokens {
                    choice,
                    position: *at as u32,
                    ids: (*at as u32..end as u32).collect(),
                    text: script[*at..end].concat(),
                    logprobs: if asked { logprobs_of(choice, *at..end) } else { Vec::new() },
                });
                *at = end;
            } else {
                *finished = true;
                words.push(EventKind::Finish { choice, reason: FinishReason::Stop });
            }
        }
        words
    }

    fn write(&mut self, attempts: &[Attempt], last: &Attempt) {
        let mut late = Vec::new();
        for (attempt, place) in attempts.iter().chain([last]).zip(0..) {
            let is_last = place == attempts.len();
            let (newest, prompt, progress) = fold(&self.log, self.limits.choices);
            if newest == 0 {
                // This one takes a number that another one has had, who must be dead. What it has published live may
                // still be overtaken, but nothing of it is stored.
                late.clear();
            }
            let mut words = self.words(attempt, prompt, &progress);
            words.insert(0, EventKind::Taken { worker: format!("worker {place}"), ack: None });
            words.insert(
                1,
                EventKind::Accepted(Acceptance {
                    prompt_tokens: 3,
                    cached_tokens: 2,
                    fingerprint: "fp".into(),
                    ..Acceptance::default()
                }),
            );
            if is_last {
                words.push(EventKind::Done { usage: USAGE, timings: Timings::default(), at: Some(5) });
            }
            let number = newest + 1;
            let in_time = if is_last { words.len() } else { words.len().saturating_sub(attempt.late).max(1) };
            let loss = attempt.loss.map(|word| word + 2).filter(|_| !is_last || attempt.loss.is_some());
            let mut later = Vec::new();
            for (index, kind) in words.into_iter().enumerate() {
                if Some(index) == loss {
                    // What a worker goes on from in vain would be lost for ever.
                    self.steps.extend(is_last.then_some(Step::Read));
                    self.lose();
                }
                let is_stored = is_last || attempt.hole.map(|word| word + 2) != Some(index);
                if index < in_time {
                    self.publish(number, index, kind, is_stored);
                } else {
                    later.push((number, index, kind, is_stored));
                }
                if index == 0 {
                    for (number, index, kind, is_stored) in late.drain(..) {
                        self.publish(number, index, kind, is_stored);
                    }
                }
            }
            late = later;
            if !is_last && loss.is_some_and(|loss| loss >= in_time) {
                self.lose();
            }
        }
    }
}

/// What happens until these attempts have written the whole answer.
fn steps_of(limits: OutputLimits, attempts: &[Attempt], mut last: Attempt) -> Writer {
    let rest = (0..limits.choices).flat_map(|choice| [(choice, TOKENS.len()), (choice, 1)]);
    last.turns.extend(rest);
    let mut writer = Writer { limits, log: Vec::new(), steps: Vec::new() };
    writer.write(attempts, &last);
    writer
}

/// Where a log sums events up, a worker goes on from its end: it has no places within a sum.
fn with_sums(
    mut attempts: Vec<Attempt>,
    mut last: Attempt,
    sums: Option<Vec<bool>>,
) -> (Vec<Attempt>, Attempt, Vec<bool>) {
    if sums.is_some() {
        attempts.iter_mut().chain([&mut last]).for_each(|attempt| attempt.back = [0; 4]);
    }
    (attempts, last, sums.unwrap_or_else(|| vec![false]))
}

/// As a worker may store what it has published: chunks that follow each other are summed up where `sums` says so.
fn summed_up(published: &[Chunk], sums: &[bool]) -> Vec<Chunk> {
    let mut stored: Vec<Chunk> = Vec::new();
    for (chunk, sum) in published.iter().zip(sums.iter().cycle()) {
        match stored.last_mut() {
            Some(last) if *sum && last.attempt == chunk.attempt && last.end == chunk.index => {
                chunk.events.iter().cloned().for_each(|event| merge(&mut last.events, event));
                last.end = chunk.end;
            }
            _ => stored.push(chunk.clone()),
        }
    }
    stored
}

/// Follows a job as an exchange does.
struct Follower {
    relay: Relay,
    log: Vec<Chunk>,
    /// How many events a read of the log leaves out; none after a loss, for then it has one server.
    lag: usize,
    /// Whether the log sums up what comes next, chunk by chunk of what was published.
    sums: Vec<bool>,
    /// A chunk that another one overtakes.
    overtaken: Option<Chunk>,
    outputs: Vec<Output>,
}

impl Follower {
    fn receive(&mut self, chunk: Chunk) {
        self.outputs.extend(self.relay.on_chunk(chunk).unwrap());
        if self.relay.has_gap() {
            self.read(self.lag);
        }
    }

    fn read(&mut self, lag: usize) {
        let end = self.log.len().saturating_sub(lag);
        self.outputs.extend(self.relay.rebuild(&summed_up(&self.log[..end], &self.sums)).unwrap());
    }

    /// One step, and what becomes of its event on the way.
    fn step(&mut self, step: Step, fate: u8) {
        match step {
            Step::Published { chunk, is_stored } => {
                self.log.extend(is_stored.then(|| chunk.clone()));
                let overtaken = self.overtaken.take();
                match fate {
                    0 => {}
                    1 => (0..2).for_each(|_| self.receive(chunk.clone())),
                    2 => self.overtaken = Some(chunk),
                    _ => self.receive(chunk),
                }
                overtaken.into_iter().for_each(|chunk| self.receive(chunk));
            }
            Step::Read => self.read(0),
            Step::Lost => {
                self.overtaken = None;
                self.log.clear();
                self.lag = 0;
                self.relay.recheck();
                self.read(0);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn everything_is_told_exactly_once(
        choices in 1_u32..5,
        asked in any::<bool>(),
        ids in any::<bool>(),
        prompt in proptest::option::of(proptest::option::of(0..2_u32)),
        attempts in proptest::collection::vec(attempt(), 0..4),
        last in attempt(),
        fates in proptest::collection::vec(0_u8..12, 200),
        lag in 0_usize..4,
        sums in proptest::option::of(proptest::collection::vec(any::<bool>(), 16)),
    ) {
        let (attempts, last, sums) = with_sums(attempts, last, sums);
        let prompt = prompt.map(|logprobs| PromptLimits { logprobs });
        let limits = OutputLimits { choices, tokens: 12, logprobs: asked.then_some(1), ids, prompt };
        let Writer { log, steps, .. } = steps_of(limits, &attempts, last);
        let relay = Relay::new(limits);
        let mut follower = Follower { relay, log: Vec::new(), lag, sums, overtaken: None, outputs: Vec::new() };
        let mut fates = fates.into_iter().cycle();
        let losses = steps.iter().rposition(|step| matches!(step, Step::Lost)).is_some();
        for step in steps {
            let mut fate = fates.next().unwrap_or(3);
            // Who has the number of another one must be seen to begin.
            if losses && matches!(&step, Step::Published { chunk, .. } if chunk.index == 0) {
                fate = fate.max(3);
            }
            follower.step(step, fate);
        }
        // In the end silence makes the caller look at the log.
        prop_assert_eq!(&follower.log, &log);
        follower.read(0);
        let Follower { relay, outputs, .. } = follower;
        prop_assert!(relay.is_over() && !relay.has_gap());

        let mut whole = Whole::new(limits);
        let mut finished = vec![false; choices as usize];
        let mut written = vec![0; choices as usize];
        for (place, output) in outputs.iter().enumerate() {
            match output {
                Output::Accepted(_) => prop_assert_eq!(place, 0),
                Output::Prompt { .. } => prop_assert_eq!(place, 1),
                Output::Text { choice, text, logprobs, ids: told, tokens } => {
                    written[*choice as usize] += *tokens as usize;
                    prop_assert!(!finished[*choice as usize], "told after its end");
                    prop_assert_eq!((logprobs.is_some(), told.is_some()), (asked, ids));
                    let has_tokens = logprobs.as_ref().is_some_and(|tokens| !tokens.is_empty())
                        || told.as_ref().is_some_and(|ids| !ids.is_empty());
                    prop_assert!(!text.is_empty() || has_tokens);
                }
                Output::Finish { choice, .. } => {
                    prop_assert!(!std::mem::replace(&mut finished[*choice as usize], true), "two ends");
                }
                Output::Done(ending) => {
                    prop_assert_eq!(*ending, Ending { usage: USAGE, at: Some(5) });
                    prop_assert_eq!(place + 1, outputs.len());
                }
                Output::Failed(error) => prop_assert!(false, "{}", error),
            }
            whole.push(output.clone());
        }
        let expected = (0..choices).map(|choice| Choice {
            text: script(choice).concat(),
            logprobs: asked.then(|| logprobs_of(choice, 0..script(choice).len())),
            ids: ids.then(|| (0..script(choice).len() as u32).collect()),
            prompt: prompt.map(|limits| prompt_tokens(limits).into()),
            finish_reason: Some(FinishReason::Stop),
        });
        prop_assert_eq!(whole.choices(), expected.collect::<Vec<_>>());
        prop_assert!(matches!(outputs.last(), Some(Output::Done(_))));
        // Tokens that complete no character are counted with the next ones.
        for (choice, written) in (0..).zip(written) {
            prop_assert!(written <= script(choice).len() && (!ids || written == script(choice).len()));
        }
    }
}

/// As `log` may be stored up to `end`: events are stored twice, and behind the next one of their attempt.
fn disturbed(log: &[Chunk], end: usize, fates: &[u8]) -> Vec<Chunk> {
    let mut stored: Vec<Chunk> = Vec::new();
    for (chunk, fate) in log.iter().take(end).zip(fates.iter().cycle()) {
        let is_next = stored.last().is_some_and(|last| last.attempt == chunk.attempt && last.index > 0);
        match fate {
            0 => stored.extend([chunk.clone(), chunk.clone()]),
            1 if is_next => stored.insert(stored.len() - 1, chunk.clone()),
            _ => stored.push(chunk.clone()),
        }
    }
    stored
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    /// The relay, a worker that takes the job over and `emberline jobs replay`, which reads a log as it
    /// grows.
    #[test]
    fn all_who_read_a_log_agree(
        choices in 1_u32..4,
        prompt in any::<bool>(),
        attempts in proptest::collection::vec(attempt(), 0..4),
        last in attempt(),
        fates in proptest::collection::vec(0_u8..6, 40),
        sums in proptest::option::of(proptest::collection::vec(any::<bool>(), 16)),
        part in 0.0..1.2_f64,
    ) {
        let (attempts, last, sums) = with_sums(attempts, last, sums);
        let prompt = prompt.then_some(PromptLimits { logprobs: None });
        let limits = OutputLimits { choices, tokens: 12, logprobs: None, ids: false, prompt };
        let Writer { log, .. } = steps_of(limits, &attempts, Attempt { loss: None, ..last });
        let end = ((log.len() as f64 * part) as usize).min(log.len());
        let stored = disturbed(&summed_up(&log[..end], &sums), log.len(), &fates);

        let mut relay = Relay::new(limits);
        let mut whole = Whole::new(limits);
        relay.rebuild(&stored).unwrap().into_iter().for_each(|output| whole.push(output));
        let mut replay = EventLog::new(choices, prompt.is_some());
        for end in 0..=stored.len() {
            replay.read(&stored[..end], |_, _, _| {});
        }
        let progress = LogState::of(&stored, choices, prompt.is_some());

        for ((told, replayed), resumed) in whole.choices().iter().zip(replay.choices()).zip(&progress.choices) {
            prop_assert_eq!(&told.text, replayed.text());
            prop_assert_eq!(&told.text, &resumed.text);
            prop_assert_eq!(replayed.ids(), &resumed.ids[..]);
            prop_assert_eq!((told.finish_reason, replayed.finish()), (resumed.finish, resumed.finish));
        }
        prop_assert_eq!((relay.is_over(), replay.end()), (progress.end.is_some(), progress.end.as_ref()));
        prop_assert_eq!(relay.is_over(), end == log.len());
    }
}
