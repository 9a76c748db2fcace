//! What `bench` counts and what `check` draws.

mod support;

use fwp_engine::bench::operations;
use fwp_engine::exec::value::Precision;
use fwp_engine::trial::{Subject, Wanted};
use fwp_sdk::Part;
use fwp_sdk::build::Dims;
use serde_json::json;
use tch::{Device, Kind};

/// The delta rule for keys of 5 and values of 3.
fn delta() -> Subject {
    let dims = Dims { heads: 2, key_raw: 5, key: 5, value: 3, ..Dims::ONE };
    let rule = support::rule(Part::update_rule::<fwp_rule_delta::Delta>(), "delta", json!({}), dims);
    Subject::new("test", &rule, &support::identity(5), 2, 5, 3, true).unwrap()
}

#[test]
fn operations_are_those_of_the_step_as_it_is_written() {
    // Two reads of 2 * 15; difference 3, product with beta and sum 15 each, outer product 15, sigmoid 1.
    assert_eq!(operations::of_step(&delta()).unwrap(), 2.0 * 30.0 + 3.0 + 3.0 * 15.0 + 1.0);
}

#[test]
fn the_same_seed_gives_the_same_numbers() {
    let subject = delta();
    let wanted = Wanted { batch: 2, steps: 50, states: true, masks: true };
    let (a, b, c) = (subject.draw(wanted, 1).unwrap(), subject.draw(wanted, 1).unwrap(), subject.draw(wanted, 2).unwrap());
    for (((name, x), (_, y)), (_, z)) in
        a.inputs.iter().chain(&a.states).zip(b.inputs.iter().chain(&b.states)).zip(c.inputs.iter().chain(&c.states))
    {
        assert_eq!(x, y, "{name}");
        assert_ne!(x, z, "{name}");
    }
    assert_eq!(a.inputs[1].1.size(), [2, 50, 2, 5]);
    assert_eq!(a.states[0].1.size(), [2, 2, 3, 5]);
    let share = |m: &Option<tch::Tensor>| m.as_ref().unwrap().to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
    assert!(share(&a.reset) > 0.0 && share(&a.reset) < 0.3 && share(&a.write) > 0.5 && share(&a.write) < 1.0);
    // Keys have length one, so that the transition of an erasing rule is no expansion.
    let length = a.inputs[1].1.square().sum_dim_intlist([-1i64].as_slice(), false, Kind::Double);
    assert!((length - 1.0).abs().max().double_value(&[]) < 1e-12);
}

#[test]
fn gradients_are_those_of_everything_that_goes_in() {
    let subject = delta();
    let data = subject.draw(Wanted { batch: 1, steps: 3, states: true, masks: false }, 1).unwrap();
    let double = Precision { kind: Kind::Double, device: Device::Cpu };
    let plain = subject.run("reference", double, &data, None).unwrap();
    let names: Vec<&str> = plain.values.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(names, ["o", "state.w"]);
    assert!(plain.gradients.is_empty());
    let weights = subject.weights(&plain, 1).unwrap();
    let got = subject.run("reference", double, &data, Some(&weights)).unwrap();
    let names: Vec<&str> = got.gradients.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(names, ["grad.state.w", "grad.q", "grad.k", "grad.v", "grad.beta"]);
    assert!(got.gradients.iter().all(|(_, g)| g.abs().max().double_value(&[]) > 0.0));
    // Two runs do not share anything.
    assert!(data.inputs.iter().all(|(_, t)| !t.requires_grad()));
}
