//! Attention over packed sequences without padding: an online softmax that never materializes the scores (Dao et al.
//! 2022), for grouped heads, causal or windowed, with soft cap and dropout.
//!
//! A group of `lanes` units has a query (in the backward pass to keys and values: a key), a part of the head's width in
//! each unit's registers. Where queries are few, as in decoding, the keys are divided among `splits` groups, whose sums
//! are joined in shared memory. Nothing is added atomically: results do not depend on the order of execution.

use burn_cubecl::cubecl;
use cubecl::prelude::*;

use super::math::{LOWEST, keeps, lane_sum, row_key};

/// Words of a block: its first row, its rows, the position of the first, and of the other side the first row, the rows
/// and the position of the first.
pub(super) const BLOCK_WORDS: usize = 6;

/// Comptime options of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    /// Width of a head; a multiple of `lanes`.
    pub(super) head_dim: usize,
    /// Units that share a row.
    pub(super) lanes: usize,
    /// Groups that share the keys of a row.
    pub(super) splits: usize,
    /// Rows of a block.
    pub(super) rows: usize,
    /// Whether a query sees no later key.
    pub(super) causal: bool,
    /// Whether scores have a soft cap.
    pub(super) capped: bool,
    /// Whether there is dropout.
    pub(super) dropped: bool,
}

/// The first position that a query at `position` sees.
#[cube]
fn first_seen(position: usize, window: usize) -> usize {
    select(position + 1 > window, position + 1 - min(window, position + 1), 0usize)
}

/// One past the last position of `length` keys that a query at `position` sees.
#[cube]
fn end_seen(position: usize, window: usize, length: usize, #[comptime] causal: bool) -> usize {
    if comptime!(causal) { min(position + 1, length) } else { min(position + window, length) }
}

#[cube(launch_unchecked)]
pub(super) fn forward_kernel(
    q: &Array<f32>,
    k: &Array<f32>,
    v: &Array<f32>,
    blocks: &Array<u32>,
    y: &mut Array<f32>,
    log_sums: &mut Array<f32>,
    n_heads: usize,
    n_kv_heads: usize,
    scale: f32,
    window: usize,
    cap: f32,
    seed_low: u32,
    seed_high: u32,
    threshold: u32,
    keep_scale: f32,
    #[comptime] shape: Shape,
) {
    let lanes = comptime!(shape.lanes);
    let splits = comptime!(shape.splits);
    let head_dim = comptime!(shape.head_dim);
    let part = comptime!(shape.head_dim / shape.lanes);
    let unit = UNIT_POS as usize;
    let lane = unit % lanes;
    let split = unit / lanes % splits;
    let head = CUBE_POS_Y as usize;
    let kv_head = head / (n_heads / n_kv_heads);
    let block = CUBE_POS_X as usize * BLOCK_WORDS;
    let n_rows = blocks[block + 1] as usize;
    let n_keys = blocks[block + 4] as usize;
    // Rows past the last one repeat it and store nothing.
    let row = min(unit / (lanes * splits), n_rows - 1);
    let stores = unit / (lanes * splits) < n_rows;
    let query = blocks[block] as usize + row;
    let position = blocks[block + 2] as usize + row;
    let begin = first_seen(position, window);
    let end = end_seen(position, window, n_keys, shape.causal);
    // All units go over the keys that any row of the block sees: sums over lanes need the same steps of all of them.
    let block_begin = first_seen(blocks[block + 2] as usize, window);
    let block_end = end_seen(blocks[block + 2] as usize + n_rows - 1, window, n_keys, shape.causal);
    let steps = (block_end - block_begin + splits - 1) / splits;
    let key_stride = n_kv_heads * head_dim;
    let first_key = blocks[block + 3] as usize * key_stride + kv_head * head_dim + lane;
    let own = (query * n_heads + head) * head_dim + lane;
    let mask_row = row_of(query * n_heads + head, seed_low, seed_high, shape.dropped);

    let mut queries = Array::<f32>::new(part);
    let mut sums = Array::<f32>::new(part);
    #[unroll]
    for i in 0..part {
        queries[i] = q[own + i * lanes] * scale;
        sums[i] = 0.0;
    }
    let mut largest = LOWEST.runtime();
    let mut total = 0.0f32;
    for step in 0..steps {
        let key = block_begin + step * splits + split;
        let at = first_key + min(key, block_end - 1) * key_stride;
        let mut dot = 0.0f32;
        #[unroll]
        for i in 0..part {
            dot += queries[i] * k[at + i * lanes];
        }
        let mut score = lane_sum(dot, lanes);
        if key >= begin && key < end {
            if comptime!(shape.capped) {
                score = (score / cap).tanh() * cap;
            }
            if score > largest {
                let shrink = (largest - score).exp();
                total *= shrink;
                #[unroll]
                for i in 0..part {
                    sums[i] = sums[i] * shrink;
                }
                largest = score;
            }
            let p = (score - largest).exp();
            total += p;
            let mut weight = p;
            if comptime!(shape.dropped) {
                weight = select(keeps(mask_row, key, threshold), p * keep_scale, 0.0);
            }
            #[unroll]
            for i in 0..part {
                sums[i] = sums[i] + weight * v[at + i * lanes];
            }
        }
    }

    if comptime!(splits > 1) {
        let units = comptime!(shape.lanes * shape.splits * shape.rows);
        let mut all_largest = SharedMemory::<f32>::new(units);
        let mut all_totals = SharedMemory::<f32>::new(units);
        let mut all_sums = SharedMemory::<f32>::new(comptime!(units * part));
        all_largest[unit] = largest;
        all_totals[unit] = total;
        #[unroll]
        for i in 0..part {
            all_sums[unit * part + i] = sums[i];
        }
        sync_cube();
        if split == 0 {
            for other in 1..splits {
                let from = unit + other * lanes;
                largest = select(all_largest[from] > largest, all_largest[from], largest);
            }
            let shrink = (all_largest[unit] - largest).exp();
            total *= shrink;
            #[unroll]
            for i in 0..part {
                sums[i] = sums[i] * shrink;
            }
            for other in 1..splits {
                let from = unit + other * lanes;
                let shrink = (all_largest[from] - largest).exp();
                total += all_totals[from] * shrink;
                #[unroll]
                for i in 0..part {
                    sums[i] = sums[i] + all_sums[from * part + i] * shrink;
                }
            }
        }
    }

    if stores && split == 0 {
        #[unroll]
        for i in 0..part {
            y[own + i * lanes] = sums[i] / total;
        }
        if lane == 0 {
            log_sums[query * n_heads + head] = total.ln() + largest;
        }
    }
}

