//! Matrices whose rows may have gaps between them, as some columns of a wider matrix do.

/// A matrix with adjacent elements in each row.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    elements: &'a [f32],
    shape: [usize; 2],
    stride: usize,
}

impl<'a> Rows<'a> {
    /// `count` rows of `width` elements, whose first ones are `stride` apart.
    pub(crate) fn new(elements: &'a [f32], [count, width]: [usize; 2], stride: usize) -> Self {
        let len = count.checked_sub(1).map_or(0, |last| last * stride + width);
        assert!(stride >= width, "rows of {width} elements at a distance of {stride}");
        Self { elements: &elements[..len], shape: [count, width], stride }
    }

    pub(crate) fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// All elements from the first to the last, and the distance between rows.
    pub(crate) fn parts(&self) -> (&'a [f32], usize) {
        (self.elements, self.stride)
    }

    #[inline(always)]
    pub(crate) fn row(&self, index: usize) -> &'a [f32] {
        let start = index * self.stride;
        &self.elements[start..start + self.shape[1]]
    }
}
