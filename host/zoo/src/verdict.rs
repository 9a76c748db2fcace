//! Measured beside published.

use fwp_recipe::more_is_better;
use serde::Serialize;

use crate::points::Point;

/// What the measurements of a point say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Enough seeds are within the bounds.
    Reproduced,
    /// A failure was published and expected, and as many seeds did not fail as would make a success.
    BetterThanPublished,
    /// Too few seeds are within the bounds, whatever the missing ones will be.
    NotReproduced,
    /// There are no bounds: the values speak for themselves.
    Reported,
    /// Nothing was measured, or too little to tell.
    NotRun,
}

impl Verdict {
    /// The word where nothing was published that could be reproduced.
    fn of_expectation(self) -> &'static str {
        match self {
            Self::Reproduced => "as expected",
            Self::BetterThanPublished => "better than expected",
            Self::NotReproduced => "not as expected",
            Self::Reported | Self::NotRun => self.name(),
        }
    }

    /// All, in the order of a table.
    pub const ALL: [Verdict; 5] =
        [Self::Reproduced, Self::BetterThanPublished, Self::NotReproduced, Self::Reported, Self::NotRun];

    /// Words for a person.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reproduced => "reproduced",
            Self::BetterThanPublished => "better than published",
            Self::NotReproduced => "not reproduced",
            Self::Reported => "reported",
            Self::NotRun => "not run",
        }
    }
}

/// A verdict and what it rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// Seeds that were measured.
    pub measured: usize,
    /// Seeds that there are to measure.
    pub seeds: usize,
    /// Measured seeds within the bounds.
    pub within: usize,
}

impl Judgement {
    /// The verdict on a point, and how many seeds it rests on where some are missing: `reproduced, 2 of 3 seeds`.
    pub fn text(&self, point: &Point) -> String {
        let name = if point.published.is_some() { self.verdict.name() } else { self.verdict.of_expectation() };
        let seeds = format!("{} of {} seeds", self.measured, self.seeds);
        match self.verdict {
            _ if self.measured == 0 || self.measured == self.seeds => name.into(),
            Verdict::NotRun => seeds,
            _ => format!("{name}, {seeds}"),
        }
    }
}

/// Where a value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Within the bounds.
    Within,
    /// Beyond the bound on the good side: a failure was expected, and this is none.
    Better,
    /// Beyond the bound on the bad side, or no finite value at all.
    Worse,
}

/// Where a value of a point lies; no value, of a run that never gave a finite one, is the worst.
pub fn place(point: &Point, value: Option<f64>) -> Place {
    let Some(value) = value.filter(|v| v.is_finite()) else { return Place::Worse };
    let above = point.at_most.is_some_and(|bound| value > bound);
    let below = point.at_least.is_some_and(|bound| value < bound);
    let better = if more_is_better(&point.metric) { above } else { below };
    match (above || below, better) {
        (false, _) => Place::Within,
        (true, true) => Place::Better,
        (true, false) => Place::Worse,
    }
}

