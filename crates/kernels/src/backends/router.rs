//! burn's router, which sends operations to other backends: the composed defaults.

use burn_router::{BackendRouter, RunnerChannel};

use crate::kernels::Kernels;

impl<R: RunnerChannel> Kernels for BackendRouter<R> {
    const ON_HOST: bool = false;
    // A read waits for what has been sent.
    const LOSS_WINDOW: usize = 16;
}
