//! A scheduler with a model that it schedules for.

mod drafts;
mod plans;
mod random;

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

    /// What follows each row whose logits are wanted, or else each span. As on a device, all rows are stored
    /// before any is read.
    fn forward(&mut self, spans: &[StepSpan<'_>]) -> Vec<Vec<u64>> {
        let mut written = HashSet::new();
        for span in spans {
            for (position, token) in (span.start..).zip(span.tokens) {
                let before = position.checked_sub(1).map_or(0, |p| self.cache[Self::slot(span, p)]);
                let slot = Self::slot(span, position);
                assert!(written.insert(slot), "two rows of a step write to the same place");
                self.cache[slot] = mix(before, u64::from(*token) + 1);
            }
        }
        let read = |span: &StepSpan<'_>, end: usize| {
            (0..end).fold(0, |all, position| mix(all, self.cache[Self::slot(span, position)]))
        };
        let of_rows = |span: &StepSpan<'_>| {
            let end = span.start + span.tokens.len();
            let first = end + 1 - span.logit_rows.max(1);
            (first..=end).map(|end| read(span, end)).collect()
        };
        spans.iter().map(of_rows).collect()
    }
}

/// A choice's next token.
fn sample(state: u64, request: u64, choice: u32, position: usize) -> u32 {
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
        answer.push(sample(state, request, choice, position));
    }
    answer
}

/// A request on its way.
struct Request {
    prompt: Vec<u32>,
    /// Tokens of each choice.
    length: usize,
    answers: Vec<Vec<u32>>,
    /// What each choice says alone.
    solo: Vec<Vec<u32>>,
    cancelled: bool,
    /// Positions whose logits are still to come.
    scored: Range<usize>,
}

impl From<Vec<u32>> for SequencePrompt {
    fn from(tokens: Vec<u32>) -> Self {
        Self { tokens, ..Self::default() }
    }
}

/// A scheduler with the model that it schedules for.
struct Runs {
    scheduler: Scheduler,
    model: Model,
    requests: Vec<Request>,
    /// Changes from draft to draft; `None` without drafts.
    drafts: Option<u64>,
    /// Drafted tokens, and those accepted.
    drafted: usize,
    accepted: usize,
    rows: usize,
    preempted: usize,
}

impl Runs {
    fn new(limits: SchedulerLimits) -> Self {
        let (scheduler, model) = (Scheduler::new(limits), Model::new(limits.blocks));
        let (requests, drafts) = (Vec::new(), None);
        Self { scheduler, model, requests, drafts, drafted: 0, accepted: 0, rows: 0, preempted: 0 }
    }

    /// With drafts that are right, wrong or both, of random lengths.
    fn drafting(limits: SchedulerLimits, seed: u64) -> Self {
        Self { drafts: Some(seed), ..Self::new(limits) }
    }

    fn submit(&mut self, prompt: &[u32], choices: usize, length: usize) -> u64 {
        self.submit_prompt(prompt.to_vec().into(), choices, length)
    }

    /// The same for a prompt whose logits are wanted from position `from` on.
    fn submit_scored(&mut self, tokens: &[u32], from: usize, choices: usize, length: usize) -> u64 {
        let scored = from.min(tokens.len() - 1)..tokens.len() - 1;
        let tokens = tokens.to_vec();
        self.submit_prompt(SequencePrompt { tokens, scored, ..SequencePrompt::default() }, choices, length)
    }

    fn submit_prompt(&mut self, prompt: SequencePrompt, choices: usize, length: usize) -> u64 {
        let number = self.requests.len() as u64;
        let (scored, answers) = (prompt.scored.clone(), vec![Vec::new(); choices]);
        let tokens = prompt.tokens.clone();
        self.scheduler.submit(number, prompt, choices as u32);
        let solo = (0..choices as u32).map(|choice| solo(number, choice, &tokens, length)).collect();
        self.requests.push(Request { prompt: tokens, length, answers, solo, cancelled: false, scored });
        number
    }

    fn cancel(&mut self, request: u64) {
        self.scheduler.cancel(request);
        self.requests[request as usize].cancelled = true;
    }

