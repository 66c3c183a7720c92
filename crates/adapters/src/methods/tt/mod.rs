//! Adapters in tensor-train form: LoRETTA's factors, and TT-LoRA's update.
//!
//! A tensor train with one open end is a matrix `[d, r]`: its rows are the product of the modes before the
//! end, its columns the rank at the end. Two of them form `A` and `B` of a LoRA, so that both methods run on
//! factors of `d·r` entries, never on a `d²` matrix, and are exactly a LoRA.
//!
//! Files: cores `<path>.tt_left.<k>` and `<path>.tt_right.<k>` `(rank, mode, next rank)`; `widths` in the config holds
//! the widths of the layers, since modes may be padded.

mod codec;

use burn::module::{Param, ParamId};
use burn::prelude::*;
use lowrank_factor::tt::DimFactors;
use lowrank_spec::Site;

use super::{FactorRole, Factors, Fresh, Method, MethodSpec, OptionKind, OptionSpec};
use crate::config::AdapterConfig;
use crate::error::Result;
use crate::init::normal;
use crate::peft::{AdapterFolder, OwnSite, Reader, Writer};
use crate::set::{Pair, Slot};

const ORDER: OptionSpec = OptionSpec {
    name: "tt-order",
    about: "factors into which a width is split",
    kind: OptionKind::Number { default: 3, min: 1, max: 16 },
};

const LORETTA: &MethodSpec = &MethodSpec {
    keys: codec::FIRST,
    options: &[
        OptionSpec {
            name: "tt-rank",
            about: "ranks inside the tensor trains",
            kind: OptionKind::Number { default: 4, min: 1, max: usize::MAX },
        },
        ORDER,
    ],
    ..MethodSpec::new("loretta", "LORETTA", "LoRA with both factors as tensor trains")
};

const TT_LORA: &MethodSpec = &MethodSpec {
    keys: codec::FIRST,
    options: &[ORDER],
    ..MethodSpec::new("tt-lora", "TT_LORA", "The update as one tensor train")
};

pub(super) const METHODS: &[&MethodSpec] = &[LORETTA, TT_LORA];

impl Method {
    /// LoRETTA (Yang et al. 2024, arXiv:2402.11417): the two factors of a LoRA, each as a tensor train.
    pub const LORETTA: Self = Self(LORETTA);
    /// TT-LoRA (Anjum et al. 2024, arXiv:2408.01008): the whole update as one tensor train.
    pub const TT_LORA: Self = Self(TT_LORA);
}

/// A tensor train that is open at its end.
#[derive(Module, Debug)]
pub struct Chain<B: Backend> {
    /// Cores `[rank, mode, next rank]`; the first rank is 1, the last one is the matrix's width.
    pub cores: Vec<Param<Tensor<B, 3>>>,
    /// Rows of the matrix, at most the product of the modes.
    pub rows: usize,
}

impl<B: Backend> Chain<B> {
    /// Newly initialized cores; the entries of the matrix have variance `variance`, or are zero if `zero`:
    /// then the core at the open end is zero, so that all the others get gradients as soon as it moves.
    fn init(
        key: &str,
        (rows, modes): (usize, &[usize]),
        ranks: &[usize],
        variance: f64,
        zero: bool,
        seed: u64,
        device: &B::Device,
    ) -> Self {
        // An entry is a sum over all inner ranks of products of one entry of each core.
        let paths: f64 = ranks[1..ranks.len() - 1].iter().map(|&r| r as f64).product();
        let std = (variance / paths).powf(0.5 / modes.len() as f64);
        let last = modes.len() - 1;
        let core = |k: usize| {
            let shape = [ranks[k], modes[k], ranks[k + 1]];
            if zero && k == last {
                Tensor::zeros(shape, device)
            } else {
                normal(seed, &format!("{key}.{k}"), shape, std, device)
            }
        };
        Self { cores: (0..modes.len()).map(|k| Param::from_tensor(core(k))).collect(), rows }
    }

    /// A train of given cores.
    pub(crate) fn from_cores(cores: Vec<Tensor<B, 3>>, rows: usize) -> Self {
        Self { cores: cores.into_iter().map(Param::from_tensor).collect(), rows }
    }

