//! Keys and values of the positions that a sequence has been through.

use burn::tensor::{Device, Tensor};

/// Smallest capacity, in positions.
const MIN_CAPACITY: usize = 256;

/// One layer's keys and values, `[kv_heads, capacity, head_dim]` each.
#[derive(Debug)]
pub(crate) struct LayerCache {
    keys: Tensor<3>,
    values: Tensor<3>,
}

/// A sequence's keys and values in all layers.
#[derive(Debug)]
pub struct KvCache {
    pub(crate) layers: Vec<LayerCache>,
    /// Positions that have been computed.
    length: usize,
    capacity: usize,
    /// Positions that will probably be needed.
    expected: usize,
    shape: CacheShape,
}

/// What all caches of a model have in common.
#[derive(Debug, Clone)]
pub(crate) struct CacheShape {
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Capacity that is never exceeded.
    pub(crate) max_capacity: usize,
    pub(crate) device: Device,
}

impl KvCache {
    pub(crate) fn new(shape: CacheShape, expected: usize) -> Self {
        Self { layers: Vec::new(), length: 0, capacity: 0, expected, shape }
    }

    /// Positions that have been computed.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing has been computed.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Positions there is room for.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Marks `count` more positions as computed.
    pub(crate) fn advance(&mut self, count: usize) {
        self.length += count;
    }

    /// Makes room for `positions` in all.
    ///
    /// Capacities are powers of two, so that a device meets few different shapes and copying
    /// costs a constant share of the whole.
    pub(crate) fn reserve(&mut self, positions: usize) {
        if positions <= self.capacity {
            return;
        }
        let wanted = positions.max(self.expected).next_power_of_two().max(MIN_CAPACITY);
        let capacity = wanted.min(self.shape.max_capacity).max(positions);
        let CacheShape { kv_heads, head_dim, layers, .. } = self.shape;
        let zeros = |rows| Tensor::<3>::zeros([kv_heads, rows, head_dim], &self.shape.device);
        if self.layers.is_empty() {
            self.layers =
                (0..layers).map(|_| LayerCache { keys: zeros(capacity), values: zeros(capacity) }).collect();
        } else {
            let missing = capacity - self.capacity;
            let grow = |layer: LayerCache| LayerCache {
                keys: Tensor::cat(vec![layer.keys, zeros(missing)], 1),
                values: Tensor::cat(vec![layer.values, zeros(missing)], 1),
            };
            self.layers = std::mem::take(&mut self.layers).into_iter().map(grow).collect();
        }
        self.capacity = capacity;
    }
}

impl LayerCache {
    /// With `[kv_heads, rows, head_dim]` keys and values written from position `start` on; in
    /// place, as nothing else holds these tensors.
    pub(crate) fn append(self, start: usize, keys: Tensor<3>, values: Tensor<3>) -> Self {
        let [kv_heads, rows, head_dim] = keys.dims();
        let place = [0..kv_heads, start..start + rows, 0..head_dim];
        Self {
            keys: self.keys.slice_assign(place.clone(), keys),
            values: self.values.slice_assign(place, values),
        }
    }

    /// The first `count` positions.
    pub(crate) fn visible(&self, count: usize) -> (Tensor<3>, Tensor<3>) {
        let [_, capacity, _] = self.keys.dims();
        if count == capacity {
            // A GPU would copy even the whole of it as a slice.
            return (self.keys.clone(), self.values.clone());
        }
        (self.keys.clone().narrow(1, 0, count), self.values.clone().narrow(1, 0, count))
    }
}
