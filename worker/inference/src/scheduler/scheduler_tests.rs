use proptest::prelude::*;

use super::*;

/// A language model without weights: what is in the cache at a position is a digest of all tokens
/// up to it, made from what the cache says of those before; the next token is a function of
/// everything that is read back. A wrong block table, a missed copy or a block written by two gives
/// other tokens.
struct Model {
    cache: Vec<u64>,
}

fn mix(a: u64, b: u64) -> u64 {
    let mixed = (a ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed ^ (mixed >> 29)
}

impl Model {
    fn new(blocks: usize) -> Self {
        Self { cache: vec![0; blocks * BLOCK_SIZE] }
    }

    fn copy(&mut self, from: u32, to: u32) {
        let (from, to) = (from as usize * BLOCK_SIZE, to as usize * BLOCK_SIZE);
        self.cache.copy_within(from..from + BLOCK_SIZE, to);
    }

    fn slot(span: &StepSpan<'_>, position: usize) -> usize {
        span.blocks[position / BLOCK_SIZE] as usize * BLOCK_SIZE + position % BLOCK_SIZE
    }

    /// What follows each span. As on a device, all rows are stored before any is read.
    fn forward(&mut self, spans: &[StepSpan<'_>]) -> Vec<u64> {
        let mut written = HashSet::new();
        for span in spans {
            for (position, token) in (span.start..).zip(span.tokens) {
                let before = position.checked_sub(1).map_or(0, |p| self.cache[Self::slot(span, p)]);
                let slot = Self::slot(span, position);
                assert!(written.insert(slot), "two rows of a step write to the same place");
                self.cache[slot] = mix(before, u64::from(*token) + 1);
            }
        }
        let read = |span: &StepSpan<'_>| {
            let positions = 0..span.start + span.tokens.len();
            positions.fold(0, |all, position| mix(all, self.cache[Self::slot(span, position)]))
        };
        spans.iter().map(read).collect()
    }
}

/// A choice's next token.
fn pick(state: u64, request: u64, choice: u32, position: usize) -> u32 {
    // Few different tokens, so that choices and requests often say the same.
    (mix(mix(state, request), u64::from(choice) << 32 | position as u64) >> 40) as u32 % 3
}

/// What a choice says if it is alone in the world.
fn solo(request: u64, choice: u32, prompt: &[u32], length: usize) -> Vec<u32> {
    let mut cells = Vec::new();
    let mut answer: Vec<u32> = Vec::new();
    for position in 0..length {
        let tokens = prompt.iter().chain(&answer).skip(cells.len());
        for token in tokens.copied().collect::<Vec<_>>() {
            cells.push(mix(cells.last().copied().unwrap_or(0), u64::from(token) + 1));
        }
        let state = cells.iter().fold(0, |all, cell| mix(all, *cell));
        answer.push(pick(state, request, choice, position));
    }
    answer
}

/// A request on its way.
struct Request {
    prompt: Vec<u32>,
    /// Tokens of each choice.
    length: usize,
    answers: Vec<Vec<u32>>,
    cancelled: bool,
    /// Positions whose logits are still to come.
    scored: Range<usize>,
}

impl From<Vec<u32>> for Prompt {
    fn from(tokens: Vec<u32>) -> Self {
        Self { tokens, ..Self::default() }
    }
}

/// A scheduler with the model that it schedules for.
struct Runs {
    scheduler: Scheduler,
    model: Model,
    requests: Vec<Request>,
    rows: usize,
    preempted: usize,
}

impl Runs {
    fn new(limits: Limits) -> Self {
        let (scheduler, model) = (Scheduler::new(limits), Model::new(limits.blocks));
        Self { scheduler, model, requests: Vec::new(), rows: 0, preempted: 0 }
    }

    fn submit(&mut self, prompt: &[u32], choices: usize, length: usize) -> u64 {
        self.submit_prompt(prompt.to_vec().into(), choices, length)
    }

    /// The same for a prompt whose logits are wanted from position `from` on.
    fn submit_scored(&mut self, tokens: &[u32], from: usize, choices: usize, length: usize) -> u64 {
        let scored = from.min(tokens.len() - 1)..tokens.len() - 1;
        let tokens = tokens.to_vec();
        self.submit_prompt(Prompt { tokens, scored, ..Prompt::default() }, choices, length)
    }

    fn submit_prompt(&mut self, prompt: Prompt, choices: usize, length: usize) -> u64 {
        let number = self.requests.len() as u64;
        let (scored, answers) = (prompt.scored.clone(), vec![Vec::new(); choices]);
        let tokens = prompt.tokens.clone();
        self.scheduler.submit(number, prompt, choices as u32);
        self.requests.push(Request { prompt: tokens, length, answers, cancelled: false, scored });
        number
    }

    fn cancel(&mut self, request: u64) {
        self.scheduler.cancel(request);
        self.requests[request as usize].cancelled = true;
    }

    fn step(&mut self) -> Step {
        let limits = self.scheduler.limits;
        let decoding: Vec<SequenceId> = self.decoding();
        let step = self.scheduler.plan();
        self.check();
        assert_eq!(step.rows() == 0, !self.scheduler.has_work());
        for id in &decoding {
            let rows = step.spans.iter().filter(|span| span.id == *id).map(|span| span.positions.len());
            let given = rows.sum::<usize>();
            assert!(given == 1 || step.preempted.contains(id), "{id:?} runs and gets {given} rows");
        }
        let prompts = step.rows() - step.spans.iter().filter(|s| decoding.contains(&s.id)).count();
        assert!(prompts <= limits.prefill_budget);
        self.rows += step.rows();
        self.preempted += step.preempted.len();

        let sources: HashSet<u32> = step.copies.iter().map(|(from, _)| *from).collect();
        assert!(step.copies.iter().all(|(_, to)| !sources.contains(to)), "{:?}", step.copies);
        step.copies.iter().for_each(|(from, to)| self.model.copy(*from, *to));
        let spans: Vec<StepSpan<'_>> = step.spans.iter().map(|span| self.scheduler.span(span)).collect();
        let states = self.model.forward(&spans);
        self.scheduler.complete(&step);
        for (span, state) in step.spans.iter().zip(states) {
            if !span.scored.is_empty() {
                let wanted = &mut self.requests[span.id.request as usize].scored;
                assert!(span.scored.start >= span.positions.start && span.scored.end <= span.positions.end);
                assert_eq!(span.scored.start, wanted.start, "each row once, in order");
                wanted.start = span.scored.end;
            }
            for choice in span.picks.clone() {
                self.pick(SequenceId { choice, ..span.id }, state);
            }
        }
        self.check();
        step
    }

    fn pick(&mut self, id: SequenceId, state: u64) {
        let request = &mut self.requests[id.request as usize];
        let answer = &mut request.answers[id.choice as usize];
        let token = pick(state, id.request, id.choice, answer.len());
        answer.push(token);
        if answer.len() == request.length {
            self.scheduler.finish(id);
        } else {
            self.scheduler.push(id, token);
        }
    }

    fn decoding(&self) -> Vec<SequenceId> {
        let running = self.scheduler.running.iter();
        running.filter(|(_, sequence)| sequence.decoding).map(|(id, _)| *id).collect()
    }

    /// No block is lost, and every table is long enough.
    fn check(&self) {
        let Scheduler { pool, running, waiting, limits, .. } = &self.scheduler;
        pool.check(running.values().map(|sequence| sequence.table.as_slice()));
        assert!(waiting.keys().all(|id| !running.contains_key(id)));
        for sequence in running.values() {
            assert!(sequence.table.len() * BLOCK_SIZE >= sequence.tokens.len().max(1) - 1);
        }
        let choices: u32 = running.values().map(|sequence| sequence.choices).sum();
        let requests: HashSet<u64> = running.keys().map(|id| id.request).collect();
        assert!(choices as usize <= limits.sequences || requests.len() == 1);
    }

    fn finish(&mut self) {
        let mut steps = 0;
        while self.scheduler.has_work() {
            self.step();
            steps += 1;
            assert!(steps < 100_000, "no end");
        }
        assert_eq!(self.scheduler.usage(), (0, self.scheduler.limits.blocks));
    }

    fn assert_answers(&self) {
        for (number, request) in (0..).zip(&self.requests) {
            for (choice, answer) in (0..).zip(&request.answers) {
                let expected = solo(number, choice, &request.prompt, request.length);
                assert!(request.cancelled || request.scored.is_empty(), "rows without logits");
                if request.cancelled {
                    assert_eq!(answer[..], expected[..answer.len()]);
                } else {
                    assert_eq!(answer[..], expected[..], "choice {choice} of request {number}");
                }
            }
        }
    }
}

const ROOMY: Limits = Limits { sequences: 64, prefill_budget: 64, blocks: 256 };

/// `count` tokens that begin with the same ones for every count.
fn text(count: usize) -> Vec<u32> {
    (0..count as u32).map(|n| n * n % 251).collect()
}

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
    assert_eq!(runs.scheduler.cached(&question.clone().into()), 992);
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
        assert_eq!(step.started, [Started { id: SequenceId { request: number, choice: 0 }, cached }]);
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
    let salted = |salt: &str| Prompt { salt: Salt::of(salt), ..Prompt::from(text(100)) };
    runs.submit_prompt(salted("a"), 1, 1);
    runs.finish();
    let cached = [salted("a"), salted("b"), text(100).into()].map(|prompt| runs.scheduler.cached(&prompt));
    assert_eq!(cached, [96, 0, 0]);
    runs.submit(&text(100), 1, 1);
    runs.finish();
    assert_eq!(runs.rows, 200);
    assert_eq!(runs.scheduler.cached(&salted("")), 0);
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
    assert_eq!(runs.scheduler.cached(&again.into()), (20 + 29) / BLOCK_SIZE * BLOCK_SIZE);
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
        let mut runs = Runs::new(Limits { prefill_budget, ..ROOMY });
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
    assert_eq!(runs.scheduler.usage().0, 3);
    let step = runs.step();
    assert_eq!((step.rows(), step.copies.len()), (4, 3), "the last one need not copy");
    assert_eq!(runs.scheduler.usage().0, 2 + 4);
    runs.finish();
    assert_eq!(runs.rows, 40 + 4 * 4);
    runs.assert_answers();
}

