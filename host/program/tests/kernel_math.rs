//! The elementwise functions of kernels against libm in long double, compiled as kernels are.

use std::path::Path;
use std::process::Command;

/// What kernels are compiled with, as far as arithmetic is concerned.
const FLAGS: &[&str] = &[
    "-O3",
    "-std=gnu11",
    "-fassociative-math",
    "-fno-signed-zeros",
    "-fno-trapping-math",
    "-fno-math-errno",
    "-freciprocal-math",
    "-ffp-contract=fast",
];

/// Compiles and runs the comparison; its output where something is wrong.
fn compare(double: bool, bytes: usize, native: bool) {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let program = folder.path().join("kernel_math");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let mut compile = Command::new(&compiler);
    compile.args(FLAGS).arg("-Wno-psabi");
    if native {
        compile.arg(if cfg!(target_arch = "x86_64") { "-march=native" } else { "-mcpu=native" });
    }
    let compiled = compile
        .arg(format!("-DFWP_DOUBLE={}", u8::from(double)))
        .arg(format!("-DFWP_LANES={}", bytes / if double { 8 } else { 4 }))
        .arg(format!("-DBYTES={bytes}"))
        .arg(format!("-DMATH=\"{}\"", manifest.join("src/kernel/math.h").display()))
        .arg(manifest.join("tests/support/kernel_math.c"))
        .arg("-o")
        .arg(&program)
        .arg("-lm")
        .output()
        .unwrap_or_else(|e| panic!("{compiler} does not start: {e}"));
    assert!(compiled.status.success(), "{compiler}:\n{}", String::from_utf8_lossy(&compiled.stderr));
    assert!(compiled.stderr.is_empty(), "{compiler} warns:\n{}", String::from_utf8_lossy(&compiled.stderr));
    let ran = Command::new(&program).output().expect("a program that was just compiled");
    assert!(ran.status.success(), "double {double}, {bytes} bytes, native {native}:\n{}", String::from_utf8_lossy(&ran.stdout));
}

/// Without fused multiply-add on most machines: the reductions must be exact without it.
#[test]
fn functions_are_accurate_on_the_least_machine() {
    compare(false, 16, false);
    compare(true, 16, false);
}

#[test]
fn functions_are_accurate_in_vectors_of_32_bytes() {
    compare(false, 32, true);
    compare(true, 32, true);
}

#[test]
fn functions_are_accurate_in_vectors_of_64_bytes() {
    compare(false, 64, true);
    compare(true, 64, true);
}
