//! Launches of the attention kernels over a packed batch.

use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::attention::{
    BLOCK_WORDS, Shape, along_kernel, forward_kernel, key_grads_kernel, query_grad_kernel,
};
use super::launch::{elements, empty, empty_like, fit, has_u64, lanes, packed, spread};
use super::upload::table;
use crate::kernels::{AttentionGrads, AttentionTensors};
use crate::spec::{AttentionSpec, Dropout, Keys};

/// Units of a cube.
const UNITS: usize = 128;

/// Elements of a row that a unit has in registers, at most.
const PART: usize = 64;

/// Shared memory of a cube, in floats: within the 16 KiB that every device has.
const SHARED: usize = 4096;

/// Blocks that a launch has room for.
const MAX_BLOCKS: usize = 65_535;

/// Whether the kernels have all that an attention asks for; the composed default has the rest: terms by distance, ALiBi,
/// very wide heads.
pub(super) fn fits<R: CubeRuntime>(tensors: &AttentionTensors<CubeTensor<R>>, spec: &AttentionSpec) -> bool {
    let width = lanes(&tensors.q.client, spec.head_dim);
    spec.distances.is_none()
        && spec.alibi.is_none()
        && tensors.by_query.is_none()
        && tensors.by_key.is_none()
        && fit([&tensors.q, &tensors.k, &tensors.v])
        && spec.head_dim / width <= PART
        && spec.n_heads <= MAX_BLOCKS
        && spec.queries.n_tokens() + spec.keys.end() < MAX_BLOCKS * 8
        && spec.queries.n_sequences() < MAX_BLOCKS / 2
        && (spec.dropout.is_none() || has_u64(&tensors.q))
}

/// Output and logarithms of the softmax denominators, `[queries, n_heads]`; shapes are the caller's to check.
pub(super) fn attention<R: CubeRuntime>(
    tensors: AttentionTensors<CubeTensor<R>>,
    spec: &AttentionSpec,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let [q, k, v] = [tensors.q, tensors.k, tensors.v].map(packed);
    let y = empty_like(&q);
    let log_sums = empty(&q, [spec.queries.n_tokens(), spec.n_heads]);
    let mut shape = shape(&q, spec, spec.queries.longest());
    shape.splits = splits(&shape, spec.keys.longest());
    let blocks = Blocks::of_queries(spec, shape.rows);
    if blocks.count() > 0 {
        let client = q.client.clone();
        let options = Options::new(spec);
        let (cubes, blocks) = (blocks.cubes(spec.n_heads), blocks.argument(&q));
        // SAFETY: queries, y and the logarithms have the rows of the spec, keys and values at least those that it names,
        // and each block lies within one of its sequences.
        unsafe {
            forward_kernel::launch_unchecked(
                &client,
                cubes,
                shape.cube(),
                q.into_array_arg(),
                k.into_array_arg(),
                v.into_array_arg(),
                blocks,
                y.clone().into_array_arg(),
                log_sums.clone().into_array_arg(),
                spec.n_heads,
                spec.n_kv_heads,
                spec.scale,
                options.window,
                options.cap,
                options.seed[0],
                options.seed[1],
                options.threshold,
                options.keep_scale,
                shape,
            );
        }
    }
    (y, log_sums)
}

/// Gradients of queries, keys and values over packed keys; shapes are the caller's to check.
pub(super) fn grads<R: CubeRuntime>(
    tensors: AttentionTensors<CubeTensor<R>>,
    y: CubeTensor<R>,
    log_sums: CubeTensor<R>,
    dy: CubeTensor<R>,
    spec: &AttentionSpec,
    needed: [bool; 5],
) -> AttentionGrads<CubeTensor<R>> {
    debug_assert!(matches!(spec.keys, Keys::Packed(_)));
    let [q, k, v, y, dy, log_sums] = [tensors.q, tensors.k, tensors.v, y, dy, log_sums].map(packed);
    let client = q.client.clone();
    let along = empty(&q, [spec.queries.n_tokens(), spec.n_heads]);
    if elements(&along) > 0 {
        let (count, dim) = spread(&along);
        // SAFETY: y and its gradient have a head's width of elements for each element of the result.
        unsafe {
            along_kernel::launch_unchecked(
                &client,
                count,
                dim,
                y.into_array_arg(),
                dy.clone().into_array_arg(),
                along.clone().into_array_arg(),
                spec.head_dim,
            );
        }
    }
    let options = Options::new(spec);
    let dq = needed[0].then(|| {
        let dq = empty_like(&q);
        let shape = shape(&q, spec, spec.queries.longest());
        let blocks = Blocks::of_queries(spec, shape.rows);
        if blocks.count() > 0 {
            let (cubes, blocks) = (blocks.cubes(spec.n_heads), blocks.argument(&q));
            // SAFETY: as in the forward pass; dy and dq are like the queries.
            unsafe {
                query_grad_kernel::launch_unchecked(
                    &client,
                    cubes,
                    shape.cube(),
                    q.clone().into_array_arg(),
                    k.clone().into_array_arg(),
                    v.clone().into_array_arg(),
                    dy.clone().into_array_arg(),
                    log_sums.clone().into_array_arg(),
                    along.clone().into_array_arg(),
                    blocks,
                    dq.clone().into_array_arg(),
                    spec.n_heads,
                    spec.n_kv_heads,
                    spec.scale,
                    options.window,
                    options.cap,
                    options.seed[0],
                    options.seed[1],
                    options.threshold,
                    options.keep_scale,
                    shape,
                );
            }
        }
        dq
    });
    let [dk, dv] = if needed[1] || needed[2] {
        let (dk, dv) = (empty_like(&k), empty_like(&v));
        let shape = shape(&q, spec, spec.keys.longest());
        let blocks = Blocks::of_keys(spec, shape.rows);
        if blocks.count() > 0 {
            let (cubes, blocks) = (blocks.cubes(spec.n_kv_heads), blocks.argument(&q));
            // SAFETY: the blocks cover the rows of keys, values and their gradients, and name queries within theirs.
            unsafe {
                key_grads_kernel::launch_unchecked(
                    &client,
                    cubes,
                    shape.cube(),
                    q.into_array_arg(),
                    k.into_array_arg(),
                    v.into_array_arg(),
                    dy.into_array_arg(),
                    log_sums.into_array_arg(),
                    along.into_array_arg(),
                    blocks,
                    dk.clone().into_array_arg(),
                    dv.clone().into_array_arg(),
                    spec.n_heads,
                    spec.n_kv_heads,
                    spec.scale,
                    options.window,
                    options.cap,
                    options.seed[0],
                    options.seed[1],
                    options.threshold,
                    options.keep_scale,
                    shape,
                );
            }
        }
        [needed[1].then_some(dk), needed[2].then_some(dv)]
    } else {
        [None, None]
    };
    [dq, dk, dv, None, None]
}

