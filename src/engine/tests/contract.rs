//! The contract of [`Engine`], for both engines, over real loopback sockets.

use std::net::{Shutdown, TcpStream};

use bytes::Bytes;

use super::*;

for_both_engines! {
    accepts,
    holds_accepts,
    receives_once_then_nothing,
    receives_a_stream,
    once_becomes_a_stream,
    survives_lack_of_buffers,
    bulk_senders_take_turns_and_hold_up_nobody,
    the_end_of_a_bulk_sender_comes_behind_its_bytes,
    closes_bulk_senders_with_bytes_waiting,
    sends,
    submits_in_the_middle_of_a_turn,
    sends_to_a_slow_peer,
    bytes_nobody_reads_are_known,
    sends_and_receives_at_once,
    delivers_bytes_before_the_end,
    half_closed_peer_still_hears,
    reports_a_reset,
    reset_while_nothing_is_armed,
    reset_under_a_blocked_send,
    send_after_the_peer_is_gone,
    closes_with_nothing_in_flight,
    closes_with_operations_in_flight,
    resets_with_operations_in_flight,
    closing_ends_other_events,
    reuses_slots_with_new_keys,
    ignores_stale_keys,
    moves_to_another_engine,
    detaches_only_when_quiet,
    bounds_events_per_turn,
}

fn accepts<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    assert_eq!(bed.engine.sockets(), 0);
    let (client, key) = bed.pair();
    assert_eq!(bed.engine.sockets(), 1);
    assert_eq!(bed.engine.peer_addr(key), Some(client.local_addr().unwrap()));
    let (_other, other_key) = bed.pair();
    assert_ne!(key, other_key);
    assert_eq!(bed.engine.sockets(), 2);
    bed.nothing();
}

fn holds_accepts<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    bed.engine.hold_accepts(true);
    // As many as are under way come all the same.
    let clients: Vec<TcpStream> = (0..100).map(|_| bed.connect()).collect();
    let mut accepted = 0;
    for _ in 0..20 {
        bed.engine.turn(None).unwrap();
        while let Some(event) = bed.engine.next_event() {
            assert!(matches!(event, Event::Accepted { .. }), "{event:?}");
            accepted += 1;
        }
    }
    assert!(accepted <= 8, "{accepted} were accepted");
    bed.engine.hold_accepts(false);
    while accepted < clients.len() {
        assert!(matches!(bed.next(), Seen::Accepted(_)));
        accepted += 1;
    }
    bed.nothing();
}

fn receives_once_then_nothing<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    let (mut client, key) = bed.quiet_pair();
    client.write_all(b"second").unwrap();
    bed.nothing();
    bed.engine.receive_once(key);
    bed.expect_bytes(key, b"second");
    client.write_all(b"third").unwrap();
    bed.nothing();
    bed.engine.receive_stream(key);
    bed.expect_bytes(key, b"third");
    client.write_all(b"fourth").unwrap();
    bed.expect_bytes(key, b"fourth");
}

fn receives_a_stream<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    let (mut client, key) = bed.quiet_pair();
    bed.engine.receive_stream(key);
    let bytes = pattern(1, 16 << 20);
    std::thread::scope(|scope| {
        scope.spawn(|| client.write_all(&bytes).unwrap());
        bed.expect_bytes(key, &bytes);
    });
    client.write_all(b"end").unwrap();
    bed.expect_bytes(key, b"end");
    bed.nothing();
}

fn once_becomes_a_stream<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    let (mut client, key) = bed.pair();
    bed.engine.receive_stream(key);
    for word in [b"one", b"two", b"six"] {
        client.write_all(word).unwrap();
        bed.expect_bytes(key, word);
    }
}

