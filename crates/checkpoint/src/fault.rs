//! A mapped file that is truncated while it is being read: a message of one line in place of a bare signal.
//!
//! Past the new end of such a file, and where a disk or a server fails to deliver a page, an access raises SIGBUS. The
//! handler looks the address up among the mapped files. It may run between any two instructions, so that it may neither
//! allocate nor wait: the files are in a table of atomics, each with its message, ready to be written.

use std::{
    path::Path,
    sync::atomic::{AtomicPtr, AtomicUsize, Ordering},
};

/// Files in the table; a program with more of them open has no message for the others.
const SLOTS: usize = 1024;

/// A mapped file.
struct Slot {
    /// The first address; 0 in a free slot.
    start: AtomicUsize,
    len: AtomicUsize,
    message: AtomicPtr<Box<[u8]>>,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        message: AtomicPtr::new(std::ptr::null_mut()),
    }
}; SLOTS];

/// An entry of the table, removed when dropped.
#[derive(Debug)]
pub(crate) struct Region(Option<usize>);

impl Region {
    /// Registers the map of a file.
    pub(crate) fn new(map: &[u8], path: &Path) -> Self {
        /// A slot that is being filled: no address.
        const TAKEN: usize = usize::MAX;
        let is_free =
            |slot: &Slot| slot.start.compare_exchange(0, TAKEN, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        let Some(index) = TABLE.iter().position(is_free) else { return Self(None) };
        let name = path.display().to_string();
        let message = format!(
            "error: {}: was truncated while it was being read, or the disk returned an error; wait until it is written, and start again\n",
            name.escape_debug()
        );
        let slot = &TABLE[index];
        slot.len.store(map.len(), Ordering::Relaxed);
        // Never freed, since the handler may be at it: a hundred bytes for each file that is mapped.
        let message = Box::into_raw(Box::new(message.into_bytes().into_boxed_slice()));
        slot.message.store(message, Ordering::Relaxed);
        slot.start.store(map.as_ptr().addr(), Ordering::Release);
        Self(Some(index))
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Some(index) = self.0 {
            TABLE[index].start.store(0, Ordering::Relaxed);
        }
    }
}

/// From now on a mapped file that is truncated while it is being read, or whose disk returns an error, ends the process with a line on
/// standard error and status 1, where the system would end it with SIGBUS. For programs. Other faults remain the
/// system's. Only on Linux: elsewhere the signal may mean a stack overflow, whose handler needs an alternate stack.
///
/// Nothing is unwound: what the process was writing is left as by a kill.
pub fn report_cut_files() {
    #[cfg(target_os = "linux")]
    handle();
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "a handler of signals has no safe form")]
fn handle() {
    let action = |info: &libc::siginfo_t| {
        // SAFETY: the system fills in the address for SIGBUS.
        let address = unsafe { info.si_addr() }.addr();
        for slot in &TABLE {
            let start = slot.start.load(Ordering::Acquire);
            if address.wrapping_sub(start) >= slot.len.load(Ordering::Relaxed) || start == 0 {
                continue;
            }
            // SAFETY: a slot with an address has a message, which is never freed.
            let message = unsafe { &*slot.message.load(Ordering::Relaxed) };
            // SAFETY: write and _exit may be called in a handler; the bytes are initialized.
            unsafe {
                // Nothing can be done about an error.
                let _written = libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len());
                libc::_exit(1);
            }
        }
        // The standard library's handler, which ran before, has restored the default: the access is tried again and
        // ends the process.
    };
    // SAFETY: the action neither allocates, waits nor panics; it reads atomics and calls what handlers may call.
    // Without it the signal ends the process, as before.
    let _registered = unsafe { signal_hook_registry::register_sigaction(libc::SIGBUS, action) };
}