#[test]
fn full_blocks_are_not_copied() {
    let mut runs = Runs::new(ROOMY);
    runs.submit(&text(32), 3, 2);
    runs.step();
    assert_eq!((runs.step().copies.len(), runs.scheduler.usage().0), (0, 0));
    runs.assert_answers();
}

#[test]
fn the_youngest_gives_way_and_is_computed_again() {
    let mut runs = Runs::new(Limits { blocks: 8, ..ROOMY });
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
    let mut runs = Runs::new(Limits { blocks: 6, ..ROOMY });
    runs.submit(&[1; 17], 1, 31);
    runs.submit(&[2; 33], 1, 1);
    runs.step();
    assert_eq!(runs.requests[1].answers[0].len(), 1, "one block is left");
    let mut runs = Runs::new(Limits { blocks: 5, ..ROOMY });
    runs.submit(&[1; 17], 1, 31);
    runs.submit(&[2; 33], 1, 1);
    runs.step();
    assert_eq!(runs.requests[1].answers[0].len(), 0, "none would be left");
    runs.finish();
    assert_eq!(runs.preempted, 0);
}

#[test]
fn the_end_of_what_is_known_is_forgotten_first() {
    let mut runs = Runs::new(Limits { blocks: 8, ..ROOMY });
    runs.submit(&text(96), 1, 1);
    runs.finish();
    runs.submit(&[9; 64], 1, 1);
    runs.finish();
    assert_eq!(runs.scheduler.cached(&text(97).into()), 64);
}

