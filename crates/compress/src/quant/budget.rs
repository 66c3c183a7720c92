//! A choice for every weight within a byte budget.

use super::fit::Target;

/// One way to store a weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) target: Target,
    /// Bytes in the file.
    pub(crate) bytes: u64,
    /// The loss, in a unit common to all weights.
    pub(crate) loss: f64,
}

/// The index of a candidate of each weight, of small total loss within `room` bytes; `None` if the smallest
/// do not fit.
///
/// # Algorithm
/// Starts from the smallest candidate of each weight and makes one change at a time, the one with the largest
/// gain per byte. The changes of a weight follow its convex hull, so these are the choices at a falling price
/// per byte (Lagrange) until one no longer fits; then others that fit are made.
pub(crate) fn choose(weights: &[Vec<Candidate>], room: u64) -> Option<Vec<usize>> {
    let smallest = |of: &Vec<Candidate>| {
        (0..of.len()).min_by(|&a, &b| of[a].bytes.cmp(&of[b].bytes).then(of[a].loss.total_cmp(&of[b].loss)))
    };
    let mut chosen: Vec<usize> = weights.iter().map(smallest).collect::<Option<_>>()?;
    let bytes: u64 = chosen.iter().zip(weights).map(|(&i, of)| of[i].bytes).sum();
    let mut left = room.checked_sub(bytes)?;
    loop {
        let mut best: Option<(f64, usize, usize, u64)> = None;
        for (w, of) in weights.iter().enumerate() {
            let now = of[chosen[w]];
            for (i, other) in of.iter().enumerate() {
                let more = other.bytes.saturating_sub(now.bytes);
                let gain = (now.loss - other.loss) / (more.max(1)) as f64;
                if other.loss < now.loss && more <= left && best.is_none_or(|(most, ..)| gain > most) {
                    best = Some((gain, w, i, more));
                }
            }
        }
        let Some((_, weight, candidate, more)) = best else { return Some(chosen) };
        chosen[weight] = candidate;
        left -= more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(bytes: u64, loss: f64) -> Candidate {
        Candidate { target: Target::FLOATS, bytes, loss }
    }

    #[test]
    fn what_loses_most_gets_the_bytes() {
        let of =
            |factor: f64| vec![candidate(4, 4.0 * factor), candidate(5, factor), candidate(8, 0.1 * factor)];
        let weights = [of(1.0), of(10.0), of(1.0)];
        assert_eq!(choose(&weights, 11), None);
        assert_eq!(choose(&weights, 12), Some(vec![0, 0, 0]));
        assert_eq!(choose(&weights, 13), Some(vec![0, 1, 0]));
        assert_eq!(choose(&weights, 15), Some(vec![1, 1, 1]));
        assert_eq!(choose(&weights, 18), Some(vec![1, 2, 1]));
        assert_eq!(choose(&weights, 1000), Some(vec![2, 2, 2]));
    }

    /// Compared with exhaustive search, over random costs.
    #[test]
    fn near_the_best_of_all() {
        let random = |n: u64| (n.wrapping_mul(6_364_136_223_846_793_005) >> 33) as f64 / (1u64 << 31) as f64;
        for case in 0..20u64 {
            let weights: Vec<Vec<Candidate>> = (0..5)
                .map(|w| {
                    (0..3)
                        .map(|i| candidate(2 + 3 * i, random(case * 100 + w * 10 + i + 1) / (i + 1) as f64))
                        .collect()
                })
                .collect();
            for room in [10, 17, 25] {
                let total = |chosen: &[usize]| -> (u64, f64) {
                    let each = chosen.iter().zip(&weights).map(|(&i, of)| of[i]);
                    each.fold((0, 0.0), |(b, l), c| (b + c.bytes, l + c.loss))
                };
                let all = (0..243usize).map(|n| [n % 3, n / 3 % 3, n / 9 % 3, n / 27 % 3, n / 81]);
                let fits = all.map(|chosen| total(&chosen)).filter(|(bytes, _)| *bytes <= room);
                let best = fits.map(|(_, loss)| loss).fold(f64::INFINITY, f64::min);
                let (bytes, loss) = total(&choose(&weights, room).unwrap());
                assert!(bytes <= room && loss <= best + 1e-12, "{loss} for {best}");
            }
        }
    }

    #[test]
    fn a_step_off_the_convex_hull_is_passed_over() {
        let weights = [
            vec![candidate(1, 10.0), candidate(4, 9.5), candidate(10, 0.0)],
            vec![candidate(1, 10.0), candidate(9, 9.0)],
        ];
        assert_eq!(choose(&weights, 11), Some(vec![2, 0]));
        assert_eq!(choose(&weights, 10), Some(vec![1, 0]), "the largest gain per byte among those that fit");
    }

    #[test]
    fn a_weight_that_loses_nothing_takes_the_least() {
        let weights =
            [vec![candidate(9, 0.0), candidate(2, 0.0)], vec![candidate(3, 1.0), candidate(6, 0.0)]];
        assert_eq!(choose(&weights, 8), Some(vec![1, 1]));
    }
}
