//! Backward rules: [`Kernels`](crate::Kernels) for `Autodiff<B, C>` over any `B: Kernels`.

mod forward;
mod rules;
mod step;
