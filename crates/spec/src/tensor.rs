//! A named tensor in host memory.

use std::borrow::Cow;

/// A tensor on the host in PyTorch's layout: row-major f32 elements, borrowed or owned.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor<'a> {
    /// The key in a tensor file.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The elements in row-major order.
    pub data: Cow<'a, [f32]>,
}

impl<'a> HostTensor<'a> {
    /// Creates a tensor from a name, a shape and elements.
    pub fn new(
        name: impl Into<String>,
        shape: impl Into<Vec<usize>>,
        data: impl Into<Cow<'a, [f32]>>,
    ) -> Self {
        Self { name: name.into(), shape: shape.into(), data: data.into() }
    }

    /// The same tensor, borrowed.
    pub fn borrowed(&self) -> HostTensor<'_> {
        HostTensor { name: self.name.clone(), shape: self.shape.clone(), data: Cow::Borrowed(&self.data) }
    }
}

/// Row-major `[rows, columns]` → row-major `[columns, rows]`.
pub fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| values[r * columns + c])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposed_twice_is_the_same() {
        let values: Vec<f32> = (0..6).map(|v| v as f32).collect();
        let once = transpose(&values, 2, 3);
        assert_eq!(once, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(transpose(&once, 3, 2), values);
    }
}
