//! A broker with its events, and the checks that every kind of server must pass.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shardgate::cluster::store::{
    Answer, Channel, FailureKind, Incarnation, Lease, LeaseState, Op, Registered, Request, Store as _, StoreEvent, Task,
};
use shardgate::config::RedisTarget;
use shardgate::redis::{Broker, BrokerCounters};
use tokio::time::{Instant, timeout};

/// Whatever is waited for here happens within this time, on a loaded machine too.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// What the broker promises for every request, and a little for a loaded machine.
pub(crate) const ANSWER_MAX: Duration = Duration::from_millis(3_500);

pub(crate) const ME: Incarnation = Incarnation(0x17);

/// Runs a test as the control thread runs a broker.
pub(crate) fn on_control_thread<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

/// A broker, its events kept until somebody asks for them.
pub(crate) struct Store {
    pub(crate) broker: Broker,
    pub(crate) counters: Arc<BrokerCounters>,
    pub(crate) unread: VecDeque<StoreEvent>,
    pub(crate) ticket: u64,
}

impl Store {
    pub(crate) fn start(url: &str) -> Store {
        Store::at(RedisTarget::parse(url).unwrap())
    }

    pub(crate) fn at(target: RedisTarget) -> Store {
        let counters = Arc::new(BrokerCounters::default());
        Store {
            broker: Broker::start(target, "t:", counters.clone()),
            counters,
            unread: VecDeque::new(),
            ticket: 0,
        }
    }

    pub(crate) async fn connected(url: &str) -> Store {
        let mut store = Store::start(url);
        store.until_connected().await;
        store
    }

    /// The first event, read or not, for which `pick` gives something; the others stay.
    pub(crate) async fn until<T>(&mut self, what: &str, mut pick: impl FnMut(&StoreEvent) -> Option<T>) -> T {
        let end = Instant::now() + DEADLINE;
        let mut seen = 0;
        loop {
            while seen < self.unread.len() {
                if let Some(picked) = pick(&self.unread[seen]) {
                    self.unread.remove(seen);
                    return picked;
                }
                seen += 1;
            }
            let event = tokio::time::timeout_at(end, self.broker.next_event()).await;
            self.unread
                .push_back(event.unwrap_or_else(|_| panic!("no {what}; there is {:?}", self.unread)));
        }
    }

    pub(crate) async fn until_connected(&mut self) {
        self.until("Connected", |event| {
            matches!(event, StoreEvent::Connected).then_some(())
        })
        .await;
    }

    pub(crate) async fn until_lost(&mut self) -> String {
        let lost = |event: &StoreEvent| match event {
            StoreEvent::Lost(cause) => Some(cause.to_string()),
            _ => None,
        };
        self.until("Lost", lost).await
    }

    pub(crate) async fn until_subscribed(&mut self, wanted: &Channel) {
        let is =
            |event: &StoreEvent| matches!(event, StoreEvent::Subscribed(channel) if channel == wanted).then_some(());
        self.until("Subscribed", is).await;
    }

    pub(crate) async fn until_unsubscribed(&mut self, wanted: &Channel) {
        let is =
            |event: &StoreEvent| matches!(event, StoreEvent::Unsubscribed(channel) if channel == wanted).then_some(());
        self.until("Unsubscribed", is).await;
    }

    pub(crate) async fn until_received(&mut self) -> (Channel, Bytes) {
        let received = |event: &StoreEvent| match event {
            StoreEvent::Received(channel, payload) => Some((channel.clone(), payload.clone())),
            _ => None,
        };
        self.until("Received", received).await
    }

    pub(crate) async fn until_forgotten(&mut self, user: &str) {
        let is = |event: &StoreEvent| match event {
            StoreEvent::Forget(users) => users.iter().any(|u| &**u == user).then_some(()),
            StoreEvent::ForgetAll => Some(()),
            _ => None,
        };
        self.until("Forget", is).await;
    }

    pub(crate) fn submit(&mut self, ops: Vec<Op>) -> u64 {
        self.ticket += 1;
        self.broker.submit(Request {
            ticket: self.ticket,
            ops,
        });
        self.ticket
    }

    pub(crate) async fn answers_to(&mut self, wanted: u64) -> Vec<Answer> {
        let is = |event: &StoreEvent| match event {
            StoreEvent::Answered { ticket, answers } if *ticket == wanted => Some(answers.clone()),
            _ => None,
        };
        self.until("Answered", is).await
    }

