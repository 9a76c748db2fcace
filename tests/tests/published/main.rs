//! Every update rule and feature map against an independent implementation of the published equation.
//!
//! The implementations here are plain loops in float64, one head of one sequence and one step at a time, written from the papers and
//! not from the plugins. Their gradients come from dual numbers and are exact, so results agree to the last digits.

mod dual;
mod maps;
mod oracle;
mod rules;

use fwp_tests::Case;
use fwp_tests::arrays::{Array, Arrays, read, write};
use oracle::{EQUAL, PRIMES, Role, Rule, Sizes, symmetrise};
use safetensors::tensor::Dtype;

/// The largest difference that is let through, relative to the largest number of a tensor.
const TOLERANCE: f64 = 1e-9;

/// A tensor whose numbers are all below this is compared as if this were its largest.
const SMALL: f64 = 1e-3;

/// What the file holds of the rule's states and parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Given {
    /// All.
    All,
    /// No states: they start as the rule says.
    Parameters,
    /// Only inputs: parameters have the initial values that the rule says.
    Inputs,
}

fn file(rule: &Rule, n: &Sizes, given: Given) -> Arrays {
    let is_given = |role: Role| match role {
        Role::Input { .. } => true,
        Role::Parameter | Role::Shared => given != Given::Inputs,
        Role::State => given == Given::All,
    };
    let tensors = rule.tensors.iter().filter(|t| is_given(t.role) && !rule.hidden.contains(&t.key()));
    let mut arrays: Arrays = tensors.map(|t| (t.key(), t.random(n))).collect();
    for (name, shape) in rule.outputs(n) {
        let name = format!("grad.{name}");
        arrays.insert(name.clone(), Array::random(&name, &shape));
    }
    arrays
}

/// Runs a rule by the host and by its loop, and compares outputs, final states and gradients.
fn agrees(case: &Case, rule: &Rule, n: &Sizes, given: Given) {
    let what = format!("{}{} {n:?}, given: {given:?}", rule.plugin, rule.options);
    let arrays = file(rule, n, given);
    write(&case.path("in.safetensors"), &arrays);
    case.ok(&format!(
        "apply --rule {} --input in.safetensors --output out.safetensors --dtype float64 --grad --device cpu {}",
        rule.plugin, rule.options
    ));
    let mut found = read(&case.path("out.safetensors"), Dtype::F64);
    rule.hidden.iter().for_each(|name| assert!(found.remove(name).is_some(), "{what}: {name}"));
    let mut expected = rule.run(n, &arrays);
    for tensor in rule.tensors.iter().filter(|t| t.symmetric) {
        let name = format!("grad.{}", tensor.key());
        found.get_mut(&name).into_iter().chain(expected.get_mut(&name)).for_each(symmetrise);
    }
    let names = |arrays: &Arrays| {
        let mut names: Vec<String> = arrays.keys().cloned().collect();
        names.sort();
        names
    };
    assert_eq!(names(&found), names(&expected), "{what}");
    let mut worst: f64 = 0.0;
    let mut differences = String::new();
    for name in names(&expected) {
        let (found, expected) = (&found[&name], &expected[&name]);
        assert_eq!(found.shape, expected.shape, "{what}: {name}");
        let largest = expected.largest();
        assert!(largest.is_finite(), "{what}: {name}: the loop gives {largest}");
        let difference = found.distance(expected) * largest.max(1e-300) / largest.max(SMALL);
        worst = worst.max(difference);
        differences += &format!(" {name} {difference:.0e}");
    }
    println!("{worst:.0e} {what}");
    assert!(worst <= TOLERANCE, "{what}: differences from the loop:{differences}");
}

/// A rule with states and of different sizes, and from its own start with equal sizes.
fn published(case: &Case, rule: impl Fn(&Sizes) -> Rule) {
    agrees(case, &rule(&PRIMES), &PRIMES, Given::All);
    agrees(case, &rule(&EQUAL), &EQUAL, Given::Parameters);
}

/// A test a rule or map: its configurations.
macro_rules! tests {
    ($($name:ident: |$case:ident| $body:block)*) => {$(
        #[test]
        fn $name() {
            let $case = &Case::new();
            $body
        }
    )*};
}

