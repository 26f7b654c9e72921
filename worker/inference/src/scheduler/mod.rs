//! Decides what each step computes: a state machine without a device.
//!
//! [`Scheduler::plan`] gives each decoding sequence one row, and shares a budget of rows among prompts,
//! which are prefilled in chunks; so a long prompt delays running sequences by no more than the
//! budget's time in each step. After the step, [`Scheduler::complete`] takes note of what is in the
//! cache now, and the caller says how each sequence goes on: [`Scheduler::push`] or
//! [`Scheduler::finish`].
//!
//! Keys and values lie in blocks ([`BlockPool`]). A prompt gets all its blocks when it starts, those of
//! a cached prefix from the pool; a decoding sequence gets them one by one. When none is left, the
//! youngest sequence is preempted: it loses its blocks and is recomputed later, with the tokens that it
//! has generated. The oldest is never preempted by others, so every sequence that fits the pool by
//! itself comes to its end.
//!
//! A decoding sequence may get more rows than one: [`Scheduler::add_drafts`] has the tokens computed that
//! may follow its last one. They count only once sampling finds the same ones ([`Scheduler::push`]); until
//! then no block of them is registered. A draft takes blocks that nobody needs in this step, and what was
//! rejected gives them back in the same step, so drafts never preempt a sequence.
//!
//! Where a prompt's own log-probabilities are wanted, its rows are computed with logits, in chunks like
//! any other; cached blocks are used only up to the first of these rows.
//!
//! The choices of a request share the blocks of its prompt, which is computed once. The last of these
//! blocks is usually not full; a choice that writes to it while it is shared gets a copy.
//!
//! Kwon et al., "Efficient memory management for large language model serving with PagedAttention"
//! (2023); Agrawal et al., "Taming throughput-latency tradeoff in LLM inference with Sarathi-Serve"
//! (2024).

pub mod block_pool;
mod cache_salt;
mod step;

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use emberline_kernels::BLOCK_SIZE;

use crate::network::StepSpan;
use block_pool::{BlockKey, BlockPool, Prefix};
pub use cache_salt::CacheSalt;
pub use step::{
    DraftRequest, ScheduledSpan, SchedulerLimits, SchedulerStats, SchedulerStep, SequenceId, SequencePrompt,
    StartedPrompt,
};

/// Plans steps; see the module.
#[derive(Debug)]
pub struct Scheduler {
    limits: SchedulerLimits,
    pool: BlockPool,
    waiting: BTreeMap<SequenceId, WaitingSequence>,
    /// Those with blocks.
    running: BTreeMap<SequenceId, RunningSequence>,
    prefix_queries: u64,
    prefix_hits: u64,
    preemptions: u64,
}

/// A sequence without blocks: one that has not started, or that was preempted.
#[derive(Debug)]
struct WaitingSequence {
    prompt: SequencePrompt,
    /// Choices that continue these tokens.
    choices: u32,
}

#[derive(Debug, Clone)]
struct RunningSequence {
    /// Prompt and generated tokens; during a step, also the drafted ones.
    tokens: Vec<u32>,
    salt: CacheSalt,
    /// Positions whose logits are still wanted for the prompt's own log-probabilities.
    scored: Range<usize>,
    /// How many of the tokens have keys and values in the cache; of drafted ones, only those accepted.
    computed: usize,
    /// The blocks of positions `i * BLOCK_SIZE ..`.
    table: Vec<u32>,
    /// How many full blocks are registered, and the prefix that ends with the last of them.
    registered: usize,
    prefix: Prefix,
    /// Choices that continue these tokens; more than one only until the prompt is computed.
    choices: u32,
    /// Whether the prompt is computed: then all tokens but the last are.
    decoding: bool,
}

impl Scheduler {
    /// Without any sequence.
    pub fn new(limits: SchedulerLimits) -> Self {
        Self {
            limits,
            pool: BlockPool::new(limits.blocks),
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            prefix_queries: 0,
            prefix_hits: 0,
            preemptions: 0,
        }
    }

    /// Adds a request, which must be younger than all before it.
    ///
    /// Its `prompt` must not be empty, and must fit the pool together with one choice's tokens.
    pub fn submit(&mut self, request: u64, prompt: SequencePrompt, choices: u32) {
        self.wait(SequenceId { request, choice: 0 }, prompt, choices.max(1));
    }

    /// Adds one choice of the youngest request, with the tokens of its prompt and those generated
    /// already; as for [`Scheduler::submit`], they must fit the pool.
    pub fn resume(&mut self, id: SequenceId, tokens: SequencePrompt) {
        self.wait(id, tokens, 1);
    }

