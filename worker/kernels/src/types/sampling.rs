//! How a row's token is picked.

/// How a row's token is picked on the device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PickRow {
    /// 0 picks the largest logit, the lowest id of several.
    pub temperature: f32,
    /// Only so many most probable tokens count; 0 for all.
    pub top_k: u32,
    /// The share of probability that the most probable tokens must reach together; 1 for all.
    pub top_p: f32,
    /// Tokens less probable than this share of the most probable one don't count.
    pub min_p: f32,
    /// A uniform random number in [0, 1).
    pub random: f32,
}
