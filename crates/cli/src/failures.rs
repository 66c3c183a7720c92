//! Panics of a GPU's runtime as errors of one line.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex};

use anyhow::{Result, anyhow};

use crate::backend::NAME;

/// Runs a command. In a build for GPUs, whose runtimes report full memory and lost devices by panicking on a thread of
/// their own, the first panic is its error.
pub(crate) fn with_failures(command: impl FnOnce() -> Result<()>) -> Result<()> {
    if !matches!(NAME, "cuda" | "vulkan" | "metal") {
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
