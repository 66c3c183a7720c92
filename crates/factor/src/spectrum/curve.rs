//! The error curve of a matrix over all ranks, as CSV and as an SVG plot.

use core::fmt::Write;

use faer::MatRef;

use super::{ElementwiseError, Spectrum, elementwise_errors};
use crate::error::Result;
use crate::scalar::Scalar;
use crate::svd::exact;

/// One rank of an [`ErrorCurve`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ErrorPoint {
    /// The rank, from 0.
    pub rank: usize,
    /// The singular value that this rank adds; 0 for rank 0.
    pub singular_value: f64,
    /// Fraction of the squared norm that is kept.
    pub energy: f64,
    /// `‖A − A_r‖_F / ‖A‖_F`.
    pub relative_error: f64,
    /// Mean and maximum of `|A − A_r|`.
    pub elementwise: ElementwiseError,
}

/// The cost of truncating one matrix, for all ranks, from one SVD.
///
/// ```
/// use lowrank_factor::{ErrorCurve, Mat};
/// let a = Mat::from_fn(12, 8, |i, j| ((i * j) as f64).sin());
/// let curve = ErrorCurve::of(a.as_ref())?;
/// assert_eq!(curve.points().len(), 9);
/// assert!(curve.to_csv().starts_with("rank,singular_value,energy,relative_error,mean_error,max_error\n0,"));
/// assert!(curve.to_svg("layer 0").starts_with("<svg"));
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorCurve {
    spectrum: Spectrum,
    points: Vec<ErrorPoint>,
}

impl ErrorCurve {
    /// Computes the curve of a matrix.
    ///
    /// # Errors
    /// As [`exact`].
    pub fn of<T: Scalar>(a: MatRef<'_, T>) -> Result<Self> {
        let svd = exact(a)?;
        let spectrum = Spectrum::new(svd.s(), a.nrows(), a.ncols())?;
        let elementwise = elementwise_errors(a, &svd)?;
        let points = spectrum.error_curve().into_iter().zip(elementwise).enumerate();
        let points = points.map(|(rank, (relative_error, elementwise))| ErrorPoint {
            rank,
            singular_value: rank.checked_sub(1).map_or(0.0, |i| spectrum.values()[i]),
            energy: 1.0 - relative_error * relative_error,
            relative_error,
            elementwise,
        });
        let points = points.collect();
        Ok(Self { spectrum, points })
    }

    /// The points, for ranks `0 ..= min(m, n)`.
    pub fn points(&self) -> &[ErrorPoint] {
        &self.points
    }

    /// The singular values of the curve.
    pub fn spectrum(&self) -> &Spectrum {
        &self.spectrum
    }

    /// One line per rank, with a header.
    pub fn to_csv(&self) -> String {
        let mut out = String::from("rank,singular_value,energy,relative_error,mean_error,max_error\n");
        for p in &self.points {
            let ElementwiseError { mean, max } = p.elementwise;
            // Writing to a string cannot fail.
            let _ = writeln!(
                out,
                "{},{:e},{:e},{:e},{mean:e},{max:e}",
                p.rank, p.singular_value, p.energy, p.relative_error
            );
        }
        out
    }

    /// A self-contained SVG: the three errors over the rank, on a logarithmic scale, each as a fraction of
    /// its value at rank 0. The numerical rank and the largest rank at which factors save parameters are
    /// marked.
    pub fn to_svg(&self, title: &str) -> String {
        let plot = Plot { ranks: (self.points.len() - 1).max(1) as f64 };
        let (m, n) = self.spectrum.shape();
        let mut out = plot.frame(title, (m, n));
        for (rank, label) in [
            (self.spectrum.numerical_rank(), "numerical rank"),
            (crate::truncation::break_even_rank(m, n), "factors pay"),
        ] {
            plot.marker(&mut out, rank, label);
        }
        let start = self.points[0].elementwise;
        let share = |value: f64, of: f64| if of > 0.0 { value / of } else { 0.0 };
        let frobenius = self.points.iter().map(|p| p.relative_error);
        let mean = self.points.iter().map(|p| share(p.elementwise.mean, start.mean));
        let max = self.points.iter().map(|p| share(p.elementwise.max, start.max));
        plot.line(&mut out, 0, ("relative Frobenius error", "#1f77b4"), frobenius);
        plot.line(&mut out, 1, ("mean |error| / mean |a|", "#2ca02c"), mean);
        plot.line(&mut out, 2, ("max |error| / max |a|", "#d62728"), max);
        out.push_str("</svg>\n");
        out
    }
}

/// Pixel geometry of the plot.
struct Plot {
    ranks: f64,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 700.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 370.0;
/// Decades shown; smaller errors lie on the lower edge.
const DECADES: i32 = 4;

impl Plot {
    fn x(&self, rank: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * rank / self.ranks
    }

    fn y(&self, value: f64) -> f64 {
        let depth = -value.max(10_f64.powi(-DECADES)).min(1.0).log10() / f64::from(DECADES);
        TOP + (BOTTOM - TOP) * depth
    }

    /// Background, title, axes, grid and tick labels.
    fn frame(&self, title: &str, (m, n): (usize, usize)) -> String {
        let title = title.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{title} ({m} × {n})</text>\n"
        );
        for decade in 0..=DECADES {
            let y = self.y(10_f64.powi(-decade));
            let _ = writeln!(
                out,
                "<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"#ddd\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">1e-{decade}</text>",
                LEFT - 6.0,
                y + 4.0
            );
        }
        for quarter in 0..=4 {
            let rank = (self.ranks * f64::from(quarter) / 4.0).round();
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{rank}</text>",
                self.x(rank),
                BOTTOM + 18.0
            );
        }
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\" fill=\"none\" stroke=\"black\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">rank</text>",
            (LEFT + RIGHT) / 2.0,
            HEIGHT - 12.0
        );
        out
    }

    fn marker(&self, out: &mut String, rank: usize, label: &str) {
        let x = self.x(rank as f64);
        let _ = writeln!(
            out,
            "<path d=\"M{x:.1} {TOP}V{BOTTOM}\" stroke=\"#888\" stroke-dasharray=\"4 3\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">{label} {rank}</text>",
            x - 4.0,
            TOP + 14.0
        );
    }

    fn line(
        &self,
        out: &mut String,
        index: u8,
        (label, color): (&str, &str),
        values: impl Iterator<Item = f64>,
    ) {
        let points: Vec<String> =
            values.enumerate().map(|(r, v)| format!("{:.1},{:.1}", self.x(r as f64), self.y(v))).collect();
        let y = BOTTOM - 14.0 - 16.0 * f64::from(index);
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\"/>\n\
             <text x=\"{:.1}\" y=\"{y:.1}\" fill=\"{color}\">{label}</text>",
            points.join(" "),
            LEFT + 8.0
        );
    }
}
