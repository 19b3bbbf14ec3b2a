//! Behaviour of the kernel and of glommio that we rely on without their promise. When one of these
//! fails after an upgrade, the engine must change, not the test.

use std::cell::Cell;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::task::Poll;

use glommio::{LocalExecutorBuilder, Placement};
use io_uring::types::Fd;
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::wakes::readable;
use super::*;
use crate::engine::park::{FdReady, RingYield};
use crate::engine::{EpollEngine, sys};

/// Runs a future on an executor as shards have it: a preempt timer that never fires.
fn on_executor<T: Send + 'static, F: Future<Output = T> + 'static>(make: impl FnOnce() -> F + Send + 'static) -> T {
    LocalExecutorBuilder::new(Placement::Unbound)
        .preempt_timer(Duration::from_secs(3600))
        .io_memory(64 << 10)
        .spawn(make)
        .unwrap()
        .join()
        .unwrap()
}

/// Polls once, to see whether it is ready at once.
async fn ready_at_once(ready: &mut FdReady) -> bool {
    std::future::poll_fn(|cx| Poll::Ready(ready.poll_ready(cx).is_ready())).await
}

#[test]
fn parks_until_readable() {
    // Never delete: parking relies on glommio's streams arming a poll first and failing with
    // ENOTSOCK after it. If either changes, shards never wake up again or never sleep.
    on_executor(|| async {
        let eventfd = sys::eventfd(0).unwrap();
        let mut ready = FdReady::new(eventfd.as_raw_fd()).unwrap();
        for _ in 0..50 {
            assert!(!ready_at_once(&mut ready).await);
            let writer = eventfd.try_clone().unwrap();
            let thread = std::thread::spawn(move || sys::notify(&writer));
            ready.ready().await;
            thread.join().unwrap();
            assert!(readable(eventfd.as_raw_fd(), Duration::ZERO));
            sys::drain(&eventfd);
        }
        // Readable already: still through the reactor, and then at once.
        sys::notify(&eventfd);
        assert!(!ready_at_once(&mut ready).await);
        ready.ready().await;
    });
}

#[test]
fn parks_on_an_epoll_set() {
    // Never delete: the epoll engine parks on the set itself, which is neither a socket nor a file.
    on_executor(|| async {
        let mut bed = Bed::<EpollEngine>::new();
        let (mut client, key) = bed.quiet_pair();
        bed.engine.receive_stream(key);
        let mut ready = FdReady::new(bed.engine.park_fd()).unwrap();
        for _ in 0..50 {
            // Not a wait that lasts: completions of the executor's own ring cut it short.
            bed.engine.turn(None).unwrap();
            assert!(bed.engine.next_event().is_none());
            assert!(bed.engine.prepare_park());
            assert!(!ready_at_once(&mut ready).await);
            client.write_all(b"x").unwrap();
            ready.ready().await;
            bed.engine.unpark();
            bed.expect_bytes(key, b"x");
        }
    });
}

#[test]
fn parking_keeps_the_descriptor() {
    // Never delete: glommio believes that it owns the descriptor. If it came to close it, the
    // number would be used again, and shards would read and close sockets of others.
    alone("engine::tests::quirks::parking_keeps_the_descriptor", || {
        on_executor(|| async {
            let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
            let eventfd = sys::eventfd(1).unwrap();
            let before = count();
            for round in 0..20 {
                let mut ready = FdReady::new(eventfd.as_raw_fd()).unwrap();
                for _ in 0..round % 4 {
                    ready.ready().await;
                }
                if round % 3 == 0 {
                    assert!(!ready_at_once(&mut ready).await);
                }
                assert_eq!(count(), before + 1);
                drop(ready);
                assert_eq!(count(), before);
            }
            assert!(readable(eventfd.as_raw_fd(), Duration::ZERO));
            assert!(FdReady::new(-1).is_err());
        });
    });
}

#[test]
fn yielding_passes_through_the_reactor() {
    // Never delete: timers and foreign wakes reach a busy shard only if a yield makes glommio look
    // at its reactor.
    on_executor(|| async {
        let fired = Rc::new(Cell::new(false));
        let seen = fired.clone();
        let timer = glommio::spawn_local(async move {
            glommio::timer::sleep(Duration::from_millis(2)).await;
            seen.set(true);
        });
        let (send, receive) = futures_channel();
        let mut passes = RingYield::new().unwrap();
        let deadline = Instant::now() + PATIENCE;
        let mut sender = Some(send);
        let foreign = glommio::spawn_local(receive);
        let mut count = 0;
        loop {
            // The shard never sleeps: each pass is due at once.
            passes.pass().await;
            count += 1;
            if let Some(send) = sender.take() {
                std::thread::spawn(send);
            }
            if fired.get() && FOREIGN.load(std::sync::atomic::Ordering::Acquire) {
                break;
            }
            assert!(Instant::now() < deadline, "{count} passes led nowhere");
        }
        timer.await;
        foreign.await;
    });
}

