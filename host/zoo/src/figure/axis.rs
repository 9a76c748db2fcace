//! Axes: from values to places, and where ticks stand.

use super::font;

/// An axis of a plot.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// What is along it.
    pub label: String,
    /// Whether equal distances are equal ratios.
    pub log: bool,
    /// The value at its beginning.
    pub min: f64,
    /// The value at its end.
    pub max: f64,
}

/// A mark on an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// Where it stands.
    pub value: f64,
    /// What is written beside it; nothing for a small mark between others.
    pub label: String,
}

/// The part of an axis that is left free before the first and behind the last value.
const MARGIN: f64 = 0.05;

impl Axis {
    /// An axis for these values; bounds that are given hold. On a logarithmic axis only positive values count.
    pub fn around(label: &str, log: bool, values: impl Iterator<Item = f64>, min: Option<f64>, max: Option<f64>) -> Axis {
        let values: Vec<f64> = values.filter(|v| v.is_finite() && (!log || *v > 0.0)).collect();
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (low, high) = if low <= high {
            (low, high)
        } else if log {
            (0.1, 1.0)
        } else {
            (0.0, 1.0)
        };
        let to = |v: f64| if log { v.log10() } else { v };
        let from = |v: f64| if log { 10_f64.powf(v) } else { v };
        let (low, high) = (to(low), to(high));
        let span = if high > low { high - low } else { low.abs().max(1.0) * 0.5 };
        let given = |v: Option<f64>| v.filter(|v| !log || *v > 0.0);
        let min = given(min).unwrap_or_else(|| from(low - MARGIN * span));
        let max = given(max).unwrap_or_else(|| from(high + MARGIN * span));
        // Bounds that say nothing together with the values.
        let max = if max > min {
            max
        } else if log {
            min * 10.0
        } else {
            min + 1.0
        };
        Axis { label: label.into(), log, min, max }
    }

    /// Where a value lies, 0 at the beginning of the axis and 1 at its end; what a logarithm does not reach lies far before it.
    pub fn place(&self, value: f64) -> f64 {
        match self.log {
            true if value <= 0.0 => -1.0,
            true => (value / self.min).log10() / (self.max / self.min).log10(),
            false => (value - self.min) / (self.max - self.min),
        }
    }

    /// Ticks with round values; of a logarithmic axis whole decades, with small marks between them.
    pub fn ticks(&self) -> Vec<Tick> {
        if self.log { self.decades() } else { self.steps() }
    }

    /// Ticks at the values themselves, where all of them can be read on an axis of that length; else round ones.
    pub fn ticks_at(&self, values: &[f64], length: f64, size: f64) -> Vec<Tick> {
        let mut values: Vec<f64> = values.iter().copied().filter(|v| (0.0..=1.0).contains(&self.place(*v))).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        let ticks: Vec<Tick> = values.iter().map(|v| Tick { value: *v, label: plain(*v) }).collect();
        let apart = |pair: &[Tick]| {
            let needed = (font::width(&pair[0].label, size) + font::width(&pair[1].label, size)) / 2.0 + 0.6 * size;
            (self.place(pair[1].value) - self.place(pair[0].value)) * length >= needed
        };
        if ticks.is_empty() || !ticks.windows(2).all(apart) { self.ticks() } else { ticks }
    }

    fn steps(&self) -> Vec<Tick> {
        let span = self.max - self.min;
        // The smallest round step with which there are not more ticks than can be read.
        let power = 10_f64.powf((span / 10.0).log10().floor());
        let steps = [1.0, 2.0, 2.5, 5.0, 10.0, 20.0].map(|f| f * power);
        let step = steps.into_iter().find(|s| span / s <= 6.5 + 1e-9).unwrap_or(span / 2.0);
        let places = usize::try_from((-(step * 1.0001).log10().floor()) as i64).unwrap_or_default();
        // A step of 2.5 needs a place more.
        let places = if (step * 10_f64.powi(places as i32)).fract().abs() > 1e-6 { places + 1 } else { places };
        let first = (self.min / step - 1e-9).ceil() as i64;
        let last = (self.max / step + 1e-9).floor() as i64;
        (first..=last.min(first + 50))
            .map(|i| {
                let value = i as f64 * step;
                let value = if value == 0.0 { 0.0 } else { value };
                Tick { value, label: format!("{value:.places$}") }
            })
            .collect()
    }

