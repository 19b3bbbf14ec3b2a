//! A shard's loop inside glommio, under everything at once: sockets, foreign wakes, timers. The
//! loop here is the smallest one that keeps the rules; the real one does the same with sessions in
//! between.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use crossbeam_channel::{Receiver, Sender};
use glommio::{LocalExecutorBuilder, Placement};

use super::*;
use crate::engine::park::{FdReady, RingYield};
use crate::engine::{EpollEngine, Waker};

const CLIENTS: usize = 16;
const ROUNDS: usize = 600;
const ITEMS: usize = 6000;

/// Yields this often, by its own clock, as the executor's timer never fires.
const YIELD_EVERY: Duration = Duration::from_millis(1);

/// Waits this long in the engine before it parks in the executor.
const WAIT: Duration = Duration::from_millis(1);

/// Echoes, and counts what comes through the inbox, until the senders are gone.
async fn shard<E: SystemEngine>(mut engine: E, inbox: Receiver<()>) -> usize {
    let waker = engine.waker();
    let mut park = FdReady::new(engine.park_fd()).unwrap();
    let mut passes = RingYield::new().unwrap();
    let mut items = 0;
    let mut last_pass = Instant::now();
    let mut outbox: Vec<(SocketKey, Payload)> = Vec::new();
    // True after a wait in which nothing happened.
    let mut waited = false;
    loop {
        if !waited {
            waker.set_waiting();
            let wait = inbox.is_empty().then_some(WAIT);
            engine.turn(wait).unwrap();
            waker.set_running();
        } else {
            waker.set_parked();
            if inbox.is_empty() && engine.prepare_park() {
                park.ready().await;
                engine.unpark();
                last_pass = Instant::now();
            }
            waker.set_running();
            engine.turn(None).unwrap();
        }
        let mut idle = true;
        let mut closing = Vec::new();
        while let Some(event) = engine.next_event() {
            idle = false;
            match event {
                Event::Received { key, bytes } => {
                    outbox.push((key, Payload::Own(bytes.to_vec())));
                }
                Event::Ended { key, .. } => closing.push(key),
                _ => {}
            }
        }
        for (key, payload) in outbox.drain(..) {
            engine.receive_stream(key);
            // A client waits for its echo, so there is never one in flight.
            engine.send(key, payload);
        }
        for key in closing {
            engine.close(key);
        }
        loop {
            match inbox.try_recv() {
                Ok(()) => items += 1,
                Err(crossbeam_channel::TryRecvError::Empty) => break,
                Err(crossbeam_channel::TryRecvError::Disconnected) => return items,
            }
            idle = false;
        }
        waited = idle && !waited;
        if last_pass.elapsed() >= YIELD_EVERY {
            passes.pass().await;
            last_pass = Instant::now();
        }
    }
}

/// Clients that write and read back, in one thread.
fn drive(addr: SocketAddr) {
    let mut clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let client = TcpStream::connect(addr).unwrap();
            client.set_nodelay(true).unwrap();
            client
        })
        .collect();
    let mut word = [0; 64];
    for round in 0..ROUNDS {
        for client in &mut clients {
            client.write_all(&[round as u8; 64]).unwrap();
        }
        for client in &mut clients {
            client.read_exact(&mut word).unwrap();
            assert_eq!(word, [round as u8; 64]);
        }
    }
}

/// Items at odd moments, each with a wake.
fn disturb(items: &Sender<()>, waker: &Waker) {
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..ITEMS {
        items.send(()).unwrap();
        waker.wake();
        let start = Instant::now();
        let pause = Duration::from_micros(rng.u64(..300));
        while start.elapsed() < pause {
            std::thread::yield_now();
        }
    }
}

/// True if the shard did everything before the deadline. If not, its threads are left behind.
fn stress<E: SystemEngine + 'static>(preempt: Duration, deadline: Duration) -> bool {
    let (done, finished) = mpsc::channel();
    let (started, engines) = mpsc::channel();
    let (items, inbox) = crossbeam_channel::unbounded();
    let (listener, addr) = listener();
    let end = done.clone();
    std::thread::spawn(move || {
        let ticks = LocalExecutorBuilder::new(Placement::Unbound)
            .preempt_timer(preempt)
            .io_memory(64 << 10)
            .spawn(move || async move {
                let engine = E::new(listener).unwrap();
                started.send(engine.waker()).unwrap();
                let ticks = std::rc::Rc::new(AtomicUsize::new(0));
                let counter = ticks.clone();
                let ticker = glommio::spawn_local(async move {
                    loop {
                        glommio::timer::sleep(Duration::from_micros(300)).await;
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                });
                let shard = glommio::spawn_local(shard(engine, inbox));
                assert_eq!(shard.await, ITEMS);
                ticker.cancel().await;
                ticks.load(Ordering::Relaxed)
            })
            .unwrap()
            .join()
            .unwrap();
        end.send(ticks).unwrap();
    });
    let waker = engines.recv_timeout(PATIENCE).unwrap();
    std::thread::spawn(move || {
        let clients = std::thread::spawn(move || drive(addr));
        disturb(&items, &waker);
        clients.join().unwrap();
        drop(items);
        waker.wake();
    });
    match finished.recv_timeout(deadline) {
        Ok(ticks) => {
            assert!(ticks > 100, "timers fired {ticks} times only");
            true
        }
        Err(_) => false,
    }
}

/// As shards run: the timer never fires, and the engine's task yields by its own clock.
const NEVER: Duration = Duration::from_secs(3600);

#[test]
fn a_shard_on_the_ring_does_not_hang() {
    // Never delete: glommio 0.9.0 parks with runnable tasks if its preempt timer fires at a bad
    // moment. This is the setting that avoids it, under a load that shows the defect with short
    // timers (`short_preempt_timers_hang`).
    let name = "engine::tests::executor::a_shard_on_the_ring_does_not_hang";
    alone(name, || {
        if ring_usable() {
            for _ in 0..3 {
                assert!(stress::<RingEngine>(NEVER, PATIENCE), "the shard hangs");
            }
        }
    });
}

#[test]
fn a_shard_on_epoll_does_not_hang() {
    // Never delete: as for the ring.
    let name = "engine::tests::executor::a_shard_on_epoll_does_not_hang";
    alone(name, || {
        for _ in 0..3 {
            assert!(stress::<EpollEngine>(NEVER, PATIENCE), "the shard hangs");
        }
    });
}

#[test]
#[ignore = "shows a race of glommio 0.9.0, which takes some time and some luck; run it when glommio is upgraded"]
fn short_preempt_timers_hang() {
    // Never delete: when this fails, glommio may have been mended, and the preempt timer may become
    // a short one again.
    alone("engine::tests::executor::short_preempt_timers_hang", || {
        let runs = 12;
        let hangs = (0..runs)
            .filter(|_| !stress::<EpollEngine>(Duration::from_micros(50), PATIENCE / 4))
            .count();
        eprintln!("{hangs} of {runs} runs hang with a preempt timer of 50 us");
        assert!(hangs > 0);
    });
}