static FOREIGN: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// A closure that wakes a future from another thread.
fn futures_channel() -> (impl FnOnce() + Send + 'static, impl Future<Output = ()>) {
    use futures_util::task::AtomicWaker;
    use std::sync::Arc;
    let waker = Arc::new(AtomicWaker::new());
    let sent = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (their_waker, their_sent) = (waker.clone(), sent.clone());
    let send = move || {
        their_sent.store(true, std::sync::atomic::Ordering::SeqCst);
        their_waker.wake();
    };
    let receive = std::future::poll_fn(move |cx| {
        waker.register(cx.waker());
        if sent.load(std::sync::atomic::Ordering::SeqCst) {
            FOREIGN.store(true, std::sync::atomic::Ordering::Release);
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    });
    (send, receive)
}

/// A ring as the engine has it, or `None` where the kernel refuses.
fn raw_ring() -> Option<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .build(8)
        .ok()
}

fn submit(ring: &mut IoUring, entry: squeue::Entry) {
    // SAFETY: none of the entries made here points to memory.
    unsafe { ring.submission().push(&entry) }.unwrap();
    ring.submit().unwrap();
}

fn poll_multi(fd: RawFd) -> squeue::Entry {
    opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32)
        .multi(true)
        .build()
        .user_data(1)
}

/// Waits for one completion, at most `within`.
fn reap(ring: &mut IoUring, within: Duration) -> Option<cqueue::Entry> {
    let timeout = io_uring::types::Timespec::from(within);
    let args = io_uring::types::SubmitArgs::new().timespec(&timeout);
    match ring.submitter().submit_with_args(1, &args) {
        Ok(_) => {}
        Err(error) if error.raw_os_error() == Some(libc::ETIME) => {}
        Err(error) => panic!("{error}"),
    }
    ring.completion().next()
}

#[test]
fn a_watched_eventfd_need_not_be_drained() {
    // Never delete: the ring never reads the eventfd that wakes it, which saves a call per wake. If
    // the kernel came to report levels here, a shard that was woken once would spin; if it came to
    // coalesce edges, wakes would be lost.
    let Some(mut ring) = raw_ring() else { return };
    let eventfd = sys::eventfd(0).unwrap();
    submit(&mut ring, poll_multi(eventfd.as_raw_fd()));
    for _ in 0..1000 {
        sys::notify(&eventfd);
        let completion = reap(&mut ring, PATIENCE).expect("a write without a completion");
        assert!(cqueue::more(completion.flags()));
        assert!(reap(&mut ring, Duration::ZERO).is_none(), "a level");
    }
}

#[test]
fn the_registered_eventfd_obeys_its_switch() {
    // Never delete: while a shard runs, its completions must not cost a write to the eventfd each;
    // while it is parked, nothing else wakes it.
    let Some(mut ring) = raw_ring() else { return };
    let told = sys::eventfd(0).unwrap();
    ring.submitter().register_eventfd(told.as_raw_fd()).unwrap();
    let (near, mut far) = UnixStream::pair().unwrap();
    submit(&mut ring, poll_multi(near.as_raw_fd()));
    for _ in 0..100 {
        ring.completion().disable_eventfd();
        far.write_all(b"x").unwrap();
        assert!(reap(&mut ring, PATIENCE).is_some());
        assert!(!readable(told.as_raw_fd(), Duration::ZERO));
        ring.completion().enable_eventfd();
        far.write_all(b"x").unwrap();
        // Told although nobody has entered the ring, so the completion is not even in memory yet.
        assert!(readable(told.as_raw_fd(), PATIENCE));
        assert!(ring.submission().taskrun());
        assert!(reap(&mut ring, PATIENCE).is_some());
        sys::drain(&told);
    }
}

#[test]
fn what_an_eventfd_leads_to_is_not_told() {
    // Never delete. It is why a parked shard is woken through the registered eventfd itself. It is
    // also why a sender that was late with the other one looks again (`Waker::notify_waiting`). The
    // kernel does not signal an eventfd from within a write to another. It puts that off (15 ms),
    // and Linux 6.18 does even that only once per ring. Meanwhile no other completion is signalled
    // either, as only the first of several is.
    let Some(mut ring) = raw_ring() else { return };
    let told = sys::eventfd(0).unwrap();
    ring.submitter().register_eventfd(told.as_raw_fd()).unwrap();
    let source = sys::eventfd(0).unwrap();
    let (near, mut far) = UnixStream::pair().unwrap();
    submit(&mut ring, poll_multi(source.as_raw_fd()));
    submit(&mut ring, poll_multi(near.as_raw_fd()));
    for _ in 0..20 {
        // Told or not, this one must not be relied on.
        sys::notify(&source);
        let _ = readable(told.as_raw_fd(), Duration::from_millis(5));
        // The look before parking finds it in any case.
        assert!(ring.submission().taskrun());
        while reap(&mut ring, Duration::ZERO).is_some() {}
        sys::drain(&told);
        // With no such completion in the queue, sockets are signalled at once, every time.
        far.write_all(b"x").unwrap();
        assert!(readable(told.as_raw_fd(), PATIENCE));
        while reap(&mut ring, Duration::ZERO).is_some() {}
        sys::drain(&told);
    }
}

