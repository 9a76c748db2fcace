//! Builds the C++ shim against the libtorch that `torch-sys` found, and tells the linker where
//! that libtorch lies at run time.

use std::path::{Path, PathBuf};

fn main() {
    // Every plugin crate defines the one symbol that a host looks for in a library; tests link several plugins at once and use none of them.
    println!("cargo:rustc-link-arg-tests=-Wl,-z,muldefs");

    println!("cargo:rerun-if-changed=build.rs");
    for file in ["shim.cpp", "fused.cpp", "linear.cpp", "lookup.cpp", "loss.cpp", "optimise.cpp", "lanes.h", "guard.h"] {
        println!("cargo:rerun-if-changed=src/shim/{file}");
    }

    // `torch-sys` declares `links = "tch"`, so cargo hands its library folder to direct dependents.
    let lib = PathBuf::from(std::env::var_os("DEP_TCH_LIBTORCH_LIB").expect(
        "torch-sys did not say where libtorch is: set LIBTORCH to a folder that holds lib/ and \
         include/ (libtorch 2.11.0), or build through ./scripts/fwp",
    ));
    let root = lib.parent().map(Path::to_path_buf).unwrap_or_default();
    let include = root.join("include");

    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .pic(true)
        .warnings(false)
        // The loops of our own operations are made into vectors at this level.
        .opt_level(3)
        // at::parallel_for is a header template under #ifdef _OPENMP: without this flag it
        // compiles and quietly runs on one thread.
        .flag("-fopenmp")
        // Nobody reads errno or the flags of floating-point exceptions; with them, loops with roots and choices are taken apart.
        .flags(["-fno-trapping-math", "-fno-math-errno"])
        .flag("-D_GLIBCXX_USE_CXX11_ABI=1")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .files(
            ["shim.cpp", "fused.cpp", "linear.cpp", "lookup.cpp", "loss.cpp", "optimise.cpp"]
                .map(|file| format!("src/shim/{file}")),
        );
    build.compile("fwp_shim");

    println!("cargo:rustc-link-search=native={}", lib.display());
    for name in ["torch", "torch_cpu", "c10"] {
        println!("cargo:rustc-link-lib=dylib={name}");
    }
    // torch brings its own libgomp; binding to that very file keeps one OpenMP runtime in the
    // process. Where a libtorch has none beside it, the system's is the one it uses.
    if lib.join("libgomp.so.1").exists() {
        println!("cargo:rustc-link-arg=-l:libgomp.so.1");
    } else {
        println!("cargo:rustc-link-lib=dylib=gomp");
    }

    // Link arguments of this package reach its binary and its tests, and nothing else.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    if let Some(beside) = root.parent() {
        let cuda = beside.join("nvidia/cu13/lib");
        if cuda.is_dir() {
            println!("cargo:rustc-link-arg=-Wl,-rpath,{}", cuda.display());
        }
    }
}
