//! `lowrank inspect`: layers, shapes and parameters of a model or an adapter.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Error, Result, bail, ensure};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use lowrank_adapters::{AdapterConfig, AdapterSet, BaseWeights, Init, NoWeights, Site};
use lowrank_checkpoint::gguf::is_gguf;
use lowrank_checkpoint::{Checkpoint, CheckpointError, Dtype};
use lowrank_models::architecture::is_buffer;
use lowrank_models::{
    Adaptable, Classifier, Decoder, HeadLevel, ModelKind, ParamVisitor, Parameter, Parameters, Part, Role,
    Seq2Seq,
};
use lowrank_spec::names::WeightPart;
use lowrank_spec::{BlockFormat, LowrankSection};
use serde_json::{Map, Value, json};

use crate::adapter;
use crate::backend::{Inner, device};
use crate::context::{adapter_folder, check_effect, model_folder, open_model, print_json};
use crate::layers;
use crate::method::{AdapterArgs, BiasMode, Method, default_targets, generator_trains, query_and_value};

/// Options of `inspect`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model folder (config.json is enough), adapter folder, or tensor file
    path: PathBuf,
    #[command(flatten)]
    spectrum: crate::spectrum::Args,
    /// Count the parameters that this method would train
    #[arg(long, value_enum)]
    method: Option<Method>,
    #[command(flatten)]
    adapter: AdapterArgs,
    /// Count the parameters with every linear layer factored at this rank
    #[arg(long, value_name = "RANK")]
    factored: Option<usize>,
    /// Number of labels of the head for the count [default: the config's]
    #[arg(long, value_name = "N")]
    labels: Option<usize>,
    /// Print the maximum absolute difference of every tensor from this model
    #[arg(long, value_name = "PATH")]
    against: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let counts = ["method", "factored", "labels"];
    let adapter = ["rank", "alpha", "targets", "exclude", "layers", "init", "bias"];
    if args.spectrum.is_wanted() {
        check_effect(false, &[&counts[..], &adapter, &["against"]].concat(), "does not apply to --spectrum")?;
        return args.spectrum.run(&args.path, args.json);
    }
    if let Some(other) = &args.against {
        check_effect(false, &[&counts[..], &adapter].concat(), "does not apply to --against")?;
        let object = difference(&args.path, other)?;
        return if args.json { print_json(&object) } else { print_difference(&object) };
    }
    args.adapter.warn_unused(args.method);
    ensure_usage!(args.labels != Some(0), "--labels 0 is out of range; expected 1 or more");
    let is_counted = args.method.is_some() || args.factored.is_some() || args.labels.is_some();
    let object = match adapter_folder(&args.path) {
        Ok(dir) => {
            ensure!(!is_counted, "{}: --method, --factored and --labels are for models", dir.display());
            adapter_files(&dir)?
        }
        Err(_) if is_counted => architecture(&args)?,
        Err(_) if has_no_weights(&args.path) => architecture(&args)?,
        Err(_) => model(&args.path)?,
    };
    if args.json {
        return print_json(&object);
    }
    if object["kind"] == "architecture" {
        return print_architecture(&object);
    }
    for tensor in object["tensors"].as_array().into_iter().flatten() {
        let name = tensor["name"].as_str().unwrap_or_default();
        println!(
            "{name:60} {:16} {}",
            tensor["shape"].to_string(),
            tensor["dtype"].as_str().unwrap_or("F32")
        );
    }
    let layers = object["layers"].as_array().map_or(&[][..], Vec::as_slice);
    for layer in layers.iter().filter(|layer| layer["kind"] != "dense") {
        let name = layer["name"].as_str().unwrap_or_default();
        println!(
            "{name:60} {}x{} as {} of ranks {}, {} parameters",
            layer["d_input"],
            layer["d_output"],
            layer["kind"].as_str().unwrap_or_default(),
            layer["ranks"],
            layer["parameters"]
        );
    }
    if let Some(model_type) = object["model_type"].as_str() {
        println!("{model_type}, {} layers that adapters and factors can take", layers.len());
    }
    println!(
        "{} tensors, {} parameters",
        object["tensors"].as_array().map_or(0, Vec::len),
        object["parameters"]
    );
    Ok(())
}

/// A folder with a config and without tensors: a model known by its shape only.
fn has_no_weights(path: &Path) -> bool {
    let nothing = |error| matches!(error, CheckpointError::NoCheckpoint { .. });
    path.join("config.json").is_file() && Checkpoint::open(path).is_err_and(nothing)
}

