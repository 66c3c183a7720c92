//! PNG and JPEG files as RGB of 8 bits, converted as by Pillow's `convert("RGB")`.

use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};

use super::orientation::upright;
use super::{jpeg, png};
use crate::error::{DataError, Result, one_line};

/// Most pixels of a picture; Pillow warns of larger ones as decompression bombs.
pub const MAX_PIXELS: u64 = 89_478_485;

/// Largest file that is read; no picture of [`MAX_PIXELS`] in a sensible encoding is larger.
const MAX_BYTES: u64 = 1 << 30;

/// A picture in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bitmap {
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// Red, green and blue of each pixel, row by row; shape `[height, width, 3]`.
    pub rgb: Vec<u8>,
}

/// Decodes a PNG or JPEG file, whatever its extension, upright as its EXIF data, or its XMP packet, say.
///
/// As in Pillow, transparency is dropped and not composed with a background, channels of 16 bits lose their lower byte, and
/// greys of 16 bits are cut at 255.
///
/// # Errors
/// [`DataError::Image`] for a file that is neither, is damaged or truncated, or has more than [`MAX_PIXELS`].
pub fn decode(path: &Path) -> Result<Bitmap> {
    Ok(decode_held(path)?.0)
}

/// The same; the picture counts among those in memory until the permit is dropped.
pub(super) fn decode_held(path: &Path) -> Result<(Bitmap, Permit)> {
    let fault = |message: String| DataError::Image { path: path.to_path_buf(), message };
    let bytes = lowrank_checkpoint::read_file_within(path, MAX_BYTES).map_err(DataError::io("read", path))?;
    if bytes.is_empty() {
        return Err(fault("is empty; remove it or fetch it again".into()));
    }
    let found = match kind(&bytes) {
        Some("png") => png::decode(&bytes),
        Some("jpg") => jpeg::decode(bytes),
        Some(other) => Err(format!("is a {other}; PNG and JPEG files are read")),
        None => Err("is not a picture that can be read; expected PNG or JPEG".into()),
    };
    let (picture, metadata, permit) = found.map_err(fault)?;
    let orientation = metadata.orientation().map_err(fault)?;
    Ok((upright(picture, orientation), permit))
}

/// The kind of a picture by its first bytes.
fn kind(bytes: &[u8]) -> Option<&'static str> {
    let is_riff = bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP");
    let brand = bytes.get(4..12).and_then(|bytes| bytes.strip_prefix(b"ftyp"));
    match bytes {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some("png"),
        [0xff, 0xd8, 0xff, ..] => Some("jpg"),
        [b'G', b'I', b'F', b'8', ..] => Some("gif"),
        [b'I', b'I', b'*', 0, ..] | [b'M', b'M', 0, b'*', ..] => Some("tiff"),
        [b'B', b'M', ..] => Some("bmp"),
        _ if is_riff => Some("webp"),
        _ => match brand? {
            b"avif" | b"avis" => Some("avif"),
            b"heic" | b"heix" | b"mif1" => Some("heic"),
            _ => None,
        },
    }
}

/// Most pixels of all pictures that are decoded at the same time, on whatever threads.
const MAX_IN_FLIGHT: u64 = 2 * MAX_PIXELS;

static IN_FLIGHT: Mutex<u64> = Mutex::new(0);
static LANDED: Condvar = Condvar::new();

/// The right to have a picture of some pixels in memory.
#[derive(Debug)]
pub(super) struct Permit(u64);

impl Permit {
    /// Waits until the pictures being decoded leave room. A thread that holds room never waits for more, so this cannot
    /// deadlock.
    ///
    /// # Errors
    /// A picture without pixels or with more than [`MAX_PIXELS`].
    pub(super) fn of(width: u32, height: u32) -> std::result::Result<Self, String> {
        let pixels = u64::from(width) * u64::from(height);
        if pixels > MAX_PIXELS {
            return Err(format!(
                "has {width} x {height} pixels; at most {MAX_PIXELS} are decoded, make it smaller"
            ));
        }
        if pixels == 0 {
            return Err(format!("has {width} x {height} pixels"));
        }
        let in_flight = IN_FLIGHT.lock().unwrap_or_else(PoisonError::into_inner);
        let mut in_flight = LANDED
            .wait_while(in_flight, |in_flight| *in_flight + pixels > MAX_IN_FLIGHT)
            .unwrap_or_else(PoisonError::into_inner);
        *in_flight += pixels;
        Ok(Self(pixels))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *IN_FLIGHT.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        LANDED.notify_all();
    }
}

/// The message of a decoder's error.
#[allow(clippy::needless_pass_by_value, reason = "an argument of map_err")]
pub(super) fn damaged(error: impl std::fmt::Display) -> String {
    format!("cannot be decoded: {}", one_line(error))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn large_pictures_wait_for_each_other() {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    let _permit = Permit::of(9459, 9459).unwrap();
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(5));
                    now.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert!((1..=2).contains(&most.into_inner()));
        assert!(Permit::of(9460, 9460).unwrap_err().contains("at most 89478485"));
    }
}
