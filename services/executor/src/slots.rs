//! How many more executions may be taken in hand: the bound on concurrency, and on results that wait to be written, by number
//! and by bytes. Whoever reads looks at it before each read, so one read may go beyond a bound of bytes.

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
    unrecorded_bytes_max: usize,
    used: AtomicUsize,
    unrecorded: AtomicUsize,
    unrecorded_bytes: AtomicUsize,
    freed: Notify,
}

impl Slots {
    pub(crate) fn new(slots: usize, unrecorded_max: usize, unrecorded_bytes_max: usize) -> Self {
        let inner = Inner {
            slots,
            unrecorded_max,
            unrecorded_bytes_max,
            used: AtomicUsize::new(0),
            unrecorded: AtomicUsize::new(0),
            unrecorded_bytes: AtomicUsize::new(0),
            freed: Notify::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Slots free now.
    pub(crate) fn free(&self) -> usize {
        let inner = &self.inner;
        if inner.unrecorded.load(Ordering::Acquire) >= inner.unrecorded_max
            || inner.unrecorded_bytes.load(Ordering::Acquire) >= inner.unrecorded_bytes_max
        {
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

    pub(crate) fn unrecorded_bytes(&self) -> usize {
        self.inner.unrecorded_bytes.load(Ordering::Acquire)
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

    /// An attempt has ended, with so many bytes, and waits to be written.
    pub(crate) fn to_record(&self, bytes: usize) {
        self.inner.unrecorded.fetch_add(1, Ordering::AcqRel);
        self.inner.unrecorded_bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Attempts were written, with so many bytes.
    pub(crate) fn recorded(&self, count: usize, bytes: usize) {
        self.inner.unrecorded.fetch_sub(count, Ordering::AcqRel);
        self.inner.unrecorded_bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.inner.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_to_be_written_bounds_by_number_and_by_bytes() {
        let slots = Slots::new(10, 3, 1_000);
        slots.fill(4);
        assert_eq!(slots.free(), 6);
        slots.to_record(1_000);
        assert_eq!(slots.free(), 0, "bytes");
        slots.recorded(1, 1_000);
        assert_eq!(slots.free(), 6);
        (0..3).for_each(|_| slots.to_record(1));
        assert_eq!(slots.free(), 0, "number");
        slots.recorded(1, 1);
        assert_eq!(slots.free(), 6);
    }
}
