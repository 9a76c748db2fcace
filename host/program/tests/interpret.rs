//! The interpreter's operators that no gradient test reaches: integers, masks, draws, and what it refuses.

use fwp_program::interpret::{Array, Data, Inputs, Random, Value, evaluate};
use fwp_sdk::program::{Function, Kind, MapRole, Node, NodeId, Op, Output, Program, Span};

/// Evaluates nodes whose last one is the result.
fn last(nodes: &[(Op, &[NodeId])], inputs: &mut Inputs<'_>) -> Result<Array, String> {
    let f = Function {
        name: "f".into(),
        nodes: nodes.iter().map(|(op, o)| Node { op: op.clone(), operands: o.to_vec(), span: Span::default() }).collect(),
        outputs: vec![Output { name: "y".into(), node: nodes.len() as NodeId - 1 }],
        ..Function::default()
    };
    let p = Program {
        kind: Kind::UpdateRule,
        name: "case".into(),
        config: "{}".into(),
        doc: String::new(),
        citation: String::new(),
        objective: String::new(),
        inputs: vec![],
        states: vec![],
        slots: vec![],
        functions: vec![f.clone()],
        entries: vec![],
        files: vec![],
    };
    fwp_sdk::program::shape::types(&p).map_err(|e| e.to_string())?;
    match evaluate(&p, &f, inputs).map_err(|e| e.to_string())?.remove(0) {
        Value::Tensor(a) => Ok(a),
        Value::Tuple(_) => Err("several values".into()),
    }
}

fn int(value: i64) -> (Op, &'static [NodeId]) {
    (Op::Integer { value }, &[])
}