    /// The matrix, shape `[rows, width]`.
    pub fn contract(&self) -> Tensor<B, 2> {
        let mut modes = 1;
        let mut product: Option<Tensor<B, 2>> = None; // [modes so far, rank]
        for core in &self.cores {
            let [left, mode, right] = core.dims();
            let core = core.val();
            product = Some(match product {
                None => core.reshape([mode, right]),
                Some(p) => p.matmul(core.reshape([left, mode * right])).reshape([modes * mode, right]),
            });
            modes *= mode;
        }
        match product {
            Some(p) if modes > self.rows => p.narrow(0, 0, self.rows),
            Some(p) => p,
            None => Tensor::zeros([self.rows, 0], &Default::default()),
        }
    }
}

/// A pair of factors in tensor-train form for one site: `ΔW = scale·A·B`.
#[derive(Module, Debug)]
pub struct TtPair<B: Backend> {
    /// `A`, `[d_input, rank]`.
    pub left: Chain<B>,
    /// `Bᵀ`, `[d_output, rank]`.
    pub right: Chain<B>,
    /// Factor on the update.
    pub scale: f64,
}

impl<B: Backend> TtPair<B> {
    /// Newly initialized cores whose update is zero.
    ///
    /// LoRETTA: the two matrices of a LoRA, each a train whose last mode is the LoRA's rank. TT-LoRA: one
    /// train over the modes of both widths, open in the middle, all its ranks equal. Widths are split into
    /// `tt_order` factors, with padding if they have none.
    ///
    /// # Errors
    /// A width that cannot be split.
    pub fn new(config: &AdapterConfig, site: &Site, device: &B::Device) -> Result<Self> {
        let rank = config.rank_of(site);
        let (order, inner_rank) = (config.option(ORDER.name), config.option("tt-rank"));
        let is_loretta = config.method == Method::LORETTA;
        let chain = |width: usize, name: &str, zero: bool| -> Result<Chain<B>> {
            let split = DimFactors::balanced(width, order)?;
            let mut modes = split.factors().to_vec();
            let inner = if is_loretta { inner_rank } else { rank };
            let mut ranks = vec![inner; modes.len() + 1];
            ranks[0] = 1;
            let last = modes.len();
            ranks[last] = rank;
            if is_loretta {
                // The rank index gets a separate mode: the last core holds only the transition into it.
                ranks[last] = inner_rank.min(rank);
                modes.push(1);
                ranks.push(rank);
            }
            // The same range as the entries of a newly initialized LoRA's `A`.
            let variance = 1.0 / (3.0 * width as f64);
            let key = format!("{}.{name}", site.path);
            Ok(Chain::init(&key, (width, &modes), &ranks, variance, zero, config.seed, device))
        };
        Ok(Self {
            left: chain(site.d_input, "tt_left", false)?,
            right: chain(site.d_output, "tt_right", true)?,
            scale: config.scale_of(site),
        })
    }

    /// The update as a pair, exactly: `[d_input, rank]` and `[rank, d_output]`.
    pub fn factors(&self) -> (Tensor<B, 2>, Tensor<B, 2>) {
        (self.left.contract(), self.right.contract().transpose())
    }
}

impl<B: Backend> Factors<B> for TtPair<B> {
    fn init(fresh: &Fresh<'_, B>) -> Result<Self> {
        Self::new(fresh.config, fresh.site(), fresh.device)
    }

    fn pair(&self, _slice: usize) -> Option<Pair<B>> {
        let (a, b) = self.factors();
        Some(Pair { a, b, scale: self.scale })
    }

    fn roles(&self) -> Vec<(ParamId, FactorRole)> {
        let of = |chain: &Chain<B>, role| chain.cores.iter().map(|core| (core.id, role)).collect::<Vec<_>>();
        [of(&self.left, FactorRole::First), of(&self.right, FactorRole::Second)].concat()
    }

    fn read(file: &mut Reader<'_, B>) -> Result<()> {
        codec::read(file);
        Ok(())
    }

    fn write(&self, slots: &[&Slot], file: &mut Writer<'_>) -> Result<()> {
        codec::write(self, slots[0], file);
        Ok(())
    }

    fn own_sites(folder: &AdapterFolder) -> Result<Vec<OwnSite>> {
        Ok(codec::own_sites(folder))
    }
}
