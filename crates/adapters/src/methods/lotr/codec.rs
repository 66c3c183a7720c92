//! LoTR's files.

use burn::prelude::*;

use super::Lotr;
use crate::methods::Adapter;
use crate::peft::{AdapterFolder, Found, OwnSite, Reader, Writer, group_key};
use crate::set::Slot;

pub(super) const CORE: &str = ".lotr_core.weight";

pub(super) fn read<B: Backend>(file: &mut Reader<'_, B>) {
    let found = file.modules(&[CORE]);
    file.grouped(&found, "lotr", group);
}

fn group<B: Backend>(file: &mut Reader<'_, B>, group: &[&Found], key: &str) -> Option<Adapter<B>> {
    let (rank, scale) = (file.config().r, file.config().scale_of(&group[0].path));
    let (d_input, d_output) = (file.site(group[0]).d_input, file.site(group[0]).d_output);
    let cores: Vec<_> =
        group.iter().map(|f| file.transposed(&format!("{}{CORE}", f.path), [rank, rank])).collect();
    let left = file.transposed(&format!("{key}.left.weight"), [rank, d_input]);
    let right = file.transposed(&format!("{key}.right.weight"), [d_output, rank]);
    let cores = cores.into_iter().collect::<Option<_>>()?;
    Some(Adapter::Lotr(Lotr::from_factors(left?, right?, cores, scale)))
}

pub(super) fn write<B: Backend>(lotr: &Lotr<B>, slots: &[&Slot], file: &mut Writer<'_>) {
    let key = file.group("lotr", slots);
    file.transposed(format!("{key}.left.weight"), lotr.left.val());
    file.transposed(format!("{key}.right.weight"), lotr.right.val());
    for slot in slots {
        file.transposed(format!("{}{CORE}", slot.path), lotr.cores[slot.slice].val());
        file.note("LOTR", slot, lotr.rank(), lotr.scale);
    }
}

pub(super) fn own_sites(folder: &AdapterFolder) -> Vec<OwnSite> {
    let groups = folder.own_groups(CORE).into_iter().enumerate();
    groups
        .flat_map(|(index, group)| {
            let key = group_key("lotr", index);
            let d_input = folder.side(&format!("{key}.left.weight"), 1).unwrap_or(0);
            let d_output = folder.side(&format!("{key}.right.weight"), 0).unwrap_or(0);
            group.into_iter().map(move |path| OwnSite { path, widths: [d_input, d_output], embedding: false })
        })
        .collect()
}