/// The key of a row of the mask where there is dropout.
#[cube]
fn row_of(row: usize, seed_low: u32, seed_high: u32, #[comptime] dropped: bool) -> u64 {
    if comptime!(dropped) { row_key(seed_low, seed_high, row) } else { 0u64.runtime() }
}

/// The product of each query's output and the output's gradient, `[queries, n_heads]`.
#[cube(launch_unchecked)]
pub(super) fn along_kernel(
    y: &Array<f32>,
    dy: &Array<f32>,
    along: &mut Array<f32>,
    #[comptime] head_dim: usize,
) {
    if ABSOLUTE_POS < along.len() {
        let start = ABSOLUTE_POS * head_dim;
        let mut sum = 0.0f32;
        for i in 0..head_dim {
            sum += y[start + i] * dy[start + i];
        }
        along[ABSOLUTE_POS] = sum;
    }
}

#[cube(launch_unchecked)]
pub(super) fn query_grad_kernel(
    q: &Array<f32>,
    k: &Array<f32>,
    v: &Array<f32>,
    dy: &Array<f32>,
    log_sums: &Array<f32>,
    along: &Array<f32>,
    blocks: &Array<u32>,
    dq: &mut Array<f32>,
    n_heads: usize,
    n_kv_heads: usize,
    scale: f32,
    window: usize,
    cap: f32,
    seed_low: u32,
    seed_high: u32,
    threshold: u32,
    keep_scale: f32,
    #[comptime] shape: Shape,
) {
    let lanes = comptime!(shape.lanes);
    let head_dim = comptime!(shape.head_dim);
    let part = comptime!(shape.head_dim / shape.lanes);
    let unit = UNIT_POS as usize;
    let lane = unit % lanes;
    let head = CUBE_POS_Y as usize;
    let kv_head = head / (n_heads / n_kv_heads);
    let block = CUBE_POS_X as usize * BLOCK_WORDS;
    let n_rows = blocks[block + 1] as usize;
    let n_keys = blocks[block + 4] as usize;
    let row = min(unit / lanes, n_rows - 1);
    let query = blocks[block] as usize + row;
    let position = blocks[block + 2] as usize + row;
    let begin = first_seen(position, window);
    let end = end_seen(position, window, n_keys, shape.causal);
    let block_begin = first_seen(blocks[block + 2] as usize, window);
    let block_end = end_seen(blocks[block + 2] as usize + n_rows - 1, window, n_keys, shape.causal);
    let key_stride = n_kv_heads * head_dim;
    let first_key = blocks[block + 3] as usize * key_stride + kv_head * head_dim + lane;
    let own = (query * n_heads + head) * head_dim + lane;
    let mask_row = row_of(query * n_heads + head, seed_low, seed_high, shape.dropped);
    let log_sum = log_sums[query * n_heads + head];
    let own_along = along[query * n_heads + head];

    let mut queries = Array::<f32>::new(part);
    let mut slopes = Array::<f32>::new(part);
    let mut grads = Array::<f32>::new(part);
    #[unroll]
    for i in 0..part {
        queries[i] = q[own + i * lanes] * scale;
        slopes[i] = dy[own + i * lanes];
        grads[i] = 0.0;
    }
    for key in block_begin..block_end {
        let at = first_key + key * key_stride;
        let mut dot = 0.0f32;
        let mut slope = 0.0f32;
        #[unroll]
        for i in 0..part {
            dot += queries[i] * k[at + i * lanes];
            slope += slopes[i] * v[at + i * lanes];
        }
        let mut score = lane_sum(dot, lanes);
        let mut slope = lane_sum(slope, lanes);
        if key >= begin && key < end {
            let mut factor = scale;
            if comptime!(shape.capped) {
                let t = (score / cap).tanh();
                score = t * cap;
                factor = scale * (1.0 - t * t);
            }
            if comptime!(shape.dropped) {
                slope = select(keeps(mask_row, key, threshold), slope * keep_scale, 0.0);
            }
            let d_score = (score - log_sum).exp() * (slope - own_along) * factor;
            #[unroll]
            for i in 0..part {
                grads[i] = grads[i] + d_score * k[at + i * lanes];
            }
        }
    }
    if unit / lanes < n_rows {
        #[unroll]
        for i in 0..part {
            dq[own + i * lanes] = grads[i];
        }
    }
}

