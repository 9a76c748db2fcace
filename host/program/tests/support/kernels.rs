//! Runs kernels as programs of their own and judges them by the interpreter.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use fwp_program::adjoint::adjoint;
use fwp_program::interpret::{Array, Data, Inputs, Random, Value, evaluate};
use fwp_program::kernel::{Gradient, InStep, Kernel, KernelState, Per, Real, Target, generate};
use fwp_sdk::program::{DType, Function, Kind, Op, Program, State, Type};

/// What steers a walk beside its inputs.
#[derive(Clone, Default)]
pub struct Steering {
    pub reset: Option<Vec<u8>>,
    pub write: Option<Vec<u8>>,
    pub index: Option<Vec<i64>>,
}

/// Everything that goes into a walk.
#[derive(Clone)]
pub struct Walk {
    pub steps: usize,
    pub sequences: usize,
    pub interval: usize,
    pub early: usize,
    /// Blocks of one unit.
    pub together: usize,
    /// By argument, `[steps, sequences, value]` as far as it changes with them.
    pub inputs: Vec<Data>,
    pub start: Vec<Vec<f64>>,
    pub fresh: Vec<Vec<f64>>,
    pub kept_gradient: Vec<Vec<f64>>,
    pub end_gradient: Vec<Vec<f64>>,
    pub steering: Steering,
}

/// Everything that comes out of it.
#[derive(Clone, Debug)]
pub struct Results {
    pub kept: Vec<Vec<f64>>,
    pub end: Vec<Vec<f64>>,
    pub inputs: Vec<Option<Vec<f64>>>,
    pub start: Vec<Vec<f64>>,
    pub fresh: Vec<Vec<f64>>,
}

pub fn sizes(ty: &Type) -> Vec<usize> {
    match ty {
        Type::Tensor(t) => t.shape.clone(),
        other => panic!("{other}"),
    }
}

pub fn around(step: &InStep) -> Program {
    Program {
        kind: Kind::UpdateRule,
        name: "case".into(),
        config: "{}".into(),
        doc: String::new(),
        citation: String::new(),
        objective: String::new(),
        inputs: vec![],
        states: step.states.iter().map(|s| s.state.clone()).collect(),
        slots: vec![],
        functions: step.callees.clone(),
        entries: vec![],
        files: vec![],
    }
}

/// The step of a rule with its inputs as arguments of every step; gradients are written out.
pub fn in_step(program: &Program) -> InStep {
    let program = fwp_program::expand_gradients(program).unwrap();
    let mut function = program.entry("step").unwrap().clone();
    let (mut states, mut kept): (Vec<_>, Vec<_>) = (Vec::new(), Vec::new());
    for o in &function.outputs {
        if o.name.starts_with("state.") { states.push(o.clone()) } else { kept.push(o.clone()) }
    }
    let kept_count = kept.len();
    states.sort_by_key(|o| program.states.iter().position(|s| o.name == format!("state.{}", s.name)));
    kept.extend(states);
    function.outputs = kept;
    InStep {
        name: program.name.clone(),
        per: vec![Per::Step; function.arguments.len()],
        function: fwp_program::pruned(&function),
        callees: program.functions.clone(),
        states: program.states.iter().map(|s| KernelState { state: s.clone(), masked: true }).collect(),
        kept: kept_count,
    }
}

fn lead(per: Per, steps: usize, sequences: usize) -> usize {
    match per {
        Per::Step => steps * sequences,
        Per::Sequence => sequences,
        Per::Once => 1,
    }
}

/// Offsets of an argument: elements a step and a sequence.
fn strides(per: Per, n: usize, sequences: usize) -> (usize, usize) {
    match per {
        Per::Step => (n * sequences, n),
        Per::Sequence => (0, n),
        Per::Once => (0, 0),
    }
}

/// The gradient's sizes in `[parts, steps, sequences, value]`.
fn gradient_size(g: &Gradient, n: usize, w: &Walk) -> usize {
    match g {
        Gradient::None => 0,
        Gradient::Steps { parts } => parts.div_ceil(w.together) * w.steps * w.sequences * n,
        Gradient::Sequences { parts } => parts.div_ceil(w.together) * w.sequences * n,
        Gradient::Product { left, right } => w.steps * w.sequences * (left + right),
    }
}

