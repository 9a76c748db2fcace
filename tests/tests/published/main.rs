//! Every update rule and feature map against an independent implementation of the published equation.
//!
//! The implementations here are plain loops in float64, one head of one sequence and one step at a time, written from the papers and
//! not from the plugins. Their gradients come from dual numbers and are exact, so results agree to the last digits.

mod dual;
mod maps;
mod oracle;
mod rules;

use std::cell::RefCell;
use std::collections::BTreeSet;

use fwp_tests::Case;
use fwp_tests::arrays::{Array, Arrays, read, write};
use oracle::{EQUAL, PRIMES, Role, Rule, Sizes, symmetrise};
use safetensors::tensor::Dtype;

/// The largest difference that is let through, relative to the largest number of a tensor.
const TOLERANCE: f64 = 1e-11;

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

/// A test: the host, and the parts that are compared in it.
struct Comparison {
    case: Case,
    parts: &'static [&'static str],
    compared: RefCell<BTreeSet<String>>,
}

impl Comparison {
    fn of(parts: &'static [&'static str]) -> Comparison {
        Comparison { case: Case::new(), parts, compared: RefCell::default() }
    }

    /// A rule with states and of different sizes, and from its own start with equal sizes.
    fn published(&self, rule: impl Fn(&Sizes) -> Rule) {
        self.agrees(&rule(&PRIMES), &PRIMES, Given::All);
        self.agrees(&rule(&EQUAL), &EQUAL, Given::Parameters);
    }

    /// Runs a rule by the host and by its loop, and compares outputs, final states and gradients.
    fn agrees(&self, rule: &Rule, n: &Sizes, given: Given) {
        let case = &self.case;
        self.compared.borrow_mut().insert(rule.subject.clone());
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
}

impl Drop for Comparison {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let parts: BTreeSet<String> = self.parts.iter().map(|p| p.to_string()).collect();
            assert_eq!(*self.compared.borrow(), parts, "what a test compares is what it is listed for");
        }
    }
}

/// Tests of parts, each with the parts' names and their configurations, and the names of all as a constant.
macro_rules! tests {
    ($all:ident: $($name:ident [$($part:literal),*] |$to:ident| $body:block)*) => {
        const $all: &[&str] = &[$($($part),*),*];
        $(
            #[test]
            fn $name() {
                let $to = Comparison::of(&[$($part),*]);
                $body
            }
        )*
    };
}

