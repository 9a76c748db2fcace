//! One rule on tensors from a file, against a plain float64 loop.

use fwp_tests::Case;
use fwp_tests::arrays::{Array, Arrays, read, write};
use safetensors::tensor::Dtype;

/// What becomes of keys and queries.
#[derive(Clone, Copy)]
enum Map {
    Identity,
    /// Unit length, 1e-6 added under the root.
    Unit,
    /// DPFP with shifts up to that, divided by the sum plus 1e-6.
    DpfpSum(usize),
}

impl Map {
    fn apply(self, x: &[f64]) -> Vec<f64> {
        match self {
            Map::Identity => x.to_vec(),
            Map::Unit => {
                let length = (x.iter().map(|v| v * v).sum::<f64>() + 1e-6).sqrt();
                x.iter().map(|v| v / length).collect()
            }
            Map::DpfpSum(nu) => {
                let u: Vec<f64> = x.iter().map(|v| v.max(0.0)).chain(x.iter().map(|v| (-v).max(0.0))).collect();
                let n = u.len();
                let y: Vec<f64> =
                    (1..=nu).flat_map(|j| (0..n).map(move |i| (i, (i + n - j) % n))).map(|(i, k)| u[i] * u[k]).collect();
                let sum = y.iter().sum::<f64>() + 1e-6;
                y.iter().map(|v| v / sum).collect()
            }
        }
    }
}

/// The rule as its paper says it, one step, one head and one sequence at a time.
#[derive(Clone, Copy)]
struct Delta {
    map: Map,
    /// Whether beta is given as it is used, and not before its sigmoid.
    effective: bool,
}

impl Delta {
    /// Outputs `[batch, time, heads, d_v]` and the final `w` `[batch, heads, d_v, d_k]`.
    fn run(&self, given: &Arrays) -> (Array, Array) {
        let (q, k, v, beta) = (&given["q"], &given["k"], &given["v"], &given["beta"]);
        let [batch, time, heads, raw] = k.shape[..] else { panic!("four axes") };
        let value = v.shape[3];
        let key = self.map.apply(&vec![0.0; raw]).len();
        let mut w = given.get("state.w").cloned().unwrap_or_else(|| Array::zeros(&[batch, heads, value, key]));
        let mut o = Array::zeros(&v.shape);
        for b in 0..batch {
            for h in 0..heads {
                let w = &mut w.data[(b * heads + h) * value * key..][..value * key];
                for t in 0..time {
                    let at = (b * time + t) * heads + h;
                    let phi = |x: &Array| self.map.apply(&x.data[at * raw..][..raw]);
                    let (fq, fk) = (phi(q), phi(k));
                    let strength = if self.effective { beta.data[at] } else { 1.0 / (1.0 + (-beta.data[at]).exp()) };
                    for i in 0..value {
                        let row = &mut w[i * key..][..key];
                        let old: f64 = row.iter().zip(&fk).map(|(w, k)| w * k).sum();
                        let change = strength * (v.data[at * value + i] - old);
                        row.iter_mut().zip(&fk).for_each(|(w, k)| *w += change * k);
                        o.data[at * value + i] = row.iter().zip(&fq).map(|(w, q)| w * q).sum();
                    }
                }
            }
        }
        (o, w)
    }

    /// The number whose gradients are compared.
    fn objective(&self, given: &Arrays) -> f64 {
        let (o, w) = self.run(given);
        o.dot(&given["grad.o"]) + given.get("grad.state.w").map_or(0.0, |g| w.dot(g))
    }
}

/// Sizes: batch, time, heads, key, value.
type Sizes = [usize; 5];

/// Shapes that are all different primes show transposed axes, shapes that are all equal show broadcast ones.
const SIZES: [Sizes; 2] = [[2, 5, 3, 7, 11], [4, 4, 4, 4, 4]];

fn inputs([batch, time, heads, key, value]: Sizes, features: usize, state: bool) -> Arrays {
    let mut arrays = Arrays::new();
    let mut add = |name: &str, shape: &[usize]| _ = arrays.insert(name.into(), Array::random(name, shape));
    add("q", &[batch, time, heads, key]);
    add("k", &[batch, time, heads, key]);
    add("v", &[batch, time, heads, value]);
    add("beta", &[batch, time, heads]);
    add("grad.o", &[batch, time, heads, value]);
    if state {
        add("state.w", &[batch, heads, value, features]);
        add("grad.state.w", &[batch, heads, value, features]);
    }
    arrays
}

const DELTA: &str = "apply --rule delta --input in.safetensors --output out.safetensors";