fn shapes_of_kept(step: &InStep) -> Vec<Vec<usize>> {
    let mut p = around(step);
    p.functions.push(step.function.clone());
    let types = fwp_sdk::program::shape::types(&p).unwrap();
    let types = types.nodes.last().unwrap().clone();
    step.function.outputs[..step.kept].iter().map(|o| sizes(&types[o.node as usize])).collect()
}

/// Random inputs; integers are below `below`.
pub fn draw(step: &InStep, steps: usize, sequences: usize, seed: u64, scale: f64, below: i64) -> Walk {
    let mut random = Random::new(seed);
    let floats = |n: usize, random: &mut Random| (0..n).map(|_| scale * random.normal()).collect::<Vec<f64>>();
    let mut inputs = Vec::new();
    for (a, per) in step.function.arguments.iter().zip(&step.per) {
        let Type::Tensor(t) = &a.ty else { panic!() };
        let n = t.elements() * lead(*per, steps, sequences);
        inputs.push(match t.dtype {
            DType::Float if a.name.starts_with("positive") => Data::Float((0..n).map(|_| 0.5 + 1.5 * random.uniform()).collect()),
            DType::Float => Data::Float(floats(n, &mut random)),
            DType::Int => Data::Int((0..n).map(|_| (random.uniform() * below as f64) as i64).collect()),
            DType::Mask => Data::Mask((0..n).map(|_| random.uniform() < 0.5).collect()),
        });
    }
    let state = |s: &KernelState| s.state.shape.iter().product::<usize>() * sequences;
    let all = |random: &mut Random| step.states.iter().map(|s| floats(state(s), random)).collect::<Vec<_>>();
    let (start, fresh, end_gradient) = (all(&mut random), all(&mut random), all(&mut random));
    let kept_gradient =
        shapes_of_kept(step).iter().map(|s| floats(s.iter().product::<usize>() * steps * sequences, &mut random)).collect();
    Walk {
        steps,
        sequences,
        together: 1,
        interval: ((steps as f64).sqrt().ceil() as usize).max(1),
        early: 0,
        inputs,
        start,
        fresh,
        kept_gradient,
        end_gradient,
        steering: Steering::default(),
    }
}

fn at(data: &Data, shape: &[usize], offset: usize) -> Value {
    let n: usize = shape.iter().product();
    let data = match data {
        Data::Float(v) => Data::Float(v[offset..offset + n].to_vec()),
        Data::Int(v) => Data::Int(v[offset..offset + n].to_vec()),
        Data::Mask(v) => Data::Mask(v[offset..offset + n].to_vec()),
    };
    Value::Tensor(Array { shape: shape.to_vec(), data })
}

fn floats(v: &Value) -> Vec<f64> {
    v.tensor().unwrap().floats().unwrap().to_vec()
}

