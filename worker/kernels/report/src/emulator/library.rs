//! Kernels as libraries of this process.

use std::ffi::c_void;
use std::process::Command;

use libloading::Symbol;
use regex::Regex;

use crate::recorder::KernelSource;

const HEADER: &str = include_str!("cuda.hpp");

/// `launch` of `cuda.hpp`: cubes, threads, bytes of shared memory, arguments.
type Launch = unsafe extern "C" fn(u32, u32, u32, u32, usize, *mut *mut c_void);

/// A compiled kernel.
#[derive(Debug)]
pub(crate) struct Library {
    library: libloading::Library,
    shared_bytes: usize,
}

impl Library {
    /// Compiles a kernel with the machine's C++ compiler.
    pub(crate) fn new(source: &KernelSource) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (from, to) = (folder.path().join("kernel.cpp"), folder.path().join("kernel.so"));
        std::fs::write(&from, translated(source)).expect("a file in a temporary folder");
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
        let options = [
            "-std=c++20",
            "-O0",
            "-w",
            "-fno-strict-aliasing",
            "-ffp-contract=off",
            "-mf16c",
            "-mfma",
            "-shared",
            "-fPIC",
        ];
        let run = Command::new(&compiler).args(options).arg(&from).arg("-o").arg(&to).output();
        let output = run.unwrap_or_else(|error| panic!("no C++ compiler ({compiler}: {error})"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // SAFETY: the library has no initialisers with side effects.
        #[allow(unsafe_code)]
        let library = unsafe { libloading::Library::new(&to) }.expect("a library that was just compiled");
        Self { library, shared_bytes: source.shared_bytes }
    }

    /// Runs all cubes.
    pub(crate) fn launch(&self, (x, y, z): (u32, u32, u32), threads: u32, arguments: &mut [*mut c_void]) {
        // SAFETY: the header defines the function so, and callers pass what the kernel's own launch passes.
        #[allow(unsafe_code)]
        unsafe {
            let launch: Symbol<'_, Launch> = self.library.get(b"launch").expect("the header's function");
            launch(x, y, z, threads, self.shared_bytes, arguments.as_mut_ptr());
        }
    }
}

/// The kernel's source for a C++ compiler.
fn translated(source: &KernelSource) -> String {
    let replaced = |text: &str, pattern: &str, by: &str| {
        Regex::new(pattern).expect("a pattern of this file").replace_all(text, by).into_owned()
    };
    let mut text = replaced(&source.source, r"(?m)^typedef .*int\d+_t;$", "");
    text = replaced(&text, r"#include <cuda_fp16.h>", "");
    text = replaced(
        &text,
        r"extern __shared__ __align__\(\d+\) char (\w+)\[\];",
        "char *$1 = emulator::shared;",
    );
    for (instruction, function) in [
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "emulator::mma"),
        ("sub.rn.f16x2", "emulator::sub_f16x2"),
        ("fma.rn.f16x2", "emulator::fma_f16x2"),
        ("atom.relaxed.add.u32", "emulator::atomic_add"),
    ] {
        text = calls(&text, instruction, function);
    }
    assert!(!text.contains("asm"), "an instruction that is not emulated: {text}");
    let signature = Regex::new(r"__global__ void .*\((.*)\) \{").expect("a pattern of this file");
    let count = signature.captures(&text).map_or(0, |found| found[1].split(',').count());
    let arguments: Vec<String> =
        (0..count - 1).map(|i| format!("emulator::Argument{{arguments[{i}]}}")).collect();
    format!(
        "{HEADER}\n{text}\nstatic void kernel_of(void **arguments) {{\n{}({}, *static_cast<info_st *>(arguments[{}]));\n}}\n",
        source.name,
        arguments.join(", "),
        count - 1
    )
}

/// Makes a call of each inline assembly with `instruction`.
fn calls(text: &str, instruction: &str, function: &str) -> String {
    let pattern =
        format!(r#"asm ?(?:volatile ?)?\("{} [^"]*" : ([^:]*) : ([^;]*?) ?\);"#, regex::escape(instruction));
    let operand = Regex::new(r#""=?\w"\(([^()]*)\)"#).expect("a pattern of this file");
    let operands = |list: &str| -> Vec<String> {
        operand.captures_iter(list).map(|found| found[1].to_owned()).collect()
    };
    let call = |found: &regex::Captures<'_>| {
        let (results, inputs) = (operands(&found[1]), operands(&found[2]));
        match results.as_slice() {
            [result] => format!("{result} = {function}({});", inputs.join(", ")),
            _ => format!("{function}({});", [results, inputs].concat().join(", ")),
        }
    };
    Regex::new(&pattern).expect("a pattern of an instruction").replace_all(text, call).into_owned()
}
