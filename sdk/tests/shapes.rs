//! The shape rule of every operator, by example.

mod support;

use fwp_sdk::program::Op;
use support::operators::{examples, infer};
use support::ty;

#[test]
fn every_operator_has_an_accepted_and_a_refused_example() {
    for (code, name) in Op::table() {
        for wanted in [true, false] {
            let found = examples().iter().any(|(op, _, result)| op.code() == *code && result.is_ok() == wanted);
            assert!(found, "`{name}` (0x{code:04x}) has no {} example", if wanted { "accepted" } else { "refused" });
        }
    }
}

#[test]
fn accepted_examples_have_the_expected_type() {
    for (op, operands, result) in examples() {
        if let Ok(wanted) = result {
            assert_eq!(infer(&op, operands), Ok(ty(wanted)), "{op:?} of {operands:?}");
            assert_eq!(infer(&op, operands).unwrap().to_string(), wanted, "types are printed as they are written here");
        }
    }
}

#[test]
fn refused_examples_say_what_was_expected_and_what_was_there() {
    for (op, operands, result) in examples() {
        if let Err(wanted) = result {
            let message = infer(&op, operands).expect_err(&format!("{op:?} of {operands:?}"));
            assert!(message.contains(wanted), "{op:?} of {operands:?}: {message}");
            assert!(!message.contains('\n') && message.len() < 400, "one readable line: {message}");
        }
    }
}

#[test]
fn too_many_or_too_few_operands_are_refused_by_every_operator_that_counts_them() {
    for (op, operands, result) in examples() {
        // These take any number.
        if result.is_err() || matches!(op, Op::Concat { .. } | Op::Gradient) {
            continue;
        }
        let mut more = operands.to_vec();
        more.push("[]");
        assert!(infer(&op, &more).is_err(), "{op:?} took {more:?}");
        if let Some((_, fewer)) = operands.split_last() {
            assert!(infer(&op, fewer).is_err(), "{op:?} took {fewer:?}");
        }
    }
}
