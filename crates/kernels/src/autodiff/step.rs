//! Recording of one step on the autodiff graph.

use std::fmt::Debug;
use std::marker::PhantomData;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

/// The backward rule of a step with `N` differentiable arguments.
pub(super) trait Rule<B: Backend, const N: usize>: Debug + Send + 'static {
    /// State saved by the forward pass.
    type State: Clone + Send + Debug + 'static;

    /// Gradients of the arguments from that of the output; at least those that are `needed`.
    fn grads(state: Self::State, dy: FloatTensor<B>, needed: [bool; N]) -> [Option<FloatTensor<B>>; N];
}

/// Runs `forward` and, if one of the arguments is tracked, records rule `R` with the state it returned.
///
/// `forward` receives which arguments are tracked, and returns a state if any is.
pub(super) fn record<R, B, C, const N: usize>(
    arguments: [Option<&FloatTensor<Autodiff<B, C>>>; N],
    forward: impl FnOnce([bool; N]) -> (FloatTensor<B>, Option<R::State>),
) -> FloatTensor<Autodiff<B, C>>
where
    R: Rule<B, N>,
    B: Backend,
    C: CheckpointStrategy,
{
    let (y, state) = forward(arguments.map(|argument| argument.is_some_and(|tensor| tensor.is_tracked())));
    let Some(state) = state else {
        return Autodiff::<B, C>::from_inner(y);
    };
    // An absent argument is replaced by an untracked one.
    let nodes = arguments.map(|argument| match argument {
        Some(tensor) => tensor.node.clone(),
        None => Autodiff::<B, C>::from_inner(y.clone()).node,
    });
    match (Step::<R>(PhantomData)).prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(state, y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

#[derive(Debug)]
struct Step<R>(PhantomData<R>);

impl<R: Rule<B, N>, B: Backend, const N: usize> Backward<B, N> for Step<R> {
    type State = R::State;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let needed = ops.parents.each_ref().map(Option::is_some);
        for (parent, grad) in ops.parents.into_iter().zip(R::grads(ops.state, dy, needed)) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}
