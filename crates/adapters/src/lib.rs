//! Low-rank adapters for burn models: an [`AdapterSet`] owns every trainable factor, keyed by [`Site`];
//! the base it sits on stays untouched. Forward passes multiply by the factors (`x·A·B`) and never form
//! `W + A·B`.
//!
//! Row-vector convention: `y = x·W + b`, `W` `[d_input, d_output]`. Adapters are read from and written to
//! PEFT's own folder format ([`peft`]).

pub mod algebra;
pub mod build;
pub mod config;
pub mod conv;
pub mod error;
pub mod forward;
pub mod host;
pub mod init;
pub mod methods;
pub mod optim;
pub mod peft;
pub mod route;
pub mod set;

pub use build::{BaseWeights, NoWeights};
pub use config::{AdapterConfig, Grouping, Init};
pub use conv::{LoraConv1d, LoraConv2d};
pub use error::{AdapterError, Result};
pub use forward::BaseLinear;
pub use lowrank_spec::{HostTensor, Mode, Pattern, Site, SuffixMap, Targets};
pub use methods::{Adapter, FactorRole, Method};
pub use set::{AdapterSet, Member, Observer, Pair, Slot};
