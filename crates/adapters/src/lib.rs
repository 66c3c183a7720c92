//! Low-rank adapters for burn models.
//!
//! Row-vector convention: `y = x·W + b`, `W` `[d_input, d_output]`.
#![doc = include_str!("../README.md")]

pub mod algebra;
mod build;
mod config;
mod conv;
mod error;
mod forward;
mod host;
mod init;
pub mod methods;
pub mod optim;
pub mod peft;
mod route;
mod set;

pub use build::{BaseWeights, NoWeights};
pub use config::{AdapterConfig, Grouping, Init};
pub use conv::{LoraConv1d, LoraConv2d};
pub use error::{AdapterError, Result};
pub use forward::BaseLinear;
/// The fused operations used by forward passes, and the trait of backends that provide them.
pub use lowrank_kernels as kernels;
pub use lowrank_spec::{HostTensor, Mode, Pattern, Site, SuffixMap, Targets};
pub use methods::{Adapter, FactorRole, Method};
pub use route::PickedRows;
pub use set::{Activations, AdapterSet, Member, Observer, Pair, Slot};