/// Fills what the kernel takes without a reader.
fn fill(mut client: &TcpStream, bytes: &[u8]) -> usize {
    client.set_nonblocking(true).unwrap();
    let mut written = 0;
    loop {
        match client.write(&bytes[written..]) {
            Ok(0) => break,
            Ok(len) => written += len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    client.set_nonblocking(false).unwrap();
    written
}

fn survives_lack_of_buffers<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    let mut all: Vec<_> = (0..48).map(|_| bed.quiet_pair()).collect();
    let mut expected = Vec::new();
    // Half of them fill up before anything is armed, so that more than all buffers is there in the
    // first turn.
    for (index, (client, key)) in all.iter().enumerate() {
        let mut bytes = pattern(index, 256 << 10);
        bytes.truncate(fill(client, &bytes));
        assert!(bytes.len() > 50_000, "the kernel took {}", bytes.len());
        expected.push(bytes);
        if index % 3 == 0 {
            bed.engine.receive_once(*key);
        } else {
            bed.engine.receive_stream(*key);
        }
    }
    let mut got: Vec<Vec<u8>> = vec![Vec::new(); all.len()];
    let mut left = expected.len();
    while left > 0 {
        let Seen::Received(key, bytes) = bed.next() else {
            panic!("not bytes");
        };
        let index = all.iter().position(|(_, other)| *other == key).unwrap();
        got[index].extend(bytes);
        if index % 3 == 0 {
            bed.engine.receive_once(key);
        }
        left -= usize::from(got[index].len() == expected[index].len());
    }
    assert!(got == expected);
    if E::NAME == "ring" {
        assert!(bed.engine.stats().buffers_exhausted > 0);
    }
    // And all of them still receive.
    for (client, key) in &mut all {
        client.write_all(b"more").unwrap();
        bed.expect_bytes(*key, b"more");
    }
}

/// Sockets with so much to receive that some of it waits for its turn.
fn bulk_senders<E: SystemEngine>(bed: &mut Bed<E>, count: usize) -> Vec<(TcpStream, SocketKey, Vec<u8>)> {
    let senders: Vec<_> = (0..count).map(|_| bed.quiet_pair()).collect();
    let filled = senders.into_iter().enumerate().map(|(index, (client, key))| {
        let mut bytes = pattern(index, 256 << 10);
        bytes.truncate(fill(&client, &bytes));
        assert!(bytes.len() > 50_000, "the kernel took {}", bytes.len());
        bed.engine.receive_stream(key);
        (client, key, bytes)
    });
    filled.collect()
}

fn bulk_senders_take_turns_and_hold_up_nobody<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    let (mut other, other_key) = bed.quiet_pair();
    bed.engine.receive_stream(other_key);
    let senders = bulk_senders(&mut bed, 3);
    let mut got = vec![Vec::new(); senders.len()];
    let (mut last, mut in_a_row) = (None, 0);
    for round in 0u32.. {
        if (0..senders.len()).all(|n| got[n].len() == senders[n].2.len()) {
            break;
        }
        // However much waits, bytes of another socket are delivered in the turn after they were
        // sent.
        let word = round.to_be_bytes();
        other.write_all(&word).unwrap();
        bed.engine.turn(None).unwrap();
        let mut heard = false;
        while let Some(event) = bed.engine.next_event() {
            match Seen::from(event) {
                Seen::Received(key, bytes) if key == other_key => {
                    assert_eq!(bytes, word);
                    heard = true;
                }
                Seen::Received(key, bytes) => {
                    let sender = senders.iter().position(|sender| sender.1 == key).unwrap();
                    got[sender].extend(bytes);
                }
                event => panic!("{event:?}"),
            }
        }
        assert!(heard, "held up in round {round}");
        let has_work = bed.engine.has_work();
        let Some(event) = bed.engine.next_bulk().map(Seen::from) else {
            continue;
        };
        assert!(has_work, "would have waited");
        let Seen::Received(key, bytes) = event else {
            panic!("{event:?}");
        };
        let sender = senders.iter().position(|sender| sender.1 == key).unwrap();
        let more_than_one = (0..senders.len())
            .filter(|&n| got[n].len() < senders[n].2.len())
            .count()
            > 1;
        in_a_row = if last == Some(sender) { in_a_row + 1 } else { 1 };
        assert!(in_a_row <= 4 || !more_than_one, "{in_a_row} of one sender's in a row");
        got[sender].extend(bytes);
        // A sender without more bytes is out of the order for a moment: the next one may be any.
        last = (got[sender].len() < senders[sender].2.len()).then_some(sender);
    }
    assert!(got.iter().zip(&senders).all(|(got, sender)| *got == sender.2));
    bed.nothing();
}

