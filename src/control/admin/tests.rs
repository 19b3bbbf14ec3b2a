//! A service that nobody answers.

use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use serde_json::Value;

use super::super::super::handle::OnDrain;
use super::*;
use crate::engine::Waker;
use crate::lanes;

/// What asks shards, and what asks the cluster; each gets its answer, and leaves nothing that
/// waits.
#[test]
fn who_is_not_answered_in_time_hears_so() {
    let (orders, _nobody_takes_orders) = crossbeam_channel::unbounded();
    let handle = Handle {
        orders,
        ending: Arc::new(AtomicBool::new(false)),
        on_drain: OnDrain(Arc::new(|| {})),
        waker: Waker::inert().unwrap(),
    };
    let inboxes = lanes::inboxes(2);
    let wakers = (0..2).map(|_| Waker::inert().unwrap()).collect();
    let shared = Arc::new(Shared::new("gw".into(), true, "model", vec![None; 2], inboxes.depths));
    let mailboxes = lanes::mailbox::mailboxes(inboxes.senders, wakers, None);
    let answer_max = Duration::from_millis(1);
    let homes = HomeMap::new(2, [7; 16]);
    let service = AdminService::new(
        handle,
        mailboxes,
        homes,
        (Arc::clone(&shared), Clock::start()),
        answer_max,
        1,
    );
    let requests = [
        ("GET", "/admin/connections", ""),
        ("GET", "/admin/users/bob", ""),
        ("POST", "/admin/messages", r#"{"to":"bob","content":1}"#),
        ("POST", "/admin/messages", r#"{"to":["bob","carol"],"content":1}"#),
        ("GET", "/admin/channels", ""),
        ("POST", "/admin/broadcast", r#"{"content":1}"#),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    for (method, path, body) in requests {
        let request = Request {
            method: method.into(),
            path: path.into(),
            query: "".into(),
            body: Bytes::from_static(body.as_bytes()),
        };
        let (sender, answered) = oneshot::channel();
        let answer = tokio::task::LocalSet::new().block_on(&runtime, async {
            service.take_own(request, sender);
            answered.await.unwrap()
        });
        let error: Value = serde_json::from_slice(&answer.body).unwrap();
        let error = &error["error"];
        assert_eq!((answer.status, &error["code"]), (504, &"timeout".into()), "{path}");
        let words = error["message"].as_str().unwrap();
        assert!(
            words.contains("no answer in 1ms") && words.contains("may be carried out"),
            "{words}"
        );
        assert!(service.waiting.borrow().tickets.is_empty(), "{path}");
        // What comes too late finds nobody.
        let last = service.waiting.borrow().last;
        service.replied(last, ShardReply::Count(1));
    }
    assert!(shared.gate.try_close());
}
