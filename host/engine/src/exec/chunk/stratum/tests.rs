//! Every form against a loop over its steps: reads, last states and all gradients.

use std::sync::{Arc, Mutex, PoisonError};

use fwp_program::analysis::form::{Decay, Factor, Form, Query, Range, Segment, Side, StateRead, Term};
use fwp_sdk::program::Function;
use tch::{Device, Kind, Tensor};

use super::*;

/// Coefficients of a test: what it is for, which decides its size and values.
#[derive(Clone, Copy)]
enum Role {
    /// As long as a row of S.
    Key,
    /// A key of length 1 times -2 a number in (0, 1): what a delta rule erases with.
    Erase(usize),
    /// As long as a column of S.
    Value,
    /// Decays between these bounds: one number, one a column, one a row.
    Scalar(f64, f64),
    Columns(f64, f64),
    Rows(f64, f64),
}

/// A form with random coefficients.
struct Case {
    name: &'static str,
    roles: Vec<Role>,
    segments: Vec<Segment>,
    reads: Vec<(usize, Query)>,
}

fn term(column: Option<usize>, erase: Option<usize>, row: usize) -> Term {
    Term { column, erase, row }
}

fn factor(coefficient: usize, range: Range) -> Factor {
    Factor { coefficient, range }
}

fn segment(decay: Decay, terms: Vec<Term>) -> Segment {
    Segment { decay, terms }
}

fn cases() -> Vec<Case> {
    use Decay::{Columns as C, One, Rows as R, Scalar as S};
    use Query::{Left, Right, Whole};
    use Range::{Log, Positive, Signed};
    use Role::{Columns, Erase, Key, Rows, Scalar, Value};
    let case = |name, roles: &[Role], segments: Vec<Segment>, reads: &[(usize, Query)]| Case {
        name,
        roles: roles.to_vec(),
        segments,
        reads: reads.to_vec(),
    };
    let write = || vec![term(Some(0), None, 1)];
    let delta = || vec![term(Some(0), Some(3), 1)];
    let kvq = |more: &[Role]| -> Vec<Role> { [Value, Key, Key].iter().chain(more).copied().collect() };
    let after = &[(1, Right(2))];
    vec![
        case("additive", &kvq(&[]), vec![segment(One, write())], after),
        case("scalar decay", &kvq(&[Scalar(-0.5, 0.0)]), vec![segment(S(factor(3, Log)), write())], after),
        case("strong scalar decay", &kvq(&[Scalar(-60.0, 0.0)]), vec![segment(S(factor(3, Log)), write())], after),
        case("signed decay", &kvq(&[Scalar(-1.0, 1.0)]), vec![segment(S(factor(3, Signed)), write())], after),
        case("vector decay", &kvq(&[Columns(-0.5, 0.0)]), vec![segment(C(factor(3, Log)), write())], after),
        case("vector decay as a value", &kvq(&[Columns(0.4, 1.0)]), vec![segment(C(factor(3, Positive)), write())], after),
        case("strong vector decay", &kvq(&[Columns(-50.0, 0.0)]), vec![segment(C(factor(3, Log)), write())], after),
        case("decay of rows", &kvq(&[Rows(-0.5, 0.0)]), vec![segment(R(factor(3, Log)), write())], after),
        case(
            "read before",
            &kvq(&[Columns(-0.5, 0.0)]),
            vec![segment(C(factor(3, Log)), write())],
            &[(0, Right(2)), (1, Right(2))],
        ),
        case("delta", &kvq(&[Erase(1)]), vec![segment(One, delta())], after),
        case("gated delta", &kvq(&[Erase(1), Scalar(0.5, 1.0)]), vec![segment(S(factor(4, Positive)), delta())], after),
        case("kimi delta", &kvq(&[Erase(1), Columns(-0.7, 0.0)]), vec![segment(C(factor(4, Log)), delta())], after),
        case("strong kimi delta", &kvq(&[Erase(1), Columns(-40.0, 0.0)]), vec![segment(C(factor(4, Log)), delta())], after),
        case(
            "two terms",
            &kvq(&[Erase(5), Columns(-0.5, 0.0), Key]),
            vec![segment(C(factor(4, Log)), vec![term(None, Some(3), 5), term(Some(0), None, 1)])],
            after,
        ),
        case(
            "two erasing terms",
            &kvq(&[Erase(5), Scalar(-0.5, 0.5), Key, Erase(1), Value]),
            vec![segment(
                S(factor(4, Signed)),
                vec![term(Some(7), Some(3), 5), term(Some(0), Some(6), 1), term(Some(7), None, 2)],
            )],
            &[(0, Right(2)), (1, Right(1))],
        ),
        case(
            "product",
            &kvq(&[Erase(1), Scalar(-0.5, 0.0), Value, Key, Erase(6)]),
            vec![segment(S(factor(4, Log)), delta()), segment(One, vec![term(Some(5), Some(7), 6)])],
            &[(2, Right(2)), (1, Right(6))],
        ),
        case(
            "product with decays",
            &kvq(&[Erase(1), Columns(-0.5, 0.0), Value, Key, Erase(6), Scalar(-0.5, 0.0)]),
            vec![
                segment(C(factor(4, Log)), delta()),
                segment(S(factor(8, Log)), vec![term(Some(5), Some(7), 6), term(Some(0), None, 2)]),
            ],
            &[(2, Right(2)), (0, Right(6)), (1, Left(5))],
        ),
        case(
            "read from the left",
            &kvq(&[Erase(1), Scalar(-0.5, 0.0)]),
            vec![segment(S(factor(4, Log)), delta())],
            &[(1, Left(0)), (0, Right(2))],
        ),
        case(
            "read from the left by key",
            &kvq(&[Erase(1), Columns(-0.5, 0.0)]),
            vec![segment(C(factor(4, Log)), delta())],
            &[(1, Left(0)), (0, Left(0))],
        ),
        case(
            "decay of rows from the left",
            &kvq(&[Rows(-0.5, 0.0)]),
            vec![segment(R(factor(3, Log)), write())],
            &[(1, Left(0)), (1, Right(2))],
        ),
        case("only decay", &kvq(&[Scalar(0.5, 1.0)]), vec![segment(S(factor(3, Positive)), vec![])], after),
        case(
            "whole",
            &[Scalar(0.0, 1.0), Key, Key, Columns(-0.5, 0.0)],
            vec![segment(C(factor(3, Log)), write())],
            &[(1, Whole), (1, Right(2))],
        ),
    ]
}

