//! Positions of numbers on an axis, and the numbers at its ticks.

/// Magnitude from which on numbers are abbreviated.
const LONG: f64 = 1e4;

/// An axis from `low` to `high`, which are its first and last places.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Axis {
    low: f64,
    high: f64,
    log: bool,
    /// Numbers at the ticks of the axis, and their format.
    pub(crate) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// An axis with room for all of `values`, except those that are not finite (or, on a logarithmic one, not
    /// positive), with about `count` ticks at most.
    pub(crate) fn new(values: impl Iterator<Item = f64>, log: bool, count: usize) -> Self {
        let usable = values.filter(|value| value.is_finite() && (!log || *value > 0.0));
        let range = usable.fold(None, |range: Option<(f64, f64)>, value| {
            Some(range.map_or((value, value), |(low, high)| (low.min(value), high.max(value))))
        });
        let (low, high) = range.unwrap_or((1.0, 10.0));
        if log { Self::logarithmic(low, high, count) } else { Self::linear(low, high, count) }
    }

    fn linear(low: f64, high: f64, count: usize) -> Self {
        let (low, high) = if high > low { (low, high) } else { (low - 1.0, high + 1.0) };
        let step = nice_step((high - low) / count.max(1) as f64);
        let (first, last) = ((low / step).floor(), (high / step).ceil());
        let largest = (first * step).abs().max((last * step).abs());
        // Three digits must distinguish the numbers.
        let is_short = largest >= LONG && step * 100.1 > 10_f64.powf(largest.log10().floor());
        let decimals = (-step.log10().floor()).max(0.0) as usize;
        let text = |value: f64| if is_short { short(value) } else { format!("{value:.decimals$}") };
        let number = |index: f64| (index * step, text(index * step));
        let ticks = (0..=(last - first) as usize).map(|index| number(first + index as f64)).collect();
        Self { low: first * step, high: last * step, log: false, ticks }
    }

    fn logarithmic(low: f64, high: f64, count: usize) -> Self {
        // A tenth of the range at both ends, so that no point lies on the frame.
        let margin = ((high / low).log10() * 0.08).max(0.15);
        let low = 10_f64.powf(low.log10() - margin).max(f64::MIN_POSITIVE);
        let high = 10_f64.powf(high.log10() + margin).min(f64::MAX);
        let ticks = logarithmic_ticks(low, high, count.max(1));
        let ticks = ticks.into_iter().map(|value| (value, short(value))).collect();
        Self { low, high, log: true, ticks }
    }

    /// Position of a number, 0 at the beginning of the axis and 1 at its end; `None` if it has none.
    pub(crate) fn place(&self, value: f64) -> Option<f64> {
        let map = |value: f64| if self.log { value.log10() } else { value };
        let place = (map(value) - map(self.low)) / (map(self.high) - map(self.low));
        place.is_finite().then_some(place)
    }
}

/// Numbers for a logarithmic axis, at least three, as two do not show the scale: powers of ten, otherwise
/// their parts, otherwise equally spaced positions.
fn logarithmic_ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let powers = (low.log10().ceil() as i32)..=(high.log10().floor() as i32);
    let most = (powers.clone().count() / count + 1) as i32;
    let decades = |stride: i32| {
        let kept = powers.clone().filter(move |power| power.rem_euclid(stride) == 0);
        kept.map(|power| 10_f64.powi(power)).collect::<Vec<_>>()
    };
    let parts = |parts: &[f64]| {
        let powers = (low.log10().floor() as i32)..=(high.log10().floor() as i32);
        let all = powers.flat_map(|power| parts.iter().map(move |part| part * 10_f64.powi(power)));
        all.filter(|value| (low..=high).contains(value)).collect::<Vec<_>>()
    };
    let enough = |ticks: &Vec<f64>| ticks.len() >= 3;
    let found = (1..=most).rev().map(decades).find(enough);
    let found = found.or_else(|| Some(parts(&[1.0, 2.0, 5.0])).filter(enough));
    let found = found.or_else(|| Some(parts(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])).filter(enough));
    found.unwrap_or_else(|| {
        // A step of at most 2.5 eighths of the range.
        let step = nice_step((high - low) / 8.0);
        let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
        (first..=last).map(|index| index as f64 * step).collect()
    })
}

/// The smallest of 1, 2, 5, 10, … times a power of ten that is not below `step`.
fn nice_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0]
        .iter()
        .map(|factor| factor * power)
        .find(|nice| *nice >= step * (1.0 - 1e-9))
        .unwrap_or(10.0 * power)
}

/// `1500` as `1.5k`.
pub(crate) fn short(value: f64) -> String {
    if value.abs() >= 1e12 {
        let text = format!("{value:.2e}");
        let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{}e{power}", without_zeros(digits));
    }
    for (unit, name) in [(1e9, "G"), (1e6, "M"), (1e3, "k")] {
        if value.abs() >= unit {
            return format!("{}{name}", trimmed(value / unit));
        }
    }
    trimmed(value)
}

