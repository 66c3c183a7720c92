//! Second moments of vectors, summed on the host or on the device that holds the vectors.

use std::fmt::Debug;

use burn::prelude::*;
use burn::tensor::TensorData;
use lowrank_adapters::Activations;
use lowrank_adapters::peft::host_values;
use lowrank_factor::Mat;
use lowrank_factor::device::gram;
use lowrank_factor::matrix::from_row_major;

use crate::statistics::InputStatistics;

/// Rows that are multiplied in `f32` before they are accumulated in more bits.
const ROWS: usize = 1024;

/// Sums of `x·xᵀ` and `|x|` over rows `x`.
pub(crate) trait Moments: Clone + Debug + Send {
    /// Rows, where their moments are computed.
    type Rows: Debug + Send;

    /// The rows of an input.
    fn rows(x: &dyn Activations) -> Self::Rows;

    /// Whether two inputs have the same values.
    fn are_equal(one: &Self::Rows, other: &Self::Rows) -> bool;

    /// No rows yet, in the place of the given ones.
    fn beside(rows: &Self::Rows, width: usize) -> Self;

    fn width(&self) -> usize;

    fn add(&mut self, rows: &Self::Rows);

    /// Subtracts rows that were added.
    fn remove(&mut self, rows: &Self::Rows);

    /// Whether every sum of magnitudes is finite.
    fn is_finite(&self) -> bool;

    fn finish(self) -> InputStatistics;
}

/// On the host, from values that are read from the device.
#[derive(Clone, Debug)]
pub(crate) struct HostMoments {
    /// `Σ x·xᵀ`, the lower triangle.
    gram: Mat<f64>,
    magnitude: Vec<f64>,
    rows: u64,
}

impl HostMoments {
    pub(crate) fn new(width: usize) -> Self {
        Self { gram: Mat::zeros(width, width), magnitude: vec![0.0; width], rows: 0 }
    }

    fn accumulate(&mut self, values: &[f32], sign: f64) {
        let width = self.width();
        for chunk in values.chunks(ROWS * width) {
            if let Ok(x) = from_row_major(chunk, chunk.len() / width, width) {
                let product = lowrank_factor::matrix::gram(x); // lower triangle
                for j in 0..width {
                    let into = self.gram.as_mut().col_mut(j).subrows_mut(j, width - j);
                    let from = product.as_ref().col(j).subrows(j, width - j);
                    into.iter_mut().zip(from.iter()).for_each(|(sum, &x)| *sum += sign * f64::from(x));
                }
            }
            for row in chunk.chunks_exact(width) {
                for (sum, x) in self.magnitude.iter_mut().zip(row) {
                    *sum += sign * f64::from(x.abs());
                }
            }
        }
    }
}

impl Moments for HostMoments {
    type Rows = Vec<f32>;

    fn rows(x: &dyn Activations) -> Vec<f32> {
        x.values()
    }

    fn are_equal(one: &Vec<f32>, other: &Vec<f32>) -> bool {
        one == other
    }

    fn beside(_rows: &Vec<f32>, width: usize) -> Self {
        Self::new(width)
    }

    fn width(&self) -> usize {
        self.magnitude.len()
    }

    fn add(&mut self, values: &Vec<f32>) {
        self.accumulate(values, 1.0);
        self.rows += (values.len() / self.width()) as u64;
    }

    fn remove(&mut self, values: &Vec<f32>) {
        self.accumulate(values, -1.0);
        self.rows -= (values.len() / self.width()) as u64;
    }

    fn is_finite(&self) -> bool {
        self.magnitude.iter().all(|sum| sum.is_finite())
    }

    fn finish(self) -> InputStatistics {
        let Self { gram, magnitude, rows } = self;
        let width = magnitude.len();
        let gram = Mat::from_fn(width, width, |i, j| gram[(i.max(j), i.min(j))]);
        InputStatistics { gram, magnitude, rows }
    }
}

/// On the device: no input is read, only comparisons of inputs and the sums.
#[derive(Clone, Debug)]
pub(crate) struct DeviceMoments<B: Backend> {
    /// `Σ x·xᵀ`, `[width, width]`.
    gram: TwoPart<B>,
    /// `Σ |x|`, `[1, width]`.
    magnitude: TwoPart<B>,
    rows: u64,
}

