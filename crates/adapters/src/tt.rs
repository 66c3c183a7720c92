//! Adapters in tensor-train form: LoRETTA's factors, and TT-LoRA's update.
//!
//! A tensor train with one open end is a matrix `[d, r]`: the modes before the end, multiplied together, count
//! its rows, and the rank at the end its columns. Two of them make `A` and `B` of a LoRA, so that both methods
//! run on factors of `d·r` numbers, never on a matrix of `d²`, and are a LoRA exactly.

use burn::module::Param;
use burn::prelude::*;
use lowrank_factor::tt::DimFactors;

use crate::config::{AdapterConfig, Method};
use crate::error::Result;
use crate::init::normal;
use lowrank_spec::Site;

/// A tensor train that is open at its end.
#[derive(Module, Debug)]
pub struct Chain<B: Backend> {
    /// Cores `[rank, mode, next rank]`; the first rank is 1, the last one the matrix's width.
    pub cores: Vec<Param<Tensor<B, 3>>>,
    /// Rows of the matrix, at most the product of the modes.
    pub rows: usize,
}

impl<B: Backend> Chain<B> {
    /// Fresh cores; the entries of the matrix have variance `variance`, or are zero if `zero`: then the core
    /// at the open end is, so that all the others get gradients as soon as it moves.
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

    /// A chain of given cores.
    pub fn from_cores(cores: Vec<Tensor<B, 3>>, rows: usize) -> Self {
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
    /// Fresh cores whose update is zero.
    ///
    /// LoRETTA (Yang et al. 2024, arXiv:2402.11417): the two matrices of a LoRA, each a train whose last mode is the
    /// LoRA's rank. TT-LoRA (Anjum et al. 2024, arXiv:2408.01008): one train over the modes of both widths, open
    /// in the middle, all its ranks equal. Widths are split into `tt_order` factors, padded where they have none.
    ///
    /// # Errors
    /// A width that cannot be split.
    pub fn init(config: &AdapterConfig, site: &Site, device: &B::Device) -> Result<Self> {
        let rank = config.rank_of(site);
        let chain = |width: usize, name: &str, zero: bool| -> Result<Chain<B>> {
            let split = DimFactors::balanced(width, config.tt_order)?;
            let mut modes = split.factors().to_vec();
            let inner = if config.method == Method::Loretta { config.tt_rank } else { rank };
            let mut ranks = vec![inner; modes.len() + 1];
            ranks[0] = 1;
            let last = modes.len();
            ranks[last] = rank;
            if config.method == Method::Loretta {
                // The rank is a mode of its own: the last core holds nothing but the way into it.
                ranks[last] = config.tt_rank.min(rank);
                modes.push(1);
                ranks.push(rank);
            }
            // As wide as the entries of a fresh LoRA's `A`.
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
