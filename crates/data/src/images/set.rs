//! The pictures of a split, ready to be batched.

use std::path::PathBuf;

use rayon::prelude::*;

use super::processor::{ImageProcessor, PatchSize};
use crate::error::Result;

/// Bytes of prepared pictures that a set keeps; the files of the others are decoded again for each batch.
const KEPT_BYTES: usize = 1 << 30;

/// Pictures that have all been read once. As many as fit in a gigabyte stay in memory.
#[derive(Clone, Debug)]
pub struct ImageSet {
    files: Vec<PathBuf>,
    processor: ImageProcessor,
    size: PatchSize,
    /// Prepared pictures, `[height, width, 3]`.
    kept: Vec<Option<Vec<u8>>>,
    hashes: Vec<u64>,
}

impl ImageSet {
    /// Reads and prepares all files.
    ///
    /// # Errors
    /// As [`ImageProcessor::read`].
    pub fn read(files: Vec<PathBuf>, processor: ImageProcessor, size: PatchSize) -> Result<Self> {
        let bytes = 3 * size.picture[0] * size.picture[1];
        let n_kept = KEPT_BYTES / bytes.max(1);
        // Other means or scales make other pictures of the same bytes.
        let start = processor.values().flat_map(f32::to_le_bytes).fold(FNV, add);
        let read = |(index, file): (usize, &PathBuf)| {
            let picture = processor.read(file, size.picture)?;
            let hash = picture.rgb.iter().copied().fold(start, add);
            Ok(((index < n_kept).then_some(picture.rgb), hash))
        };
        let read: Vec<_> = files.par_iter().enumerate().map(read).collect::<Result<_>>()?;
        let (kept, hashes) = read.into_iter().unzip();
        Ok(Self { files, processor, size, kept, hashes })
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Tokens of a picture: its patches and the class token.
    pub fn n_tokens(&self) -> usize {
        1 + self.size.n_patches()
    }

    /// Hash of each prepared picture and the values that its bytes stand for.
    pub fn hashes(&self) -> &[u64] {
        &self.hashes
    }

    /// Values of the patches of some pictures, one after the other.
    ///
    /// # Errors
    /// A file that has become unreadable.
    pub fn patches(&self, indices: &[usize]) -> Result<Vec<f32>> {
        let each = self.size.n_values();
        let mut out = vec![0.0; indices.len() * each];
        out.par_chunks_mut(each.max(1)).zip(indices).try_for_each(|(out, &index)| {
            match &self.kept[index] {
                Some(rgb) => self.processor.write_patches(rgb, &self.size, out),
                None => {
                    let picture = self.processor.read(&self.files[index], self.size.picture)?;
                    self.processor.write_patches(&picture.rgb, &self.size, out);
                }
            }
            Ok(())
        })?;
        Ok(out)
    }
}

/// Start of FNV-1a.
const FNV: u64 = 0xcbf2_9ce4_8422_2325;

/// One FNV-1a step.
fn add(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
}
