//! An ack is the truth: what was said to be taken by somebody arrived, once and in order, whatever
//! dies meanwhile, except what was in flight at that moment.
//!
//! Three gateways, pairs of users across them, and deaths by chance but from a seed:
//! `ACK_SEED=… ACK_KILLS=… cargo test --test ack_truth -- --nocapture` repeats or prolongs a run.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: what they cannot do ends the test"
)]

mod common;

use common::peer::{assert_rising, is_taken};
use common::{Fleet, Gateway, Peer, Redis};
use fastrand::Rng;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;

const GATEWAYS: usize = 3;
/// Each has two users who write to each other.
const PAIRS: usize = 15;
/// Messages that one user sends before waiting for the acks.
const WINDOW: usize = 4;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// What became of a message: its number, its status, and which of the receiver's lives it was meant
/// for.
struct Said {
    number: u64,
    status: Option<String>,
    /// The number of deaths, of whatever kind, before it was sent and after its ack.
    deaths: (usize, usize),
}

/// One user: connects, and connects again after a death.
struct User {
    name: String,
    partner: String,
    home: usize,
    peer: Option<Peer>,
    said: Vec<Said>,
    /// What each connection heard of the partner.
    heard: Vec<Vec<u64>>,
}

impl User {
    fn round(&mut self, gateways: &[Mutex<Option<Gateway>>], deaths: &dyn Fn() -> usize) {
        if self.peer.as_ref().is_none_or(|peer| !peer.is_open()) {
            self.end_connection();
            let gateway = gateways[self.home].lock().unwrap();
            self.peer = Some(Peer::connect(gateway.as_ref().unwrap(), &self.name));
        }
        let peer = self.peer.as_mut().unwrap();
        let before = deaths();
        let first = self.said.len() as u64;
        let ids: Vec<(u64, String)> = (first..first + WINDOW as u64)
            .map(|number| (number, peer.send(&self.partner, json!({ "n": number }))))
            .collect();
        for (number, id) in ids {
            let status = peer.try_status(&id);
            self.said.push(Said {
                number,
                status,
                deaths: (before, deaths()),
            });
        }
    }

    fn end_connection(&mut self) {
        if let Some(peer) = self.peer.take() {
            self.heard.push(numbers(&peer, &self.partner));
        }
    }
}

fn numbers(peer: &Peer, from: &str) -> Vec<u64> {
    let contents = peer.heard_from(from);
    contents
        .iter()
        .filter_map(|content: &Value| content["n"].as_u64())
        .collect()
}

