//! Memory bandwidth of a GPU, measured by a large copy.

use std::time::Duration;

use burn::backend::{CubeDevice, ExecutionError};
use burn::cubecl;
use burn::cubecl::prelude::*;
use burn::cubecl::server::Handle;
use burn::tensor::Device;

use super::dequant::F4;
use super::launch;
use crate::timing::{bytes_per_second, elapsed, fastest};

/// Threads of a cube.
const THREADS: usize = 256;
/// Vectors that a thread copies.
const VECTORS: usize = 4;
/// Bytes of a vector.
const VECTOR_BYTES: usize = 16;
/// Bytes that a cube copies.
const CUBE_BYTES: usize = THREADS * VECTORS * VECTOR_BYTES;
/// Largest number of cubes in one dimension that every device allows.
const MAX_CUBES: usize = 65535;
/// Copies in a timed run: enough that waiting for the device hardly counts.
const COPIES: usize = 8;

/// See [`crate::copy_bandwidth`].
pub(crate) fn copy_bandwidth(
    cube: &CubeDevice,
    device: &Device,
    bytes: usize,
) -> Result<f64, ExecutionError> {
    measure(cube, device, bytes, elapsed)
}

/// The bandwidth of copies that `time` times, by runs of [`COPIES`]; the first run, which compiles
/// the kernel, is not timed.
fn measure(
    cube: &CubeDevice,
    device: &Device,
    bytes: usize,
    time: impl Fn(&mut dyn FnMut()) -> Duration,
) -> Result<f64, ExecutionError> {
    let client = cube.client();
    let cubes = cubes(bytes, client.properties().memory.max_page_size as usize);
    let (from, to) = (client.empty(cubes * CUBE_BYTES), client.empty(cubes * CUBE_BYTES));
    let run = || {
        for _ in 0..COPIES {
            copy(cube, &from, &to, cubes);
        }
        device.sync()
    };
    run()?;
    let mut result = Ok(());
    let took = fastest(|| {
        time(&mut || {
            let done = run();
            if result.is_ok() {
                result = done;
            }
        }) / COPIES as u32
    });
    result.map(|()| bytes_per_second(cubes * CUBE_BYTES, took))
}

/// Number of cubes that copy about `bytes` bytes, in buffers of at most `limit` bytes.
fn cubes(bytes: usize, limit: usize) -> usize {
    (bytes.min(limit) / CUBE_BYTES).clamp(1, MAX_CUBES)
}

/// Copies `cubes * CUBE_BYTES` bytes.
fn copy(cube: &CubeDevice, from: &Handle, to: &Handle, cubes: usize) {
    let vectors = cubes * CUBE_BYTES / VECTOR_BYTES;
    launch::count();
    // SAFETY: each cube copies `CUBE_BYTES` bytes, and both buffers hold that much for all cubes.
    #[allow(unsafe_code)]
    unsafe {
        copy_kernel::launch_unchecked(
            &cube.client(),
            CubeCount::Static(cubes as u32, 1, 1),
            CubeDim::new_1d(THREADS as u32),
            launch::slice(from.clone(), vectors),
            launch::slice(to.clone(), vectors),
        );
    }
}

#[cube(launch_unchecked)]
fn copy_kernel(from: &[F4], to: &mut [F4]) {
    let first = CUBE_POS_X as usize * comptime!(THREADS * VECTORS) + UNIT_POS as usize;
    #[unroll]
    for i in 0..VECTORS {
        to[first + i * THREADS] = from[first + i * THREADS];
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use burn::backend::DispatchDevice;
    use burn::tensor::DeviceKind;

    use super::*;
    use crate::timing::RUNS;

    /// A device and its runtime: a GPU, or else a software adapter. It can be opened once in a
    /// process, so there is one test.
    fn open() -> (Device, CubeDevice) {
        let kinds = [
            DeviceKind::DiscreteGpu(0),
            DeviceKind::IntegratedGpu(0),
            DeviceKind::VirtualGpu(0),
            DeviceKind::Cpu,
        ];
        let device = kinds
            .into_iter()
            .find_map(|kind| Device::wgpu_options().device_kind(kind).init().ok())
            .expect("no wgpu adapter; `deploy/setup.sh vulkan` installs a software one");
        let DispatchDevice::Cube(cube) = device.as_dispatch() else { panic!("{device:?} is no GPU") };
        let cube = cube.clone();
        (device, cube)
    }

    #[test]
    fn every_byte_is_copied_and_the_figure_is_that_of_the_bytes_and_the_time() {
        let (device, cube) = open();
        let client = cube.client();

        let cubes = 3;
        let pattern: Vec<u8> = (0..cubes * CUBE_BYTES).map(|i| (i % 251) as u8 + 1).collect();
        let (from, to) =
            (client.create_from_slice(&pattern), client.create_from_slice(&vec![0; pattern.len()]));
        copy(&cube, &from, &to, cubes);
        assert!(client.read_one(to).unwrap()[..] == pattern[..], "the copy differs");

        let runs = Cell::new(0);
        let time = |work: &mut dyn FnMut()| {
            work();
            runs.set(runs.get() + 1);
            Duration::from_secs(COPIES as u64 * (5 - runs.get() % 4))
        };
        let launched = crate::traffic().launches;
        // A copy of the fastest run takes 2 s; what does not fill a cube is not copied.
        let figure = measure(&cube, &device, 5 * CUBE_BYTES + 1, time).unwrap();
        assert_eq!(figure, (5 * CUBE_BYTES) as f64);
        assert_eq!(runs.get(), RUNS as u64);
        assert_eq!(crate::traffic().launches - launched, ((RUNS + 1) * COPIES) as u64);
    }

    #[test]
    fn a_copy_fits_into_a_buffer_and_a_launch() {
        assert_eq!(cubes(0, usize::MAX), 1);
        assert_eq!(cubes(10 * CUBE_BYTES - 1, usize::MAX), 9);
        assert_eq!(cubes(10 * CUBE_BYTES, 4 * CUBE_BYTES + 1), 4);
        assert_eq!(cubes(usize::MAX, usize::MAX), MAX_CUBES);
    }
}
