//! Copies of a matrix's bytes on devices.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

/// Copies in the types of their backends, one for each device. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Resident(Arc<Mutex<Vec<Box<dyn Any + Send + Sync>>>>);

impl Resident {
    /// The copy that `is_wanted`, made the first time.
    pub(crate) fn get_or_insert<T: Clone + Send + Sync + 'static>(
        &self,
        is_wanted: impl Fn(&T) -> bool,
        make: impl FnOnce() -> T,
    ) -> T {
        // The lock is held meanwhile: another thread waits for the copy and does not make a second one.
        let mut copies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_type = copies.iter().filter_map(|copy| copy.downcast_ref::<T>());
        if let Some(copy) = of_type.into_iter().find(|copy| is_wanted(copy)) {
            return copy.clone();
        }
        let copy = make();
        copies.push(Box::new(copy.clone()));
        copy
    }

    /// How many copies were made.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
