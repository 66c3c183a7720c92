//! The methods of adaptation: a folder each, with its config, initial values, update and file layout, and one line in
//! the [registry](Adapter).
//!
//! A method is a burn module that implements [`Factors`], and the [`MethodSpec`]s under which it is configured. To add
//! one, write its folder and add its line to `registry!` below; the command line, files, merging, conversion and the
//! adapter laws take it from there.

pub mod correction;
pub mod lora;
mod lora_xs;
pub mod lorta;
pub mod lotr;
pub mod meta_tt;
mod spec;
pub mod tt;
pub mod vera;

use burn::module::ParamId;
use burn::prelude::*;
use lowrank_kernels::{Dropout, Kernels, linear};

pub use self::spec::{Fresh, Method, MethodSpec, OptionKind, OptionSpec, Options, Sharing};
use crate::error::Result;
use crate::forward::{BaseLinear, dropped, low_rank};
use crate::peft::{AdapterFolder, OwnSite, Reader, Writer};
use crate::set::{Pair, Slot};

/// What a trained tensor is to its method: the group it belongs to in an optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FactorRole {
    /// A factor on the input's side (`A` of a LoRA).
    First,
    /// A factor on the output's side (`B` of a LoRA): LoRA+ (Hayou et al. 2024) gives it a higher learning rate.
    Second,
    /// A core between outer factors.
    Core,
    /// A vector that scales or shifts (DoRA's magnitudes, VeRA's vectors, biases).
    Vector,
    /// A full-size matrix.
    Full,
}

