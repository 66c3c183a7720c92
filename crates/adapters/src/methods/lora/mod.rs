//! LoRA: `ΔW = scale·A·B`, a pair of factors for one site; DoRA, which adds magnitudes, and LoRA-FA.

mod codec;
mod dora;
mod start;

use burn::module::{Param, ParamId};
use burn::prelude::*;
use lowrank_kernels::{Dropout, Kernels, linear};

pub use self::dora::Magnitude;
pub use self::start::Start;
use super::{FactorRole, Factors, Fresh, Method, MethodSpec};
use crate::config::Init;
use crate::error::Result;
use crate::forward::{BaseLinear, low_rank};
use crate::init::{kaiming, normal};
use crate::peft::{AdapterFolder, OwnSite, Reader, Writer};
use crate::set::{Pair, Slot};
use lowrank_spec::Site;

const INITS: &[Init] = &[
    Init::Kaiming,
    Init::Gaussian,
    Init::Pissa,
    Init::PissaRandomized,
    Init::Olora,
    Init::Loftq,
    Init::Qera,
];

const LORA: &MethodSpec = &MethodSpec {
    inits: INITS,
    takes_embeddings: true,
    keys: codec::KEYS,
    is_of: |config| !config.use_dora,
    ..MethodSpec::new("lora", "LORA", "Low-rank adapters, a pair of factors for each layer")
};

const DORA: &MethodSpec = &MethodSpec {
    inits: &[Init::Kaiming, Init::Gaussian],
    takes_embeddings: true,
    keys: codec::KEYS,
    is_of: |config| config.use_dora,
    ..MethodSpec::new("dora", "LORA", "LoRA with a trained magnitude for each column of a weight")
};

const LORA_FA: &MethodSpec = &MethodSpec {
    inits: INITS,
    takes_embeddings: true,
    keys: codec::KEYS,
    // Files do not record which factor was frozen.
    is_of: |_| false,
    ..MethodSpec::new("lora-fa", "LORA", "LoRA with its first factor frozen")
};

pub(super) const METHODS: &[&MethodSpec] = &[LORA, DORA, LORA_FA];

impl Method {
    /// Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): a pair of factors for each site.
    pub const LORA: Self = Self(LORA);
    /// Weight-decomposed LoRA (Liu et al. 2024, arXiv:2402.09353): a pair, and a magnitude for each column of the weight.
    pub const DORA: Self = Self(DORA);
    /// LoRA with `A` frozen (Zhang et al. 2023, arXiv:2308.03303).
    pub const LORA_FA: Self = Self(LORA_FA);
}

/// The pair of one site (Hu et al. 2021, arXiv:2106.09685).
#[derive(Module, Debug)]
pub struct Lora<B: Backend> {
    /// Shape `[d_input, rank]`.
    pub a: Param<Tensor<B, 2>>,
    /// Shape `[rank, d_output]`.
    pub b: Param<Tensor<B, 2>>,
    /// Multiplied by the scale and added to the bias (PEFT's `lora_bias`), shape `[d_output]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
    /// Initial factors, if their product is not zero; it is subtracted from the update of the unquantized weight.
    pub start: Option<Start<B>>,
    /// DoRA's magnitudes.
    pub magnitude: Option<Magnitude<B>>,
    /// Factor on the update.
    pub scale: f64,
}

impl<B: Backend> Lora<B> {
    /// A newly initialized pair whose update is zero: `A` Kaiming-uniform (a = √5) and `B` zero; at an
    /// embedding, as in PEFT, `A` zero and `B` normal.
    pub fn new(site: &Site, rank: usize, scale: f64, seed: u64, device: &B::Device) -> Self {
        let key = |name: &str| format!("{}.{name}", site.path);
        let (a_shape, b_shape) = ([site.d_input, rank], [rank, site.d_output]);
        if site.embedding {
            let b = normal(seed, &key("lora_embedding_B"), b_shape, 1.0, device);
            return Self::from_factors(Tensor::zeros(a_shape, device), b, scale);
        }
        Self::from_factors(
            kaiming(seed, &key("lora_A"), a_shape, device),
            Tensor::zeros(b_shape, device),
            scale,
        )
    }

