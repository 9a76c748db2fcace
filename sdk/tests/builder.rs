//! A mistake in a description is reported with the plugin's own line, whatever the method it passes through.

mod support;

use fwp_sdk::prelude::*;
use fwp_sdk::program::{Op, Program, SlotInterface};
use fwp_sdk::serde_json::json;
use fwp_sdk::testing;
use support::parts;

/// A mistake: how it is made, where, and what is said of it.
struct Case<F> {
    make: F,
    line: u32,
    message: &'static str,
}

/// Every mistake stands on one line together with its macro.
macro_rules! case {
    ($make:expr, $message:literal) => {
        Case { make: $make, line: line!(), message: $message }
    };
}

fn check(answer: Result<Program, String>, line: u32, wanted: &str) {
    let message = answer.map(|p| p.name).expect_err(wanted);
    let place = format!("{}:{line}:", file!());
    assert!(message.starts_with(&place), "expected {place} in: {message}");
    assert!(message.contains(wanted), "expected `{wanted}` in: {message}");
    assert!(!message.contains("panicked"), "{message}");
}

const DIMS: Dims = Dims { heads: 4, key_raw: 3, key: 6, value: 5, ..Dims::ONE };

macro_rules! wrong {
    ($name:ident) => {
        config! {
            /// A part with one mistake.
            pub struct $name {
                /// Which.
                case: usize = 0,
            }
        }
    };
}

// ---- steps

wrong!(WrongStep);

impl UpdateRule for WrongStep {
    const NAME: &'static str = "wrong";
    const CITATION: &'static str = "none";
    const OBJECTIVE: &'static str = "none";

    fn signature(&self, dims: Dims) -> Signature {
        Signature::new(dims)
            .signal("beta", [])
            .state("w", [dims.value, dims.key], StateStart::Zeros)
            .parameter("p", [dims.key], Init::zeros())
            .extra("e", [dims.value])
    }

    fn step(&self, s: &mut Step) {
        (STEPS[self.case].make)(s);
        let (_, k, v) = s.query_key_value();
        let w = s.state("w") + outer(&v, k);
        s.output(v);
        s.extra("e", s.input("v"));
        s.set_state("w", w);
    }
}

type StepCase = Case<fn(&Step)>;

