//! Decides what each step computes: a pure state machine that knows no device.
//!
//! [`Scheduler::plan`] gives every sequence that is past its prompt one row, and shares a budget of
//! rows among prompts; so a long prompt delays running sequences by no more than the budget's time a
//! step. After the step, [`Scheduler::complete`] takes note of what is in the cache
//! now, and the caller says how each sequence goes on: [`Scheduler::push`] or [`Scheduler::finish`].
//!
//! Keys and values lie in blocks (see [`BlockPool`]). A prompt gets all its blocks when it starts,
//! those of a known beginning from the cache; a running sequence gets them one by one. When none is
//! left, the youngest sequence loses its blocks and is computed again later, its own tokens
//! included: the oldest always gets on, so every sequence that fits the pool alone comes to its end.
//!
//! Where a prompt's own log-probabilities are wanted, its rows are computed with logits, in chunks like any
//! other: what the cache knows of it does not count before they have been had.
//!
//! Choices of one request share the blocks of its prompt, which is computed once. The last of them
//! is usually not full; whoever writes to it while it is shared gets a copy.
//!
//! Kwon et al., "Efficient memory management for large language model serving with PagedAttention"
//! (2023); Agrawal et al., "Taming throughput-latency tradeoff in LLM inference with Sarathi-Serve"
//! (2024).

pub mod blocks;

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use emberline_kernels::BLOCK_SIZE;

use crate::network::StepSpan;
use blocks::{BlockPool, Content, Prefix, Salt};

/// What a scheduler may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that run at once. A request with more choices runs alone.
    pub sequences: usize,
    /// Rows of a step that go to prompts.
    pub prefill_budget: usize,
    /// Blocks of the cache.
    pub blocks: usize,
}

/// One choice of a request. Requests are numbered by age, so the greatest is the youngest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId {
    /// The request's number.
    pub request: u64,
    /// Which of its choices.
    pub choice: u32,
}

/// A sequence before it is computed.
#[derive(Debug, Clone, Default)]
pub struct Prompt {
    /// Its tokens, perhaps with those of an answer.
    pub tokens: Vec<u32>,
    /// What it shares blocks by.
    pub salt: Salt,
    /// Positions whose logits are wanted; empty for those of a prompt that is only continued.
    pub scored: Range<usize>,
}

/// What to compute.
#[derive(Debug, Default)]
pub struct Step {
    /// Blocks to copy before anything else, `(from, to)`; none is on both sides.
    pub copies: Vec<(u32, u32)>,
    /// Rows to compute; see [`Scheduler::span`].
    pub spans: Vec<Span>,
    /// Prompts that start with this step.
    pub started: Vec<Started>,
    /// Sequences that had to give up their blocks.
    pub preempted: Vec<SequenceId>,
}

/// Consecutive tokens of one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Whose.
    pub id: SequenceId,
    /// Their positions.
    pub positions: Range<usize>,
    /// Of them, those whose logits are wanted besides.
    pub scored: Range<usize>,
    /// Choices that need a token after the last of these: none in the middle of a prompt.
    pub picks: Range<u32>,
}

/// A sequence that got its first blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Which.
    pub id: SequenceId,
    /// Tokens that the cache already had.
    pub cached: usize,
}

impl Step {
    /// Tokens that it computes.
    pub fn rows(&self) -> usize {
        self.spans.iter().map(|span| span.positions.len()).sum()
    }
}

/// See the module.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    waiting: BTreeMap<SequenceId, Waiting>,
    /// Those with blocks.
    running: BTreeMap<SequenceId, Sequence>,
}

/// A sequence of which nothing is computed, or not any more.
#[derive(Debug)]
struct Waiting {
    /// Prompt and answer.
    prompt: Prompt,
    /// Choices that go on from these tokens.
    choices: u32,
}

#[derive(Debug, Clone)]
struct Sequence {
    /// Prompt and answer.
    tokens: Vec<u32>,
    salt: Salt,
    /// Positions whose logits are still wanted.
    scored: Range<usize>,
    /// How many of the tokens the cache has.
    computed: usize,
    /// The blocks of positions `i * BLOCK_SIZE ..`.
    table: Vec<u32>,
    /// How many full blocks are registered, and under what prefix the last of them is.
    registered: usize,
    prefix: Prefix,
    /// Choices that go on from these tokens; more than one only until they are computed.
    choices: u32,
    /// Past its prompt: all tokens but the last are computed.
    decoding: bool,
}

