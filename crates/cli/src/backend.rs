//! The backend of this build: a requested backend takes precedence over the default (cuda, vulkan, metal, ndarray,
//! flex).

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex};

use anyhow::{Result, anyhow, bail};
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

/// Runs a command. In a build for GPUs, whose runtimes report full memory and lost devices by panicking on a thread of
/// their own, the first panic is its error.
pub(crate) fn with_failures(command: impl FnOnce() -> Result<()>) -> Result<()> {
    if DRIVER.is_none() {
        return command();
    }
    let first = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&first);
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("a panic without a message");
        if let Ok(mut seen) = seen.lock() {
            seen.get_or_insert_with(|| failure(&place, message));
        }
    }));
    catch_unwind(AssertUnwindSafe(command)).unwrap_or_else(|panic| {
        match first.lock().ok().and_then(|mut first| first.take()) {
            Some(failure) => Err(anyhow!(failure)),
            // An unwinding without a panic is for others.
            None => resume_unwind(panic),
        }
    })
}

/// What a panic of a GPU's runtime means, and what to do.
fn failure(place: &str, message: &str) -> String {
    // What follows are backtraces.
    let line = message.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let all = message.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| all.contains(word));
    if says(&[
        "out of memory",
        "outofmemory",
        "out_of_memory",
        "allocate buffer",
        "buffertoobig",
        "buffer too big",
    ]) {
        format!(
            "the GPU's memory is full ({line}): lower --batch-size or --max-length; for language models set --recompute or \
             --base-bits 4"
        )
    } else if says(&["device lost", "device is lost", "devicelost", "timeout", "timed out"]) {
        format!(
            "the GPU was lost ({line}): drivers end computations that take too long; lower --batch-size or --max-length"
        )
    } else {
        format!("internal error at {place}: {line}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_say_what_to_do() {
        let full = failure("a.rs:1:2", "wgpu error: Out of Memory\n  not enough memory left");
        assert!(
            full.starts_with("the GPU's memory is full (wgpu error: Out of Memory): lower --batch-size"),
            "{full}"
        );
        let big = failure(
            "",
            "called `Result::unwrap()` on an `Err` value: can't allocate buffer of size: 99\nat b.rs",
        );
        assert!(big.contains("memory is full") && !big.contains("b.rs"), "{big}");
        let lost = failure("", "\nParent device is lost");
        assert!(lost.starts_with("the GPU was lost (Parent device is lost)"), "{lost}");
        assert_eq!(failure("c.rs:3:4", "index 3"), "internal error at c.rs:3:4: index 3");
    }
}
