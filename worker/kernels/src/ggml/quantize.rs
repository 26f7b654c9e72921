//! Quantisation by ggml's own rules (`quantize_row_*_ref` in ggml-quants.c).

use half::f16;

use super::GgmlType;

/// Quantises `numbers`, whole blocks of 32, to Q8_0. `blocks` must have room for them.
pub fn quantize_q8_0(numbers: &[f32], blocks: &mut [u8]) {
    each_block(GgmlType::Q8_0, numbers, blocks, q8_0);
}

/// Quantises `numbers`, whole blocks of 32, to Q4_0. `blocks` must have room for them.
pub fn quantize_q4_0(numbers: &[f32], blocks: &mut [u8]) {
    each_block(GgmlType::Q4_0, numbers, blocks, q4_0);
}

fn each_block(dtype: GgmlType, numbers: &[f32], blocks: &mut [u8], quantize: impl Fn(&[f32], &mut [u8])) {
    let blocks = blocks.chunks_exact_mut(dtype.block_bytes());
    numbers.chunks_exact(dtype.block_len()).zip(blocks).for_each(|(numbers, block)| quantize(numbers, block));
}

/// The number that is farthest from zero becomes 127 or -127.
fn q8_0(numbers: &[f32], block: &mut [u8]) {
    let largest = numbers.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let (head, quants) = block.split_at_mut(2);
    head.copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    for (quant, number) in quants.iter_mut().zip(numbers) {
        *quant = ((number * inverse).round() as i8).cast_unsigned();
    }
}

/// The number that is farthest from zero becomes -8, which is stored as 0.
fn q4_0(numbers: &[f32], block: &mut [u8]) {
    let farthest =
        numbers.iter().fold(0.0_f32, |farthest, x| if x.abs() > farthest.abs() { *x } else { farthest });
    let scale = farthest / -8.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let (head, quants) = block.split_at_mut(2);
    head.copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    let nibble = |number: &f32| ((number * inverse + 8.5) as u8).min(15);
    let (low, high) = numbers.split_at(numbers.len() / 2);
    for (quant, (low, high)) in quants.iter_mut().zip(low.iter().zip(high)) {
        *quant = nibble(low) | nibble(high) << 4;
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// Numbers, and the blocks that the Python package gguf 0.19.0 (`gguf.quants.quantize`) makes of
    /// them: little-endian bytes in hex.
    const VECTORS: &str = include_str!("quantize_vectors.json");

    #[derive(Deserialize)]
    struct Vector {
        r#type: String,
        f32: String,
        data: String,
    }

    fn from_hex(text: &str) -> Vec<u8> {
        let digits = text.as_bytes().as_chunks::<2>().0;
        digits.iter().map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    #[test]
    fn blocks_equal_those_of_gguf_byte_for_byte() {
        let vectors: Vec<Vector> = serde_json::from_str(VECTORS).unwrap();
        for name in ["Q8_0", "Q4_0"] {
            assert!(vectors.iter().any(|vector| vector.r#type == name));
        }
        for vector in vectors {
            let bytes = from_hex(&vector.f32);
            let numbers: Vec<f32> =
                bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
            let wanted = from_hex(&vector.data);
            let mut blocks = vec![0; wanted.len()];
            match vector.r#type.as_str() {
                "Q8_0" => quantize_q8_0(&numbers, &mut blocks),
                _ => quantize_q4_0(&numbers, &mut blocks),
            }
            assert_eq!(blocks, wanted, "{}: {numbers:?}", vector.r#type);
        }
    }
}
