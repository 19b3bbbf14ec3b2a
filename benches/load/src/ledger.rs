//! The shared numbers of a `fanout`'s threads and processes.
//!
//! Duty: the count of each publisher, the departed subscribers, the deliveries that every thread
//! still waits for, and how many subscribers a publication is still to reach. All are atomics in
//! memory that all processes have mapped. No thread waits here: there is no lock, and a process
//! that dies leaves none held.
//!
//! Two threads can differ about whether a subscriber was there when a publication left. The
//! subscriber's thread decides: at the subscriber's end it writes down how many publications of
//! every publisher were still due. A publisher may have counted the subscriber for later ones,
//! before it read that. It takes these back.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};

use crate::args::Options;
use crate::sys;

/// Words of a cache line. Words with different writing threads are that far apart.
const LINE: usize = 8;
/// Of all publishers together so many publications can be watched on their way to the last
/// subscriber: 64 MiB.
const WATCHED_MAX: usize = 1 << 22;
/// Of one publisher, open loop: no fewer and no more than these.
const WATCHED_OF_ONE: (usize, usize) = (64, 1 << 20);
/// Of one publisher, closed loop, no fewer than this: few words stay in the cache.
const WATCHED_CLOSED_MIN: usize = 1024;

/// The words of the run.
const MEASURE: usize = 0;
const ENDED: usize = LINE;
const GONE: usize = LINE + 1;
const WORKERS: usize = 2 * LINE;
/// The words of a worker.
const WAITING: usize = 0;
const SINCE: usize = 1;
const COMPLETIONS: usize = 2;
/// The words of a publisher.
const SENT: usize = 0;
const GATEWAY: usize = 1;
const COMPLETED: usize = 2;
/// The words of a publication under way: its number with how many it is still to reach, and when it
/// reached the latest.
const SLOT: usize = 2;

/// The view of one process; all of its threads have a copy.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    words: &'static [AtomicU64],
    workers: usize,
    users: usize,
    publishers: usize,
    /// Slots of a publisher, a power of two. A publication that is still under way when so many
    /// came after it is watched no more. It counts as one that did not reach every subscriber; its
    /// deliveries count all the same.
    window: usize,
    /// Open for as long as another process may want to open it.
    file: Arc<File>,
}

impl Ledger {
    /// An empty one, for the first process.
    ///
    /// # Errors
    /// The kernel gives no memory.
    pub(crate) fn create(options: &Options) -> std::io::Result<Self> {
        Self::map(options, sys::nameless_file(c"shardgate-load")?)
    }

    /// The one that the first process made, at its [`Self::path`].
    ///
    /// # Errors
    /// The first process is gone, or the kernel gives no memory.
    pub(crate) fn open(options: &Options, path: &str) -> std::io::Result<Self> {
        Self::map(options, File::options().read(true).write(true).open(path)?)
    }

