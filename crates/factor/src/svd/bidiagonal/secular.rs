//! The secular equation `f(ω) = 1 + Σ zᵢ²/(dᵢ² − ω²) = 0` of a diagonal matrix with one full row.

use core::ops::Range;

use faer::reborrow::ReborrowMut;
use faer::{ColMut, Mat, MatMut};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::scalar::Scalar;

/// Interpolation steps between two bisections of the bracket; a root usually takes four to six steps in
/// total.
const STEPS_A_BISECTION: usize = 8;

/// Number of independent accumulators.
const LANES: usize = 8;

/// From this number of poles on the roots are computed on several threads.
const PARALLEL: usize = 128;

/// `d² − ω²` for `ω = base + offset = value`, without cancellation if `base` is the pole nearest to `ω`.
#[inline(always)]
fn gap(pole: f64, base: f64, offset: f64, value: f64) -> f64 {
    ((pole - base) - offset) * (pole + value)
}

/// The roots of a secular equation, and the data from which the vectors are computed.
pub(super) struct Roots<'a> {
    /// `ω`, increasing.
    pub(super) values: Vec<f64>,
    /// For each root the nearest pole, and the distance from it, which is never zero.
    bases: Vec<f64>,
    offsets: Vec<f64>,
    poles: &'a [f64],
    /// The full row that has exactly these roots.
    row: Vec<f64>,
    /// Norms of the unscaled left and right vectors.
    norms: Vec<(f64, f64)>,
}

/// Poles `0 = d₀ < d₁ < …` and weights `zᵢ² > 0`.
struct Secular<'a> {
    poles: &'a [f64],
    weights: &'a [f64],
    /// Value of `|f|` relative to the sum of the magnitudes of its terms at which a root is accepted.
    tolerance: f64,
}

/// Solves the equation of a diagonal matrix, `poles = (0, d₁, d₂, …)` with `0 < d₁ < d₂ …`, whose first row
/// is replaced by `z`.
pub(super) fn solve<'a>(poles: &'a [f64], z: &[f64], tolerance: f64) -> Roots<'a> {
    let weights: Vec<f64> = z.iter().map(|z| z * z).collect();
    let secular = Secular { poles, weights: &weights, tolerance };
    let found = each(poles.len(), |j| secular.root(j));
    let mut roots = Roots {
        values: found.iter().map(|(base, offset)| base + offset).collect(),
        bases: found.iter().map(|(base, _)| *base).collect(),
        offsets: found.iter().map(|(_, offset)| *offset).collect(),
        poles,
        row: Vec::new(),
        norms: Vec::new(),
    };
    roots.row = each(poles.len(), |i| {
        let magnitude = vectorized(
            #[inline(always)]
            || roots.entry(i),
        );
        magnitude.copysign(z[i])
    });
    roots.norms = each(poles.len(), |j| {
        vectorized(
            #[inline(always)]
            || roots.norms_of(j),
        )
    });
    roots
}

/// Calls `work` for every index, on all threads if there are many.
fn each<R: Send>(count: usize, work: impl Fn(usize) -> R + Sync + Send) -> Vec<R> {
    if count < PARALLEL {
        (0..count).map(work).collect()
    } else {
        (0..count).into_par_iter().map(work).collect()
    }
}

/// Runs `work`, which must be `inline(always)`, compiled for the best vector instructions of the machine.
fn vectorized<R>(work: impl Fn() -> R) -> R {
    Arch::new().dispatch(Inlined(work))
}

/// Work held by value and called by reference: a call by value would not be inlined.
struct Inlined<F>(F);

impl<R, F: Fn() -> R> WithSimd for Inlined<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> R {
        (self.0)()
    }
}

