//! Large products on a GPU: their type, and which of compression's run there.

use std::sync::Arc;

use anyhow::{Result, bail};
use burn::tensor::backend::Backend;
use lowrank_checkpoint::FloatType;
use lowrank_compress::{DeviceProducts, Products};
use lowrank_kernels::{Kernels, Precision};

use crate::backend::{DRIVER, Inner, device};

/// Makes a type that of the device's products.
///
/// # Errors
/// For a type of 16 bits, in a build for the CPU or on a device that does not compute in it.
pub(crate) fn choose_precision(dtype: FloatType) -> Result<()> {
    let precision = match dtype {
        FloatType::F32 => Precision::F32,
        FloatType::F16 => Precision::F16,
        FloatType::BF16 => Precision::Bf16,
    };
    if precision == Precision::F32 {
        return Ok(());
    }
    let name = dtype.name();
    if DRIVER.is_none() {
        bail!("--precision {name} is for GPUs, and this build computes on the CPU in f32; leave it out");
    }
    if !Inner::supports_dtype(&device()?, precision.dtype()) {
        bail!(
            "--precision {name}: this GPU does not compute in {name}; leave it out, or try the other of f16 and bf16"
        );
    }
    precision.choose();
    Ok(())
}

/// The GPU as the place of large products, if the build has one and the machine too: all of that work can be done on the host.
pub(crate) fn products() -> Option<Arc<dyn Products>> {
    if Inner::ON_HOST {
        return None;
    }
    device().ok().map(|device| Arc::new(DeviceProducts::<Inner>::new(device)) as Arc<dyn Products>)
}
