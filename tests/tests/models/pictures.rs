//! Models of pictures beside transformers and PEFT (`fixtures/make_pictures.py`): the preparation of pictures, logits,
//! gradients, adapters on the patch embedding.

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Tensor, TensorData};
use burn_flex::Flex;
use lowrank_adapters::peft::{AdapterFolder, PeftConfig};
use lowrank_adapters::{AdapterSet, LoraConv2d, Mode};
use lowrank_checkpoint::Checkpoint;
use lowrank_data::images::{Filter, ImageProcessor, ImageSet, PatchSize, decode, resize};
use lowrank_data::pack::{EncodedDataset, PackedBatch};
use lowrank_kernels::Kernels;
use lowrank_models::{Adaptable, Classifier, ClassifierConfig, Parameters, Rows, Run, Stack, Tokens};
use lowrank_tests::{Tested, assert_close, check_gradients, fixture, values};
use lowrank_train::tuner::{loss, to_device};
use rstest::rstest;
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    pictures: Vec<Picture>,
    first_pixels: Vec<f32>,
    resized: Vec<Resized>,
    loss: f64,
    gradients: BTreeMap<String, [f64; 2]>,
}

#[derive(Deserialize)]
struct Picture {
    file: String,
    rgb: String,
    logits: Vec<f32>,
}

#[derive(Deserialize)]
struct Resized {
    filter: usize,
    size: [usize; 2],
    rgb: String,
}

#[derive(Deserialize)]
struct Adapted {
    logits: Vec<Vec<f32>>,
}

const SIZE: PatchSize = PatchSize { picture: [12, 18], patch: [4, 6] };

/// Largest difference of a byte that another decoder of JPEG may make.
const JPEG: u8 = 3;

