//! Limits of the process and of the kernel: descriptors, many sockets, system calls, the end of an
//! engine.

use std::fs::File;

use bytes::Bytes;

use super::*;

for_both_engines! {
    pauses_accepting_without_descriptors,
    leaves_connections_to_the_kernel_until_they_are_taken,
    leaks_no_descriptor,
    serves_five_thousand_sockets,
    drops_with_operations_in_flight,
    sends_of_one_turn_leave_together,
}

/// Full path of a test of this file, for [`alone`].
fn path<E: SystemEngine>(name: &str) -> String {
    format!("engine::tests::limits::{}::{name}", E::NAME)
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

pub(super) fn set_nofile(soft: usize) {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: one live rlimit is written; only a process of its own runs this (`alone`).
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    assert_eq!(result, 0);
    limit.rlim_cur = (soft as libc::rlim_t).min(limit.rlim_max);
    // SAFETY: as above, and it is only read.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(result, 0);
}

fn pauses_accepting_without_descriptors<E: SystemEngine>() {
    alone(&path::<E>("pauses_accepting_without_descriptors"), || {
        let mut bed = Bed::<E>::new();
        // The clients first, as they are in this process as well.
        let clients = [(); 2].map(|()| Socket::new(Domain::IPV4, Type::STREAM, None).unwrap());
        // Before the first turn: an accept keeps the limit that it was made with.
        set_nofile(open_descriptors() + 1);
        let null = || File::open("/dev/null").ok();
        let mut rest: Vec<_> = std::iter::from_fn(null).collect();
        rest.pop();
        for client in &clients {
            client.connect(&bed.addr.into()).unwrap();
        }
        let key = match bed.next() {
            Seen::Accepted(key) => key,
            other => panic!("{other:?}"),
        };
        match bed.next() {
            Seen::Paused(error) => assert_eq!(error.raw_os_error(), Some(libc::EMFILE)),
            other => panic!("{other:?}"),
        }
        // Neither spinning nor asking again by itself.
        bed.nothing();
        bed.engine.resume_accept();
        assert!(matches!(bed.next(), Seen::Paused(_)));
        bed.nothing();
        set_nofile(1000);
        bed.engine.resume_accept();
        bed.engine.resume_accept();
        match bed.next() {
            Seen::Accepted(new) => assert_ne!(new, key),
            other => panic!("{other:?}"),
        }
        let _second = bed.pair();
        bed.engine.resume_accept();
        bed.nothing();
        let _third = bed.pair();
    });
}

/// A client that connects and resets in a loop takes no descriptors for it, however far behind the
/// owner of the engine is.
fn leaves_connections_to_the_kernel_until_they_are_taken<E: SystemEngine>() {
    const CONNECTIONS: usize = 900;
    alone(
        &path::<E>("leaves_connections_to_the_kernel_until_they_are_taken"),
        || {
            let mut bed = Bed::<E>::new();
            bed.engine.turn(None).unwrap();
            let before = open_descriptors();
            let mut accepted = 0;
            let mut take = |engine: &mut E| match engine.next_event().map(Seen::from) {
                Some(Seen::Accepted(_)) => accepted += 1,
                Some(Seen::Ended(key, _)) => engine.close(key),
                Some(Seen::Closed(_)) | None => {}
                Some(other) => panic!("{other:?}"),
            };
            for _ in 0..CONNECTIONS {
                reset(bed.connect());
                bed.engine.turn(None).unwrap();
                take(&mut bed.engine);
                // The descriptors of the sockets that the owner knows, and no more.
                let unknown = open_descriptors().saturating_sub(before + bed.engine.sockets());
                assert!(unknown <= 64, "{unknown} descriptors for nobody");
            }
            let deadline = Instant::now() + PATIENCE;
            while open_descriptors() > before || bed.engine.has_work() {
                assert!(Instant::now() < deadline, "not all were taken");
                bed.engine.turn(Some(Duration::from_millis(1))).unwrap();
                take(&mut bed.engine);
            }
            assert_eq!((accepted, bed.engine.sockets()), (CONNECTIONS, 0));
        },
    );
}

fn leaks_no_descriptor<E: SystemEngine>() {
    alone(&path::<E>("leaks_no_descriptor"), || {
        // The first engine may make the process open something for good.
        drop(Bed::<E>::new());
        let before = open_descriptors();
        for _ in 0..20 {
            let mut bed = Bed::<E>::new();
            let (_quiet, _) = bed.quiet_pair();
            let (_armed, _) = bed.pair();
            let (_stream, key) = bed.pair();
            bed.engine.receive_stream(key);
            let (_blocked, key) = bed.quiet_pair();
            bed.engine.send(key, Payload::Own(vec![0; 24 << 20]));
            let (_closed, key) = bed.pair();
            bed.close(key);
            let (_closing, key) = bed.pair();
            bed.engine.close(key);
            let (_unseen, _) = (bed.connect(), bed.connect());
            let (_detached, key) = bed.quiet_pair_past_accepts();
            drop(bed.engine.detach(key).unwrap());
            let (_reset, _) = bed.pair();
            bed.engine.turn(None).unwrap();
        }
        assert_eq!(open_descriptors(), before);
    });
}

impl<E: SystemEngine> Bed<E> {
    /// As `quiet_pair`, while other connections are being accepted and closed.
    fn quiet_pair_past_accepts(&mut self) -> (TcpStream, SocketKey) {
        let mut client = self.connect();
        client.write_all(b"first").unwrap();
        loop {
            if let Seen::Received(key, _) = self.next() {
                return (client, key);
            }
        }
    }
}

fn serves_five_thousand_sockets<E: SystemEngine>() {
    const SOCKETS: usize = 5000;
    alone(&path::<E>("serves_five_thousand_sockets"), || {
        set_nofile(2 * SOCKETS + 500);
        let mut bed = Bed::<E>::new();
        let mut clients = Vec::new();
        let mut keys = Vec::new();
        while keys.len() < SOCKETS {
            for _ in 0..100 {
                clients.push(bed.connect());
            }
            while keys.len() < clients.len() {
                match bed.next() {
                    Seen::Accepted(key) => keys.push(key),
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(bed.engine.sockets(), SOCKETS);
        for &key in &keys {
            bed.engine.receive_stream(key);
        }
        for round in 0..3u32 {
            for (index, client) in clients.iter_mut().enumerate() {
                let word = [index as u32, round].map(u32::to_le_bytes).concat();
                client.write_all(&word).unwrap();
            }
            let mut waiting = 0;
            let mut echoed = 0;
            while echoed < SOCKETS || waiting > 0 {
                match bed.next() {
                    Seen::Received(key, bytes) => {
                        echoed += 1;
                        let status = bed.engine.send(key, Payload::Own(bytes));
                        waiting += usize::from(matches!(status, SendStatus::InFlight));
                    }
                    Seen::Sent(..) => waiting -= 1,
                    other => panic!("{other:?}"),
                }
            }
            for (index, client) in clients.iter_mut().enumerate() {
                let mut word = [0; 8];
                client.read_exact(&mut word).unwrap();
                let expected = [index as u32, round].map(u32::to_le_bytes).concat();
                assert_eq!(word[..], expected[..]);
            }
        }
        // Half of them leave, half are closed.
        for client in clients.drain(..SOCKETS / 2) {
            drop(client);
        }
        for _ in 0..SOCKETS / 2 {
            match bed.next() {
                Seen::Ended(_, None) => {}
                other => panic!("{other:?}"),
            }
        }
        for &key in &keys {
            bed.engine.close(key);
        }
        for _ in 0..SOCKETS {
            assert!(matches!(bed.next(), Seen::Closed(_)));
        }
        assert_eq!(bed.engine.sockets(), 0);
        bed.nothing();
    });
}

fn drops_with_operations_in_flight<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    let mut clients = Vec::new();
    for index in 0..64 {
        let (client, key) = bed.quiet_pair();
        clients.push(client);
        match index % 4 {
            0 => bed.engine.receive_once(key),
            1 => bed.engine.receive_stream(key),
            _ => {}
        }
        if index % 2 == 0 {
            bed.engine.send(key, Payload::Own(vec![index; 24 << 18]));
        }
        if index % 8 < 4 {
            bed.engine.turn(None).unwrap();
        }
    }
    let waker = bed.engine.waker();
    waker.set_waiting();
    let (mut last, _) = bed.quiet_pair();
    last.write_all(b"held by the engine").unwrap();
    let start = Instant::now();
    drop(bed);
    assert!(start.elapsed() < Duration::from_secs(1));
    // A wake of an engine that is gone is nothing.
    waker.wake();
    for client in clients.iter_mut().chain([&mut last]) {
        read_to_end(client);
    }
}

fn sends_of_one_turn_leave_together<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    let mut pairs: Vec<_> = (0..100).map(|_| bed.quiet_pair()).collect();
    bed.nothing();
    let before = bed.engine.stats().syscalls;
    let frame = Bytes::from_static(b"to everybody");
    let mut waiting = 0;
    for (_, key) in &pairs {
        let status = bed.engine.send(*key, Payload::Shared(frame.clone()));
        waiting += usize::from(matches!(status, SendStatus::InFlight));
    }
    while waiting > 0 {
        assert!(matches!(bed.next(), Seen::Sent(..)));
        waiting -= 1;
    }
    let calls = bed.engine.stats().syscalls - before;
    if E::NAME == "ring" {
        assert!(calls <= 3, "{calls} calls for 100 sends");
        for _ in 0..1000 {
            bed.engine.turn(None).unwrap();
            assert!(bed.engine.next_event().is_none());
        }
        let after = bed.engine.stats().syscalls - before;
        assert_eq!(after, calls, "empty turns cost nothing");
    } else {
        assert!(calls <= 100, "{calls} calls for 100 sends");
    }
    for (client, _) in &mut pairs {
        let mut got = vec![0; frame.len()];
        client.read_exact(&mut got).unwrap();
        assert_eq!(got, frame);
    }
}

/// Runs `body` on a thread for which the kernel does not have some system calls.
fn without_calls<T: Send>(calls: &[libc::c_long], body: impl FnOnce() -> T + Send) -> T {
    let failing: Vec<_> = calls.iter().map(|call| (*call, libc::ENOSYS)).collect();
    with_failing_calls(&failing, body)
}

/// Runs `body` on a thread for which some system calls do nothing but fail like this.
fn with_failing_calls<T: Send>(calls: &[(libc::c_long, libc::c_int)], body: impl FnOnce() -> T + Send) -> T {
    const LOAD_CALL: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jump_over, k| libc::sock_filter {
        code,
        jt: 0,
        jf: jump_over,
        k,
    };
    // The number of the call is the first field of what the filter is given.
    let mut filter = vec![step(LOAD_CALL, 0, 0)];
    for &(call, errno) in calls {
        filter.push(step(JUMP_IF_EQUAL, 1, call as u32));
        filter.push(step(RETURN, 0, libc::SECCOMP_RET_ERRNO | errno as u32));
    }
    filter.push(step(RETURN, 0, libc::SECCOMP_RET_ALLOW));
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let program = libc::sock_fprog {
                len: filter.len() as u16,
                filter: filter.as_mut_ptr(),
            };
            // SAFETY: no pointers.
            let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
            assert_eq!(result, 0);
            // SAFETY: the program and its filter are alive for the call, which copies them; it
            // binds this thread only.
            let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
            assert_eq!(result, 0);
            body()
        });
        thread.join().unwrap()
    })
}

