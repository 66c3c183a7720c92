//! Rows written into a table, of burn operations.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::{unwrap, wrap};

pub(crate) fn write_rows<B: Backend>(
    table: FloatTensor<B>,
    rows: FloatTensor<B>,
    spans: &[[usize; 3]],
) -> FloatTensor<B> {
    let (mut table, rows): (Tensor<B, 2>, Tensor<B, 2>) = (wrap(table), wrap(rows));
    let [_, width] = table.dims();
    for &[to, from, count] in spans {
        let part = rows.clone().slice([from..from + count, 0..width]);
        table = table.slice_assign([to..to + count, 0..width], part);
    }
    unwrap(table)
}
