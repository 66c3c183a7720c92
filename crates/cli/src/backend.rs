//! The backend of this build: a requested backend takes precedence over the default (cuda, vulkan, metal, ndarray,
//! flex).

use anyhow::{Result, bail};
use burn::backend::Autodiff;

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
pub(crate) const DRIVER: Option<&str> = match NAME.as_bytes() {
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