    fn wait(&mut self, id: SequenceId, prompt: SequencePrompt, choices: u32) {
        let SequencePrompt { tokens, scored, .. } = &prompt;
        debug_assert!(!tokens.is_empty() && tokens.len() <= self.limits.blocks * BLOCK_SIZE);
        debug_assert!(scored.end < tokens.len());
        self.waiting.insert(id, WaitingSequence { prompt, choices });
    }

    /// Whether any sequence is unfinished.
    pub fn has_work(&self) -> bool {
        !(self.waiting.is_empty() && self.running.is_empty())
    }

    /// How many of a prompt's tokens are in the prefix cache now.
    pub fn cached_tokens(&self, prompt: &SequencePrompt) -> usize {
        self.find(prompt).0.len() * BLOCK_SIZE
    }

    /// Forgets the blocks of sequences that have ended.
    pub fn clear_prefix_cache(&mut self) {
        self.pool.clear_prefix_cache();
    }

    /// How busy it is, and what it has done so far.
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            blocks_used: self.pool.total() - self.pool.available(),
            blocks_total: self.pool.total(),
            prefix_queries: self.prefix_queries,
            prefix_hits: self.prefix_hits,
            preemptions: self.preemptions,
        }
    }

    /// Plans the next step, which is not empty while there is work.
    pub fn plan(&mut self) -> SchedulerStep {
        let mut step = SchedulerStep::default();
        self.plan_decoding(&mut step);
        self.plan_prompts(&mut step);
        step
    }

    /// Extends a planned step by rows for drafts: tokens that may follow a decoding sequence's last one.
    ///
    /// `draft` is asked for each decoding sequence, even where no token can be taken. Of what it returns, as
    /// much is taken as the budget and the blocks that are left allow.
    pub fn add_drafts(
        &mut self,
        step: &mut SchedulerStep,
        mut draft: impl FnMut(&DraftRequest<'_>) -> Vec<u32>,
    ) {
        let mut rows = step.rows();
        let mut left = self.limits.draft_budget;
        for span in &mut step.spans {
            let Some(sequence) = self.running.get_mut(&span.id).filter(|s| s.decoding) else { continue };
            let request = DraftRequest { id: span.id, tokens: &sequence.tokens, rows, most: left };
            let mut drafted = draft(&request);
            drafted.truncate(left);
            let first = span.positions.end;
            while sequence.table.len() * BLOCK_SIZE < first + drafted.len()
                && let Some(block) = self.pool.allocate()
            {
                sequence.table.push(block);
            }
            drafted.truncate((sequence.table.len() * BLOCK_SIZE).saturating_sub(first));
            span.drafted = drafted.len();
            span.positions.end += span.drafted;
            rows += span.drafted;
            left -= span.drafted;
            sequence.tokens.extend(drafted);
        }
    }

    /// The network's input for a planned span.
    pub fn span(&self, span: &ScheduledSpan) -> StepSpan<'_> {
        let sequence = self.running.get(&span.id);
        let tokens = sequence.and_then(|sequence| sequence.tokens.get(span.positions.clone()));
        // A prompt has blocks for later chunks, too.
        let blocks = ..span.positions.end.div_ceil(BLOCK_SIZE);
        StepSpan {
            tokens: tokens.unwrap_or_default(),
            start: span.positions.start,
            blocks: sequence.and_then(|sequence| sequence.table.get(blocks)).unwrap_or_default(),
            logit_rows: span.logit_rows(),
        }
    }

    /// Takes note that a planned step is computed. From now on every choice in its spans' `samples` is a
    /// sequence of its own, to be continued or finished before the next step.
    pub fn complete(&mut self, step: &SchedulerStep) {
        for span in &step.spans {
            let Some(sequence) = self.running.get_mut(&span.id) else { continue };
            sequence.computed = span.positions.end - span.drafted;
            sequence.scored.start = sequence.scored.start.max(span.scored.end).min(sequence.scored.end);
            sequence.register(&mut self.pool);
            if span.samples.is_empty() {
                continue;
            }
            sequence.decoding = true;
            sequence.choices = 1;
            let first = sequence.clone();
            for choice in span.samples.clone().skip(1) {
                first.table.iter().for_each(|block| self.pool.retain(*block));
                self.running.insert(SequenceId { choice, ..span.id }, first.clone());
            }
        }
    }

    /// Continues a sequence with `token`. Returns whether the step has computed this token, too, because it
    /// was drafted; then the logits of the next row say what follows.
    pub fn push(&mut self, id: SequenceId, token: u32) -> bool {
        let Some(sequence) = self.running.get_mut(&id) else { return false };
        if sequence.tokens.get(sequence.computed) == Some(&token) {
            sequence.computed += 1;
            sequence.register(&mut self.pool);
            return true;
        }
        // The rest of the draft is rejected.
        sequence.tokens.truncate(sequence.computed);
        sequence.tokens.push(token);
        let used = sequence.computed.div_ceil(BLOCK_SIZE);
        sequence.table.drain(used..).rev().for_each(|block| self.pool.release(block));
        false
    }

    /// Ends a sequence. Its registered blocks stay in the prefix cache.
    pub fn finish(&mut self, id: SequenceId) {
        self.waiting.remove(&id);
        if let Some(sequence) = self.running.remove(&id) {
            // The last blocks go first, so that the beginning is evicted last.
            sequence.table.iter().rev().for_each(|block| self.pool.release(*block));
        }
    }

    /// Ends all sequences of a request.
    pub fn cancel(&mut self, request: u64) {
        let all = SequenceId { request, choice: 0 }..=SequenceId { request, choice: u32::MAX };
        let waiting = self.waiting.range(all.clone()).map(|(id, _)| *id);
        let ids: Vec<SequenceId> = waiting.chain(self.running.range(all).map(|(id, _)| *id)).collect();
        ids.into_iter().for_each(|id| self.finish(id));
    }

    /// Plans one token for each decoding sequence, oldest first.
    fn plan_decoding(&mut self, step: &mut SchedulerStep) {
        let decoding = self.running.iter().filter(|(_, sequence)| sequence.decoding);
        let ids: Vec<SequenceId> = decoding.map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(position) = self.allocate_slot(id, step) {
                let positions = position..position + 1;
                step.spans.push(ScheduledSpan {
                    id,
                    positions,
                    drafted: 0,
                    scored: 0..0,
                    samples: id.choice..id.choice + 1,
                });
            }
        }
    }

    /// Gives a sequence a block of its own for its next position, preempting younger ones if need be;
    /// `None` if it is preempted itself.
    ///
    /// A block that is copied from has another user, whose turn comes next and who keeps it if it is
    /// the last user: so no such block is allocated again in the same step.
    fn allocate_slot(&mut self, id: SequenceId, step: &mut SchedulerStep) -> Option<usize> {
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

    /// Takes a sequence's blocks away and has it wait until it can be recomputed.
    fn preempt(&mut self, id: SequenceId, step: &mut SchedulerStep) {
        let Some(sequence) = self.running.remove(&id) else { return };
        let RunningSequence { tokens, salt, scored, table, choices, .. } = sequence;
        table.into_iter().rev().for_each(|block| self.pool.release(block));
        self.waiting.insert(id, WaitingSequence { prompt: SequencePrompt { tokens, salt, scored }, choices });
        step.preempted.push(id);
        self.preemptions += 1;
    }

    /// Shares the budget among prompts: up to half of it goes to the oldest, the rest to those that need
    /// least, so that a long prompt does not hold up short ones.
    fn plan_prompts(&mut self, step: &mut SchedulerStep) {
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

    /// Starts prompts, oldest first, while there are blocks for them and budget is left.
    fn start_prompts(&mut self, step: &mut SchedulerStep, budget: usize) {
        let mut coming: HashSet<BlockKey> = self.prompts().filter_map(|(_, s)| s.next_key()).collect();
        // Tokens to compute of the started prompts, and of all but the oldest of them.
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
            // It must get rows in this step, or fit beside the oldest as a whole.
            if queued >= budget && beside + needed > budget / 2 {
                continue;
            }
            // Another prompt is about to compute the next block: soon it is in the cache.
            let next = next_key(tokens, blocks.len(), prefix, waiting.prompt.salt);
            let is_usable = (blocks.len() + 1) * BLOCK_SIZE <= waiting.prompt.usable();
            if is_usable && next.is_some_and(|key| coming.contains(&key)) {
                continue;
            }
            let total = tokens.len();
            if !self.has_slots_for(waiting.choices) || !self.reserve(id, &blocks, prefix) {
                return;
            }
            self.prefix_queries += total as u64;
            self.prefix_hits += (blocks.len() * BLOCK_SIZE) as u64;
            coming.extend(next);
            beside += if queued > 0 { needed } else { 0 };
            queued += needed;
            step.started.push(StartedPrompt { id, cached: blocks.len() * BLOCK_SIZE });
        }
    }

    /// Prompts that are being computed, oldest first.
    fn prompts(&self) -> impl Iterator<Item = (SequenceId, &RunningSequence)> {
        self.running.iter().filter(|(_, sequence)| !sequence.decoding).map(|(id, sequence)| (*id, sequence))
    }

    fn has_slots_for(&self, choices: u32) -> bool {
        let running: u32 = self.running.values().map(|sequence| sequence.choices).sum();
        running == 0 || (running + choices) as usize <= self.limits.sequences
    }

    /// Starts a waiting sequence with all blocks that its tokens need, the cached ones in `found` first;
    /// `false` if too few would be left for running sequences to grow.
    fn reserve(&mut self, id: SequenceId, found: &[u32], prefix: Prefix) -> bool {
        let Some(waiting) = self.waiting.get(&id) else { return false };
        let missing = waiting.prompt.tokens.len().div_ceil(BLOCK_SIZE).saturating_sub(found.len());
        found.iter().for_each(|block| self.pool.retain(*block));
        if self.pool.available() < missing + self.running.len() {
            found.iter().rev().for_each(|block| self.pool.release(*block));
            return false;
        }
        let Some(WaitingSequence { prompt, choices }) = self.waiting.remove(&id) else { return false };
        let SequencePrompt { tokens, salt, scored } = prompt;
        let mut table = found.to_vec();
        table.extend((0..missing).map_while(|_| self.pool.allocate()));
        let (registered, computed) = (found.len(), found.len() * BLOCK_SIZE);
        let decoding = false;
        let sequence =
            RunningSequence { tokens, salt, scored, computed, table, registered, prefix, choices, decoding };
        self.running.insert(id, sequence);
        true
    }

    /// The cached blocks with which a prompt begins, as far as they can be used.
    fn find(&self, prompt: &SequencePrompt) -> (Vec<u32>, Prefix) {
        let mut found = (Vec::new(), Prefix::Empty);
        let usable = prompt.tokens.get(..prompt.usable()).unwrap_or_default();
        for tokens in usable.as_chunks::<BLOCK_SIZE>().0 {
            let salt = prompt.salt.of_block(found.0.len());
            let key = BlockKey { parent: found.1, salt, tokens: *tokens };
            let Some((block, prefix)) = self.pool.find(&key) else { break };
            found.0.push(block);
            found.1 = prefix;
        }
        found
    }
}