struct Sizes {
    steps: i64,
    n: i64,
    rows: i64,
    columns: i64,
}

struct Numbers {
    coefficients: Vec<Tensor>,
    first: Tensor,
    fresh: Tensor,
}

fn numbers(case: &Case, s: &Sizes, kind: Kind, seed: i64) -> Numbers {
    tch::manual_seed(seed);
    let random = |d: i64| Tensor::randn([s.steps, s.n, d], (Kind::Double, Device::Cpu));
    let between = |d: i64, a: f64, b: f64| Tensor::rand([s.steps, s.n, d], (Kind::Double, Device::Cpu)) * (b - a) + a;
    let unit = |t: Tensor| &t / t.norm_scalaropt_dim(2, [2i64].as_slice(), true);
    let mut coefficients: Vec<Tensor> = Vec::new();
    for role in &case.roles {
        coefficients.push(match *role {
            Role::Key | Role::Erase(_) => unit(random(s.columns)),
            Role::Value => unit(random(s.rows)),
            Role::Scalar(a, b) => between(1, a, b),
            Role::Columns(a, b) => between(s.columns, a, b),
            Role::Rows(a, b) => between(s.rows, a, b),
        });
    }
    for (i, role) in case.roles.iter().enumerate() {
        if let Role::Erase(key) = role {
            coefficients[i] = &coefficients[*key] * between(1, -2.0, 0.0);
        }
    }
    let leaf = |t: Tensor| t.to_kind(kind).detach().set_requires_grad(true);
    let state = || Tensor::randn([s.n, s.rows, s.columns], (Kind::Double, Device::Cpu));
    Numbers { coefficients: coefficients.into_iter().map(leaf).collect(), first: leaf(state()), fresh: leaf(state()) }
}

