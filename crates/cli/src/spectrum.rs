//! `lowrank inspect --spectrum`: the cost of truncation, before anything is compressed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lowrank_adapters::{Pattern, Site, Targets};
use lowrank_checkpoint::write_atomic;
use lowrank_compress::spectrum::{self, ModuleSpectrum};
use serde_json::json;

use crate::adapter::DetachedAdapter;
use crate::bars::Bars;
use crate::context::{adapter_folder, model_folder, print_json};

/// Options of the spectrum.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Singular values of the linear weights: ranks for energies, errors for ratios
    #[arg(long)]
    spectrum: bool,
    /// With --spectrum, only these weights: names, all-linear, or a regular expression
    #[arg(long = "spectrum-of", id = "spectrum_of", value_name = "TARGETS", requires = "spectrum")]
    targets: Option<String>,
    /// With --spectrum, write spectrum.csv and spectrum.svg into this folder
    #[arg(short, long, requires = "spectrum")]
    output: Option<PathBuf>,
}

impl Args {
    /// Whether it was requested.
    pub(crate) fn is_wanted(&self) -> bool {
        self.spectrum
    }

    /// Prints the spectra of a model's weights, or of an adapter's updates.
    pub(crate) fn run(&self, path: &Path, as_json: bool) -> Result<()> {
        let targets = self.targets.as_deref().map(|text| Targets::new(Pattern::parse(text)));
        let spectra = if adapter_folder(path).is_ok() {
            of_adapter(path, targets.as_ref())?
        } else {
            let progress = Bars::new();
            let spectra = spectrum::spectra(&model_folder(path)?, targets.as_ref(), &progress)?;
            progress.finish();
            spectra
        };
        if let Some(output) = &self.output {
            std::fs::create_dir_all(output).with_context(|| output.display().to_string())?;
            write_atomic(output.join("spectrum.csv"), spectrum::to_csv(&spectra))?;
            write_atomic(output.join("spectrum.svg"), spectrum::to_svg(&spectra))?;
        }
        if as_json {
            return print_json(&json!({"kind": "spectrum", "modules": spectra}));
        }
        let energies = spectrum::ENERGIES.map(|e| format!("{:>6}", format!("{}%", 100.0 * e))).join("");
        let ratios = spectrum::RATIOS.map(|r| format!("{:>7}", format!("-{}%", 100.0 * r))).join("");
        println!("{:56} {:>12} {:>6} rank for{energies}   error at{ratios}", "module", "shape", "pays");
        for module in &spectra {
            let ranks: String = module.energy_ranks.values().map(|rank| format!("{rank:>6}")).collect();
            let errors: String = module.ratio_errors.values().map(|error| format!("{error:>7.3}")).collect();
            let shape = format!("{}x{}", module.shape[0], module.shape[1]);
            println!(
                "{:56} {shape:>12} {:>6}         {ranks}           {errors}",
                module.module, module.break_even_rank
            );
        }
        Ok(())
    }
}

/// The spectra of an adapter's updates, from their factors.
fn of_adapter(path: &Path, targets: Option<&Targets>) -> Result<Vec<ModuleSpectrum>> {
    let updates = DetachedAdapter::read(path, None, None)?.updates()?;
    let sites: Vec<Site> = updates.iter().map(|update| update.site.clone()).collect();
    let taken = match targets {
        Some(targets) => targets.select(&sites)?,
        None => (0..sites.len()).collect(),
    };
    let one = |index: usize| {
        let update = &updates[index];
        let svd = update.factors.svd()?;
        let mut values: Vec<f32> = svd.s().iter().map(|s| s * update.scale.abs() as f32).collect();
        // Beyond the rank of the factors all values are zero.
        values.resize(update.site.max_rank(), 0.0);
        let shape = [update.site.d_output, update.site.d_input];
        Ok(spectrum::of_values(update.site.path.clone(), shape, &values)?)
    };
    taken.into_iter().map(one).collect()
}