#[rustfmt::skip]
const STEPS: &[StepCase] = &[
    case!(|s| drop(s.input("k") + s.input("v")), "`add`: [6] and [5] have different shapes, and only a scalar broadcasts"),
    case!(|s| drop(s.input("k") - &s.input("v")), "`sub`: [6] and [5]"),
    case!(|s| drop(&s.input("k") * s.input("v")), "`mul`: [6] and [5]"),
    case!(|s| drop(&s.input("k") / &s.input("v")), "`div`: [6] and [5]"),
    case!(|s| drop(-s.index()), "`neg`: expected floats, got int[]"),
    case!(|s| drop(2.0 * s.index()), "`mul`: [] and int[] are of different kinds"),
    case!(|s| drop(s.index() + 0.5), "`add`: int[] and [] are of different kinds"),
    case!(|s| drop(s.state("w").matvec(s.input("v"))), "`matvec`: expected a matrix [m, n] and a vector [n], got [5, 6] and [5]"),
    case!(|s| drop(s.state("w").matvec_t(s.input("k"))), "`matvec_t`: expected a matrix [m, n] and a vector [m]"),
    case!(|s| drop(s.state("w").matmul(s.state("w"))), "`matmul`: expected matrices"),
    case!(|s| drop(outer(s.state("w"), s.input("k"))), "`outer`: expected two vectors, got [5, 6] and [6]"),
    case!(|s| drop(s.input("k").dot(s.input("v"))), "`dot`: expected two values of one shape"),
    case!(|s| drop(s.input("k").max(s.input("v"))), "`max`: [6] and [5]"),
    case!(|s| drop(s.input("k").less(s.index())), "`less`: [6] and int[] are of different kinds"),
    case!(|s| drop(s.input("k").greater(s.input("v"))), "`less`: [5] and [6]"),
    case!(|s| drop(s.input("k").not()), "`not`: expected a mask, got [6]"),
    case!(|s| drop(s.input("k").select(1, 0)), "`select`: expected a mask as the first operand, got [6]"),
    case!(|s| drop(s.input("k").div_or(s.input("v"), 0)), "`div_or`: [6] and [5]"),
    case!(|s| drop(s.input("k").reshape(&[4])), "`reshape`: [6] has 6 elements, the shape [4] has 4"),
    case!(|s| drop(s.input("k").slice(0, 4, 3)), "`slice`: no 3 elements from 4 on axis 0 of [6]"),
    case!(|s| drop(s.input("k").split(0, &[2, 3])), "`split`: the sizes [2, 3] do not add up to axis 0 of [6]"),
    case!(|s| drop(s.input("k").split(1, &[6])), "`slice`: [6] has no axis 1"),
    case!(|s| drop(s.input("k").at(6)), "`slice`: no 1 elements from 6"),
    case!(|s| drop(s.signal("beta").at(0)), "`slice`: [] has no axis 0"),
    case!(|s| drop(s.input("k").transpose()), "`transpose`: expected an order of the 1 axes of [6]"),
    case!(|s| drop(s.input("k").expand(3, 2)), "`expand`: no place for an axis 3"),
    case!(|s| drop(s.input("k").roll(1, 1)), "`roll`: [6] has no axis 1"),
    case!(|s| drop(s.input("k").one_hot(3)), "`one_hot`: expected integers, got [6]"),
    case!(|s| drop(s.input("k").sum_over_axes(&[1])), "`sum`: expected different axes of [6], got [1]"),
    case!(|s| drop(s.signal("beta").softmax()), "a scalar has no last axis"),
    case!(|s| drop(s.signal("beta").rms_norm(1e-6)), "`rms_norm`: a scalar has no last axis"),
    case!(|s| drop(s.input("k").layer_norm(f64::NAN)), "`layer_norm`: the epsilon is a finite number from 0, not NaN"),
    case!(|s| drop(s.input("k").scale_columns(s.input("v"))), "expected a matrix, got [6]"),
    case!(|s| drop(s.state("w").scale_columns(s.input("v"))), "`mul`: [5, 6] and [5, 5]"),
    case!(|s| drop(s.state("w").scale_rows(s.input("k"))), "`mul`: [5, 6] and [6, 6]"),
    case!(|s| drop(s.state("w").gradient(s.state("w"))), "`gradient`: expected a scalar to differentiate, got [5, 6]"),
    case!(|s| drop(s.signal("beta").gradients(&[&s.index()])), "`gradient`: expected floats, got int[]"),
    case!(|s| drop(s.state("w").solve_spd(s.input("k"), 9, 0.0)), "`solve_spd`: expected a matrix [n, n]"),
    case!(|s| drop(s.input("k").dropout(1.0)), "`dropout`: a dropout probability is in [0, 1), not 1"),
    case!(|s| drop(s.input("k").shift(1)), "`shift`: [6] has no sequence axis"),
    case!(|s| drop(s.phi(s.signal("beta"))), "`phi`: a scalar has no features"),
    case!(|s| drop(s.eye(0)), "`eye`: a tensor of shape [0, 0] has an empty axis"),
    case!(|s| drop(s.table(&[2], vec![1.0])), "`table`: a table of shape [2] needs 2 values, got 1"),
    case!(|_| drop(concat(0, &[])), "nothing to concatenate"),
    case!(|s| drop(concat(0, &[&s.input("k"), &s.state("w")])), "`concat`: [6] and [5, 6] differ outside of axis 0"),
    case!(|s| drop(stack(&[&s.input("k"), &s.input("v")])), "`concat`: [1, 6] and [1, 5] differ"),
    case!(|_| drop(stack(&[])), "nothing to stack"),
    case!(|s| drop(s.input("key")), "no input `key` was declared; declared are: q, k, v, beta"),
    case!(|s| drop(s.signal("gate")), "no signal `gate` was declared; declared are: q, k, v, beta"),
    case!(|s| drop(s.state("W")), "no state `W` was declared; declared are: w"),
    case!(|s| drop(s.parameter("a")), "no parameter `a` was declared; declared are: p"),
    case!(|s| s.set_state("z", s.input("k")), "no state `z` was declared; declared are: w"),
    case!(|s| s.set_state("w", s.input("k")), "state `w` is [5, 6], the new value is [6]"),
    case!(|s| s.output(s.input("k")), "the output is declared as [5], the value is [6]"),
    case!(|s| s.output(s.index()), "the output is declared as [5], the value is int[]"),
    case!(|s| s.extra("f", s.input("k")), "no extra output `f` was declared; say `.extra(\"f\", ..)` in the signature"),
    case!(|s| s.extra("e", s.input("k")), "extra output `e` is declared as [5], the value is [6]"),
    case!(|s| { s.output(s.input("v")); s.output(s.input("v")) }, "the output is set twice"),
    case!(|s| { s.set_state("w", s.state("w")); s.set_state("w", s.state("w")) }, "state `w` is set twice"),
    case!(|s| { s.extra("e", s.input("v")); s.extra("e", s.input("v")) }, "extra output `e` is set twice"),
    case!(|s| drop(s.repeat(2, &[&s.input("k")], &[], |k, _| vec![&k[0] + s.input("k")])), "`add`: this value belongs to another function: hand it over"),
    case!(|s| drop(s.repeat(2, &[&s.input("k")], &[], |_, _| vec![s.input("k")])), "belongs to another function"),
    case!(|s| drop(s.repeat(2, &[&s.input("k")], &[], |k, _| vec![k[0].sum()])), "`loop`: every repetition takes over ([6]) and must return that, it returns ([])"),
    case!(|s| drop(s.repeat(2, &[&s.input("k")], &[], |_, _| vec![])), "must return that, it returns ()"),
    case!(|s| drop(s.repeat(0, &[&s.input("k")], &[], |k, _| k.to_vec())), "repeated at least once"),
    case!(|s| drop(s.repeat(2, &[&s.input("k")], &[], |k, _| { s.output(k[0].slice(0, 0, 5)); vec![k[0].clone()] })), "the output is set to a value of another function"),
    case!(|_| refuse("not for these sizes"), "not for these sizes"),
];

