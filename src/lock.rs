//! Locks that are never held across an await.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks what this crate keeps between requests. Nothing in it panics while it holds a lock.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
