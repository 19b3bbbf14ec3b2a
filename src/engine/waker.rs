//! Waking a shard from another thread, at no system call while it runs.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering, fence};

use super::sys;

/// The shard looks at its inbox every turn: a wake is nothing.
const RUNNING: u8 = 0;
/// The shard waits inside [`super::Engine::turn`], which watches `wait_fd`.
const WAITING: u8 = 1;
/// The shard is parked in the executor, which watches the engine's `park_fd`.
const PARKED: u8 = 2;

/// Wakes a shard from another thread.
///
/// The shard announces its next state (`set_waiting`, `set_parked`), *then* looks at its inbox once
/// more, then waits. A sender first puts its item into the inbox, then calls [`Waker::wake`]. With
/// sequentially consistent order on both sides, either the shard sees the item or the sender sees
/// the state. A running shard costs a sender no system call.
#[derive(Debug, Clone)]
pub struct Waker {
    inner: Arc<WakerState>,
}

/// The state that all clones share. The descriptors live as long as the last clone. So a wake after
/// the engine's end never writes to a reused descriptor.
#[derive(Debug)]
struct WakerState {
    state: AtomicU8,
    wait_fd: File,
    /// `None`: `wait_fd` serves both (epoll, where the set itself is what the executor watches).
    park_fd: Option<File>,
}

impl Waker {
    /// A waker for an engine that is parked by another descriptor than the one it waits on.
    pub(super) fn with_park_fd() -> io::Result<Self> {
        Self::make(Some(sys::eventfd(0)?))
    }

    /// A waker for an engine with one descriptor for both.
    pub(super) fn new() -> io::Result<Self> {
        Self::make(None)
    }

    /// A waker for a thread without an engine, and the descriptor that becomes readable when the
    /// thread was woken from waiting. The thread that waits on the descriptor reads it empty.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn with_descriptor() -> io::Result<(Self, File)> {
        let waker = Self::make(None)?;
        let descriptor = waker.inner.wait_fd.try_clone()?;
        Ok((waker, descriptor))
    }

    /// A waker of no engine: for tests that turn their shards by hand.
    ///
    /// # Errors
    /// Out of descriptors.
    #[doc(hidden)]
    pub fn inert() -> io::Result<Self> {
        Self::make(None)
    }

    fn make(park_fd: Option<File>) -> io::Result<Self> {
        Ok(Waker {
            inner: Arc::new(WakerState {
                state: AtomicU8::new(RUNNING),
                wait_fd: sys::eventfd(0)?,
                park_fd,
            }),
        })
    }

    /// The shard is about to wait inside [`super::Engine::turn`].
    pub fn set_waiting(&self) {
        self.announce(WAITING);
    }

    /// The shard is about to park in the executor, on [`super::SystemEngine::park_fd`].
    pub fn set_parked(&self) {
        self.announce(PARKED);
    }

    /// The shard runs and looks at its inbox every turn.
    pub fn set_running(&self) {
        // Late is harmless: a sender that still sees the old state writes once too often, and the
        // next wait ends early.
        self.inner.state.store(RUNNING, Ordering::Release);
    }

    /// Any thread: makes the shard look at its inbox soon. At most one write per wait, however many
    /// callers.
    pub fn wake(&self) {
        // Puts the caller's item before the look at the state in the one order of all SeqCst
        // operations; `announce` has the counterpart. Without both fences each side may act on what
        // was before the other's store, and the wake is lost.
        fence(Ordering::SeqCst);
        // Looking first keeps the cache line shared while the shard runs, which under load is
        // nearly always.
        if self.inner.state.load(Ordering::SeqCst) == RUNNING {
            return;
        }
        // The swap decides which of many callers writes.
        match self.inner.state.swap(RUNNING, Ordering::SeqCst) {
            WAITING => self.notify_waiting(),
            PARKED => sys::notify(self.park_file()),
            _ => {}
        }
    }

    /// Ends a wait, and a park too if that is what the shard has come to since it was seen waiting.
    ///
    /// A write to `wait_fd` that comes after the shard has parked is worse than useless. It becomes
    /// a completion of the shard's ring. The kernel does not notify completions that an eventfd led
    /// to, nor any behind them, and the shard would miss them all
    /// (`what_an_eventfd_leads_to_is_not_told`). Either the shard sees that completion before it
    /// parks, or this look at the state comes after the shard announced it. The fence is the
    /// counterpart of the one in `prepare_park`.
    pub(super) fn notify_waiting(&self) {
        sys::notify(&self.inner.wait_fd);
        fence(Ordering::SeqCst);
        let state = &self.inner.state;
        if self.inner.park_fd.is_some()
            && state
                .compare_exchange(PARKED, RUNNING, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        {
            sys::notify(self.park_file());
        }
    }

    fn announce(&self, state: u8) {
        self.inner.state.store(state, Ordering::SeqCst);
        // Puts the state before the look at the inbox that follows; see `wake`.
        fence(Ordering::SeqCst);
    }

    /// The descriptor that the engine watches while it waits. Never drained: engines watch for the
    /// edge, which each write makes, and a counter of 64 bits does not fill up.
    pub(super) fn wait_fd(&self) -> RawFd {
        self.inner.wait_fd.as_raw_fd()
    }

    fn park_file(&self) -> &File {
        self.inner.park_fd.as_ref().unwrap_or(&self.inner.wait_fd)
    }

    /// The descriptor that the executor watches, where the engine has no better one.
    pub(super) fn park_fd(&self) -> RawFd {
        self.park_file().as_raw_fd()
    }

    /// Makes `park_fd` wait for the next wake.
    pub(super) fn drain_park_fd(&self) {
        sys::drain(self.park_file());
    }
}
