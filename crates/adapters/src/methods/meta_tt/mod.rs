//! MetaTT: the updates of all layers and kinds of map as one tensor train,
//! `ΔW_{layer, kind} = scale·G₁·G₂[layer]·G₃[kind]·G₄`.
//!
//! The train has four cores over input width, layers, kinds and output width (MetaTT-4D): `r·(d_input + d_output) +
//! (layers + kinds)·r²` parameters for a group of sites of one shape.
//!
//! Files: `meta_tt.first` `[d_input, r]`, `meta_tt.layers` `[layers, r, r]`, `meta_tt.kinds` `[kinds, r, r]`
//! and `meta_tt.last` `[r, d_output]`, as in memory; layers and kinds in the order of `target_modules` (or
//! `groups`).

use burn::module::{Param, ParamId};
use burn::prelude::*;
use lowrank_spec::Site;

use super::{Adapter, FactorRole, Factors, Fresh, Method, MethodSpec, Sharing};
use crate::error::Result;
use crate::methods::lorta::{Place, places};
use crate::peft::{AdapterFolder, Found, OwnSite, Reader, Writer, group_key};
use crate::set::{Pair, Slot};

const KEY: &str = "meta_tt";

const META_TT: &MethodSpec = &MethodSpec {
    sharing: Sharing::Shape,
    ..MethodSpec::new("meta-tt", "META_TT", "The updates of all layers as one tensor train")
};

pub(super) const METHODS: &[&MethodSpec] = &[META_TT];

impl Method {
    /// MetaTT (Lopez-Piqueres et al. 2025, arXiv:2506.09105): the updates of all layers as one tensor train.
    pub const META_TT: Self = Self(META_TT);
}

/// The train of one group of sites.
#[derive(Module, Debug)]
pub struct MetaTt<B: Backend> {
    /// `G₁`, shape `[d_input, rank]`.
    pub first: Param<Tensor<B, 2>>,
    /// `G₂`, shape `[layers, rank, rank]`.
    pub layers: Param<Tensor<B, 3>>,
    /// `G₃`, shape `[kinds, rank, rank]`.
    pub kinds: Param<Tensor<B, 3>>,
    /// `G₄`, shape `[rank, d_output]`.
    pub last: Param<Tensor<B, 2>>,
    /// Rows of `layers` and `kinds` of each slice.
    #[module(skip)]
    pub places: Vec<Place>,
    /// Factor on the update.
    pub scale: f64,
}

impl<B: Backend> MetaTt<B> {
    /// Newly initialized cores whose update is zero, in the paper's best variant: the first zero, the others
    /// identities.
    pub fn new(sites: &[&Site], rank: usize, scale: f64, device: &B::Device) -> Self {
        let Site { d_input, d_output, .. } = *sites[0];
        let (places, [n_layers, n_kinds]) = places(sites);
        let identities = |n: usize| {
            let eye: Tensor<B, 2> = Tensor::eye(rank, device);
            Param::from_tensor(eye.unsqueeze::<3>().repeat_dim(0, n))
        };
        // An identity as wide as the output.
        let width = rank.max(d_output);
        let eye: Tensor<B, 2> = Tensor::eye(width, device);
        Self {
            first: Param::from_tensor(Tensor::zeros([d_input, rank], device)),
            layers: identities(n_layers),
            kinds: identities(n_kinds),
            last: Param::from_tensor(eye.narrow(0, 0, rank).narrow(1, 0, d_output)),
            places,
            scale,
        }
    }

    /// The inner dimension.
    pub fn rank(&self) -> usize {
        self.first.dims()[1]
    }

    fn read_group(file: &mut Reader<'_, B>, group: &[&Found], key: &str) -> Option<Adapter<B>> {
        let (rank, scale) = (file.config().r, file.config().scale_of(&group[0].path));
        let sites: Vec<&Site> = group.iter().map(|found| file.site(found)).collect();
        let (places, [n_layers, n_kinds]) = places(&sites);
        let (d_input, d_output) = (sites[0].d_input, sites[0].d_output);
        let first = file.plain(&format!("{key}.first"), [d_input, rank]).map(Param::from_tensor);
        let layers = file.plain(&format!("{key}.layers"), [n_layers, rank, rank]).map(Param::from_tensor);
        let kinds = file.plain(&format!("{key}.kinds"), [n_kinds, rank, rank]).map(Param::from_tensor);
        let last = file.plain(&format!("{key}.last"), [rank, d_output]).map(Param::from_tensor);
        let train = Self { first: first?, layers: layers?, kinds: kinds?, last: last?, places, scale };
        Some(Adapter::MetaTt(train))
    }
}

impl<B: Backend> Factors<B> for MetaTt<B> {
    fn init(fresh: &Fresh<'_, B>) -> Result<Self> {
        Ok(Self::new(&fresh.sites, fresh.rank(), fresh.scale(), fresh.device))
    }

    fn pair(&self, slice: usize) -> Option<Pair<B>> {
        let (Place { layer, kind }, rank) = (self.places[slice], self.rank());
        let core = |cores: &Param<Tensor<B, 3>>, at: usize| -> Tensor<B, 2> {
            cores.val().narrow(0, at, 1).reshape([rank, rank])
        };
        let inner = core(&self.layers, layer).matmul(core(&self.kinds, kind)); // [rank, rank]
        Some(Pair { a: self.first.val(), b: inner.matmul(self.last.val()), scale: self.scale })
    }

    fn roles(&self) -> Vec<(ParamId, FactorRole)> {
        vec![
            (self.first.id, FactorRole::First),
            (self.layers.id, FactorRole::Core),
            (self.kinds.id, FactorRole::Core),
            (self.last.id, FactorRole::Second),
        ]
    }

    fn read(file: &mut Reader<'_, B>) -> Result<()> {
        let found = file.listed();
        file.grouped(&found, KEY, Self::read_group);
        Ok(())
    }

    fn write(&self, slots: &[&Slot], file: &mut Writer<'_>) -> Result<()> {
        let key = file.group(KEY, slots);
        file.plain(format!("{key}.first"), self.first.val());
        file.plain(format!("{key}.layers"), self.layers.val());
        file.plain(format!("{key}.kinds"), self.kinds.val());
        file.plain(format!("{key}.last"), self.last.val());
        for slot in slots {
            file.note(META_TT.peft_type, slot, self.rank(), self.scale);
        }
        Ok(())
    }

    fn own_sites(folder: &AdapterFolder) -> Result<Vec<OwnSite>> {
        let groups = folder.own_groups(".meta_tt").into_iter().enumerate();
        let sites = groups.flat_map(|(index, group)| {
            let key = group_key(KEY, index);
            let d_input = folder.side(&format!("{key}.first"), 0).unwrap_or(0);
            let d_output = folder.side(&format!("{key}.last"), 1).unwrap_or(0);
            group.into_iter().map(move |path| OwnSite { path, widths: [d_input, d_output], embedding: false })
        });
        Ok(sites.collect())
    }
}
