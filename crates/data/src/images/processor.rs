//! `preprocessor_config.json`, or the same in `processor_config.json`: how a model's pictures are prepared.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::decode::{Bitmap, decode_held};
use super::resize::{Filter, resize};
use crate::error::{DataError, Result};

/// Name of the file.
const FILE: &str = "preprocessor_config.json";

/// Name of the file of newer models, in which another object holds the same keys under [`NESTED_KEY`]; read first.
const NESTED: &str = "processor_config.json";
const NESTED_KEY: &str = "image_processor";

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

/// What transformers assumes for keys that a file leaves out.
struct Defaults {
    size: [usize; 2],
    filter: Filter,
    /// Whether pictures are cropped, and to what.
    crops: bool,
    crop: Option<[usize; 2]>,
}

impl Defaults {
    fn of(class: &str) -> Self {
        if class.starts_with("DeiT") {
            return Self { size: [256; 2], filter: Filter::Bicubic, crops: true, crop: Some([224; 2]) };
        }
        Self { size: [224; 2], filter: Filter::Bilinear, crops: false, crop: None }
    }
}

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

    /// Values of these patches, in three channels.
    pub(super) const fn n_values(&self) -> usize {
        3 * self.patch[0] * self.patch[1] * self.n_patches()
    }
}

impl ImageProcessor {
    /// Reads the file of a model folder, for a model whose pictures have this height and width. As in transformers 5,
    /// `processor_config.json` comes first if it has an image processor.
    ///
    /// # Errors
    /// [`DataError::NotFound`] without the file, [`DataError::Config`] for what is malformed or not supported, or gives
    /// pictures of another size.
    pub fn from_folder(folder: &Path, picture: [usize; 2]) -> Result<Self> {
        let (path, keys) = match Self::nested(folder)? {
            Some(nested) => nested,
            None => (folder.join(FILE), object(&folder.join(FILE))?.ok_or_else(|| missing(folder))?),
        };
        let fault = |message: String| DataError::Config { path: path.clone(), message };
        let processor = Self::of(&keys).map_err(fault)?;
        let [height, width] = picture;
        match processor.crop.or(processor.size).filter(|size| *size != picture) {
            Some([high, wide]) => Err(fault(format!(
                "prepares pictures of {high} x {wide} pixels; the model takes {height} x {width} (image_size in config.json)"
            ))),
            None => Ok(processor),
        }
    }

