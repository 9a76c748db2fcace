//! What the host proved about an update rule, in words and as JSON.

use fwp_program::CheckError;
use fwp_program::analysis::{Additive, Affine, Analysis, Canonical, Class, Finding, Range, Stratum, analyse};
use fwp_program::kernel::{Real, Target, of_rule};
use fwp_sdk::program::Program;
use serde_json::{Value, json};

use crate::failure::literal;
use crate::output::{self, WIDTH};

fn range(range: Range) -> &'static str {
    match range {
        Range::Log => "positive, its logarithm is known exactly",
        Range::Positive => "positive",
        // Such as a parameter, which `apply` takes from a file.
        Range::Signed => "not known to be positive",
    }
}

fn affine(affine: Affine) -> &'static str {
    match affine {
        Affine::Proven => "proven",
        Affine::InNumbers => "in numbers",
        Affine::No => "no",
        Affine::Unknown => "unknown",
    }
}

fn names(p: &Program, states: &[u32]) -> Vec<String> {
    states.iter().filter_map(|s| p.states.get(*s as usize)).map(|s| s.name.clone()).collect()
}

/// Which states have a form and which are walked, in words.
fn chunks(p: &Program, c: &Canonical) -> String {
    let list = |walked: bool| -> Vec<String> {
        let of = |s: &Stratum| match s {
            Stratum::Chunk(f) if !walked => names(p, &[f.state]),
            Stratum::Walk(w) if walked => names(p, &w.states),
            _ => Vec::new(),
        };
        c.strata.iter().flat_map(of).collect()
    };
    let walked = list(true);
    let mut text = format!("{} in chunks", list(false).join(", "));
    if !walked.is_empty() {
        text += &format!(", {} walked", walked.join(", "));
    }
    text
}

/// What the host finds out of an update rule without running it.
pub struct Proved {
    /// The form of its step.
    pub analysis: Analysis,
    /// Why there is no kernel for it at these sizes, if there is none.
    pub no_kernel: Option<String>,
}

impl Proved {
    /// Analyses a rule, and has its kernel written but not compiled.
    ///
    /// # Errors
    /// A step that cannot be analysed.
    pub fn of(rule: &Program) -> Result<Proved, CheckError> {
        // Whether there is a kernel depends on neither precision nor machine, but for a text that is far too long.
        let target = Target { real: Real::F32, vector_bytes: 32 };
        let no_kernel = of_rule(rule, target).err().map(|why| why.0);
        Ok(Proved { analysis: analyse(rule)?, no_kernel })
    }
}

/// The finding in words and symbols, lines of at most [`WIDTH`] columns where words allow it.
pub fn text(p: &Program, proved: &Proved) -> String {
    let a = &proved.analysis;
    let mut out = String::new();
    let mut line = |indent: usize, text: &str| {
        out += &output::wrapped(&output::indented(&literal(text), indent), WIDTH);
        out.push('\n');
    };
    for f in &a.findings {
        line(2, &heading(p, f));
        for equation in &f.formula {
            line(6, equation);
        }
        for (name, r) in &f.ranges {
            line(4, &format!("decay {name}: {}", range(*r)));
        }
        match &f.independent[..] {
            [] => {}
            [axis] => line(4, &format!("{axis} are independent of each other")),
            _ => line(4, "rows and columns are independent of each other"),
        }
        if let Some(reason) = &f.obstacle {
            line(4, &format!("in the way: {reason}"));
        }
    }
    if !a.reads.is_empty() {
        line(2, &format!("outputs read {}", a.reads.join("; ")));
    }
    // What no state by itself is to blame for, such as an output that takes all of one.
    if let Err(reason) = &a.canonical
        && a.findings.iter().all(|f| f.obstacle.as_ref() != Some(reason))
    {
        line(2, "the step as a whole has no chunkwise form");
        line(4, &format!("in the way: {reason}"));
    }
    let [before, step, after] = a.hoisted;
    line(2, &format!("operations: {before} before the steps, {step} in a step, {after} after the steps"));
    line(2, "executors");
    line(4, "reference  yes");
    let chunkwise = match &a.canonical {
        Ok(c) => format!("yes: {}", chunks(p, c)),
        Err(reason) => format!("no: {reason}"),
    };
    line(4, &format!("chunkwise  {chunkwise}"));
    line(4, &format!("scan       {}", proved.no_kernel.as_ref().map_or("yes".into(), |why| format!("no: {why}"))));
    out
}

fn heading(p: &Program, f: &Finding) -> String {
    let mut text = format!("{}: {}", names(p, &f.states).join(", "), f.class);
    match f.additive {
        Additive::None | Additive::Unknown => {}
        // A vector or a number is added, no outer product.
        Additive::Outer(_) if f.states.iter().all(|s| p.states[*s as usize].shape.len() < 2) => text += ", added to",
        additive => text += &format!(", adds {additive}"),
    }
    if f.affine == Affine::InNumbers && f.class != Class::Unproven {
        text += " (on random numbers)";
    }
    text
}

/// The finding as JSON.
pub fn json(p: &Program, proved: &Proved) -> Value {
    let a = &proved.analysis;
    let strata = a.findings.iter().map(|f| {
        json!({
            "states": names(p, &f.states), "class": f.class.to_string(), "additive": f.additive.to_string(),
            "affine": affine(f.affine), "formula": f.formula,
            "decays": f.ranges.iter().map(|(name, r)| json!({"name": name, "range": range_name(*r)})).collect::<Vec<_>>(),
            "independent": f.independent.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "obstacle": f.obstacle.as_ref().map(ToString::to_string),
        })
    });
    let [before, step, after] = a.hoisted;
    let chunkwise = match &a.canonical {
        Ok(c) => json!({"applies": true, "how": chunks(p, c)}),
        Err(reason) => json!({"applies": false, "reason": reason.to_string()}),
    };
    let scan = match &proved.no_kernel {
        None => json!({"applies": true}),
        Some(reason) => json!({"applies": false, "reason": reason}),
    };
    json!({
        "strata": strata.collect::<Vec<_>>(), "reads": a.reads,
        "operations": {"before": before, "step": step, "after": after},
        "executors": {"reference": {"applies": true}, "chunkwise": chunkwise, "scan": scan},
    })
}

