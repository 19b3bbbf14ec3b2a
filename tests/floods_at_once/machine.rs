//! Whether it was the machine. A Redis that nobody uses is asked all the time: when even that one
//! does not answer, the machine or its loopback network stands still, and that gateways did not
//! hear from theirs says nothing about them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::Redis;

/// Gateways worry after a second, and what is under way takes several answers.
const STILL: Duration = Duration::from_millis(250);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(20);

pub(crate) struct Machine {
    witness: Arc<Witness>,
    thread: Option<JoinHandle<()>>,
}

struct Witness {
    began: Instant,
    /// When the last answer came, and the longest time between two of them, ms.
    answered_ms: AtomicU64,
    longest_ms: AtomicU64,
    over: AtomicBool,
}

impl Witness {
    fn look(&self) -> u64 {
        let now_ms = self.began.elapsed().as_millis() as u64;
        let silent_ms = now_ms.saturating_sub(self.answered_ms.load(SeqCst));
        self.longest_ms.fetch_max(silent_ms, SeqCst);
        now_ms
    }
}

impl Machine {
    pub(crate) fn watch() -> Machine {
        let idle = Redis::start();
        let mut connection = idle.connection();
        let witness = Arc::new(Witness {
            began: Instant::now(),
            answered_ms: AtomicU64::new(0),
            longest_ms: AtomicU64::new(0),
            over: AtomicBool::new(false),
        });
        let own = Arc::clone(&witness);
        let thread = std::thread::spawn(move || {
            while !own.over.load(SeqCst) {
                let _ = connection.cmd(&["PING"]).good();
                own.answered_ms.store(own.look(), SeqCst);
                std::thread::sleep(PAUSE);
            }
            drop(idle);
        });
        Machine {
            witness,
            thread: Some(thread),
        }
    }

    /// For those who ask from threads of their own.
    pub(crate) fn stood_still(&self) -> impl Fn() -> bool + Send + 'static {
        let witness = Arc::clone(&self.witness);
        move || {
            witness.look();
            let longest_ms = witness.longest_ms.load(SeqCst);
            let still = longest_ms >= STILL.as_millis() as u64;
            if still {
                eprintln!("EXCUSED: a Redis that nobody uses did not answer for {longest_ms} ms");
            }
            still
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.witness.over.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