impl Roots<'_> {
    /// Magnitude of the row's entry `i` by the formula of Löwner: with it the computed roots are exact, and
    /// the vectors orthogonal (Gu, Eisenstat 1994).
    #[inline(always)]
    fn entry(&self, i: usize) -> f64 {
        let last = self.poles.len() - 1;
        // Every factor is at most 1 and the product is not small, so nothing underflows.
        let below = self.ratios(i, 0..i, 0);
        let above = self.ratios(i, i..last, 1);
        let outside = gap(self.poles[i], self.bases[last], self.offsets[last], self.values[last]);
        (outside * below * above).abs().sqrt()
    }

    /// Product over some roots of `(ωⱼ² − dᵢ²) / (d² − dᵢ²)`, where `d` is the pole `shift` positions later.
    #[inline(always)]
    fn ratios(&self, i: usize, roots: Range<usize>, shift: usize) -> f64 {
        let d = self.poles[i];
        let poles = &self.poles[roots.start + shift..roots.end + shift];
        let (bases, offsets) = (&self.bases[roots.clone()], &self.offsets[roots.clone()]);
        let values = &self.values[roots];
        let factor = |j: usize| gap(d, bases[j], offsets[j], values[j]) / ((d - poles[j]) * (d + poles[j]));
        let mut lanes = [1.0; LANES];
        let whole = poles.len() / LANES * LANES;
        for start in (0..whole).step_by(LANES) {
            for (lane, product) in lanes.iter_mut().enumerate() {
                *product *= factor(start + lane);
            }
        }
        (whole..poles.len()).fold(lanes.iter().product(), |product, j| product * factor(j))
    }

    /// Norms of the left vector `zᵢ/(dᵢ² − ω²)` and of the right one, `dᵢ·zᵢ/(dᵢ² − ω²)` with −1 as the first
    /// entry.
    #[inline(always)]
    fn norms_of(&self, j: usize) -> (f64, f64) {
        let (base, offset, value) = (self.bases[j], self.offsets[j], self.values[j]);
        let (poles, poles_rest) = self.poles.as_chunks::<LANES>();
        let (row, row_rest) = self.row.as_chunks::<LANES>();
        let (mut left, mut right) = ([0.0; LANES], [0.0; LANES]);
        for (poles, row) in poles.iter().zip(row) {
            for lane in 0..LANES {
                let x = row[lane] / gap(poles[lane], base, offset, value);
                let y = x * poles[lane];
                left[lane] += x * x;
                right[lane] += y * y;
            }
        }
        let (mut left, mut right) = (left.iter().sum::<f64>(), 1.0 + right.iter().sum::<f64>());
        for (&pole, &z) in poles_rest.iter().zip(row_rest) {
            let x = z / gap(pole, base, offset, value);
            left += x * x;
            right += (x * pole) * (x * pole);
        }
        (left.sqrt(), right.sqrt())
    }

    /// Rows `terms` of the left vectors, one vector per column.
    pub(super) fn left<T: Scalar>(&self, terms: &[usize]) -> Mat<T> {
        let poles: Vec<f64> = terms.iter().map(|&i| self.poles[i]).collect();
        let row: Vec<f64> = terms.iter().map(|&i| self.row[i]).collect();
        let mut out = Mat::zeros(terms.len(), self.values.len());
        columns(
            out.as_mut(),
            #[inline(always)]
            |j, column| {
                let (base, offset, value) = (self.bases[j], self.offsets[j], self.values[j]);
                let scale = self.norms[j].0.recip();
                for ((x, &pole), &z) in column.iter_mut().zip(&poles).zip(&row) {
                    *x = T::of(scale * z / gap(pole, base, offset, value));
                }
            },
        );
        out
    }

    /// Turns the result of [`Roots::left`] into the same rows of the right vectors, all but the first.
    pub(super) fn turn_right<T: Scalar>(&self, terms: &[usize], left: &mut Mat<T>) {
        let poles: Vec<f64> = terms.iter().map(|&i| self.poles[i]).collect();
        columns(
            left.as_mut(),
            #[inline(always)]
            |j, column| {
                let (left, right) = self.norms[j];
                for (x, &pole) in column.iter_mut().zip(&poles) {
                    *x *= T::of(pole * (left / right));
                }
            },
        );
    }

    /// The first row of the right vectors.
    pub(super) fn right_heads(&self) -> Vec<f64> {
        self.norms.iter().map(|(_, right)| -right.recip()).collect()
    }
}

