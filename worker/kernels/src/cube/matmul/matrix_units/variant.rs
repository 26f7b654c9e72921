//! What is compiled into a product on matrix units, and how the work is divided.

use super::layout::{LANES, TILE};
use super::rows::COLUMNS;
use super::weights::{side_words, steps};
use crate::cube::matmul::variant::Epilogue;
use crate::ggml::GgmlType;

/// Parts into which the inputs are divided. Each is summed for itself, and then the parts in order.
pub(super) const PARTS: usize = 4;

/// How the work is divided. It does not change any result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    /// Planes of a cube that have the same inputs and different outputs.
    pub(super) planes: usize,
    /// Whether each part has a plane of its own; otherwise a plane has all of them, one after another.
    pub(super) divided: bool,
    /// Tiles of a plane; with a gate, half of them are of gate and half are of up.
    pub(super) tiles: usize,
    /// Eights of rows of a plane.
    pub(super) eights: usize,
    /// Rows that each cube makes fragments of itself, up to 4; 0 if they are ready.
    pub(super) own_rows: usize,
}

impl Shape {
    /// Few rows need many cubes, to have many loads in flight. With more, a cube has more outputs, so that the rows are
    /// read less often.
    pub(super) fn new(rows: usize, gated: bool) -> Self {
        let few = Self {
            planes: 1,
            divided: true,
            tiles: if gated { 2 } else { 1 },
            eights: 1,
            own_rows: rows.next_power_of_two(),
        };
        match rows {
            0..=4 => few,
            5..=8 => Self { own_rows: 0, ..few },
            9..=16 => Self { tiles: 2, eights: 2, own_rows: 0, ..few },
            17..=64 => Self { tiles: 2, eights: 4, own_rows: 0, ..few },
            65..=256 => Self { planes: 2, tiles: 2, eights: 4, own_rows: 0, ..few },
            _ => Self { planes: 8, divided: false, tiles: 2, eights: 8, own_rows: 0 },
        }
    }

    /// Planes of a cube.
    pub(super) fn all_planes(&self) -> usize {
        self.planes * if self.divided { PARTS } else { 1 }
    }

    /// Threads of a cube.
    pub(super) fn threads(&self) -> usize {
        self.all_planes() * LANES
    }

    /// Rows of a cube.
    pub(super) fn rows(&self) -> usize {
        self.eights * COLUMNS
    }

    /// Sums of a thread, in pairs.
    pub(super) fn pairs(&self) -> usize {
        2 * self.tiles * self.eights
    }
}

/// What is compiled into a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Variant {
    pub(super) dtype: GgmlType,
    pub(super) norm: bool,
    /// Whether what is left of a number when it is rounded to f16 is multiplied, too.
    pub(super) exact: bool,
    pub(super) epilogue: Epilogue,
    pub(super) shape: Shape,
}

impl Variant {
    pub(super) fn gated(&self) -> bool {
        matches!(self.epilogue, Epilogue::Gate(_))
    }

    /// Tiles of results of a plane.
    pub(super) fn result_tiles(&self) -> usize {
        self.shape.tiles / if self.gated() { 2 } else { 1 }
    }

    /// Outputs of a cube for one row.
    pub(super) fn wide(&self) -> usize {
        TILE * self.result_tiles() * self.shape.planes
    }

    /// Groups whose words a thread reads at once: 128 bytes are in flight to it with one tile.
    pub(super) fn batch(&self) -> usize {
        match (side_words(self.dtype), self.shape.tiles) {
            (0..=3, 1) => 4,
            (_, 1) | (0..=3, _) => 2,
            _ => 1,
        }
    }

    /// Weights that a thread multiplies in an iteration of the kernel's loop.
    #[cfg(feature = "report")]
    pub(super) fn batch_weights(&self) -> usize {
        8 * self.batch() * steps(self.dtype) * self.shape.tiles
    }

    /// Fragments that a plane makes of its own rows for a group.
    pub(super) fn own_fragments(&self) -> usize {
        4 * self.shape.own_rows * steps(self.dtype)
    }
}
