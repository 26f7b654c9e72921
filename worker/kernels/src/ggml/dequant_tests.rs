//! Every type against numbers from another implementation, and by hand where a layout is easily
//! mistaken.

use serde::Deserialize;

use super::*;

/// Two blocks of each type, with random bits and scales of a realistic size, and the numbers that the
/// Python package gguf 0.19.0 (`gguf.quants.dequantize`) makes of them. Both are little-endian bytes in
/// hex.
const VECTORS: &str = include_str!("dequant_vectors.json");

#[derive(Deserialize)]
struct Vector {
    r#type: String,
    data: String,
    f32: String,
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().as_chunks::<2>().0;
    digits.iter().map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn expand(dtype: GgmlType, block: &[u8]) -> Vec<f32> {
    let mut numbers = Vec::new();
    extend_f32(dtype, block, &mut numbers);
    numbers
}

fn half(number: f32) -> [u8; 2] {
    f16::from_f32(number).to_le_bytes()
}

#[test]
fn numbers_equal_those_of_gguf_bit_for_bit() {
    let vectors: Vec<Vector> = serde_json::from_str(VECTORS).unwrap();
    assert_eq!(vectors.len(), GgmlType::ALL.len());
    for vector in vectors {
        let dtype = GgmlType::ALL.into_iter().find(|dtype| dtype.name() == vector.r#type).unwrap();
        let expected = expand(GgmlType::F32, &from_hex(&vector.f32));
        let got = expand(dtype, &from_hex(&vector.data));
        assert_eq!(got.len(), expected.len(), "{dtype}");
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert_eq!(got.to_bits(), expected.to_bits(), "{dtype}, number {i}: {got} for {expected}");
        }
    }
}

#[test]
fn infinities_nan_and_subnormals_are_kept() {
    let halves = [f16::INFINITY, f16::NEG_ZERO, f16::from_bits(1)].map(f16::to_le_bytes).concat();
    let numbers = expand(GgmlType::F16, &halves);
    assert_eq!(numbers, [f32::INFINITY, 0.0, 2.0_f32.powi(-24)]);
    assert!(numbers[1].is_sign_negative());
    assert!(expand(GgmlType::BF16, &bf16::NAN.to_le_bytes())[0].is_nan());
}

#[test]
fn blocks_of_32_put_the_low_halves_first() {
    let nibbles: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
    let q4_0 = expand(GgmlType::Q4_0, &[&half(0.5)[..], &nibbles].concat());
    let expected: Vec<f32> = (0..16).chain((0..16).rev()).map(|q| (q as f32 - 8.0) * 0.5).collect();
    assert_eq!(q4_0, expected);
    let q4_1 = expand(GgmlType::Q4_1, &[&half(2.0)[..], &half(-3.0), &nibbles].concat());
    let expected: Vec<f32> = (0..16).chain((0..16).rev()).map(|q| q as f32 * 2.0 - 3.0).collect();
    assert_eq!(q4_1, expected);
    let bytes: Vec<u8> = (0..32).map(|i: i8| (i - 16).cast_unsigned()).collect();
    let q8_0 = expand(GgmlType::Q8_0, &[&half(0.25)[..], &bytes].concat());
    let expected: Vec<f32> = (-16..16).map(|q| q as f32 * 0.25).collect();
    assert_eq!(q8_0, expected);
}

#[test]
fn a_fifth_bit_belongs_to_the_number_of_its_place() {
    for place in 0..32_u32 {
        let high = (1 << place as usize) as u32;
        let q5_0 = expand(GgmlType::Q5_0, &[&half(1.0)[..], &high.to_le_bytes(), &[0; 16]].concat());
        let expected: Vec<f32> = (0..32).map(|i| if i == place { 0.0 } else { -16.0 }).collect();
        assert_eq!(q5_0, expected);
        let zero = half(0.0);
        let q5_1 = expand(GgmlType::Q5_1, &[&half(1.0)[..], &zero, &high.to_le_bytes(), &[0; 16]].concat());
        let expected: Vec<f32> = (0..32).map(|i| if i == place { 16.0 } else { 0.0 }).collect();
        assert_eq!(q5_1, expected);
    }
}

#[test]
fn scales_of_a_k_block_are_unpacked_from_12_bytes() {
    // Group g has scale 8 g + 1 and minimum 63 - 8 g.
    let scale = |group: usize| 8 * group as u8 + 1;
    let min = |group: usize| 63 - 8 * group as u8;
    let mut packed = [0; 12];
    for group in 0..4 {
        packed[group] = scale(group) | (scale(group + 4) >> 4) << 6;
        packed[group + 4] = min(group) | (min(group + 4) >> 4) << 6;
        packed[group + 8] = (scale(group + 4) & 0x0F) | (min(group + 4) & 0x0F) << 4;
    }
    // Low halves are 3, high halves 5.
    let block = [&half(1.0)[..], &half(0.5), &packed, &[0x53; 128]].concat();
    let expected: Vec<f32> = (0..256)
        .map(|i| {
            let q = if i / 32 % 2 == 0 { 3.0 } else { 5.0 };
            f32::from(scale(i / 32)) * q - 0.5 * f32::from(min(i / 32))
        })
        .collect();
    assert_eq!(expand(GgmlType::Q4_K, &block), expected);
}

#[test]
fn a_q6_k_number_is_assembled_from_three_fields() {
    // Only number 200 (half 1, group 2, place 8) is 63: its four low bits are in the high half of
    // low byte 64 + 8, its two high bits at bit 4 of high byte 32 + 8. The others are 0.
    let mut block = [0; 210];
    block[64 + 8] = 0xF0;
    block[128 + 32 + 8] = 0x30;
    block[192..208].fill(2);
    block[192 + 200 / 16] = (-3_i8).cast_unsigned();
    block[208..].copy_from_slice(&half(0.5));
    for (i, number) in expand(GgmlType::Q6_K, &block).into_iter().enumerate() {
        let scale = if i / 16 == 200 / 16 { -3.0 } else { 2.0 };
        let q = if i == 200 { 31.0 } else { -32.0 };
        assert_eq!(number, 0.5 * scale * q, "number {i}");
    }
}
