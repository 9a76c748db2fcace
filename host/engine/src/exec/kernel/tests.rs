//! The path from a text to gradients, with a kernel written by hand: what is tested here does not depend on the generator.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fwp_program::kernel::{Gradient, Kernel, Per, Real};
use tch::{Device, Kind, Tensor};

use super::build::{Built, assembled};
use super::cache::{Cache, CacheError, distrust};
use super::compile::{CompileError, Compiler, Limits, compile, compiler, find};
use super::lower::lower;
use super::run::run_built;
use crate::exec::choose::Executors;
use crate::exec::prepared::Slot;
use crate::exec::scan::{FastWeights, Masks};
use crate::exec::testing::{delta, fast_weights};
use crate::exec::value::{Lead, Memory, Value};
use crate::exec::walk::walk;
use crate::shim;
use crate::shim::testing::numbers;

fn by_hand(slot: &Slot, (dk, dv, blocks): (usize, usize, usize), real: Real, cache: &Cache) -> Arc<Built> {
    by_hand_every(slot, (dk, dv, blocks), real, cache, usize::MAX)
}

/// As [`by_hand`], with checkpoints at least so often as after `interval` steps, if the number of all steps allows it.
fn by_hand_every(slot: &Slot, (dk, dv, blocks): (usize, usize, usize), real: Real, cache: &Cache, interval: usize) -> Arc<Built> {
    let lowered = Arc::new(lower(&slot.rule.program, &slot.step).unwrap());
    let (name, size) = if real == Real::F32 { ("float", 4) } else { ("double", 8) };
    let defines = format!("#define REAL {name}\n#define DV {dv}\n#define DK {dk}\n#define BLOCKS {blocks}\n");
    let block = dv / blocks * dk * size;
    let kernel = Kernel {
        source: defines + include_str!("delta.c"),
        blocks,
        memory: [2 * block + dv * size, 3 * block + 2 * dv * size].map(|bytes| bytes.next_multiple_of(64)),
        slots_a_step: block.max(super::buffers::second_level_cache() / 2 / interval),
        slots_a_block: 0,
        computed_back: false,
        saved: 0,
        gradients: vec![
            Gradient::Steps { parts: blocks },
            Gradient::Steps { parts: blocks },
            Gradient::Steps { parts: 1 },
            Gradient::Steps { parts: blocks },
        ],
        operations: [6 * dk * dv, 20 * dk * dv],
        notes: vec![],
    };
    assembled(&lowered, &[Per::Step; 4], real, kernel, cache).unwrap()
}

/// Inputs of a call: q, k, v, beta; the initial state; masks.
struct Data {
    inputs: Vec<Tensor>,
    state: Tensor,
    masks: bool,
}

impl Data {
    fn new(steps: i64, n: i64, dk: i64, dv: i64, masks: bool, kind: Kind) -> Data {
        let t = |shape: &[i64]| (numbers(shape) * 0.6).to_kind(kind).set_requires_grad(true);
        let inputs = vec![t(&[steps, n, dk]), t(&[steps, n, dk]), t(&[steps, n, dv]), t(&[steps, n])];
        Data { inputs, state: t(&[n, dv, dk]), masks }
    }

    fn masks(&self) -> Masks {
        if !self.masks {
            return Masks::default();
        }
        let size = self.inputs[0].size();
        let grid = Tensor::arange(size[0] * size[1], (Kind::Int64, Device::Cpu)).view([size[0], size[1]]);
        Masks { reset: Some(grid.remainder(7).eq(5)), write: Some(grid.remainder(5).ne(2)), ..Masks::default() }
    }

    /// Output, last state, and the gradients of inputs and state.
    fn walked(&self, weights: &FastWeights, built: Option<&Arc<Built>>) -> Vec<Tensor> {
        let inputs: Vec<Value> = self.inputs.iter().map(|t| Value::new(t.shallow_clone(), Lead::STEPS)).collect();
        let n = self.state.size()[0];
        let memory =
            Memory { slot: 0, states: vec![self.state.shallow_clone()], index: Tensor::zeros([n], (Kind::Int64, Device::Cpu)) };
        let plan = &weights.slot.step;
        let (outputs, memory) = match built {
            Some(built) => run_built(built, weights, plan, &inputs, memory, &self.masks()),
            None => walk(weights, plan, &inputs, memory, &self.masks()),
        }
        .unwrap();
        let (y, w) = (&outputs[0].tensor, &memory.states[0]);
        let loss = (y * y.detach().sin()).sum(Kind::Double) + (w * w.detach().cos()).sum(Kind::Double);
        let wrt: Vec<&Tensor> = self.inputs.iter().chain([&self.state]).collect();
        let gradients = shim::gradients(&[loss], &[None::<Tensor>], &wrt, false, false).unwrap();
        let all = [y.detach(), w.detach()].into_iter().chain(gradients.into_iter().map(Option::unwrap));
        all.collect()
    }
}