tests! {
    additive: |case| {
        published(case, |n| rules::additive::additive(n, None));
        published(case, |n| rules::additive::additive(n, Some(1e-6)));
        published(case, |n| rules::additive::additive(n, Some(0.1)));
    }
    fwp_1991: |case| {
        published(case, |n| rules::additive::fwp_1991(n, "tanh"));
        published(case, |n| rules::additive::fwp_1991(n, "sigmoid"));
    }
    hebbian_decay: |case| {
        published(case, |n| rules::additive::hebbian_decay(n, 0.95, 0.5));
        published(case, |n| rules::additive::hebbian_decay(n, 0.8, 1.3));
    }
    gated_sum: |case| {
        published(case, |n| rules::additive::gated_sum(n, None));
        published(case, |n| rules::additive::gated_sum(n, Some(1e-6)));
    }
    retnet: |case| {
        published(case, rules::decay::retnet);
        agrees(case, &rules::decay::retnet(&PRIMES), &PRIMES, Given::Inputs);
    }
    mamba2: |case| {
        published(case, |n| rules::decay::mamba2(n, 1));
        let heads = Sizes { heads: 6, ..PRIMES };
        agrees(case, &rules::decay::mamba2(&heads, 2), &heads, Given::All);
    }
    mlstm: |case| {
        published(case, |n| rules::decay::mlstm(n, "sigmoid"));
        published(case, |n| rules::decay::mlstm(n, "exp"));
    }
    gla: |case| {
        published(case, |n| rules::decay::gla(n, 16.0));
        published(case, |n| rules::decay::gla(n, 1.0));
    }
    hgrn2: |case| {
        published(case, |n| rules::decay::hgrn2(n, 1, 0));
        for layer in 0..3 {
            agrees(case, &rules::decay::hgrn2(&PRIMES, 3, layer), &PRIMES, Given::All);
        }
    }
    rwkv6: |case| {
        published(case, rules::decay::rwkv6);
    }
    gsa: |case| {
        published(case, |n| rules::decay::gsa(n, 13, 8.0));
        published(case, |n| rules::decay::gsa(n, 4, 2.0));
    }
    log_linear: |case| {
        published(case, |n| rules::decay::log_linear(n, n.time));
        for (time, max_len) in [(17, 17), (16, 16), (11, 4), (3, 1)] {
            let n = Sizes { time, ..PRIMES };
            agrees(case, &rules::decay::log_linear(&n, max_len), &n, Given::All);
        }
    }
    delta: |case| {
        published(case, |n| rules::delta::delta(n, 1.0));
        published(case, |n| rules::delta::delta(n, 2.0));
        published(case, |n| rules::delta::delta_normalised(n, 1e-6));
        published(case, |n| rules::delta::delta_normalised(n, 0.1));
    }
    fwm: |case| {
        published(case, |n| rules::delta::fwm(n, true, 1e-5));
        published(case, |n| rules::delta::fwm(n, false, 1e-5));
        published(case, |n| rules::delta::fwm(n, true, 0.1));
    }
    gated_delta: |case| {
        published(case, |n| rules::delta::gated_delta(n, "softplus", 1.0));
        published(case, |n| rules::delta::gated_delta(n, "sigmoid", 2.0));
    }
    kda: |case| {
        published(case, |n| rules::delta::kda(n, 1.0));
        published(case, |n| rules::delta::kda(n, 2.0));
    }
    gdn2: |case| {
        published(case, rules::delta::gdn2);
    }
    comba: |case| {
        published(case, rules::delta::comba);
    }
    deltaproduct: |case| {
        published(case, |n| rules::delta::deltaproduct(n, 2, false, 2.0));
        published(case, |n| rules::delta::deltaproduct(n, 3, true, 1.0));
        published(case, |n| rules::delta::deltaproduct(n, 1, true, 2.0));
    }
    rwkv7: |case| {
        published(case, |n| rules::delta::rwkv7(n, 1e-12));
        published(case, |n| rules::delta::rwkv7(n, 0.1));
    }
    longhorn: |case| {
        published(case, |n| rules::delta::longhorn(n, "vector"));
        published(case, |n| rules::delta::longhorn(n, "scalar"));
    }
    oja: |case| {
        published(case, |n| rules::gradient::oja(n, 1e-6));
        published(case, |n| rules::gradient::oja(n, 0.1));
    }
    mesa: |case| {
        published(case, rules::gradient::mesa);
    }
    ttt: |case| {
        let square = Sizes { value: PRIMES.key, ..PRIMES };
        for plugin in ["ttt-linear", "ttt-mlp"] {
            let rule = |n: &Sizes, batch, rate, eps| rules::gradient::ttt(plugin, n, batch, rate, eps);
            agrees(case, &rule(&square, 4, 1.0, 1e-6), &square, Given::All);
            agrees(case, &rule(&square, 1, 0.5, 0.1), &square, Given::Parameters);
            agrees(case, &rule(&EQUAL, 16, 1.0, 1e-6), &EQUAL, Given::Parameters);
        }
    }
    titans: |case| {
        published(case, |n| rules::gradient::titans(n, 1, 4, 1.0));
        published(case, |n| rules::gradient::titans(n, 2, 4, 0.2));
        published(case, |n| rules::gradient::titans(n, 2, 3, 0.1));
    }
    delta_rnn: |case| {
        published(case, rules::recurrent::delta_rnn);
    }
    delta_lstm: |case| {
        published(case, rules::recurrent::delta_lstm);
    }
    srwm: |case| {
        published(case, |n| rules::recurrent::srwm(n, true));
        published(case, |n| rules::recurrent::srwm(n, false));
    }
}

tests! {
    elementwise_maps: |case| {
        for name in ["identity", "elu+1", "relu", "silu", "tanh", "softmax"] {
            published(case, |n| maps::elementwise(n, name));
        }
    }
    normalised_features: |case| {
        for normalise in [maps::Normalise::Sum(1e-6), maps::Normalise::Sum(0.1), maps::Normalise::L2(1e-6), maps::Normalise::L2(0.1)] {
            published(case, |n| maps::normalised(n, normalise));
        }
    }
    dpfp: |case| {
        for nu in [1, 2, 3] {
            published(case, |n| maps::dpfp(n, nu));
        }
    }
    favor: |case| {
        published(case, |n| maps::favor(n, 5));
    }
    random_fourier_features: |case| {
        published(case, |n| maps::rfa(n, 6, true));
        published(case, |n| maps::rfa(n, 6, false));
    }
    taylor_2: |case| {
        published(case, maps::taylor);
    }
    rebased: |case| {
        published(case, maps::rebased);
    }
    hedgehog: |case| {
        published(case, |n| maps::hedgehog(n, false, true));
        published(case, |n| maps::hedgehog(n, true, false));
    }
    t2r: |case| {
        published(case, |n| maps::t2r(n, None, true, true));
        published(case, |n| maps::t2r(n, Some(9), false, false));
    }
}