fn the_end_of_a_bulk_sender_comes_behind_its_bytes<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    for (client, key, bytes) in bulk_senders(&mut bed, 20) {
        // Some of it waits already when the end comes.
        bed.engine.turn(None).unwrap();
        let mut got = Vec::new();
        drop(client);
        loop {
            match bed.next() {
                Seen::Received(from, part) if from == key => got.extend(part),
                Seen::Ended(from, error) if from == key => break assert!(error.is_none(), "{error:?}"),
                // The other senders' turns.
                Seen::Received(..) => {}
                other => panic!("{other:?}"),
            }
        }
        // Its bytes have come while others had their turns.
        assert!(bytes.ends_with(&got));
        bed.close(key);
    }
}

fn closes_bulk_senders_with_bytes_waiting<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    // Many more buffers than there are would be lost.
    for round in 0..50 {
        let senders = bulk_senders(&mut bed, 4);
        bed.engine.turn(None).unwrap();
        let mut seen = 0;
        while bed.engine.next_event().is_some() || seen < round % 3 && bed.engine.next_bulk().is_some() {
            seen += 1;
        }
        for (_, key, _) in &senders {
            if round % 2 == 0 {
                bed.engine.close(*key);
            } else {
                bed.engine.reset(*key);
            }
        }
        for _ in &senders {
            assert!(matches!(bed.next(), Seen::Closed(_)));
        }
    }
    bed.nothing();
    assert_eq!(bed.engine.sockets(), 0);
    assert!(!bed.engine.has_work());
    let (mut client, key) = bed.quiet_pair();
    bed.engine.receive_stream(key);
    let bytes = pattern(9, 4 << 20);
    std::thread::scope(|scope| {
        scope.spawn(|| client.write_all(&bytes).unwrap());
        bed.expect_bytes(key, &bytes);
    });
}

fn sends<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    let (mut client, key) = bed.quiet_pair();
    let buffer = Vec::from(b"own bytes".as_slice());
    let address = buffer.as_ptr();
    let payload = bed.send(key, Payload::Own(buffer));
    assert_eq!(payload.as_slice(), b"own bytes");
    assert_eq!(payload.as_slice().as_ptr(), address, "it is the same buffer");
    bed.send(key, Payload::Shared(Bytes::from_static(b", shared bytes")));
    bed.engine.finish(key);
    assert_eq!(read_to_end(&mut client), b"own bytes, shared bytes");
    assert_eq!(bed.engine.stats().short_sends, 0);
}

fn submits_in_the_middle_of_a_turn<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    let (mut client, key) = bed.quiet_pair();
    let status = bed.engine.send(key, Payload::Own(b"now".to_vec()));
    bed.engine.submit().unwrap();
    let mut got = [0; 3];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"now");
    // Its result is reported in the next turn, as ever.
    if let SendStatus::InFlight = status {
        assert!(matches!(bed.next(), Seen::Sent(from, _) if from == key));
    }
    bed.nothing();
}

fn sends_to_a_slow_peer<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    let (mut client, key) = bed.quiet_pair();
    let bytes = Bytes::from(pattern(2, 24 << 20));
    let status = bed.engine.send(key, Payload::Shared(bytes.clone()));
    assert!(matches!(status, SendStatus::InFlight));
    bed.nothing();
    assert!(
        bed.engine.unacknowledged(key) > Some(0),
        "the kernel has more than the peer takes"
    );
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut got = vec![0; bytes.len()];
            client.read_exact(&mut got).unwrap();
            assert!(got == bytes);
        });
        match bed.next() {
            Seen::Sent(from, payload) => {
                assert_eq!(from, key);
                assert_eq!(payload.as_slice().len(), bytes.len());
            }
            other => panic!("{other:?}"),
        }
    });
    bed.nothing();
    bed.send(key, Payload::Own(b"last".to_vec()));
    bed.close(key);
    assert_eq!(read_to_end(&mut client), b"last");
}