fn close(ours: &[Tensor], wanted: &[Tensor], tolerance: f64) {
    for (i, (a, b)) in ours.iter().zip(wanted).enumerate() {
        assert_eq!(a.size(), b.size());
        let error = ((a - b).abs().max() / b.abs().max()).double_value(&[]);
        assert!(error <= tolerance, "tensor {i}: {error:e}");
    }
}

fn cache() -> (tempfile::TempDir, Cache) {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::at(&folder.path().join("kernels")).unwrap();
    (folder, cache)
}

#[test]
fn a_kernel_gives_the_outputs_states_and_gradients_of_the_reference() {
    let (_folder, cache) = cache();
    for (steps, n, dk, dv, blocks) in [(1, 1, 3, 2, 1), (4, 4, 4, 4, 2), (23, 3, 5, 14, 2), (300, 2, 7, 6, 3)] {
        let slot = delta(dk, dv);
        for (real, kind, tolerance) in [(Real::F64, Kind::Double, 1e-12), (Real::F32, Kind::Float, 2e-5)] {
            let built = by_hand(&slot, (dk, dv, blocks), real, &cache);
            let weights = fast_weights(&slot, kind, Executors::default());
            for masks in [false, true] {
                let data = Data::new(steps, n, dk as i64, dv as i64, masks, kind);
                let wanted = data.walked(&weights, None);
                super::buffers::poison(true);
                let ours = data.walked(&weights, Some(&built));
                super::buffers::poison(false);
                close(&ours, &wanted, tolerance);
            }
        }
    }
}

#[test]
fn checkpoints_bound_what_is_kept_and_change_no_bit() {
    let (_folder, cache) = cache();
    let slot = delta(5, 6);
    let weights = fast_weights(&slot, Kind::Double, Executors::default());
    for masks in [false, true] {
        let data = Data::new(100, 2, 5, 6, masks, Kind::Double);
        let whole = data.walked(&weights, Some(&by_hand(&slot, (5, 6, 2), Real::F64, &cache)));
        for interval in [3, 7, 50, 99] {
            let built = by_hand_every(&slot, (5, 6, 2), Real::F64, &cache, interval);
            super::buffers::poison(true);
            let parted = data.walked(&weights, Some(&built));
            super::buffers::poison(false);
            assert_eq!(parted, whole, "an interval of {interval}");
        }
    }
}

#[test]
fn inputs_that_are_expanded_transposed_or_strided_are_read_in_place() {
    let (_folder, cache) = cache();
    let (steps, n, dk, dv) = (12, 3, 5, 4);
    let slot = delta(dk, dv);
    let built = by_hand(&slot, (dk, dv, 2), Real::F64, &cache);
    let weights = fast_weights(&slot, Kind::Double, Executors::default());
    let (dk, dv) = (dk as i64, dv as i64);
    let leaf = |shape: &[i64]| numbers(shape).set_requires_grad(true);
    let data = Data {
        inputs: vec![
            leaf(&[n, steps, dk]).transpose(0, 1),
            leaf(&[steps, 1, dk]).expand([steps, n, dk], false),
            leaf(&[1, n, dv]).expand([steps, n, dv], false),
            leaf(&[steps, n, 2]).select(2, 1),
        ],
        state: leaf(&[1, dv, dk]).expand([n, dv, dk], false),
        masks: true,
    };
    close(&data.walked(&weights, Some(&built)), &data.walked(&weights, None), 1e-12);
    // Elements of one step that do not lie together are copied.
    let data = Data {
        inputs: vec![
            leaf(&[steps, dk, n]).transpose(1, 2),
            leaf(&[steps, n, 1]).expand([steps, n, dk], false),
            leaf(&[steps, n, dv]),
            leaf(&[steps, n]),
        ],
        state: leaf(&[n, dk, dv]).transpose(1, 2),
        masks: false,
    };
    close(&data.walked(&weights, Some(&built)), &data.walked(&weights, None), 1e-12);
}