    fn step(&mut self) -> SchedulerStep {
        let limits = self.scheduler.limits;
        let decoding: Vec<SequenceId> = self.decoding();
        let mut step = self.scheduler.plan();
        self.check();
        self.add_drafts(&mut step);
        self.check();
        assert_eq!(step.rows() == 0, !self.scheduler.has_work());
        for id in &decoding {
            let own = step.spans.iter().filter(|span| span.id == *id);
            let given = own.map(|span| span.positions.len() - span.drafted).sum::<usize>();
            assert!(given == 1 || step.preempted.contains(id), "{id:?} runs and gets {given} rows");
        }
        let of_answers = step.spans.iter().filter(|span| decoding.contains(&span.id));
        let prompts = step.rows() - of_answers.map(|span| span.positions.len()).sum::<usize>();
        assert!(prompts <= limits.prefill_budget);
        self.rows += step.rows();
        self.preempted += step.preempted.len();

        let sources: HashSet<u32> = step.copies.iter().map(|(from, _)| *from).collect();
        assert!(step.copies.iter().all(|(_, to)| !sources.contains(to)), "{:?}", step.copies);
        step.copies.iter().for_each(|(from, to)| self.model.copy(*from, *to));
        let spans: Vec<StepSpan<'_>> = step.spans.iter().map(|span| self.scheduler.span(span)).collect();
        let states = self.model.forward(&spans);
        self.scheduler.complete(&step);
        for (span, states) in step.spans.iter().zip(states) {
            if !span.scored.is_empty() {
                let wanted = &mut self.requests[span.id.request as usize].scored;
                assert!(span.scored.start >= span.positions.start && span.scored.end <= span.positions.end);
                assert_eq!(span.scored.start, wanted.start, "each row once, in order");
                wanted.start = span.scored.end;
            }
            assert!(span.samples.is_empty() || states.len() == 1 + span.drafted);
            for choice in span.samples.clone() {
                self.sample(SequenceId { choice, ..span.id }, &states);
            }
        }
        self.check();
        self.check_between_steps();
        step
    }

    /// Samples from one row after another, as far as the draft is right.
    fn sample(&mut self, id: SequenceId, states: &[u64]) {
        let request = &mut self.requests[id.request as usize];
        let answer = &mut request.answers[id.choice as usize];
        for state in states {
            let token = sample(*state, id.request, id.choice, answer.len());
            answer.push(token);
            if answer.len() == request.length {
                return self.scheduler.finish(id);
            }
            if !self.scheduler.push(id, token) {
                return;
            }
            self.accepted += 1;
        }
        panic!("{id:?}: more tokens are accepted than were drafted");
    }

    fn add_drafts(&mut self, step: &mut SchedulerStep) {
        let Some(seed) = &mut self.drafts else { return };
        let (requests, before) = (&self.requests, self.scheduler.stats());
        let mut asked = Vec::new();
        self.scheduler.add_drafts(step, |place| {
            asked.push(place.id);
            let request = &requests[place.id.request as usize];
            let answer = &request.answers[place.id.choice as usize];
            assert_eq!(place.tokens, [&request.prompt[..], answer].concat());
            *seed = mix(*seed, 1);
            let length = (*seed >> 8) as usize % 40;
            let right = if *seed % 3 == 0 { length } else { (*seed >> 20) as usize % 40 };
            let rest = request.solo[place.id.choice as usize].iter().skip(answer.len());
            // Wrong tokens, and tokens behind the answer's end, are of the same few.
            let other = (0..40).map(|at| (mix(*seed, at) >> 40) as u32 % 3);
            rest.copied().take(right).chain(other).take(length).collect()
        });
        let decoding: Vec<SequenceId> = self.decoding();
        assert_eq!(asked, decoding, "every decoding sequence, oldest first");
        let drafted: usize = step.spans.iter().map(|span| span.drafted).sum();
        assert!(drafted <= self.scheduler.limits.draft_budget);
        self.drafted += drafted;
        let after = self.scheduler.stats();
        assert_eq!((before.running, before.preemptions), (after.running, after.preemptions));
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

    /// Nothing of a draft is left, neither tokens nor blocks.
    fn check_between_steps(&self) {
        for (id, sequence) in self.scheduler.running.iter().filter(|(_, sequence)| sequence.decoding) {
            assert_eq!(sequence.tokens.len(), sequence.computed + 1);
            assert_eq!(sequence.table.len(), sequence.computed.div_ceil(BLOCK_SIZE));
            assert_eq!(sequence.registered, sequence.computed / BLOCK_SIZE);
            let request = &self.requests[id.request as usize];
            let known = [&request.prompt[..], &request.answers[id.choice as usize]].concat();
            assert_eq!(sequence.tokens, known);
        }
    }

    fn finish(&mut self) {
        let mut steps = 0;
        while self.scheduler.has_work() {
            self.step();
            steps += 1;
            assert!(steps < 100_000, "no end");
        }
        let stats = self.scheduler.stats();
        assert_eq!((stats.running, stats.waiting, stats.blocks_used), (0, 0, 0));
        assert_eq!(stats.blocks_total, self.scheduler.limits.blocks);
        assert_eq!(stats.preemptions, self.preempted as u64);
    }

    fn assert_answers(&self) {
        for (number, request) in self.requests.iter().enumerate() {
            for (choice, (answer, expected)) in request.answers.iter().zip(&request.solo).enumerate() {
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

const ROOMY: SchedulerLimits =
    SchedulerLimits { sequences: 64, prefill_budget: 64, draft_budget: 64, blocks: 256 };

/// `count` tokens that begin with the same ones for every count.
fn text(count: usize) -> Vec<u32> {
    (0..count as u32).map(|n| n * n % 251).collect()
}