#[test]
#[ignore = "documents a limitation that a newer kernel may lift; nothing of ours breaks when it does"]
fn polling_the_ring_itself_does_not_wake() {
    // Never delete: it is why parking goes through a registered eventfd. When this fails, the
    // detour may go once no older kernel is supported.
    let woken = on_executor(|| async {
        let mut ring = raw_ring().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        submit(&mut ring, poll_multi(near.as_raw_fd()));
        let mut ready = FdReady::new(ring.as_raw_fd()).unwrap();
        let mut woken = 0;
        for _ in 0..6 {
            let mut timer = std::pin::pin!(glommio::timer::sleep(Duration::from_millis(200)));
            assert!(!ready_at_once(&mut ready).await);
            let mut writer = far.try_clone().unwrap();
            let thread = std::thread::spawn(move || writer.write_all(b"x").unwrap());
            woken += std::future::poll_fn(|cx| {
                if ready.poll_ready(cx).is_ready() {
                    return Poll::Ready(1);
                }
                timer.as_mut().poll(cx).map(|_| 0)
            })
            .await;
            thread.join().unwrap();
            while reap(&mut ring, Duration::ZERO).is_some() {}
        }
        far.write_all(b"x").unwrap();
        woken
    });
    eprintln!("{woken} of 6 wakes through the ring's own descriptor");
    assert!(woken < 6);
}

#[test]
fn closing_ends_nothing_in_flight() {
    // Never delete: it is why closing a socket has two steps. A receive that survived its
    // descriptor would pick a buffer for a slot that is somebody else's by then.
    let Some(mut ring) = raw_ring() else { return };
    let (near, _far) = UnixStream::pair().unwrap();
    let also_near = near.try_clone().unwrap();
    let mut byte = [0u8; 1];
    let entry = opcode::Recv::new(Fd(near.as_raw_fd()), byte.as_mut_ptr(), 1).build();
    submit(&mut ring, entry.user_data(2));
    // The last descriptor of the socket could be closed just as well; this one is kept to end the
    // receive.
    drop(near);
    assert!(reap(&mut ring, Duration::from_millis(50)).is_none());
    also_near.shutdown(std::net::Shutdown::Both).unwrap();
    let completion = reap(&mut ring, PATIENCE).expect("shutdown ends a receive");
    assert_eq!((completion.user_data(), completion.result()), (2, 0));
}

#[test]
fn an_accept_keeps_its_limit_of_descriptors() {
    // Never delete: it is why a pause cancels the accepts that are in flight. Accepts made before
    // the limit was raised would fail one after another, and pause anew each time.
    alone(
        "engine::tests::quirks::an_accept_keeps_its_limit_of_descriptors",
        || {
            let Some(mut ring) = raw_ring() else { return };
            let (listener, addr) = listener();
            let armed_with = std::fs::read_dir("/proc/self/fd").unwrap().count() + 100;
            super::limits::set_nofile(armed_with);
            let (fd, null) = (Fd(listener.as_raw_fd()), std::ptr::null_mut());
            submit(&mut ring, opcode::Accept::new(fd, null, std::ptr::null_mut()).build());
            // Lower than the number of open descriptors, so that every new one is refused.
            let client = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            super::limits::set_nofile(3);
            client.connect(&addr.into()).unwrap();
            let completion = reap(&mut ring, PATIENCE).unwrap();
            assert!(completion.result() > 0, "{}", completion.result());
        },
    );
}

#[test]
fn a_multishot_receive_picks_buffers_and_goes_on() {
    // Never delete: it is the whole of the ring engine. Its set-up tries the same at every start,
    // so that a kernel without it gets epoll and not silence.
    if !ring_usable() {
        return;
    }
    let mut bed = Bed::<RingEngine>::new();
    let (mut client, key) = bed.quiet_pair();
    bed.engine.receive_stream(key);
    bed.nothing();
    let calls = bed.engine.stats().syscalls;
    for _ in 0..100 {
        client.write_all(b"again").unwrap();
        bed.expect_bytes(key, b"again");
    }
    // One wait for each, and none to arm.
    assert!(bed.engine.stats().syscalls - calls <= 110);
}
