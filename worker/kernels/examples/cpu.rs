//! Speed of products on the CPU: `cargo run -p emberline-kernels --example cpu`.
//!
//! For each shape of SmolLM2-135M and number of rows: the time, bytes of weights per second, floating
//! point operations per second, how many times faster that is than burn's product with f32 weights, and
//! how many times faster the product is with activations of two bytes and of one.

use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use emberline_kernels::ggml::GgmlType;
use emberline_kernels::{Activation, Matrix, MatrixSpec, Precision, linear, norm_gated, run_step};

/// Name, outputs, inputs and format of a matrix.
const SHAPES: [(&str, usize, usize, GgmlType); 7] = [
    ("qkv", 960, 576, GgmlType::Q4_1),
    ("out", 576, 576, GgmlType::Q4_1),
    ("gate, up", 3072, 576, GgmlType::Q4_1),
    ("down", 576, 1536, GgmlType::Q4_1),
    ("head", 49152, 576, GgmlType::Q8_0),
    ("wide Q4_K", 4096, 4096, GgmlType::Q4_K),
    ("wide Q6_K", 4096, 4096, GgmlType::Q6_K),
];

/// The shortest of several runs, in seconds.
fn best(mut work: impl FnMut() + Send) -> f64 {
    run_step(|| {
        let mut best = f64::MAX;
        let start = Instant::now();
        while start.elapsed().as_millis() < 150 {
            let start = Instant::now();
            work();
            best = best.min(start.elapsed().as_secs_f64());
        }
        best
    })
}

fn main() {
    let device = Device::flex();
    println!("product     rows         µs     GB/s  GFLOP/s  ratio   fast fastest");
    for (name, outputs, inputs, dtype) in SHAPES {
        let spec = MatrixSpec { dtype, outputs, inputs };
        let mut state = 1_u32;
        let blocks: Vec<u8> = (0..outputs * spec.row_bytes())
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8 & 0x3B // never an infinite f16
            })
            .collect();
        let Ok(mut weight) = Matrix::new(spec, &blocks, &device) else {
            println!("{name}: the shape does not fit the format");
            continue;
        };
        let gamma = Tensor::<1>::ones([inputs], &device);
        for rows in [1, 4, 8, 32, 256] {
            if rows > 32 && name == "head" {
                continue;
            }
            let x = Tensor::<2>::random([rows, inputs], Distribution::Normal(0.0, 1.0), &device);
            let gated = name == "gate, up";
            let [native, fast, fastest] =
                [Precision::Exact, Precision::Fast, Precision::Fastest].map(|precision| {
                    weight.set_precision(precision);
                    best(|| {
                        if gated {
                            norm_gated(x.clone(), &gamma, 1e-5, &weight, Activation::Silu);
                        } else {
                            linear(x.clone(), &weight);
                        }
                    })
                });
            let dense = Tensor::<2>::random([outputs, inputs], Distribution::Normal(0.0, 1.0), &device);
            let burn = best(|| {
                x.clone().matmul(dense.clone().transpose());
            });
            println!(
                "{name:<10} {rows:>5} {:>10.1} {:>8.1} {:>8.1} {:>6.1} {:>6.1} {:>7.1}",
                native * 1e6,
                weight.bytes() as f64 / native / 1e9,
                2e-9 * (rows * outputs * inputs) as f64 / native,
                burn / native,
                native / fast,
                native / fastest,
            );
        }
    }
}
