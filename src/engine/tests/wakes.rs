//! Waking and parking, for both engines. Parking is looked at with `poll` here, with glommio in
//! `quirks`.

use std::os::fd::RawFd;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::engine::Waker;

for_both_engines! {
    wakes_while_waiting,
    a_running_shard_costs_no_wake,
    wakes_while_parked,
    parks_until_bytes_arrive,
    parks_only_without_work,
    loses_no_wake,
    a_late_wake_deafens_nobody,
}

/// Whether a descriptor is readable, now or within a time.
pub(super) fn readable(fd: RawFd, within: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one live pollfd, and the count says so.
    let count = unsafe { libc::poll(&raw mut poll, 1, within.as_millis() as libc::c_int) };
    assert!(count >= 0);
    count == 1
}

/// Long enough that only a lost wake comes near, short enough that a test may fail by it.
const LOST: Duration = Duration::from_secs(15);

fn wakes_while_waiting<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    bed.nothing();
    let waker = bed.engine.waker();
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..500 {
                barrier.wait();
                waker.wake();
            }
        });
        for _ in 0..500 {
            bed.engine.waker().set_waiting();
            barrier.wait();
            let start = Instant::now();
            bed.engine.turn(Some(LOST)).unwrap();
            assert!(start.elapsed() < LOST / 2, "a wake was lost");
            assert!(bed.engine.next_event().is_none());
            bed.engine.waker().set_running();
        }
    });
    // Wakes that were written during the last waits cut short at most one of the next.
    bed.engine.turn(None).unwrap();
    assert!(bed.engine.next_event().is_none());
    bed.nothing();
}

fn a_running_shard_costs_no_wake<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    bed.nothing();
    let waker = bed.engine.waker();
    for _ in 0..100 {
        waker.wake();
    }
    bed.nothing();
    // One write per wait, however many callers: the first wake makes the shard a running one.
    waker.set_waiting();
    for _ in 0..100 {
        waker.wake();
    }
    let start = Instant::now();
    bed.engine.turn(Some(LOST)).unwrap();
    assert!(start.elapsed() < LOST / 2);
    assert!(bed.engine.next_event().is_none());
    bed.nothing();
}

fn wakes_while_parked<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    bed.nothing();
    let waker = bed.engine.waker();
    for _ in 0..200 {
        waker.set_parked();
        assert!(bed.engine.prepare_park());
        assert!(!readable(bed.engine.park_fd(), Duration::ZERO));
        std::thread::scope(|scope| {
            scope.spawn(|| waker.wake());
            assert!(readable(bed.engine.park_fd(), LOST), "a wake was lost while parked");
        });
        waker.wake();
        waker.set_running();
        bed.engine.unpark();
        bed.engine.turn(None).unwrap();
        assert!(bed.engine.next_event().is_none());
    }
    bed.nothing();
    // An unpark that nothing led to.
    assert!(bed.engine.prepare_park());
    bed.engine.unpark();
    bed.nothing();
}

fn parks_until_bytes_arrive<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    let (mut client, key) = bed.quiet_pair();
    bed.engine.receive_stream(key);
    bed.nothing();
    for _ in 0..200 {
        assert!(bed.engine.prepare_park());
        let fd = bed.engine.park_fd();
        assert!(!readable(fd, Duration::ZERO));
        client.write_all(b"knock").unwrap();
        assert!(readable(fd, PATIENCE));
        bed.engine.unpark();
        bed.expect_bytes(key, b"knock");
    }
    // A new connection ends parking too.
    assert!(bed.engine.prepare_park());
    let _another = bed.connect();
    assert!(readable(bed.engine.park_fd(), PATIENCE));
    bed.engine.unpark();
    assert!(matches!(bed.next(), Seen::Accepted(_)));
    // While it runs, the ring's descriptor is silent; epoll's is the set itself.
    if E::NAME == "ring" {
        client.write_all(b"knock").unwrap();
        bed.expect_bytes(key, b"knock");
        assert!(!readable(bed.engine.park_fd(), Duration::ZERO));
    }
}

fn parks_only_without_work<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    let (mut client, key) = bed.quiet_pair();
    bed.engine.receive_stream(key);
    bed.nothing();
    for _ in 0..200 {
        client.write_all(b"early").unwrap();
        // Bytes that are there before parking are seen at once, in one way or the other.
        let parks = bed.engine.prepare_park();
        assert!(!parks || readable(bed.engine.park_fd(), PATIENCE));
        if parks {
            bed.engine.unpark();
        }
        bed.expect_bytes(key, b"early");
    }
    bed.engine.close(key);
    assert!(matches!(bed.next(), Seen::Closed(_)));
    bed.nothing();
    // Something collected and not submitted is work, for an engine that collects.
    let (_client, key) = bed.quiet_pair();
    bed.engine.receive_once(key);
    assert_eq!(bed.engine.prepare_park(), E::NAME == "epoll");
    bed.nothing();
    assert!(bed.engine.prepare_park());
    bed.engine.unpark();
}