    /// Where other processes of this machine find it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    fn map(options: &Options, file: File) -> std::io::Result<Self> {
        let publishers = options.publishers;
        let window = match options.rate {
            None => (4 * options.in_flight() as usize).max(WATCHED_CLOSED_MIN),
            Some(_) => (WATCHED_MAX / publishers.max(1)).clamp(WATCHED_OF_ONE.0, WATCHED_OF_ONE.1),
        };
        let mut ledger = Self {
            words: &[],
            workers: options.workers(),
            // Without publishers nobody looks for what they sent.
            users: if publishers == 0 { 0 } else { options.load.users },
            publishers,
            window: window.next_power_of_two(),
            file: Arc::new(file),
        };
        ledger.words = sys::share_words(&ledger.file, ledger.slot(publishers, 0))?;
        Ok(ledger)
    }

    fn worker(&self, worker: usize, word: usize) -> &AtomicU64 {
        &self.words[WORKERS + worker * LINE + word]
    }

    fn publisher(&self, publisher: usize, word: usize) -> &AtomicU64 {
        &self.words[WORKERS + (self.workers + publisher) * LINE + word]
    }

    /// The slot of the `n`th departed subscriber.
    fn gone_at(&self, n: usize) -> usize {
        WORKERS + (self.workers + self.publishers) * LINE + n
    }

    fn until_at(&self, user: usize, publisher: usize) -> usize {
        self.gone_at(self.users) + user * self.publishers + publisher
    }

    fn slot(&self, publisher: usize, n: u32) -> usize {
        self.until_at(self.users, 0) + (publisher * self.window + (n as usize & (self.window - 1))) * SLOT
    }

    /// Publications due from `measure_ns` on are measured. Every thread writes the time, and the
    /// first write counts for all. Another process may read it only when such a publication has
    /// come.
    pub(crate) fn set_measure_ns(&self, measure_ns: u64) {
        self.words[MEASURE].store(measure_ns, Release);
    }

    pub(crate) fn measure_ns(&self) -> u64 {
        match self.words[MEASURE].load(Acquire) {
            0 => u64::MAX,
            measure_ns => measure_ns,
        }
    }

    /// A worker publishes nothing more, and none of its subscribers will be counted as gone.
    pub(crate) fn end(&self) {
        self.words[ENDED].fetch_add(1, AcqRel);
    }

    /// The ledger will not change any more.
    pub(crate) fn is_over(&self) -> bool {
        self.words[ENDED].load(Acquire) == self.workers as u64
    }

    /// `worker` is to wait for so many more, from `now_ns` on if it waited for nothing.
    pub(crate) fn expect(&self, worker: usize, count: u32, now_ns: u64) {
        if !self.waits(worker) {
            // Before the count, or what another publisher sends meanwhile would seem to end a
            // silence since long ago. Of two who find nothing waited for, the later time stays.
            self.worker(worker, SINCE).fetch_max(now_ns, AcqRel);
        }
        self.worker(worker, WAITING).fetch_add(u64::from(count), AcqRel);
    }

    /// Something that `worker` waited for arrived; how long nothing had.
    pub(crate) fn arrive(&self, worker: usize, now_ns: u64) -> u64 {
        let silence_ns = self.silence_ns(worker, now_ns);
        self.worker(worker, SINCE).fetch_max(now_ns, AcqRel);
        self.give_up(worker, 1);
        silence_ns
    }

    /// `worker` need not wait for so many.
    pub(crate) fn give_up(&self, worker: usize, count: u64) {
        self.worker(worker, WAITING).fetch_sub(count, AcqRel);
    }

    pub(crate) fn waits(&self, worker: usize) -> bool {
        self.worker(worker, WAITING).load(Acquire) > 0
    }

    /// Nothing is under way to anybody.
    pub(crate) fn is_still(&self) -> bool {
        (0..self.workers).all(|worker| !self.waits(worker))
    }

    pub(crate) fn silence_ns(&self, worker: usize, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.worker(worker, SINCE).load(Acquire))
    }

    /// A publisher is at the gateway with this mark.
    pub(crate) fn set_gateway(&self, publisher: usize, mark: u64) {
        self.publisher(publisher, GATEWAY).store(mark, Release);
    }

    pub(crate) fn gateway(&self, publisher: usize) -> u64 {
        self.publisher(publisher, GATEWAY).load(Acquire)
    }

    /// The next publication of a publisher is about to leave, to so many subscribers.
    pub(crate) fn publish(&self, publisher: usize, audience: u32) {
        let sent = self.publisher(publisher, SENT);
        let n = sent.load(Acquire) as u32;
        let at = self.slot(publisher, n);
        self.words[at + 1].store(0, Release);
        self.words[at].store(u64::from(n) << 32 | u64::from(audience), Release);
        // Last: who sees the number may look at the slot.
        sent.store(u64::from(n) + 1, Release);
    }

    /// How many publications of a publisher left.
    pub(crate) fn sent(&self, publisher: usize) -> u32 {
        self.publisher(publisher, SENT).load(Acquire) as u32
    }

    /// Publication `n` reached one more subscriber at `now_ns`. After the last delivery it returns
    /// the latest time, which need not be the time of the last caller.
    pub(crate) fn reach(&self, publisher: usize, n: u32, now_ns: u64) -> Option<u64> {
        let at = self.slot(publisher, n);
        if self.words[at].load(Acquire) >> 32 == u64::from(n) {
            // Before the count: whoever takes the last one off it sees the times of all.
            self.words[at + 1].fetch_max(now_ns, AcqRel);
        }
        self.miss(publisher, n).then(|| self.words[at + 1].load(Acquire))
    }

    /// There is one less for publication `n` to reach; true if nobody is left.
    pub(crate) fn miss(&self, publisher: usize, n: u32) -> bool {
        let slot = &self.words[self.slot(publisher, n)];
        let one_less = |slot: u64| (slot >> 32 == u64::from(n) && slot as u32 > 0).then(|| slot - 1);
        let before = slot.fetch_update(AcqRel, Acquire, one_less);
        before.is_ok_and(|slot| slot as u32 == 1)
    }

    /// A publication of a publisher, who is at `worker`, reached everybody elsewhere.
    pub(crate) fn complete(&self, worker: usize, publisher: usize) {
        self.publisher(publisher, COMPLETED).fetch_add(1, AcqRel);
        self.worker(worker, COMPLETIONS).fetch_add(1, AcqRel);
    }

    /// How often that was so, of all publishers of `worker`.
    pub(crate) fn completions(&self, worker: usize) -> u64 {
        self.worker(worker, COMPLETIONS).load(Acquire)
    }

    pub(crate) fn completed(&self, publisher: usize) -> u64 {
        self.publisher(publisher, COMPLETED).load(Acquire)
    }

    /// The subscriber `user` leaves, once, and gets no more than the first `until(publisher)`
    /// publications of each.
    pub(crate) fn leave(&self, user: usize, until: impl Fn(usize) -> u32) {
        for publisher in 0..self.publishers {
            self.words[self.until_at(user, publisher)].store(u64::from(until(publisher)), Release);
        }
        let n = self.words[GONE].fetch_add(1, AcqRel) as usize;
        self.words[self.gone_at(n)].store(user as u64 + 1, Release);
    }

    /// The `n`th subscriber who left, if so many did.
    pub(crate) fn gone(&self, n: usize) -> Option<usize> {
        if n >= self.users {
            return None;
        }
        (self.words[self.gone_at(n)].load(Acquire) as usize).checked_sub(1)
    }

    /// How many publications of `publisher` this one, who left, was to get.
    pub(crate) fn until(&self, user: usize, publisher: usize) -> u32 {
        self.words[self.until_at(user, publisher)].load(Acquire) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Options {
        let line = format!("fanout --url ws://127.0.0.1:9 {line}");
        crate::args::parse(line.split_whitespace().map(str::to_owned)).unwrap()
    }

    #[test]
    fn a_publication_has_arrived_when_all_have_it() {
        let ledger = Ledger::create(&options("--publishers 2 --in-flight 3")).unwrap();
        for audience in [2, 1, 2] {
            ledger.publish(1, audience);
        }
        assert_eq!((ledger.sent(0), ledger.sent(1)), (0, 3));
        assert_eq!(ledger.reach(1, 0, 70), None);
        assert_eq!(ledger.reach(1, 1, 60), Some(60), "whatever is before it");
        assert_eq!(ledger.reach(1, 0, 65), Some(70), "the latest, whoever says so last");
        assert_eq!(ledger.reach(1, 2, 80), None);
        assert!(ledger.miss(1, 2));
        assert!(!ledger.miss(1, 2), "nobody is left");
        // So many later nothing is known of the first.
        ledger.publish(0, 1);
        (0..WATCHED_CLOSED_MIN).for_each(|_| ledger.publish(0, 2));
        let newest = WATCHED_CLOSED_MIN as u32;
        assert_eq!(ledger.reach(0, 0, 99), None);
        assert_eq!(ledger.reach(0, newest, 90), None, "nor does it take one from another");
        assert_eq!(ledger.reach(0, newest, 95), Some(95));
    }

    #[test]
    fn another_process_sees_the_same() {
        let options = options("--users 5 --publishers 3 --threads 2");
        let ledger = Ledger::create(&options).unwrap();
        let other = Ledger::open(&options, &ledger.path()).unwrap();
        other.set_gateway(2, 77);
        other.publish(2, 4);
        assert_eq!((ledger.gateway(2), ledger.sent(2), ledger.sent(1)), (77, 1, 0));
        assert_eq!((ledger.measure_ns(), ledger.gone(0)), (u64::MAX, None));
        other.set_measure_ns(5);
        other.leave(4, |publisher| publisher as u32 + 10);
        other.leave(0, |_| 0);
        assert_eq!(ledger.measure_ns(), 5);
        assert_eq!((0..5).map_while(|n| ledger.gone(n)).collect::<Vec<_>>(), [4, 0]);
        assert_eq!(
            (ledger.until(4, 0), ledger.until(4, 2), ledger.until(0, 2)),
            (10, 12, 0)
        );
        other.complete(1, 2);
        assert_eq!(
            (ledger.completions(0), ledger.completions(1), ledger.completed(2)),
            (0, 1, 1)
        );
        ledger.end();
        assert!(!other.is_over());
        other.end();
        assert!(ledger.is_over());
        assert!(Ledger::open(&options, "/nowhere").is_err());
    }

    #[test]
    fn silence_is_while_somebody_waits() {
        let ledger = Ledger::create(&options("--users 4 --threads 2")).unwrap();
        assert!(ledger.is_still());
        ledger.expect(1, 2, 100);
        ledger.expect(1, 1, 130);
        assert!(ledger.waits(1) && !ledger.waits(0) && !ledger.is_still());
        assert_eq!(ledger.arrive(1, 150), 50);
        ledger.give_up(1, 1);
        assert_eq!(ledger.arrive(1, 160), 10);
        assert!(ledger.is_still());
        ledger.expect(1, 1, 1000);
        assert_eq!(ledger.arrive(1, 1001), 1, "nobody waited between");
    }
}
