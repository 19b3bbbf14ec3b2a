//! A user's connection that reads by itself: for tests in which much happens at the same time.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{CLOSE, PING, PONG, TEXT, frame_bytes, text_bytes};
use super::{Client, DEADLINE, Gateway, eventually};

/// The bytes so far.
#[derive(Default)]
struct Inbox {
    messages: Vec<Value>,
    publications: Vec<Value>,
    /// The other frames without an id: `shutdown`, errors.
    notices: Vec<Value>,
    /// Answers by the id of the question, in the order in which they came. More than one is a
    /// fault.
    answers: BTreeMap<String, Vec<Value>>,
    close: Option<u16>,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    changed: Condvar,
}

/// One device of one user. Dropping it cuts the connection without a goodbye.
pub struct Peer {
    pub user: String,
    stream: TcpStream,
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
    questions: u64,
}

impl Peer {
    #[track_caller]
    pub fn connect(gateway: &Gateway, user: &str) -> Peer {
        Peer::follow(gateway.connect(user), user)
    }

    /// Makes a peer of a client after its `welcome`.
    pub fn follow(mut client: Client, user: &str) -> Peer {
        let stream = client.stream.try_clone().unwrap();
        let shared = Arc::new(Shared::default());
        let inbox = Arc::clone(&shared);
        let reader = std::thread::spawn(move || {
            while let Some(frame) = client.next_frame() {
                match frame.opcode {
                    PING => client.send_carelessly(&frame_bytes(0x80 | PONG, &frame.payload)),
                    TEXT => inbox.lock().file(serde_json::from_str(frame.text()).unwrap()),
                    CLOSE => {
                        inbox.lock().close = frame.close_code();
                        client.send_carelessly(&frame_bytes(0x80 | CLOSE, &frame.payload));
                    }
                    _ => {}
                }
                inbox.changed.notify_all();
            }
            inbox.lock().ended = true;
            inbox.changed.notify_all();
        });
        Peer {
            user: user.to_owned(),
            stream,
            shared,
            reader: Some(reader),
            questions: 0,
        }
    }

    /// Waits until what came satisfies; panics with `what` at the deadline.
    #[track_caller]
    fn wait<T>(&self, what: &str, within: Duration, mut found: impl FnMut(&Inbox) -> Option<T>) -> T {
        let until = Instant::now() + within;
        let mut inbox = self.shared.lock();
        loop {
            if let Some(found) = found(&inbox) {
                return found;
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{} waited in vain for {what}; {} messages, close {:?}, ended {}, notices {:?}",
                self.user,
                inbox.messages.len(),
                inbox.close,
                inbox.ended,
                inbox.notices
            );
            inbox = self.shared.changed.wait_timeout(inbox, left).unwrap().0;
        }
    }

    /// Sends a frame; nothing happens if the gateway is gone.
    pub fn send_text(&mut self, text: &str) {
        let _ = self.stream.write_all(&text_bytes(text));
    }

    fn next_id(&mut self) -> String {
        self.questions += 1;
        self.questions.to_string()
    }

    /// Sends a message without waiting; its id, for [`Peer::status`].
    pub fn send(&mut self, to: &str, content: impl Into<Value>) -> String {
        let id = self.next_id();
        let content: Value = content.into();
        self.send_text(&json!({"type": "message", "to": to, "content": content, "id": id}).to_string());
        id
    }

    /// The one answer to a question.
    #[track_caller]
    pub fn answer(&self, id: &str) -> Value {
        self.try_answer(id)
            .unwrap_or_else(|| panic!("{}: ended before the answer to {id}", self.user))
    }

    /// The one answer to a question; `None` if the connection ended without it.
    #[track_caller]
    pub fn try_answer(&self, id: &str) -> Option<Value> {
        self.wait(&format!("an answer to {id}"), DEADLINE, |inbox| {
            let answers = inbox.answers.get(id).map_or(&[][..], Vec::as_slice);
            assert!(answers.len() <= 1, "answered twice: {answers:?}");
            match answers.first() {
                Some(answer) => Some(Some(answer.clone())),
                None => inbox.ended.then_some(None),
            }
        })
    }

