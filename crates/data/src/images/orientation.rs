//! How a picture is turned: where Pillow's `exif_transpose` looks for it.

use super::decode::Bitmap;

/// Tag of the orientation in EXIF data.
const ORIENTATION: u16 = 0x0112;

/// Where a file says how it is turned.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    /// EXIF data, with or without `Exif\0\0` before them.
    pub(super) exif: Option<Vec<u8>>,
    /// An XMP packet, which counts if the EXIF data say nothing.
    pub(super) xmp: Option<Vec<u8>>,
}

impl Metadata {
    /// The orientation of EXIF, 1 to 8; 1 if the tag is missing or has another value, which Pillow ignores.
    ///
    /// # Errors
    /// EXIF data of which the orientation cannot be read.
    pub(super) fn orientation(&self) -> Result<u8, String> {
        let told = match self.exif.as_deref().map(of_exif).transpose()?.flatten() {
            Some(told) => Some(told),
            None => self.xmp.as_deref().and_then(of_xmp),
        };
        Ok(told.and_then(|told| u8::try_from(told).ok()).filter(|told| (1..=8).contains(told)).unwrap_or(1))
    }
}

/// The tag's value; 0 for one of a type that is not a number.
fn of_exif(mut data: &[u8]) -> Result<Option<u32>, String> {
    while let Some(rest) = data.strip_prefix(b"Exif\0\0") {
        data = rest;
    }
    if data.is_empty() {
        return Ok(None);
    }
    let is_big = match data.get(..4) {
        Some(b"MM\0*") => true,
        Some(b"II*\0") => false,
        _ => return Err("has EXIF data that cannot be read; remove them, or turn the picture upright".into()),
    };
    let short = |at: usize| -> Option<u32> {
        let two: [u8; 2] = data.get(at..)?.get(..2)?.try_into().ok()?;
        Some(u32::from(if is_big { u16::from_be_bytes(two) } else { u16::from_le_bytes(two) }))
    };
    let long = |at: usize| -> Option<u32> {
        let four: [u8; 4] = data.get(at..)?.get(..4)?.try_into().ok()?;
        Some(if is_big { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) })
    };
    let Some(start) = long(4).map(|start| start as usize) else { return Ok(None) };
    let mut told = None;
    // A directory that ends too early holds what comes before; of a tag that occurs twice the last counts.
    for entry in 0..short(start).unwrap_or(0) as usize {
        let at = start + 2 + 12 * entry;
        let Some((tag, (kind, count))) = short(at).zip(short(at + 2).zip(long(at + 4))) else { break };
        if tag != u32::from(ORIENTATION) || count == 0 {
            continue;
        }
        let place = |size: u32| match count.checked_mul(size)? {
            0..=4 => Some(at + 8),
            _ => long(at + 8).map(|place| place as usize),
        };
        told = match kind {
            // Bytes, characters.
            1 | 2 | 7 => Some(0),
            3 | 8 => place(2).and_then(short),
            4 | 9 | 13 => place(4).and_then(long),
            _ => {
                return Err(format!(
                    "has an EXIF orientation of type {kind}; expected a SHORT or LONG, or turn it upright"
                ));
            }
        }
        .or(told);
    }
    Ok(told)
}

/// The digit after the first `tiff:Orientation="` or `tiff:Orientation>`.
fn of_xmp(packet: &[u8]) -> Option<u32> {
    const NAME: &[u8] = b"tiff:Orientation";
    let values = (0..packet.len().saturating_sub(NAME.len())).filter_map(|at| {
        let rest = packet[at..].strip_prefix(NAME)?;
        let value = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?;
        value.first().filter(|digit| digit.is_ascii_digit()).map(|digit| u32::from(digit - b'0'))
    });
    values.into_iter().next()
}