#[test]
fn mistakes_in_a_step_are_told_with_their_line() {
    for (case, c) in STEPS.iter().enumerate() {
        check(testing::rule::<WrongStep>(json!({ "case": case }), DIMS), c.line, c.message);
    }
}

// ---- signatures

wrong!(WrongSignature);

impl UpdateRule for WrongSignature {
    const NAME: &'static str = "wrong";
    const CITATION: &'static str = "none";
    const OBJECTIVE: &'static str = "none";

    fn signature(&self, dims: Dims) -> Signature {
        (SIGNATURES[self.case].make)(dims)
    }

    fn step(&self, s: &mut Step) {
        if self.case == 0 {
            s.output(s.input("v"));
        }
    }
}

type SignatureCase = Case<fn(Dims) -> Signature>;

#[rustfmt::skip]
const SIGNATURES: &[SignatureCase] = &[
    // The first sets its output and forgets its state.
    case!(|d| Signature::new(d).state("w", [2], StateStart::Zeros), "state `w` is never set: `step` must call `s.set_state(\"w\", ..)`"),
    case!(|d| Signature::new(d), "the output is never set: `step` must call `s.output(..)`"),
    case!(|d| Signature::new(d).signal("k", []), "`k` cannot be declared: it is declared already at"),
    case!(|d| Signature::new(d).extra("e", []).extra("e", []), "`e` cannot be declared: it is declared already at"),
    case!(|d| Signature::new(d).state("w", [2], StateStart::Trained(Init::zeros())).parameter("w_0", [], Init::zeros()), "`w_0` cannot be declared: it is declared already"),
    case!(|d| Signature::new(d).signal("write", []), "`write` cannot be declared: the host uses this name itself"),
    case!(|d| Signature::new(d).signal("a b", []), "`a b` cannot be declared: a name is made of letters, digits and `_`"),
    case!(|d| Signature::new(d).signal("", []), "`` cannot be declared"),
    case!(|d| Signature::new(d).state("w", [2], StateStart::Zeros).raw(), "this must follow the declaration of an input"),
    case!(|d| Signature::new(d).held(2), "`held` follows the declaration of a state"),
    case!(|d| Signature::new(d).state("w", [2], StateStart::Zeros).held(0), "takes at least 1 step"),
    case!(|d| Signature::new(d).constant(), "this must follow the declaration of a parameter"),
    case!(|d| Signature::new(d).extra("e", []).count(2), "this must follow the declaration of an input"),
    case!(|d| Signature::new(d).count(0), "at least once a token, not 0 times"),
    case!(|d| Signature::new(d).heads(3), "3 does not divide the 4 heads"),
    case!(|d| Signature::new(d).heads(0), "0 does not divide the 4 heads"),
    case!(|d| Signature::new(d).key("k2", [d.key_raw]), "input `k2` comes from the feature map, so its last axis has `dims.key` = 6 features, not [3]; say `.raw()`"),
    case!(|d| Signature::new(d).state("w", [0], StateStart::Zeros), "`state`: a tensor of shape [0] has an empty axis"),
    case!(|d| Signature::new(d).parameter("p", [2, 3], Init::scaled_identity(1.0)), "a scaled identity is for a square matrix, not for [2, 3]"),
    case!(|d| Signature::new(d).parameter("p", [2], Init::xavier_uniform()), "a Xavier initialiser is for a matrix, not for [2]"),
    case!(|d| Signature::new(d).parameter("p", [2], Init::program(|r, _| r.normal(&[3]))), "the initialiser gives [3], the parameter is [2]"),
    case!(|d| Signature::new(d).parameter("p", [], Init::program(|r, _| r.head())), "the initialiser gives int[], the parameter is []"),
    case!(|d| Signature::new(d).parameter("p", [2], Init::program(|r, _| r.normal(&[2]) + r.normal(&[3]))), "`add`: [2] and [3]"),
];