/// What the interpreter makes of the walk, gradients by the interpreted adjoint.
pub fn interpreted(step: &InStep, w: &Walk) -> Results {
    let p = around(step);
    let back = adjoint(step).unwrap();
    let floats_at: Vec<usize> = (0..step.function.arguments.len()).filter(|i| matches!(w.inputs[*i], Data::Float(_))).collect();
    let kept_shapes = shapes_of_kept(step);
    let state_n: Vec<usize> = step.states.iter().map(|s| s.state.shape.iter().product()).collect();
    let mut r = Results {
        kept: w.kept_gradient.iter().map(|v| vec![0.0; v.len()]).collect(),
        end: w.start.clone(),
        inputs: w
            .inputs
            .iter()
            .map(|d| match d {
                Data::Float(v) => Some(vec![0.0; v.len()]),
                _ => None,
            })
            .collect(),
        start: w.end_gradient.clone(),
        fresh: w.fresh.iter().map(|v| vec![0.0; v.len()]).collect(),
    };
    for b in 0..w.sequences {
        let slice = |v: &Vec<Vec<f64>>| -> Vec<Array> {
            let one = |(i, v): (usize, &Vec<f64>)| {
                Array::new(&step.states[i].state.shape, v[b * state_n[i]..(b + 1) * state_n[i]].to_vec()).unwrap()
            };
            v.iter().enumerate().map(one).collect()
        };
        let mut states = slice(&w.start);
        let fresh = slice(&w.fresh);
        let mut before: Vec<Vec<Array>> = Vec::new();
        let arguments = |t: usize| -> Vec<Value> {
            let one = |(i, a): (usize, &fwp_sdk::program::Argument)| {
                let shape = sizes(&a.ty);
                let (step_by, by) = strides(step.per[i], shape.iter().product(), w.sequences);
                at(&w.inputs[i], &shape, t * step_by + b * by)
            };
            step.function.arguments.iter().enumerate().map(one).collect()
        };
        let index = |t: usize| w.steering.index.as_ref().map_or(t as i64, |v| v[t * w.sequences + b]);
        let reset = |t: usize| w.steering.reset.as_ref().is_some_and(|v| v[t * w.sequences + b] != 0);
        let taken = |t: usize, s: &KernelState| {
            let written = w.steering.write.as_ref().is_none_or(|v| v[t * w.sequences + b] != 0) || !s.masked;
            written && (s.state.held <= 1 || (index(t) + 1).rem_euclid(s.state.held as i64) == 0)
        };
        for t in 0..w.steps {
            if reset(t) {
                states = fresh.clone();
            }
            before.push(states.clone());
            let mut inputs = Inputs { arguments: arguments(t), states: states.clone(), index: index(t), ..Inputs::default() };
            let out = evaluate(&p, &step.function, &mut inputs).unwrap();
            for (k, shape) in kept_shapes.iter().enumerate() {
                let n: usize = shape.iter().product();
                r.kept[k][(t * w.sequences + b) * n..][..n].copy_from_slice(&floats(&out[k]));
            }
            for (i, s) in step.states.iter().enumerate() {
                if taken(t, s) {
                    states[i] = out[step.kept + i].tensor().unwrap().clone();
                }
            }
        }
        for (i, s) in states.iter().enumerate() {
            r.end[i][b * state_n[i]..(b + 1) * state_n[i]].copy_from_slice(s.floats().unwrap());
        }
        let mut g: Vec<Vec<f64>> =
            w.end_gradient.iter().enumerate().map(|(i, v)| v[b * state_n[i]..(b + 1) * state_n[i]].to_vec()).collect();
        for t in (0..w.steps).rev() {
            let mut given = arguments(t);
            for (k, shape) in kept_shapes.iter().enumerate() {
                let n: usize = shape.iter().product();
                let v = w.kept_gradient[k][(t * w.sequences + b) * n..][..n].to_vec();
                given.push(Array::new(shape, v).unwrap().into());
            }
            for (i, s) in step.states.iter().enumerate() {
                let v = if taken(t, s) { g[i].clone() } else { vec![0.0; g[i].len()] };
                given.push(Array::new(&s.state.shape, v).unwrap().into());
            }
            let mut inputs = Inputs { arguments: given, states: before[t].clone(), index: index(t), ..Inputs::default() };
            let out = evaluate(&p, &back, &mut inputs).unwrap();
            for (k, i) in floats_at.iter().enumerate() {
                let n: usize = sizes(&step.function.arguments[*i].ty).iter().product();
                let (step_by, by) = strides(step.per[*i], n, w.sequences);
                let to = &mut r.inputs[*i].as_mut().unwrap()[t * step_by + b * by..][..n];
                to.iter_mut().zip(floats(&out[k])).for_each(|(to, v)| *to += v);
            }
            for (i, s) in step.states.iter().enumerate() {
                let v = floats(&out[floats_at.len() + i]);
                if !taken(t, s) {
                    g[i].iter_mut().zip(&v).for_each(|(g, v)| *g += v);
                } else {
                    g[i] = v;
                }
                if reset(t) {
                    let to = &mut r.fresh[i][b * state_n[i]..(b + 1) * state_n[i]];
                    to.iter_mut().zip(&g[i]).for_each(|(to, v)| *to += v);
                    g[i].iter_mut().for_each(|v| *v = 0.0);
                }
            }
        }
        for (i, v) in g.iter().enumerate() {
            r.start[i][b * state_n[i]..(b + 1) * state_n[i]].copy_from_slice(v);
        }
    }
    r
}

