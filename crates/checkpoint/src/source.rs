//! Where a tensor's bytes are: the table that every format's parser yields.

use std::{borrow::Cow, collections::BTreeMap};

use crate::dtype::{Dtype, TensorInfo};

/// What a parser found in one file.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) tensors: BTreeMap<String, Entry>,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// One tensor: what it is and where it lies.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) info: TensorInfo,
    /// Index of the file among the checkpoint's files.
    pub(crate) source: usize,
    pub(crate) layout: Layout,
}

/// The place of a tensor's elements in its file; parsers have checked that it lies inside.
#[derive(Clone, Debug)]
pub(crate) enum Layout {
    /// Row-major, without gaps: first byte and number of bytes.
    Contiguous { start: usize, len: usize },
    /// A view: byte of the first element, and the step of each dimension in elements.
    Strided { start: usize, strides: Vec<usize> },
}

impl Entry {
    /// The tensor's bytes in row-major order: borrowed from the file where they lie so, gathered where not.
    ///
    /// An empty answer for a place outside the file cannot happen after the parsers' checks; it is there so that a
    /// mistake in them is a wrong length rather than a panic.
    pub(crate) fn bytes<'a>(&self, file: &'a [u8]) -> Cow<'a, [u8]> {
        match &self.layout {
            Layout::Contiguous { start, len } => Cow::Borrowed(
                start.checked_add(*len).and_then(|end| file.get(*start..end)).unwrap_or_default(),
            ),
            Layout::Strided { start, strides } => {
                Cow::Owned(gather(file, *start, &self.info.shape, strides, self.info.dtype))
            }
        }
    }
}

/// Copies a strided view into row-major order.
fn gather(file: &[u8], start: usize, shape: &[usize], strides: &[usize], dtype: Dtype) -> Vec<u8> {
    let size = dtype.size();
    let numel: usize = shape.iter().product();
    let mut out = Vec::with_capacity(numel * size);
    let mut index = vec![0usize; shape.len()];
    let mut offset = 0usize;
    for _ in 0..numel {
        let at = start + offset * size;
        out.extend_from_slice(file.get(at..at + size).unwrap_or_default());
        for axis in (0..shape.len()).rev() {
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
    }
}