    /// The status in the ack of a message; `None` if the connection ended without it.
    #[track_caller]
    pub fn try_status(&self, id: &str) -> Option<String> {
        let ack = self.try_answer(id)?;
        assert_eq!(ack["type"], "ack", "{ack}");
        Some(ack["status"].as_str().unwrap().to_owned())
    }

    #[track_caller]
    pub fn status(&self, id: &str) -> String {
        self.try_status(id)
            .unwrap_or_else(|| panic!("{}: ended before the ack of {id}", self.user))
    }

    /// Sends a message and waits for its ack.
    #[track_caller]
    pub fn tell(&mut self, to: &str, content: impl Into<Value>) -> String {
        let id = self.send(to, content);
        self.status(&id)
    }

    /// Tells again and again until the status is this; every attempt has the same content.
    #[track_caller]
    pub fn tell_until(&mut self, to: &str, content: impl Into<Value>, status: &str) {
        let content: Value = content.into();
        let mut last = String::new();
        let until = Instant::now() + DEADLINE;
        while last != status {
            assert!(Instant::now() < until, "to {to}: always {last}, never {status}");
            if !last.is_empty() {
                std::thread::sleep(Duration::from_millis(5));
            }
            last = self.tell(to, content.clone());
        }
    }

    /// Sends again and again until this receiver gets it, as other gateways take a moment to learn
    /// where a user is.
    #[track_caller]
    pub fn tell_until_heard(&mut self, receiver: &Peer, content: impl Into<Value>) {
        let content: Value = content.into();
        let until = Instant::now() + DEADLINE;
        loop {
            let status = self.tell(&receiver.user, content.clone());
            if receiver.heard_from(&self.user).contains(&content) {
                return;
            }
            let names = (&self.user, &receiver.user);
            assert!(Instant::now() < until, "{names:?}: {status}, and {content} never heard");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Subscribes and waits until that is confirmed.
    #[track_caller]
    pub fn subscribe(&mut self, channel: &str) {
        self.ask_about_channel("subscribe", "subscribed", channel);
    }

    #[track_caller]
    pub fn unsubscribe(&mut self, channel: &str) {
        self.ask_about_channel("unsubscribe", "unsubscribed", channel);
    }

    #[track_caller]
    fn ask_about_channel(&mut self, kind: &str, expected: &str, channel: &str) {
        let id = self.next_id();
        self.send_text(&json!({"type": kind, "channel": channel, "id": id}).to_string());
        let answer = self.answer(&id);
        assert_eq!(answer, json!({"type": expected, "channel": channel, "id": id}));
    }

    /// Publishes and waits for the ack.
    #[track_caller]
    pub fn publish(&mut self, channel: &str, content: impl Into<Value>) -> String {
        let id = self.next_id();
        let content: Value = content.into();
        self.send_text(&json!({"type": "publish", "channel": channel, "content": content, "id": id}).to_string());
        self.status(&id)
    }

    /// Publishes again and again, a higher number each time, until this receiver gets one of them.
    #[track_caller]
    pub fn publish_until_heard(&mut self, receiver: &Peer, channel: &str) {
        let before = receiver.publications_on(channel).len();
        let until = Instant::now() + DEADLINE;
        let mut last = String::new();
        while receiver.publications_on(channel).len() == before {
            let names = (&self.user, &receiver.user);
            assert!(
                Instant::now() < until,
                "{names:?}: {last}, and nothing heard on {channel}"
            );
            let number = self.next_id().parse::<u64>().unwrap();
            last = self.publish(channel, number);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// All publications on a channel so far, as they came.
    pub fn publications_on(&self, channel: &str) -> Vec<Value> {
        let inbox = self.shared.lock();
        let on = inbox.publications.iter().filter(|p| p["channel"] == channel);
        on.cloned().collect()
    }

    /// Waits for a publication with this content.
    #[track_caller]
    pub fn wait_for_publication(&self, channel: &str, content: impl Into<Value>) -> Value {
        let content: Value = content.into();
        self.wait(&format!("{content:.100} on {channel}"), DEADLINE, |inbox| {
            let mut newest_first = inbox.publications.iter().rev();
            newest_first
                .find(|p| p["channel"] == channel && p["content"] == content)
                .cloned()
        })
    }

    /// The online users of these; `Err` with the code of the error.
    #[track_caller]
    pub fn presence(&mut self, users: &[&str]) -> Result<BTreeMap<String, bool>, String> {
        let id = self.next_id();
        self.send_text(&json!({"type": "presence", "users": users, "id": id}).to_string());
        let answer = self.answer(&id);
        if answer["type"] == "error" {
            return Err(answer["code"].as_str().unwrap().to_owned());
        }
        assert_eq!(answer["type"], "presence", "{answer}");
        Ok(serde_json::from_value(answer["users"].clone()).unwrap())
    }

    /// Whether one user is online, if that is known.
    #[track_caller]
    pub fn sees(&mut self, user: &str) -> Option<bool> {
        self.presence(&[user]).ok().map(|answer| answer[user])
    }

    /// Waits until a user is seen online, or offline.
    #[track_caller]
    pub fn wait_to_see(&mut self, user: &str, online: bool) {
        let what = format!(
            "{} sees {user} {}",
            self.user,
            if online { "online" } else { "offline" }
        );
        eventually(&what, || self.sees(user) == Some(online));
    }

    /// Waits until all of these are seen online, or all offline.
    #[track_caller]
    pub fn wait_to_see_all<S: AsRef<str>>(&mut self, users: &[S], online: bool) {
        for some in users.chunks(100) {
            let some: Vec<&str> = some.iter().map(AsRef::as_ref).collect();
            let until = Instant::now() + DEADLINE;
            loop {
                let seen = self.presence(&some);
                if seen.as_ref().is_ok_and(|seen| seen.values().all(|is| *is == online)) {
                    break;
                }
                assert!(Instant::now() < until, "never all {online}: {seen:?}");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// All messages so far, as they came.
    pub fn messages(&self) -> Vec<Value> {
        self.shared.lock().messages.clone()
    }

    /// The contents of all messages so far that came from this user.
    pub fn heard_from(&self, user: &str) -> Vec<Value> {
        let inbox = self.shared.lock();
        let from = inbox.messages.iter().filter(|message| message["from"] == user);
        from.map(|message| message["content"].clone()).collect()
    }

    /// Numbers that this user sent, in the order in which they came.
    pub fn numbers_from(&self, user: &str) -> Vec<u64> {
        self.heard_from(user).iter().filter_map(Value::as_u64).collect()
    }

    /// Waits for a message with this content.
    #[track_caller]
    pub fn wait_for(&self, content: impl Into<Value>) -> Value {
        let content: Value = content.into();
        self.wait(&format!("content {content:.100}"), DEADLINE, |inbox| {
            let mut newest_first = inbox.messages.iter().rev();
            newest_first.find(|message| message["content"] == content).cloned()
        })
    }

    /// Waits until that many messages have come.
    #[track_caller]
    pub fn wait_for_messages(&self, count: usize) {
        self.wait(&format!("{count} messages"), DEADLINE, |inbox| {
            (inbox.messages.len() >= count).then_some(())
        });
    }

    /// Waits for a frame of this type that is no reply.
    #[track_caller]
    pub fn wait_for_notice(&self, kind: &str) -> Value {
        self.wait(kind, DEADLINE, |inbox| {
            inbox.notices.iter().find(|notice| notice["type"] == kind).cloned()
        })
    }

    /// Waits for the close; its code.
    #[track_caller]
    pub fn wait_for_close(&self) -> u16 {
        self.wait("a close", DEADLINE, |inbox| inbox.close)
    }

    /// Waits until the connection has ended, in whatever way.
    #[track_caller]
    pub fn wait_for_end(&self) {
        self.wait("the end", DEADLINE, |inbox| inbox.ended.then_some(()));
    }

    pub fn is_open(&self) -> bool {
        let inbox = self.shared.lock();
        !inbox.ended && inbox.close.is_none()
    }

    /// Waits for the answer to something that is always answered: the gateway has read all that was
    /// sent before.
    #[track_caller]
    pub fn settle(&mut self) {
        let id = self.next_id();
        self.send_text(&json!({"type": "nonsense", "id": id}).to_string());
        assert_eq!(self.answer(&id)["code"], "unknownType");
    }

    /// Says goodbye and waits for the end; all messages until then.
    #[track_caller]
    pub fn leave(mut self) -> Vec<Value> {
        let goodbye = frame_bytes(0x80 | CLOSE, &1000u16.to_be_bytes());
        let _ = self.stream.write_all(&goodbye);
        self.wait_for_end();
        self.end();
        self.messages()
    }

    fn end(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let failed = reader.join().is_err();
            assert!(!failed || std::thread::panicking(), "{}'s reader failed", self.user);
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap()
    }
}

impl Inbox {
    fn file(&mut self, frame: Value) {
        if frame["type"] == "message" {
            self.messages.push(frame);
        } else if frame["type"] == "publication" {
            self.publications.push(frame);
        } else if let Some(id) = frame["id"].as_str() {
            self.answers.entry(id.to_owned()).or_default().push(frame);
        } else {
            self.notices.push(frame);
        }
    }
}

/// A peer that sends 0, 1, 2 and so on to another user, until it is stopped, and records the ack of
/// each.
///
/// It waits for each ack before the next message, so that at most one message is in flight.
pub struct Talk {
    stop: Arc<AtomicBool>,
    acked: Arc<AtomicUsize>,
    thread: JoinHandle<(Peer, Vec<Option<String>>)>,
}

impl Talk {
    pub fn start(mut peer: Peer, to: &str) -> Talk {
        let (stop, acked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&acked));
        let to = to.to_owned();
        let thread = std::thread::spawn(move || {
            let mut said = Vec::new();
            while !stopped.load(SeqCst) && peer.is_open() {
                let id = peer.send(&to, said.len());
                said.push(peer.try_status(&id));
                count.fetch_add(1, SeqCst);
                std::thread::sleep(Duration::from_millis(1));
            }
            (peer, said)
        });
        Talk { stop, acked, thread }
    }

    /// Waits until that many more messages have their ack.
    #[track_caller]
    pub fn wait_for_acks(&self, more: usize) {
        let goal = self.acked.load(SeqCst) + more;
        eventually("acks", || self.acked.load(SeqCst) >= goal);
    }

    /// The peer, and the status of each number; `None` where the connection ended before the ack.
    #[track_caller]
    pub fn stop(self) -> (Peer, Vec<Option<String>>) {
        self.stop.store(true, SeqCst);
        self.thread.join().unwrap()
    }
}

/// Whether a message was taken, by its status.
pub fn is_taken(status: Option<&str>) -> bool {
    matches!(status, Some("delivered" | "routed"))
}

/// Compares the acks of numbers 0, 1, 2 and so on with the received numbers. They must be in order,
/// with nothing twice and nothing that was `offline`. All taken ones must have come, but for
/// `lost_max` that were in flight when something broke. Returns how many were lost.
#[track_caller]
pub fn assert_truthful(what: &str, said: &[Option<String>], came: &[u64], lost_max: usize) -> usize {
    assert_rising(what, came);
    let status = |number: u64| said[number as usize].as_deref();
    let lies: Vec<&u64> = came.iter().filter(|&&n| status(n) == Some("offline")).collect();
    assert!(lies.is_empty(), "{what}: offline, and yet they came: {lies:?}");
    let taken = (0..said.len() as u64).filter(|&n| is_taken(status(n)));
    let lost: Vec<u64> = taken.filter(|n| came.binary_search(n).is_err()).collect();
    let count = |wanted: &str| said.iter().filter(|s| s.as_deref() == Some(wanted)).count();
    eprintln!(
        "{what}: {} sent, {} routed, {} delivered, {} offline, {} failed; {} came; taken and lost: {lost:?}",
        said.len(),
        count("routed"),
        count("delivered"),
        count("offline"),
        count("failed"),
        came.len()
    );
    assert!(
        lost.len() <= lost_max,
        "{what}: {lost:?} were taken and did not come, at most {lost_max} may"
    );
    lost.len()
}

/// Numbers that came must rise: nothing twice, nothing overtaken. Gaps are another question.
#[track_caller]
pub fn assert_rising(what: &str, numbers: &[u64]) {
    for pair in numbers.windows(2) {
        assert!(pair[0] < pair[1], "{what}: {} came before {}", pair[0], pair[1]);
    }
}