    /// The keys in the file of newer models, if it has them.
    fn nested(folder: &Path) -> Result<Option<(PathBuf, Map<String, Value>)>> {
        let path = folder.join(NESTED);
        let Some(mut keys) = object(&path)? else { return Ok(None) };
        match keys.remove(NESTED_KEY) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(keys)) => Ok(Some((path, keys))),
            Some(other) => {
                let message = format!("{NESTED_KEY} = {other}; expected an object");
                Err(DataError::Config { path, message })
            }
        }
    }

    fn of(keys: &Map<String, Value>) -> Result<Self, String> {
        let get = |key: &str| keys.get(key).filter(|value| !value.is_null());
        let class = ["image_processor_type", "feature_extractor_type"]
            .into_iter()
            .find_map(|key| get(key).map(|value| (key, value)));
        let class = match class {
            None => "",
            Some((key, value)) => {
                let class = value.as_str().filter(|class| CLASSES.contains(class));
                class.ok_or_else(|| {
                    let shown = value.as_str().map_or_else(|| value.to_string(), |name| format!("'{name}'"));
                    format!("{key} {shown} is not supported; expected ViTImageProcessor")
                })?
            }
        };
        let defaults = Defaults::of(class);
        let flag = |key: &str, default: bool| match keys.get(key) {
            None => Ok(default),
            // transformers skips the step.
            Some(Value::Null) => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| format!("{key} = {value}; expected true or false")),
        };
        // As in transformers, null is not the default.
        let given = |key: &str, step: &str, expected: &str| match keys.get(key) {
            Some(Value::Null) => Err(format!("{key} = null, and {step} is true; expected {expected}")),
            other => Ok(other),
        };
        let known = ["do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"];
        for key in keys.keys().filter(|key| key.starts_with("do_") && !known.contains(&key.as_str())) {
            if get(key).is_some_and(|value| value != &Value::Bool(false)) {
                return Err(format!("{key} = {} is not supported; expected false", keys[key]));
            }
        }
        let number = |key: &str, default: f64, step: &str| match given(key, step, "a finite number")? {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|x| x.is_finite())
                .ok_or_else(|| format!("{key} = {value}; expected a finite number")),
        };
        let channels = |key: &str| match given(key, "do_normalize", "three finite numbers")? {
            None => Ok([0.5; 3]),
            Some(value) => {
                three(value).ok_or_else(|| format!("{key} = {value}; expected three finite numbers"))
            }
        };
        let resizes = flag("do_resize", true)?;
        let filter = match resizes.then(|| given("resample", "do_resize", "0 to 5")).transpose()?.flatten() {
            None => defaults.filter,
            Some(value) => {
                value.as_u64().and_then(|n| Filter::ALL.get(usize::try_from(n).ok()?).copied()).ok_or_else(
                    || format!("resample = {value} is not supported; expected a number of Pillow, 0 to 5"),
                )?
            }
        };
        let sides_of = |key: &str, step: &str, default: Option<[usize; 2]>| match given(key, step, SIDES)? {
            None => default.ok_or_else(|| format!("{key} is missing, and {step} is true; expected {SIDES}")),
            Some(value) => sides(value, key),
        };
        let size = resizes.then(|| sides_of("size", "do_resize", Some(defaults.size))).transpose()?;
        let crops = flag("do_center_crop", defaults.crops)?;
        let crop = crops.then(|| sides_of("crop_size", "do_center_crop", defaults.crop)).transpose()?;
        if let (Some(size), Some(crop)) = (size, crop)
            && (crop[0] > size[0] || crop[1] > size[1])
        {
            return Err(format!(
                "crop_size = {} x {} is larger than size = {} x {}; padding is not supported",
                crop[0], crop[1], size[0], size[1]
            ));
        }
        let scales = flag("do_rescale", true)?;
        let scale = if scales { number("rescale_factor", 1.0 / 255.0, "do_rescale")? } else { 1.0 };
        let normalizes = flag("do_normalize", true)?;
        let (mean, std) =
            if normalizes { (channels("image_mean")?, channels("image_std")?) } else { ([0.0; 3], [1.0; 3]) };
        if std.contains(&0.0) {
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
        let (mut picture, _permit) = decode_held(path)?;
        if let Some(size) = self.size.filter(|size| *size != [picture.height, picture.width]) {
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
                "has {} x {} pixels (height x width), the model takes {height} x {width}, and its image processor does not resize (do_resize)",
                picture.height, picture.width
            )));
        }
        Ok(picture)
    }

    /// What each byte stands for, by channel.
    pub(super) fn values(&self) -> impl Iterator<Item = f32> {
        self.values.iter().flatten().copied()
    }

    /// Appends the values of a picture's patches, row by row of patches, each in the order channel, row, column: shape
    /// `[patches, 3 · height · width]`.
    pub fn append_patches(&self, rgb: &[u8], size: &PatchSize, out: &mut Vec<f32>) {
        let start = out.len();
        out.resize(start + size.n_values(), 0.0);
        self.write_patches(rgb, size, &mut out[start..]);
    }

    /// Writes the values of a picture's patches into a slice of [`PatchSize::n_values`] elements.
    pub(super) fn write_patches(&self, rgb: &[u8], size: &PatchSize, out: &mut [f32]) {
        let ([height, width], [high, wide]) = (size.picture, size.patch);
        let mut out = out.chunks_exact_mut(wide);
        for top in (0..=height - high).step_by(high) {
            for left in (0..=width - wide).step_by(wide) {
                for channel in 0..3 {
                    for y in top..top + high {
                        let row = &rgb[3 * (y * width + left)..3 * (y * width + left + wide)];
                        let bytes = row.iter().skip(channel).step_by(3);
                        let values = bytes.map(|&byte| self.values[usize::from(byte)][channel]);
                        out.next().into_iter().flatten().zip(values).for_each(|(out, value)| *out = value);
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

/// The object in a file, if the file exists.
fn object(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !lowrank_checkpoint::has_file(path) {
        return Ok(None);
    }
    let bytes = lowrank_checkpoint::read_file(path).map_err(DataError::io("read", path))?;
    let fault = |message: String| DataError::Config { path: path.to_path_buf(), message };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(keys)) => Ok(Some(keys)),
        Ok(_) => Err(fault("expected a JSON object".into())),
        Err(error) => Err(fault(format!("malformed JSON: {error}"))),
    }
}

fn missing(folder: &Path) -> DataError {
    DataError::NotFound {
        what: FILE.into(),
        path: folder.to_path_buf(),
        remedy: "it says how the model's pictures are scaled; copy it from the model's origin".into(),
    }
}

/// What a size is, for messages.
const SIDES: &str = "height and width";

/// A height and a width: an object with both, or one number.
fn sides(value: &Value, key: &str) -> Result<[usize; 2], String> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(files: &[(&str, Value)], side: usize) -> Result<ImageProcessor> {
        let dir = tempfile::tempdir().unwrap();
        for (name, value) in files {
            std::fs::write(dir.path().join(name), value.to_string()).unwrap();
        }
        ImageProcessor::from_folder(dir.path(), [side; 2])
    }

    fn of(keys: Value) -> ImageProcessor {
        read(&[(FILE, keys)], 224).unwrap()
    }

    /// As transformers 5.23 prepares pictures.
    #[test]
    fn keys_that_are_left_out_are_those_of_the_class() {
        let whole = |class: &str, size: usize, filter: usize, crop: Value| {
            of(json!({
                "image_processor_type": class, "do_resize": true, "size": {"height": size, "width": size},
                "resample": filter, "do_center_crop": !crop.is_null(), "crop_size": crop, "do_rescale": true,
                "rescale_factor": 1.0 / 255.0, "do_normalize": true, "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.5, 0.5, 0.5],
            }))
        };
        let (vit, deit) =
            (whole("ViTImageProcessor", 224, 2, Value::Null), whole("ViTImageProcessor", 256, 3, json!(224)));
        assert_eq!(of(json!({})), vit);
        for class in ["DeiTImageProcessor", "DeiTImageProcessorFast"] {
            assert_eq!(of(json!({"image_processor_type": class})), deit);
        }
        assert_eq!(of(json!({"feature_extractor_type": "DeiTFeatureExtractor"})), deit);
        // The newer name counts.
        let both = json!({"image_processor_type": "ViTImageProcessor", "feature_extractor_type": "DeiTFeatureExtractor"});
        assert_eq!(of(both), vit);
        let plain =
            json!({"image_processor_type": "DeiTImageProcessor", "do_center_crop": false, "size": 224});
        assert_eq!(of(plain), whole("ViTImageProcessor", 224, 3, Value::Null));
        let error = read(&[(FILE, json!({"do_center_crop": true}))], 224).unwrap_err().to_string();
        assert!(error.contains("crop_size is missing, and do_center_crop is true"), "{error}");
    }

    /// transformers skips a step that is null, and refuses a value that is null if it is needed.
    #[test]
    fn null_is_not_the_default() {
        for (key, step) in [
            ("image_mean", "do_normalize"),
            ("image_std", "do_normalize"),
            ("rescale_factor", "do_rescale"),
            ("resample", "do_resize"),
            ("size", "do_resize"),
        ] {
            let error = read(&[(FILE, json!({key: null}))], 224).unwrap_err().to_string();
            assert!(error.contains(&format!("{key} = null, and {step} is true")), "{error}");
            assert_eq!(of(json!({key: null, step: false})), of(json!({step: false})));
            assert_eq!(of(json!({step: null})), of(json!({step: false})));
        }
        assert_ne!(of(json!({"do_normalize": null})), of(json!({})));
    }

    #[test]
    fn a_nested_processor_comes_first() {
        let (own, other) = (json!({"image_mean": [0.1, 0.2, 0.3]}), json!({"image_mean": [0.5, 0.5, 0.4]}));
        let nested = |value: Value| (NESTED, json!({"image_processor": value, "processor_class": "X"}));
        let both = |value: Value| read(&[(FILE, own.clone()), nested(value)], 224);
        assert_eq!(both(other.clone()).unwrap(), of(other.clone()));
        assert_eq!(read(&[nested(other.clone())], 224).unwrap(), of(other));
        assert_eq!(both(Value::Null).unwrap(), of(own.clone()));
        assert_eq!(both(json!({})).unwrap(), of(json!({})));
        assert_eq!(read(&[(FILE, own.clone()), (NESTED, json!({}))], 224).unwrap(), of(own.clone()));
        let error = both(json!({"size": "large"})).unwrap_err().to_string();
        assert!(error.contains("processor_config.json") && error.contains("size = \"large\""), "{error}");
        assert!(both(json!(3)).unwrap_err().to_string().contains("image_processor = 3; expected an object"));
        assert!(matches!(read(&[(NESTED, json!({}))], 224), Err(DataError::NotFound { .. })));
    }
}
