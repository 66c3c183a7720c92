//! Spectra of a model's weights, before anything is compressed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use lowrank_checkpoint::Checkpoint;
use lowrank_factor::truncation::break_even_rank;
use lowrank_factor::{Spectrum, svd};
use lowrank_spec::Targets;
use lowrank_spec::text::{csv_field, xml};
use serde::Serialize;

use crate::error::{Result, at};
use crate::folder;
use crate::options::Progress;
use crate::parallel;
use crate::weights::{Weight, find, select};

/// Energies for which ranks are reported.
pub const ENERGIES: [f64; 4] = [0.5, 0.9, 0.95, 0.99];
/// Ratios for which errors are reported.
pub const RATIOS: [f64; 5] = [0.1, 0.2, 0.3, 0.4, 0.6];

/// The cost of truncating one weight.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModuleSpectrum {
    /// As named in the checkpoint.
    pub module: String,
    /// `[d_output, d_input]`.
    pub shape: [usize; 2],
    /// Rank from which on factors are not smaller than the weight.
    pub break_even_rank: usize,
    /// `exp` of the entropy of the singular values (Roy, Vetterli 2007).
    pub effective_rank: f64,
    /// Rank for each energy of [`ENERGIES`], by its name.
    pub energy_ranks: BTreeMap<String, usize>,
    /// Relative error at the uniform rank for each ratio of [`RATIOS`], by its name.
    pub ratio_errors: BTreeMap<String, f64>,
    /// Nonincreasing.
    pub singular_values: Vec<f64>,
}

/// The spectra of the weights selected by `targets`, by default every linear map inside the layers.
///
/// # Errors
/// A folder without a model, targets that match nothing, a weight that is not finite.
pub fn spectra(
    model: &Path,
    targets: Option<&Targets>,
    progress: &dyn Progress,
) -> Result<Vec<ModuleSpectrum>> {
    let checkpoint = Checkpoint::open(model)?;
    let config = folder::read_config(model)?;
    let weights = select(&find(&checkpoint, &config), targets)?;
    progress.stage("spectra", weights.iter().map(|w| w.numel() as u64).sum());
    let all: Vec<usize> = (0..weights.len()).collect();
    parallel::map(
        &all,
        None,
        |_| 0,
        |index| {
            let weight = &weights[index];
            let spectrum = of_weight(&checkpoint, weight)?;
            progress.done(&weight.site.path, None, weight.numel() as u64);
            Ok(spectrum)
        },
    )
}

fn of_weight(checkpoint: &Checkpoint, weight: &Weight) -> Result<ModuleSpectrum> {
    let module = weight.site.path.clone();
    let values = weight.read(checkpoint)?;
    let a = weight.view(&values)?;
    let (rows, columns) = a.shape();
    of_values(module.clone(), [rows, columns], &svd::singular_values(a).map_err(at(&module))?)
}

/// The cost of truncating a matrix of shape `[d_output, d_input]` with these singular values.
///
/// # Errors
/// Non-finite values, or more of them than the shape admits.
pub fn of_values(module: String, shape: [usize; 2], values: &[f32]) -> Result<ModuleSpectrum> {
    let [rows, columns] = shape;
    let spectrum = Spectrum::new(values, rows, columns).map_err(at(&module))?;
    let (energy, error) = (spectrum.energy_curve(), spectrum.error_curve());
    let rank_of = |wanted: f64| energy.iter().position(|e| *e >= wanted).unwrap_or(energy.len() - 1);
    let error_at = |ratio: f64| {
        let rank = (rows * columns) as f64 * (1.0 - ratio) / (rows + columns) as f64;
        error[(rank as usize).clamp(1, error.len() - 1)]
    };
    Ok(ModuleSpectrum {
        shape: [rows, columns],
        break_even_rank: break_even_rank(rows, columns),
        effective_rank: spectrum.effective_rank(),
        energy_ranks: ENERGIES.iter().map(|e| (e.to_string(), rank_of(*e))).collect(),
        ratio_errors: RATIOS.iter().map(|r| (r.to_string(), error_at(*r))).collect(),
        singular_values: spectrum.values().to_vec(),
        module,
    })
}

/// One line per singular value: `module,rank,singular_value,energy,relative_error`, the last two for the
/// truncation to that rank.
pub fn to_csv(spectra: &[ModuleSpectrum]) -> String {
    let mut out = String::from("module,rank,singular_value,energy,relative_error\n");
    for spectrum in spectra {
        let name = csv_field(&spectrum.module);
        for (i, (value, error)) in spectrum.singular_values.iter().zip(errors(spectrum).skip(1)).enumerate() {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{name},{},{value:e},{:e},{error:e}", i + 1, 1.0 - error * error);
        }
    }
    out
}