    /// A newly initialized pair with `A` normal, of standard deviation `std`, and `B` zero.
    fn normal(site: &Site, rank: usize, std: f64, scale: f64, seed: u64, device: &B::Device) -> Self {
        let a = normal(seed, &format!("{}.lora_A", site.path), [site.d_input, rank], std, device);
        Self::from_factors(a, Tensor::zeros([rank, site.d_output], device), scale)
    }

    /// A pair of given factors: `a` `[d_input, rank]`, `b` `[rank, d_output]`.
    pub fn from_factors(a: Tensor<B, 2>, b: Tensor<B, 2>, scale: f64) -> Self {
        let [a, b] = [a, b].map(Param::from_tensor);
        Self { a, b, bias: None, start: None, magnitude: None, scale }
    }

    /// A pair that starts from given factors with an update of zero.
    pub(crate) fn from_start(start: Start<B>, scale: f64) -> Self {
        let pair = Self::from_factors(start.a.clone(), start.b.clone(), scale);
        Self { start: Some(start), ..pair }
    }

    /// The same with `A` frozen (LoRA-FA, Zhang et al. 2023, arXiv:2308.03303).
    pub(crate) fn with_frozen_a(self) -> Self {
        Self { a: self.a.set_require_grad(false), ..self }
    }

    /// The inner dimension of the trained pair.
    pub fn rank(&self) -> usize {
        self.b.dims()[0]
    }

    /// Factors whose product, times the scale, is what is added to the weight in memory: the pair itself, or pair and
    /// initial factors concatenated.
    pub fn factors(&self) -> (Tensor<B, 2>, Tensor<B, 2>) {
        match &self.start {
            Some(start) if !start.is_residual => self.since(start),
            _ => (self.a.val(), self.b.val()),
        }
    }

    /// The same for the weight before quantization.
    pub fn unquantized_factors(&self) -> (Tensor<B, 2>, Tensor<B, 2>) {
        match &self.start {
            Some(start) => self.since(start),
            None => (self.a.val(), self.b.val()),
        }
    }

    /// The pair and the negative initial one, concatenated.
    fn since(&self, start: &Start<B>) -> (Tensor<B, 2>, Tensor<B, 2>) {
        (
            Tensor::cat(vec![self.a.val(), start.a.clone()], 1),
            Tensor::cat(vec![self.b.val(), start.b.clone().neg()], 0),
        )
    }

    fn scaled_pair(&self) -> Pair<B> {
        let (a, b) = self.factors();
        Pair { a, b, scale: self.scale }
    }

    /// A newly initialized pair with the config's initialization.
    fn fresh(fresh: &Fresh<'_, B>) -> Result<Self> {
        let (config, site, device) = (fresh.config, fresh.site(), fresh.device);
        let (rank, scale, seed) = (fresh.rank(), fresh.scale(), config.seed);
        match config.init {
            // The first factor of LoRA-FA is not trained, so it must not be zero.
            _ if site.embedding && config.method == Method::LORA_FA => {
                Ok(Self::normal(site, rank, 1.0, scale, seed, device))
            }
            Init::Gaussian if !site.embedding => {
                Ok(Self::normal(site, rank, 1.0 / rank as f64, scale, seed, device))
            }
            Init::Pissa | Init::PissaRandomized | Init::Olora => {
                let weight = fresh.weight(0, &config.init.to_string())?;
                Ok(Self::from_start(Start::of_weight(config.init, weight, rank, scale, seed)?, scale))
            }
            init if init.needs_residual() => Ok(match fresh.residual(0)? {
                Some(factors) => Self::from_start(Start::of_residual(factors, scale), scale),
                None => Self::new(site, rank, scale, seed, device),
            }),
            _ => Ok(Self::new(site, rank, scale, seed, device)),
        }
    }
}