fn read<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let text = std::fs::read_to_string(fixture(name).join("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn golden() -> Golden {
    read("vit-cls")
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
}

fn picture(name: &str) -> PathBuf {
    fixture("vit-cls").join("pictures").join(name)
}

fn processor() -> ImageProcessor {
    ImageProcessor::from_folder(&fixture("vit-cls"), SIZE.picture).unwrap()
}

/// All pictures, as the golden file lists them.
fn pictures(golden: &Golden) -> EncodedDataset {
    let files: Vec<PathBuf> = golden.pictures.iter().map(|p| picture(&p.file)).collect();
    let n = files.len();
    EncodedDataset::of_images(ImageSet::read(files, processor(), SIZE).unwrap(), vec![None; n]).unwrap()
}

fn load<B: Backend>(name: &str) -> Classifier<B> {
    let config = ClassifierConfig::read(&fixture(name)).unwrap();
    Classifier::load(&fixture(name), config, 0, &Default::default()).unwrap()
}

fn logits<B: Kernels>(model: &Classifier<B>, adapters: &AdapterSet<B>, batch: &PackedBatch) -> Vec<f32> {
    let batch = to_device(model, batch, &Default::default()).unwrap();
    values(model.forward(&batch, Run::eval(adapters)))
}

#[test]
fn pictures_are_prepared_as_by_pillow() {
    let golden = golden();
    assert!(golden.pictures.len() > 12);
    for Picture { file, rgb, .. } in &golden.pictures {
        let (got, expect) = (processor().read(&picture(file), SIZE.picture).unwrap().rgb, bytes(rgb));
        assert_eq!(got.len(), expect.len(), "{file}");
        let off = got.iter().zip(&expect).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        let allowed = if file.ends_with(".png") { 0 } else { JPEG };
        assert!(off <= allowed, "{file}: off by {off}");
    }
    // Patches in the order of the convolution: channel, row, column.
    let batch = pictures(&golden).batch(&[0]).unwrap();
    let [height, width] = SIZE.picture;
    let mut planes = vec![0.0; 3 * height * width];
    for (i, value) in batch.pixels.iter().enumerate() {
        let (patch, rest) = (i / 72, i % 72);
        let (y, x) = (patch / 3 * 4 + rest % 24 / 6, patch % 3 * 6 + rest % 6);
        planes[rest / 24 * height * width + y * width + x] = *value;
    }
    let step = 1.0 / 255.0 / 0.22;
    assert_close("pixels", &planes, &golden.first_pixels, f32::from(JPEG) * step);
}

#[rstest]
#[case("large-text.png", "has a text 'XML:com.adobe.xmp' that cannot be read")]
#[case("profile.png", "has a 'Raw profile type exif' that cannot be read")]
#[case("exif.png", "has EXIF data that cannot be read")]
#[case("checksum.png", "cannot be decoded: Corrupt deflate stream")]
#[case("named-rgb.jpg", "has channels named RGB in a JFIF file")]
fn what_cannot_be_told_is_refused(#[case] name: &str, #[case] part: &str) {
    let error = decode(&fixture("vit-refused").join(name)).unwrap_err().to_string();
    assert!(error.contains(part), "{error}");
}

#[test]
fn every_filter_is_pillows() {
    let source = decode(&picture("rgb.png")).unwrap();
    let golden = golden();
    assert_eq!(golden.resized.len(), 24);
    for Resized { filter, size, rgb } in &golden.resized {
        let got = resize(&source, *size, Filter::ALL[*filter]);
        assert_eq!([got.height, got.width], *size);
        // Pillow 13 changes the height first in some cases, and rounds otherwise between the two.
        let allowed = if size[0] < 10 { 1 } else { 0 };
        let off = got.rgb.iter().zip(bytes(rgb)).map(|(a, b)| a.abs_diff(b)).max().unwrap();
        assert!(off <= allowed, "{:?} to {size:?}: off by {off}", Filter::ALL[*filter]);
    }
}

#[test]
fn logits_equal_transformers() {
    let golden = golden();
    let model = load::<Tested>("vit-cls");
    let indices: Vec<usize> = (0..golden.pictures.len()).collect();
    let got = logits(&model, &AdapterSet::empty(), &pictures(&golden).batch(&indices).unwrap());
    for (got, Picture { file, logits, .. }) in got.chunks(3).zip(&golden.pictures) {
        // A byte that another decoder rounds otherwise moves the logits.
        let allowed = if file.ends_with(".png") { 1e-4 } else { 0.05 };
        assert_close(file, got, logits, allowed);
    }
}

#[test]
fn a_bare_encoder_of_one_channel_equals_transformers() {
    #[derive(Deserialize)]
    struct Hidden {
        pixels: Vec<f32>,
        hidden: Vec<Vec<Vec<f32>>>,
    }
    let Hidden { pixels, hidden } = read("vit-encoder");
    let model = load::<Tested>("vit-encoder");
    assert!(model.newly_initialized().iter().all(|key| key.starts_with("classifier.")));
    // Two by two patches of 4 x 4; the last two rows and columns are not read.
    let mut patches = Vec::new();
    for picture in pixels.chunks(100) {
        for patch in 0..4 {
            let at = |i: usize| (patch / 2 * 4 + i / 4) * 10 + patch % 2 * 4 + i % 4;
            patches.extend((0..16).map(|i| picture[at(i)]));
        }
    }
    let batch = model.batch(Tokens::pictures(&patches, &[5, 5]), &Default::default()).unwrap();
    let none = AdapterSet::empty();
    let got = values(model.hidden_states(&batch, Rows::All, Run::eval(&none)));
    let expect: Vec<f32> = hidden.into_iter().flatten().flatten().collect();
    assert_close("hidden states", &got, &expect, 1e-4);
}

type B = Autodiff<Flex>;

#[test]
fn gradients_equal_pytorchs() {
    let golden = golden();
    let mut model = load::<B>("vit-cls");
    model.choose_trained(|_, _| true);
    // The first four, whose bytes may differ by what decoders of JPEG do, from their golden bytes.
    let mut pixels = Vec::new();
    for Picture { rgb, .. } in &golden.pictures[..4] {
        processor().append_patches(&bytes(rgb), &SIZE, &mut pixels);
    }
    let batch = model.batch(Tokens::pictures(&pixels, &[10; 4]), &Default::default()).unwrap();
    let none = AdapterSet::empty();
    let logits = model.forward(&batch, Run::new(&none, Mode::train(1)));
    let loss = loss(logits, &lowrank_data::pack::Labels::Classes(vec![0, 2, 1, 1]), None).unwrap();
    let off = f64::from(loss.clone().into_scalar()) - golden.loss;
    assert!(off.abs() < 1e-4, "the loss is off by {off}");
    let grads = loss.backward();
    let found = check_gradients("vit-cls", &mut model, &grads, &golden.gradients);
    assert_eq!(found, golden.gradients.into_keys().collect::<Vec<_>>());
}

/// Golden pixels, so that decoders of JPEG play no part.
fn golden_batch(golden: &Golden) -> PackedBatch {
    let mut batch = pictures(golden).batch(&(0..golden.pictures.len()).collect::<Vec<_>>()).unwrap();
    batch.pixels.clear();
    for Picture { rgb, .. } in &golden.pictures {
        processor().append_patches(&bytes(rgb), &SIZE, &mut batch.pixels);
    }
    batch
}

/// PEFT's adapters over transformers 5, over 4, and with DoRA: logits, the merged model, and the file as we write it.
#[test]
fn adapters_equal_peft() {
    let golden = golden();
    let batch = golden_batch(&golden);
    for name in ["vit-lora", "vit-lora-4", "vit-dora"] {
        let mut model = load::<Tested>("vit-cls");
        let set = model.load_adapter(&fixture(name), &Default::default()).unwrap();
        let expected: Adapted = read(if name == "vit-lora-4" { "vit-lora" } else { name });
        let expected = expected.logits.concat();
        assert_close(name, &logits(&model, &set, &batch), &expected, 1e-4);
        let merged = model.merged(&set).unwrap();
        assert_close("merged", &logits(&merged, &AdapterSet::empty(), &batch), &expected, 1e-4);

        let before = Checkpoint::open(fixture(if name == "vit-lora-4" { "vit-lora" } else { name })).unwrap();
        let config = PeftConfig {
            modules_to_save: Some(vec!["classifier".into()]),
            use_rslora: name == "vit-dora",
            ..PeftConfig::default()
        };
        let dir = tempfile::tempdir().unwrap();
        let folder = AdapterFolder::from_set(&set, model.sites(), config, model.head_tensors()).unwrap();
        folder.write(dir.path()).unwrap();
        let after = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(after.names().collect::<Vec<_>>(), before.names().collect::<Vec<_>>(), "{name}");
        for key in before.names() {
            assert_eq!(after.info(key).unwrap().shape, before.info(key).unwrap().shape, "{key}");
            assert_eq!(after.read_f32(key).unwrap(), before.read_f32(key).unwrap(), "{key}");
        }
        let text = std::fs::read_to_string(dir.path().join("adapter_config.json")).unwrap();
        assert!(text.contains("vit.layers.1.attention.") && !text.contains("encoder.layer"), "{text}");
        let mut again = load::<Tested>("vit-cls");
        let set = again.load_adapter(dir.path(), &Default::default()).unwrap();
        assert_close("written", &logits(&again, &set, &batch), &expected, 1e-4);
    }
}

/// The map of patches and its adapter are a convolution and PEFT's pair of convolutions.
#[test]
fn the_patch_embedding_is_a_convolution() {
    let device = Default::default();
    let key = "vit.embeddings.patch_embeddings.projection";
    let file = Checkpoint::open(fixture("vit-lora")).unwrap();
    let kernel = |checkpoint: &Checkpoint, key: &str| -> Tensor<Tested, 4> {
        let shape: [usize; 4] = checkpoint.info(key).unwrap().shape.clone().try_into().unwrap();
        Tensor::from_data(TensorData::new(checkpoint.read_f32(key).unwrap(), shape), &device)
    };
    let factor = |leaf: &str| kernel(&file, &format!("base_model.model.{key}.{leaf}.weight"));
    let options = ConvOptions::new([4, 6], [0, 0], [1, 1], 1);
    let lora = LoraConv2d::from_factors(factor("lora_A"), factor("lora_B"), &options, 7.0 / 5.0).unwrap();
    let x = lowrank_tests::random::<Tested, 4>("x", [2, 3, 12, 18], 1.0);
    let base = kernel(&Checkpoint::open(fixture("vit-cls")).unwrap(), &format!("{key}.weight"));
    let expect = conv2d(x.clone(), base, None, options) + lora.forward(x.clone());
    let expect = values(expect.reshape([2, 24, 9]).swap_dims(1, 2));

    let mut model = load::<Tested>("vit-cls");
    let set = model.load_adapter(&fixture("vit-lora"), &device).unwrap();
    let site = model.sites().iter().position(|site| site.path == key).unwrap();
    assert_eq!(model.sites()[site].kernel, Some([3, 4, 6]));
    let merged = model.base_weights();
    let weight =
        lowrank_adapters::BaseWeights::weight(&merged, site).unwrap() + set.delta_weight(site).unwrap();
    let patches = x.reshape([2, 3, 3, 4, 3, 6]).permute([0, 2, 4, 1, 3, 5]).reshape([18, 72]);
    assert_close("patches", &values(patches.matmul(weight)), &expect, 1e-4);
}

#[test]
fn what_is_no_picture_of_the_model_is_refused() {
    let (vit, bert) = (load::<Tested>("vit-cls"), load::<Tested>("bert-cls"));
    let device = Default::default();
    let refused = |got: lowrank_models::Result<_>, says: &str| {
        let error = got.map(|_: lowrank_models::TokenBatch<Tested>| ()).unwrap_err().to_string();
        assert!(error.contains(says) && error.lines().count() == 1, "{error}");
    };
    let pixels = vec![0.0; 9 * 72];
    refused(vit.batch(Tokens::new(&[1, 2], &[2]), &device), "reads pictures");
    refused(bert.batch(Tokens::pictures(&pixels, &[10]), &device), "reads texts");
    refused(vit.batch(Tokens::pictures(&pixels, &[9]), &device), "a picture of 9 tokens");
    refused(vit.batch(Tokens::pictures(&pixels, &[10, 10]), &device), "for 2 pictures");
    refused(vit.batch(Tokens::pictures(&[], &[]), &device), "for 0 pictures");
}
