//! What is compiled into a product on matrix units, and how the work is divided.

use super::layout::{LANES, TILE};
use super::rows::COLUMNS;
use super::weights::{side_words, steps};
use crate::cube::dequant::has_offset;
use crate::cube::matmul::variant::Epilogue;
use crate::ggml::GgmlType;
#[cfg(feature = "report")]
use crate::types::MatrixSpec;

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
    /// Few rows need many planes, to have many loads in flight: each part has its own. With more rows, a cube has more
    /// outputs, so that the rows are read less often.
    pub(super) fn new(dtype: GgmlType, rows: usize, gated: bool) -> Self {
        let tiles = if gated { 2 } else { 1 };
        let few = Self { planes: 2, divided: true, tiles, eights: 1, own_rows: 0 };
        match rows {
            0..=4 => Self { own_rows: rows.next_power_of_two(), ..few },
            5..=8 => few,
            9..=16 => Self { tiles: 2, eights: 2, ..few },
            17..=64 => Self { tiles: 2, eights: 4, ..few },
            65..=256 => Self { planes: 8, divided: false, eights: 4, ..few },
            // The sums of inputs need registers, too.
            _ if has_offset(dtype) => Self { planes: 8, divided: false, tiles: 2, eights: 4, ..few },
            _ => Self { planes: 8, divided: false, tiles: 2, eights: 8, ..few },
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

    /// Groups whose words a thread reads at once: 64 bytes or more are in flight to it.
    pub(super) fn batch(&self) -> usize {
        match (side_words(self.dtype), self.shape.tiles) {
            (0..=2, 1) => 4,
            (_, 1) | (0..=2, _) => 2,
            _ => 1,
        }
    }

    /// Weights that a thread multiplies in an iteration of the kernel's loop.
    #[cfg(feature = "report")]
    pub(super) fn batch_weights(&self) -> usize {
        8 * self.batch() * steps(self.dtype) * self.shape.tiles
    }

    /// Bytes that a cube reads.
    #[cfg(feature = "report")]
    pub(super) fn cube_bytes(&self, spec: MatrixSpec) -> usize {
        let weights = TILE * self.shape.tiles * self.shape.planes * spec.row_bytes();
        let numbers = match self.shape.own_rows {
            0 => self.shape.rows() * spec.inputs,
            own => (own + usize::from(self.norm)) * spec.inputs,
        };
        weights + 4 * numbers
    }

    /// Fragments that a plane makes of its own rows for a group.
    pub(super) fn own_fragments(&self) -> usize {
        4 * self.shape.own_rows * steps(self.dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows;
    use super::*;

    #[test]
    fn a_shape_has_room_for_its_rows_and_gates() {
        for rows in 1..2000 {
            for gated in [false, true] {
                let shape = Shape::new(GgmlType::Q4_0, rows, gated);
                assert!(!gated || shape.tiles == 2, "{rows}: gate and up are a plane's tiles");
                assert!(shape.threads() <= 256, "{rows}");
                // Squares are summed in the same order wherever that is done.
                assert!(shape.own_rows == 0 || shape.threads() == rows::THREADS, "{rows}");
                assert!(shape.own_rows == 0 || shape.own_rows >= rows, "{rows}");
            }
        }
    }
}
