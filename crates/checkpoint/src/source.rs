//! Positions of tensors' bytes: the table produced by the parser of every format.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use crate::convert::transpose_f32;
use crate::dtype::{Dtype, TensorInfo};
use crate::experts::FusedLayer;
use crate::map::Bytes;
use crate::packed::Packed;

/// The finding of a parser in one file.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) tensors: BTreeMap<String, Entry>,
    pub(crate) metadata: BTreeMap<String, String>,
    /// Layers of experts that `tensors` has one by one.
    pub(crate) fused: Vec<FusedLayer>,
}

/// One tensor: its description and position.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) info: TensorInfo,
    /// Index of the file among the checkpoint's files.
    pub(crate) source: usize,
    pub(crate) layout: Layout,
}

/// The position of a tensor's elements in its file; parsers have checked that it is inside.
#[derive(Clone, Debug)]
pub(crate) enum Layout {
    /// Row-major, without gaps: first byte and number of bytes.
    Contiguous { start: usize, len: usize },
    /// A view: byte of the first element, and the step of each dimension in elements.
    Strided { start: usize, strides: Vec<usize> },
    /// Contiguous rows in another order.
    Rows { start: usize, order: RowOrder },
    /// The row-major transpose of a matrix, with elements of this type; blocks are read as f32.
    Transposed { start: usize, len: usize, stored: Dtype },
    /// Assembled from other tensors, of any file.
    Packed(Arc<Packed>),
}

/// Positions of the rows of a tensor in its file: row `(i, j, k)` of [`dims`](Self::dims) is the stored row
/// `i·strides[0] + j·strides[1] + k·strides[2]`. The parsers have checked that the dimensions match the
/// number of rows, and that all of these are among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowOrder {
    pub(crate) dims: [usize; 3],
    pub(crate) strides: [usize; 3],
}

impl RowOrder {
    /// Rows of `len` elements in this order.
    pub(crate) fn gather<T: Copy>(&self, rows: &[T], len: usize) -> Vec<T> {
        let ([a, b, c], [x, y, z]) = (self.dims, self.strides);
        let mut out = Vec::with_capacity(rows.len());
        for i in 0..a {
            for j in 0..b {
                for k in 0..c {
                    let at = (i * x + j * y + k * z) * len;
                    out.extend_from_slice(rows.get(at..at + len).unwrap_or_default());
                }
            }
        }
        out
    }
}

impl Entry {
    /// The elements in f32 if they are assembled, and so not exact in any stored type.
    pub(crate) fn exact(&self, files: &[Bytes]) -> Option<Vec<f32>> {
        match &self.layout {
            Layout::Packed(packed) => Some(packed.floats(files)),
            _ => None,
        }
    }

    /// The tensor's bytes in row-major order: borrowed from the file if they are stored so, otherwise
    /// gathered.
    ///
    /// An empty result for a position outside the file cannot happen after the parsers' checks; it turns a
    /// mistake in them into a wrong length instead of a panic. The error is an assembled element outside the range of the type.
    pub(crate) fn bytes<'a>(&self, files: &'a [Bytes]) -> Result<Cow<'a, [u8]>, f32> {
        if let Layout::Packed(packed) = &self.layout {
            return Ok(Cow::Owned(packed.bytes(files, self.info.dtype)?));
        }
        Ok(self.plain_bytes(files))
    }

    /// The same of a tensor that is not assembled from others.
    pub(crate) fn plain_bytes<'a>(&self, files: &'a [Bytes]) -> Cow<'a, [u8]> {
        let file = files.get(self.source).map(Bytes::as_slice).unwrap_or_default();
        match &self.layout {
            Layout::Packed(_) => Cow::Borrowed(&[]),
            Layout::Contiguous { start, len } => Cow::Borrowed(span(file, *start, *len)),
            Layout::Rows { start, order } => {
                let len = self.info.byte_size();
                let rows = self.info.shape.first().copied().unwrap_or(1).max(1);
                Cow::Owned(order.gather(span(file, *start, len), len / rows))
            }
            Layout::Transposed { start, len, stored } => {
                Cow::Owned(transposed(span(file, *start, *len), &self.info, *stored))
            }
            Layout::Strided { start, strides } => {
                Cow::Owned(gather(file, *start, &self.info.shape, strides, self.info.dtype))
            }
        }
    }
}

