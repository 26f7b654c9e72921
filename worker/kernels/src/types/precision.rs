//! How exact products are.

/// How products with a [`Matrix`](crate::Matrix) are computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Precision {
    /// In f32, or on matrix units with two halves for each number of a row, which together are as exact.
    #[default]
    Exact,
    /// With activations of two bytes (15 bits), on the CPU, where weights are stored as integers; of one half (11 bits)
    /// on matrix units.
    Fast,
    /// The same with one byte.
    Fastest,
}
