//! A model whose weights are factors runs on them: no dense weight is ever formed.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use burn_flex::Flex;
use lowrank_adapters::AdapterSet;
use lowrank_models::decoder::GenerationOptions;
use lowrank_models::{Decoder, LanguageModel};
use lowrank_tests::llama;

/// The system's allocator, noting the largest request.
struct Watching;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

#[allow(unsafe_code, reason = "an allocator is an unsafe trait")]
// SAFETY: every call is handed on unchanged; the default methods of the trait come down to these two.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's duty is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's duty is handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// Bytes of the largest allocation while `work` runs.
fn largest(work: impl FnOnce()) -> usize {
    LARGEST.store(0, Ordering::Relaxed);
    work();
    LARGEST.load(Ordering::Relaxed)
}

// One test in this binary: what others allocate would be noted too.
#[test]
fn a_forward_pass_forms_no_dense_weight() {
    let device = Default::default();
    let model = Decoder::<Flex>::init(llama(2, 0.8), 0, &device).unwrap();
    let smallest_dense = 1024 * 1024 * size_of::<f32>();
    // A product of many rows packs its factor, here of rank 150.
    let largest_factor = 2816 * 150 * size_of::<f32>();
    // One sequence: its cache, of 256 positions at first, is smaller than the factors.
    let prompts = [(0..33).collect::<Vec<u32>>()];
    let options = GenerationOptions { max_new_tokens: 5, ignore_eos: true, ..Default::default() };
    let generate = || {
        let generated = model.generate(&prompts, &options, &AdapterSet::empty(), &device, |_, _| true);
        assert_eq!(generated.unwrap()[0].ids.len(), 5);
    };
    // The random factors are made when they are first used.
    generate();
    let bytes = largest(generate);
    assert!(
        bytes <= largest_factor + 4096,
        "{bytes} bytes allocated at once; a dense weight has {smallest_dense}"
    );
    // The instrument sees a weight where one is formed.
    let composed = largest(|| {
        let a = lowrank_tests::random::<Flex, 2>("a", [1024, 8], 1.0);
        a.clone().matmul(a.transpose());
    });
    assert!(composed >= smallest_dense, "{composed}");
}
