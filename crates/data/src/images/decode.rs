//! PNG and JPEG files as RGB of 8 bits, converted as by Pillow's `convert("RGB")`.

use std::io::Cursor;
use std::path::Path;

use image::{ColorType, DynamicImage, ExtendedColorType, ImageDecoder, ImageFormat, ImageReader};

use crate::error::{DataError, Result};

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

/// Decodes a PNG or JPEG file, whatever its extension, upright as its EXIF orientation says.
///
/// As in Pillow, transparency is dropped and not composed with a background, channels of 16 bits lose their lower byte, and
/// greys of 16 bits are cut at 255.
///
/// # Errors
/// [`DataError::Image`] for a file that is neither, is damaged or truncated, or has more than [`MAX_PIXELS`].
pub fn decode(path: &Path) -> Result<Bitmap> {
    let fault = |message: String| DataError::Image { path: path.to_path_buf(), message };
    let bytes = lowrank_checkpoint::read_file_within(path, MAX_BYTES).map_err(DataError::io("read", path))?;
    if bytes.is_empty() {
        return Err(fault("is empty; remove it or fetch it again".into()));
    }
    let format = image::guess_format(&bytes).ok();
    match format {
        Some(ImageFormat::Png) => {}
        Some(ImageFormat::Jpeg) if is_whole_jpeg(&bytes) => {}
        Some(ImageFormat::Jpeg) => return Err(fault("is truncated; fetch it again".into())),
        Some(other) => {
            let name = other.extensions_str().first().copied().unwrap_or("picture of another kind");
            return Err(fault(format!("is a {name}; PNG and JPEG files are read")));
        }
        None => return Err(fault("is not a picture that can be read; expected PNG or JPEG".into())),
    }
    let damaged = |error: image::ImageError| {
        let text = error.to_string();
        fault(format!("cannot be decoded: {}", text.split_whitespace().collect::<Vec<_>>().join(" ")))
    };
    let reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format();
    let mut reader = reader.map_err(|e| damaged(image::ImageError::IoError(e)))?;
    reader.no_limits();
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels > MAX_PIXELS {
        return Err(fault(format!(
            "has {width} x {height} pixels; at most {MAX_PIXELS} are decoded, make it smaller"
        )));
    }
    if pixels == 0 {
        return Err(fault(format!("has {width} x {height} pixels")));
    }
    let is_wide_grey =
        decoder.original_color_type() == ExtendedColorType::L16 || decoder.color_type() == ColorType::L16;
    let orientation = decoder.orientation().map_err(damaged)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    picture.apply_orientation(orientation);
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    Ok(Bitmap { height, width, rgb: to_rgb(&picture, is_wide_grey) })
}

fn to_rgb(picture: &DynamicImage, is_wide_grey: bool) -> Vec<u8> {
    let grey = |v: u8| [v; 3];
    let wide = |v: u16| if is_wide_grey { v.min(255) as u8 } else { (v >> 8) as u8 };
    match picture {
        DynamicImage::ImageLuma8(p) => p.pixels().flat_map(|p| grey(p.0[0])).collect(),
        DynamicImage::ImageLumaA8(p) => p.pixels().flat_map(|p| grey(p.0[0])).collect(),
        DynamicImage::ImageRgb8(p) => p.as_raw().clone(),
        DynamicImage::ImageRgba8(p) => p.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]]).collect(),
        DynamicImage::ImageLuma16(p) => p.pixels().flat_map(|p| grey(wide(p.0[0]))).collect(),
        DynamicImage::ImageLumaA16(p) => p.pixels().flat_map(|p| grey(wide(p.0[0]))).collect(),
        DynamicImage::ImageRgb16(p) => p.as_raw().iter().map(|&v| wide(v)).collect(),
        DynamicImage::ImageRgba16(p) => p.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]].map(wide)).collect(),
        // Of no PNG or JPEG.
        other => other.to_rgb8().into_raw(),
    }
}

/// Whether a JPEG's marker of its end follows its data: the decoder fills what is missing with grey.
fn is_whole_jpeg(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        // The next marker, which padding may precede; coded data hold 0xff only before 0 or a restart.
        let Some(found) = bytes.get(at..).and_then(|rest| rest.iter().position(|&b| b == 0xff)) else {
            return false;
        };
        at += found + 1;
        match bytes.get(at) {
            None => return false,
            Some(0xff) => {}
            Some(0xd9) => return true,
            Some(0x00 | 0x01 | 0xd0..=0xd8) => at += 1,
            // A segment with its length.
            Some(_) => match bytes.get(at + 1..at + 3) {
                Some(&[high, low]) => at += 1 + usize::from(u16::from_be_bytes([high, low])).max(2),
                _ => return false,
            },
        }
    }
}