/// Calls `work` for every column, on all threads if there are many.
fn columns<T: Scalar>(mut a: MatMut<'_, T>, work: impl Fn(usize, &mut [T]) + Sync + Send) {
    if a.nrows() == 0 {
        return;
    }
    let visit = |(j, column): (usize, ColMut<'_, T>)| {
        if let Some(column) = column.try_as_col_major_mut() {
            Arch::new().dispatch(OnColumn { work: &work, j, column: column.as_slice_mut() });
        }
    };
    if a.ncols() < PARALLEL {
        a.rb_mut().col_iter_mut().enumerate().for_each(visit);
    } else {
        a.par_col_iter_mut().enumerate().for_each(visit);
    }
}

struct OnColumn<'a, T, F> {
    work: &'a F,
    j: usize,
    column: &'a mut [T],
}

impl<T, F: Fn(usize, &mut [T])> WithSimd for OnColumn<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        (self.work)(self.j, self.column);
    }
}

/// One side's contribution to `f` and to its derivative by `ω²`.
#[derive(Clone, Copy, Default)]
struct Part {
    value: f64,
    slope: f64,
}

impl Secular<'_> {
    /// The root above pole `j`: the nearest pole, and the distance from it.
    ///
    /// # Algorithm
    /// The «middle way» of Li 1993 (LAPACK working note 89): each side of the sum is replaced by a pole at
    /// its nearest position, with value and slope preserved; a step that leaves the bracket bisects it instead.
    ///
    /// # Convergence
    /// At least every [`STEPS_A_BISECTION`]th step halves the number of floats in the bracket, which is below 2⁶³, so
    /// that after at most `63·STEPS_A_BISECTION` steps either the tolerance is met or the root is known to the last bit.
    fn root(&self, j: usize) -> (f64, f64) {
        vectorized(
            #[inline(always)]
            || self.find(j),
        )
    }

    #[inline(always)]
    fn find(&self, j: usize) -> (f64, f64) {
        let (poles, weights) = (self.poles, self.weights);
        let count = poles.len();
        let total: f64 = weights.iter().sum();
        if count == 1 {
            return (0.0, total.sqrt());
        }
        let last = j + 1 == count;
        // Terms up to this one form the lower side.
        let split = if last { j } else { j + 1 };
        let (base, mut low, mut high, mut offset);
        if last {
            base = poles[j];
            (low, high) = (0.0, total / (base + (base * base + total).sqrt()));
            offset = high;
        } else {
            let half = (poles[j + 1] - poles[j]) / 2.0;
            let (below, above) = self.parts(poles[j], half, split);
            let middle = 1.0 + below.value + above.value;
            let upper = middle < 0.0;
            base = poles[j + usize::from(upper)];
            (low, high) = if upper { (-half, 0.0) } else { (0.0, half) };
            offset = self.start(j, half, middle, upper);
            if !(offset > low && offset < high) {
                offset = between(low, high);
            }
        }
        for step_number in 1.. {
            let value = base + offset;
            let (below, above) = self.parts(base, offset, split);
            let f = 1.0 + below.value + above.value;
            if f.abs() <= self.tolerance * (1.0 + below.value.abs() + above.value.abs()) {
                break;
            }
            if f < 0.0 {
                low = offset;
            } else {
                high = offset;
            }
            let (near, far) =
                (gap(poles[split - 1], base, offset, value), gap(poles[split], base, offset, value));
            let inside = |next: &f64| *next > low && *next < high;
            let guess = if step_number % STEPS_A_BISECTION == 0 {
                None
            } else {
                step(f, (near, below.slope), (far, above.slope), last)
                    .map(|eta| offset + eta / (value + (value * value + eta).sqrt()))
                    .filter(inside)
                    .or_else(|| Some(between(low, high)).filter(inside))
            };
            let next = guess.unwrap_or_else(|| halve(low, high));
            if !inside(&next) {
                // No float is left between the ends of the bracket.
                break;
            }
            offset = next;
        }
        (base, offset)
    }

    /// Root of the equation if all terms but the two around it keep their values at the midpoint.
    #[inline(always)]
    fn start(&self, j: usize, half: f64, middle: f64, upper: bool) -> f64 {
        let (d, e) = (self.poles[j], self.poles[j + 1]);
        let (w, x) = (self.weights[j], self.weights[j + 1]);
        let value = d + half;
        let rest = middle - w / (-half * (d + value)) - x / (half * (e + value));
        let width = (e - d) * (e + d);
        // rest·t² − a·t + b = 0 for t = ω² − base².
        let (base, a, b) =
            if upper { (e, w + x - rest * width, -x * width) } else { (d, rest * width + w + x, w * width) };
        let root = (a * a - 4.0 * rest * b).abs().sqrt();
        let t = if a > 0.0 { 2.0 * b / (a + root) } else { (a - root) / (2.0 * rest) };
        t / (base + (base * base + t).sqrt())
    }

    /// Both sides of the sum at `base + offset`: the terms before `split`, and the others.
    #[inline(always)]
    fn parts(&self, base: f64, offset: f64, split: usize) -> (Part, Part) {
        let (poles, weights) = (self.poles.split_at(split), self.weights.split_at(split));
        (part(poles.0, weights.0, base, offset), part(poles.1, weights.1, base, offset))
    }
}

