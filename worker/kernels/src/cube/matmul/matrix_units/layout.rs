//! The layout of a matrix for matrix units.
//!
//! The instruction multiplies 16 outputs, a *tile*, with 16 inputs at a time. Thread `lane` of 32 holds numbers of two
//! outputs: `lane / 4` and 8 more. Which inputs it holds is free, as long as the rows' numbers follow. So the four
//! threads of an output share its units (see [`dequant`](crate::cube::dequant)): of four units, a *group*, each takes one
//! word of every unit. These four words lie together, and those of a tile's threads one after another, so that all
//! threads read 16 adjacent bytes at once.

use burn::cubecl;
use burn::cubecl::ir::features::MmaConfig;
use burn::cubecl::ir::{DeviceProperties, ElemType, FloatKind};
use burn::cubecl::prelude::*;

use crate::cube::dequant::U4;
use crate::ggml::GgmlType;
use crate::types::MatrixSpec;

/// Outputs of a tile.
pub(crate) const TILE: usize = 16;
/// Units of a group, and words of a unit.
pub(crate) const GROUP: usize = 4;
/// Threads that hold a tile.
pub(super) const LANES: usize = 32;

/// Where the units of a matrix lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Layout {
    /// Row by row.
    Rows,
    /// Tile by tile, for matrix units.
    Tiles,
}

impl Layout {
    /// The layout of a matrix on a device with these properties.
    ///
    /// Halves of a gated matrix are whole tiles, too. BF16 and F32 have more bits or exponents than the products of
    /// matrix units keep.
    pub(crate) fn of(properties: &DeviceProperties, spec: MatrixSpec) -> Self {
        let half = ElemType::Float(FloatKind::F16);
        let product = MmaConfig {
            a_type: half,
            b_type: half,
            cd_type: ElemType::Float(FloatKind::F32),
            m: 16,
            n: 8,
            k: 16,
        };
        let fits = spec.outputs > 0
            && spec.outputs.is_multiple_of(2 * TILE)
            && !matches!(spec.dtype, GgmlType::BF16 | GgmlType::F32);
        match fits && properties.features.matmul.mma.contains(&product) {
            true => Self::Tiles,
            false => Self::Rows,
        }
    }

    /// Units of a row in this layout, the padding included.
    pub(crate) fn padded(self, units: usize) -> usize {
        match self {
            Self::Rows => units,
            Self::Tiles => units.next_multiple_of(GROUP),
        }
    }
}

/// Moves the words of whole rows of `units` units to their places in tiles.
pub(crate) fn in_tiles(rows: &[u32], units: usize) -> Vec<u32> {
    let padded = Layout::Tiles.padded(units);
    let mut tiles = vec![0; rows.len() / units.max(1) * padded];
    for (index, word) in rows.iter().enumerate() {
        let (row, unit, in_unit) = (index / (4 * units), index / 4 % units, index % 4);
        if let Some(place) = tiles.get_mut(word_place(row, unit, in_unit, padded)) {
            *place = *word;
        }
    }
    tiles
}

/// The place of a word in tiles.
fn word_place(row: usize, unit: usize, word: usize, padded: usize) -> usize {
    let (tile, in_tile) = (row / TILE, row % TILE);
    let (group, in_group) = (unit / GROUP, unit % GROUP);
    let lane = in_tile % 8 * GROUP + word;
    let vector = ((tile * padded / GROUP + group) * 2 + in_tile / 8) * LANES + lane;
    4 * vector + in_group
}

/// Unit `unit` of row `row`, in either layout; `padded` is the number of a row's units.
#[cube]
pub(crate) fn unit_words(
    quants: &[U4],
    row: usize,
    unit: usize,
    padded: usize,
    #[comptime] layout: Layout,
) -> U4 {
    if comptime!(layout == Layout::Rows) {
        quants[row * padded + unit]
    } else {
        let group = row / TILE * (padded / GROUP) + unit / GROUP;
        let first = (2 * group + row % TILE / 8) * LANES + row % 8 * GROUP;
        let mut words = U4::empty();
        #[unroll]
        for word in 0..GROUP {
            words.insert(word, quants[first + word].extract_dynamic(unit % GROUP));
        }
        words
    }
}