/// The compiler, unless there is none.
pub fn compiler() -> Option<String> {
    let name = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    match Command::new(&name).arg("--version").output() {
        Ok(o) if o.status.success() => Some(name),
        _ => {
            eprintln!("skipped: there is no C compiler `{name}`");
            None
        }
    }
}

/// Flags of a kernel.
pub const FLAGS: &[&str] = &[
    "-std=gnu11",
    "-O3",
    "-march=native",
    "-mprefer-vector-width=512",
    "-fassociative-math",
    "-fno-signed-zeros",
    "-fno-trapping-math",
    "-fno-math-errno",
    "-freciprocal-math",
    "-ffp-contract=fast",
];

/// A compiled kernel.
pub struct Compiled {
    pub kernel: Kernel,
    pub seconds: f64,
    real: Real,
    program: PathBuf,
    _folder: Folder,
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn folder() -> Folder {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("fwp-kernel-test-{}-{n}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    Folder(path)
}

pub fn compile(cc: &str, step: &InStep, target: Target) -> Compiled {
    compile_with(cc, step, target, include_str!("main.c"))
}

pub fn compile_with(cc: &str, step: &InStep, target: Target, main: &str) -> Compiled {
    let kernel = generate(step, target).unwrap_or_else(|e| panic!("{}: {e}", step.name));
    let folder = folder();
    let source = folder.0.join("kernel.c");
    std::fs::write(&source, format!("{}\n{main}", kernel.source)).unwrap();
    if let Ok(keep) = std::env::var("FWP_KEEP") {
        std::fs::write(keep, format!("{}\n{main}", kernel.source)).unwrap();
    }
    let program = folder.0.join("kernel");
    let started = std::time::Instant::now();
    let out = Command::new(cc)
        .args(FLAGS)
        // A row may be computed for one side of a choice that is known not to be taken in any block.
        .args(["-Wall", "-Werror", "-Wno-unused-function", "-Wno-unused-variable", "-Wno-psabi", "-o"])
        .arg(&program)
        .arg(&source)
        .output()
        .unwrap();
    let seconds = started.elapsed().as_secs_f64();
    assert!(out.status.success(), "{}: {}\n{}", step.name, String::from_utf8_lossy(&out.stderr), numbered(&kernel.source));
    Compiled { kernel, seconds, real: target.real, program, _folder: folder }
}

fn numbered(text: &str) -> String {
    let start = text.find("struct fwp_at").unwrap_or(0);
    let line = text[..start].lines().count();
    text[start..].lines().enumerate().map(|(i, l)| format!("{} {l}\n", i + line)).collect()
}

impl Compiled {
    /// Runs the kernel on a walk.
    pub fn run(&self, step: &InStep, w: &Walk) -> Results {
        let mut bytes: Vec<u8> = Vec::new();
        let int = |bytes: &mut Vec<u8>, v: usize| bytes.extend((v as i64).to_ne_bytes());
        let real = |bytes: &mut Vec<u8>, v: &[f64]| {
            bytes.extend((v.len() as i64).to_ne_bytes());
            v.iter().for_each(|x| match self.real {
                Real::F64 => bytes.extend(x.to_ne_bytes()),
                Real::F32 => bytes.extend((*x as f32).to_ne_bytes()),
            });
        };
        for v in [w.steps, w.sequences, w.interval, w.early, w.inputs.len(), step.states.len(), step.kept, self.kernel.blocks] {
            int(&mut bytes, v);
        }
        let k = &self.kernel;
        int(&mut bytes, w.together);
        int(&mut bytes, k.saved * k.blocks * w.steps * w.sequences);
        k.memory.iter().for_each(|block| int(&mut bytes, block * w.together));
        int(&mut bytes, k.slots(w.interval, w.together));
        let mut sizes_of = Vec::new();
        for (i, d) in w.inputs.iter().enumerate() {
            let n: usize = sizes(&step.function.arguments[i].ty).iter().product();
            let (by_step, by) = strides(step.per[i], n, w.sequences);
            int(&mut bytes, by_step);
            int(&mut bytes, by);
            match d {
                Data::Float(v) => {
                    int(&mut bytes, 0);
                    real(&mut bytes, v);
                }
                Data::Int(v) => {
                    int(&mut bytes, 1);
                    int(&mut bytes, v.len());
                    v.iter().for_each(|x| bytes.extend(x.to_ne_bytes()));
                }
                Data::Mask(v) => {
                    int(&mut bytes, 2);
                    int(&mut bytes, v.len());
                    v.iter().for_each(|x| bytes.push(u8::from(*x)));
                }
            }
            sizes_of.push(gradient_size(&self.kernel.gradients[i], n, w));
            int(&mut bytes, sizes_of[i]);
        }
        for i in 0..step.states.len() {
            real(&mut bytes, &w.start[i]);
            real(&mut bytes, &w.fresh[i]);
            real(&mut bytes, &w.end_gradient[i]);
        }
        for v in &w.kept_gradient {
            real(&mut bytes, v);
        }
        for mask in [&w.steering.reset, &w.steering.write] {
            int(&mut bytes, mask.as_ref().map_or(0, Vec::len));
            bytes.extend(mask.iter().flatten());
        }
        int(&mut bytes, w.steering.index.as_ref().map_or(0, Vec::len));
        w.steering.index.iter().flatten().for_each(|x| bytes.extend(x.to_ne_bytes()));
        let mut child = Command::new(&self.program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let writer = std::thread::spawn(move || stdin.write_all(&bytes));
        let out = child.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        assert!(out.status.success(), "{}: the kernel failed: {:?}", step.name, out.status);
        let values: Vec<f64> = out.stdout.chunks_exact(8).map(|c| f64::from_ne_bytes(c.try_into().unwrap())).collect();
        let mut values = values.into_iter();
        let mut next = |n: usize| -> Vec<f64> { (0..n).map(|_| values.next().expect("too few results")).collect() };
        let kept = w.kept_gradient.iter().map(|v| next(v.len())).collect();
        let end = w.start.iter().map(|v| next(v.len())).collect();
        let start = w.start.iter().map(|v| next(v.len())).collect();
        let fresh = w.start.iter().map(|v| next(v.len())).collect();
        let mut inputs = Vec::new();
        for (i, d) in w.inputs.iter().enumerate() {
            let raw = next(sizes_of[i]);
            let n: usize = sizes(&step.function.arguments[i].ty).iter().product();
            let total = n * lead(step.per[i], w.steps, w.sequences);
            inputs.push(match (d, &self.kernel.gradients[i]) {
                (Data::Float(_), Gradient::None) => Some(vec![0.0; total]),
                (Data::Float(_), Gradient::Product { left, right }) => {
                    let mut sum = vec![0.0; n];
                    let rows = w.steps * w.sequences;
                    for r in 0..rows {
                        for a in 0..*left {
                            for b in 0..*right {
                                sum[a * right + b] += raw[r * left + a] * raw[rows * left + r * right + b];
                            }
                        }
                    }
                    Some(sum)
                }
                (Data::Float(_), _) => {
                    // Sums over parts, and over sequences where the argument is the same for all.
                    let mut sum = vec![0.0; total];
                    raw.iter().enumerate().for_each(|(i, v)| sum[i % total] += v);
                    Some(sum)
                }
                _ => None,
            });
        }
        Results { kept, end, inputs, start, fresh }
    }
}

fn close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let same = (g.is_nan() && w.is_nan()) || g == w || (g - w).abs() <= tolerance * scale;
        assert!(same, "{what}: element {i} is {g:e}, should be {w:e} (scale {scale:e})");
    }
}

/// Compares a run with the interpreter's.
pub fn agree(name: &str, got: &Results, want: &Results, tolerance: f64) {
    for (i, (g, w)) in got.kept.iter().zip(&want.kept).enumerate() {
        close(&format!("{name}: kept {i}"), g, w, tolerance);
    }
    for (i, (g, w)) in got.end.iter().zip(&want.end).enumerate() {
        close(&format!("{name}: end {i}"), g, w, tolerance);
    }
    for (i, (g, w)) in got.inputs.iter().zip(&want.inputs).enumerate() {
        if let (Some(g), Some(w)) = (g, w) {
            close(&format!("{name}: gradient of argument {i}"), g, w, tolerance);
        }
    }
    for (i, (g, w)) in got.start.iter().zip(&want.start).enumerate() {
        close(&format!("{name}: gradient of start {i}"), g, w, tolerance);
    }
    for (i, (g, w)) in got.fresh.iter().zip(&want.fresh).enumerate() {
        close(&format!("{name}: gradient of fresh {i}"), g, w, tolerance);
    }
}

/// The loss that belongs to the gradients of a walk.
pub fn loss(step: &InStep, w: &Walk) -> f64 {
    let r = interpreted(step, w);
    let dot = |a: &[Vec<f64>], b: &[Vec<f64>]| -> f64 {
        a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>()).sum()
    };
    dot(&r.kept, &w.kept_gradient) + dot(&r.end, &w.end_gradient)
}

