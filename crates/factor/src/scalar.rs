//! The element types: `f32` and `f64` behind one sealed trait.

use core::fmt::{Debug, Display, LowerExp};
use core::iter::Sum;

use crate::dense::Dense;

/// Element of a matrix: [`f32`] or [`f64`].
///
/// Errors, norms and spectra are accumulated in `f64` whatever the element type. The trait is sealed.
pub trait Scalar: Dense + Default + Sum + Display + LowerExp + Debug + Send + Sync + 'static {
    /// Distance from 1 to the next larger number.
    const EPSILON: f64;
    /// Matrices whose largest magnitude lies outside `[1 / SAFE, SAFE]` are rescaled before arithmetic,
    /// so that sums of squares can neither overflow nor underflow.
    const SAFE: f64;

    /// Magnitude that is negligible beside any entry of a balanced matrix, though its reciprocal is finite.
    const NEGLIGIBLE: f64;

    /// Rounds an `f64` to this type.
    fn of(value: f64) -> Self;

    /// The value as `f64`, exactly.
    fn widen(self) -> f64;

    /// Absolute value.
    fn magnitude(self) -> Self;
}

impl Scalar for f32 {
    const EPSILON: f64 = f32::EPSILON as f64;
    const SAFE: f64 = 1e12;
    const NEGLIGIBLE: f64 = 1e-30;

    #[inline]
    fn of(value: f64) -> Self {
        value as f32
    }

    #[inline]
    fn widen(self) -> f64 {
        f64::from(self)
    }

    #[inline]
    fn magnitude(self) -> Self {
        self.abs()
    }
}

impl Scalar for f64 {
    const EPSILON: f64 = f64::EPSILON;
    const SAFE: f64 = 1e120;
    const NEGLIGIBLE: f64 = 1e-290;

    #[inline]
    fn of(value: f64) -> Self {
        value
    }

    #[inline]
    fn widen(self) -> f64 {
        self
    }

    #[inline]
    fn magnitude(self) -> Self {
        self.abs()
    }
}
