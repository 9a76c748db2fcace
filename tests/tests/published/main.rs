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
use oracle::{EQUAL, PRIMES, Role, Rule, Sizes};
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
    let expected = rule.run(n, &arrays);
    let names = |arrays: &Arrays| {
        let mut names: Vec<String> = arrays.keys().cloned().collect();
        names.sort();
        names
    };
    assert_eq!(names(&found), names(&expected), "{what}");
    let mut worst = (0.0, String::new());
    for name in names(&expected) {
        let (found, expected) = (&found[&name], &expected[&name]);
        assert_eq!(found.shape, expected.shape, "{what}: {name}");
        let largest = expected.largest();
        assert!(largest.is_finite(), "{what}: {name}: the loop gives {largest}");
        let difference = found.distance(expected) * largest.max(1e-300) / largest.max(SMALL);
        if difference > worst.0 {
            worst = (difference, name);
        }
    }
    println!("{:.0e} {} {what}", worst.0, worst.1);
    assert!(worst.0 <= TOLERANCE, "{what}: {} differs by {:e}", worst.1, worst.0);
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
    gla: |case| {
        published(case, |n| rules::decay::gla(n, 16.0));
        published(case, |n| rules::decay::gla(n, 1.0));
    }
    delta: |case| {
        published(case, |n| rules::delta::delta(n, 1.0));
    }
    gated_delta: |case| {
        published(case, |n| rules::delta::gated_delta(n, "softplus", 1.0));
        published(case, |n| rules::delta::gated_delta(n, "sigmoid", 2.0));
    }
    delta_rnn: |case| {
        published(case, rules::recurrent::delta_rnn);
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
