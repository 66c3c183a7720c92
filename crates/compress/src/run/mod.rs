//! Everything that runs the model: calibration, gradients, recovery. Behind the feature `run`, since it needs
//! burn.

mod calibrate;
mod device;
mod distillation;
mod fisher;
mod gradients;
mod measure;
mod moments;
mod network;
mod recover;
mod residuals;
mod samples;
mod sums;

pub use calibrate::ModelCalibrator;
pub use device::DeviceProducts;
pub use fisher::{Answers, fisher};
pub use gradients::GradientCalibrator;
pub use measure::mean_nll;
pub use network::{Tokens, token_limit};
pub use recover::{DistillOptions, LayerRecovery, Trained, distill};
pub use residuals::Residuals;