/// The factors of one adapter, which serves one site or several (its slices).
///
/// Row-vector convention: `ΔW` `[d_input, d_output]` is added to `W` in `y = x·W + b`.
pub trait Factors<B: Backend>: Sized {
    /// Fresh factors whose update is zero.
    ///
    /// # Errors
    /// A base weight that is not available, values outside the method's range.
    fn init(fresh: &Fresh<'_, B>) -> Result<Self>;

    /// The update of a slice as two factors on the device; `None` where it is not kept as factors.
    fn pair(&self, slice: usize) -> Option<Pair<B>>;

    /// The role of each parameter.
    fn roles(&self) -> Vec<(ParamId, FactorRole)>;

    /// Reads all adapters of this type from a file.
    ///
    /// # Errors
    /// A base weight that is not available. What does not fit is noted in the reader.
    fn read(file: &mut Reader<'_, B>) -> Result<()>;

    /// Writes the factors under the paths of `slots`.
    ///
    /// # Errors
    /// Values that are not finite.
    fn write(&self, slots: &[&Slot], file: &mut Writer<'_>) -> Result<()>;

    /// The modules that a file adapts, with their widths taken from the shapes of the factors.
    ///
    /// # Errors
    /// Files that do not hold the widths.
    fn own_sites(folder: &AdapterFolder) -> Result<Vec<OwnSite>>;

    /// The update of a slice as two factors, computed where it is kept in full.
    ///
    /// # Errors
    /// Values that are not finite.
    fn to_pair(&self, slice: usize) -> Result<Option<Pair<B>>> {
        Ok(self.pair(slice))
    }

    /// `ΔW` of a slice, shape `[d_input, d_output]`, without what depends on the base's weight.
    fn delta_weight(&self, slice: usize) -> Option<Tensor<B, 2>> {
        self.pair(slice).map(|pair| pair.product())
    }

    /// What the adapter adds to a weight `[d_input, d_output]`.
    fn change(&self, slice: usize, _weight: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
        self.delta_weight(slice)
    }

    /// What the adapter adds to a site's bias, shape `[d_output]`.
    fn bias(&self, _slice: usize) -> Option<Tensor<B, 1>> {
        None
    }

    /// Whether the update depends on the base's weight (DoRA).
    fn depends_on_base(&self) -> bool {
        false
    }

    /// Whether [`project`](Self::project) does anything.
    fn needs_projection(&self) -> bool {
        false
    }

    /// Brings full-size updates back to their rank.
    ///
    /// # Errors
    /// Values that are not finite.
    fn project(self) -> Result<Self> {
        Ok(self)
    }

    /// `x·ΔW` and the update's bias, for updates that do not depend on the base.
    ///
    /// # Shapes
    /// - `x`: `[rows, d_input]`, output: `[rows, d_output]`
    fn update(&self, slice: usize, x: Tensor<B, 2>) -> Option<Tensor<B, 2>>
    where
        B: Kernels,
    {
        let y = match self.pair(slice) {
            Some(pair) => pair.apply(x),
            None => linear(x, self.delta_weight(slice)?, None),
        };
        Some(match self.bias(slice) {
            Some(bias) => y + bias.unsqueeze(),
            None => y,
        })
    }

    /// Base output and update of a site, in one step where the base is one matrix.
    ///
    /// # Shapes
    /// - `x`: `[rows, d_input]`, output: `[rows, d_output]`
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
        let y = match self.pair(slice) {
            Some(pair) => low_rank(pair, x, base, true, drop),
            None => {
                let y = base.apply(x.clone(), true);
                return match self.update(slice, dropped(x, drop)) {
                    Some(update) => y + update,
                    None => y,
                };
            }
        };
        match self.bias(slice) {
            Some(bias) => y + bias.unsqueeze(),
            None => y,
        }
    }

    /// What the adapter adds to rows of an embedding.
    ///
    /// # Shapes
    /// - `ids`: `[tokens]`; `rows`: `[tokens, d_output]`, the base's rows of these ids; output: as `rows`
    fn embed(
        &self,
        slice: usize,
        ids: Tensor<B, 1, Int>,
        _rows: &Tensor<B, 2>,
        _through_base: &dyn Fn(Tensor<B, 2>) -> Tensor<B, 2>,
    ) -> Option<Tensor<B, 2>>
    where
        B: Kernels,
    {
        let pair = self.pair(slice)?;
        Some(linear(pair.a.select(0, ids), pair.b, None) * pair.scale) // [tokens, d_output]
    }
}

/// Makes the enum of adapters and everything that goes by method from one line for each type.
macro_rules! registry {
    ($($(#[$doc:meta])* $variant:ident = $module:ident::$type:ident;)*) => {
        /// One adapter: the factors of one site, or factors that several sites share.
        #[derive(Module, Debug)]
        #[allow(clippy::large_enum_variant, reason = "a burn module cannot be boxed; the variants hold handles")]
        pub enum Adapter<B: Backend> {
            $($(#[$doc])* $variant($module::$type<B>),)*
        }

        impl Method {
            /// Every method, in the order of the registry.
            pub fn all() -> impl Iterator<Item = Self> {
                [$($module::METHODS),*].into_iter().flatten().map(|spec| Self(spec))
            }
        }

        impl<B: Backend> Adapter<B> {
            /// Fresh factors of the method that the config names.
            pub(crate) fn init(fresh: &Fresh<'_, B>) -> Result<Self> {
                $(if fresh.config.method.is_one_of($module::METHODS) {
                    return Ok(Self::$variant($module::$type::init(fresh)?));
                })*
                Err(fresh.config.method.unregistered())
            }

            /// Reads the adapters of a file by its `peft_type`.
            pub(crate) fn read(file: &mut Reader<'_, B>) -> Result<()> {
                $(if file.is_of($module::METHODS) {
                    return <$module::$type<B> as Factors<B>>::read(file);
                })*
                Ok(())
            }

            /// The modules that a file adapts.
            pub(crate) fn own_sites(
                folder: &AdapterFolder,
            ) -> Result<Vec<OwnSite>> {
                $(if $module::METHODS.iter().any(|spec| spec.peft_type == folder.config.peft_type) {
                    return <$module::$type<B> as Factors<B>>::own_sites(folder);
                })*
                Ok(Vec::new())
            }

            pub(crate) fn write(&self, slots: &[&Slot], file: &mut Writer<'_>) -> Result<()> {
                match self { $(Self::$variant(it) => it.write(slots, file),)* }
            }

            pub(crate) fn project(self) -> Result<Self> {
                Ok(match self { $(Self::$variant(it) => Self::$variant(it.project()?),)* })
            }

            /// The update of a slice as two factors; `None` where it is kept in full. Magnitudes are not part of it.
            pub fn pair(&self, slice: usize) -> Option<Pair<B>> {
                match self { $(Self::$variant(it) => it.pair(slice),)* }
            }

            /// The update of a slice as two factors, computed where it is kept in full.
            ///
            /// # Errors
            /// Values that are not finite.
            pub(crate) fn to_pair(&self, slice: usize) -> Result<Option<Pair<B>>> {
                match self { $(Self::$variant(it) => it.to_pair(slice),)* }
            }

            /// The role of each parameter.
            pub fn roles(&self) -> Vec<(ParamId, FactorRole)> {
                match self { $(Self::$variant(it) => it.roles(),)* }
            }

            /// `ΔW` of a slice without magnitudes, shape `[d_input, d_output]`.
            pub fn delta_weight(&self, slice: usize) -> Option<Tensor<B, 2>> {
                match self { $(Self::$variant(it) => it.delta_weight(slice),)* }
            }

            pub(crate) fn change(&self, slice: usize, weight: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
                match self { $(Self::$variant(it) => it.change(slice, weight),)* }
            }

            pub(crate) fn bias(&self, slice: usize) -> Option<Tensor<B, 1>> {
                match self { $(Self::$variant(it) => it.bias(slice),)* }
            }

            /// Whether its update depends on the base's weight (DoRA's magnitudes).
            pub(crate) fn depends_on_base(&self) -> bool {
                match self { $(Self::$variant(it) => it.depends_on_base(),)* }
            }

            pub(crate) fn needs_projection(&self) -> bool {
                match self { $(Self::$variant(it) => it.needs_projection(),)* }
            }

            pub(crate) fn update(&self, slice: usize, x: Tensor<B, 2>) -> Option<Tensor<B, 2>>
            where
                B: Kernels,
            {
                match self { $(Self::$variant(it) => it.update(slice, x),)* }
            }

            pub(crate) fn forward(
                &self,
                slice: usize,
                x: Tensor<B, 2>,
                base: &dyn BaseLinear<B>,
                drop: Option<Dropout>,
            ) -> Tensor<B, 2>
            where
                B: Kernels,
            {
                match self { $(Self::$variant(it) => it.forward(slice, x, base, drop),)* }
            }

            pub(crate) fn embed(
                &self,
                slice: usize,
                ids: Tensor<B, 1, Int>,
                rows: &Tensor<B, 2>,
                through_base: &dyn Fn(Tensor<B, 2>) -> Tensor<B, 2>,
            ) -> Option<Tensor<B, 2>>
            where
                B: Kernels,
            {
                match self { $(Self::$variant(it) => it.embed(slice, ids, rows, through_base),)* }
            }
        }
    };
}

registry! {
    /// LoRA, DoRA and LoRA-FA.
    Lora = lora::Lora;
    /// LoRA-XS.
    LoraXs = lora_xs::LoraXs;
    /// LoTR.
    Lotr = lotr::Lotr;
    /// VeRA.
    Vera = vera::Vera;
    /// LoRETTA and TT-LoRA.
    Tt = tt::TtPair;
    /// LoRTA.
    Lorta = lorta::Lorta;
    /// MetaTT.
    MetaTt = meta_tt::MetaTt;
    /// Full-size corrections of low rank.
    Correction = correction::Correction;
}
