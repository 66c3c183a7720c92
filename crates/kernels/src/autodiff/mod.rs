//! Backward rules: [`Kernels`](crate::Kernels) for `Autodiff<B, C>` over any `B: Kernels`.

mod rules;
mod step;
