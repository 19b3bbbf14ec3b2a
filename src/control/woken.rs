//! How the control thread waits for other threads.

use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::unix::AsyncFd;

use crate::engine::Waker;

/// Woken by other threads.
pub(super) struct Woken {
    waker: Waker,
    descriptor: AsyncFd<File>,
}

impl Woken {
    #[allow(
        deprecated,
        reason = "unsound only for types whose descriptor may change; a File's does not"
    )]
    pub(super) fn new(waker: Waker, descriptor: File) -> std::io::Result<Self> {
        Ok(Woken {
            waker,
            descriptor: AsyncFd::new(descriptor)?,
        })
    }

    /// Waking has no effect until [`Woken::set_waiting`].
    pub(super) fn set_running(&self) {
        self.waker.set_running();
    }

    /// Whoever wakes us after this has to mean it.
    pub(super) fn set_waiting(&self) {
        self.waker.set_waiting();
    }

    /// Until it shall end. For a thread that does nothing else when it is woken. Cancel-safe.
    pub(super) async fn ending(&self, ending: &AtomicBool) {
        loop {
            self.waker.set_waiting();
            if ending.load(Ordering::Acquire) {
                return;
            }
            self.woken().await;
        }
    }

    /// Until somebody wakes us. Cancel-safe.
    pub(super) async fn woken(&self) {
        if let Ok(mut ready) = self.descriptor.readable().await {
            let _ = ready.get_inner().read(&mut [0; 8]);
            ready.clear_ready();
        }
    }
}