tests! { RULES:
    additive ["additive"] |to| {
        to.published(|n| rules::additive::additive(n, None));
        to.published(|n| rules::additive::additive(n, Some(1e-6)));
        to.published(|n| rules::additive::additive(n, Some(0.1)));
    }
    fwp_1991 ["fwp-1991"] |to| {
        to.published(|n| rules::additive::fwp_1991(n, "tanh"));
        to.published(|n| rules::additive::fwp_1991(n, "sigmoid"));
    }
    hebbian_decay ["hebbian-decay"] |to| {
        to.published(|n| rules::additive::hebbian_decay(n, 0.95, 0.5));
        to.published(|n| rules::additive::hebbian_decay(n, 0.8, 1.3));
    }
    gated_sum ["gated-sum"] |to| {
        to.published(|n| rules::additive::gated_sum(n, None));
        to.published(|n| rules::additive::gated_sum(n, Some(1e-6)));
    }
    retnet ["retnet"] |to| {
        to.published(rules::decay::retnet);
        to.agrees(&rules::decay::retnet(&PRIMES), &PRIMES, Given::Inputs);
    }
    mamba2 ["mamba2"] |to| {
        to.published(|n| rules::decay::mamba2(n, 1));
        let heads = Sizes { heads: 6, ..PRIMES };
        to.agrees(&rules::decay::mamba2(&heads, 2), &heads, Given::All);
    }
    mlstm ["mlstm"] |to| {
        to.published(|n| rules::decay::mlstm(n, "sigmoid"));
        to.published(|n| rules::decay::mlstm(n, "exp"));
    }
    gla ["gla"] |to| {
        to.published(|n| rules::decay::gla(n, 16.0));
        to.published(|n| rules::decay::gla(n, 1.0));
    }
    hgrn2 ["hgrn2"] |to| {
        to.published(|n| rules::decay::hgrn2(n, 1, 0));
        for layer in 0..3 {
            to.agrees(&rules::decay::hgrn2(&PRIMES, 3, layer), &PRIMES, Given::All);
        }
    }
    rwkv6 ["rwkv6"] |to| {
        to.published(rules::decay::rwkv6);
    }
    gsa ["gsa"] |to| {
        to.published(|n| rules::decay::gsa(n, 13, 8.0));
        to.published(|n| rules::decay::gsa(n, 4, 2.0));
    }
    log_linear ["log-linear"] |to| {
        to.published(|n| rules::decay::log_linear(n, n.time));
        for (time, max_len) in [(17, 17), (16, 16), (11, 4), (3, 1)] {
            let n = Sizes { time, ..PRIMES };
            to.agrees(&rules::decay::log_linear(&n, max_len), &n, Given::All);
        }
    }
    delta ["delta"] |to| {
        to.published(|n| rules::delta::delta(n, 1.0));
        to.published(|n| rules::delta::delta(n, 2.0));
        to.published(|n| rules::delta::delta_normalised(n, 1e-6));
        to.published(|n| rules::delta::delta_normalised(n, 0.1));
    }
    fwm ["fwm"] |to| {
        to.published(|n| rules::delta::fwm(n, true, 1e-5));
        to.published(|n| rules::delta::fwm(n, false, 1e-5));
        to.published(|n| rules::delta::fwm(n, true, 0.1));
    }
    gated_delta ["gated-delta"] |to| {
        to.published(|n| rules::delta::gated_delta(n, "softplus", 1.0));
        to.published(|n| rules::delta::gated_delta(n, "sigmoid", 2.0));
    }
    kda ["kda"] |to| {
        to.published(|n| rules::delta::kda(n, 1.0));
        to.published(|n| rules::delta::kda(n, 2.0));
    }
    gdn2 ["gdn2"] |to| {
        to.published(rules::delta::gdn2);
    }
    comba ["comba"] |to| {
        to.published(rules::delta::comba);
    }
    deltaproduct ["deltaproduct"] |to| {
        to.published(|n| rules::delta::deltaproduct(n, 2, false, 2.0));
        to.published(|n| rules::delta::deltaproduct(n, 3, true, 1.0));
        to.published(|n| rules::delta::deltaproduct(n, 1, true, 2.0));
    }
    rwkv7 ["rwkv7"] |to| {
        to.published(|n| rules::delta::rwkv7(n, 1e-12));
        to.published(|n| rules::delta::rwkv7(n, 0.1));
    }
    longhorn ["longhorn"] |to| {
        to.published(|n| rules::delta::longhorn(n, "vector"));
        to.published(|n| rules::delta::longhorn(n, "scalar"));
    }
    oja ["oja"] |to| {
        to.published(|n| rules::gradient::oja(n, 1e-6));
        to.published(|n| rules::gradient::oja(n, 0.1));
    }
    mesa ["mesa"] |to| {
        to.published(rules::gradient::mesa);
    }
    ttt ["ttt-linear", "ttt-mlp"] |to| {
        let square = Sizes { value: PRIMES.key, ..PRIMES };
        for plugin in ["ttt-linear", "ttt-mlp"] {
            let rule = |n: &Sizes, batch, rate, eps| rules::gradient::ttt(plugin, n, batch, rate, eps);
            to.agrees(&rule(&square, 4, 1.0, 1e-6), &square, Given::All);
            to.agrees(&rule(&square, 1, 0.5, 0.1), &square, Given::Parameters);
            to.agrees(&rule(&EQUAL, 16, 1.0, 1e-6), &EQUAL, Given::Parameters);
        }
    }
    titans ["titans"] |to| {
        to.published(|n| rules::gradient::titans(n, 1, 4, 1.0));
        to.published(|n| rules::gradient::titans(n, 2, 4, 0.2));
        to.published(|n| rules::gradient::titans(n, 2, 3, 0.1));
    }
    delta_rnn ["delta-rnn"] |to| {
        to.published(rules::recurrent::delta_rnn);
    }
    delta_lstm ["delta-lstm"] |to| {
        to.published(rules::recurrent::delta_lstm);
    }
    srwm ["srwm"] |to| {
        to.published(|n| rules::recurrent::srwm(n, true));
        to.published(|n| rules::recurrent::srwm(n, false));
    }
}

