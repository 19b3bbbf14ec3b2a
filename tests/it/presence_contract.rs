//! Presence is one contract with two implementations: a gateway's own knowledge, and the knowledge
//! that gateways share through Redis. Every case here holds for both, asked from both shards of
//! every gateway.
//!
//! The gateway of a change knows it at once, and is asked once, without polling. Another one may
//! need a few milliseconds, until the first has written all its changes. Then it, too, is asked
//! once.

#![allow(clippy::unwrap_used)]

use crate::common;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;

use common::client::{BINARY, CLOSE};
use common::{Client, Fleet, Gateway, Peer, Redis, SLOW_DRAIN, eventually};
use serde_json::{Value, json};

/// The presence implementation, and where it is asked for.
#[derive(Clone, Copy)]
enum Kind {
    /// One gateway without Redis.
    Embedded,
    /// One gateway with Redis.
    Redis,
    /// Two gateways with one Redis.
    TwoGateways,
}

/// Makes a `#[test]` of each case for each kind.
macro_rules! contract {
    ($($case:ident),+ $(,)?) => {
        mod embedded {
            $(#[test] fn $case() { super::$case(super::Kind::Embedded) })+
        }
        mod redis {
            $(#[test] fn $case() { super::$case(super::Kind::Redis) })+
        }
        mod two_gateways {
            $(#[test] fn $case() { super::$case(super::Kind::TwoGateways) })+
        }
    };
}

contract! {
    online_from_welcome_to_goodbye, several_devices, flapping_ends_online, flapping_ends_offline, a_hundred_in_one_question,
    each_user_is_answered_once, nobody_is_asked_for, users_that_nobody_knows, after_a_reset, after_a_close_by_the_gateway,
    the_oldest_device_makes_room, only_who_said_who_they_are, a_hand_over_does_not_flicker, while_draining,
}

const SHARDS: usize = 2;

/// The gateways, and one observer on each of their shards.
struct System {
    observers: Vec<Peer>,
    gateways: Vec<Gateway>,
    named: usize,
    _redis: Option<Redis>,
}

impl System {
    #[track_caller]
    fn start(kind: Kind) -> System {
        System::with_args(kind, &[])
    }

    #[track_caller]
    fn with_args(kind: Kind, args: &[&str]) -> System {
        // So long that nothing here comes true because time ran out.
        let args = [&["--presence-ttl", "10m", "--auth-timeout", "10m"], args].concat();
        let redis = match kind {
            Kind::Embedded => None,
            Kind::Redis | Kind::TwoGateways => Some(Redis::start()),
        };
        let fleet = |redis: &Redis| Fleet::new(redis.url()).with_args(&args);
        let gateways = match (&redis, kind) {
            (Some(redis), Kind::TwoGateways) => fleet(redis).start::<2>().into(),
            (Some(redis), _) => fleet(redis).start::<1>().into(),
            (None, _) => vec![Gateway::start(
                &[&["--limits-messages-per-second", "0"], &args[..]].concat(),
            )],
        };
        let mut system = System {
            observers: Vec::new(),
            gateways,
            named: 0,
            _redis: redis,
        };
        for at in 0..system.gateways.len() {
            for shard in 0..SHARDS {
                let observer = system.user(at, shard);
                let observer = Peer::connect(&system.gateways[at], &observer);
                system.observers.push(observer);
            }
        }
        system.settle();
        system
    }

    /// A number of each shard of a gateway.
    #[track_caller]
    fn per_shard(&self, at: usize, what: &str) -> Vec<u64> {
        let stats = self.gateways[at].stats();
        let shards = stats["shards"].as_array().unwrap();
        shards.iter().map(|shard| shard[what].as_u64().unwrap()).collect()
    }

    /// A new name of a user who lives on this shard of this gateway.
    #[track_caller]
    fn user(&mut self, at: usize, shard: usize) -> String {
        loop {
            self.named += 1;
            let user = format!("user{}", self.named);
            let before = self.per_shard(at, "users");
            let probe = self.gateways[at].connect(&user);
            let there = self.per_shard(at, "users")[shard] > before[shard];
            probe.close();
            eventually("the probe has gone", || self.per_shard(at, "users") == before);
            if there {
                return user;
            }
        }
    }

    /// A connection without a user on this shard.
    #[track_caller]
    fn stranger(&self, at: usize, shard: usize) -> Client {
        for _ in 0..1000 {
            let before = self.per_shard(at, "connections");
            let stranger = self.gateways[at].upgrade("/ws");
            if self.per_shard(at, "connections")[shard] > before[shard] {
                return stranger;
            }
            stranger.close();
            eventually("it has gone", || self.per_shard(at, "connections") == before);
        }
        panic!("the kernel never chose shard {shard}");
    }

    /// Waits until a gateway has that many connections besides its observers'.
    #[track_caller]
    fn wait_for_connections(&self, at: usize, count: u64) {
        eventually("all others have gone", || {
            self.gateways[at].stats()["connections"] == count + SHARDS as u64
        });
    }

    /// Waits until all changes that the gateways know are written.
    #[track_caller]
    fn settle(&mut self) {
        if self._redis.is_none() {
            return;
        }
        for (at, gateway) in self.gateways.iter().enumerate() {
            // Behind all reports of the shards to the control thread, then behind all its writes to
            // Redis.
            for asked in 0..2 {
                for observer in self.observers.iter_mut().skip(at * SHARDS).take(SHARDS) {
                    observer.presence(&["nobody"]).unwrap();
                }
                if asked == 0 {
                    eventually("nothing waits to be written", || {
                        gateway.metric("shardgate_cluster_presence_pending", &[]) == 0.0
                    });
                }
            }
        }
    }

    /// Something happened to a user on this gateway, and a moment ago.
    #[track_caller]
    fn is_now(&mut self, at: usize, user: &str, online: bool) {
        for observer in self.observers.iter_mut().skip(at * SHARDS).take(SHARDS) {
            assert_eq!(observer.sees(user), Some(online), "{user}, from {at}");
        }
        for observer in &mut self.observers {
            observer.wait_to_see(user, online);
        }
    }

    /// Everything that happened is known to the gateways where it happened.
    #[track_caller]
    fn is_settled(&mut self, user: &str, online: bool) {
        self.settle();
        for (nth, observer) in self.observers.iter_mut().enumerate() {
            assert_eq!(observer.sees(user), Some(online), "{user}, from observer {nth}");
        }
    }
}

/// All shards of all gateways.
fn places(system: &System) -> Vec<(usize, usize)> {
    (0..system.gateways.len())
        .flat_map(|at| (0..SHARDS).map(move |shard| (at, shard)))
        .collect()
}

/// Each observer's view of a user during some steps, change by change.
#[track_caller]
fn watched(observers: &mut [Peer], user: &str, act: impl FnOnce()) -> Vec<Vec<bool>> {
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }
    let over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watching: Vec<_> = observers
            .iter_mut()
            .map(|observer| {
                scope.spawn(move || {
                    let mut seen = Vec::new();
                    loop {
                        // Once more after the end.
                        let last = over.load(SeqCst);
                        seen.push(observer.sees(user).unwrap());
                        seen.dedup();
                        if last {
                            return seen;
                        }
                    }
                })
            })
            .collect();
        let end = Over(over);
        act();
        drop(end);
        watching.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn online_from_welcome_to_goodbye(kind: Kind) {
    let mut system = System::start(kind);
    for (at, shard) in places(&system) {
        let user = system.user(at, shard);
        system.is_settled(&user, false);
        for _ in 0..3 {
            let device = system.gateways[at].connect(&user);
            system.is_now(at, &user, true);
            device.close();
            system.is_now(at, &user, false);
        }
        system.is_settled(&user, false);
    }
}

fn several_devices(kind: Kind) {
    let mut system = System::start(kind);
    let gateways = system.gateways.len();
    for shard in 0..SHARDS {
        let user = system.user(0, shard);
        let mut devices = Vec::new();
        let mut counts = vec![0; gateways];
        for n in 0..6 {
            let at = n % gateways;
            devices.push((at, system.gateways[at].connect(&user)));
            counts[at] += 1;
            system.is_now(at, &user, true);
        }
        for n in 0..5 {
            // Now the oldest, now the youngest.
            let (at, device) = devices.remove(if n % 2 == 0 { 0 } else { devices.len() - 1 });
            counts[at] -= 1;
            match n % 3 {
                0 => device.close(),
                1 => device.reset(),
                _ => drop(device),
            }
            system.is_now(at, &user, true);
            system.wait_for_connections(at, counts[at]);
            system.is_settled(&user, true);
        }
        let (at, last) = devices.remove(0);
        last.close();
        system.is_now(at, &user, false);
        system.is_settled(&user, false);
    }
}

/// Comes and goes, and leaves it to the gateway to find out; the last connection.
#[track_caller]
fn flap(system: &System, user: &str) -> Client {
    for n in 0..40 {
        let gateway = &system.gateways[(n / 2) % system.gateways.len()];
        let device = gateway.connect(user);
        match n % 4 {
            0 => device.reset(),
            1 => device.close(),
            _ => drop(device),
        }
    }
    system.gateways[0].connect(user)
}

fn flapping_ends_online(kind: Kind) {
    let mut system = System::start(kind);
    for shard in 0..SHARDS {
        let user = system.user(0, shard);
        let device = flap(&system, &user);
        system.is_now(0, &user, true);
        system.wait_for_connections(0, 1);
        for at in 1..system.gateways.len() {
            system.wait_for_connections(at, 0);
        }
        system.is_settled(&user, true);
        let device = Peer::follow(device, &user);
        for (nth, observer) in system.observers.iter_mut().enumerate() {
            let status = if nth < SHARDS { "delivered" } else { "routed" };
            assert_eq!(observer.tell(&user, nth), status);
            device.wait_for(nth);
        }
        device.leave();
        system.is_now(0, &user, false);
    }
}

fn flapping_ends_offline(kind: Kind) {
    let mut system = System::start(kind);
    for shard in 0..SHARDS {
        let user = system.user(0, shard);
        flap(&system, &user).close();
        for at in 0..system.gateways.len() {
            system.wait_for_connections(at, 0);
        }
        system.is_settled(&user, false);
        for observer in &mut system.observers {
            assert_eq!(observer.tell(&user, 1), "offline");
        }
    }
}

fn a_hundred_in_one_question(kind: Kind) {
    let mut system = System::start(kind);
    let gateways = system.gateways.len();
    // Online, online twice, online and gone, never there; on both shards of every gateway.
    let users: Vec<String> = (0..96).map(|n| format!("crowd{n}")).collect();
    let mut stay = Vec::new();
    for (n, user) in users.iter().enumerate() {
        for device in 0..[1, 2, 1, 0][n % 4] {
            let client = system.gateways[(n / 4 + device) % gateways].connect(user);
            match n % 4 {
                2 => client.close(),
                _ => stay.push(client),
            }
        }
    }
    system.settle();
    let observers: Vec<String> = system.observers.iter().map(|o| o.user.clone()).collect();
    for (nth, observer) in system.observers.iter_mut().enumerate() {
        let asker = observers[nth].as_str();
        let mut asked: Vec<&str> = users.iter().map(String::as_str).collect();
        // 96, the asker, and some of them again: 100.
        asked.splice(50..50, [asker]);
        asked.extend([asker, users[0].as_str(), users[3].as_str()]);
        assert_eq!(asked.len(), 100);
        let mut right: BTreeMap<String, bool> = users.iter().cloned().zip((0..96).map(|n| n % 4 < 2)).collect();
        right.insert(asker.to_owned(), true);
        assert_eq!(observer.presence(&asked).unwrap(), right);
        asked.push("one more");
        assert_eq!(observer.presence(&asked), Err("limitExceeded".into()));
    }
    for client in stay {
        client.close();
    }
    system.settle();
    let asked: Vec<&str> = users.iter().map(String::as_str).collect();
    for observer in &mut system.observers {
        let answer = observer.presence(&asked).unwrap();
        assert!(
            answer.len() == 96 && answer.values().all(|online| !online),
            "{answer:?}"
        );
    }
}

/// An object has each key once, whatever a JSON parser makes of one that has it twice.
fn each_user_is_answered_once(kind: Kind) {
    let mut system = System::start(kind);
    for (at, shard) in places(&system) {
        let (user, asker) = (system.user(at, shard), system.user(at, 1 - shard));
        let device = system.gateways[at].connect(&user);
        let mut client = system.gateways[at].connect(&asker);
        let asked = [&user, "nobody", &user, &asker, &user, "nobody", &asker];
        client.send_json(&json!({"type": "presence", "users": asked, "id": "q"}));
        let text = client.recv_text();
        for user in [user.as_str(), "nobody", asker.as_str()] {
            assert_eq!(text.matches(&format!("\"{user}\":")).count(), 1, "{text}");
        }
        let answer: Value = serde_json::from_str(&text).unwrap();
        let right = json!({"type": "presence", "id": "q", "users": {&user: true, "nobody": false, &asker: true}});
        assert_eq!(answer, right);
        client.expect_silence();
        client.close();
        device.close();
    }
}

fn nobody_is_asked_for(kind: Kind) {
    let system = System::start(kind);
    for gateway in &system.gateways {
        let mut client = gateway.connect("alice");
        client.send_text(r#"{"type":"presence","users":[],"id":"q"}"#);
        assert_eq!(client.recv_text(), r#"{"type":"presence","id":"q","users":{}}"#);
        client.send_text(r#"{"type":"presence","users":[]}"#);
        assert_eq!(client.recv_text(), r#"{"type":"presence","users":{}}"#);
        client.expect_silence();
    }
}

fn users_that_nobody_knows(kind: Kind) {
    let mut system = System::start(kind);
    let longest = "x".repeat(128);
    let unknown = [
        "nobody",
        "Alice",
        "alice ",
        "ä€😀",
        "{a}",
        "*",
        "gateways",
        "null",
        "\"",
        &longest,
    ];
    let _alice = system.gateways[0].connect("alice");
    for at in 0..system.gateways.len() {
        system.is_now(0, "alice", true);
        let observer = &mut system.observers[at * SHARDS];
        let right: BTreeMap<String, bool> = unknown.iter().map(|user| ((*user).to_owned(), false)).collect();
        // A question about a user does not make the user known.
        for _ in 0..3 {
            assert_eq!(observer.presence(&unknown).unwrap(), right);
        }
        for user in unknown {
            assert_eq!(observer.tell(user, 1), "offline", "nor does writing to {user}");
            assert_eq!(observer.sees(user), Some(false));
        }
    }
}

fn after_a_reset(kind: Kind) {
    let mut system = System::start(kind);
    for (at, shard) in places(&system) {
        let user = system.user(at, shard);
        let (first, second) = (system.gateways[at].connect(&user), system.gateways[at].connect(&user));
        system.is_now(at, &user, true);
        first.reset();
        system.wait_for_connections(at, 1);
        system.is_now(at, &user, true);
        system.is_settled(&user, true);
        second.reset();
        system.wait_for_connections(at, 0);
        system.is_now(at, &user, false);
        system.is_settled(&user, false);
        // In the middle of a frame, and with something unread.
        let mut third = system.gateways[at].connect(&user);
        third.send_text(r#"{"type":"heartbeat"}"#);
        third.send_raw(&[0x81, 0xfe, 0x10]);
        system.is_now(at, &user, true);
        third.reset();
        system.wait_for_connections(at, 0);
        system.is_now(at, &user, false);
        system.is_settled(&user, false);
    }
}

/// Presence goes when the gateway begins to close, whether or not the client ever answers.
fn after_a_close_by_the_gateway(kind: Kind) {
    type Provoke = fn(&mut Client);
    let causes: [(u16, Provoke); 6] = [
        (1002, |client| client.send_frame(0x80 | 0x40 | 1, b"reserved bit")),
        (1003, |client| client.send_frame(0x80 | BINARY, b"binary")),
        (1007, |client| client.send_frame(0x81, &[0xff, 0xfe])),
        (1009, |client| {
            client.send_raw(&[0x81, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0])
        }),
        (3501, |client| (0..10).for_each(|_| client.send_text("nonsense"))),
        (3507, |client| {
            client.send_text(r#"{"type":"auth","userId":"somebody else"}"#)
        }),
    ];
    let mut system = System::start(kind);
    for (at, shard) in places(&system) {
        let user = system.user(at, shard);
        for (code, provoke) in causes {
            let mut device = system.gateways[at].connect(&user);
            system.is_now(at, &user, true);
            provoke(&mut device);
            let close = std::iter::from_fn(|| device.try_recv_frame())
                .find(|frame| frame.opcode == CLOSE)
                .unwrap();
            assert_eq!(close.close_code(), Some(code));
            system.is_now(at, &user, false);
            assert_eq!(system.observers[at * SHARDS].sees("somebody else"), Some(false));
        }
        system.wait_for_connections(at, 0);
        system.is_settled(&user, false);
    }
}

/// The one that comes counts before the one that goes does not any more.
fn the_oldest_device_makes_room(kind: Kind) {
    let mut system = System::with_args(kind, &["--limits-connections-per-user", "1"]);
    for (at, shard) in places(&system) {
        let user = system.user(at, shard);
        let mut device = system.gateways[at].connect(&user);
        system.is_now(at, &user, true);
        let gateway = &system.gateways[at];
        let seen = watched(&mut system.observers, &user, || {
            for _ in 0..10 {
                let next = gateway.connect(&user);
                device.expect_close(3504);
                device = next;
            }
        });
        assert!(seen.iter().all(|seen| *seen == [true]), "{seen:?}");
        system.is_settled(&user, true);
        device.close();
        system.is_now(at, &user, false);
    }
}

fn only_who_said_who_they_are(kind: Kind) {
    let mut system = System::start(kind);
    for (at, shard) in places(&system) {
        let user = system.user(at, shard);
        for accepted_by in 0..SHARDS {
            let mut device = system.stranger(at, accepted_by);
            device.send_text(&format!(r#"{{"type":"presence","users":["{user}"]}}"#));
            device.expect_error("unauthorized");
            system.is_now(at, &user, false);
            let auth = json!({"type": "auth", "userId": user});
            device.send_json(&auth);
            assert_eq!(device.recv_json()["userId"], user);
            system.is_now(at, &user, true);
            // Once more is no second device.
            device.send_json(&auth);
            assert_eq!(device.recv_json()["type"], "welcome");
            device.close();
            system.is_now(at, &user, false);
            system.is_settled(&user, false);
            // A connection that ends before then never was there.
            let stranger = system.stranger(at, accepted_by);
            stranger.close();
            system.is_settled(&user, false);
        }
        let mut refused = system.stranger(at, shard);
        refused.send_text(r#"{"type":"auth","userId":""}"#);
        refused.expect_close(3500);
        system.is_settled(&user, false);
    }
}

/// Each device is accepted by one shard and lives on the other.
fn a_hand_over_does_not_flicker(kind: Kind) {
    let mut system = System::start(kind);
    for (at, shard) in places(&system) {
        let user = system.user(at, shard);
        system.is_settled(&user, false);
        let auth = json!({"type": "auth", "userId": user});
        let mut first = system.stranger(at, 1 - shard);
        let seen = watched(&mut system.observers, &user, || {
            first.send_json(&auth);
            assert_eq!(first.recv_json()["type"], "welcome");
            for _ in 0..20 {
                first.expect_silence();
            }
        });
        // Once online, always online.
        assert!(seen.iter().all(|seen| seen.is_sorted()), "{seen:?}");
        let here = &seen[at * SHARDS..][..SHARDS];
        assert!(here.iter().all(|seen| seen.last() == Some(&true)), "{seen:?}");
        system.is_settled(&user, true);

        let mut devices: Vec<Client> = (0..5).map(|_| system.stranger(at, 1 - shard)).collect();
        let seen = watched(&mut system.observers, &user, || {
            for device in &mut devices {
                device.send_json(&auth);
                assert_eq!(device.recv_json()["type"], "welcome");
            }
            first.close();
            for (n, device) in devices.drain(1..).enumerate() {
                if n % 2 == 0 { device.reset() } else { device.close() }
            }
        });
        assert!(seen.iter().all(|seen| *seen == [true]), "{seen:?}");
        system.wait_for_connections(at, 1);
        system.is_settled(&user, true);
        devices.remove(0).close();
        system.is_now(at, &user, false);
    }
}

/// Connected users are online for all, until they have gone.
fn while_draining(kind: Kind) {
    let mut system = System::with_args(kind, &SLOW_DRAIN);
    // A crowd comes first, and whom this is about connects behind it.
    let names: Vec<String> = system.observers[..SHARDS]
        .iter()
        .map(|peer| peer.user.clone())
        .collect();
    system.observers.drain(..SHARDS).for_each(|peer| drop(peer.leave()));
    let crowd = system.gateways[0].crowd(60);
    let again = names.iter().map(|name| Peer::connect(&system.gateways[0], name));
    system.observers.splice(..0, again.collect::<Vec<_>>());
    let users = [system.user(0, 0), system.user(0, 1)];
    let devices = users.each_ref().map(|user| Peer::connect(&system.gateways[0], user));
    for user in &users {
        system.is_now(0, user, true);
    }
    system.gateways[0].signal(libc::SIGTERM);
    eventually("it drains", || system.gateways[0].get("/readyz").status == 503);
    let taken = |nth: usize| if nth < SHARDS { "delivered" } else { "routed" };
    for (nth, observer) in system.observers.iter_mut().enumerate() {
        for (user, device) in users.iter().zip(&devices) {
            assert_eq!(observer.sees(user), Some(true), "{user}");
            let content = format!("{} writes", observer.user);
            assert_eq!(observer.tell(user, content.as_str()), taken(nth));
            device.wait_for(content);
        }
    }
    assert_eq!(system.gateways[0].try_upgrade("/ws?user=late", "").status, 503);
    let [one, other] = devices;
    one.leave();
    for (nth, observer) in system.observers.iter_mut().enumerate() {
        observer.wait_to_see(&users[0], false);
        observer.tell_until(&users[0], 1, "offline");
        assert_eq!(observer.sees(&users[1]), Some(true), "one who left took nobody along");
        assert_eq!(observer.tell(&users[1], 2), taken(nth));
        assert_eq!(observer.sees("late"), Some(false));
    }
    other.leave();
    for observer in &mut system.observers[SHARDS..] {
        observer.wait_to_see(&users[1], false);
    }
    system.observers.drain(..SHARDS);
    drop(crowd);
    assert_eq!(system.gateways[0].wait_for_exit(), 0);
}