impl<B: Backend> Factors<B> for Lora<B> {
    fn init(fresh: &Fresh<'_, B>) -> Result<Self> {
        let lora = Self::fresh(fresh)?;
        let method = fresh.config.method;
        if method == Method::DORA {
            let magnitude = Magnitude::of_weight(fresh.weight(0, "dora")?);
            return Ok(Self { magnitude: Some(magnitude), ..lora });
        }
        Ok(if method == Method::LORA_FA { lora.with_frozen_a() } else { lora })
    }

    fn pair(&self, _slice: usize) -> Option<Pair<B>> {
        Some(self.scaled_pair())
    }

    fn roles(&self) -> Vec<(ParamId, FactorRole)> {
        let mut roles = vec![(self.a.id, FactorRole::First), (self.b.id, FactorRole::Second)];
        roles.extend(self.bias.iter().map(|bias| (bias.id, FactorRole::Vector)));
        roles.extend(self.magnitude.iter().map(|magnitude| (magnitude.value.id, FactorRole::Vector)));
        roles
    }

    fn read(file: &mut Reader<'_, B>) -> Result<()> {
        codec::read(file)
    }

    fn write(&self, slots: &[&Slot], file: &mut Writer<'_>) -> Result<()> {
        codec::write(self, slots[0], file);
        Ok(())
    }

    fn own_sites(folder: &AdapterFolder) -> Result<Vec<OwnSite>> {
        Ok(codec::own_sites(folder))
    }

    fn change(&self, _slice: usize, weight: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
        let delta = self.scaled_pair().product();
        Some(match &self.magnitude {
            Some(magnitude) => magnitude.change(weight, delta),
            None => delta,
        })
    }

    fn bias(&self, _slice: usize) -> Option<Tensor<B, 1>> {
        self.bias.as_ref().map(|bias| bias.val() * self.scale)
    }

    fn depends_on_base(&self) -> bool {
        self.magnitude.is_some()
    }

    fn forward(
        &self,
        slice: usize,
        x: Tensor<B, 2>,
        base: &dyn BaseLinear<B>,
        drop: Option<Dropout>,
    ) -> Tensor<B, 2>
    where
        B: Kernels,
    {
        let y = match &self.magnitude {
            Some(magnitude) => magnitude.forward(self.scaled_pair(), x, base, drop),
            None => low_rank(self.scaled_pair(), x, base, true, drop),
        };
        match self.bias(slice) {
            Some(bias) => y + bias.unsqueeze(),
            None => y,
        }
    }