tests! { MAPS:
    elementwise_maps ["identity", "relu", "silu", "tanh", "softmax"] |to| {
        for name in ["identity", "relu", "silu", "tanh", "softmax"] {
            to.published(|n| maps::elementwise(n, name));
        }
    }
    normalised_features ["elu+1"] |to| {
        to.published(|n| maps::elementwise(n, "elu+1"));
        for normalise in [maps::Normalise::Sum(1e-6), maps::Normalise::Sum(0.1), maps::Normalise::L2(1e-6), maps::Normalise::L2(0.1)] {
            to.published(|n| maps::normalised(n, normalise));
        }
    }
    dpfp ["dpfp"] |to| {
        for nu in [1, 2, 3] {
            to.published(|n| maps::dpfp(n, nu));
        }
    }
    favor ["favor+"] |to| {
        to.published(|n| maps::favor(n, 5));
    }
    random_fourier_features ["rfa"] |to| {
        to.published(|n| maps::rfa(n, 6, true));
        to.published(|n| maps::rfa(n, 6, false));
    }
    taylor_2 ["taylor2"] |to| {
        to.published(maps::taylor);
    }
    rebased ["rebased"] |to| {
        to.published(maps::rebased);
    }
    hedgehog ["hedgehog"] |to| {
        to.published(|n| maps::hedgehog(n, false, true));
        to.published(|n| maps::hedgehog(n, true, false));
    }
    t2r ["t2r"] |to| {
        to.published(|n| maps::t2r(n, None, true, true));
        to.published(|n| maps::t2r(n, Some(9), false, false));
    }
}

/// Decays and write strengths as other frameworks hold them, after their activation.
#[test]
fn signals_are_taken_as_they_are_used() {
    let to = Comparison::of(&["delta", "gated-delta", "gdn2", "gla", "kda", "mamba2", "rwkv6", "rwkv7"]);
    to.published(|n| rules::delta::delta(n, 1.0).effective(&["beta"], &[]));
    to.published(|n| rules::delta::gated_delta(n, "softplus", 1.0).effective(&["beta", "alpha"], &["a_log", "dt_bias"]));
    to.published(|n| rules::delta::gdn2(n).effective(&["a", "erase", "admit"], &["a_log", "dt_bias"]));
    to.published(|n| rules::decay::gla(n, 16.0).effective(&["a"], &[]));
    to.published(|n| rules::delta::kda(n, 2.0).effective(&["beta", "a"], &["a_log", "dt_bias"]));
    to.published(|n| rules::decay::mamba2(n, 1).effective(&["dt"], &["dt_bias"]));
    to.published(|n| rules::decay::rwkv6(n).effective(&["decay"], &[]));
    to.published(|n| rules::delta::rwkv7(n, 1e-12).effective(&["a", "decay"], &[]));
}

/// No rule and no map of the repository is left out.
#[test]
fn every_part_has_an_independent_implementation() {
    let listed: serde_json::Value = serde_json::from_str(&Case::new().ok("plugins list --json")).expect("json");
    let parts = |kind: &str| -> BTreeSet<String> {
        let parts = listed["parts"].as_array().expect("a list").iter().filter(|p| p["kind"] == kind);
        parts.map(|p| p["name"].as_str().expect("a name").to_string()).collect()
    };
    let compared = |names: &[&str]| -> BTreeSet<String> { names.iter().map(|n| n.to_string()).collect() };
    assert_eq!(parts("update-rule"), compared(RULES));
    assert_eq!(parts("feature-map"), compared(MAPS));
}
