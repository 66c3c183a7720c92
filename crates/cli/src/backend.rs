//! The backend of this build: a requested backend takes precedence over the default (cuda, vulkan, metal, ndarray,
//! flex).

use std::sync::Arc;

use anyhow::{Result, bail};
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use lowrank_checkpoint::FloatType;
use lowrank_compress::{DeviceProducts, Products};
use lowrank_kernels::{Kernels, Precision};

#[cfg(feature = "cuda")]
mod chosen {
    pub(crate) type Inner = burn_cuda::Cuda;
    pub(crate) const NAME: &str = "cuda";
}
#[cfg(all(feature = "vulkan", not(feature = "cuda")))]
mod chosen {
    pub(crate) type Inner = burn_wgpu::Vulkan;
    pub(crate) const NAME: &str = "vulkan";
}
#[cfg(all(feature = "metal", not(any(feature = "cuda", feature = "vulkan"))))]
mod chosen {
    pub(crate) type Inner = burn_wgpu::Metal;
    pub(crate) const NAME: &str = "metal";
}
#[cfg(all(feature = "ndarray", not(any(feature = "cuda", feature = "vulkan", feature = "metal"))))]
mod chosen {
    pub(crate) type Inner = burn_ndarray::NdArray;
    pub(crate) const NAME: &str = "ndarray";
}
#[cfg(not(any(feature = "cuda", feature = "vulkan", feature = "metal", feature = "ndarray")))]
mod chosen {
    #[cfg(not(feature = "flex"))]
    compile_error!("a build needs one of the features flex, ndarray, vulkan, metal and cuda");
    pub(crate) type Inner = burn_flex::Flex;
    pub(crate) const NAME: &str = "flex";
}

pub(crate) use chosen::{Inner, NAME};

/// The backend with autodiff.
pub(crate) type Train = Autodiff<Inner>;
/// Its device.
pub(crate) type Device = burn::tensor::Device<Inner>;

/// What a build for GPUs needs on the machine.
const DRIVER: Option<&str> = match NAME.as_bytes() {
    b"cuda" => Some("CUDA driver"),
    b"vulkan" => Some("Vulkan device"),
    b"metal" => Some("Metal device"),
    _ => None,
};

/// The device to run on.
///
/// # Errors
/// In a build for GPUs on a machine without a driver.
pub(crate) fn device() -> Result<Device> {
    let device = Device::default();
    if let Some(driver) = DRIVER
        && !answers(&device)
    {
        bail!(
            "no {driver} was found on this machine; build for the CPU with `cargo build --release -p lowrank`, \
             or run where one is installed"
        );
    }
    Ok(device)
}

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
    let Some(driver) = DRIVER else {
        bail!("--precision {name} is for GPUs, and this build computes on the CPU in f32; leave it out");
    };
    if !Inner::supports_dtype(&device()?, precision.dtype()) {
        bail!(
            "--precision {name}: this {driver} does not compute in {name}; leave it out, or try the other of f16 and bf16"
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

/// Whether the device can add numbers: GPU runtimes report a missing driver by panicking on a thread of their
/// own.
#[allow(clippy::clone_on_copy, reason = "not every backend's device is Copy")]
fn answers(device: &Device) -> bool {
    let device = device.clone();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let probe = std::thread::spawn(move || {
        burn::tensor::Tensor::<Inner, 1>::ones([2], &device).sum().into_data().iter::<f32>().next()
            == Some(2.0)
    });
    let result = probe.join().unwrap_or(false);
    std::panic::set_hook(hook);
    result
}
