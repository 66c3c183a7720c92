//! Files of adapters in tensor-train form.

use burn::prelude::*;
use burn::tensor::TensorData;

use super::{Chain, TtPair};
use crate::methods::Adapter;
use crate::peft::{AdapterFolder, Found, OwnSite, Reader, Writer, sort_by_layer};
use crate::set::Slot;

pub(super) const FIRST: &[&str] = &[".tt_left.0", ".tt_right.0"];

/// Key of the config with the widths of the layers.
const WIDTHS: &str = "widths";

pub(super) fn read<B: Backend>(file: &mut Reader<'_, B>) {
    for module in file.modules(FIRST) {
        if let Some(tt) = one(file, &module) {
            file.push(Adapter::Tt(tt), &[&module]);
        }
    }
}

fn one<B: Backend>(file: &mut Reader<'_, B>, module: &Found) -> Option<TtPair<B>> {
    let (d_input, d_output) = (file.site(module).d_input, file.site(module).d_output);
    let (rank, scale) = (file.config().rank_of(&module.path), file.config().scale_of(&module.path));
    let left = chain(file, &format!("{}.tt_left", module.path), d_input, rank);
    let right = chain(file, &format!("{}.tt_right", module.path), d_output, rank);
    Some(TtPair { left: left?, right: right?, scale })
}

/// The cores `<key>.0`, `<key>.1`, … of a train that is open at its end.
fn chain<B: Backend>(file: &mut Reader<'_, B>, key: &str, rows: usize, rank: usize) -> Option<Chain<B>> {
    let mut cores = Vec::new();
    let (mut left, mut modes) = (1, 1usize);
    while let Some(tensor) = file.take_any(&format!("{key}.{}", cores.len())) {
        let [l, mode, right] = tensor.shape[..] else {
            file.problem(format!(
                "'{}' has shape {:?}, expected a core of three dimensions",
                tensor.name, tensor.shape
            ));
            return None;
        };
        if l != left || mode == 0 {
            file.problem(format!("'{}' has shape {:?}, expected [{left}, n, r]", tensor.name, tensor.shape));
            return None;
        }
        (left, modes) = (right, modes.saturating_mul(mode));
        let data = TensorData::new(tensor.data.into_owned(), [l, mode, right]);
        cores.push(Tensor::from_data(data, file.device()));
    }
    if left != rank || modes < rows {
        file.problem(format!(
            "'{key}' is a train of {modes} rows and rank {left}, expected {rows} and {rank}"
        ));
        return None;
    }
    Some(Chain::from_cores(cores, rows))
}

pub(super) fn write<B: Backend>(tt: &TtPair<B>, slot: &Slot, file: &mut Writer<'_>) {
    // Where the rank has a separate core, the train is LoRETTA's.
    let last = tt.left.cores.last().map(|core| core.dims()).unwrap_or_default();
    let peft_type = if last[1] == 1 { "LORETTA" } else { "TT_LORA" };
    let widths = file.config.other.entry(WIDTHS).or_insert_with(|| serde_json::json!({}));
    widths[slot.path.as_str()] = serde_json::json!([tt.left.rows, tt.right.rows]);
    for (name, chain) in [("tt_left", &tt.left), ("tt_right", &tt.right)] {
        for (k, core) in chain.cores.iter().enumerate() {
            file.plain(format!("{}.{name}.{k}", slot.path), core.val());
        }
    }
    file.note(peft_type, slot, last[2], tt.scale);
}

pub(super) fn own_sites(folder: &AdapterFolder) -> Vec<OwnSite> {
    let Some(widths) = folder.config.other.get(WIDTHS).and_then(|w| w.as_object()) else { return Vec::new() };
    let mut paths: Vec<String> = widths.keys().cloned().collect();
    sort_by_layer(&mut paths);
    let side = |path: &str, at: usize| widths[path][at].as_u64().unwrap_or(0) as usize;
    let site = |path: String| OwnSite { widths: [side(&path, 0), side(&path, 1)], path, embedding: false };
    paths.into_iter().map(site).collect()
}
