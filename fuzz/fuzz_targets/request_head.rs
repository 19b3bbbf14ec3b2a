//! Any bytes as a request head: the decision does not depend on how they arrive, nor on what comes
//! behind.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shardgate::ids::is_valid_user_id;
use shardgate::wire::ws::credentials::Credentials;
use shardgate::wire::ws::head::{self, Decision, Policy, Progress};

struct Strict;

impl Policy for Strict {
    fn allows_origin(&self, origin: &str, host: Option<&str>) -> bool {
        Some(origin) == host
    }

    fn serves_echo(&self) -> bool {
        true
    }

    fn credentials(&self) -> Credentials<'_> {
        Credentials::Names
    }
}

fuzz_target!(|input: &[u8]| {
    let Progress::Complete(len, decision) = head::read(input, &Strict) else {
        return;
    };
    assert!((1..=input.len()).contains(&len));
    // Exactly these bytes are the head.
    assert_eq!(
        head::read(&input[..len], &Strict),
        Progress::Complete(len, head_only(&decision))
    );
    for cut in [len / 4, len / 2, len - 1] {
        assert_eq!(head::read(&input[..cut], &Strict), Progress::Partial, "cut at {cut}");
    }
    if let Decision::Upgrade(upgrade) = decision {
        assert!(upgrade.user.is_none_or(|user| is_valid_user_id(&user)));
        assert_eq!(upgrade.accept.len(), 28);
        let head = String::from_utf8_lossy(&input[..len]).to_ascii_lowercase();
        for needed in ["get ", "websocket", "upgrade", "sec-websocket-key", "host", "13"] {
            assert!(head.contains(needed), "upgraded without {needed}");
        }
    }
});

fn head_only(decision: &Decision) -> Decision {
    match decision {
        Decision::Upgrade(upgrade) => Decision::Upgrade(upgrade.clone()),
        Decision::Refuse(refusal) => Decision::Refuse(*refusal),
        Decision::Plain => Decision::Plain,
    }
}