/// The zero between (or, for the last root, above) two poles at distances `near < far` in `ω²` of
/// `c + s/(near − η) + t/(far − η)`, which has the value `f` and the given slopes on both sides at `η = 0`.
#[inline(always)]
fn step(f: f64, (near, below): (f64, f64), (far, above): (f64, f64), last: bool) -> Option<f64> {
    let c = f - near * below - far * above;
    let a = (near + far) * f - near * far * (below + above);
    let b = near * far * f;
    let root = (a * a - 4.0 * b * c).max(0.0).sqrt();
    let q = (a + root.copysign(a)) / 2.0;
    let fits = |eta: f64| {
        // Downhill, and on the correct side of the poles.
        let inside = if last { eta > far } else { eta > near && eta < far };
        inside && eta * f < 0.0
    };
    [b / q, q / c, -f / (below + above)].into_iter().find(|eta| fits(*eta))
}

/// A point inside a bracket that may end at a pole (zero), where roots differ by orders of magnitude.
#[inline(always)]
fn between(low: f64, high: f64) -> f64 {
    if low == 0.0 {
        high / 8.0
    } else if high == 0.0 {
        low / 8.0
    } else if low > 0.0 && high > 4.0 * low {
        (low * high).sqrt()
    } else if high < 0.0 && low < 4.0 * high {
        -(low * high).sqrt()
    } else {
        low + (high - low) / 2.0
    }
}

/// The midpoint of a bracket by the number of floats on both sides; the ends have one sign or are zero.
/// Returns an end if no float is between them.
#[inline(always)]
fn halve(low: f64, high: f64) -> f64 {
    // The bits of floats of one sign are ordered by magnitude.
    let (low, high, sign) = if high <= 0.0 { (-high, -low, -1.0) } else { (low, high, 1.0) };
    let (low, high) = (low.abs().to_bits(), high.to_bits());
    sign * f64::from_bits(low + high.saturating_sub(low) / 2)
}