/// Gradients against central differences along one random direction.
pub fn differences(step: &InStep, w: &Walk, got: &Results, tolerance: f64) {
    let mut random = Random::new(99);
    let (mut plus, mut minus) = (w.clone(), w.clone());
    let (mut along, h) = (0.0, 1e-5);
    let mut bump = |a: &mut Vec<f64>, b: &mut Vec<f64>, g: &[f64]| {
        for i in 0..a.len() {
            let d = random.normal();
            a[i] += h * d;
            b[i] -= h * d;
            along += d * g[i];
        }
    };
    for i in 0..w.inputs.len() {
        if let (Data::Float(a), Data::Float(b), Some(g)) = (&mut plus.inputs[i], &mut minus.inputs[i], &got.inputs[i]) {
            bump(a, b, g);
        }
    }
    for i in 0..w.start.len() {
        bump(&mut plus.start[i], &mut minus.start[i], &got.start[i]);
        bump(&mut plus.fresh[i], &mut minus.fresh[i], &got.fresh[i]);
    }
    let numeric = (loss(step, &plus) - loss(step, &minus)) / (2.0 * h);
    assert!(
        (numeric - along).abs() <= tolerance * numeric.abs().max(along.abs()).max(1.0),
        "{}: differences give {numeric}, the kernel {along}",
        step.name
    );
}

