//! A hostile file is refused before anything of the size that it claims is allocated.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use lowrank_checkpoint::Checkpoint;

/// The system's allocator, noting the largest request.
struct Watching;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

#[allow(unsafe_code, reason = "an allocator is an unsafe trait")]
// SAFETY: every call is handed on unchanged.
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

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: the caller's duty is handed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

fn raw(length: u64, header: &str, data: &[u8]) -> Vec<u8> {
    [&length.to_le_bytes(), header.as_bytes(), data].concat()
}

fn whole(header: &str, data: &[u8]) -> Vec<u8> {
    raw(header.len() as u64, header, data)
}

// One test in this binary: what others allocate would be noted too.
#[test]
fn claims_are_checked_before_they_are_believed() {
    let tera = 1u64 << 40;
    let huge = format!(r#"{{"x":{{"dtype":"F32","shape":[{tera}],"data_offsets":[0,{}]}}}}"#, 4 * tera);
    // One stored f32 seen as 2³⁰ × 2³⁰ of them, and a string of 4 GiB.
    let view = b"\x80\x02}X\x01\x00\x00\x00xctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n\
        X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01NtQK\x00J\x00\x00\x00\x40J\x00\x00\x00\x40\x86K\x00K\x00\x86\x89}tRs.";
    let start = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.";
    let end = b"\x80\x02]X\x01\x00\x00\x000a.\x01\0\0\0\0\0\0\0\0\0\x80\x3f";
    let mut long_run = [&start[..], view, end].concat();
    let at = long_run.len() - 12;
    long_run[at..at + 8].copy_from_slice(&tera.to_le_bytes());
    let files = [
        raw(1 << 60, "{", b""),
        raw(99_999_999, "{", b""),
        whole(&huge, &[0; 8]),
        whole(r#"{"x":{"dtype":"F64","shape":[4294967295,4294967295],"data_offsets":[0,8]}}"#, &[0; 8]),
        [&start[..], view, end].concat(),
        [&start[..], b"\x80\x02X\xff\xff\xff\xff."].concat(),
        [&start[..], b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x7f."].concat(),
        long_run,
    ];
    for (i, file) in files.into_iter().enumerate() {
        LARGEST.store(0, Ordering::Relaxed);
        let error = Checkpoint::from_bytes("hostile", file).unwrap_err();
        let largest = LARGEST.load(Ordering::Relaxed);
        assert!(largest < 16 << 10, "file {i}: {largest} bytes allocated at once before «{error}»");
    }
}