#[test]
fn without_gradients_the_result_is_the_same_and_no_graph_is_made() {
    let (_folder, cache) = cache();
    let slot = delta(4, 6);
    let built = by_hand(&slot, (4, 6, 3), Real::F64, &cache);
    let weights = fast_weights(&slot, Kind::Double, Executors::default());
    let data = Data::new(40, 2, 4, 6, false, Kind::Double);
    let with = data.walked(&weights, Some(&built));
    let inputs: Vec<Value> = data.inputs.iter().map(|t| Value::new(t.shallow_clone(), Lead::STEPS)).collect();
    let memory =
        Memory { slot: 0, states: vec![data.state.shallow_clone()], index: Tensor::zeros([2], (Kind::Int64, Device::Cpu)) };
    let (outputs, memory) = tch::no_grad(|| run_built(&built, &weights, &slot.step, &inputs, memory, &Masks::default())).unwrap();
    assert!(!outputs[0].tensor.requires_grad() && !memory.states[0].requires_grad());
    assert_eq!((&outputs[0].tensor, &memory.states[0]), (&with[0], &with[1]));
}

#[test]
fn a_gradient_of_the_gradient_is_refused_with_what_to_do() {
    let (_folder, cache) = cache();
    let slot = delta(3, 3);
    let built = by_hand(&slot, (3, 3, 1), Real::F64, &cache);
    let weights = fast_weights(&slot, Kind::Double, Executors::default());
    let data = Data::new(3, 1, 3, 3, false, Kind::Double);
    let inputs: Vec<Value> = data.inputs.iter().map(|t| Value::new(t.shallow_clone(), Lead::STEPS)).collect();
    let memory =
        Memory { slot: 0, states: vec![data.state.shallow_clone()], index: Tensor::zeros([1], (Kind::Int64, Device::Cpu)) };
    let (outputs, _) = run_built(&built, &weights, &slot.step, &inputs, memory, &Masks::default()).unwrap();
    let loss = outputs[0].tensor.sum(Kind::Double);
    let error = shim::gradients(&[loss], &[None::<Tensor>], &[&data.inputs[0]], true, true).unwrap_err();
    assert!(error.to_string().contains("--exec reference"), "{error}");
}

#[test]
fn opening_a_kernel_leaves_the_floating_point_mode_alone() {
    shim::testing::alone("exec::kernel::tests::float_mode_inner");
}