pub fn state(name: &str, shape: &[usize], held: usize) -> State {
    State { name: name.into(), shape: shape.to_vec(), init: fwp_sdk::program::StateInit::Zeros, held }
}

/// The numbers of operations of a function, by operator.
pub fn count(f: &Function, op: &Op) -> usize {
    f.nodes.iter().filter(|n| n.op == *op).count()
}

/// Best milliseconds forward and backward of all units of a walk, one after another on one core.
pub fn bench(cc: &str, step: &InStep, target: Target, steps: usize, sequences: usize, interval: usize) -> String {
    let c = compile_with(cc, step, target, include_str!("bench.c"));
    let k = &c.kernel;
    let w = Walk { steps, sequences, interval, together: k.blocks, ..draw(step, 1, 1, 1, 1.0, 4) };
    let mut args: Vec<usize> = vec![
        steps,
        sequences,
        interval,
        k.blocks,
        k.saved,
        k.memory[0],
        k.memory[1],
        k.slots(interval, k.blocks),
        20,
        step.function.arguments.len(),
    ];
    for (a, g) in step.function.arguments.iter().zip(&k.gradients) {
        let n: usize = sizes(&a.ty).iter().product();
        args.extend([n, gradient_size(g, n, &w)]);
    }
    args.push(step.states.len());
    args.extend(step.states.iter().map(|s| s.state.shape.iter().product::<usize>()));
    let kept = shapes_of_kept(step);
    args.push(kept.len());
    args.extend(kept.iter().map(|s| s.iter().product::<usize>()));
    let args: Vec<String> = args.iter().map(usize::to_string).collect();
    if std::env::var("FWP_KEEP").is_ok() {
        eprintln!("{}", args.join(" "));
    }
    let out = Command::new(&c.program).args(&args).output().unwrap();
    assert!(out.status.success());
    format!(
        "{} T{steps} S{sequences}: forward and backward {} ms on one core; compiled in {:.2} s, {} bytes of text, {} blocks, {:?}",
        step.name,
        String::from_utf8_lossy(&out.stdout).trim(),
        c.seconds,
        k.source.len(),
        k.blocks,
        k.notes
    )
}