impl Scheduler {
    /// Nothing to do yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            pool: BlockPool::new(limits.blocks),
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
        }
    }

    /// Takes in a request that is younger than all before it.
    ///
    /// Its `prompt` must not be empty, and must fit the pool together with one choice's answer.
    pub fn submit(&mut self, request: u64, prompt: Prompt, choices: u32) {
        self.wait(SequenceId { request, choice: 0 }, prompt, choices.max(1));
    }

    /// Takes in one choice of a request that is as young as can be, with the `tokens` of its prompt
    /// and those that it has already; as for [`Scheduler::submit`], they must fit.
    pub fn resume(&mut self, id: SequenceId, tokens: Prompt) {
        self.wait(id, tokens, 1);
    }

    fn wait(&mut self, id: SequenceId, prompt: Prompt, choices: u32) {
        let Prompt { tokens, scored, .. } = &prompt;
        debug_assert!(!tokens.is_empty() && tokens.len() <= self.limits.blocks * BLOCK_SIZE);
        debug_assert!(scored.end < tokens.len());
        self.waiting.insert(id, Waiting { prompt, choices });
    }

    /// Whether any sequence is unfinished.
    pub fn has_work(&self) -> bool {
        !(self.waiting.is_empty() && self.running.is_empty())
    }

    /// How many of a prompt's tokens the cache has now.
    pub fn cached(&self, prompt: &Prompt) -> usize {
        self.find(prompt).0.len() * BLOCK_SIZE
    }

    /// Forgets what is kept of sequences that have ended.
    pub fn forget(&mut self) {
        self.pool.forget();
    }

    /// Blocks that sequences use, and all there are.
    pub fn usage(&self) -> (usize, usize) {
        (self.pool.total() - self.pool.available(), self.pool.total())
    }

    /// Decides on the next step. Not empty as long as there is work.
    pub fn plan(&mut self) -> Step {
        let mut step = Step::default();
        self.plan_decoding(&mut step);
        self.plan_prompts(&mut step);
        step
    }

    /// What a planned span consists of.
    pub fn span(&self, span: &Span) -> StepSpan<'_> {
        let sequence = self.running.get(&span.id);
        let tokens = sequence.and_then(|sequence| sequence.tokens.get(span.positions.clone()));
        // A prompt has blocks for the chunks to come, too.
        let blocks = ..span.positions.end.div_ceil(BLOCK_SIZE);
        StepSpan {
            tokens: tokens.unwrap_or_default(),
            start: span.positions.start,
            blocks: sequence.and_then(|sequence| sequence.table.get(blocks)).unwrap_or_default(),
            wants_logits: !span.picks.is_empty(),
        }
    }

    /// Takes note that a planned step is computed. Every choice in its spans' `picks` is a sequence
    /// now.
    pub fn complete(&mut self, step: &Step) {
        for span in &step.spans {
            let Some(sequence) = self.running.get_mut(&span.id) else { continue };
            sequence.computed = span.positions.end;
            sequence.scored.start = sequence.scored.start.max(span.scored.end).min(sequence.scored.end);
            sequence.register(&mut self.pool);
            if span.picks.is_empty() {
                continue;
            }
            sequence.decoding = true;
            sequence.choices = 1;
            let first = sequence.clone();
            for choice in span.picks.clone().skip(1) {
                first.table.iter().for_each(|block| self.pool.retain(*block));
                self.running.insert(SequenceId { choice, ..span.id }, first.clone());
            }
        }
    }

    /// A sequence goes on with `token`.
    pub fn push(&mut self, id: SequenceId, token: u32) {
        if let Some(sequence) = self.running.get_mut(&id) {
            sequence.tokens.push(token);
        }
    }

    /// A sequence has ended. What is computed of it can still be found.
    pub fn finish(&mut self, id: SequenceId) {
        self.waiting.remove(&id);
        if let Some(sequence) = self.running.remove(&id) {
            // The end goes first, so that as much of the beginning as possible is found again.
            sequence.table.iter().rev().for_each(|block| self.pool.release(*block));
        }
    }

    /// A request has ended.
    pub fn cancel(&mut self, request: u64) {
        let all = SequenceId { request, choice: 0 }..=SequenceId { request, choice: u32::MAX };
        let waiting = self.waiting.range(all.clone()).map(|(id, _)| *id);
        let ids: Vec<SequenceId> = waiting.chain(self.running.range(all).map(|(id, _)| *id)).collect();
        ids.into_iter().for_each(|id| self.finish(id));
    }

    /// One token for each sequence past its prompt, oldest first.
    fn plan_decoding(&mut self, step: &mut Step) {
        let decoding = self.running.iter().filter(|(_, sequence)| sequence.decoding);
        let ids: Vec<SequenceId> = decoding.map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(position) = self.make_writable(id, step) {
                let positions = position..position + 1;
                step.spans.push(Span { id, positions, scored: 0..0, picks: id.choice..id.choice + 1 });
            }
        }
    }

    /// Gives a sequence a block of its own for its next position, at the cost of younger ones;
    /// `None` if it loses all of its own.
    ///
    /// A block that is copied from has another user, whose turn comes next and who keeps it if it is
    /// the last: so no such block is given out again in the same step.
    fn make_writable(&mut self, id: SequenceId, step: &mut Step) -> Option<usize> {
        loop {
            let sequence = self.running.get_mut(&id)?;
            let position = sequence.computed;
            let last = sequence.table.get_mut(position / BLOCK_SIZE);
            if last.as_ref().is_some_and(|block| !self.pool.is_shared(**block)) {
                return Some(position);
            }
            if let Some(fresh) = self.pool.allocate() {
                match last {
                    Some(shared) => {
                        step.copies.push((*shared, fresh));
                        self.pool.release(*shared);
                        *shared = fresh;
                    }
                    None => sequence.table.push(fresh),
                }
                return Some(position);
            }
            let youngest = *self.running.last_key_value()?.0;
            self.preempt(youngest, step);
        }
    }

    /// Takes a sequence's blocks away and has it wait until it can be computed again.
    fn preempt(&mut self, id: SequenceId, step: &mut Step) {
        let Some(sequence) = self.running.remove(&id) else { return };
        let Sequence { tokens, salt, scored, table, choices, .. } = sequence;
        table.into_iter().rev().for_each(|block| self.pool.release(block));
        self.waiting.insert(id, Waiting { prompt: Prompt { tokens, salt, scored }, choices });
        step.preempted.push(id);
    }

    /// Shares the budget among prompts: half of it is the oldest's, as far as it needs that much;
    /// then those come that need least, so that a long prompt does not hold up short ones.
    fn plan_prompts(&mut self, step: &mut Step) {
        let budget = self.limits.prefill_budget.max(1);
        self.start_prompts(step, budget);
        let mut rest: Vec<(usize, SequenceId)> = self.prompts().map(|(id, s)| (s.remaining(), id)).collect();
        if rest.is_empty() {
            return;
        }
        let (needed, oldest) = rest.remove(0);
        rest.sort_unstable();
        let first = (needed.min(budget.div_ceil(2)), oldest);
        let mut left = budget;
        let mut shares: BTreeMap<SequenceId, usize> = BTreeMap::new();
        for (wanted, id) in [first].into_iter().chain(rest).chain([(needed, oldest)]) {
            let share = shares.entry(id).or_default();
            let rows = (wanted - *share).min(left);
            *share += rows;
            left -= rows;
        }
        let with_rows = shares.into_iter().filter(|(_, rows)| *rows > 0);
        let spans = with_rows.filter_map(|(id, rows)| Some(self.running.get(&id)?.chunk(id, rows)));
        step.spans.extend(spans);
    }

    /// Starts prompts, oldest first, while there is room for them and something left of the budget.
    fn start_prompts(&mut self, step: &mut Step, budget: usize) {
        let mut coming: HashSet<Content> = self.prompts().filter_map(|(_, s)| s.next_content()).collect();
        // Tokens to come of those that have started, and of them, of all but the oldest.
        let mut queued: usize = self.prompts().map(|(_, s)| s.remaining()).sum();
        let mut beside: usize = self.prompts().skip(1).map(|(_, s)| s.remaining()).sum();
        let ids: Vec<SequenceId> = self.waiting.keys().copied().collect();
        for id in ids {
            if queued >= budget && beside >= budget / 2 {
                return;
            }
            let Some(waiting) = self.waiting.get(&id) else { continue };
            let (blocks, prefix) = self.find(&waiting.prompt);
            let tokens = &waiting.prompt.tokens;
            let needed = tokens.len() - blocks.len() * BLOCK_SIZE;
            // Either it has a share at once, or it is computed at once beside the oldest.
            if queued >= budget && beside + needed > budget / 2 {
                continue;
            }
            // Another prompt is just computing what comes next here: it will be in the cache.
            let next = next_content(tokens, blocks.len(), prefix);
            let is_usable = (blocks.len() + 1) * BLOCK_SIZE <= waiting.prompt.usable();
            if is_usable && next.is_some_and(|content| coming.contains(&content)) {
                continue;
            }
            if !self.has_place_for(waiting.choices) || !self.reserve(id, &blocks, prefix) {
                return;
            }
            coming.extend(next);
            beside += if queued > 0 { needed } else { 0 };
            queued += needed;
            step.started.push(Started { id, cached: blocks.len() * BLOCK_SIZE });
        }
    }

    /// Prompts that have started, oldest first.
    fn prompts(&self) -> impl Iterator<Item = (SequenceId, &Sequence)> {
        self.running.iter().filter(|(_, sequence)| !sequence.decoding).map(|(id, sequence)| (*id, sequence))
    }

    fn has_place_for(&self, choices: u32) -> bool {
        let running: u32 = self.running.values().map(|sequence| sequence.choices).sum();
        running == 0 || (running + choices) as usize <= self.limits.sequences
    }

    /// Gives a waiting sequence all blocks that its tokens need, `found` ones first, if enough stay
    /// for those that run to grow.
    fn reserve(&mut self, id: SequenceId, found: &[u32], prefix: Prefix) -> bool {
        let Some(waiting) = self.waiting.get(&id) else { return false };
        let missing = waiting.prompt.tokens.len().div_ceil(BLOCK_SIZE).saturating_sub(found.len());
        found.iter().for_each(|block| self.pool.retain(*block));
        if self.pool.available() < missing + self.running.len() {
            found.iter().rev().for_each(|block| self.pool.release(*block));
            return false;
        }
        let Some(Waiting { prompt, choices }) = self.waiting.remove(&id) else { return false };
        let Prompt { tokens, salt, scored } = prompt;
        let mut table = found.to_vec();
        table.extend((0..missing).map_while(|_| self.pool.allocate()));
        let (registered, computed) = (found.len(), found.len() * BLOCK_SIZE);
        let decoding = false;
        let sequence =
            Sequence { tokens, salt, scored, computed, table, registered, prefix, choices, decoding };
        self.running.insert(id, sequence);
        true
    }

    /// The registered blocks with which a prompt begins, as far as they are of use.
    fn find(&self, prompt: &Prompt) -> (Vec<u32>, Prefix) {
        let mut found = (Vec::new(), Prefix::Empty(prompt.salt));
        let usable = prompt.tokens.get(..prompt.usable()).unwrap_or_default();
        for tokens in usable.as_chunks::<BLOCK_SIZE>().0 {
            let Some((block, prefix)) = self.pool.find(&Content { parent: found.1, tokens: *tokens }) else {
                break;
            };
            found.0.push(block);
            found.1 = prefix;
        }
        found
    }
}

