//! `preprocessor_config.json`: how a model's pictures are prepared.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::decode::{Bitmap, decode};
use super::resize::{Filter, resize};
use crate::error::{DataError, Result};

/// Name of the file.
const FILE: &str = "preprocessor_config.json";

/// Names of classes that prepare pictures in this way.
const CLASSES: [&str; 8] = [
    "ViTImageProcessor",
    "ViTImageProcessorFast",
    "ViTImageProcessorPil",
    "ViTFeatureExtractor",
    "DeiTImageProcessor",
    "DeiTImageProcessorFast",
    "DeiTImageProcessorPil",
    "DeiTFeatureExtractor",
];

/// Largest side of a prepared picture.
const MAX_SIDE: u64 = 1 << 14;

/// The preparation of pictures: resized, cropped around the centre, scaled and normalized, each if requested.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageProcessor {
    /// Height and width to which pictures are resized.
    size: Option<[usize; 2]>,
    filter: Filter,
    /// Height and width that are kept around the centre.
    crop: Option<[usize; 2]>,
    /// Value of each byte, by channel.
    values: Vec<[f32; 3]>,
}

/// How a picture is cut into patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchSize {
    /// Height and width of a picture.
    pub picture: [usize; 2],
    /// Height and width of a patch.
    pub patch: [usize; 2],
}

impl PatchSize {
    /// Patches of a picture; pixels beyond the last whole patch are not read.
    pub const fn n_patches(&self) -> usize {
        (self.picture[0] / self.patch[0]) * (self.picture[1] / self.patch[1])
    }
}

impl ImageProcessor {
    /// Reads the file of a model folder, for a model whose pictures have this height and width.
    ///
    /// # Errors
    /// [`DataError::NotFound`] without the file, [`DataError::Config`] for what is malformed or not supported, or gives
    /// pictures of another size.
    pub fn from_folder(folder: &Path, picture: [usize; 2]) -> Result<Self> {
        let path = folder.join(FILE);
        if !lowrank_checkpoint::has_file(&path) {
            return Err(DataError::NotFound {
                what: FILE.into(),
                path: folder.to_path_buf(),
                remedy: "it says how the model's pictures are scaled; copy it from the model's origin".into(),
            });
        }
        let bytes = lowrank_checkpoint::read_file(&path).map_err(DataError::io("read", &path))?;
        let fault = |message: String| DataError::Config { path: path.clone(), message };
        let value: Value =
            serde_json::from_slice(&bytes).map_err(|e| fault(format!("malformed JSON: {e}")))?;
        let keys = value.as_object().ok_or_else(|| fault("expected a JSON object".into()))?;
        let processor = Self::of(keys).map_err(fault)?;
        let [height, width] = picture;
        let fault = |message: String| DataError::Config { path: path.clone(), message };
        match processor.crop.or(processor.size).filter(|size| *size != picture) {
            Some([high, wide]) => Err(fault(format!(
                "prepares pictures of {high} x {wide} pixels; the model takes {height} x {width} (image_size in config.json)"
            ))),
            None => Ok(processor),
        }
    }

