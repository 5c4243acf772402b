//! How many more executions may be taken in hand: the bound on concurrency, on what is in hand by bytes (payloads), and on
//! results that wait to be written, by number and by bytes. Whoever reads looks at it before each read, so one read may go
//! beyond a bound of bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The slots of an executor, shared by the reader (who fills them) and the hall (who frees them).
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    inner: Arc<Inner>,
}

/// The bounds, each of a setting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub slots: usize,
    pub unrecorded_max: usize,
    pub unrecorded_bytes_max: usize,
    pub in_hand_bytes_max: usize,
}

#[derive(Debug)]
struct Inner {
    bounds: Bounds,
    in_hand_bytes: AtomicUsize,
    used: AtomicUsize,
    unrecorded: AtomicUsize,
    unrecorded_bytes: AtomicUsize,
    freed: Notify,
}

impl Slots {
    pub(crate) fn new(bounds: Bounds) -> Self {
        let inner = Inner {
            bounds,
            in_hand_bytes: AtomicUsize::new(0),
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
        if inner.unrecorded.load(Ordering::Acquire) >= inner.bounds.unrecorded_max
            || inner.unrecorded_bytes.load(Ordering::Acquire) >= inner.bounds.unrecorded_bytes_max
            || !self.has_room()
        {
            return 0;
        }
        inner.bounds.slots.saturating_sub(inner.used.load(Ordering::Acquire))
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

    /// Whether more bytes may be taken in hand.
    pub(crate) fn has_room(&self) -> bool {
        self.inner.in_hand_bytes.load(Ordering::Acquire) < self.inner.bounds.in_hand_bytes_max
    }

    /// Whether more payloads may be fetched. They leave half of the bytes to what is read, so that the largest payloads keep
    /// nothing else from being read.
    pub(crate) fn has_room_for_payloads(&self) -> bool {
        self.inner.in_hand_bytes.load(Ordering::Acquire) < self.inner.bounds.in_hand_bytes_max / 2
    }

    pub(crate) fn in_hand_bytes(&self) -> usize {
        self.inner.in_hand_bytes.load(Ordering::Acquire)
    }

    /// Takes so many bytes in hand, until what is returned is dropped.
    pub(crate) fn weigh(&self, bytes: usize) -> Weight {
        self.inner.in_hand_bytes.fetch_add(bytes, Ordering::AcqRel);
        Weight { inner: Arc::clone(&self.inner), bytes }
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

/// Bytes of one execution in hand.
#[derive(Debug)]
pub(crate) struct Weight {
    inner: Arc<Inner>,
    bytes: usize,
}

impl Weight {
    /// It has so many now.
    pub(crate) fn set(&mut self, bytes: usize) {
        self.inner.in_hand_bytes.fetch_add(bytes, Ordering::AcqRel);
        self.inner.in_hand_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        if bytes < self.bytes {
            self.inner.freed.notify_one();
        }
        self.bytes = bytes;
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_to_be_written_bounds_by_number_and_by_bytes() {
        let slots =
            Slots::new(Bounds { slots: 10, unrecorded_max: 3, unrecorded_bytes_max: 1_000, in_hand_bytes_max: 100 });
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

    #[test]
    fn what_is_in_hand_bounds_by_bytes_and_gives_them_back_by_itself() {
        let slots =
            Slots::new(Bounds { slots: 10, unrecorded_max: 3, unrecorded_bytes_max: 1_000, in_hand_bytes_max: 100 });
        let small = slots.weigh(40);
        assert!(slots.has_room_for_payloads());
        let mut large = slots.weigh(20);
        assert_eq!((slots.free(), slots.has_room_for_payloads()), (10, false), "what is read has room beside payloads");
        large.set(80);
        assert_eq!((slots.free(), slots.in_hand_bytes()), (0, 120));
        large.set(10);
        assert_eq!((slots.free(), slots.in_hand_bytes()), (10, 50));
        drop((small, large));
        assert_eq!(slots.in_hand_bytes(), 0);
    }
}
