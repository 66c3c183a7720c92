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
pub mod correction;
pub mod error;
pub mod forward;
pub mod host;
pub mod init;
pub mod lora;
pub mod lorta;
pub mod lotr;
pub mod optim;
pub mod peft;
pub mod route;
pub mod set;
pub mod tt;
pub mod vera;

pub use build::{BaseWeights, NoWeights};
pub use config::{AdapterConfig, Grouping, Init, Method};
pub use conv::{LoraConv1d, LoraConv2d};
pub use error::{AdapterError, Result};
pub use forward::FrozenMap;
pub use lowrank_spec::{HostTensor, Mode, Pattern, Site, Targets};
pub use set::{Adapter, AdapterSet, Member, Observer, Pair, Slot};
