//! LoRA in PEFT's files: `<path>.lora_A.weight` `(r, in)` and `.lora_B.weight` `(out, r)`, `.lora_B.bias` `(out)`,
//! `.lora_magnitude_vector` `(out)`; at an embedding `.lora_embedding_A` `(r, in)` and `.lora_embedding_B` `(out, r)`.

use burn::module::Param;
use burn::prelude::*;

use super::{Lora, Magnitude, Start};
use crate::error::Result;
use crate::methods::Adapter;
use crate::peft::{AdapterFolder, Found, InitTag, OwnSite, Reader, Writer, sort_by_layer};
use crate::set::Slot;

pub(super) const KEYS: &[&str] = &[
    ".lora_A.weight",
    ".lora_B.weight",
    ".lora_B.bias",
    ".lora_embedding_A",
    ".lora_embedding_B",
    ".lora_magnitude_vector",
];

pub(super) fn read<B: Backend>(file: &mut Reader<'_, B>) -> Result<()> {
    let tag = file.config().init_tag();
    if tag == (InitTag::Pissa { is_randomized: true }) {
        tracing::warn!(
            "init_lora_weights '{}' used random numbers that the file does not contain; using the \
             exact SVD of the base instead",
            file.config().init_lora_weights.as_str().unwrap_or_default()
        );
    }
    for module in file.modules(KEYS) {
        if let Some(lora) = one(file, &module, tag)? {
            file.push(Adapter::Lora(lora), &[&module]);
        }
    }
    Ok(())
}

fn one<B: Backend>(file: &mut Reader<'_, B>, module: &Found, tag: InitTag) -> Result<Option<Lora<B>>> {
    let site = file.site(module);
    let config = file.config();
    let matched = file.matched_path(&module.path);
    let (given, scale) = (config.rank_of(&matched), config.scale_of(&matched));
    // These take what a decomposition has, and scale it by the rank that was asked for.
    let is_decomposed = tag != InitTag::Plain && !site.embedding;
    let rank = if is_decomposed { given.min(site.max_rank()) } else { given };
    let (dora, has_bias) = (config.use_dora, config.lora_bias);
    let key = |name: &str| format!("{}.{name}", module.path);
    let (a_name, b_name) = if site.embedding {
        ("lora_embedding_A", "lora_embedding_B")
    } else {
        ("lora_A.weight", "lora_B.weight")
    };
    if let Some([channels, height, width]) = site.kernel {
        // PEFT's factors of a convolution are convolutions.
        let d = site.d_output;
        file.reshape(&key(a_name), &[rank, channels, height, width], &[rank, site.d_input]);
        file.reshape(&key(b_name), &[d, rank, 1, 1], &[d, rank]);
        file.reshape(&key("lora_magnitude_vector"), &[1, d, 1, 1], &[d]);
    }
    let a = file.transposed(&key(a_name), [rank, site.d_input]);
    let b = file.transposed(&key(b_name), [site.d_output, rank]);
    let magnitude = dora.then(|| file.plain(&key("lora_magnitude_vector"), [site.d_output]));
    let bias = (has_bias && !site.embedding).then(|| file.plain(&key("lora_B.bias"), [site.d_output]));
    let (Some(a), Some(b)) = (a, b) else { return Ok(None) };
    if matches!(magnitude, Some(None)) || matches!(bias, Some(None)) {
        return Ok(None);
    }
    let magnitude = match magnitude.flatten() {
        None => None,
        Some(value) => {
            let value = Param::from_tensor(value);
            Some(Magnitude { value, ..Magnitude::of_weight(file.weight(module, "dora")?) })
        }
    };
    // PEFT's embeddings do not support this initialization. A weight in the file is what the initialization left.
    let has_weight = file.folder().tensors.contains_key(&key("weight"));
    let start = if site.embedding || has_weight || rank > site.max_rank() {
        None
    } else {
        let what = || file.config().init_lora_weights.as_str().unwrap_or_default().to_string();
        Start::of_tag(&tag, || file.weight(module, &what()), rank, scale, site.conv1d)?
    };
    let bias = bias.flatten().map(Param::from_tensor);
    Ok(Some(Lora { magnitude, start, bias, ..Lora::from_factors(a, b, scale) }))
}

pub(super) fn write<B: Backend>(lora: &Lora<B>, slot: &Slot, file: &mut Writer<'_>) {
    let (a, b) = lora.unquantized_factors();
    file.pair(slot, a, b, lora.scale);
    if let Some(magnitude) = &lora.magnitude {
        let (name, value) = (format!("{}.lora_magnitude_vector", slot.path), magnitude.value.val());
        match file.site(slot).kernel {
            Some(_) => {
                let d = value.dims()[0];
                file.plain(name, value.reshape([1, d, 1, 1]));
            }
            None => file.plain(name, value),
        }
    }
    if let Some(bias) = &lora.bias {
        file.config.lora_bias = true;
        file.plain(format!("{}.lora_B.bias", slot.path), bias.val());
    }
}

pub(super) fn own_sites(folder: &AdapterFolder) -> Vec<OwnSite> {
    let mut sites = Vec::new();
    for (a, b, embedding) in
        [(".lora_A.weight", ".lora_B.weight", false), (".lora_embedding_A", ".lora_embedding_B", true)]
    {
        let mut paths: Vec<String> =
            folder.tensors.keys().filter_map(|key| key.strip_suffix(a)).map(str::to_string).collect();
        sort_by_layer(&mut paths);
        for path in paths {
            let d_input = folder.side(&format!("{path}{a}"), 1).unwrap_or(0);
            let d_output = folder.side(&format!("{path}{b}"), 0).unwrap_or(0);
            sites.push(OwnSite { path, widths: [d_input, d_output], embedding });
        }
    }
    sites
}