/// Turns a picture upright.
pub(super) fn upright(picture: Bitmap, orientation: u8) -> Bitmap {
    let (height, width) = (picture.height, picture.width);
    let (bottom, right) = (height.saturating_sub(1), width.saturating_sub(1));
    // The place in the file of a pixel of the result.
    let place = |y: usize, x: usize| match orientation {
        2 => (y, right - x),
        3 => (bottom - y, right - x),
        4 => (bottom - y, x),
        5 => (x, y),
        6 => (bottom - x, y),
        7 => (bottom - x, right - y),
        8 => (x, right - y),
        _ => (y, x),
    };
    let [rows, columns] = match orientation {
        5..=8 => [width, height],
        2..=4 => [height, width],
        _ => return picture,
    };
    let mut rgb = Vec::with_capacity(picture.rgb.len());
    for y in 0..rows {
        for x in 0..columns {
            let (from_y, from_x) = place(y, x);
            let at = 3 * (from_y * width + from_x);
            rgb.extend_from_slice(&picture.rgb[at..at + 3]);
        }
    }
    Bitmap { height: rows, width: columns, rgb }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// EXIF data with one tag, of a type and a number of values.
    fn exif(is_big: bool, tag: u16, kind: u16, count: u32, value: [u8; 4]) -> Vec<u8> {
        let short = |v: u16| if is_big { v.to_be_bytes() } else { v.to_le_bytes() };
        let long = |v: u32| if is_big { v.to_be_bytes() } else { v.to_le_bytes() };
        let start: &[u8] = if is_big { b"MM\0*" } else { b"II*\0" };
        [start, &long(8), &short(1), &short(tag), &short(kind), &long(count), &value, &long(0)].concat()
    }

    #[rstest]
    #[case(exif(false, 0x112, 3, 1, [6, 0, 0, 0]), Ok(6))]
    #[case(exif(true, 0x112, 3, 1, [0, 6, 0, 0]), Ok(6))]
    #[case(exif(false, 0x112, 4, 1, [8, 0, 0, 0]), Ok(8))]
    #[case(exif(true, 0x112, 4, 1, [0, 0, 0, 3]), Ok(3))]
    #[case(exif(true, 0x112, 3, 2, [0, 3, 0, 6]), Ok(3))]
    #[case(exif(false, 0x112, 3, 1, [9, 0, 0, 0]), Ok(1))]
    #[case(exif(false, 0x112, 1, 1, [6, 0, 0, 0]), Ok(1))]
    #[case(exif(false, 0x112, 3, 0, [6, 0, 0, 0]), Ok(1))]
    #[case(exif(false, 0x113, 3, 1, [6, 0, 0, 0]), Ok(1))]
    #[case(exif(false, 0x112, 5, 1, [6, 0, 0, 0]), Err("type 5"))]
    // Behind the directory, or beyond the end.
    #[case(exif(false, 0x112, 4, 2, [22, 0, 0, 0]), Ok(1))]
    #[case(exif(false, 0x112, 4, 9, [0xff; 4]), Ok(1))]
    #[case([b"Exif\0\0", &exif(false, 0x112, 3, 1, [5, 0, 0, 0])[..]].concat(), Ok(5))]
    #[case(b"Exif\0\0".to_vec(), Ok(1))]
    #[case(b"II*\0".to_vec(), Ok(1))]
    #[case(b"nothing of the kind".to_vec(), Err("EXIF data that cannot be read"))]
    fn the_tag_is_read(#[case] data: Vec<u8>, #[case] expect: Result<u8, &str>) {
        let got = Metadata { exif: Some(data), xmp: None }.orientation();
        match expect {
            Ok(expect) => assert_eq!(got, Ok(expect)),
            Err(part) => assert!(got.is_err_and(|error| error.contains(part))),
        }
    }

    #[test]
    fn xmp_counts_where_exif_says_nothing() {
        let of = |xmp: &str, exif: Option<Vec<u8>>| Metadata { exif, xmp: Some(xmp.into()) }.orientation();
        let attribute = "<x tiff:Orientation='6' tiff:Orientation=\"8\"/>";
        assert_eq!(of(attribute, None), Ok(8));
        assert_eq!(of("<tiff:Orientation>6</tiff:Orientation>", Some(exif(true, 1, 3, 1, [0; 4]))), Ok(6));
        assert_eq!(of(attribute, Some(exif(true, 0x112, 3, 1, [0, 2, 0, 0]))), Ok(2));
        assert_eq!(of(attribute, Some(exif(true, 0x112, 3, 1, [0, 0, 0, 0]))), Ok(1));
        assert_eq!(of("tiff:Orientation", None), Ok(1));
    }

    #[test]
    fn a_picture_is_turned() {
        // 1 2 3
        // 4 5 6
        let pixels = |order: &[u8]| order.iter().flat_map(|&v| [v; 3]).collect::<Vec<u8>>();
        let picture = Bitmap { height: 2, width: 3, rgb: pixels(&[1, 2, 3, 4, 5, 6]) };
        let cases: [(u8, usize, [u8; 6]); 8] = [
            (1, 2, [1, 2, 3, 4, 5, 6]),
            (2, 2, [3, 2, 1, 6, 5, 4]),
            (3, 2, [6, 5, 4, 3, 2, 1]),
            (4, 2, [4, 5, 6, 1, 2, 3]),
            (5, 3, [1, 4, 2, 5, 3, 6]),
            (6, 3, [4, 1, 5, 2, 6, 3]),
            (7, 3, [6, 3, 5, 2, 4, 1]),
            (8, 3, [3, 6, 2, 5, 1, 4]),
        ];
        for (orientation, height, order) in cases {
            let expect = Bitmap { height, width: 6 / height, rgb: pixels(&order) };
            assert_eq!(upright(picture.clone(), orientation), expect, "{orientation}");
        }
    }
}
