//! Where the large products of randomized decompositions are computed.

use std::fmt::Debug;
use std::sync::MutexGuard;

use lowrank_factor::svd::{AutoSvd, exact, sampled};
use lowrank_factor::{FactorError, HostMatrix, MatRef, MatrixProducts, Subspace, Svd, Truncation, subspace};

/// A place for large products, such as a GPU. `DeviceProducts` (feature `run`) is the one of a burn backend.
pub trait Products: Debug + Send + Sync {
    /// Puts a matrix there.
    ///
    /// # Errors
    /// An empty matrix, non-finite values, any error of the device.
    fn hold(&self, a: MatRef<'_, f32>) -> Result<Box<dyn MatrixProducts<Scalar = f32>>, FactorError>;

    /// Waits for the other threads' matrices to leave: a device works on one at a time, and has no room for those of all cores.
    fn turn(&self) -> MutexGuard<'_, ()>;
}

/// Enough triplets for a truncation: randomized where [`svd::auto`](lowrank_factor::svd::auto) is, with products in that
/// place, or on the host.
///
/// # Errors
/// Those of the truncation, the decomposition and the products.
pub(crate) fn triplets(
    a: MatRef<'_, f32>,
    truncation: &Truncation,
    products: Option<&dyn Products>,
) -> Result<Svd<f32>, FactorError> {
    let found = match products {
        Some(products) => {
            let _turn = products.turn();
            sampled(a.shape(), truncation, 0, || products.hold(a))?
        }
        None => sampled(a.shape(), truncation, 0, || HostMatrix::new(a))?,
    };
    found.map_or_else(|| exact(a), |AutoSvd { svd, .. }| Ok(svd))
}

/// The leading subspace of a matrix. If no more than `rank` vectors are wanted, and products are computed in another place than
/// the host, where sampling is worthwhile, it has these and their errors only; else all of them.
///
/// # Errors
/// Those of the decomposition and the products.
pub(crate) fn leading(
    a: MatRef<'_, f32>,
    rank: Option<usize>,
    products: Option<&dyn Products>,
) -> Result<Subspace<f32>, FactorError> {
    if let (Some(rank), Some(products)) = (rank, products) {
        let turn = products.turn();
        let found = sampled(a.shape(), &Truncation::Rank(rank), 0, || products.hold(a))?;
        drop(turn);
        if let Some(found) = found {
            return Subspace::of_svd(&found.svd);
        }
    }
    subspace::leading(a)
}