/// Counts of a model built from its config alone, without weights.
fn architecture(args: &Args) -> Result<Value> {
    let folder = open_model(&args.path)?;
    let device = device()?;
    let count = if folder.kind() == ModelKind::Seq2Seq && args.labels.is_none() {
        let config = folder.seq2seq_config()?;
        let (heads, targets) =
            (config.decoder.n_heads, query_and_value(&config.decoder.architecture.names.qkv));
        let mut model = Seq2Seq::<Inner>::init(config, 0, &device).map_err(Error::msg)?;
        let tied = model.tied();
        Count::of(args, &mut model, heads, &targets, |at| generator_trains(args.method, tied.as_ref(), at))?
    } else if folder.kind() == ModelKind::Decoder && args.labels.is_none() {
        let config = folder.decoder_config()?;
        let (heads, targets) = (config.n_heads, query_and_value(&config.architecture.names.qkv));
        let mut model = Decoder::<Inner>::init(config, 0, &device).map_err(Error::msg)?;
        let tied = model.tied();
        Count::of(args, &mut model, heads, &targets, |at| generator_trains(args.method, tied.as_ref(), at))?
    } else {
        let config = folder.classifier_config()?;
        let config = match args.labels {
            Some(n) if config.level == HeadLevel::Span => {
                bail!("--labels {n}: the model answers questions, and its head has two outputs; leave it out")
            }
            Some(n) => config.with_labels((0..n).map(|i| format!("LABEL_{i}")).collect(), n == 1),
            None => config,
        };
        let (heads, targets) = (config.n_heads(), default_targets(&config));
        let model = Classifier::<Inner>::init(config, 0, &device);
        let mut model = match folder.checkpoint() {
            Ok(checkpoint) => model.divided_as_in(&checkpoint),
            Err(_) => model,
        };
        Count::of(args, &mut model, heads, &targets, |at| classifier_trains(args.method, at))?
    };
    let Count { sites, parameters, adapters, trained_in_full } = count;
    let mut object = json!({"kind": "architecture", "parameters": parameters});
    if let Some(method) = args.method {
        object["method"] = json!(method.name());
        object["adapter_parameters"] = json!(adapters);
        object["trained_in_full"] = json!(trained_in_full);
        object["trainable"] = json!(adapters + trained_in_full);
        object["total"] = json!(parameters + adapters);
    }
    if let Some(rank) = args.factored {
        ensure_usage!(rank > 0, "--factored 0 is out of range; expected 1 or more");
        let factored = sites.iter().filter(|site| !site.embedding).fold(parameters, |sum, site| {
            let rank = rank.min(site.max_rank());
            sum - site.d_input * site.d_output + rank * (site.d_input + site.d_output)
        });
        object["factored_rank"] = json!(rank);
        object["factored_parameters"] = json!(factored);
    }
    let rows = sites.iter().map(|site| {
        let kind = if site.embedding { "embedding" } else { "linear" };
        json!({"module": site.path, "kind": kind, "shape": [site.d_input, site.d_output]})
    });
    object["modules"] = rows.collect();
    Ok(object)
}

fn print_architecture(object: &Value) -> Result<()> {
    for module in object["modules"].as_array().into_iter().flatten() {
        let text = |key: &str| module[key].as_str().unwrap_or_default();
        println!("{:60} {:10} {}", text("module"), text("kind"), module["shape"]);
    }
    println!("{} parameters", object["parameters"]);
    if let Some(method) = object["method"].as_str() {
        println!(
            "{method}: {} trainable ({} in adapters, {} in full), {} in total",
            object["trainable"], object["adapter_parameters"], object["trained_in_full"], object["total"]
        );
    }
    if let Some(rank) = object["factored_rank"].as_u64() {
        println!("every linear layer at rank {rank}: {} parameters", object["factored_parameters"]);
    }
    Ok(())
}

/// Whether a method trains a parameter of a classifier in full.
fn classifier_trains(method: Option<Method>, at: &Parameter<'_>) -> bool {
    let is_head = at.module.part == Part::Head;
    match method {
        Some(Method::Full) => true,
        Some(Method::Bitfit) => is_head || at.is_bias(),
        Some(_) => is_head,
        None => false,
    }
}

/// Numbers of parameters, from shapes alone.
struct Count {
    sites: Vec<Site>,
    /// Those of the model.
    parameters: usize,
    /// Those of the adapters.
    adapters: usize,
    /// Those of the model that are trained.
    trained_in_full: usize,
}