/// Outputs, final state and gradients of the host against the loop.
fn compare(case: &Case, rule: Delta, more: &str, sizes: Sizes, state: bool) {
    let features = rule.map.apply(&vec![0.0; sizes[3]]).len();
    let given = inputs(sizes, features, state);
    write(&case.path("in.safetensors"), &given);
    let what = format!("{more} {sizes:?} state {state}");
    case.ok(&format!("{DELTA} --dtype float64 --grad {more}"));
    let got = read(&case.path("out.safetensors"), Dtype::F64);
    let (o, w) = rule.run(&given);
    assert!(got["o"].distance(&o) < 1e-12, "{what}: o {}", got["o"].distance(&o));
    assert!(got["state.w"].distance(&w) < 1e-12, "{what}: state {}", got["state.w"].distance(&w));

    let mut wrt = vec!["q", "k", "v", "beta"];
    wrt.extend(state.then_some("state.w"));
    let mut names: Vec<String> = wrt.iter().map(|n| format!("grad.{n}")).chain(["o".into(), "state.w".into()]).collect();
    names.sort();
    let mut found: Vec<&String> = got.keys().collect();
    found.sort();
    assert_eq!(found, names.iter().collect::<Vec<_>>(), "{what}");
    for name in wrt {
        let gradient = &got[&format!("grad.{name}")];
        for direction in ["one", "two", "three"] {
            let direction = Array::random(direction, &given[name].shape);
            let at = |by: f64| {
                let mut moved = given.clone();
                moved.insert(name.into(), given[name].moved(by, &direction));
                rule.objective(&moved)
            };
            let step = 1e-5;
            let (expected, got) = ((at(step) - at(-step)) / (2.0 * step), gradient.dot(&direction));
            assert!((expected - got).abs() < 1e-7 * (1.0 + expected.abs()), "{what}: grad.{name}: {got}, not {expected}");
        }
    }
}

#[test]
fn the_delta_rule_agrees_with_a_plain_loop() {
    let case = Case::new();
    for sizes in SIZES {
        for state in [false, true] {
            compare(&case, Delta { map: Map::Identity, effective: false }, "", sizes, state);
        }
    }
}

#[test]
fn signals_are_taken_raw_or_as_they_are_used() {
    let case = Case::new();
    for sizes in SIZES {
        compare(&case, Delta { map: Map::Identity, effective: true }, "--signals effective", sizes, true);
        compare(&case, Delta { map: Map::Identity, effective: false }, "--signals raw", sizes, false);
    }
}

#[test]
fn feature_maps_are_applied_to_keys_and_queries() {
    let case = Case::new();
    for (map, more) in [
        (Map::Unit, "--feature-map identity --set feature_map.normalise=l2"),
        (Map::DpfpSum(1), "--feature-map dpfp --set feature_map.normalise=sum"),
        (Map::DpfpSum(3), "--feature-map dpfp --set feature_map.normalise=sum --set feature_map.nu=3"),
    ] {
        for (sizes, state) in [(SIZES[0], true), (SIZES[1], false)] {
            compare(&case, Delta { map, effective: false }, more, sizes, state);
        }
    }
}

#[test]
fn the_default_is_single_precision_without_gradients() {
    let case = Case::new();
    let given = inputs(SIZES[0], 7, false);
    write(&case.path("in.safetensors"), &given);
    case.ok(DELTA);
    let got = read(&case.path("out.safetensors"), Dtype::F32);
    let (o, w) = Delta { map: Map::Identity, effective: false }.run(&given);
    let (on_o, on_w) = (got["o"].distance(&o), got["state.w"].distance(&w));
    assert!(on_o < 1e-5 && on_w < 1e-5, "{on_o} {on_w}");
    assert!(on_o > 1e-12, "not computed in single precision");
    assert_eq!(got.len(), 2, "{:?}", got.keys());
}

/// A sequence in two parts, the second with the state of the first, is the sequence.
#[test]
fn a_state_goes_on_where_it_stopped() {
    let case = Case::new();
    let [batch, time, heads, ..] = SIZES[0];
    let given = inputs(SIZES[0], 7, false);
    write(&case.path("in.safetensors"), &given);
    case.ok(&format!("{DELTA} --dtype float64"));
    let whole = read(&case.path("out.safetensors"), Dtype::F64);
    let cut = |from: usize, to: usize| -> Arrays {
        let part = |a: &Array| {
            let inner: usize = heads * a.shape[3..].iter().product::<usize>();
            let rows = (0..batch).flat_map(|b| a.data[(b * time + from) * inner..(b * time + to) * inner].to_vec());
            let mut shape = a.shape.clone();
            shape[1] = to - from;
            Array { shape, data: rows.collect() }
        };
        ["q", "k", "v", "beta"].iter().map(|n| (n.to_string(), part(&given[*n]))).collect()
    };
    write(&case.path("in.safetensors"), &cut(0, 2));
    case.ok(&format!("{DELTA} --dtype float64"));
    let first = read(&case.path("out.safetensors"), Dtype::F64);
    let mut second = cut(2, time);
    second.insert("state.w".into(), first["state.w"].clone());
    write(&case.path("in.safetensors"), &second);
    case.ok(&format!("{DELTA} --dtype float64"));
    let second = read(&case.path("out.safetensors"), Dtype::F64);
    assert!(second["state.w"].distance(&whole["state.w"]) < 1e-13);
    assert_eq!(second["o"].shape, [batch, time - 2, heads, 11]);
}

