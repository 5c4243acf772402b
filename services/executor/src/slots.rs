//! How many more executions may be taken in hand: the bound on concurrency, and on results that wait to be written.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The slots of an executor, shared by the reader (who fills them) and the hall (who frees them).
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    slots: usize,
    unrecorded_max: usize,
    used: AtomicUsize,
    unrecorded: AtomicUsize,
    freed: Notify,
}

impl Slots {
    pub(crate) fn new(slots: usize, unrecorded_max: usize) -> Self {
        let inner = Inner {
            slots,
            unrecorded_max,
            used: AtomicUsize::new(0),
            unrecorded: AtomicUsize::new(0),
            freed: Notify::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Slots free now.
    pub(crate) fn free(&self) -> usize {
        let inner = &self.inner;
        if inner.unrecorded.load(Ordering::Acquire) >= inner.unrecorded_max {
            return 0;
        }
        inner.slots.saturating_sub(inner.used.load(Ordering::Acquire))
    }

    pub(crate) fn used(&self) -> usize {
        self.inner.used.load(Ordering::Acquire)
    }

    pub(crate) fn unrecorded(&self) -> usize {
        self.inner.unrecorded.load(Ordering::Acquire)
    }

    /// Waits until a slot is free. Cancel-safe.
    pub(crate) async fn wait_free(&self) -> usize {
        loop {
            let freed = self.inner.freed.notified();
            let free = self.free();
            if free > 0 {
                return free;
            }
            freed.await;
        }
    }

    /// Fills slots with what was read.
    pub(crate) fn fill(&self, count: usize) {
        self.inner.used.fetch_add(count, Ordering::AcqRel);
    }

    /// Frees slots.
    pub(crate) fn release(&self, count: usize) {
        self.inner.used.fetch_sub(count, Ordering::AcqRel);
        self.inner.freed.notify_one();
    }

    /// An attempt has ended and waits to be written.
    pub(crate) fn to_record(&self) {
        self.inner.unrecorded.fetch_add(1, Ordering::AcqRel);
    }

    /// Attempts were written.
    pub(crate) fn recorded(&self, count: usize) {
        self.inner.unrecorded.fetch_sub(count, Ordering::AcqRel);
        self.inner.freed.notify_one();
    }
}
