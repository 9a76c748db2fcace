//! The border of a plugin library: whatever a part does becomes an answer.
//!
//! One test function: the panic hook belongs to the whole process.

use std::panic;
use std::sync::atomic::{AtomicUsize, Ordering};

use fwp_sdk::border::{describe, list};
use fwp_sdk::prelude::*;
use fwp_sdk::program::{Kind, Program};
use fwp_sdk::serde_json::{Value, json};
use fwp_sdk::{Ask, Part, PartInfo, Request};

/// Fails again while it is dropped.
struct Grenade;

impl Drop for Grenade {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

config! {
    /// A rule that fails as it is told.
    pub struct Failing {
        /// How it fails.
        how: String = "not".into(),
    }
    validate(me) {
        if me.how == "validate" { panic!("while validating"); }
        Ok(())
    }
}

impl UpdateRule for Failing {
    const NAME: &'static str = "failing";
    const CITATION: &'static str = "none";
    const OBJECTIVE: &'static str = "none";

    fn signature(&self, dims: Dims) -> Signature {
        if self.how == "signature" {
            panic!("while declaring");
        }
        Signature::new(dims).state("w", [dims.value, dims.key], StateStart::Zeros)
    }

    fn step(&self, s: &mut Step) {
        match self.how.as_str() {
            "str" => panic!("plain text"),
            "string" => panic!("{} text", "formatted"),
            "number" => panic::panic_any(7),
            "grenade" => panic::panic_any(Grenade),
            "drop" => drop(Grenade),
            "nested" => {
                let caught = panic::catch_unwind(|| panic!("inner")).unwrap_err();
                assert!(caught.is::<&str>());
                panic!("outer");
            }
            "resumed" => panic::resume_unwind(Box::new("resumed")),
            "caught" => assert!(panic::catch_unwind(|| panic!("harmless")).is_err()),
            "thread" => std::thread::spawn(|| panic!("elsewhere")).join().map_err(|_| "the thread failed").unwrap(),
            "index" => drop([1, 2, 3][self.how.len()..].to_vec()),
            "overflow" => drop("x".repeat(usize::MAX)),
            "refuse" => refuse("not like this"),
            _ => {}
        }
        let (q, k, v) = s.query_key_value();
        let w = s.state("w") + outer(v, k);
        s.output(w.matvec(q));
        s.set_state("w", w);
    }
}

config! {
    /// A map.
    pub struct Same {}
}

impl FeatureMap for Same {
    const NAME: &'static str = "same";
    const CITATION: &'static str = "none";
    fn features(&self, dim: usize) -> usize {
        dim
    }
    fn apply(&self, map: &Map) -> Expr {
        map.input()
    }
}

static PARTS: &[Part] = &[Part::update_rule::<Failing>(), Part::feature_map::<Same>()];

fn ask(kind: Kind, name: &str, config: Value, ask: Ask) -> Result<Vec<u8>, String> {
    let Value::Object(config) = config else { panic!("a table") };
    let request = fwp_sdk::serde_json::to_vec(&Request { kind, name: name.into(), config, ask }).unwrap();
    describe(PARTS, request.as_slice().into()).into_result().map(Vec::from).map_err(String::from)
}

fn fail(how: &str) -> Result<Vec<u8>, String> {
    let dims = Dims { heads: 1, key_raw: 3, key: 3, value: 2, ..Dims::ONE };
    ask(Kind::UpdateRule, "failing", json!({ "how": how }), Ask::Rule { dims })
}

static HOOKED: AtomicUsize = AtomicUsize::new(0);

#[test]
fn whatever_happens_becomes_an_answer() {
    panic::set_hook(Box::new(|_| {
        HOOKED.fetch_add(1, Ordering::Relaxed);
    }));

    let good = fail("not").unwrap();
    assert!(Program::from_bytes(&good).is_ok());
    for (how, wanted) in [
        ("str", "plain text"),
        ("string", "formatted text"),
        ("number", "a value that is not text"),
        ("grenade", "a value that is not text"),
        ("drop", "dropped"),
        ("nested", "outer"),
        ("resumed", "the plugin panicked: resumed"),
        ("thread", "the thread failed"),
        ("index", "out of range"),
        ("overflow", "capacity overflow"),
        ("refuse", "not like this"),
        ("validate", "while validating"),
        ("signature", "while declaring"),
    ] {
        let message = fail(how).expect_err(how);
        assert!(message.contains(wanted), "{how}: {message}");
        if !["resumed", "overflow", "index"].contains(&how) {
            assert!(message.contains("tests/border.rs:"), "{how} has a place: {message}");
        }
        assert_eq!(message.contains("panicked"), how != "refuse", "{message}");
        // What failed leaves nothing behind.
        assert_eq!(fail("not").as_ref(), Ok(&good), "after {how}");
    }
    assert_eq!(fail("caught").map(|b| Program::from_bytes(&b).unwrap().functions), {
        Ok(Program::from_bytes(&good).unwrap().functions)
    });
    assert_eq!(HOOKED.load(Ordering::Relaxed), 0, "the host's own hook hears nothing of a plugin");
    let _ = panic::catch_unwind(|| panic!("mine"));
    assert_eq!(HOOKED.load(Ordering::Relaxed), 1, "and is there again afterwards");
    let _ = panic::take_hook();

    // Questions that do not fit.
    let wrong = |r: Result<Vec<u8>, String>, wanted: &str| {
        let message = r.expect_err(wanted);
        assert!(message.contains(wanted) && !message.contains("panicked"), "{message}");
    };
    wrong(ask(Kind::SlowNet, "failing", json!({}), Ask::Map { dim: 3 }), "this library has no slow-net `failing`");
    wrong(ask(Kind::UpdateRule, "delta", json!({}), Ask::Map { dim: 3 }), "this library has no update-rule `delta`");
    wrong(ask(Kind::UpdateRule, "failing", json!({}), Ask::Map { dim: 3 }), "asked a question for another kind of part");
    wrong(ask(Kind::FeatureMap, "same", json!({}), Ask::Memories { task: task(), slots: vec![] }), "another kind of part");
    let message = describe(PARTS, b"{}".as_slice().into()).into_result().unwrap_err();
    assert!(message.starts_with("the host's request cannot be read"), "{message}");

    // Questions that do.
    assert_eq!(ask(Kind::FeatureMap, "same", json!({}), Ask::Features { dim: 7 }), Ok(b"7".to_vec()));
    let listed = list(PARTS).into_result().unwrap();
    let listed: Vec<PartInfo> = fwp_sdk::serde_json::from_slice(&listed).unwrap();
    let names: Vec<(Kind, &str)> = listed.iter().map(|p| (p.kind, p.name.as_str())).collect();
    assert_eq!(names, [(Kind::UpdateRule, "failing"), (Kind::FeatureMap, "same")]);
    assert_eq!(listed[0].doc, "A rule that fails as it is told.");
    assert_eq!(listed[0].fields.len(), 1);
    assert_eq!(listed[1].fields.len(), 2, "the keys of the normalisation");
}

fn task() -> TaskIo {
    TaskIo { inputs: vec![], outputs: vec![], max_len: 1 }
}