impl Prompt {
    /// Tokens that the cache may know. Those must be computed whose logits are wanted: the last one's in any
    /// case, to know what follows.
    fn usable(&self) -> usize {
        let before_last = self.tokens.len().saturating_sub(1);
        if self.scored.is_empty() { before_last } else { before_last.min(self.scored.start) }
    }
}

impl Sequence {
    /// Tokens that are not computed yet.
    fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// The next `rows` tokens of a prompt.
    fn chunk(&self, id: SequenceId, rows: usize) -> Span {
        let end = self.computed + rows;
        let picks = if end == self.tokens.len() { self.choices } else { 0 };
        let scored = self.scored.start.max(self.computed)..self.scored.end.min(end);
        let scored = if scored.is_empty() { 0..0 } else { scored };
        Span { id, positions: self.computed..end, scored, picks: id.choice..id.choice + picks }
    }

    /// The first block that is not registered yet, if it lies before the last token.
    fn next_content(&self) -> Option<Content> {
        next_content(&self.tokens, self.registered, self.prefix)
    }

    /// Registers the blocks that are full now.
    fn register(&mut self, pool: &mut BlockPool) {
        let full = self.tokens.get(..self.computed).unwrap_or_default().as_chunks::<BLOCK_SIZE>().0;
        for (tokens, block) in full.iter().zip(&self.table).skip(self.registered) {
            self.prefix = pool.register(*block, Content { parent: self.prefix, tokens: *tokens });
            self.registered += 1;
        }
    }
}

/// The block after `registered` ones, if it lies before the last token.
fn next_content(tokens: &[u32], registered: usize, prefix: Prefix) -> Option<Content> {
    let (next, rest) = tokens.get(registered * BLOCK_SIZE..)?.split_first_chunk()?;
    (!rest.is_empty()).then_some(Content { parent: prefix, tokens: *next })
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
