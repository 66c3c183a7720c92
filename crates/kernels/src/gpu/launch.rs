//! Tensors as arrays of a launch, and its extent.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl::calculate_cube_count_elemwise;
use burn_cubecl::cubecl::client::ComputeClient;
use burn_cubecl::cubecl::ir::StorageType;
use burn_cubecl::cubecl::ir::features::Plane;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

use super::math::UNITS;

/// Whether the kernels take these tensors: `f32`, with indices of 32 bits.
pub(super) fn fit<'a, R: CubeRuntime>(tensors: impl IntoIterator<Item = &'a CubeTensor<R>>) -> bool {
    tensors.into_iter().all(|tensor| {
        tensor.dtype == DType::F32 && tensor.qparams.is_none() && elements(tensor) < i32::MAX as usize
    })
}

/// Whether masks can be computed on the device: their hash has 64 bits.
pub(super) fn has_u64<R: CubeRuntime>(tensor: &CubeTensor<R>) -> bool {
    tensor.client.properties().supports_type(StorageType::from(DType::U64))
}

/// The number of neighbouring units that share a row of `width` elements: 1, 2, 4 or 8.
pub(super) fn lanes<R: CubeRuntime>(client: &ComputeClient<R>, width: usize) -> usize {
    let most = if client.features().plane.contains(Plane::Ops) {
        client.properties().hardware.plane_size_min as usize
    } else {
        1
    };
    let fits = |&lanes: &usize| lanes <= most && width.is_multiple_of(lanes) && width / lanes >= 16;
    [8, 4, 2].into_iter().find(fits).unwrap_or(1)
}

pub(super) fn elements<R: CubeRuntime>(tensor: &CubeTensor<R>) -> usize {
    tensor.meta.num_elements()
}

/// `[rows, width]`.
pub(super) fn dims2<R: CubeRuntime>(tensor: &CubeTensor<R>) -> [usize; 2] {
    tensor.shape().dims()
}

/// The same with its elements in the order of rows.
pub(super) fn packed<R: CubeRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    into_contiguous(tensor)
}

/// The same in the order of rows and in memory that nothing else has.
pub(super) fn owned<R: CubeRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    let tensor = packed(tensor);
    // A copy may have its rows apart, as suits the device.
    if tensor.can_mut() { tensor } else { packed(tensor.copy()) }
}

/// Memory for a tensor of this shape.
pub(super) fn empty<R: CubeRuntime, const D: usize>(
    like: &CubeTensor<R>,
    shape: [usize; D],
) -> CubeTensor<R> {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, shape.into(), DType::F32)
}

/// Memory for a tensor of the same shape.
pub(super) fn empty_like<R: CubeRuntime>(like: &CubeTensor<R>) -> CubeTensor<R> {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, like.shape(), DType::F32)
}

/// A unit for each element.
pub(super) fn spread<R: CubeRuntime>(tensor: &CubeTensor<R>) -> (CubeCount, CubeDim) {
    spread_over(tensor, elements(tensor))
}

/// As many units.
pub(super) fn spread_over<R: CubeRuntime>(like: &CubeTensor<R>, units: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new_1d(UNITS as u32);
    (calculate_cube_count_elemwise(&like.client, units, dim), dim)
}

/// A cube for each row; those past the last row have nothing to do.
pub(super) fn by_row(rows: usize) -> (CubeCount, CubeDim) {
    const WIDTH: usize = 32 * 1024;
    let (across, down) = (rows.min(WIDTH), rows.div_ceil(WIDTH));
    (CubeCount::Static(across as u32, down as u32, 1), CubeDim::new_1d(UNITS as u32))
}