    /// Within the time that the broker promises.
    pub(crate) async fn ask(&mut self, ops: Vec<Op>) -> Vec<Answer> {
        let ticket = self.submit(ops);
        timeout(ANSWER_MAX, self.answers_to(ticket))
            .await
            .expect("an answer in time")
    }

    pub(crate) async fn ask_one(&mut self, op: Op) -> Answer {
        let mut answers = self.ask(vec![op]).await;
        assert_eq!(answers.len(), 1);
        answers.remove(0)
    }

    /// Asks until it is carried out.
    pub(crate) async fn ask_until_done(&mut self, op: Op) -> Answer {
        let end = Instant::now() + DEADLINE;
        loop {
            match self.ask_one(op.clone()).await {
                Answer::Failed(failure) => assert!(Instant::now() < end, "still {failure:?}"),
                answer => return answer,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub(crate) fn locate(user: &str) -> Op {
    Op::Locate { user: user.into() }
}

pub(crate) fn set(user: &str, owner: Incarnation, connections: u32) -> Op {
    Op::SetPresence {
        user: user.into(),
        owner,
        connections,
    }
}

pub(crate) fn publish(channel: &Channel, payload: impl Into<Bytes>) -> Op {
    Op::Publish {
        channel: channel.clone(),
        payload: payload.into(),
    }
}

pub(crate) fn mine() -> Channel {
    Channel::Gateway("gw".into(), ME)
}

#[track_caller]
pub(crate) fn failure(answer: &Answer) -> (FailureKind, String) {
    match answer {
        Answer::Failed(failure) => (failure.kind, failure.text.to_string()),
        other => panic!("carried out: {other:?}"),
    }
}

/// Every operation does what the contract says. Other servers must do the same.
pub(crate) async fn every_operation(store: &mut Store) {
    let (a, b) = (Incarnation(0xa), Incarnation(0xb));
    let user = |name: &str| -> Arc<str> { name.into() };

    // Presence.
    assert_eq!(store.ask_one(locate("ann")).await, Answer::Places(vec![]));
    let answers = store
        .ask(vec![
            set("ann", a, 1),
            set("ann", b, 2),
            set("ann", a, 3),
            locate("ann"),
        ])
        .await;
    let Answer::Places(mut places) = answers[3].clone() else {
        panic!("{answers:?}")
    };
    places.sort_unstable();
    assert_eq!(
        (&answers[..3], places),
        (&[Answer::Done, Answer::Done, Answer::Done][..], vec![(a, 3), (b, 2)])
    );
    let clear = |owner| Op::ClearPresence {
        user: user("ann"),
        owner,
    };
    let answers = store
        .ask(vec![clear(a), clear(a), locate("ann"), clear(b), locate("ann")])
        .await;
    assert_eq!(answers[2], Answer::Places(vec![(b, 2)]));
    assert_eq!(answers[4], Answer::Places(vec![]));

    // What is missing is written, and nothing else; only a change is told.
    let keep = |connections| Op::KeepPresence {
        user: user("ann"),
        owner: a,
        connections,
    };
    let answers = store.ask(vec![keep(2), keep(5), locate("ann"), clear(a)]).await;
    assert_eq!(
        answers[..3],
        [Answer::Taken(true), Answer::Taken(false), Answer::Places(vec![(a, 2)])]
    );

    // The index: more than one part.
    let users: Vec<Arc<str>> = (0..2_000).map(|n| user(&format!("user {n} ü"))).collect();
    let answers = store
        .ask(vec![
            Op::IndexAdd {
                owner: a,
                users: users.clone(),
            },
            Op::IndexRemove {
                owner: a,
                users: vec![user("user 7 ü"), user("nobody")],
            },
        ])
        .await;
    assert_eq!(answers, [Answer::Done, Answer::Done]);
    let (mut cursor, mut found) = (0, std::collections::BTreeSet::new());
    loop {
        match store.ask_one(Op::IndexScan { owner: a, cursor }).await {
            Answer::Users { cursor: next, users } => {
                found.extend(users);
                cursor = next;
            }
            other => panic!("{other:?}"),
        }
        if cursor == 0 {
            break;
        }
    }
    let expected: std::collections::BTreeSet<_> = users.into_iter().filter(|u| &**u != "user 7 ü").collect();
    assert_eq!(found, expected);

    // Leases.
    let gw: Arc<str> = "gw-ü {x} 1".into();
    let lease = |incarnation, renewals| Lease {
        incarnation,
        state: LeaseState::Synced,
        renewals,
        partitions: 64,
        keyed: false,
        reads_bodies: true,
    };
    let read = || Op::LeaseRead { id: gw.clone() };
    let take = |by, ttl_ms| Op::LeaseTake {
        id: gw.clone(),
        lease: lease(by, 0),
        ttl_ms,
    };
    let answers = store
        .ask(vec![
            read(),
            take(a, 60_000),
            take(b, 60_000),
            read(),
            Op::LeaseWrite {
                id: gw.clone(),
                lease: lease(a, 1),
                ttl_ms: 60_000,
            },
            read(),
            Op::LeaseDrop { id: gw.clone() },
            read(),
            take(b, 30),
        ])
        .await;
    let expected = [
        Answer::Lease(None),
        Answer::Taken(true),
        Answer::Taken(false),
        Answer::Lease(Some(lease(a, 0))),
        Answer::Done,
        Answer::Lease(Some(lease(a, 1))),
        Answer::Done,
        Answer::Lease(None),
        Answer::Taken(true),
    ];
    assert_eq!(answers, expected);
    let end = Instant::now() + DEADLINE;
    while store.ask_one(read()).await != Answer::Lease(None) {
        assert!(Instant::now() < end, "a lease expires");
    }

    // The directory, and claims.
    assert_eq!(store.ask_one(Op::ReadDirectory).await, Answer::Directory(vec![]));
    let other: Arc<str> = "other".into();
    let claim = |task, by| Op::Claim {
        task,
        by,
        ttl_ms: 60_000,
    };
    let answers = store
        .ask(vec![
            Op::Register {
                id: gw.clone(),
                incarnation: a,
            },
            Op::Register {
                id: other.clone(),
                incarnation: b,
            },
            take(a, 60_000),
            Op::ReadDirectory,
            claim(Task::Sweep(b), a),
            claim(Task::Sweep(b), b),
            claim(Task::Sweep(a), b),
            claim(Task::TakeOver(other.clone()), b),
            claim(Task::TakeOver(other.clone()), a),
            Op::Unregister { incarnation: b },
        ])
        .await;
    let Answer::Directory(mut directory) = answers[3].clone() else {
        panic!("{answers:?}")
    };
    directory.sort_unstable_by_key(|line| line.incarnation);
    let lines = [
        Registered {
            id: gw.clone(),
            incarnation: a,
            lease: Some(lease(a, 0)),
        },
        Registered {
            id: other.clone(),
            incarnation: b,
            lease: None,
        },
    ];
    assert_eq!(directory, lines);
    let taken: Vec<bool> = answers[4..9]
        .iter()
        .map(|answer| *answer == Answer::Taken(true))
        .collect();
    assert_eq!(taken, [true, false, true, true, false]);
    assert_eq!(
        store.ask_one(Op::ReadDirectory).await,
        Answer::Directory(lines[..1].to_vec())
    );

    // Channels.
    assert_eq!(
        store.ask_one(publish(&mine(), "nobody hears it")).await,
        Answer::Count(0)
    );
    for channel in [mine(), Channel::All] {
        store.broker.subscribe(channel.clone());
        store.until_subscribed(&channel).await;
        let payload = Bytes::from(vec![255, 0, 13, 10]);
        assert_eq!(
            store.ask_one(publish(&channel, payload.clone())).await,
            Answer::Count(1)
        );
        assert_eq!(store.until_received().await, (channel, payload));
    }
    store.broker.unsubscribe(&mine());
    let end = Instant::now() + DEADLINE;
    while store.ask_one(publish(&mine(), "late")).await != Answer::Count(0) {
        assert!(Instant::now() < end, "a channel is left");
    }
    store.broker.subscribe(mine());
    store.until_subscribed(&mine()).await;
}

/// What was published came in order, whole, and once.
pub(crate) async fn publishes_stay_in_order(store: &mut Store, channel: Channel) {
    const REQUESTS: usize = 2_500;
    const EACH: usize = 4;
    store.broker.subscribe(channel.clone());
    store.until_subscribed(&channel).await;
    for request in 0..REQUESTS {
        let ops = (0..EACH).map(|n| publish(&channel, (request * EACH + n).to_string()));
        store.submit(ops.collect());
    }
    for n in 0..REQUESTS * EACH {
        let (_, payload) = store.until_received().await;
        assert_eq!(payload, n.to_string());
    }
}