#[test]
fn what_is_said_to_be_taken_arrives() {
    let seed = number("ACK_SEED").unwrap_or_else(|| fastrand::u64(..));
    let kills = number("ACK_KILLS").unwrap_or(8) as usize;
    eprintln!("ACK_SEED={seed} ACK_KILLS={kills}");
    let mut rng = Rng::with_seed(seed);
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url()).with_args(&["--presence-ttl", "3s"]);
    let started: [Gateway; GATEWAYS] = fleet.start();
    let gateways = started.map(|gateway| Mutex::new(Some(gateway)));
    let mut users: Vec<User> = (0..PAIRS)
        .flat_map(|pair| {
            let names = [format!("user{pair}a"), format!("user{pair}b")];
            let homes = [rng.usize(..GATEWAYS), rng.usize(..GATEWAYS)];
            [0, 1].map(|side| User {
                name: names[side].clone(),
                partner: names[1 - side].clone(),
                home: homes[side],
                peer: None,
                said: Vec::new(),
                heard: Vec::new(),
            })
        })
        .collect();
    // Deaths so far; each counts twice, when it begins and when all has recovered.
    let deaths = std::sync::atomic::AtomicUsize::new(0);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for user in &mut users {
            let (gateways, deaths, over) = (&gateways, &deaths, &over);
            scope.spawn(move || {
                while !over.load(SeqCst) {
                    user.round(gateways, &|| deaths.load(SeqCst));
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            });
        }
        let calm = |gateways: &[Mutex<Option<Gateway>>]| {
            // From every gateway to every other.
            for from in 0..GATEWAYS {
                for to in 0..GATEWAYS {
                    let connect = |at: usize, name: &str| {
                        let gateway = gateways[at].lock().unwrap();
                        Peer::connect(gateway.as_ref().unwrap(), name)
                    };
                    let receiver = connect(to, &format!("probe{to}"));
                    connect(from, "prober").tell_until_heard(&receiver, "calm");
                }
            }
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            calm(&gateways);
            for n in 0..kills {
                deaths.fetch_add(1, SeqCst);
                match rng.u8(..4) {
                    0 | 1 => {
                        let at = rng.usize(..GATEWAYS);
                        eprintln!("death {n}: gw{}", at + 1);
                        let mut gateway = gateways[at].lock().unwrap();
                        gateway.as_mut().unwrap().kill();
                        *gateway = Some(fleet.gateway(&format!("gw{}", at + 1)));
                    }
                    2 => {
                        eprintln!("death {n}: subscriptions");
                        redis.client_kill("pubsub");
                    }
                    _ => {
                        eprintln!("death {n}: commands");
                        redis.client_kill("normal");
                    }
                }
                calm(&gateways);
                deaths.fetch_add(1, SeqCst);
            }
        }));
        over.store(true, SeqCst);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    // Everybody hears what is still under way.
    let by_name: BTreeMap<String, usize> = users
        .iter()
        .enumerate()
        .map(|(n, user)| (user.name.clone(), n))
        .collect();
    for n in 0..users.len() {
        let partner = by_name[&users[n].partner];
        if users[n].peer.as_ref().is_some_and(Peer::is_open) {
            let mut sender = users[n].peer.take().unwrap();
            if let Some(receiver) = users[partner].peer.as_ref().filter(|peer| peer.is_open()) {
                sender.tell_until_heard(receiver, "last");
            }
            users[n].peer = Some(sender);
        }
    }
    for user in &mut users {
        user.end_connection();
    }
    judge(&users, &by_name, kills);
}

fn judge(users: &[User], by_name: &BTreeMap<String, usize>, kills: usize) {
    let (mut sent, mut taken, mut in_flight) = (0, 0, 0);
    let mut wrong = Vec::new();
    for user in users {
        let heard = &users[by_name[&user.partner]].heard;
        for numbers in heard {
            assert_rising(&format!("{} to {}", user.name, user.partner), numbers);
        }
        let mut all: Vec<u64> = heard.concat();
        all.sort_unstable();
        if let Some(twice) = all.windows(2).find(|pair| pair[0] == pair[1]) {
            wrong.push(format!("{} to {}: {} twice", user.name, user.partner, twice[0]));
        }
        for said in &user.said {
            sent += 1;
            let came = all.binary_search(&said.number).is_ok();
            if said.status.as_deref() == Some("offline") && came {
                wrong.push(format!(
                    "{}: {} was offline and came; deaths {:?}",
                    user.name, said.number, said.deaths
                ));
            }
            if !is_taken(said.status.as_deref()) {
                continue;
            }
            taken += 1;
            if came {
                continue;
            }
            // Sent in a calm time, acked in the same: nothing excuses its loss.
            let calm = said.deaths.0 == said.deaths.1 && said.deaths.0 % 2 == 0;
            if calm && !near_the_end_of_a_calm(user, said) {
                let status = said.status.as_deref().unwrap();
                wrong.push(format!(
                    "{} to {}: {} was {status} in calm {} and did not come",
                    user.name, user.partner, said.number, said.deaths.0
                ));
            } else {
                in_flight += 1;
            }
        }
    }
    eprintln!("{sent} sent, {taken} taken, {in_flight} of them in flight at one of {kills} deaths and lost");
    assert!(wrong.is_empty(), "{} wrong: {wrong:#?}", wrong.len());
    // A window of each user, at each death.
    let bound = kills * users.len() * WINDOW;
    assert!(in_flight <= bound, "{in_flight} lost, at most {bound} may be");
    assert!(taken * 2 > sent, "most were taken: {taken} of {sent}");
}

/// Whether it is in the last window before a death: acked, and perhaps on its way to a receiver who
/// died.
fn near_the_end_of_a_calm(user: &User, said: &Said) -> bool {
    let next = user.said.get(said.number as usize + WINDOW);
    next.is_none_or(|next| next.deaths.1 != said.deaths.0)
}