/// A number to three digits, without trailing zeros.
fn trimmed(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let decimals = (2.0 - value.abs().log10().floor()).clamp(0.0, 12.0) as usize;
    without_zeros(&format!("{value:.decimals$}")).to_owned()
}

/// Digits without trailing zeros after the point.
fn without_zeros(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(values: &[f64], log: bool, expect: &[&str]) {
        let axis = Axis::new(values.iter().copied(), log, 5);
        let ticks: Vec<_> = axis.ticks.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(ticks, expect);
        for value in values.iter().filter(|value| value.is_finite() && (!log || **value > 0.0)) {
            let place = axis.place(*value).unwrap();
            assert!((0.0..=1.0).contains(&place), "{value} at {place}");
        }
        for (value, text) in &axis.ticks {
            let place = axis.place(*value).unwrap();
            assert!((-1e-9..=1.0 + 1e-9).contains(&place), "tick {text} at {place}");
        }
    }

    #[test]
    fn ticks() {
        check(&[0.0, 10.0], false, &["0", "2", "4", "6", "8", "10"]);
        check(&[50.9, 92.0], false, &["50", "60", "70", "80", "90", "100"]);
        check(&[0.11, 0.12], false, &["0.110", "0.112", "0.114", "0.116", "0.118", "0.120"]);
        check(&[-3.0, 7.0], false, &["-4", "-2", "0", "2", "4", "6", "8"]);
        check(&[0.0, 8e3], false, &["0", "2000", "4000", "6000", "8000"]);
        check(&[0.0, 1e4], false, &["0", "2k", "4k", "6k", "8k", "10k"]);
        check(&[-1e6, 1e6], false, &["-1M", "-500k", "0", "500k", "1M"]);
        check(&[0.0, 3e12], false, &["0", "1e12", "2e12", "3e12"]);
        check(&[12e12, 13e12], false, &["1.2e13", "1.22e13", "1.24e13", "1.26e13", "1.28e13", "1.3e13"]);
        check(&[20_000.0, 20_100.0], false, &["20000", "20020", "20040", "20060", "20080", "20100"]);
        check(&[20_000.0, 20_500.0], false, &["20k", "20.1k", "20.2k", "20.3k", "20.4k", "20.5k"]);
        check(&[1e3, 1e6], true, &["1k", "10k", "100k", "1M"]);
        check(&[258.0, 109e6], true, &["100", "10k", "1M", "100M"]);
        check(&[1.0, 1e20], true, &["1", "100k", "10G", "1e15", "1e20"]);
        check(&[1e2, 1e6], true, &["100", "10k", "1M"]);
        check(&[1e3, 2e4], true, &["1k", "2k", "5k", "10k", "20k"]);
        check(&[10.0, 20.0], true, &["8", "9", "10", "20"]);
        check(&[2.9, 3.5], true, &["2.5", "3", "3.5", "4", "4.5"]);
    }

    #[test]
    fn nothing_and_one_number_have_an_axis() {
        check(&[], false, &["0", "2", "4", "6", "8", "10"]);
        check(&[5.0], false, &["4.0", "4.5", "5.0", "5.5", "6.0"]);
        check(&[f64::NAN, 5.0], true, &["4", "5", "6", "7"]);
        check(&[0.0, -1.0], true, &["1", "2", "5", "10"]);
    }

    #[test]
    fn every_logarithmic_axis_can_be_read() {
        for tenths in -30..30 {
            for span in 0..80 {
                let low = 10_f64.powf(f64::from(tenths) / 10.0);
                let high = low * 10_f64.powf(f64::from(span) / 10.0);
                let axis = Axis::new([low, high].into_iter(), true, 5);
                assert!((3..=10).contains(&axis.ticks.len()), "{low} to {high}: {:?}", axis.ticks);
                assert!(axis.ticks.windows(2).all(|pair| pair[0].1 != pair[1].1), "{:?}", axis.ticks);
            }
        }
        let extremes = Axis::new([f64::from_bits(1), f64::MAX].into_iter(), true, 5);
        assert!(extremes.ticks.len() >= 3);
    }

    #[test]
    fn places() {
        let axis = Axis::new([0.0, 10.0].into_iter(), false, 5);
        assert_eq!(axis.place(5.0), Some(0.5));
        assert_eq!(axis.place(f64::NAN), None);
        assert_eq!(Axis::new([1.0].into_iter(), true, 5).place(0.0), None);
    }

    #[test]
    fn short_numbers() {
        for (value, expect) in [
            (0.0, "0"),
            (38_400.0, "38.4k"),
            (109_483_778.0, "109M"),
            (0.000_5, "0.0005"),
            (999.0, "999"),
            (1500.0, "1.5k"),
        ] {
            assert_eq!(short(value), expect);
        }
    }
}