impl<B: Backend> DeviceMoments<B> {
    fn accumulate(&mut self, x: &Tensor<B, 2>, sign: f32) {
        let [rows, width] = x.dims();
        for start in (0..rows).step_by(ROWS) {
            let chunk = x.clone().slice([start..(start + ROWS).min(rows), 0..width]);
            self.magnitude.add(chunk.clone().abs().sum_dim(0).mul_scalar(sign));
            self.gram.add(gram(chunk).mul_scalar(sign));
        }
    }
}

impl<B: Backend> Moments for DeviceMoments<B> {
    type Rows = Tensor<B, 2>;

    fn rows(x: &dyn Activations) -> Tensor<B, 2> {
        match x.tensor().downcast_ref::<Tensor<B, 2>>() {
            Some(x) => x.clone().detach(),
            None => Tensor::from_data(TensorData::new(x.values(), x.shape()), &Default::default()),
        }
    }

    fn are_equal(one: &Tensor<B, 2>, other: &Tensor<B, 2>) -> bool {
        let is_empty = one.shape().num_elements() == 0;
        one.dims() == other.dims()
            && (is_empty || one.clone().equal(other.clone()).all().into_scalar().elem::<bool>())
    }

    fn beside(rows: &Tensor<B, 2>, width: usize) -> Self {
        let zeros = |rows_of_sum| TwoPart::zeros([rows_of_sum, width], &rows.device());
        Self { gram: zeros(width), magnitude: zeros(1), rows: 0 }
    }

    fn width(&self) -> usize {
        self.magnitude.high.dims()[1]
    }

    fn add(&mut self, rows: &Tensor<B, 2>) {
        self.accumulate(rows, 1.0);
        self.rows += rows.dims()[0] as u64;
    }

    fn remove(&mut self, rows: &Tensor<B, 2>) {
        self.accumulate(rows, -1.0);
        self.rows -= rows.dims()[0] as u64;
    }

    fn is_finite(&self) -> bool {
        let magnitude = self.magnitude.clone().read();
        (0..self.width()).all(|i| magnitude(i).is_finite())
    }

    fn finish(self) -> InputStatistics {
        let width = self.width();
        let (gram, magnitude) = (self.gram.read(), self.magnitude.read());
        // Of the lower triangle, as on the host: the device may round its mirror image otherwise.
        let gram = Mat::from_fn(width, width, |i, j| gram(i.max(j) * width + i.min(j)));
        InputStatistics { gram, magnitude: (0..width).map(magnitude).collect(), rows: self.rows }
    }
}

/// A sum in two `f32`, which together hold 48 bits: few devices have `f64`.
#[derive(Clone, Debug)]
struct TwoPart<B: Backend> {
    high: Tensor<B, 2>,
    low: Tensor<B, 2>,
}

impl<B: Backend> TwoPart<B> {
    fn zeros(shape: [usize; 2], device: &B::Device) -> Self {
        let zeros = Tensor::zeros(shape, device);
        Self { high: zeros.clone(), low: zeros }
    }

    /// Adds a term; what the sum rounds off goes into the lower part (Knuth's TwoSum).
    fn add(&mut self, x: Tensor<B, 2>) {
        let before = self.high.clone();
        self.high = before.clone() + x.clone();
        let added = self.high.clone() - before.clone();
        let kept = self.high.clone() - added.clone();
        self.low = self.low.clone() + ((before - kept) + (x - added));
    }

    /// The elements, row-major.
    fn read(self) -> impl Fn(usize) -> f64 {
        let (high, low) = (host_values(self.high), host_values(self.low));
        move |i| f64::from(high[i]) + f64::from(low[i])
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn_flex::Flex;

    use super::*;

    #[test]
    fn a_sum_in_two_parts_keeps_what_one_rounds_off() {
        let device = Default::default();
        let one = |x: f32| Tensor::<Flex, 2>::from_floats([[x]], &device);
        let mut sum = TwoPart::zeros([1, 1], &device);
        sum.add(one(3e8));
        (0..1000).for_each(|_| sum.add(one(0.125)));
        sum.add(one(-3e8));
        assert_eq!(sum.read()(0), 125.0);
    }
}