/// Judges a point by the values of its seeds; those that were not measured are not in the list.
pub fn judge(point: &Point, values: &[Option<f64>]) -> Judgement {
    let count = |wanted: Place| values.iter().filter(|v| place(point, **v) == wanted).count();
    let (measured, seeds) = (values.len(), point.seeds.len());
    let (within, better) = (count(Place::Within), count(Place::Better));
    let missing = seeds.saturating_sub(measured);
    // Of a failure that the best of several seeds stands for, all have to fail.
    let may_succeed = if point.is_failure() { better + missing } else { better };
    let verdict = if !point.is_judged() {
        if measured == 0 { Verdict::NotRun } else { Verdict::Reported }
    } else if better >= point.needed {
        Verdict::BetterThanPublished
    } else if within >= point.needed {
        if may_succeed < point.needed { Verdict::Reproduced } else { Verdict::NotRun }
    } else if within + better >= point.needed {
        Verdict::BetterThanPublished
    } else if within + better + missing < point.needed {
        Verdict::NotReproduced
    } else {
        Verdict::NotRun
    };
    Judgement { verdict, measured, seeds, within }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(metric: &str, at_most: Option<f64>, at_least: Option<f64>, needed: usize) -> Point {
        let mut point = Point::of_recipe(None, String::new());
        (point.metric, point.at_most, point.at_least, point.needed) = (metric.into(), at_most, at_least, needed);
        point
    }

    fn verdict(point: &Point, values: &[f64]) -> &'static str {
        judge(point, &values.iter().map(|v| Some(*v)).collect::<Vec<_>>()).verdict.name()
    }

    #[test]
    fn a_success_is_reproduced_by_enough_seeds() {
        let success = point("eval/loss", Some(0.001), None, 2);
        for (values, says) in [
            (&[][..], "not run"),
            (&[0.0005], "not run"),
            (&[0.0005, 0.001], "reproduced"),
            (&[0.0005, 0.2], "not run"),
            (&[0.2, 0.2], "not reproduced"),
            (&[0.2, 0.0005, 0.2], "not reproduced"),
            (&[0.2, 0.0005, 0.0001], "reproduced"),
            (&[f64::NAN, f64::INFINITY], "not reproduced"),
        ] {
            assert_eq!(verdict(&success, values), says, "{values:?}");
        }
        assert_eq!(verdict(&point("eval/loss", Some(0.001), None, 1), &[0.2, 0.0005]), "reproduced");
        assert_eq!(judge(&success, &[None, None]).verdict, Verdict::NotReproduced);
    }

    #[test]
    fn a_failure_that_does_not_come_is_better_than_published() {
        let failure = point("eval/loss", Some(0.1), Some(0.01), 2);
        assert_eq!(verdict(&failure, &[0.02, 0.03, 0.5]), "reproduced");
        assert_eq!(verdict(&failure, &[0.001, 0.001, 0.5]), "better than published");
        assert_eq!(verdict(&failure, &[0.001, 0.02, 0.5]), "better than published");
        assert_eq!(verdict(&failure, &[0.02, 0.5, 0.5]), "not reproduced");
        // More accuracy than a failure has.
        let failure = point("eval/scaled_accuracy", Some(0.2), None, 2);
        assert_eq!(verdict(&failure, &[0.0, 0.1, 1.0]), "reproduced");
        assert_eq!(verdict(&failure, &[0.9, 0.9, 0.1]), "better than published");
        // The best of three: one success is one.
        let failure = point("eval/scaled_accuracy", Some(0.2), None, 1);
        assert_eq!(verdict(&failure, &[0.0, 0.1, 1.0]), "better than published");
        assert_eq!((verdict(&failure, &[0.0, 0.1]), verdict(&failure, &[0.0, 0.1, 0.2])), ("not run", "reproduced"));
        // A bound from below is a success there.
        assert_eq!(verdict(&point("eval/accuracy", None, Some(0.9), 2), &[0.5, 0.5]), "not reproduced");
    }

    #[test]
    fn values_without_bounds_are_reported() {
        let free = point("eval/loss", None, None, 2);
        assert_eq!((verdict(&free, &[]), verdict(&free, &[3.0])), ("not run", "reported"));
        assert_eq!(judge(&free, &[Some(3.0)]).text(&free), "reported, 1 of 3 seeds");
        assert_eq!(judge(&free, &[None; 3]).text(&free), "reported");
        let mut bounded = point("eval/loss", Some(1.0), None, 2);
        assert_eq!(judge(&bounded, &[Some(0.5)]).text(&bounded), "1 of 3 seeds");
        // Nothing can be reproduced of which nothing was published.
        assert_eq!(judge(&bounded, &[Some(0.5); 3]).text(&bounded), "as expected");
        assert_eq!(judge(&bounded, &[Some(2.0); 3]).text(&bounded), "not as expected");
        bounded.published = Some(0.7);
        assert_eq!(judge(&bounded, &[Some(0.5); 2]).text(&bounded), "reproduced, 2 of 3 seeds");
    }
}