#[test]
fn mistakes_in_a_signature_are_told_with_their_line() {
    for (case, c) in SIGNATURES.iter().enumerate() {
        check(testing::rule::<WrongSignature>(json!({ "case": case }), DIMS), c.line, c.message);
    }
}

// ---- maps

wrong!(WrongMap);

impl FeatureMap for WrongMap {
    const NAME: &'static str = "wrong";
    const CITATION: &'static str = "none";
    fn features(&self, dim: usize) -> usize {
        dim
    }
    fn apply(&self, map: &Map) -> Expr {
        (MAPS[self.case].make)(map)
    }
}

type MapCase = Case<fn(&Map) -> Expr>;

#[rustfmt::skip]
const MAPS: &[MapCase] = &[
    case!(|m| concat(0, &[&m.input(), &m.input()]), "the map promises [3] for a key of 3 elements (`features`) and gives [6]"),
    case!(|m| m.index(), "and gives int[]"),
    case!(|m| m.random("r", &[2, 3], Init::normal(1.0), true).matvec_t(m.input()), "`matvec_t`: expected a matrix [m, n] and a vector [m], got [2, 3] and [3]"),
];

#[test]
fn mistakes_in_a_map_are_told_with_their_line() {
    for (case, c) in MAPS.iter().enumerate() {
        check(testing::map::<WrongMap>(json!({ "case": case, "normalise": "l2" }), 3), c.line, c.message);
    }
}

// ---- nets

wrong!(WrongNet);

impl SlowNet for WrongNet {
    const NAME: &'static str = "wrong";
    const CITATION: &'static str = "none";
    fn memory(&self, _task: &TaskIo, _slot: &str) -> Memory {
        Memory { heads: 2, key: 3, value: 5 }
    }
    fn forward(&self, net: &mut Net) {
        let x = net.embedding("e", &net.input("tokens"), 11, 7, Init::normal(1.0));
        (NETS[self.case].make)(net, &x);
        net.output("logits", &x);
    }
}

type NetCase = Case<fn(&Net, &Expr)>;