/// Reads and the last state by one step after another; as the reference executor treats masks.
fn steps(case: &Case, x: &Numbers, s: &Sizes, write: Option<&Tensor>, reset: Option<&Tensor>) -> (Vec<Tensor>, Tensor) {
    let mut state = x.first.shallow_clone();
    let mut reads: Vec<Vec<Tensor>> = case.reads.iter().map(|_| Vec::new()).collect();
    for t in 0..s.steps {
        let c = |i: usize| x.coefficients[i].get(t);
        let mask = |m: &Tensor| m.get(t).reshape([-1, 1, 1]);
        if let Some(reset) = reset {
            state = x.fresh.where_self(&mask(reset), &state);
        }
        let mut now = state.shallow_clone();
        let mut read = |after: usize, now: &Tensor| {
            for (place, (_, query)) in case.reads.iter().enumerate().filter(|(_, (a, _))| *a == after) {
                reads[place].push(match query {
                    Query::Right(q) => now.matmul(&c(*q).unsqueeze(2)).squeeze_dim(2),
                    Query::Left(q) => c(*q).unsqueeze(1).matmul(now).squeeze_dim(1),
                    Query::Whole => now.squeeze_dim(1),
                });
            }
        };
        read(0, &now);
        for (i, segment) in case.segments.iter().enumerate() {
            let value = |f: &Factor| if f.range == Range::Log { c(f.coefficient).exp() } else { c(f.coefficient) };
            let mut next = match &segment.decay {
                Decay::One => now.shallow_clone(),
                Decay::Scalar(f) => &now * value(f).unsqueeze(2),
                Decay::Columns(f) => &now * value(f).unsqueeze(1),
                Decay::Rows(f) => &now * value(f).unsqueeze(2),
            };
            for term in &segment.terms {
                let mut column = now.zeros_like().select(2, 0);
                if let Some(u) = term.column {
                    column = c(u) + column;
                }
                if let Some(p) = term.erase {
                    column = now.matmul(&c(p).unsqueeze(2)).squeeze_dim(2) + column;
                }
                next = column.unsqueeze(2) * c(term.row).unsqueeze(1) + next;
            }
            now = next;
            read(i + 1, &now);
        }
        state = match write {
            Some(write) => now.where_self(&mask(write), &state),
            None => now,
        };
    }
    (reads.iter().map(|r| Tensor::stack(r, 0)).collect(), state)
}

fn form(case: &Case, s: &Sizes) -> Form {
    let empty = Function { name: String::new(), arguments: vec![], parameters: vec![], nodes: vec![], outputs: vec![] };
    let reads = case.reads.iter().map(|(after, query)| StateRead {
        name: String::new(),
        after: *after,
        query: query.clone(),
        shape: vec![],
    });
    Form {
        state: 0,
        side: Side::Right,
        size: [s.rows as usize, s.columns as usize],
        coefficients: empty,
        segments: case.segments.clone(),
        reads: reads.collect(),
    }
}

#[derive(Clone, Copy, Default)]
struct Steer {
    write: bool,
    reset: bool,
    fresh: bool,
    chunk: Option<i64>,
    recompute: bool,
}

fn chunked(
    case: &Case,
    x: &Numbers,
    s: &Sizes,
    steer: Steer,
    write: Option<&Tensor>,
    reset: Option<&Tensor>,
) -> (Vec<Tensor>, Tensor) {
    let layout = Arc::new(Layout::new(&form(case, s)).unwrap());
    let carried = |t: &Tensor| if layout.transposed { t.transpose(1, 2) } else { t.shallow_clone() };
    let given = Given {
        coefficients: layout.used.iter().map(|i| x.coefficients[*i].shallow_clone()).collect(),
        first: carried(&x.first),
        fresh: steer.fresh.then(|| carried(&x.fresh)),
        write: write.map(Tensor::shallow_clone),
        reset: reset.map(Tensor::shallow_clone),
        memory: if steer.recompute { 0 } else { u64::MAX },
    };
    let (reads, last) = run(&layout, &given, s.steps, steer.chunk).unwrap();
    (reads, carried(&last))
}

