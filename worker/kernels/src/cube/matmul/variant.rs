//! What is compiled into a kernel of products, and how the work is divided.

use crate::cube::dequant::unit_vectors;
use crate::ggml::GgmlType;
use crate::types::Activation;

/// Threads that share an output.
pub(super) const LANES: usize = 32;
/// Threads of a cube. The order in which squares are summed depends on it.
pub(super) const THREADS: usize = 128;

/// What is applied to a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Epilogue {
    /// Nothing.
    Store,
    /// A residual is added.
    Add,
    /// The activation of the first half of the outputs is multiplied with the second half.
    Gate(Activation),
}

/// How the work is divided. It does not change any result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Tile {
    /// Rows whose sums a thread holds.
    pub(super) rows: usize,
    /// Matrix rows whose sums a thread holds.
    pub(super) outputs: usize,
}

impl Tile {
    /// A thread has a few outputs, so that 64 bytes of the matrix are in flight to it. With a gate, half
    /// of them are rows of gate and half are rows of up.
    pub(super) fn new(dtype: GgmlType, rows: usize, matrix_rows: usize) -> Self {
        let rows = match rows {
            1 | 2 => rows,
            3 | 4 => 4,
            // Their numbers don't fit into shared memory.
            _ if dtype == GgmlType::F32 => 4,
            _ => 8,
        };
        let outputs = if unit_vectors(dtype) <= 2 { 2 } else { 4 };
        // A thread can't have more outputs than there are, nor with a gate more than half of them.
        Self { rows, outputs: if matrix_rows < 8 { matrix_rows.min(2) } else { outputs } }
    }
}

/// What is compiled into a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Variant {
    pub(super) dtype: GgmlType,
    pub(super) norm: bool,
    pub(super) epilogue: Epilogue,
    pub(super) tile: Tile,
}

impl Variant {
    fn gated(&self) -> bool {
        matches!(self.epilogue, Epilogue::Gate(_))
    }

    /// Outputs of a thread for one row.
    pub(super) fn results(&self) -> usize {
        if self.gated() { self.tile.outputs / 2 } else { self.tile.outputs }
    }

    /// Outputs of a cube for one row.
    pub(super) fn wide(&self) -> usize {
        THREADS / LANES * self.results()
    }

    /// Number of sums that a thread holds.
    pub(super) fn sums(&self) -> usize {
        self.tile.rows * self.tile.outputs
    }

    /// Units of an output that a lane takes in a step: up to 32 weights.
    pub(super) fn units(&self) -> usize {
        (8 / unit_vectors(self.dtype)).min(4)
    }

    /// Vectors of a row that a step multiplies.
    pub(super) fn step_vectors(&self) -> usize {
        LANES * self.units() * unit_vectors(self.dtype)
    }

    /// Parts of a step, whose vectors are in shared memory one after another.
    pub(super) fn parts(&self) -> usize {
        if self.tile.rows <= 4 { 1 } else { 2 }
    }

    /// Vectors of a lane in a part.
    pub(super) fn part_slots(&self) -> usize {
        self.step_vectors() / LANES / self.parts()
    }

    /// Vectors of shared memory for a part of a row.
    pub(super) fn row_vectors(&self) -> usize {
        LANES * (self.part_slots() + 1)
    }

    /// Vectors of shared memory for a part of all rows.
    pub(super) fn staged_vectors(&self) -> usize {
        self.tile.rows * self.row_vectors()
    }

    /// Steps that are in shared memory at a time. With two, threads write the vectors of one while
    /// others still read those of the one before.
    pub(super) fn stages(&self) -> usize {
        if self.tile.rows <= 2 { 2 } else { 1 }
    }

    /// Rows whose sums are in shared memory at a time, at the end.
    pub(super) fn pass_rows(&self) -> usize {
        self.tile.rows.min(4)
    }

    /// Number of sums of a thread for these rows.
    pub(super) fn pass_sums(&self) -> usize {
        self.pass_rows() * self.tile.outputs
    }
}