#[test]
fn the_ring_says_that_it_is_not_supported() {
    let calls = [
        (libc::SYS_io_uring_setup, "io_uring_setup"),
        (libc::SYS_io_uring_register, "ring of provided buffers"),
        (libc::SYS_io_uring_enter, "multishot receive"),
    ];
    for (call, step) in calls {
        let error = without_calls(&[call], || RingEngine::new(listener().0).err()).unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(step), "{error}");
    }
}

#[test]
fn the_ring_works_without_registering_itself() {
    // As when the thread has used up its 16 registered rings; the other registrations are needed,
    // so they come first.
    if !ring_usable() {
        return;
    }
    let mut beds: Vec<_> = (0..20).map(|_| Bed::<RingEngine>::new()).collect();
    for bed in &mut beds {
        let (mut client, key) = bed.quiet_pair();
        bed.send(key, Payload::Own(b"heard".to_vec()));
        bed.close(key);
        assert_eq!(read_to_end(&mut client), b"heard");
    }
}

#[test]
fn epoll_works_without_fine_waits() {
    without_calls(&[libc::SYS_epoll_pwait2], || {
        let mut bed = Bed::<crate::engine::EpollEngine>::new();
        let (mut client, key) = bed.quiet_pair();
        bed.nothing();
        let start = Instant::now();
        bed.engine.turn(Some(Duration::from_nanos(1))).unwrap();
        assert!(start.elapsed() >= Duration::from_micros(500), "not rounded up");
        bed.engine.receive_stream(key);
        client.write_all(b"x").unwrap();
        bed.expect_bytes(key, b"x");
    });
}

/// Out of descriptors of the whole host, of memory for sockets, of memory. Root is exempt from
/// `fs.file-max`, so the kernel is made to return them without cause. The ring calls nothing to
/// accept: see its own tests.
#[test]
fn epoll_pauses_accepting_when_the_host_has_nothing_left() {
    for errno in [libc::ENFILE, libc::ENOBUFS, libc::ENOMEM] {
        let mut bed = Bed::<crate::engine::EpollEngine>::new();
        let _client = bed.connect();
        with_failing_calls(&[(libc::SYS_accept4, errno)], || {
            for _ in 0..2 {
                bed.engine.resume_accept();
                match bed.next() {
                    Seen::Paused(error) => assert_eq!(error.raw_os_error(), Some(errno)),
                    other => panic!("{other:?}"),
                }
                // Neither spinning nor asking again by itself.
                bed.nothing();
            }
        });
        bed.engine.resume_accept();
        assert!(matches!(bed.next(), Seen::Accepted(_)));
    }
}
