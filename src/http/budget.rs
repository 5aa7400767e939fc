//! The memory that large bodies and answers may take, all together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What is left of it.
#[derive(Debug, Clone)]
pub struct Budget(Arc<AtomicUsize>);

/// A part of it, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    budget: Budget,
    bytes: usize,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    /// Takes a part, if that much is left.
    pub fn take(&self, bytes: usize) -> Option<Permit> {
        let took = self.0.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |left| left.checked_sub(bytes));
        took.ok().map(|_| Permit { budget: self.clone(), bytes })
    }

    /// What is left, in bytes.
    pub fn left(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Permit {
    /// Takes more, if that much is left.
    #[must_use]
    pub fn grow(&mut self, bytes: usize) -> bool {
        let Some(more) = self.budget.take(bytes) else { return false };
        self.bytes += more.bytes;
        std::mem::forget(more);
        true
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.0.fetch_add(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_given_back_once() {
        let budget = Budget::new(10);
        let mut first = budget.take(4).unwrap();
        assert!(first.grow(6));
        assert!(!first.grow(1));
        assert!(budget.take(1).is_none());
        drop(first);
        assert_eq!(budget.left(), 10);
    }
}