impl Count {
    /// Counts under a method and its options; `trains` are the model's own parameters that the method trains.
    fn of<M: Parameters<Inner> + Adaptable<Inner>>(
        args: &Args,
        model: &mut M,
        heads: usize,
        default_targets: &str,
        trains: impl Fn(&Parameter<'_>) -> bool,
    ) -> Result<Self> {
        let sites = model.sites().to_vec();
        let (adapters, adapted, bias) = match args.method.and_then(Method::adapter) {
            Some(method) => {
                let config = args.adapter.config(method, heads, 0, default_targets)?;
                // The initial values of the factors do not affect their number.
                let config = AdapterConfig { init: Init::Default, ..config };
                let (adapters, adapted) = count_adapters(&config, &sites)?;
                (adapters, adapted, args.adapter.bias)
            }
            None => (0, BTreeSet::new(), BiasMode::None),
        };
        // An adapted head is not trained in full too.
        let trains = |at: &Parameter<'_>| {
            (trains(at) && !adapted.contains(at.module.path))
                || bias.takes(at, |module| adapted.contains(module))
        };
        let mut counting = Counting { trains, parameters: 0, trained: 0 };
        model.visit_params(&mut counting);
        Ok(Self { parameters: counting.parameters, trained_in_full: counting.trained, sites, adapters })
    }
}

struct Counting<F> {
    trains: F,
    parameters: usize,
    trained: usize,
}

impl<F: Fn(&Parameter<'_>) -> bool> ParamVisitor<Inner> for Counting<F> {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<Inner, D>>) {
        if at.role == Role::Constant {
            return;
        }
        let n = param.lazy_shape().num_elements();
        self.parameters += n;
        self.trained += if (self.trains)(at) { n } else { 0 };
    }
}

/// Number of parameters in the adapters of a config, and the modules that they adapt.
fn count_adapters(config: &AdapterConfig, sites: &[Site]) -> Result<(usize, BTreeSet<String>)> {
    struct Zeros<'a>(&'a [Site]);
    impl BaseWeights<Inner> for Zeros<'_> {
        fn weight(&self, site: usize) -> Option<Tensor<Inner, 2>> {
            let site = self.0.get(site)?;
            Some(Tensor::zeros([site.d_input, site.d_output], &Default::default()))
        }
    }
    struct Trained(usize);
    impl ModuleVisitor<Inner> for Trained {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Inner, D>>) {
            self.0 += param.lazy_shape().num_elements();
        }
    }
    let set = AdapterSet::<Inner>::init(config, sites, &Zeros(sites), &device()?)?;
    let mut trained = Trained(0);
    set.visit(&mut trained);
    Ok((trained.0, set.slots().iter().map(|slot| slot.path.clone()).collect()))
}

/// The largest absolute difference of every tensor that two checkpoints share, and the tensors of only one of
/// them. A prefix (`bert.`) that one of them lacks is ignored.
fn difference(path: &Path, other: &Path) -> Result<Value> {
    let open = |path: &Path| -> Result<Checkpoint> {
        let folder = if path.is_file() { path.to_path_buf() } else { model_folder(path)? };
        Ok(Checkpoint::open(folder)?)
    };
    let (here, there) = (open(path)?, open(other)?);
    let bare = |name: &str| name.split_once('.').map(|(_, rest)| rest.to_owned());
    let find = |name: &str| {
        let is_it =
            |n: &&str| *n == name || bare(n).as_deref() == Some(name) || bare(name).as_deref() == Some(*n);
        there.names().find(|n| *n == name).or_else(|| there.names().find(is_it))
    };
    let (mut tensors, mut only_here, mut found) = (Vec::new(), Vec::new(), BTreeSet::new());
    for name in here.names() {
        let Some(twin) = find(name) else {
            only_here.push(name);
            continue;
        };
        found.insert(twin);
        let (Some(a), Some(b)) = (here.info(name), there.info(twin)) else { continue };
        let mut row = json!({"name": name, "shape": a.shape});
        if a.shape != b.shape {
            row["other_shape"] = json!(b.shape);
        } else if a.dtype.is_float() && b.dtype.is_float() {
            let (a, b) = (here.read_f32(name)?, there.read_f32(twin)?);
            // A NaN on one side only is the largest difference of all.
            let gap = |(x, y): (&f32, &f32)| if x.to_bits() == y.to_bits() { 0.0 } else { (x - y).abs() };
            let largest = a
                .iter()
                .zip(&b)
                .map(gap)
                .fold(0.0, |m: f32, d| if d.is_nan() { f32::INFINITY } else { m.max(d) });
            row["max_difference"] = if largest.is_finite() { json!(largest) } else { json!("not finite") };
        }
        tensors.push(row);
    }
    let only_there: Vec<&str> = there.names().filter(|name| !found.contains(name)).collect();
    Ok(json!({"kind": "difference", "tensors": tensors, "only_here": only_here, "only_there": only_there}))
}

