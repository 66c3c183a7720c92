//! Resizing with Pillow's arithmetic.

use std::borrow::Cow;

use super::decode::Bitmap;

/// A resampling filter, by Pillow's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// 0: the nearest pixel, without smoothing.
    Nearest,
    /// 1: windowed sinc over three pixels.
    Lanczos,
    /// 2: triangles.
    Bilinear,
    /// 3: cubic polynomials.
    Bicubic,
    /// 4: means.
    Box,
    /// 5: a windowed cosine, sharper than triangles.
    Hamming,
}

impl Filter {
    /// In the order of Pillow's numbers.
    pub const ALL: [Self; 6] =
        [Self::Nearest, Self::Lanczos, Self::Bilinear, Self::Bicubic, Self::Box, Self::Hamming];

    /// Pixels on either side that it reads, at equal size.
    const fn support(self) -> f64 {
        match self {
            Self::Nearest | Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        let sinc = |x: f64| {
            if x == 0.0 { 1.0 } else { (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI) }
        };
        let distance = x.abs();
        match self {
            Self::Nearest | Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - distance).max(0.0),
            Self::Hamming if distance >= 1.0 => 0.0,
            Self::Hamming => sinc(distance) * (0.54 + 0.46 * (distance * std::f64::consts::PI).cos()),
            Self::Bicubic => {
                let a = -0.5;
                if distance < 1.0 {
                    ((a + 2.0) * distance - (a + 3.0)) * distance * distance + 1.0
                } else if distance < 2.0 {
                    (((distance - 5.0) * distance + 8.0) * distance - 4.0) * a
                } else {
                    0.0
                }
            }
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

/// Bits after the point of a weight.
const PRECISION: u32 = 32 - 8 - 2;

/// The first input of an output and the weights of it and those after it.
type Weights = (usize, Vec<i32>);

/// Brings a picture to another size; the values are those of Pillow's `resize`, which smooths when it makes a picture
/// smaller, and rounds to 8 bits after the columns and after the rows.
pub fn resize(picture: &Bitmap, [height, width]: [usize; 2], filter: Filter) -> Bitmap {
    if [height, width] == [picture.height, picture.width] {
        return picture.clone();
    }
    if filter == Filter::Nearest {
        return nearest(picture, [height, width]);
    }
    let mut rgb = Cow::Borrowed(&picture.rgb);
    let mut row_length = picture.width;
    if width != picture.width {
        let weights = weights(picture.width, width, filter);
        let rows = rgb.chunks_exact(3 * picture.width);
        let mut out = Vec::with_capacity(3 * width * picture.height);
        out.extend(rows.flat_map(|row| weights.iter().flat_map(|of| sums(of, |x| 3 * x, row))));
        rgb = Cow::Owned(out);
        row_length = width;
    }
    if height != picture.height {
        let weights = weights(picture.height, height, filter);
        let stride = 3 * row_length;
        let columns = || (0..row_length).map(|x| 3 * x);
        let mut out = Vec::with_capacity(height * stride);
        out.extend(
            weights
                .iter()
                .flat_map(|of| columns().flat_map(|column| sums(of, |y| y * stride + column, &rgb))),
        );
        rgb = Cow::Owned(out);
    }
    Bitmap { height, width, rgb: rgb.into_owned() }
}

/// One pixel: the weighted sums of the three channels at these places.
fn sums((first, weights): &Weights, place: impl Fn(usize) -> usize, values: &[u8]) -> [u8; 3] {
    let mut sums = [1_i32 << (PRECISION - 1); 3];
    for (k, &weight) in weights.iter().enumerate() {
        let at = place(first + k);
        for (sum, &value) in sums.iter_mut().zip(&values[at..at + 3]) {
            *sum += i32::from(value) * weight;
        }
    }
    sums.map(|sum| (sum >> PRECISION).clamp(0, 255) as u8)
}

fn weights(from: usize, to: usize, filter: Filter) -> Vec<Weights> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let of = |output: usize| {
        let center = (output as f64 + 0.5) * scale;
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let values: Vec<f64> =
            (first..end).map(|x| filter.at((x as f64 - center + 0.5) * (1.0 / stretch))).collect();
        let sum: f64 = values.iter().sum();
        let fixed = |value: f64| {
            let value = if sum == 0.0 { value } else { value / sum } * f64::from(1_u32 << PRECISION);
            (value + if value < 0.0 { -0.5 } else { 0.5 }) as i32
        };
        (first, values.into_iter().map(fixed).collect())
    };
    (0..to).map(of).collect()
}

fn nearest(picture: &Bitmap, [height, width]: [usize; 2]) -> Bitmap {
    // Pillow adds up the steps, whose rounding decides at whole numbers.
    let places = |from: usize, to: usize| -> Vec<usize> {
        let step = from as f64 / to as f64;
        let places = std::iter::successors(Some(step * 0.5), |place| Some(place + step));
        places.take(to).map(|place| (place as usize).min(from - 1)).collect()
    };
    let (rows, columns) = (places(picture.height, height), places(picture.width, width));
    let mut rgb = Vec::with_capacity(3 * width * height);
    for y in rows {
        for x in &columns {
            let at = 3 * (y * picture.width + x);
            rgb.extend_from_slice(&picture.rgb[at..at + 3]);
        }
    }
    Bitmap { height, width, rgb }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes, the first pixel taken, and the steps to the next ones, as from Pillow 12.
    #[test]
    fn the_nearest_pixels_are_those_of_pillow() {
        for (from, to, first, steps) in [
            (
                64,
                224,
                0,
                "0001001000100100010010001001001000100100010010001001000100100010010001001000100010010001001000100100\
             0100100010010001001000100100010010001001000100100010010001001000100100010010001001000100100010010001\
             00100010010001001000100",
            ),
            (
                256,
                224,
                0,
                "1112111111211111121111112111112111111211111121111112111111211111121111112111111121111112111111211111\
             1211111121111112111111211111121111112111111211111121111112111111211111121111112111111211111121111112\
             11111121111112111111211",
            ),
            (
                640,
                224,
                1,
                "3332333333233333233333323333333233333323333332333333233333323333332333333233333323333332333333233333\
             2333333233333323333332333333233333323333332333333233333323333332333333233333323333332333333233333323\
             33333233333323333332333",
            ),
            (
                224,
                256,
                0,
                "1110111111101111111011111110111111101111111011111110111111101111111011111110111111101111111011111110\
             1111111011111110111111101111111011111110111111101111111011111110111111101111111011111110111111101111\
             1110111111101111111011111110111111101111111011111110111",
            ),
        ] {
            let rgb: Vec<u8> =
                (0..from).flat_map(|place| [(place % 256) as u8, (place / 256) as u8, 0]).collect();
            let expected: Vec<usize> = std::iter::once(first)
                .chain(steps.bytes().scan(first, |place, step| {
                    *place += usize::from(step - b'0');
                    Some(*place)
                }))
                .collect();
            assert_eq!(expected.len(), to);
            for (size, target) in [([1, from], [1, to]), ([from, 1], [to, 1])] {
                let picture = Bitmap { height: size[0], width: size[1], rgb: rgb.clone() };
                let resized = resize(&picture, target, Filter::Nearest);
                let taken: Vec<usize> = resized
                    .rgb
                    .chunks(3)
                    .map(|rgb| usize::from(rgb[0]) + 256 * usize::from(rgb[1]))
                    .collect();
                assert_eq!(taken, expected, "{from} to {to}");
            }
        }
    }
}