#[test]
#[ignore = "run by the test above, in a process of its own: the mode is inherited by threads"]
fn float_mode_inner() {
    use super::open_unsafe::float_mode;
    let before = float_mode();
    let (_folder, cache) = cache();
    let slot = delta(3, 4);
    let built = by_hand(&slot, (3, 4, 2), Real::F32, &cache);
    let weights = fast_weights(&slot, Kind::Float, Executors::default());
    Data::new(5, 2, 3, 4, false, Kind::Float).walked(&weights, Some(&built));
    assert_eq!(float_mode(), before);
    let tiny = Tensor::from_slice(&[1e-39f32]) * 0.5;
    assert!(tiny.double_value(&[0]) > 0.0, "denormals are switched off");
    assert!(built.compiler.flags.iter().all(|f| !matches!(f.as_str(), "-ffast-math" | "-Ofast" | "-funsafe-math-optimizations")));
    // A library that does change it is refused, and the mode is put back.
    let text = cache.folder().join("bad.c");
    fs::write(&text, "void fwp_forward(void) {} void fwp_backward(void) {}").unwrap();
    let library = cache.folder().join("bad.so");
    let done = std::process::Command::new(&built.compiler.path)
        .args(["-ffast-math", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&text)
        .status();
    assert!(done.unwrap().success());
    if let Err(error) = super::open_unsafe::open(&library) {
        assert!(error.to_string().contains("floating-point mode"), "{error}");
    }
    assert_eq!(float_mode(), before);
}

fn limits() -> Limits {
    Limits { time: Duration::from_secs(60), memory: 4 << 30 }
}

const TEXT: &str = "int fwp_forward(void) { return 1; }\nint fwp_backward(void) { return 2; }\n";

#[test]
fn a_kernel_is_compiled_once_and_again_when_its_file_is_damaged() {
    let (_folder, cache) = cache();
    let compiler = compiler().unwrap();
    let first = cache.get(TEXT, compiler, limits()).unwrap();
    assert!(first.compiled && !cache.get(TEXT, compiler, limits()).unwrap().compiled);
    assert_eq!(fs::metadata(&first.library).unwrap().permissions().mode() & 0o022, 0);
    let bytes = fs::read(&first.library).unwrap();
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2] ^= 1;
    fs::write(&first.library, &damaged).unwrap();
    assert!(cache.get(TEXT, compiler, limits()).unwrap().compiled, "a damaged library");
    assert_ne!(fs::read(&first.library).unwrap(), damaged);
    fs::write(&first.library, &bytes[..100]).unwrap();
    assert!(cache.get(TEXT, compiler, limits()).unwrap().compiled, "a short library");
    fs::remove_file(first.library.with_extension("sha256")).unwrap();
    assert!(cache.get(TEXT, compiler, limits()).unwrap().compiled, "a library without its sum");
    fs::set_permissions(&first.library, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(cache.get(TEXT, compiler, limits()).unwrap().compiled, "a library that others may write");
    let others = Compiler { version: "another".into(), ..compiler.clone() };
    assert_ne!(cache.get(TEXT, &others, limits()).unwrap().library, first.library, "another compiler, another key");
    let others = Compiler { flags: compiler.flags.iter().chain(&["-O2".to_string()]).cloned().collect(), ..compiler.clone() };
    assert_ne!(cache.get(TEXT, &others, limits()).unwrap().library, first.library, "other flags, another key");
    assert_eq!(cache.size().0, 3);
}

#[test]
fn many_threads_that_want_one_kernel_get_it() {
    let (_folder, cache) = cache();
    let compiler = compiler().unwrap();
    let compiled: usize = std::thread::scope(|s| {
        let all: Vec<_> = (0..6).map(|_| s.spawn(|| cache.get(TEXT, compiler, limits()).unwrap().compiled)).collect();
        all.into_iter().map(|t| usize::from(t.join().unwrap())).sum()
    });
    assert_eq!(compiled, 1, "the lock keeps the others waiting");
    let left: Vec<_> = fs::read_dir(cache.folder()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|n| !n.to_string_lossy().starts_with('.')), "{left:?}");
}

#[test]
fn a_folder_that_others_may_write_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let kernels = folder.path().join("kernels");
    assert_eq!(fs::metadata(Cache::at(&kernels).unwrap().folder()).unwrap().permissions().mode() & 0o777, 0o700);
    fs::set_permissions(&kernels, fs::Permissions::from_mode(0o777)).unwrap();
    let error = Cache::at(&kernels).unwrap_err();
    assert!(matches!(error, CacheError::Untrusted { .. }) && error.to_string().contains("chmod 700"), "{error}");
    fs::remove_dir(&kernels).unwrap();
    fs::write(&kernels, "a file").unwrap();
    assert!(Cache::at(&kernels).is_err());
}

#[test]
fn a_folder_of_another_user_is_refused() {
    // Only a privileged user can give a folder away; another looks at one of the system's.
    let folder = tempfile::tempdir().unwrap();
    let path = match std::os::unix::fs::chown(folder.path(), Some(12345), None) {
        Ok(()) => folder.path().to_path_buf(),
        Err(_) => PathBuf::from("/usr"),
    };
    let why = distrust(&path).unwrap().unwrap();
    assert!(why.contains("belongs to user") && why.contains("FWP_CACHE"), "{why}");
}

fn script(folder: &Path, text: &str) -> Compiler {
    let path = folder.join("cc");
    fwp_test_support::script(&path, &format!("#!/bin/sh\n{text}\n"));
    Compiler { path, options: vec![], version: "a script".into(), flags: vec![] }
}

#[test]
fn a_text_that_does_not_compile_is_kept_and_the_compiler_is_quoted() {
    let (_folder, cache) = cache();
    let error = cache.get("int broken( {", compiler().unwrap(), limits()).unwrap_err();
    let CacheError::Compile { error: inner, text } = &error else { panic!("{error}") };
    assert!(inner.to_string().contains("error:"), "{inner}");
    assert_eq!(fs::read_to_string(text).unwrap(), "int broken( {");
    assert!(error.to_string().contains(&*text.to_string_lossy()));
    assert_eq!(cache.size().0, 0);
}

