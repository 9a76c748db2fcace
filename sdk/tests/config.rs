//! Configuration: defaults, documentation, refusals.

use fwp_sdk::config::{self, Config};
use fwp_sdk::prelude::*;
use fwp_sdk::serde_json::{Value, json};
use fwp_sdk::testing;
use fwp_sdk::{Normalisation, Part};

choices! {
    /// Two ways.
    pub enum Way {
        /// Over.
        Over = "over",
        /// Under.
        Under = "under",
    }
}

config! {
    /// First line.
    ///
    ///     indented = equation
    pub struct Sample {
        /// A number.
        rate: f64 = 0.1,
        /// How many
        /// of them.
        count: usize = 3,
        /// May be negative.
        offset: i64 = -2,
        /// Yes or no.
        on: bool = true,
        /// A word.
        label: String = "x".into(),
        /// One of two.
        way: Way = Way::Over,
        /// Sizes.
        sizes: Vec<usize> = vec![1, 2],
        /// Perhaps.
        maybe: Option<f64> = None,
    }
    validate(me) {
        if me.count == 0 { return Err("`count`: expected at least 1, got 0".into()); }
        Ok(())
    }
}

impl FeatureMap for Sample {
    const NAME: &'static str = "sample";
    const CITATION: &'static str = "none";
    fn features(&self, dim: usize) -> usize {
        dim
    }
    fn apply(&self, map: &Map) -> Expr {
        map.input() * self.rate
    }
}

fn read(table: Value) -> Result<Sample, String> {
    let Value::Object(table) = table else { panic!("a table") };
    config::read(&table)
}

#[test]
fn what_is_not_given_has_its_default_and_what_is_given_counts() {
    let default = read(json!({})).unwrap();
    assert_eq!(Value::from(default.values()), Value::from(Sample::default().values()));
    let all = json!({
        "rate": 2, "count": 7, "offset": -9, "on": false, "label": "", "way": "under", "sizes": [], "maybe": 1.5
    });
    let given = read(all.clone()).unwrap();
    assert_eq!((given.rate, given.count, given.offset, given.on), (2.0, 7, -9, false));
    assert_eq!((given.label.as_str(), given.way, given.sizes.len(), given.maybe), ("", Way::Under, 0, Some(1.5)));
    // The values that are recorded in a program read back to the same.
    assert_eq!(Value::from(read(Value::Object(given.values())).unwrap().values()), Value::from(given.values()));
    assert_eq!(read(json!({ "maybe": null })).unwrap().maybe, None);
}

#[test]
fn every_key_is_documented() {
    assert_eq!(Sample::DOC.lines().map(str::trim).collect::<Vec<_>>(), ["First line.", "", "indented = equation"]);
    let fields = Sample::fields();
    let names: Vec<&str> = fields.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, ["rate", "count", "offset", "on", "label", "way", "sizes", "maybe"]);
    let kinds: Vec<&str> = fields.iter().map(|f| f.kind.as_str()).collect();
    assert_eq!(
        kinds,
        [
            "a number",
            "a whole number from 0",
            "a whole number",
            "true or false",
            "a text",
            "\"over\" or \"under\"",
            "a list, each a whole number from 0",
            "a number, or absent"
        ]
    );
    assert_eq!(fields[1].doc.lines().map(str::trim).collect::<Vec<_>>(), ["How many", "of them."]);
    assert_eq!(fields[6].default, json!([1, 2]));

    let info = Part::feature_map::<Sample>().info();
    assert_eq!(info.doc, "First line.\n\n    indented = equation", "an equation keeps its indentation");
    let names: Vec<&str> = info.fields.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names[names.len() - 2..], ["normalise", "normalise_eps"], "every map can be normalised");
}

