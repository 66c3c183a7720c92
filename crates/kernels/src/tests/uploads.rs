//! Tables of launches, which the layers of a step share.

use burn::tensor::Tensor;
use burn_autodiff::Autodiff;

use super::{Gpu, random, values};
use crate::gpu::upload::UPLOADS;
use crate::ops::{attention, write_rows};
use crate::spec::{AttentionSpec, Keys};

/// Tables that these launches upload.
fn uploads(launches: impl FnOnce()) -> usize {
    let before = UPLOADS.get();
    launches();
    UPLOADS.get() - before
}

#[test]
fn launches_with_equal_specs_upload_their_blocks_once() {
    let rows = |width, seed| random::<Gpu, 2>([25, width], seed);
    let attend = |lengths: [usize; 2], window| {
        // Each layer builds its own spec.
        let spec = AttentionSpec { window, ..AttentionSpec::decoder(lengths, 2, 1, 16) };
        attention(rows(32, 1), rows(16, 2), rows(16, 3), &spec);
    };
    let layers = |lengths, window| (0..5).for_each(|_| attend(lengths, window));
    assert_eq!(uploads(|| layers([5, 20], None)), 1);
    assert_eq!(uploads(|| layers([5, 20], Some(3))), 0, "a window changes no block");
    assert_eq!(uploads(|| layers([20, 5], None)), 1);
    let spec = AttentionSpec::decoder([20, 5], 2, 1, 16);
    let backward = || {
        for _ in 0..3 {
            let [q, k, v] =
                [(32, 1), (16, 2), (16, 3)].map(|(width, seed)| Tensor::from_inner(rows(width, seed)));
            let q: Tensor<Autodiff<Gpu>, 2> = q.require_grad();
            let k = k.require_grad();
            let grads = attention(q.clone(), k.clone(), v, &spec).backward();
            assert!(q.grad(&grads).is_some() && k.grad(&grads).is_some());
        }
    };
    // A token is a query and a key: the blocks of both are those of the forward pass.
    assert_eq!(uploads(backward), 0);
}

#[test]
fn a_step_with_a_cache_uploads_two_tables() {
    let mut tables: Vec<[Tensor<Gpu, 2>; 2]> =
        (0..3).map(|layer| [layer, layer + 9].map(|seed| random([128, 16], seed))).collect();
    for length in [7, 8] {
        let keys = Keys::Cached([0..length + 1, 64..65 + length].into());
        let spec = AttentionSpec { n_kv_heads: 1, ..AttentionSpec::cross([1, 1], keys, 2, 16) };
        let spans = [[length, 0, 1], [64 + length, 1, 1]];
        let step = || {
            for layer in &mut tables {
                let [keys, values] = layer.clone();
                *layer = [keys, values].map(|table| write_rows(table, random([2, 16], 1), &spans));
                let [keys, values] = layer.clone();
                attention(random([2, 32], 1), keys, values, &spec);
            }
        };
        assert_eq!(uploads(step), 2);
    }
}

#[test]
fn a_table_of_one_handle_is_written_in_place() {
    let place = |table: &Tensor<Gpu, 2>| {
        // Memory is assigned when the device has come to the tensor.
        values(table.clone());
        format!("{:?}", table.clone().into_primitive().tensor().handle.memory)
    };
    let mut table = random::<Gpu, 2>([128, 16], 1);
    let before = place(&table);
    for row in 0..3 {
        table = write_rows(table, random([1, 16], 2), &[[row, 0, 1]]);
        assert_eq!(place(&table), before);
    }
    let other = write_rows(table.clone(), random([1, 16], 2), &[[0, 0, 1]]);
    assert_ne!(place(&other), before);
    assert_eq!(place(&table), before);
}

/// The number of tables that are kept is bounded: the one that was not used for longest is uploaded again.
#[test]
fn the_tables_used_last_are_kept() {
    let write = |row| {
        write_rows(random::<Gpu, 2>([64, 4], 1), random([1, 4], 2), &[[row, 0, 1]]);
    };
    assert_eq!(uploads(|| (0..8).for_each(write)), 8);
    assert_eq!(uploads(|| write(0)), 0);
    assert_eq!(uploads(|| write(8)), 1);
    assert_eq!(uploads(|| write(0)), 0);
    assert_eq!(uploads(|| write(1)), 1);
}