#[test]
fn what_does_not_fit_is_refused_by_name_and_shape() {
    let case = Case::new();
    let good = inputs(SIZES[0], 7, true);
    let with = |name: &str, shape: Option<&[usize]>| -> Arrays {
        let mut arrays = good.clone();
        match shape {
            Some(shape) => _ = arrays.insert(name.into(), Array::random(name, shape)),
            None => _ = arrays.remove(name),
        }
        arrays
    };
    type Misfit<'a> = (&'a str, Option<&'a [usize]>, &'a str, &'a [&'a str]);
    let cases: [Misfit<'_>; 10] = [
        ("beta", None, "", &["`beta`", "[batch, time, 3]"]),
        ("beta", Some(&[2, 5, 2]), "", &["`beta`", "[2, 5, 2]", "[batch, time, 3]"]),
        ("beta", Some(&[2, 5, 3, 1]), "", &["`beta`", "[2, 5, 3, 1]"]),
        ("q", Some(&[2, 5, 3, 6]), "", &["`q`", "[2, 5, 3, 6]", "[batch, time, 3, 7]"]),
        ("v", Some(&[2, 4, 3, 11]), "", &["`v`", "batch or time"]),
        ("v", Some(&[2, 5, 3]), "", &["v"]),
        ("state.w", Some(&[2, 3, 7, 11]), "", &["`state.w`", "[2, 3, 7, 11]", "[2, 3, 11, 7]"]),
        ("grad.o", Some(&[2, 5, 3, 7]), "--grad", &["`grad.o`", "[2, 5, 3, 7]", "[2, 5, 3, 11]"]),
        ("k", None, "--feature-map dpfp", &["`k`"]),
        ("q", Some(&[0, 5, 3, 7]), "", &["batch"]),
    ];
    for (name, shape, more, says) in cases {
        write(&case.path("in.safetensors"), &with(name, shape));
        let said = case.fails(&format!("{DELTA} {more}"), 3);
        says.iter().for_each(|words| assert!(said.contains(words), "{name} {shape:?}: {words}: {said}"));
        assert!(!case.path("out.safetensors").exists(), "{name} {shape:?}: an output is left behind");
    }
    let mut without = with("grad.o", None);
    without.remove("grad.state.w");
    write(&case.path("in.safetensors"), &without);
    assert!(case.fails(&format!("{DELTA} --grad"), 3).contains("grad.o"));
    write(&case.path("in.safetensors"), &good);
    assert!(case.fails(&DELTA.replace("delta", "dellta"), 4).contains("did you mean `delta`?"));
    assert!(case.fails(&format!("{DELTA} --feature-map dpfp --set feature_map.mu=2"), 4).contains("`nu`"));
    assert!(case.fails(&format!("{DELTA} --set feature_map.nu=2"), 2).contains("--feature-map"));
    assert!(case.fails(&format!("{DELTA} --layers 3 --layer 3"), 2).contains("--layer 3"));
    assert!(case.fails(&format!("{DELTA} --max-len 0"), 2).contains("--max-len"));
    assert!(case.fails(&format!("{DELTA} --device cuda:99"), 5).contains("CUDA"));
    assert!(case.fails(&DELTA.replace("in.safe", "nothing.safe"), 3).contains("nothing.safetensors"));
    assert_eq!(case.run(&format!("{DELTA} --dtype float16")).status.code(), Some(2));
    assert!(case.fails(&format!("{DELTA} --device gpu"), 2).contains("cuda:N"));
    assert!(case.fails(&format!("{DELTA} --exec quick"), 2).contains("chunkwise"));
    // The disk is no fault of the data.
    assert!(case.fails(&DELTA.replace("out.safe", "nowhere/out.safe"), 5).contains("nowhere/out.safetensors"));
    for (name, bytes) in [("empty", &b""[..]), ("text", b"hello there"), ("head", b"\xff\0\0\0\0\0\0\0{")] {
        std::fs::write(case.path(&format!("{name}.safetensors")), bytes).unwrap();
        assert!(case.fails(&DELTA.replace("in.safe", &format!("{name}.safe")), 3).contains("cannot be read"), "{name}");
    }
    // The same file without a mistake is accepted.
    case.ok(DELTA);
}