/// Relative errors of keeping the first `0, 1, …` values.
fn errors(spectrum: &ModuleSpectrum) -> impl Iterator<Item = f64> {
    let squared: Vec<f64> = spectrum.singular_values.iter().map(|s| s * s).collect();
    let mut left: Vec<f64> = vec![0.0];
    left.extend(squared.iter().rev().scan(0.0, |sum, s| {
        *sum += s;
        Some(*sum)
    }));
    left.reverse();
    let total = left[0];
    left.into_iter().map(move |tail| if total > 0.0 { (tail / total).sqrt() } else { 0.0 })
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 520.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 370.0;

/// The errors of all weights over the remaining fraction of their parameters, one colour per kind of module.
pub fn to_svg(spectra: &[ModuleSpectrum]) -> String {
    let x = |share: f64| LEFT + (RIGHT - LEFT) * share.min(1.0);
    let y = |error: f64| BOTTOM - (BOTTOM - TOP) * error;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    for tick in 0..=5 {
        let share = f64::from(tick) / 5.0;
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {0:.1}H{RIGHT}\" stroke=\"#ddd\"/><text x=\"{1}\" y=\"{2:.1}\" \
             text-anchor=\"end\">{share}</text><text x=\"{3:.1}\" y=\"{4}\" text-anchor=\"middle\">{share}</text>",
            y(share),
            LEFT - 6.0,
            y(share) + 4.0,
            x(share),
            BOTTOM + 18.0
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">parameters kept / dense parameters</text>\
         <text x=\"{LEFT}\" y=\"18\">relative error</text>",
        (LEFT + RIGHT) / 2.0,
        HEIGHT - 12.0
    );
    let mut kinds: Vec<&str> = Vec::new();
    for spectrum in spectra {
        let kind = spectrum.module.rsplit('.').next().unwrap_or(&spectrum.module);
        let index = kinds.iter().position(|k| *k == kind).unwrap_or_else(|| {
            kinds.push(kind);
            kinds.len() - 1
        });
        let [rows, columns] = spectrum.shape;
        let each = (rows + columns) as f64 / (rows * columns) as f64;
        let last = spectrum.singular_values.len();
        // Two hundred points look the same as thousands.
        let step = (last / 200).max(1);
        let points: Vec<String> = errors(spectrum)
            .enumerate()
            .filter(|(rank, _)| rank % step == 0 && *rank as f64 * each <= 1.0)
            .map(|(rank, error)| format!("{:.1},{:.1}", x(rank as f64 * each), y(error)))
            .collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-opacity=\"0.6\"/>",
            points.join(" "),
            colour(index)
        );
    }
    for (index, kind) in kinds.iter().enumerate() {
        let kind = xml(kind);
        let y = TOP + 16.0 * index as f64;
        let _ =
            writeln!(out, "<text x=\"{}\" y=\"{y}\" fill=\"{}\">{kind}</text>", RIGHT + 14.0, colour(index));
    }
    out.push_str("</svg>\n");
    out
}

fn colour(index: usize) -> String {
    // Hues a golden angle apart never come close to each other.
    format!("hsl({:.0},70%,40%)", (index as f64 * 137.508) % 360.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_break_out_of_the_files() {
        let module = "h.0.=cmd|' /c calc'!\"a\",<svg onload=\"x\">\u{1b}[2J".to_owned();
        let spectra = [ModuleSpectrum {
            module: module.clone(),
            shape: [1, 1],
            break_even_rank: 1,
            effective_rank: 1.0,
            energy_ranks: BTreeMap::new(),
            ratio_errors: BTreeMap::new(),
            singular_values: vec![2.0],
        }];
        let csv = to_csv(&spectra);
        assert_eq!(
            csv.lines().nth(1),
            Some("\"h.0.=cmd|' /c calc'!\"\"a\"\",<svg onload=\"\"x\"\">\u{fffd}[2J\",1,2e0,1e0,0e0")
        );
        let formula = to_csv(&[ModuleSpectrum { module: "=1+1".into(), ..spectra[0].clone() }]);
        assert!(formula.contains("\n'=1+1,1,"), "{formula}");
        let svg = to_svg(&spectra);
        assert!(
            svg.contains("=cmd|&#39; /c calc&#39;!&quot;a&quot;,&lt;svg onload=&quot;x&quot;&gt;"),
            "{svg}"
        );
        assert!(!svg.contains("<svg onload") && !svg.contains('\u{1b}'), "{svg}");
    }
}