impl SequencePrompt {
    /// How many tokens may come from the prefix cache. Those whose logits are wanted must be computed: in
    /// any case the last one, for the token that follows.
    fn usable(&self) -> usize {
        let before_last = self.tokens.len().saturating_sub(1);
        if self.scored.is_empty() { before_last } else { before_last.min(self.scored.start) }
    }
}

impl RunningSequence {
    /// Tokens that are not computed yet.
    fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// The next `rows` tokens of a prompt.
    fn chunk(&self, id: SequenceId, rows: usize) -> ScheduledSpan {
        let end = self.computed + rows;
        let samples = if end == self.tokens.len() { self.choices } else { 0 };
        let scored = self.scored.start.max(self.computed)..self.scored.end.min(end);
        let scored = if scored.is_empty() { 0..0 } else { scored };
        let samples = id.choice..id.choice + samples;
        ScheduledSpan { id, positions: self.computed..end, drafted: 0, scored, samples }
    }

    /// The first block that is not registered yet, if it lies before the last token.
    fn next_key(&self) -> Option<BlockKey> {
        next_key(&self.tokens, self.registered, self.prefix, self.salt)
    }

    /// Registers the blocks that are full now.
    fn register(&mut self, pool: &mut BlockPool) {
        let full = self.tokens.get(..self.computed).unwrap_or_default().as_chunks::<BLOCK_SIZE>().0;
        for (tokens, block) in full.iter().zip(&self.table).skip(self.registered) {
            let salt = self.salt.of_block(self.registered);
            self.prefix = pool.register(*block, BlockKey { parent: self.prefix, salt, tokens: *tokens });
            self.registered += 1;
        }
    }
}

/// The key of the block after `registered` ones, if that block lies before the last token.
fn next_key(tokens: &[u32], registered: usize, prefix: Prefix, salt: CacheSalt) -> Option<BlockKey> {
    let (next, rest) = tokens.get(registered * BLOCK_SIZE..)?.split_first_chunk()?;
    (!rest.is_empty()).then_some(BlockKey { parent: prefix, salt: salt.of_block(registered), tokens: *next })
}

#[cfg(test)]
mod tests;
