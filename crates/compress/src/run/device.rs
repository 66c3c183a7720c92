//! Large products on the device of a backend.

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::prelude::*;
use burn::tensor::TensorData;
use lowrank_factor::matrix::to_row_major;
use lowrank_factor::{DeviceMatrix, FactorError, MatRef, MatrixProducts};

use crate::products::Products;

/// Holds matrices on a device of a burn backend, where their products have the precision of `f32`.
#[derive(Debug)]
pub struct DeviceProducts<B: Backend> {
    device: B::Device,
    turn: Mutex<()>,
}

impl<B: Backend> DeviceProducts<B> {
    /// On this device.
    pub fn new(device: B::Device) -> Self {
        Self { device, turn: Mutex::new(()) }
    }
}

impl<B: Backend> Products for DeviceProducts<B> {
    fn hold(&self, a: MatRef<'_, f32>) -> Result<Box<dyn MatrixProducts<Scalar = f32>>, FactorError> {
        let data = TensorData::new(to_row_major(a), [a.nrows(), a.ncols()]);
        let held = DeviceMatrix::<B, f32>::new(Tensor::from_data(data, &self.device))?;
        Ok(Box::new(held.in_parts()))
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