fn range_name(range: Range) -> &'static str {
    match range {
        Range::Log => "log",
        Range::Positive => "positive",
        Range::Signed => "signed",
    }
}

#[cfg(test)]
mod tests {
    use fwp_sdk::prelude::*;
    use fwp_sdk::testing;

    use super::*;

    config! {
        /// A rule whose loop is too long for a kernel, unless it is told otherwise.
        pub struct Looping {
            /// How often it goes round.
            times: usize = 5000,
        }
    }

    impl UpdateRule for Looping {
        const NAME: &'static str = "looping";
        const CITATION: &'static str = "test";
        const OBJECTIVE: &'static str = "none: a test";
        fn signature(&self, dims: Dims) -> Signature {
            Signature::new(dims).state("w", [dims.value, dims.key], StateStart::Zeros)
        }
        fn step(&self, s: &mut Step) {
            let (q, k, v) = s.query_key_value();
            let w = s.repeat(self.times, &[&s.state("w")], &[&outer(v, k)], |w, x| vec![(&w[0] + &x[0]).tanh()]);
            s.output(w[0].matvec(&q));
            s.set_state("w", &w[0]);
        }
    }

    config! {
        /// A rule whose output takes all of its state, unless it is told otherwise.
        pub struct Whole {
            /// Whether the output takes all of the state.
            whole: bool = true,
        }
    }

    impl UpdateRule for Whole {
        const NAME: &'static str = "whole";
        const CITATION: &'static str = "test";
        const OBJECTIVE: &'static str = "none: a test";
        fn signature(&self, dims: Dims) -> Signature {
            Signature::new(dims).state("w", [dims.value, dims.key], StateStart::Zeros)
        }
        fn step(&self, s: &mut Step) {
            let (q, k, v) = s.query_key_value();
            let w = s.state("w") + outer(v, k);
            s.output(if self.whole { w.tanh().matvec(q) } else { w.matvec(q) });
            s.set_state("w", w);
        }
    }

    #[test]
    fn a_step_without_a_form_says_what_is_in_the_way_even_where_every_state_has_one() {
        for whole in [false, true] {
            let rule = testing::rule::<Whole>(json!({ "whole": whole }), testing::DIMS).unwrap();
            let said = text(&rule, &Proved::of(&rule).unwrap());
            assert!(said.starts_with("  w: identity, adds 1 outer product\n"), "{said}");
            let words: Vec<&str> = said.split_whitespace().collect();
            let reason = "`tanh`: it takes all of state `w`";
            assert_eq!(words.join(" ").matches(reason).count(), if whole { 2 } else { 0 }, "{said}");
            assert_eq!(said.contains("  the step as a whole has no chunkwise form\n    in the way: "), whole, "{said}");
        }
        // Said of a state, it is not said again.
        let rule = testing::rule::<Looping>(json!({ "times": 5 }), testing::DIMS).unwrap();
        let said = text(&rule, &Proved::of(&rule).unwrap());
        assert!(said.contains("    in the way: ") && !said.contains("as a whole"), "{said}");
    }

    config! {
        /// A rule that forgets at a rate which is given to it.
        pub struct Given {}
    }

    impl UpdateRule for Given {
        const NAME: &'static str = "given";
        const CITATION: &'static str = "test";
        const OBJECTIVE: &'static str = "none: a test";
        fn signature(&self, dims: Dims) -> Signature {
            let signature = Signature::new(dims).state("w", [dims.value, dims.key], StateStart::Zeros);
            signature.parameter("gamma", [], Init::constant(0.5)).constant()
        }
        fn step(&self, s: &mut Step) {
            let (q, k, v) = s.query_key_value();
            let w = s.parameter("gamma") * s.state("w") + outer(v, k);
            s.output(w.matvec(q));
            s.set_state("w", w);
        }
    }

    #[test]
    fn of_a_decay_that_may_be_anything_nothing_is_claimed() {
        let rule = testing::rule::<Given>(json!({}), testing::DIMS).unwrap();
        let said = text(&rule, &Proved::of(&rule).unwrap());
        assert!(said.contains("    decay gamma: not known to be positive\n"), "{said}");
    }

    #[test]
    fn a_rule_without_a_kernel_is_said_to_have_none_and_why() {
        for (times, why) in [(5, None), (5000, Some("with its loops written out it has more than 4000 operations"))] {
            let rule = testing::rule::<Looping>(json!({ "times": times }), testing::DIMS).unwrap();
            let proved = Proved::of(&rule).unwrap();
            assert_eq!(proved.no_kernel.as_deref(), why);
            let (said, listed) = (text(&rule, &proved), json(&rule, &proved));
            let scan = &listed["executors"]["scan"];
            match why {
                None => assert!(said.contains("scan       yes") && *scan == json!({ "applies": true }), "{said}{scan}"),
                Some(why) => {
                    assert!(said.contains(&format!("scan       no: {why}")), "{said}");
                    assert_eq!(*scan, json!({ "applies": false, "reason": why }));
                }
            }
        }
    }
}