#[test]
fn a_compiler_that_takes_too_long_is_ended_with_its_children() {
    let folder = tempfile::tempdir().unwrap();
    let slow = script(folder.path(), "sleep 30 & wait");
    let began = Instant::now();
    let limits = Limits { time: Duration::from_millis(200), memory: 4 << 30 };
    let error = compile(&slow, Path::new("/dev/null"), &folder.path().join("x.so"), limits).unwrap_err();
    assert!(matches!(error, CompileError::TimeOut(_)) && error.to_string().contains("FWP_COMPILE_SECONDS"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn seconds_that_are_none_are_refused() {
    assert_eq!(Limits::of(None).unwrap().time, Duration::from_secs(60));
    assert_eq!(Limits::of(Some(" 0.5 ")).unwrap().time, Duration::from_millis(500));
    for text in ["", "0", "-1", "NaN", "inf", "1e9", "a minute"] {
        assert!(Limits::of(Some(text)).unwrap_err().contains("FWP_COMPILE_SECONDS"), "{text}");
    }
}

#[test]
fn a_compiler_may_not_take_more_memory_than_its_limit() {
    let folder = tempfile::tempdir().unwrap();
    let shows = script(folder.path(), "ulimit -v >&2; exit 3");
    let error = compile(&shows, Path::new("/dev/null"), &folder.path().join("x.so"), limits()).unwrap_err();
    assert!(error.to_string().contains(&(4 << 20).to_string()), "{error}");
}

#[test]
fn the_compiler_is_the_one_that_cc_names() {
    assert!(find(None).unwrap().path.is_absolute());
    let named = find(Some("gcc -DNDEBUG")).or_else(|_| find(Some("clang -DNDEBUG"))).unwrap();
    assert_eq!(named.options, ["-DNDEBUG"]);
    let missing = find(Some("/nonexistent")).unwrap_err();
    assert!(missing.contains("CC is `/nonexistent`"), "{missing}");
    assert!(find(Some("gcc -Ofast")).unwrap_err().contains("-Ofast"));
}

#[test]
fn a_kernel_that_computes_something_else_is_found_out() {
    use crate::exec::verify::verify;
    let (_folder, cache) = cache();
    let slot = delta(4, 4);
    for (kind, real) in [(Kind::Double, Real::F64), (Kind::Float, Real::F32)] {
        let weights = fast_weights(&slot, kind, Executors::default());
        let data = Data::new(3, 2, 4, 4, false, kind);
        let inputs: Vec<Value> = data.inputs.iter().map(|t| Value::new(t.shallow_clone(), Lead::STEPS)).collect();
        let memory = weights.initial(2).unwrap();
        let right = by_hand(&slot, (4, 4, 2), real, &cache);
        let check = |built: &Arc<Built>| {
            let run = |w: &FastWeights, p: &Arc<_>, i: &[Value], m: Memory, masks: &Masks| run_built(built, w, p, i, m, masks);
            verify(&weights, &slot.step, &inputs, &memory, kind, &run)
        };
        check(&right).unwrap();
        let text = fs::read_to_string(&right.entry.text).unwrap();
        let wrong = [
            ("e[r] = x->v[r0 + r] - read;", "e[r] = x->v[r0 + r] - (real)1.01 * read;", "output"),
            (
                "if (gb) *gb = (adds ? *gb : 0) + beta;",
                "if (gb) *gb = (adds ? *gb : 0) + beta * (real)1.01;",
                "the gradient of `beta`",
            ),
            ("if (!s->write || s->write[t * s->sequences + n]) memcpy(w", "memcpy(w", "with resets and masked writes"),
            ("fresh[i] += g[i];", "g[i] += 1;", ""),
        ];
        for (from, to, named) in wrong {
            assert!(text.contains(from), "{from}");
            let kernel = Kernel { source: text.replace(from, to), ..right.kernel.clone() };
            let built = assembled(&right.lowered, &right.per, real, kernel, &cache).unwrap();
            match (check(&built), named) {
                // The states after a reset are zeros here, and have no gradient to be wrong.
                (Ok(()), "") => {}
                (Err(why), _) => assert!(why.contains(named), "{to}: {why}"),
                (Ok(()), _) => panic!("{to} was not noticed"),
            }
        }
    }
}