fn gradients(outputs: &[Tensor], x: &Numbers, used: &[bool], seed: i64) -> Vec<Tensor> {
    tch::manual_seed(seed);
    let loss =
        outputs.iter().map(|o| (o * Tensor::randn(o.size(), (Kind::Double, Device::Cpu)).to_kind(o.kind())).sum(None::<Kind>));
    let loss: Tensor = loss.reduce(|a, b| a + b).unwrap();
    let leaves = x.coefficients.iter().zip(used).filter(|(_, u)| **u).map(|(t, _)| t);
    let leaves: Vec<&Tensor> = leaves.chain([&x.first]).collect();
    Tensor::run_backward(&[loss], &leaves, false, false)
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let scale = b.abs().max().double_value(&[]).max(1e-3);
    let error = (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[]);
    if error.is_nan() { f64::INFINITY } else { error / scale }
}

/// Random numbers come from one generator for all threads.
static GENERATOR: Mutex<()> = Mutex::new(());

/// Reads, the last state and all gradients of one case.
fn compare(case: &Case, s: &Sizes, steer: Steer, kind: Kind, tolerance: f64) {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let x = numbers(case, s, kind, s.steps * 31 + s.rows);
    if !steer.fresh {
        _ = tch::no_grad(|| x.fresh.shallow_clone().zero_());
    }
    let draw = |p: f64| Tensor::rand([s.steps, s.n], (Kind::Double, Device::Cpu)).lt(p);
    let write = steer.write.then(|| draw(0.7));
    let reset = steer.reset.then(|| draw(0.1));
    let (mut expected, state) = steps(case, &x, s, write.as_ref(), reset.as_ref());
    expected.push(state);
    let (mut found, state) = chunked(case, &x, s, steer, write.as_ref(), reset.as_ref());
    found.push(state);
    let used = Layout::new(&form(case, s)).unwrap().used;
    let used: Vec<bool> = (0..x.coefficients.len()).map(|i| used.contains(&i)).collect();
    let what = |what: &str, i: usize| {
        let Sizes { steps, n, rows, columns } = s;
        format!(
            "{}, {what} {i}, steps {steps}, n {n}, {rows}x{columns}, write {}, reset {}, fresh {}, chunk {:?}",
            case.name, steer.write, steer.reset, steer.fresh, steer.chunk
        )
    };
    for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
        let d = distance(a, b);
        assert!(d < tolerance, "{}: {d:e}", what("result", i));
    }
    // Of the first state it is the last gradient.
    let expected = gradients(&expected, &x, &used, 3);
    let found = gradients(&found, &x, &used, 3);
    for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
        let d = distance(a, b);
        assert!(d < tolerance, "{}: {d:e}", what("gradient", i));
    }
}

fn rows(case: &Case, rows: i64) -> i64 {
    if case.reads.iter().any(|(_, q)| *q == Query::Whole) { 1 } else { rows }
}

#[test]
fn every_form_agrees_with_its_steps_in_float64() {
    for case in cases() {
        for steps in [1, 2, 15, 16, 17, 33, 65] {
            for (r, columns) in [(4, 4), (3, 5)] {
                let s = Sizes { steps, n: 2, rows: rows(&case, r), columns };
                for chunk in [None, Some(16)] {
                    compare(&case, &s, Steer { chunk, recompute: chunk.is_none(), ..Steer::default() }, Kind::Double, 1e-9);
                }
            }
        }
    }
}

#[test]
fn masks_and_resets_agree_with_steps() {
    for case in cases() {
        for steps in [1, 17, 40] {
            let s = Sizes { steps, n: 3, rows: rows(&case, 3), columns: 5 };
            for (write, reset, fresh) in [(true, false, false), (false, true, false), (false, true, true), (true, true, true)] {
                compare(&case, &s, Steer { write, reset, fresh, chunk: Some(8), recompute: steps == 17 }, Kind::Double, 1e-9);
            }
        }
    }
}

