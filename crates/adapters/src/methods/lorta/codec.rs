//! LoRTA's files.

use burn::module::Param;
use burn::prelude::*;
use lowrank_spec::Site;

use super::{Lorta, places};
use crate::methods::Adapter;
use crate::peft::{AdapterFolder, Found, OwnSite, Reader, Writer, group_key};
use crate::set::Slot;

pub(super) fn read<B: Backend>(file: &mut Reader<'_, B>) {
    let found = file.listed();
    file.grouped(&found, "lorta", group);
}

fn group<B: Backend>(file: &mut Reader<'_, B>, group: &[&Found], key: &str) -> Option<Adapter<B>> {
    let (rank, scale) = (file.config().r, file.config().scale_of(&group[0].path));
    let sites: Vec<&Site> = group.iter().map(|f| file.site(f)).collect();
    let (places, [n_layers, n_kinds]) = places(&sites);
    let (d_input, d_output) = (sites[0].d_input, sites[0].d_output);
    let heads = file.folder().side(&format!("{key}.heads"), 1).unwrap_or(1);
    let width = if heads > 0 && d_output.is_multiple_of(heads) { d_output / heads } else { 0 };
    let mut factor =
        |name: &str, shape: [usize; 2]| file.plain(&format!("{key}.{name}"), shape).map(Param::from_tensor);
    let a = factor("a", [d_input, rank]);
    let b = factor("b", [rank, width]);
    let heads = factor("heads", [rank, heads]);
    let layers = factor("layers", [n_layers, rank]);
    let kinds = factor("kinds", [n_kinds, rank]);
    Some(Adapter::Lorta(Lorta { a: a?, b: b?, heads: heads?, layers: layers?, kinds: kinds?, places, scale }))
}

pub(super) fn write<B: Backend>(lorta: &Lorta<B>, slots: &[&Slot], file: &mut Writer<'_>) {
    let key = file.group("lorta", slots);
    for (name, factor) in [
        ("a", &lorta.a),
        ("b", &lorta.b),
        ("heads", &lorta.heads),
        ("layers", &lorta.layers),
        ("kinds", &lorta.kinds),
    ] {
        file.plain(format!("{key}.{name}"), factor.val());
    }
    for slot in slots {
        file.note("LORTA", slot, lorta.rank(), lorta.scale);
    }
}

/// The modules in the order of the config, which defines the layer and kind indices of the factors.
pub(super) fn own_sites(folder: &AdapterFolder) -> Vec<OwnSite> {
    let groups = folder.own_groups(".lorta").into_iter().enumerate();
    groups
        .flat_map(|(index, group)| {
            let key = group_key("lorta", index);
            let heads = folder.side(&format!("{key}.heads"), 1).unwrap_or(1);
            let d_input = folder.side(&format!("{key}.a"), 0).unwrap_or(0);
            let d_output = folder.side(&format!("{key}.b"), 1).map_or(0, |width| width * heads);
            group.into_iter().map(move |path| OwnSite { path, widths: [d_input, d_output], embedding: false })
        })
        .collect()
}
