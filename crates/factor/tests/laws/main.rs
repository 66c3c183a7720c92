//! Laws of every decomposition, over shapes and matrices that cover the corners.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod allocate;
mod bad_input;
mod common;
mod low_rank;
mod spectrum;
mod svd;
mod tt;
mod tucker;
mod whitened;