/// While a send is under way, the kernel knows how far the peer is.
fn bytes_nobody_reads_are_known<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    let (mut client, key) = bed.quiet_pair();
    let bytes = Bytes::from(pattern(2, 24 << 20));
    bed.engine.send(key, Payload::Shared(bytes.clone()));
    bed.nothing();
    let waiting = bed.engine.unacknowledged(key).unwrap();
    assert!(waiting > 0, "its peer reads nothing");
    let mut got = vec![0; bytes.len()];
    std::thread::scope(|scope| {
        scope.spawn(|| client.read_exact(&mut got).unwrap());
        assert!(matches!(bed.next(), Seen::Sent(..)));
    });
    let until = Instant::now() + super::PATIENCE;
    while bed.engine.unacknowledged(key) != Some(0) {
        assert!(Instant::now() < until, "it has read everything");
        std::thread::yield_now();
    }
    bed.close(key);
    assert_eq!(bed.engine.unacknowledged(key), None, "it is gone");
}

fn sends_and_receives_at_once<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    let (mut client, key) = bed.quiet_pair();
    let (there, back) = (pattern(3, 6 << 20), pattern(4, 6 << 20));
    bed.engine.receive_stream(key);
    let mut writer = client.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&there).unwrap());
        scope.spawn(|| {
            let mut got = vec![0; back.len()];
            client.read_exact(&mut got).unwrap();
            assert!(got == back);
        });
        let mut got = Vec::new();
        let mut parts = back.chunks(1 << 20);
        let mut sending = false;
        while got.len() < there.len() || sending || parts.len() > 0 {
            while !sending && let Some(part) = parts.next() {
                let status = bed.engine.send(key, Payload::Own(part.to_vec()));
                sending = matches!(status, SendStatus::InFlight);
            }
            if got.len() < there.len() || sending {
                match bed.next() {
                    Seen::Received(_, bytes) => got.extend(bytes),
                    Seen::Sent(..) => sending = false,
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!(got == there);
    });
}

fn delivers_bytes_before_the_end<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    for stream in [false, true] {
        let (mut client, key) = bed.quiet_pair();
        let bytes = pattern(5, 100_000);
        client.write_all(&bytes[..1000]).unwrap();
        let mut got = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                client.write_all(&bytes[1000..]).unwrap();
                drop(client);
            });
            loop {
                if stream {
                    bed.engine.receive_stream(key);
                } else {
                    bed.engine.receive_once(key);
                }
                match bed.next() {
                    Seen::Received(_, part) => got.extend(part),
                    Seen::Ended(_, None) => break,
                    other => panic!("{other:?}"),
                }
            }
        });
        assert!(got == bytes);
        bed.nothing();
        // Ended comes once, whatever is asked.
        bed.engine.receive_once(key);
        bed.engine.receive_stream(key);
        bed.nothing();
        bed.close(key);
    }
}

fn half_closed_peer_still_hears<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    let (mut client, key) = bed.quiet_pair();
    bed.engine.receive_stream(key);
    client.shutdown(Shutdown::Write).unwrap();
    assert!(bed.expect_ended(key).is_none());
    bed.nothing();
    let bytes = pattern(6, 24 << 20);
    let status = bed.engine.send(key, Payload::Own(bytes.clone()));
    assert!(matches!(status, SendStatus::InFlight));
    bed.nothing();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_to_end(&mut client));
        assert!(matches!(bed.next(), Seen::Sent(..)));
        bed.engine.finish(key);
        assert!(reader.join().unwrap() == bytes);
    });
    bed.close(key);
}

fn reports_a_reset<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    for stream in [false, true] {
        let (client, key) = bed.quiet_pair();
        if stream {
            bed.engine.receive_stream(key);
        } else {
            bed.engine.receive_once(key);
        }
        bed.nothing();
        reset(client);
        let error = bed.expect_ended(key).unwrap();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        bed.nothing();
        bed.close(key);
    }
}

fn reset_while_nothing_is_armed<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    let (client, key) = bed.quiet_pair();
    reset(client);
    bed.nothing();
    bed.nothing();
    bed.engine.receive_once(key);
    let error = bed.expect_ended(key).unwrap();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    bed.nothing();
    bed.close(key);
}