fn of_ints(op: Op, a: i64, b: i64) -> Result<i64, String> {
    match last(&[int(a), int(b), (op, &[0, 1])], &mut Inputs::default())?.data {
        Data::Int(v) => Ok(v[0]),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn integers_follow_their_definitions() {
    assert_eq!(of_ints(Op::Rem, -7, 3), Ok(2));
    assert_eq!(of_ints(Op::Rem, 7, -3), Ok(-2));
    assert_eq!(of_ints(Op::BitAnd, 6, 3), Ok(2));
    assert_eq!(of_ints(Op::BitOr, 6, 3), Ok(7));
    assert_eq!(of_ints(Op::BitXor, 6, 3), Ok(5));
    assert_eq!(of_ints(Op::ShiftLeft, 3, 4), Ok(48));
    assert_eq!(of_ints(Op::ShiftRight, -8, 1), Ok(-4));
    assert_eq!(of_ints(Op::ShiftRight, 8, 99), Ok(0));
    assert!(of_ints(Op::Rem, 1, 0).unwrap_err().contains("division by 0"));
    for (x, zeros) in [(0, 63), (1, 0), (12, 2), (i64::MIN, 63)] {
        let got = last(&[int(x), (Op::TrailingZeros, &[0])], &mut Inputs::default()).unwrap();
        assert_eq!(got.data, Data::Int(vec![zeros]));
    }
}

#[test]
fn nan_wins_in_max_and_relu_keeps_it() {
    let nan = (Op::Constant { value: f64::NAN }, &[][..]);
    let one = (Op::Constant { value: 1.0 }, &[][..]);
    for op in [Op::Max, Op::Min] {
        for order in [[0, 1], [1, 0]] {
            let got = last(&[nan.clone(), one.clone(), (op.clone(), &order)], &mut Inputs::default()).unwrap();
            assert!(got.floats().unwrap()[0].is_nan(), "{op:?} {order:?}");
        }
    }
    for op in [Op::Relu, Op::Softplus, Op::LogSigmoid] {
        assert!(last(&[nan.clone(), (op, &[0])], &mut Inputs::default()).unwrap().floats().unwrap()[0].is_nan());
    }
}

#[test]
fn masks_choose() {
    let range = (Op::Arange { n: 4 }, &[][..]);
    let nodes = [range, int(2), (Op::Less, &[0, 1]), (Op::Not, &[2]), (Op::And, &[2, 3]), (Op::Or, &[2, 4]), (Op::ToFloat, &[5])];
    assert_eq!(last(&nodes, &mut Inputs::default()).unwrap().floats().unwrap(), [1.0, 1.0, 0.0, 0.0]);
    let nodes = [int(1), (Op::OneHot { size: 3 }, &[0])];
    assert_eq!(last(&nodes, &mut Inputs::default()).unwrap().floats().unwrap(), [0.0, 1.0, 0.0]);
}

#[test]
fn rotations_pair_features_as_they_say() {
    let x = (Op::Table { shape: vec![4], values: vec![1.0, 2.0, 3.0, 4.0] }, &[][..]);
    for (interleaved, pairs) in [(false, [(0, 2), (1, 3)]), (true, [(0, 1), (2, 3)])] {
        let mut inputs = Inputs { index: 5, ..Inputs::default() };
        let nodes = [x.clone(), (Op::StepIndex, &[][..]), (Op::Rotary { base: 100.0, interleaved }, &[0, 1])];
        let got = last(&nodes, &mut inputs).unwrap();
        let (v, w) = ([1.0, 2.0, 3.0, 4.0], got.floats().unwrap());
        for (i, (a, b)) in pairs.into_iter().enumerate() {
            let angle = 5.0 * 100f64.powf(-(i as f64) / 2.0);
            assert!((w[a] - (v[a] * angle.cos() - v[b] * angle.sin())).abs() < 1e-12);
            assert!((w[b] - (v[a] * angle.sin() + v[b] * angle.cos())).abs() < 1e-12);
        }
    }
}

#[test]
fn draws_are_repeatable_and_distributed_as_said() {
    let draw = |op: Op, seed: u64| {
        let mut inputs = Inputs { random: Some(Random::new(seed)), ..Inputs::default() };
        last(&[(op, &[])], &mut inputs).unwrap().floats().unwrap().to_vec()
    };
    let n = 20_000.0;
    let normal = draw(Op::RandomNormal { shape: vec![20_000] }, 1);
    assert_eq!(normal, draw(Op::RandomNormal { shape: vec![20_000] }, 1));
    assert_ne!(normal, draw(Op::RandomNormal { shape: vec![20_000] }, 2));
    let mean = normal.iter().sum::<f64>() / n;
    let variance = normal.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.04, "{mean} {variance}");
    let uniform = draw(Op::RandomUniform { shape: vec![20_000] }, 1);
    assert!(uniform.iter().all(|x| (0.0..1.0).contains(x)));
    assert!((uniform.iter().sum::<f64>() / n - 0.5).abs() < 0.02);
    // Two blocks of orthogonal rows, the second one not full.
    let rows = draw(Op::RandomOrthogonal { rows: 7, n: 4 }, 3);
    let dot = |i: usize, j: usize| (0..4).map(|c| rows[i * 4 + c] * rows[j * 4 + c]).sum::<f64>();
    for (i, j) in [(0, 1), (0, 3), (2, 3), (4, 5), (5, 6)] {
        assert!(dot(i, j).abs() < 1e-9, "rows {i} and {j}");
    }
    assert!(dot(0, 4).abs() > 1e-9);
    assert!(last(&[(Op::RandomUniform { shape: vec![2] }, &[])], &mut Inputs::default()).unwrap_err().contains("draw from"));
}

#[test]
fn what_has_no_value_is_said() {
    let table = (Op::Table { shape: vec![2], values: vec![1.0, 2.0] }, &[][..]);
    let e = last(&[table.clone(), int(2), (Op::Gather, &[0, 1])], &mut Inputs::default()).unwrap_err();
    assert!(e.contains("no row 2 of 2") && e.contains("`gather` (node 2)"), "{e}");
    let e = last(&[table, (Op::Phi { role: MapRole::Key, size: 2 }, &[0])], &mut Inputs::default()).unwrap_err();
    assert!(e.contains("no feature map"), "{e}");
}