/// Cubes whose blocks have up to `longest` rows.
fn shape<R: CubeRuntime>(q: &CubeTensor<R>, spec: &AttentionSpec, longest: usize) -> Shape {
    let lanes = lanes(&q.client, spec.head_dim);
    Shape {
        head_dim: spec.head_dim,
        lanes,
        splits: 1,
        rows: longest.max(1).next_power_of_two().min(UNITS / lanes),
        causal: spec.causal,
        capped: spec.softcap.is_some(),
        dropped: spec.dropout.is_some(),
    }
}

/// How many groups share the keys of a row, where the rows leave units over.
fn splits(shape: &Shape, n_keys: usize) -> usize {
    let part = shape.head_dim / shape.lanes;
    let mut splits = (UNITS / (shape.lanes * shape.rows)).min((n_keys / 16).max(1).next_power_of_two());
    while splits > 1 && shape.lanes * shape.rows * splits * (part + 2) > SHARED {
        splits /= 2;
    }
    splits
}

impl Shape {
    fn cube(&self) -> CubeDim {
        CubeDim::new_1d((self.lanes * self.splits * self.rows) as u32)
    }
}

/// Arguments of the kernels from a spec.
struct Options {
    window: usize,
    cap: f32,
    seed: [u32; 2],
    threshold: u32,
    keep_scale: f32,
}

impl Options {
    fn new(spec: &AttentionSpec) -> Self {
        let dropout = spec.dropout.unwrap_or(Dropout { p: 0.0, seed: 0 });
        Self {
            // Longer than any sequence, and its sum with a position is no more than 32 bits hold.
            window: spec.window.unwrap_or(usize::MAX).min(1 << 30),
            cap: spec.softcap.unwrap_or(1.0),
            seed: [dropout.seed as u32, (dropout.seed >> 32) as u32],
            threshold: dropout.threshold(),
            keep_scale: dropout.scale(),
        }
    }
}

/// The blocks of a launch, [`BLOCK_WORDS`] words each.
struct Blocks(Vec<u32>);

impl Blocks {
    /// Blocks of up to `rows` queries of one sequence, and its keys.
    fn of_queries(spec: &AttentionSpec, rows: usize) -> Self {
        let mut words = Vec::new();
        for (queries, keys) in spec.sequences() {
            for first in (0..queries.len()).step_by(rows) {
                let position = spec.position(first, queries.len(), keys.len());
                let count = rows.min(queries.len() - first);
                let block = [queries.start + first, count, position, keys.start, keys.len(), 0];
                words.extend(block.map(|word| word as u32));
            }
        }
        Self(words)
    }

    /// Blocks of up to `rows` keys of one sequence, and its queries.
    fn of_keys(spec: &AttentionSpec, rows: usize) -> Self {
        let mut words = Vec::new();
        for (queries, keys) in spec.sequences() {
            for first in (0..keys.len()).step_by(rows) {
                let position = spec.position(0, queries.len(), keys.len());
                let count = rows.min(keys.len() - first);
                let block = [keys.start + first, count, first, queries.start, queries.len(), position];
                words.extend(block.map(|word| word as u32));
            }
        }
        Self(words)
    }

    fn count(&self) -> usize {
        self.0.len() / BLOCK_WORDS
    }

    fn cubes(&self, heads: usize) -> CubeCount {
        CubeCount::Static(self.count() as u32, heads as u32, 1)
    }

    /// The blocks on the device of a tensor; the layers of a step share them.
    fn argument<R: CubeRuntime>(self, like: &CubeTensor<R>) -> ArrayArg<R> {
        let n_words = self.0.len();
        // SAFETY: the table has as many words.
        unsafe { ArrayArg::from_raw_parts(table(self.0, like), n_words) }
    }
}