fn reset_under_a_blocked_send<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    for receive in [false, true] {
        let (client, key) = bed.quiet_pair();
        if receive {
            bed.engine.receive_stream(key);
        }
        let status = bed.engine.send(key, Payload::Own(vec![7; 24 << 20]));
        assert!(matches!(status, SendStatus::InFlight));
        bed.nothing();
        reset(client);
        // The kernel reports the reset once, to the operation that asks first; the other one sees
        // an end without an error.
        let error = bed.expect_ended(key);
        assert!(error.is_some() || receive);
        // If receiving ended first, the send comes back on its own; either way the socket is free
        // to close.
        bed.engine.close(key);
        loop {
            match bed.next() {
                Seen::Sent(..) => {}
                Seen::Closed(_) => break,
                other => panic!("{other:?}"),
            }
        }
        bed.nothing();
    }
    assert_eq!(bed.engine.sockets(), 0);
}

fn send_after_the_peer_is_gone<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    let (client, key) = bed.quiet_pair();
    reset(client);
    bed.nothing();
    let status = bed.engine.send(key, Payload::Own(b"lost".to_vec()));
    assert!(matches!(status, SendStatus::InFlight));
    assert!(bed.expect_ended(key).is_some());
    // Ended was reported, so from here on sends come back as if they had gone through.
    bed.send(key, Payload::Own(b"lost too".to_vec()));
    bed.close(key);
}

fn closes_with_nothing_in_flight<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    let (mut client, key) = bed.quiet_pair();
    bed.engine.close(key);
    bed.engine.close(key);
    assert!(bed.engine.has_work());
    assert!(!bed.engine.prepare_park());
    assert_eq!(bed.engine.sockets(), 1, "the slot is taken until Closed");
    assert!(matches!(bed.next(), Seen::Closed(closed) if closed == key));
    assert_eq!(bed.engine.sockets(), 0);
    assert_eq!(bed.engine.peer_addr(key), None);
    assert_eq!(read_to_end(&mut client), b"");
    bed.nothing();
}

fn closes_with_operations_in_flight<E: SystemEngine>() {
    ends_with_operations_in_flight::<E>(E::close, |mut client| drop(read_to_end(&mut client)));
}

fn resets_with_operations_in_flight<E: SystemEngine>() {
    ends_with_operations_in_flight::<E>(E::reset, |mut client| {
        let mut bytes = Vec::new();
        let error = client.read_to_end(&mut bytes).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
}

fn ends_with_operations_in_flight<E: SystemEngine>(end: fn(&mut E, SocketKey), look: fn(TcpStream)) {
    let mut bed = Bed::<E>::new();
    for round in 0..50 {
        let (client, key) = bed.pair();
        // With round 0 the receive has not even been submitted.
        match round % 3 {
            0 => {}
            1 => bed.engine.receive_stream(key),
            _ => {
                let status = bed.engine.send(key, Payload::Own(vec![1; 24 << 20]));
                assert!(matches!(status, SendStatus::InFlight));
            }
        }
        if round % 2 == 0 {
            bed.nothing();
        }
        end(&mut bed.engine, key);
        bed.expect_closed(key);
        look(client);
    }
    bed.nothing();
    assert_eq!(bed.engine.sockets(), 0);
}

fn closing_ends_other_events<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    let (mut client, key) = bed.quiet_pair();
    bed.engine.receive_stream(key);
    bed.nothing();
    client.write_all(&pattern(8, 30_000)).unwrap();
    // A small send gets through although the socket is closed in the same turn.
    let mut sent = false;
    if let SendStatus::Done(_) = bed.engine.send(key, Payload::Own(b"bye".to_vec())) {
        sent = true;
    } else {
        bed.engine.turn(None).unwrap();
    }
    bed.engine.close(key);
    loop {
        match bed.next() {
            Seen::Sent(_, payload) => {
                assert_eq!(payload.as_slice(), b"bye");
                sent = true;
            }
            Seen::Closed(closed) => {
                assert_eq!(closed, key);
                break;
            }
            other => panic!("{other:?} of a socket being closed"),
        }
    }
    assert!(sent);
    bed.nothing();
}

fn reuses_slots_with_new_keys<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    let mut seen = std::collections::HashSet::new();
    let (_client, first) = bed.quiet_pair();
    for _ in 0..20 {
        let (mut client, key) = bed.quiet_pair();
        assert_ne!(key.slot, first.slot);
        assert!(seen.insert(key), "{key:?} twice");
        bed.engine.receive_stream(key);
        client.write_all(b"x").unwrap();
        bed.expect_bytes(key, b"x");
        bed.close(key);
    }
    let slots: std::collections::HashSet<u32> = seen.iter().map(|key| key.slot).collect();
    assert_eq!(slots.len(), 1, "a free slot is used again");
}

