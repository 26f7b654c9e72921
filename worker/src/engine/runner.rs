//! What an engine needs of a network: rows in, logits out.

/// Consecutive tokens of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct StepSpan<'a> {
    /// The tokens.
    pub tokens: &'a [u32],
    /// Position of the first of them.
    pub start: usize,
    /// The sequence's block table.
    pub blocks: &'a [u32],
    /// Whether the logits after the last of them are wanted.
    pub wants_logits: bool,
}