#[inline(always)]
fn part(poles: &[f64], weights: &[f64], base: f64, offset: f64) -> Part {
    let value = base + offset;
    let (pole_chunks, pole_rest) = poles.as_chunks::<LANES>();
    let (weight_chunks, weight_rest) = weights.as_chunks::<LANES>();
    let (mut values, mut slopes) = ([0.0; LANES], [0.0; LANES]);
    for (poles, weights) in pole_chunks.iter().zip(weight_chunks) {
        for lane in 0..LANES {
            let inverse = gap(poles[lane], base, offset, value).recip();
            let term = weights[lane] * inverse;
            values[lane] += term;
            slopes[lane] += term * inverse;
        }
    }
    let mut sum = Part { value: values.iter().sum(), slope: slopes.iter().sum() };
    for (&pole, &weight) in pole_rest.iter().zip(weight_rest) {
        let inverse = gap(pole, base, offset, value).recip();
        let term = weight * inverse;
        sum.value += term;
        sum.slope += term * inverse;
    }
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Secular<'_> {
        /// `f` at `base + offset`.
        fn at(&self, (base, offset): (f64, f64)) -> f64 {
            let terms = self.poles.iter().zip(self.weights);
            1.0 + terms.map(|(&pole, &weight)| weight / gap(pole, base, offset, base + offset)).sum::<f64>()
        }
    }

    #[test]
    fn the_middle_of_a_bracket_halves_its_floats() {
        for (mut low, mut high) in
            [(0.0, 1.0), (-1.0, 0.0), (-3.0, -1e-300), (1e-200, 1e-199), (0.5, 0.5 + 1e-12)]
        {
            let mut steps = 0;
            while halve(low, high) > low && halve(low, high) < high {
                if low == 0.0 || high < 0.0 {
                    high = halve(low, high);
                } else {
                    low = halve(low, high);
                }
                steps += 1;
            }
            assert!(steps <= 64, "{steps} steps");
        }
    }

    /// With a tolerance of zero every root is refined to the last bit, or to an `f` of exactly zero.
    #[test]
    fn a_root_that_never_meets_its_tolerance_is_found_to_the_last_bit() {
        // As small as deflation leaves them.
        let poles = [0.0, 1e-31, 1e-12, 1e-3, 1e-3 + 1e-15, 0.5, 1.0];
        let weights = [1e-62, 1.0, 1e-30, 1e-5, 1e-60, 1e-32, 0.25];
        let secular = Secular { poles: &poles, weights: &weights, tolerance: 0.0 };
        for j in 0..poles.len() {
            let (base, offset) = secular.root(j);
            let value = base + offset;
            assert!(
                value >= poles[j] && poles.get(j + 1).is_none_or(|next| value <= *next),
                "root {j}: {value}"
            );
            let near = [offset.next_down(), offset.next_up()].map(|offset| secular.at((base, offset)));
            // Rounding of f: a few ε of the largest terms, which are at the nearest pole.
            let terms: f64 =
                poles.iter().zip(&weights).map(|(&p, w)| (w / gap(p, base, offset, value)).abs()).sum();
            let noise = 1e-14 * (1.0 + terms);
            assert!(near[0] <= noise && near[1] >= -noise, "root {j}: f is {near:?} beside {offset:e}");
        }
    }

    proptest! {
        #[test]
        fn roots_interlace_the_poles_and_solve_the_equation(
            gaps in prop::collection::vec((-15..0).prop_map(|e: i32| 10_f64.powi(e)), 1..40),
            seed in prop::collection::vec((-40..1).prop_map(|e: i32| 10_f64.powi(e)), 40),
        ) {
            let mut poles = vec![0.0];
            for gap in &gaps {
                poles.push(poles[poles.len() - 1] + gap);
            }
            poles.dedup();
            let weights = &seed[..poles.len().min(seed.len())];
            let poles = &poles[..weights.len()];
            let secular = Secular { poles, weights, tolerance: 16.0 * f64::EPSILON };
            for j in 0..poles.len() {
                let (base, offset) = secular.root(j);
                prop_assert!(offset != 0.0 && offset.is_finite());
                let around = [offset.next_down(), offset, offset.next_up()].map(|offset| secular.at((base, offset)));
                let value = base + offset;
                let terms: f64 =
                    poles.iter().zip(weights).map(|(&p, w)| (w / gap(p, base, offset, value)).abs()).sum();
                let noise = 1e-13 * (1.0 + terms);
                let solved = around[1].abs() <= noise || (around[0] <= noise && around[2] >= -noise);
                prop_assert!(solved, "root {j} of {poles:?}, {weights:?}: {around:?} at {base} + {offset:e}");
            }
        }
    }
}
