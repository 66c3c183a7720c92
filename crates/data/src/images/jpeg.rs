//! JPEG files.

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::decode::{Bitmap, Permit, damaged};
use super::orientation::Metadata;

const APP0: u8 = 0xe0;
const APP1: u8 = 0xe1;
const APP14: u8 = 0xee;
const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;

/// Where Adobe's segment says how its channels are to be transformed.
const ADOBE_TRANSFORM: usize = 11;

/// The picture, its orientation metadata and its permit.
///
/// # Errors
/// A message about what is wrong with the file.
pub(super) fn decode(mut bytes: Vec<u8>) -> Result<(Bitmap, Metadata, Permit), String> {
    if !is_whole(&bytes) {
        return Err("is truncated; fetch it again".into());
    }
    let head = Head::of(&bytes);
    match (&head.channels[..], head.adobe) {
        // JFIF says YCbCr, and Adobe's segment RGB; libjpeg believes JFIF.
        ([_, _, _], Some((at, 0))) if head.is_jfif => bytes[at] = 0,
        (b"RGB", _) if head.is_jfif => {
            return Err("has channels named RGB in a JFIF file, whose channels are YCbCr; convert it".into());
        }
        // As in libjpeg, four channels that are not CMYK are YCCK.
        ([_, _, _, _], Some((at, 1))) => bytes[at + ADOBE_TRANSFORM] = 2,
        _ => {}
    }
    let options = DecoderOptions::default().set_max_width(usize::MAX).set_max_height(usize::MAX);
    let found = read(&bytes, options.set_strict_mode(true));
    let (bitmap, permit) = match found {
        // Bytes between segments are skipped by other decoders too.
        Err(error) if error.contains("Extra bytes between headers") => {
            read(&bytes, options.set_strict_mode(false))?
        }
        found => found?,
    };
    Ok((bitmap, head.metadata, permit))
}

fn read(bytes: &[u8], options: DecoderOptions) -> Result<(Bitmap, Permit), String> {
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(damaged)?;
    let (width, height) = decoder.dimensions().ok_or("has no size")?;
    let permit = Permit::of(width as u32, height as u32)?;
    let is_grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let space = if is_grey { ColorSpace::Luma } else { ColorSpace::RGB };
    decoder.set_options(options.jpeg_set_out_colorspace(space));
    let n = if is_grey { 1 } else { 3 } * width * height;
    if decoder.output_buffer_size() != Some(n) {
        return Err("has colours of a kind that is not read; convert it to RGB".into());
    }
    let mut raw = vec![0; n];
    decoder.decode_into(&mut raw).map_err(damaged)?;
    let rgb = if is_grey { raw.iter().flat_map(|&v| [v; 3]).collect() } else { raw };
    Ok((Bitmap { height, width, rgb }, permit))
}

/// What the segments before the first scan say.
#[derive(Default)]
struct Head {
    metadata: Metadata,
    is_jfif: bool,
    /// Where Adobe's segment begins, and how it says that the channels are to be transformed.
    adobe: Option<(usize, u8)>,
    /// Names of the channels.
    channels: Vec<u8>,
}

impl Head {
    fn of(bytes: &[u8]) -> Self {
        let (mut head, mut at) = (Self::default(), 2);
        while let Some((marker, start)) = next_marker(bytes, at)
            && marker != SOS
            && marker != EOI
        {
            if is_alone(marker) {
                at = start;
                continue;
            }
            let Some(end) = segment_end(bytes, start) else { break };
            head.add(marker, start + 2, bytes.get(start + 2..end).unwrap_or_default());
            at = end;
        }
        head
    }

    fn add(&mut self, marker: u8, start: usize, data: &[u8]) {
        const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
        match marker {
            APP0 if data.starts_with(b"JFIF\0") => self.is_jfif = true,
            APP1 if data.starts_with(b"Exif\0\0") => match &mut self.metadata.exif {
                // Data of more than 64 kB are in several segments.
                Some(exif) => exif.extend_from_slice(&data[6..]),
                none => *none = Some(data.to_vec()),
            },
            APP1 => {
                if let Some(packet) = data.strip_prefix(XMP) {
                    self.metadata.xmp = Some(packet.to_vec());
                }
            }
            APP14 if data.starts_with(b"Adobe") => {
                self.adobe = data.get(ADOBE_TRANSFORM).map(|&transform| (start, transform));
            }
            // Frames; between their numbers are those of Huffman tables, extensions, and arithmetic tables.
            0xc0..=0xcf if ![0xc4, 0xc8, 0xcc].contains(&marker) => {
                let channels = data.get(6..).unwrap_or_default().chunks_exact(3);
                self.channels = channels.map(|channel| channel[0]).collect();
            }
            _ => {}
        }
    }
}

/// The next marker from a place on, and the place after it. Padding may precede it, and coded data hold 0xff only before 0.
fn next_marker(bytes: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at += bytes.get(at..)?.iter().position(|&byte| byte == 0xff)? + 1;
        match bytes.get(at)? {
            0xff => {}
            0 => at += 1,
            &marker => return Some((marker, at + 1)),
        }
    }
}

/// Whether a marker has no segment: TEM, a restart, the start.
fn is_alone(marker: u8) -> bool {
    matches!(marker, 0x01 | 0xd0..=SOI)
}

/// The end of the segment whose length is at this place.
fn segment_end(bytes: &[u8], at: usize) -> Option<usize> {
    let &[high, low] = bytes.get(at..at + 2)? else { return None };
    Some(at + usize::from(u16::from_be_bytes([high, low])).max(2))
}

/// Whether the marker of the end follows the data: decoders fill what is missing with grey.
fn is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some((marker, next)) = next_marker(bytes, at) {
        if marker == EOI {
            return true;
        }
        let end = if is_alone(marker) { Some(next) } else { segment_end(bytes, next) };
        let Some(end) = end else { return false };
        at = end;
    }
    false
}