#[test]
fn a_sequence_may_need_the_whole_pool() {
    let mut runs = Runs::new(Limits { blocks: 4, ..ROOMY });
    runs.submit(&text(10), 3, 55);
    runs.submit(&text(64), 1, 1);
    runs.finish();
    assert!(runs.preempted > 0);
    runs.assert_answers();
}

#[test]
fn only_so_many_sequences_run_at_once() {
    let mut runs = Runs::new(Limits { sequences: 3, ..ROOMY });
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
    assert_eq!(runs.scheduler.usage().0, 0);
    runs.assert_answers();
}

#[derive(Debug, Clone)]
enum Act {
    /// A prompt with a block of one of three beginnings, so many common tokens, and its own.
    Submit {
        head: u32,
        common: usize,
        own: usize,
        choices: usize,
        length: usize,
        /// Logits are wanted from this position of the prompt on.
        scored: Option<usize>,
    },
    /// Cancels one of the requests so far.
    Cancel(prop::sample::Index),
    /// One choice ends early, as by a stop string.
    Stop(prop::sample::Index),
    Steps(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let choices = prop_oneof![3 => Just(1), 1 => 2..6_usize];
    let scored = prop::option::weighted(0.3, 0..60_usize);
    let submit = (0..3_u32, 0..50_usize, 0..25_usize, choices, 1..40_usize, scored);
    let submit = submit.prop_map(|(head, common, own, choices, length, scored)| Act::Submit {
        head,
        common,
        own,
        choices,
        length,
        scored,
    });
    prop_oneof![
        4 => submit,
        1 => any::<prop::sample::Index>().prop_map(Act::Cancel),
        1 => any::<prop::sample::Index>().prop_map(Act::Stop),
        4 => (1..12_usize).prop_map(Act::Steps),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// However requests come, go and crowd each other out, no block is lost or written by two, and
    /// every sequence says what it says alone.
    #[test]
    fn every_schedule_gives_solo_answers(
        acts in prop::collection::vec(act(), 1..50),
        sequences in 1..12_usize,
        prefill_budget in prop_oneof![1..8_usize, 8..80_usize],
        // The largest request needs 8 blocks.
        blocks in prop_oneof![8..14_usize, 14..100_usize],
    ) {
        let mut runs = Runs::new(Limits { sequences, prefill_budget, blocks });
        for (number, act) in (100..).zip(acts) {
            match act {
                Act::Submit { head, common, own, choices, length, scored } => {
                    let prompt = [vec![head; BLOCK_SIZE], text(common), vec![number; own]].concat();
                    match scored {
                        None => runs.submit(&prompt, choices, length),
                        Some(from) => runs.submit_scored(&prompt, from, choices, length),
                    };
                }
                Act::Cancel(which) if !runs.requests.is_empty() => {
                    runs.cancel(which.index(runs.requests.len()) as u64);
                }
                Act::Stop(which) => {
                    let decoding = runs.decoding();
                    if !decoding.is_empty() {
                        let id = decoding[which.index(decoding.len())];
                        runs.scheduler.finish(id);
                        let request = &mut runs.requests[id.request as usize];
                        // Checked as far as it came, like the other choices of its request.
                        request.cancelled = true;
                    }
                }
                Act::Cancel(_) => {}
                Act::Steps(steps) => (0..steps).for_each(|_| drop(runs.step())),
            }
        }
        runs.finish();
        runs.assert_answers();
    }
}