fn span(file: &[u8], start: usize, len: usize) -> &[u8] {
    start.checked_add(len).and_then(|end| file.get(start..end)).unwrap_or_default()
}

/// The transpose of a matrix; `info` describes the result.
fn transposed(bytes: &[u8], info: &TensorInfo, stored: Dtype) -> Vec<u8> {
    let &[columns, rows] = info.shape.as_slice() else { return Vec::new() };
    if info.dtype == stored {
        return gather(bytes, 0, &info.shape, &[1, columns], stored);
    }
    let mut values = vec![0f32; rows * columns];
    transpose_f32(stored, bytes, [rows, columns], &mut values, |_| ());
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// The step of each dimension of a row-major tensor; its number of elements does not overflow.
pub(crate) fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// Whether the elements are in row-major order without gaps. The stride of a dimension of one does not matter.
pub(crate) fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    run(shape, strides).0 == 0
}

/// The first of the innermost dimensions that are without gaps, and their number of elements.
fn run(shape: &[usize], strides: &[usize]) -> (usize, usize) {
    let (mut axis, mut len) = (shape.len(), 1usize);
    while axis > 0 && (shape[axis - 1] == 1 || strides[axis - 1] == len) {
        len = len.saturating_mul(shape[axis - 1]);
        axis -= 1;
    }
    (axis, len)
}

/// Copies a strided view into row-major order.
fn gather(file: &[u8], start: usize, shape: &[usize], strides: &[usize], dtype: Dtype) -> Vec<u8> {
    let size = dtype.size();
    let numel: usize = shape.iter().product();
    let mut out = Vec::with_capacity(numel * size);
    let (outer, len) = run(shape, strides);
    let mut index = vec![0usize; outer];
    let mut offset = 0usize;
    for _ in 0..numel.checked_div(len).unwrap_or(0) {
        let at = start + offset * size;
        out.extend_from_slice(file.get(at..at + len * size).unwrap_or_default());
        for axis in (0..outer).rev() {
            index[axis] += 1;
            offset += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            offset -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposed_view_is_gathered() {
        // 2x3 row-major [[0,1,2],[3,4,5]] seen as its 3x2 transpose.
        let file: Vec<u8> = (0..6).collect();
        assert_eq!(gather(&file, 0, &[3, 2], &[1, 3], Dtype::U8), [0, 3, 1, 4, 2, 5]);
        // Every second column, from the second row on.
        assert_eq!(gather(&file, 3, &[1, 2], &[3, 2], Dtype::U8), [3, 5]);
        assert_eq!(gather(&file, 2, &[], &[], Dtype::U8), [2]);
        assert!(gather(&file, 0, &[2, 0], &[3, 1], Dtype::U8).is_empty());
        // Runs of two elements, and all of them in one.
        assert_eq!(gather(&file, 1, &[2, 1, 2], &[3, 9, 1], Dtype::U8), [1, 2, 4, 5]);
        assert_eq!(gather(&file, 0, &[2, 3], &[3, 1], Dtype::U8), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn gaps_are_seen() {
        assert_eq!(row_major(&[2, 3, 4]), [12, 4, 1]);
        assert!(is_contiguous(&[2, 3, 4], &[12, 4, 1]) && is_contiguous(&[], &[]));
        assert!(is_contiguous(&[2, 1, 4], &[4, 99, 1]));
        assert!(!is_contiguous(&[2, 3], &[4, 1]) && !is_contiguous(&[2, 3], &[1, 2]));
    }
}