#[rustfmt::skip]
const NETS: &[NetCase] = &[
    case!(|n, _| drop(n.input("words")), "the task has no input `words`; it has tokens. This slow net does not serve this task"),
    case!(|n, _| assert_eq!(n.task().output("loss").dim(), 0), "the task has no output `loss`; it has logits"),
    case!(|n, _| assert_eq!(n.task().output("logits").vocab(), 0), "`logits` holds vectors, not symbols"),
    case!(|n, _| assert_eq!(n.task().input("tokens").dim(), 0), "`tokens` holds symbols, not vectors"),
    case!(|n, x| n.output("logits", &x.slice(0, 0, 3)), "the task's output `logits` is [time, 7], the value is [time, 3]"),
    case!(|n, x| { n.output("logits", x); n.output("logits", x) }, "`logits` is set twice"),
    case!(|n, x| drop(n.linear("e", x, 3, Init::zeros())), "parameter `e.weight` is declared twice, with shapes [11, 7] and [3, 7]"),
    case!(|n, x| drop(n.linear("e", x, 11, Init::zeros())), "parameter `e.weight` is declared twice, with different initialisers"),
    case!(|n, _| drop(n.fixed("e.weight", &[11, 7], Init::normal(1.0))), "declared twice, with different scopes or ways to train it"),
    case!(|n, x| drop(n.linear("l", &x.sum(), 3, Init::zeros())), "expected a vector, got a scalar"),
    case!(|n, x| drop(n.layer_norm("l", &x.sum(), 1e-5)), "`layer_norm`: a scalar has no last axis"),
    case!(|n, x| drop(n.causal_conv("c", &x.mean_over(), 4, Init::zeros())), "`causal_conv`: [7] has no sequence axis"),
    case!(|n, x| drop(n.attention(x, x, x, 1.0, true, 0)), "`attention`: expected queries [h, d]"),
    case!(|n, _| drop(n.slot("other")), "there is no fast-weight slot `other`; the recipe has main"),
    case!(|n, _| drop(n.slot_of_layer(3)), "no update rule of the recipe covers layer 3"),
    case!(|n, x| drop(n.fast_weights("f", &n.slot("main"), QueryScale::None, &[("q", x)])), "`fast_weights`: input `q` of rule `delta` is [2, 3], got [time, 7]"),
    case!(|n, x| drop(n.fast_weights("f", &n.slot("main"), QueryScale::None, &[("x", x)])), "`fast_weights`: rule `delta` has no input `x`; it has q, k, v, beta"),
    case!(|n, x| drop(n.read("f", x, QueryScale::None, &[("q", x)])), "expected a memory, got [time, 7]"),
    case!(|n, x| drop(n.write("f", x, &[("q", x)])), "expected a memory, got [time, 7]"),
    case!(|n, x| drop(n.write("f", &n.memory("m", &n.slot("main")), &[("q", x)])), "`fast_write`: input `q`"),
    case!(|n, x| drop(n.blocks("b", 0, 2, &[x], |n, _| vec![n.embedding("e", &n.input("tokens"), 11, 7, Init::zeros())])), "the task's input `tokens` is used outside of `b`: hand its value over"),
    case!(|n, x| drop(n.blocks("b", 0, 2, &[x], |n, y| { n.output("logits", &y[0]); y.to_vec() })), "the task's output `logits` is used outside of `b`"),
    case!(|n, x| drop(n.blocks("b", 0, 2, &[x], |_, y| vec![&y[0] + x])), "`add`: this value belongs to another function"),
    case!(|n, x| drop(n.blocks("b", 0, 2, &[x], |_, _| vec![x.clone()])), "output `x0` belongs to another function"),
    case!(|n, x| drop(n.blocks("b", 0, 2, &[x], |_, y| vec![y[0].last()])), "`blocks`: every repetition takes over ([time, 7]) and must return that, it returns ([7])"),
    case!(|n, x| drop(n.recurrent("c", &[x], &[&x.mean_over()], |_, s, x| (s.to_vec(), x.to_vec()))), "`scan`: operand 1 ([7]) has no sequence axis to scan"),
    case!(|n, x| drop(n.recurrent("c", &[&x.last()], &[x], |_, s, _| (vec![s[0].sum()], vec![]))), "`scan`: a cell must return its states ([7]) first, it returns ([])"),
    case!(|n, x| drop(n.repeat("r", 2, &[x], &[], |_, y, _| vec![&y[0] * n.constant(2.0)])), "`mul`: this value belongs to another function"),
];

#[test]
fn mistakes_in_a_net_are_told_with_their_line() {
    let slots: [(SlotInterface, Option<Vec<usize>>); 1] = [(parts::slot(), Some(vec![0, 1]))];
    for (case, c) in NETS.iter().enumerate() {
        check(testing::net::<WrongNet>(json!({ "case": case }), &parts::task(), &slots), c.line, c.message);
    }
}

