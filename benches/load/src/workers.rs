//! The generator threads of this process.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use crate::args::Options;
use crate::board::{Board, Meter, Note};
use crate::driver::{Driver, Post};
use crate::kind::Kind;
use crate::ledger::Ledger;
use crate::scenario::{Direct, Fanout, Idle, Mixed, Storm};
use crate::sys::{self, Clock};
use crate::tally::Tally;

type Threads = Vec<JoinHandle<Tally>>;

/// Starts them; each has a meter.
///
/// # Errors
/// The kernel gives no thread or descriptor.
pub(crate) fn start(
    options: &Arc<Options>,
    clock: Clock,
    board: &Arc<Board>,
    ledger: &Ledger,
    notes: &mpsc::Sender<Note>,
) -> std::io::Result<(Vec<Arc<Meter>>, Threads)> {
    let meters = options.own_workers().map(|_| Meter::new().map(Arc::new));
    let meters: Vec<Arc<Meter>> = meters.collect::<Result<_, _>>()?;
    let threads = options.own_workers().zip(&meters).map(|(worker, meter)| {
        let post = Post {
            options: Arc::clone(options),
            clock,
            board: Arc::clone(board),
            meter: Arc::clone(meter),
            notes: notes.clone(),
        };
        let (ledger, crew) = (ledger.clone(), meters.clone());
        std::thread::Builder::new()
            .name(format!("load-{worker}"))
            .spawn(move || drive(post, worker, ledger, crew))
    });
    let threads = threads.collect::<Result<_, _>>()?;
    Ok((meters, threads))
}

/// The sum of their counters.
///
/// # Errors
/// One panicked.
pub(crate) fn join(threads: Threads) -> Result<Tally, String> {
    let mut tally = Tally::default();
    for thread in threads {
        tally.merge(thread.join().map_err(|_| "a generator thread panicked")?);
    }
    Ok(tally)
}

/// `crew` has the meters of this process, in the order of its threads.
fn drive(post: Post, worker: usize, ledger: Ledger, crew: Vec<Arc<Meter>>) -> Tally {
    let (options, clock) = (Arc::clone(&post.options), post.clock);
    if let [_, _, ..] = options.cpus() {
        // The process may run on these CPUs already; one of them for each thread keeps them apart.
        let _ = sys::pin(&[options.cpus()[worker % options.cpus().len()]]);
    }
    let (first, count) = options.part(worker);
    let user = first as u32;
    let tally = match options.kind {
        Kind::Idle => Driver::new(post, Idle, user, count).map(Driver::run),
        Kind::Direct => Driver::new(post, Direct::new(&options, clock, worker, count), user, count).map(Driver::run),
        Kind::Fanout => {
            let scenario = Fanout::new(&options, clock, worker, ledger, crew);
            Driver::new(post, scenario, user, count).map(Driver::run)
        }
        Kind::Storm => {
            let scenario = Storm::new(&options, clock, worker, first, count);
            Driver::new(post, scenario, user, count).map(Driver::run)
        }
        Kind::Mixed => {
            let scenario = Mixed::new(&options, clock, worker, first, count);
            Driver::new(post, scenario, user, count).map(Driver::run)
        }
    };
    tally.unwrap_or_else(|error| panic!("no epoll set for a generator thread: {error}"))
}
