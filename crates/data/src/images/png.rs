//! PNG files.

use std::io::Cursor;

use png::{BitDepth, ColorType, DecodeOptions, Decoder, DecodingError, Info, Limits, Transformations};

use super::decode::{Bitmap, Permit, damaged};
use super::orientation::Metadata;
use crate::error::one_line;

/// Largest text of a picture, once it is unpacked; Pillow reads no more than this.
const MAX_TEXT: usize = 1 << 20;

/// What chunks may take in memory beside pixels.
const MAX_CHUNKS: usize = 64 << 20;

/// The picture, its orientation metadata and its permit.
///
/// # Errors
/// A message about what is wrong with the file.
pub(super) fn decode(bytes: &[u8]) -> Result<(Bitmap, Metadata, Permit), String> {
    let mut options = DecodeOptions::default();
    options.set_ignore_adler32(false);
    let mut decoder = Decoder::new_with_options(Cursor::new(bytes), options);
    // A profile is not used, and can take gigabytes when it is unpacked.
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(Transformations::EXPAND);
    let header = decoder.read_header_info().map_err(damaged)?;
    let (width, height) = (header.width, header.height);
    let is_wide_grey = (header.color_type, header.bit_depth) == (ColorType::Grayscale, BitDepth::Sixteen);
    let permit = Permit::of(width, height)?;
    let (width, height) = (width as usize, height as usize);
    decoder.set_limits(Limits { bytes: 8 * width * height + MAX_CHUNKS });
    let mut reader = decoder.read_info().map_err(damaged)?;
    let n = reader.output_buffer_size().ok_or("has more pixels than memory can address")?;
    let mut raw = vec![0; n];
    let of = reader.next_frame(&mut raw).map_err(damaged)?;
    // Chunks after the pixels may say how the picture is turned.
    reader.finish().map_err(damaged)?;
    let metadata = metadata(reader.info())?;
    let rgb = to_rgb(raw, of.color_type, of.bit_depth, is_wide_grey);
    Ok((Bitmap { height, width, rgb }, metadata, permit))
}

/// Red, green and blue: transparency is dropped, of 16 bits the upper eight remain, but greys are cut at 255.
fn to_rgb(raw: Vec<u8>, color: ColorType, depth: BitDepth, is_wide_grey: bool) -> Vec<u8> {
    if (color, depth) == (ColorType::Rgb, BitDepth::Eight) {
        return raw;
    }
    let step = if depth == BitDepth::Sixteen { 2 } else { 1 };
    let channels = color.samples();
    let pixels = raw.chunks_exact(step * channels);
    let mut rgb = Vec::with_capacity(3 * pixels.len());
    for pixel in pixels {
        let value = |channel: usize| match (is_wide_grey, pixel[step * channel]) {
            (true, 1..) => 255,
            (true, 0) => pixel[step * channel + step - 1],
            (false, value) => value,
        };
        rgb.extend(if channels < 3 { [value(0); 3] } else { [value(0), value(1), value(2)] });
    }
    rgb
}

fn metadata(info: &Info<'_>) -> Result<Metadata, String> {
    let mut metadata = Metadata { exif: info.exif_metadata.as_deref().map(<[u8]>::to_vec), xmp: None };
    for (keyword, text) in texts(info)? {
        match keyword.as_str() {
            "XML:com.adobe.xmp" => metadata.xmp = Some(text.into_bytes()),
            "Raw profile type exif" if info.exif_metadata.is_none() => {
                let data = profile(&text)
                    .ok_or("has a 'Raw profile type exif' that cannot be read; remove it, or turn the picture upright")?;
                metadata.exif = Some(data);
            }
            _ => {}
        }
    }
    Ok(metadata)
}

/// Texts under the names that may say how a picture is turned.
fn texts(info: &Info<'_>) -> Result<Vec<(String, String)>, String> {
    let is_wanted = |keyword: &str| ["XML:com.adobe.xmp", "Raw profile type exif"].contains(&keyword);
    let plain = info.uncompressed_latin1_text.iter().filter(|chunk| is_wanted(&chunk.keyword));
    let mut texts: Vec<(String, String)> =
        plain.map(|chunk| (chunk.keyword.clone(), chunk.text.clone())).collect();
    let mut add = |keyword: &str, text: Result<String, DecodingError>| {
        text.map(|text| texts.push((keyword.to_owned(), text)))
            .map_err(|error| format!("has a text '{keyword}' that cannot be read: {}", one_line(error)))
    };
    for mut chunk in info.compressed_latin1_text.iter().filter(|chunk| is_wanted(&chunk.keyword)).cloned() {
        let text = chunk.decompress_text_with_limit(MAX_TEXT).and_then(|()| chunk.get_text());
        add(&chunk.keyword, text)?;
    }
    for mut chunk in info.utf8_text.iter().filter(|chunk| is_wanted(&chunk.keyword)).cloned() {
        let text = chunk.decompress_text_with_limit(MAX_TEXT).and_then(|()| chunk.get_text());
        add(&chunk.keyword, text)?;
    }
    Ok(texts)
}

/// The data of ImageMagick's raw profile: an empty line, a name, a length, and hexadecimal digits.
fn profile(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        text.split('\n').skip(3).flat_map(str::bytes).filter(|byte| !byte.is_ascii_whitespace()).collect();
    let pairs = digits.chunks(2).map(|pair| match pair {
        [high, low] => {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            u8::try_from(16 * digit(*high)? + digit(*low)?).ok()
        }
        _ => None,
    });
    pairs.collect()
}
