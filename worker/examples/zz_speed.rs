use std::time::Instant;
use emberline_worker::device::{Backend, ComputeDevice};
use emberline_worker::gguf::GgufFile;
use emberline_worker::model;
fn main() {
    let backend = match std::env::args().nth(1).as_deref() { Some("wgpu") => Backend::Wgpu, _ => Backend::Cpu };
    let n: usize = std::env::args().nth(2).and_then(|s| s.parse().ok()).unwrap_or(512);
    let d: usize = std::env::args().nth(3).and_then(|s| s.parse().ok()).unwrap_or(32);
    let t = Instant::now();
    let dev = ComputeDevice::open(backend, None).unwrap();
    println!("{}: open {:?}", dev.description, t.elapsed());
    let t = Instant::now();
    let file = GgufFile::open(std::path::Path::new("/tmp/dl/SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap();
    let m = model::load(&file, &dev).unwrap();
    println!("load {:?}", t.elapsed());
    for round in 0..2 {
        let tokens: Vec<u32> = (0..n as u32).map(|i| (i * 7919 + 13) % 49000).collect();
        let mut c = m.new_cache();
        let t = Instant::now();
        let l = m.forward(&tokens, &mut c).unwrap();
        let s = t.elapsed().as_secs_f64();
        println!("round {round} prefill {n}: {s:.3}s {:.0} tok/s, logit0 {}", n as f64 / s, l[0]);
        let t = Instant::now();
        for i in 0..d { let tt = Instant::now(); let _ = m.forward(&[i as u32 + 100], &mut c).unwrap(); if i < 3 { println!("  first {i} {:?}", tt.elapsed()); } }
        let s = t.elapsed().as_secs_f64();
        println!("round {round} decode {d}: {:.2} tok/s", d as f64 / s);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    for l in status.lines().filter(|l| l.starts_with("VmRSS") || l.starts_with("VmHWM")) { println!("{l}"); }
}