    fn embed(
        &self,
        _slice: usize,
        ids: Tensor<B, 1, Int>,
        rows: &Tensor<B, 2>,
        through_base: &dyn Fn(Tensor<B, 2>) -> Tensor<B, 2>,
    ) -> Option<Tensor<B, 2>>
    where
        B: Kernels,
    {
        let pair = self.scaled_pair();
        let picked = pair.a.clone().select(0, ids); // [tokens, rank]
        let delta = linear(picked, pair.b.clone(), None) * pair.scale;
        Some(match &self.magnitude {
            Some(magnitude) => {
                let ratio = magnitude.ratio(&pair, through_base);
                (rows.clone() + delta) * ratio.unsqueeze() - rows.clone()
            }
            None => delta,
        })
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;

    use super::*;
    use crate::build::{BaseWeights, NoWeights};
    use crate::config::AdapterConfig;
    use crate::host::host_values;
    use crate::set::AdapterSet;
    use lowrank_spec::{Pattern, Targets};

    fn embedding() -> Site {
        Site {
            path: "embed_tokens".into(),
            layer: None,
            d_input: 9,
            d_output: 4,
            head: false,
            embedding: true,
            ..Site::default()
        }
    }

    fn fresh(method: Method) -> AdapterSet<Flex> {
        let targets = Targets::new(Pattern::parse("embed_tokens"));
        let config = AdapterConfig { rank: 2, ..AdapterConfig::new(method, targets) };
        AdapterSet::init(&config, &[embedding()], &NoWeights, &Default::default()).unwrap()
    }

    /// LoRA-FA's first factor keeps its random values: if it were zero, the second would never get a
    /// gradient.
    #[test]
    fn a_frozen_first_factor_of_an_embedding_is_not_zero() {
        let is_zero = |t: Tensor<Flex, 2>| host_values(t).iter().all(|v| *v == 0.0);
        let Some(pair) = fresh(Method::LORA_FA).adapters()[0].pair(0) else { panic!("a LoRA is a pair") };
        assert!(!is_zero(pair.a.clone()) && is_zero(pair.b));
        let Some(pair) = fresh(Method::LORA).adapters()[0].pair(0) else { panic!("a LoRA is a pair") };
        assert!(is_zero(pair.a) && !is_zero(pair.b.clone()));
    }

    /// A base whose quantization residual is `[[2, 0], [0, 0]]`.
    struct Quantized;

    impl BaseWeights<Flex> for Quantized {
        fn weight(&self, _site: usize) -> Option<Tensor<Flex, 2>> {
            None
        }

        fn residual(&self, _site: usize, rank: usize) -> Result<Option<[Tensor<Flex, 2>; 2]>> {
            assert_eq!(rank, 1);
            let device = Default::default();
            Ok(Some([
                Tensor::from_floats([[2.0], [0.0]], &device),
                Tensor::from_floats([[1.0, 0.0]], &device),
            ]))
        }
    }

    /// Over the quantized base the update is the residual; over the unquantized one, for which files are written, it is zero.
    #[test]
    fn a_residual_is_added_in_memory_and_not_in_files() {
        let site = Site { path: "query".into(), layer: Some(0), d_input: 2, d_output: 2, ..Site::default() };
        let targets = Targets::new(Pattern::parse("query"));
        let config =
            AdapterConfig { rank: 1, init: Init::Loftq, ..AdapterConfig::new(Method::LORA, targets) };
        let device = Default::default();
        let set = AdapterSet::init(&config, std::slice::from_ref(&site), &Quantized, &device).unwrap();
        let delta = host_values(set.delta_weight(0).unwrap());
        assert!(delta.iter().zip([2.0, 0.0, 0.0, 0.0]).all(|(got, expect)| (got - expect).abs() < 1e-5));
        let folder =
            AdapterFolder::from_set(&set, std::slice::from_ref(&site), Default::default(), Vec::new())
                .unwrap();
        assert_eq!(folder.config.r, 2);
        let (written, _) = folder.into_set("made".as_ref(), &[site], &NoWeights, &device).unwrap();
        let written: Tensor<Flex, 2> = written.delta_weight(0).unwrap();
        assert!(host_values(written).iter().all(|value| value.abs() < 1e-6));
    }

    #[test]
    fn a_base_without_unquantized_weights_is_refused() {
        let site = Site { path: "query".into(), layer: Some(0), d_input: 2, d_output: 2, ..Site::default() };
        let targets = Targets::new(Pattern::parse("query"));
        let config = AdapterConfig { rank: 1, init: Init::Qera, ..AdapterConfig::new(Method::LORA, targets) };
        let error = AdapterSet::<Flex>::init(&config, &[site], &NoWeights, &Default::default()).unwrap_err();
        assert!(error.to_string().contains("need the weights before quantization"), "{error}");
    }

    #[test]
    fn every_parameter_has_a_role() {
        let set = fresh(Method::LORA);
        let Adapter::Lora(lora) = &set.adapters()[0] else { panic!("a LoRA") };
        let roles = set.roles();
        assert_eq!(roles[&lora.a.id], FactorRole::First);
        assert_eq!(roles[&lora.b.id], FactorRole::Second);
        assert_eq!(roles.len(), 2);
    }

    use crate::methods::Adapter;
}