fn ignores_stale_keys<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    let (_gone, stale) = bed.quiet_pair();
    bed.close(stale);
    let (mut client, key) = bed.quiet_pair();
    assert_eq!(key.slot, stale.slot);
    let beyond = SocketKey {
        slot: 1000,
        generation: 0,
    };
    for old in [stale, beyond] {
        bed.engine.receive_once(old);
        bed.engine.receive_stream(old);
        bed.engine.finish(old);
        bed.engine.close(old);
        assert!(bed.engine.detach(old).is_none());
        assert!(bed.engine.peer_addr(old).is_none());
        let status = bed.engine.send(old, Payload::Own(b"stray".to_vec()));
        assert!(matches!(status, SendStatus::Done(_)));
    }
    client.write_all(b"unheard").unwrap();
    bed.nothing();
    bed.send(key, Payload::Own(b"own".to_vec()));
    bed.engine.receive_once(key);
    bed.expect_bytes(key, b"unheard");
    bed.close(key);
    // There are no unread bytes, so this is a FIN, and all of what was sent.
    assert_eq!(read_to_end(&mut client), b"own");
}

fn moves_to_another_engine<E: SystemEngine>() {
    let (mut one, mut other) = (Bed::<E>::new(), Bed::<E>::new());
    // So that the slots differ.
    let _occupied = other.pair();
    let (mut client, key) = one.pair();
    client.write_all(b"head").unwrap();
    one.expect_bytes(key, b"head");
    client.write_all(b"between").unwrap();
    one.nothing();
    let socket = one.engine.detach(key).unwrap();
    assert_eq!(one.engine.sockets(), 0);
    assert!(one.engine.detach(key).is_none());
    let key = other.engine.adopt(socket).unwrap();
    other.nothing();
    client.write_all(b" and after").unwrap();
    other.engine.receive_stream(key);
    other.expect_bytes(key, b"between and after");
    other.send(key, Payload::Own(b"heard".to_vec()));
    one.nothing();
    drop(one);
    other.close(key);
    assert_eq!(read_to_end(&mut client), b"heard");
}

fn detaches_only_when_quiet<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    let (mut client, key) = bed.pair();
    assert!(bed.engine.detach(key).is_none(), "a receive is armed");
    client.write_all(b"x").unwrap();
    bed.expect_bytes(key, b"x");
    let status = bed.engine.send(key, Payload::Own(vec![2; 24 << 20]));
    assert!(matches!(status, SendStatus::InFlight));
    assert!(bed.engine.detach(key).is_none(), "a send is in flight");
    bed.nothing();
    assert!(bed.engine.detach(key).is_none(), "a send is in flight");
    bed.engine.close(key);
    assert!(bed.engine.detach(key).is_none(), "it is being closed");
    while !matches!(bed.next(), Seen::Closed(_)) {}
}

fn bounds_events_per_turn<E: SystemEngine>() {
    let mut bed = Bed::<E>::new();
    let (mut client, key) = bed.quiet_pair();
    bed.engine.receive_stream(key);
    bed.nothing();
    // Another socket writes without end; one turn still ends, and so does one after it.
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let bytes = [0; 2048];
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                client.write_all(&bytes).unwrap();
            }
        });
        let deadline = Instant::now() + Duration::from_millis(300);
        let mut most = 0;
        while Instant::now() < deadline {
            bed.engine.turn(None).unwrap();
            let mut events = 0;
            while bed.engine.next_event().is_some() {
                events += 1;
                assert!(events < 20_000, "a turn without end");
            }
            most = most.max(events);
            // Bulk senders are in line for ever, if they like.
            bed.engine.next_bulk();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        // Lets the writer out of a full socket.
        for _ in 0..100 {
            bed.engine.turn(Some(Duration::from_millis(1))).unwrap();
            while bed.engine.next_event().is_some() || bed.engine.next_bulk().is_some() {}
        }
        assert!((1..=1024).contains(&most), "{most} events in one turn");
    });
}
