//! The head of a language model: a separate linear map, or one tied to the token embeddings.

use burn::module::Param;
use burn::prelude::*;
use lowrank_adapters::Site;
use lowrank_checkpoint::Checkpoint;
use lowrank_kernels::{Head, Kernels};

use crate::embedding::Embedding;
use crate::error::Result;
use crate::linear::{Linear, LinearSpec, SiteList};
use crate::params::is_beginning;
use crate::projection::Projection;
use crate::run::Run;

/// A newly initialized head with a site, of shape `[d_input, vocab_size]`.
pub(crate) fn init<B: Backend>(
    path: &str,
    shape: [usize; 2],
    bias: bool,
    sites: &mut SiteList,
    (seed, device): (u64, &B::Device),
) -> Linear<B> {
    sites.linear(LinearSpec { path, layer: None, shape, bias, head: true, conv1d: false }, seed, device)
}

/// A head with separate weights, equal to the table's, and its site at the end of `sites`.
///
/// # Errors
/// [`ModelError::Input`](crate::ModelError::Input) for a table whose form cannot be turned into a head's.
pub(crate) fn untied<B: Backend>(
    table: &Embedding<B>,
    path: &str,
    sites: &mut Vec<Site>,
) -> Result<Linear<B>> {
    let projection = table.projection.transposed()?;
    let [d_input, d_output] = projection.dims();
    sites.push(Site { path: path.into(), layer: None, d_input, d_output, head: true, ..Site::default() });
    Ok(Linear { projection, bias: None, site: sites.len() - 1, conv1d: false, kernel: None })
}

/// The name under which a checkpoint stores the table `name`: with all of the prefix or its end.
pub(crate) fn stored_table(checkpoint: &Checkpoint, prefix: &str, name: &str) -> Option<String> {
    let whole = format!("{prefix}{name}.weight");
    let is_it = |name: &&str| whole.strip_suffix(*name).is_some_and(|missing| is_beginning(missing, prefix));
    checkpoint.names().find(is_it).map(str::to_string)
}

/// Whether two tensors of a checkpoint are equal in shape, type and elements.
pub(crate) fn are_equal(checkpoint: &Checkpoint, a: &str, b: &str) -> Result<bool> {
    let same_kind = checkpoint
        .info(a)
        .zip(checkpoint.info(b))
        .is_some_and(|(a, b)| (&a.shape, a.dtype) == (&b.shape, b.dtype));
    Ok(same_kind && checkpoint.bytes(a)? == checkpoint.bytes(b)?)
}

/// The head as one matrix `[d_input, vocab_size]` with its bias, if it is one and has no adapter.
pub(crate) fn plain<B: Kernels>(
    head: Option<&Linear<B>>,
    table: &Projection<B>,
    run: Run<'_, B>,
) -> Option<Head<B>> {
    let (projection, bias, is_table) = match head {
        Some(head) if run.adapters.covers(head.site) => return None,
        Some(head) => (&head.projection, head.bias.as_ref().map(Param::val), false),
        None => (table, None, true),
    };
    let Projection::Dense(dense) = projection else { return None };
    let weight = dense.weight.weight();
    Some(Head { bias, ..Head::new(if is_table { weight.transpose() } else { weight }) })
}