    fn of(keys: &Map<String, Value>) -> Result<Self, String> {
        let get = |key: &str| keys.get(key).filter(|value| !value.is_null());
        for key in ["image_processor_type", "feature_extractor_type"] {
            let class = get(key).and_then(Value::as_str);
            if let Some(class) = class.filter(|class| !CLASSES.contains(class)) {
                return Err(format!("{key} '{class}' is not supported; expected ViTImageProcessor"));
            }
        }
        let flag = |key: &str, default: bool| match get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| format!("{key} = {value}; expected true or false")),
        };
        let known = ["do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"];
        for key in keys.keys().filter(|key| key.starts_with("do_") && !known.contains(&key.as_str())) {
            if get(key).is_some_and(|value| value != &Value::Bool(false)) {
                return Err(format!("{key} = {} is not supported; expected false", keys[key]));
            }
        }
        let number = |key: &str, default: f64| match get(key) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|x| x.is_finite())
                .ok_or_else(|| format!("{key} = {value}; expected a finite number")),
        };
        let channels = |key: &str| match get(key) {
            None => Ok([0.5; 3]),
            Some(value) => {
                three(value).ok_or_else(|| format!("{key} = {value}; expected three finite numbers"))
            }
        };
        let filter = match get("resample") {
            None => Filter::Bilinear,
            Some(value) => {
                value.as_u64().and_then(|n| Filter::ALL.get(usize::try_from(n).ok()?).copied()).ok_or_else(
                    || format!("resample = {value} is not supported; expected a number of Pillow, 0 to 5"),
                )?
            }
        };
        let size = flag("do_resize", true)?.then(|| sides(get("size"), "size")).transpose()?;
        let crop =
            flag("do_center_crop", false)?.then(|| sides(get("crop_size"), "crop_size")).transpose()?;
        if let (Some(size), Some(crop)) = (size, crop)
            && (crop[0] > size[0] || crop[1] > size[1])
        {
            return Err(format!(
                "crop_size = {} x {} is larger than size = {} x {}; padding is not supported",
                crop[0], crop[1], size[0], size[1]
            ));
        }
        let scale = if flag("do_rescale", true)? { number("rescale_factor", 1.0 / 255.0)? } else { 1.0 };
        let normalizes = flag("do_normalize", true)?;
        let (mean, std) = (channels("image_mean")?, channels("image_std")?);
        if normalizes && std.contains(&0.0) {
            return Err("image_std has a 0; expected three numbers other than 0".into());
        }
        let value = |byte: usize, channel: usize| {
            let scaled = (byte as f64 * scale) as f32;
            if normalizes { (scaled - mean[channel] as f32) / std[channel] as f32 } else { scaled }
        };
        let values = (0..=255).map(|byte| [0, 1, 2].map(|channel| value(byte, channel))).collect();
        Ok(Self { size, filter, crop, values })
    }

    /// Decodes, resizes and crops a picture.
    ///
    /// # Errors
    /// As [`decode`]; a picture of another size, if the processor does not resize.
    pub fn read(&self, path: &Path, [height, width]: [usize; 2]) -> Result<Bitmap> {
        let fault = |message: String| DataError::Image { path: PathBuf::from(path), message };
        let mut picture = decode(path)?;
        if let Some(size) = self.size {
            picture = resize(&picture, size, self.filter);
        }
        if let Some(size) = self.crop {
            let found = [picture.height, picture.width];
            picture = crop(&picture, size).ok_or_else(|| {
                fault(format!(
                    "has {} x {} pixels (height x width), less than crop_size = {} x {}",
                    found[0], found[1], size[0], size[1]
                ))
            })?;
        }
        if [picture.height, picture.width] != [height, width] {
            return Err(fault(format!(
                "has {} x {} pixels (height x width), the model takes {height} x {width}, and do_resize is false in {FILE}",
                picture.height, picture.width
            )));
        }
        Ok(picture)
    }

    /// Appends the values of a picture's patches, row by row of patches, each in the order channel, row, column: shape
    /// `[patches, 3 · height · width]`.
    pub fn append_patches(&self, rgb: &[u8], size: &PatchSize, out: &mut Vec<f32>) {
        let ([height, width], [high, wide]) = (size.picture, size.patch);
        out.reserve(3 * height * width);
        for top in (0..=height - high).step_by(high) {
            for left in (0..=width - wide).step_by(wide) {
                for channel in 0..3 {
                    for y in top..top + high {
                        let row = &rgb[3 * (y * width + left)..3 * (y * width + left + wide)];
                        let bytes = row.iter().skip(channel).step_by(3);
                        out.extend(bytes.map(|&byte| self.values[usize::from(byte)][channel]));
                    }
                }
            }
        }
    }
}

fn three(value: &Value) -> Option<[f64; 3]> {
    let number = |value: &Value| value.as_f64().filter(|x| x.is_finite());
    if let Some(one) = number(value) {
        return Some([one; 3]);
    }
    let numbers: Vec<f64> = value.as_array()?.iter().map(number).collect::<Option<_>>()?;
    numbers.try_into().ok()
}

/// A height and a width: an object with both, or one number.
fn sides(value: Option<&Value>, key: &str) -> Result<[usize; 2], String> {
    let Some(value) = value else { return Ok([224; 2]) };
    let side = |value: &Value| value.as_u64().filter(|n| (1..=MAX_SIDE).contains(n)).map(|n| n as usize);
    let found = match value {
        Value::Object(object) => {
            let extra = object
                .iter()
                .find(|(name, value)| !["height", "width"].contains(&name.as_str()) && !value.is_null());
            if let Some((name, _)) = extra {
                return Err(format!(
                    "{key} has the key '{name}', which is not supported; expected height and width"
                ));
            }
            object.get("height").and_then(side).zip(object.get("width").and_then(side)).map(|(h, w)| [h, w])
        }
        one => side(one).map(|side| [side; 2]),
    };
    found.ok_or_else(|| format!("{key} = {value}; expected height and width of 1..={MAX_SIDE}"))
}

/// The middle of a picture; `None` if the picture is smaller.
fn crop(picture: &Bitmap, [height, width]: [usize; 2]) -> Option<Bitmap> {
    let top = picture.height.checked_sub(height)? / 2;
    let left = picture.width.checked_sub(width)? / 2;
    let row = |y: usize| {
        let start = 3 * ((top + y) * picture.width + left);
        &picture.rgb[start..start + 3 * width]
    };
    Some(Bitmap { height, width, rgb: (0..height).flat_map(row).copied().collect() })
}