/// Here the rows of a block are keys, and the other side are queries.
#[cube(launch_unchecked)]
pub(super) fn key_grads_kernel(
    q: &Array<f32>,
    k: &Array<f32>,
    v: &Array<f32>,
    dy: &Array<f32>,
    log_sums: &Array<f32>,
    along: &Array<f32>,
    blocks: &Array<u32>,
    dk: &mut Array<f32>,
    dv: &mut Array<f32>,
    n_heads: usize,
    n_kv_heads: usize,
    scale: f32,
    window: usize,
    cap: f32,
    seed_low: u32,
    seed_high: u32,
    threshold: u32,
    keep_scale: f32,
    #[comptime] shape: Shape,
) {
    let lanes = comptime!(shape.lanes);
    let head_dim = comptime!(shape.head_dim);
    let part = comptime!(shape.head_dim / shape.lanes);
    let unit = UNIT_POS as usize;
    let lane = unit % lanes;
    let kv_head = CUBE_POS_Y as usize;
    let group = n_heads / n_kv_heads;
    let block = CUBE_POS_X as usize * BLOCK_WORDS;
    let n_rows = blocks[block + 1] as usize;
    let first = blocks[block + 2] as usize;
    let row = min(unit / lanes, n_rows - 1);
    let key = first + row;
    let own = ((blocks[block] as usize + row) * n_kv_heads + kv_head) * head_dim + lane;
    let first_query = blocks[block + 3] as usize;
    let n_queries = blocks[block + 4] as usize;
    let first_position = blocks[block + 5] as usize;
    // The queries that see any key of the block: positions from `from` to `to`.
    let earliest = select(comptime!(shape.causal), first, first_seen(first, window));
    let from = max(earliest, first_position);
    let to = max(min(first + n_rows - 1 + window, first_position + n_queries), from);

    let mut keys = Array::<f32>::new(part);
    let mut values = Array::<f32>::new(part);
    let mut key_grads = Array::<f32>::new(part);
    let mut value_grads = Array::<f32>::new(part);
    #[unroll]
    for i in 0..part {
        keys[i] = k[own + i * lanes];
        values[i] = v[own + i * lanes];
        key_grads[i] = 0.0;
        value_grads[i] = 0.0;
    }
    for position in from..to {
        let query = first_query + position - first_position;
        let sees =
            key >= first_seen(position, window) && key < end_seen(position, window, key + 1, shape.causal);
        for member in 0..group {
            let head = kv_head * group + member;
            let at = (query * n_heads + head) * head_dim + lane;
            let mut dot = 0.0f32;
            let mut slope = 0.0f32;
            #[unroll]
            for i in 0..part {
                // Rounded as in the forward pass: large scores have large errors, which must cancel.
                dot += q[at + i * lanes] * scale * keys[i];
                slope += values[i] * dy[at + i * lanes];
            }
            let mut score = lane_sum(dot, lanes);
            let mut slope = lane_sum(slope, lanes);
            if sees {
                let mut factor = scale;
                if comptime!(shape.capped) {
                    let t = (score / cap).tanh();
                    score = t * cap;
                    factor = scale * (1.0 - t * t);
                }
                let p = (score - log_sums[query * n_heads + head]).exp();
                let mut weight = p;
                if comptime!(shape.dropped) {
                    let mask_row = row_key(seed_low, seed_high, query * n_heads + head);
                    let kept = select(keeps(mask_row, key, threshold), keep_scale, 0.0);
                    weight = p * kept;
                    slope *= kept;
                }
                let d_score = p * (slope - along[query * n_heads + head]) * factor;
                #[unroll]
                for i in 0..part {
                    value_grads[i] = value_grads[i] + weight * dy[at + i * lanes];
                    key_grads[i] = key_grads[i] + d_score * q[at + i * lanes];
                }
            }
        }
    }
    if unit / lanes < n_rows {
        #[unroll]
        for i in 0..part {
            dk[own + i * lanes] = key_grads[i];
            dv[own + i * lanes] = value_grads[i];
        }
    }
}