#[test]
fn a_forgotten_output_of_a_net_is_told() {
    config! {
        /// Gives nothing.
        pub struct Silent {}
    }
    impl SlowNet for Silent {
        const NAME: &'static str = "silent";
        const CITATION: &'static str = "none";
        fn memory(&self, _task: &TaskIo, _slot: &str) -> Memory {
            Memory { heads: 1, key: 1, value: 1 }
        }
        fn forward(&self, _net: &mut Net) {}
    }
    let message = testing::net::<Silent>(json!({}), &parts::task(), &[(parts::slot(), None)]).unwrap_err();
    assert_eq!(message, "the task's output `logits` is never set");
}

// ---- numbers beside values

config! {
    /// Every side of every operator.
    pub struct Numbers {}
}

impl FeatureMap for Numbers {
    const NAME: &'static str = "numbers";
    const CITATION: &'static str = "none";
    fn features(&self, dim: usize) -> usize {
        dim
    }
    fn apply(&self, map: &Map) -> Expr {
        let (x, i) = (map.input(), map.index());
        let floats = [&x + 1, 1 + &x, &x - 2.5, 2.5 - &x, &x * 3, 3.0 * &x, &x / 4, 4 / &x, x.clone() + x.clone(), -&x];
        let by_value = [x.clone() + &x, 1.0 - x.clone(), 2 * x.clone(), x.clone() / 2.0, -x.clone()];
        let whole = [&i + 1, 5 - &i, i.rem(4), i.bit_and(3), i.max(2), i.shift_left(1)].map(|e| e.to_float());
        let masks = [i.less(3), i.greater_equal(1), x.sum().greater(0), x.less_equal(0.5).and(x.greater(-1))];
        let chosen = masks.iter().map(|m| m.select(1, -0.5)).collect::<Vec<_>>();
        let mut y = x;
        for e in floats.into_iter().chain(by_value).chain(whole).chain(chosen) {
            y = y + e;
        }
        y
    }
}

#[test]
fn numbers_take_the_kind_of_what_they_stand_beside() {
    let program = testing::map::<Numbers>(json!({}), 3).unwrap();
    let f = program.entry("key").unwrap();
    let whole: Vec<i64> =
        f.nodes.iter().filter_map(|n| if let Op::Integer { value } = n.op { Some(value) } else { None }).collect();
    assert_eq!(whole, [1, 5, 4, 3, 2, 1, 3, 1]);
    let subtractions = f.nodes.iter().filter(|n| n.op == Op::Sub).map(|n| {
        let is_number = |i: u32| matches!(f.nodes[i as usize].op, Op::Constant { .. } | Op::Integer { .. });
        (is_number(n.operands[0]), is_number(n.operands[1]))
    });
    assert_eq!(subtractions.collect::<Vec<_>>(), [(false, true), (true, false), (true, false), (true, false)]);
}

#[test]
fn operands_may_be_integers_and_greater_is_less_turned_round() {
    let program = testing::map::<Numbers>(json!({}), 3).unwrap();
    let f = program.entry("key").unwrap();
    let turned = f.nodes.iter().find(|n| n.op == Op::LessEqual).unwrap();
    assert!(matches!(f.nodes[turned.operands[0] as usize].op, Op::Integer { value: 1 }), "i >= 1 is 1 <= i");
}

#[test]
fn a_repetition_may_repeat() {
    config! {
        /// Three times two.
        pub struct Nested {}
    }
    impl UpdateRule for Nested {
        const NAME: &'static str = "nested";
        const CITATION: &'static str = "none";
        const OBJECTIVE: &'static str = "none";
        fn signature(&self, dims: Dims) -> Signature {
            Signature::new(dims).state("h", [dims.value], StateStart::Zeros)
        }
        fn step(&self, s: &mut Step) {
            let h = s.repeat(3, &[&s.state("h")], &[&s.input("v")], |h, v| {
                s.repeat(2, &[&h[0]], &[&v[0]], |h, v| vec![(&h[0] + &v[0]).tanh()])
            });
            s.output(&h[0]);
            s.set_state("h", &h[0]);
        }
    }
    let program = testing::rule::<Nested>(json!({}), DIMS).unwrap();
    let counts: Vec<usize> = program
        .functions
        .iter()
        .flat_map(|f| &f.nodes)
        .filter_map(|n| if let Op::Loop { count, .. } = n.op { Some(count) } else { None })
        .collect();
    assert_eq!(counts, [2, 3]);
}