/// Two senders and a shard that goes to sleep as often as it can, in both ways.
fn loses_no_wake<E: SystemEngine>() {
    const ITEMS: usize = 30_000;
    let mut bed = Bed::<E>::new();
    bed.nothing();
    let waker = bed.engine.waker();
    let (sender, inbox) = crossbeam_channel::unbounded::<usize>();
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (sender, waker) = (sender.clone(), waker.clone());
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                for item in 0..ITEMS {
                    sender.send(item).unwrap();
                    waker.wake();
                    // Mostly long enough for the shard to be somewhere on its way to sleep.
                    for _ in 0..rng.u32(..2000) {
                        std::hint::spin_loop();
                    }
                }
            });
        }
        let mut got = 0;
        let mut slept = [0, 0];
        while got < 2 * ITEMS {
            got += inbox.try_iter().count();
            let park = got % 2 == 0;
            if park {
                waker.set_parked();
                if inbox.is_empty() && bed.engine.prepare_park() {
                    slept[0] += 1;
                    let woken = got == 2 * ITEMS || readable(bed.engine.park_fd(), LOST);
                    assert!(woken, "lost a wake while parked");
                    bed.engine.unpark();
                }
            } else {
                waker.set_waiting();
                if inbox.is_empty() && got < 2 * ITEMS {
                    slept[1] += 1;
                    let start = Instant::now();
                    bed.engine.turn(Some(LOST)).unwrap();
                    assert!(start.elapsed() < LOST / 2, "lost a wake while waiting");
                }
            }
            waker.set_running();
            bed.engine.turn(None).unwrap();
            assert!(bed.engine.next_event().is_none());
        }
        assert!(slept[0] > 100 && slept[1] > 100, "it hardly slept: {slept:?}");
    });
}

/// Senders whose write comes when the shard has given up waiting, and parks: bytes must still wake
/// it. The ring's kernel side signals only the first of several completions. A completion that an
/// eventfd led to may not be signalled at all (`quirks`).
fn a_late_wake_deafens_nobody<E: SystemEngine>() {
    const ECHOES: usize = 4000;
    let mut bed = Bed::<E>::new();
    let (mut client, key) = bed.quiet_pair();
    bed.engine.receive_stream(key);
    bed.nothing();
    let waker = bed.engine.waker();
    // The very case, several times, as the kernel may get it right once: a sender was held up
    // before its write.
    for _ in 0..5 {
        waker.set_parked();
        assert!(bed.engine.prepare_park());
        waker.notify_waiting();
        assert!(readable(bed.engine.park_fd(), LOST), "deaf");
        bed.engine.unpark();
        bed.engine.turn(None).unwrap();
        assert!(bed.engine.next_event().is_none());
    }
    // And by chance.
    let stop = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = fastrand::Rng::with_seed(1);
            while stop.load(Ordering::Relaxed) == 0 {
                waker.wake();
                for _ in 0..rng.u32(..300) {
                    std::hint::spin_loop();
                }
            }
        });
        scope.spawn(|| {
            let mut word = [0; 5];
            for _ in 0..ECHOES {
                client.write_all(b"knock").unwrap();
                client.read_exact(&mut word).unwrap();
            }
        });
        let mut echoes = 0;
        while echoes < ECHOES {
            waker.set_waiting();
            bed.engine.turn(Some(Duration::from_micros(5))).unwrap();
            waker.set_running();
            while let Some(event) = bed.engine.next_event() {
                echoes += usize::from(matches!(event, Event::Received { .. }));
                if matches!(event, Event::Received { .. }) {
                    bed.engine.send(key, Payload::Own(b"knock".to_vec()));
                }
            }
            bed.engine.turn(None).unwrap();
            waker.set_parked();
            if bed.engine.prepare_park() {
                let woken = readable(bed.engine.park_fd(), LOST);
                assert!(woken, "deaf after {echoes} echoes");
                bed.engine.unpark();
            }
            waker.set_running();
        }
        stop.store(1, Ordering::Relaxed);
    });
}

/// Spins, as a sleep would hide the race, but not for long, as there may be one core only.
fn await_round(counter: &AtomicUsize, round: usize) {
    let mut spins = 0;
    while counter.load(Ordering::Acquire) != round {
        spins += 1;
        if spins < 2000 {
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

/// The pattern by itself, with nothing in between that might hide a missing fence: each side
/// stores, then looks.
#[test]
fn either_the_item_or_the_state_is_seen() {
    const ROUNDS: usize = 100_000;
    let waker = Waker::new().unwrap();
    // Apart, as neighbours in a cache line would arrive together.
    #[repr(align(128))]
    #[derive(Default)]
    struct Apart(AtomicUsize);
    let (item, go, done) = (Apart::default(), Apart::default(), Apart::default());
    let (item, go, done) = (&item.0, &go.0, &done.0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                await_round(go, round);
                item.store(round, Ordering::Relaxed);
                waker.wake();
                done.store(round, Ordering::Release);
            }
        });
        for round in 1..=ROUNDS {
            go.store(round, Ordering::Release);
            // So that sometimes one side is early and sometimes the other.
            for step in 0..round % 256 {
                std::hint::black_box(step);
            }
            waker.set_waiting();
            let seen = item.load(Ordering::Relaxed) == round;
            await_round(done, round);
            let woken = readable(waker.wait_fd(), Duration::ZERO);
            assert!(seen || woken, "round {round}: neither");
            waker.set_running();
            if woken {
                waker.drain_park_fd();
            }
        }
    });
}
