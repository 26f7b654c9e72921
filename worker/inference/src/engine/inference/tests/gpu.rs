//! The engine on a GPU, or else on the software adapter.

use emberline_kernels::{Traffic, traffic};

use super::*;
use crate::device::Backend;
use crate::engine::thread;
use crate::network::testing::LAYERS;

fn gpu() -> ComputeDevice {
    // The software adapter has to be named.
    let software = |_| ComputeDevice::open(Backend::Wgpu, Some("llvmpipe"));
    let opened = ComputeDevice::open(Backend::Wgpu, None).or_else(software);
    opened.unwrap_or_else(|error| panic!("{error}; `deploy/setup.sh vulkan` installs a software adapter"))
}

fn on_gpu(options: &mut LoadOptions) {
    options.device = gpu();
    options.cache = CacheSize::Blocks(40);
}

#[test]
fn a_decode_step_is_one_upload_and_one_read_back() {
    let mut runs = engine_with(|options| {
        on_gpu(options);
        options.slots = Some(3);
    });
    for number in 0..3 {
        let mut job = job(number);
        job.request.sampling = SamplingOptions {
            temperature: f32::from(number),
            ignore_eos: true,
            ..SamplingOptions::default()
        };
        runs.submit(job);
    }
    // All prompts are computed.
    while runs.engine.stats().generated_tokens < 6 {
        runs.step();
    }
    // The embedding, the head and four of sampling; of each layer two halves of three operations, of which attention
    // has two kernels.
    let launches = 6 + 7 * LAYERS as u64;
    for _ in 0..3 {
        let before = traffic();
        runs.step();
        let step = Traffic { launches, uploads: 1, read_backs: 1, round_trips: 1 };
        assert_eq!(traffic().since(before), step);
    }
    runs.finish();
}

#[test]
fn answers_are_those_of_the_cpu() {
    let greedy = |runs: &mut Runs| ids(&run(runs, job(7)));
    let (mut gpu, mut cpu) = (engine_with(on_gpu), engine(1));
    assert_eq!(greedy(&mut gpu), greedy(&mut cpu));
}

#[tokio::test]
async fn a_lost_device_is_the_reason_why_an_engine_fails() {
    let (_folder, file) = testing::builder(&testing::tensors()).open();
    let mut options = options(file.path());
    on_gpu(&mut options);
    let device = options.device.clone();
    assert_eq!(device.lost(), None);
    let again = options.clone();
    let load = move || -> Result<Box<dyn Engine>, LoadError> { Ok(Box::new(load(&options)?)) };
    let (_, engine, engine_thread) = thread::spawn(load).unwrap();
    device.wgpu.unwrap().destroy();
    let mut events = engine.submit(job(1));
    while events.recv().await.is_some() {}
    let failure = engine.failure().await;
    assert!(failure.is_device_lost, "{failure:?}");
    engine_thread.stop();

    // Nothing can be loaded onto it again.
    let error = thread::spawn(move || load_again(&again)).map(|_| ()).unwrap_err();
    let thread::SpawnError::Load(error) = error else { panic!("{error:?}") };
    assert!(matches!(error, LoadError::DeviceLost(_)), "{error}");
}

fn load_again(options: &LoadOptions) -> Result<Box<dyn Engine>, LoadError> {
    Ok(Box::new(load(options)?))
}

#[test]
fn loading_onto_a_device_reports_how_far_it_is() {
    let progress = LoadProgress::default();
    assert_eq!(progress.percent(), 0);
    let seen = progress.clone();
    engine_with(|options| {
        on_gpu(options);
        options.progress = seen;
    });
    assert_eq!(progress.percent(), 100);
}

#[test]
fn a_software_adapter_has_the_machines_memory() {
    let device = gpu();
    let memory = device.memory().unwrap();
    assert!(memory.free > 0 && memory.free <= memory.total, "{memory:?}");
    println!("{}: {memory:?}, by Vulkan {:?}", device.description, device.wgpu.as_ref().unwrap().memory());
    if device.class == crate::device::DeviceClass::Software {
        assert!(!memory.own);
        assert!(device.wgpu.unwrap().memory().unwrap().total > 0);
    }
}