#[test]
fn wrong_tables_are_refused_by_key() {
    for (table, wanted) in [
        (json!({ "cuont": 1 }), "unknown key `cuont`; did you mean `count`?"),
        (json!({ "Rate": 1 }), "did you mean `rate`?"),
        (json!({ "colour": 1 }), "unknown key `colour`; the keys are rate, count, offset, on, label, way, sizes, maybe"),
        (json!({ "": 1 }), "unknown key ``"),
        (json!({ "rate": "fast" }), "`rate`: expected a number, got \"fast\""),
        (json!({ "rate": null }), "`rate`: expected a number, got null"),
        (json!({ "count": -1 }), "`count`: expected a whole number from 0, got -1"),
        (json!({ "count": 1.5 }), "`count`: expected a whole number from 0, got 1.5"),
        (json!({ "count": 0 }), "`count`: expected at least 1, got 0"),
        (json!({ "offset": u64::MAX }), "`offset`: expected a whole number, got 18446744073709551615"),
        (json!({ "on": 1 }), "`on`: expected true or false, got 1"),
        (json!({ "label": 3 }), "`label`: expected a text, got 3"),
        (json!({ "way": "through" }), "`way`: expected \"over\" or \"under\", got \"through\""),
        (json!({ "way": "Over" }), "`way`: expected \"over\" or \"under\""),
        (json!({ "sizes": [1, -1] }), "`sizes`: expected a whole number from 0, got -1"),
        (json!({ "sizes": 1 }), "`sizes`: expected a list, each a whole number from 0, got 1"),
        (json!({ "maybe": true }), "`maybe`: expected a number, got true"),
    ] {
        let message = read(table.clone()).map(|c| c.values()).expect_err(&table.to_string());
        assert!(message.contains(wanted), "{table}: {message}");
    }
}

#[test]
fn numbers_that_are_none_are_refused() {
    // A JSON value cannot hold them: they arrive as null, or as a number beyond every float.
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert!(read(json!({ "rate": bad })).is_err());
    }
    assert!(fwp_sdk::serde_json::from_str::<Value>("1e999").is_err());
    let tiny = read(json!({ "rate": 5e-324 })).unwrap();
    assert_eq!(tiny.rate, 5e-324);
}

#[test]
fn an_empty_configuration_says_that_there_is_nothing_to_set() {
    config! {
        /// Nothing.
        pub struct Bare {}
    }
    let Value::Object(table) = json!({ "x": 1 }) else { unreachable!() };
    let message = config::read::<Bare>(&table).map(|_| ()).unwrap_err();
    assert_eq!(message, "unknown key `x`; there is nothing to configure");
}

#[test]
fn maps_take_the_keys_of_the_normalisation_too() {
    let program = testing::map::<Sample>(json!({ "normalise": "sum", "normalise_eps": 0.5, "rate": 3.0 }), 4).unwrap();
    for wanted in ["\"normalise\":\"sum\"", "\"normalise_eps\":0.5", "\"rate\":3.0"] {
        assert!(program.config.contains(wanted), "{}", program.config);
    }
    let last = &program.entry("key").unwrap().nodes.last().unwrap().op;
    assert_eq!(*last, fwp_sdk::program::Op::SumNormalise { eps: 0.5 });
    for (table, wanted) in [
        (json!({ "normalize": "sum" }), "unknown key `normalize`; did you mean `normalise`?"),
        (json!({ "raet": 1 }), "did you mean `rate`?"),
        (json!({ "normalise": "max" }), "`normalise`: expected \"none\" or \"sum\" or \"l2\", got \"max\""),
        (json!({ "normalise_eps": -1 }), "`normalise_eps`: expected a number from 0"),
    ] {
        let message = testing::map::<Sample>(table, 4).unwrap_err();
        assert!(message.contains(wanted), "{message}");
    }
    assert_eq!(Normalisation::default().values(), config::read::<Normalisation>(&Default::default()).unwrap().values());
}

#[test]
fn a_map_cannot_have_a_key_of_the_normalisation() {
    config! {
        /// A map that wants to normalise in its own way.
        pub struct Own {
            /// Clashes.
            normalise: bool = false,
        }
    }
    impl FeatureMap for Own {
        const NAME: &'static str = "own";
        const CITATION: &'static str = "none";
        fn features(&self, dim: usize) -> usize {
            dim
        }
        fn apply(&self, map: &Map) -> Expr {
            map.input()
        }
    }
    let message = testing::map::<Own>(json!({}), 4).unwrap_err();
    assert!(message.contains("the key `normalise` of feature map `own` is one that every map has"), "{message}");
}
