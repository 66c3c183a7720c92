//! The linear layers and embeddings of a model folder, which `inspect` lists beside the tensors.

use anyhow::Result;
use lowrank_adapters::Site;
use lowrank_models::{Classifier, Decoder, ModelFolder, ModelKind, Parameters, Seq2Seq};
use lowrank_spec::{LowrankSection, Representation};
use serde_json::{Map, Value, json};

use crate::backend::{Device, Inner};

/// `model_type` and `layers`, if the folder contains a model of a supported architecture; no weights are
/// read.
///
/// # Errors
/// A config that is malformed, or a `lowrank` section that does not fit the model.
pub(crate) fn describe(folder: &ModelFolder) -> Result<Map<String, Value>> {
    let mut object = Map::new();
    // For other architectures only the tensors are known.
    if !folder.is_supported() {
        return Ok(object);
    }
    let device = Device::default();
    let (raw, sites, section) = if folder.kind() == ModelKind::Seq2Seq {
        let config = folder.seq2seq_config()?;
        let model = Seq2Seq::<Inner>::init(config.clone(), 0, &device).map_err(anyhow::Error::msg)?;
        (config.raw, model.sites().to_vec(), config.lowrank)
    } else if folder.kind().is_decoder() {
        let config = folder.decoder_config()?;
        let model = Decoder::<Inner>::init(config.clone(), 0, &device).map_err(anyhow::Error::msg)?;
        (config.raw, model.sites().to_vec(), config.lowrank)
    } else {
        let config = folder.encoder_config()?;
        let model = Classifier::<Inner>::init(config.clone(), 0, &device);
        (config.raw, model.sites().to_vec(), config.lowrank)
    };
    object.insert("model_type".into(), raw.get("model_type").cloned().unwrap_or_default());
    let layers: Vec<Value> = sites.iter().map(|site| layer(site, &section)).collect();
    object.insert("layers".into(), layers.into());
    if !section.modules.is_empty() {
        object.insert("method".into(), section.method.into());
    }
    Ok(object)
}

fn layer(site: &Site, section: &LowrankSection) -> Value {
    let entry = section.find(&site.path).map(|(_, entry)| entry.clone()).unwrap_or_default();
    let shape = [site.d_input, site.d_output];
    let mut layer = json!({
        "name": site.path,
        "d_input": site.d_input,
        "d_output": site.d_output,
        "kind": "dense",
        "parameters": entry.representation.parameters(shape),
    });
    match entry.representation {
        Representation::Dense => {}
        Representation::LowRank { ranks, .. } => {
            layer["kind"] = json!("low_rank");
            layer["ranks"] = json!(ranks);
        }
        Representation::Sum { rank } => {
            layer["kind"] = json!("sum");
            layer["ranks"] = json!([rank]);
        }
        Representation::TensorTrain { cores } => {
            layer["kind"] = json!("tensor_train");
            layer["ranks"] = cores.windows(2).map(|pair| pair[0][3]).collect();
            layer["cores"] = json!(cores);
        }
    }
    if !entry.formats.is_empty() {
        layer["formats"] = json!(entry.formats);
    }
    if let Some(error) = entry.error {
        layer["error"] = json!(error);
    }
    layer
}