fn print_difference(object: &Value) -> Result<()> {
    for tensor in object["tensors"].as_array().into_iter().flatten() {
        let difference = match (&tensor["max_difference"], &tensor["other_shape"]) {
            (Value::Number(number), _) => format!("{:.3e}", number.as_f64().unwrap_or(f64::NAN)),
            (Value::Null, Value::Null) => "no numbers".into(),
            (Value::Null, shape) => format!("has shape {shape} there"),
            (text, _) => text.as_str().unwrap_or_default().into(),
        };
        println!(
            "{:60} {:16} {difference}",
            tensor["name"].as_str().unwrap_or_default(),
            tensor["shape"].to_string()
        );
    }
    for (key, what) in [("only_here", "only here"), ("only_there", "only there")] {
        for name in object[key].as_array().into_iter().flatten().filter_map(Value::as_str) {
            println!("{name:60} {what}");
        }
    }
    Ok(())
}

fn model(path: &Path) -> Result<Value> {
    // A config beside a tensor file is ignored; a GGUF file is a model.
    let (file, mut object) = if path.is_file() && !is_gguf(path) {
        (path.to_path_buf(), Map::new())
    } else {
        // A folder of tensors without a config can be inspected too, and a GGUF file of an unknown
        // architecture.
        match open_model(path) {
            Ok(folder) => (folder.path().to_path_buf(), layers::describe(&folder)?),
            Err(error) if lowrank_spec::is_present(path.join("config.json")) || !path.exists() => {
                return Err(error);
            }
            Err(_) => (path.to_path_buf(), Map::new()),
        }
    };
    let section = match read_config(&file) {
        Some(config) => LowrankSection::of_config(&config)?,
        None => LowrankSection::default(),
    };
    let checkpoint = Checkpoint::open(file)?;
    let mut parameters = 0;
    let tensors: Vec<Value> = checkpoint
        .names()
        .filter_map(|name| {
            let info = checkpoint.info(name)?;
            let (shape, dtype) = match block_format(&section, name).zip(info.shape.get(..2)) {
                // A row of bytes is a row of blocks.
                Some((format, &[rows, bytes])) if info.dtype == Dtype::U8 => {
                    (vec![rows, bytes / format.block_bytes() * format.block_len()], format.name())
                }
                _ => (stored_shape(&section, name, &info.shape), info.dtype.name()),
            };
            if !is_buffer(name) {
                parameters += shape.iter().product::<usize>();
            }
            Some(json!({"name": name, "shape": shape, "dtype": dtype}))
        })
        .collect();
    object.insert("kind".into(), json!("model"));
    object.insert("parameters".into(), json!(parameters));
    object.insert("tensors".into(), tensors.into());
    Ok(object.into())
}

/// The config of a model folder, if it has a readable one.
fn read_config(path: &Path) -> Option<Map<String, Value>> {
    serde_json::from_slice(&lowrank_checkpoint::read_file_within(path.join("config.json"), 64 << 20).ok()?)
        .ok()
}

/// The shape in the file: a factor with pivots lacks the rows of the identity, which its reader adds.
fn stored_shape(section: &LowrankSection, name: &str, shape: &[usize]) -> Vec<usize> {
    let entry = WeightPart::parse(name).filter(|(_, part)| *part == WeightPart::FactorB);
    let has_pivots = entry
        .and_then(|(module, _)| section.find(module))
        .is_some_and(|(_, entry)| entry.representation.is_pivoted());
    match *shape {
        [rows, rank] if has_pivots => vec![rows - rank.min(rows), rank],
        _ => shape.to_vec(),
    }
}

/// The block format of a tensor.
fn block_format(section: &LowrankSection, name: &str) -> Option<BlockFormat> {
    let (module, part) = WeightPart::parse(name)?;
    BlockFormat::from_name(section.find(module)?.1.formats.get(part.name())?)
}

fn adapter_files(dir: &Path) -> Result<Value> {
    let folder = adapter::read(dir, None)?;
    let parameters = folder.parameters();
    let idle = folder.own_sites::<Inner>(dir).ok().and_then(|sites| {
        let set = folder.clone().into_set::<Inner>(dir, &sites, &NoWeights, &device().ok()?).ok()?.0;
        Some(set.idle().into_iter().map(str::to_string).collect::<Vec<_>>())
    });
    let tensors: Vec<Value> =
        folder.tensors.values().map(|t| json!({"name": t.name, "shape": t.shape, "dtype": "F32"})).collect();
    Ok(json!({
        "kind": "adapter",
        "peft_type": folder.config.peft_type,
        "rank": folder.config.r,
        "alpha": folder.config.lora_alpha,
        "rslora": folder.config.use_rslora,
        "dora": folder.config.use_dora,
        "bias": folder.config.bias,
        "rank_pattern": folder.config.rank_pattern,
        "alpha_pattern": folder.config.alpha_pattern,
        "modules_to_save": folder.config.modules_to_save,
        "zero": idle,
        "parameters": parameters,
        "tensors": tensors,
    }))
}
