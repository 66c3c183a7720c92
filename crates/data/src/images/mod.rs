//! Pictures for image classification: folders of classes, decoding, and the preparation that a model was trained with.
//!
//! A picture becomes the values of its patches in four steps, each as in transformers with Pillow: it is
//! [decoded](decode()) and converted to RGB, [resized](resize()), cropped, and scaled ([`ImageProcessor`]).

mod decode;
mod folder;
mod jpeg;
mod orientation;
mod png;
mod processor;
mod resize;
mod set;

pub use decode::{Bitmap, MAX_PIXELS, decode};
pub use folder::{ImageFolder, ImageItem, find_images, find_splits};
pub use processor::{ImageProcessor, PatchSize};
pub use resize::{Filter, resize};
pub use set::ImageSet;
