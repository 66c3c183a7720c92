//! ViT (Dosovitskiy et al. 2020): pictures in patches, norms before the parts, a class token that the head reads.

use super::bert;
use crate::config::{
    EncoderArchitecture, EncoderBiases, EncoderConfig, EncoderNames, HeadNames, Keys, PatchNames,
    PatchOptions, QkvNames,
};

pub(super) const ARCHITECTURE: EncoderArchitecture = EncoderArchitecture {
    model_types: &[("vit", "ViT")],
    defaults: || vec![("hidden_dropout_prob", 0.0.into()), ("attention_probs_dropout_prob", 0.0.into())],
    options,
    // Of masked image modelling.
    extras: &["embeddings.mask_token", "decoder."],
    names: EncoderNames {
        prefix: "vit.",
        patches: Some(PatchNames {
            projection: "embeddings.patch_embeddings.projection",
            class: "embeddings.cls_token",
            positions: "embeddings.position_embeddings",
        }),
        qkv: QkvNames::Separate([
            "attention.attention.query",
            "attention.attention.key",
            "attention.attention.value",
        ]),
        norms_before: true,
        attention_norm: "layernorm_before",
        feed_forward_norm: "layernorm_after",
        final_norm: Some("layernorm"),
        ..bert::NAMES
    },
    head: HeadNames { is_bare: true, ..bert::ARCHITECTURE.head },
    ..bert::ARCHITECTURE
};

fn options(config: EncoderConfig, keys: &Keys<'_>) -> Result<EncoderConfig, String> {
    let patches = PatchOptions {
        picture: sides(keys, "image_size", 224)?,
        patch: sides(keys, "patch_size", 16)?,
        channels: keys.size_or("num_channels", 3)?,
    };
    let ([height, width], [rows, columns]) = (patches.picture, patches.grid());
    if rows == 0 || columns == 0 {
        let [high, wide] = patches.patch;
        return Err(format!("patch_size = {high} x {wide} is larger than image_size = {height} x {width}"));
    }
    let too_many = || format!("image_size = {height} x {width} has too many patches");
    if patches.patch.iter().product::<usize>().checked_mul(patches.channels).is_none_or(|n| n > MAX_PATCH)
        || rows.checked_mul(columns).is_none_or(|n| n > MAX_PATCHES)
    {
        return Err(too_many());
    }
    Ok(EncoderConfig {
        biases: EncoderBiases { qkv: keys.flag_or("qkv_bias", true)?, ..config.biases },
        max_positions: 1 + patches.n_patches(),
        patches: Some(patches),
        type_vocab_size: 0,
        has_positions: false,
        classifier_dropout: 0.0,
        ..config
    })
}

/// Longest side of a picture or a patch that is accepted.
const MAX_SIDE: f64 = 16_777_216.0;

/// Largest number of patches and of values of a patch; real models have some thousand.
const MAX_PATCHES: usize = 1 << 20;
const MAX_PATCH: usize = 1 << 20;

/// Height and width: one number for both, or a list of two.
fn sides(keys: &Keys<'_>, key: &str, default: usize) -> Result<[usize; 2], String> {
    if !keys.get(key).is_some_and(serde_json::Value::is_array) {
        return keys.size_or(key, default).map(|side| [side; 2]);
    }
    let sides = keys.numbers(key)?.unwrap_or_default();
    let side = |x: f64| ((1.0..=MAX_SIDE).contains(&x) && x.fract() == 0.0).then_some(x as usize);
    match sides[..] {
        [height, width] => side(height).zip(side(width)).map(|(height, width)| [height, width]),
        _ => None,
    }
    .ok_or_else(|| format!("{key} = {sides:?}; expected a size, or a height and a width"))
}