#[test]
fn long_sequences_and_float32() {
    for case in cases() {
        for steps in [64, 100, 257] {
            let s = Sizes { steps, n: 2, rows: rows(&case, 7), columns: 5 };
            compare(&case, &s, Steer::default(), Kind::Double, 1e-9);
            compare(&case, &s, Steer::default(), Kind::Float, 2e-4);
        }
    }
}

#[test]
fn what_is_not_a_number_stays_in_its_sequence() {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    for (case, kind) in cases().iter().flat_map(|c| [(c, Kind::Float), (c, Kind::Double)]) {
        let s = Sizes { steps: 65, n: 3, rows: rows(case, 3), columns: 5 };
        for i in 0..case.roles.len() {
            let x = numbers(case, &s, kind, 5);
            _ = tch::no_grad(|| x.coefficients[i].get(20).get(1).narrow(0, 0, 1).fill_(f64::NAN));
            let (reads, last) = chunked(case, &x, &s, Steer::default(), None, None);
            let finite = |t: &Tensor, axis: i64, n: i64| t.select(axis, n).isfinite().all().int64_value(&[]) != 0;
            for n in [0, 2] {
                let whole = reads.iter().all(|r| finite(r, 1, n)) && finite(&last, 0, n);
                assert!(whole, "{}: NaN in coefficient {i} of sequence 1 comes out in sequence {n}, {kind:?}", case.name);
            }
        }
    }
}

#[test]
fn a_decay_of_nothing_has_no_gradient() {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let right = |c: &Case| c.reads.iter().all(|(_, q)| matches!(q, Query::Right(_)));
    for case in cases().iter().filter(|c| c.segments.len() == 1 && right(c)) {
        let Some((Role::Columns(..), decay)) = case.roles.iter().zip(0..).find(|(r, _)| matches!(r, Role::Columns(..))) else {
            continue;
        };
        let s = Sizes { steps: 1, n: 3, rows: rows(case, 7), columns: 11 };
        let x = numbers(case, &s, Kind::Float, 3);
        _ = tch::no_grad(|| x.first.shallow_clone().zero_());
        let write = Tensor::ones([1, s.n], (Kind::Bool, Device::Cpu));
        let (mut outputs, last) = chunked(case, &x, &s, Steer::default(), Some(&write), None);
        outputs.push(last);
        let mut used = vec![false; case.roles.len()];
        used[decay] = true;
        // Not a small number: what is written has no decay behind it, so nothing may be taken from something as large.
        let largest = gradients(&outputs, &x, &used, 4)[0].abs().max().double_value(&[]);
        assert_eq!(largest, 0.0, "{}", case.name);
    }
}

#[test]
fn erasing_in_chunks_is_as_precise_as_in_steps() {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let all = cases();
    let case = all.iter().find(|c| c.name == "delta").unwrap();
    for (columns, steps) in [(4, 129), (7, 65), (16, 129)] {
        let s = Sizes { steps, n: 8, rows: 11, columns };
        let (mut in_steps, mut in_chunks) = (0.0, 0.0);
        for seed in 0..4 {
            let length = |t: Tensor| t.square().sum(Kind::Double).double_value(&[]);
            let (double, single) = (numbers(case, &s, Kind::Double, seed), numbers(case, &s, Kind::Float, seed));
            let exact = Numbers {
                coefficients: single.coefficients.iter().map(|c| c.to_kind(Kind::Double)).collect(),
                first: single.first.to_kind(Kind::Double),
                ..double
            };
            let (_, wanted) = self::steps(case, &exact, &s, None, None);
            let (_, one) = self::steps(case, &single, &s, None, None);
            let (_, chunk) = chunked(case, &single, &s, Steer::default(), None, None);
            in_steps += length(one.to_kind(Kind::Double) - &wanted);
            in_chunks += length(chunk.to_kind(Kind::Double) - &wanted);
        }
        let ratio: f64 = f64::sqrt(in_chunks / in_steps);
        assert!(ratio < 4.0, "{columns} keys, {steps} steps: {ratio:.1} times the error of single steps");
    }
}
