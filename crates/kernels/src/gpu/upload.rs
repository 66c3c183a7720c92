//! Small tables that launches read, such as the blocks of an attention: the layers of a step have the same ones, which are
//! uploaded once.

use std::any::TypeId;
use std::cell::RefCell;
use std::collections::VecDeque;

use burn::tensor::backend::{DeviceId, DeviceOps};
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl::server::Handle;
use burn_cubecl::tensor::CubeTensor;

/// Tables that are kept: a step has a few, of its attentions and of its rows in a cache.
const KEPT: usize = 8;

/// A table on a device.
struct Table {
    place: (TypeId, DeviceId),
    words: Vec<u32>,
    handle: Handle,
}

thread_local! {
    /// Those that were used last, from the last on; by thread, since each has its own stream of a device.
    static TABLES: RefCell<VecDeque<Table>> = const { RefCell::new(VecDeque::new()) };
}

#[cfg(test)]
thread_local! {
    /// Uploads of this thread.
    pub(crate) static UPLOADS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// These words on the device of a tensor, to be read only.
pub(super) fn table<R: CubeRuntime>(words: Vec<u32>, like: &CubeTensor<R>) -> Handle {
    let place = (TypeId::of::<R>(), like.device.id());
    TABLES.with_borrow_mut(|tables| {
        let known = tables.iter().position(|table| table.place == place && table.words == words);
        let table = known.and_then(|at| tables.remove(at)).unwrap_or_else(|| {
            let handle = upload(&words, like);
            Table { place, words, handle }
        });
        let handle = table.handle.clone();
        tables.push_front(table);
        tables.truncate(KEPT);
        handle
    })
}

/// These words on the device of a tensor, whatever was uploaded before.
pub(super) fn upload<R: CubeRuntime>(words: &[u32], like: &CubeTensor<R>) -> Handle {
    #[cfg(test)]
    UPLOADS.set(UPLOADS.get() + 1);
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    like.client.create_from_slice(&bytes)
}