    fn decades(&self) -> Vec<Tick> {
        let (first, last) = (self.min.log10().floor() as i32, self.max.log10().ceil() as i32);
        let inside = |v: f64| v >= self.min * 0.999_999 && v <= self.max * 1.000_001;
        let whole = (first..=last).filter(|e| inside(10_f64.powi(*e))).count();
        // Not more than can be read.
        let every = (last - first) / 10 + 1;
        let mut ticks = Vec::new();
        for exponent in first..=last {
            for digit in 1..10 {
                let value = f64::from(digit) * 10_f64.powi(exponent);
                if !inside(value) {
                    continue;
                }
                let label = match digit {
                    // Less than two decades need values between.
                    1 | 2 | 5 if whole < 2 => plain(value),
                    1 if exponent.rem_euclid(every) == 0 => power_of_ten(exponent),
                    _ => String::new(),
                };
                if digit == 1 || every == 1 {
                    ticks.push(Tick { value, label });
                }
            }
        }
        ticks
    }
}

/// A value as a person writes it.
fn plain(value: f64) -> String {
    let size = value.abs();
    match size {
        0.0 => "0".into(),
        _ if size >= 1e6 && value % 1e6 == 0.0 => format!("{}M", value / 1e6),
        _ if (1e-3..1e6).contains(&size) => ((value * 1e6).round() / 1e6).to_string(),
        _ => format!("{value:.0e}"),
    }
}

/// `10⁻³`.
fn power_of_ten(exponent: i32) -> String {
    let raised = |c: char| match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        c => char::from_u32(0x2070 + c.to_digit(10).unwrap_or_default()).unwrap_or(c),
    };
    match exponent {
        0 => "1".into(),
        1 => "10".into(),
        n => format!("10{}", n.to_string().chars().map(raised).collect::<String>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks().into_iter().map(|t| t.label).filter(|l| !l.is_empty()).collect()
    }

    fn axis(log: bool, min: f64, max: f64) -> Axis {
        Axis { label: String::new(), log, min, max }
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(labels(&axis(false, 0.0, 1.0)), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&axis(false, -0.03, 0.1)), ["-0.02", "0.00", "0.02", "0.04", "0.06", "0.08", "0.10"]);
        assert_eq!(labels(&axis(false, 0.0, 0.15)), ["0.000", "0.025", "0.050", "0.075", "0.100", "0.125", "0.150"]);
        assert_eq!(labels(&axis(false, 11.0, 640.0)), ["100", "200", "300", "400", "500", "600"]);
        assert_eq!(labels(&axis(true, 1e-4, 1.0)), ["10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "1"]);
        assert_eq!(labels(&axis(true, 150.0, 900.0)), ["200", "500"]);
        assert_eq!(labels(&axis(true, 2000.0, 30000.0)), ["2000", "5000", "10000", "20000"]);
        assert!(labels(&axis(true, 1e-30, 1e30)).len() < 12);
        assert_eq!(power_of_ten(-12), "10⁻¹²");
    }

    #[test]
    fn places_run_from_nought_to_one() {
        let linear = axis(false, 10.0, 20.0);
        assert_eq!((linear.place(10.0), linear.place(15.0), linear.place(20.0)), (0.0, 0.5, 1.0));
        let log = axis(true, 0.01, 100.0);
        assert!((log.place(1.0) - 0.5).abs() < 1e-12 && log.place(0.0) < 0.0);
    }

    #[test]
    fn an_axis_holds_its_values_whatever_they_are() {
        for (log, values) in [
            (false, vec![3.0]),
            (false, vec![0.0]),
            (true, vec![1e-5, 0.0, f64::NAN, 2.0]),
            (true, vec![]),
            (false, vec![]),
            (true, vec![-1.0]),
            (false, vec![-5.0, 5.0]),
        ] {
            let axis = Axis::around("x", log, values.iter().copied(), None, None);
            assert!(axis.max > axis.min && !axis.ticks().is_empty(), "{axis:?}");
            for v in values.iter().filter(|v| v.is_finite() && (!log || **v > 0.0)) {
                assert!((0.0..=1.0).contains(&axis.place(*v)), "{v}: {axis:?}");
            }
        }
        let given = Axis::around("x", true, [0.5].into_iter(), Some(1e-4), Some(1.0));
        assert_eq!((given.min, given.max), (1e-4, 1.0));
        let crossed = Axis::around("x", false, [0.5].into_iter(), Some(2.0), Some(1.0));
        assert!(crossed.max > crossed.min);
    }

    #[test]
    fn ticks_stand_at_the_values_where_there_is_room() {
        let widths = axis(true, 60.0, 520.0);
        let labels =
            |values: &[f64], length: f64| widths.ticks_at(values, length, 12.0).into_iter().map(|t| t.label).collect::<Vec<_>>();
        assert_eq!(labels(&[512.0, 64.0, 128.0, 256.0], 400.0), ["64", "128", "256", "512"]);
        assert!(labels(&[512.0, 64.0, 65.0], 400.0).iter().all(|l| l != "65"));
    }
}
