//! Tokens on their way to being believed.
//!
//! Owned by the shard. Every token passes one queue, of which a turn does no more than strangers may ask for (`strangers`), so that a rush
//! of handshakes does not keep messages waiting; who waits has a deadline, `auth.timeout`. Identical tokens are verified once.
//!
//! ```text
//! handshake ──> Verifying ──┐                ┌──> Open, here or on the home shard
//! first `auth` ─> Verifying ├─> queue ──> cache, verifier ──> refused: 401, 3500, or 3005
//! `auth` again, while Open ─┘     ^          └──> key unknown: waits for a fetch
//!                                 └───────────────────────────┘ once
//! ```
//!
//! Invariant *one at a time*: a connection has at most one token that is not decided on.

use std::collections::VecDeque;
use std::sync::Arc;

use super::core::Core;
use super::strangers::TOKEN_US;
use crate::auth::{Cache, Identity, Refusal, Token};
use crate::engine::SocketKey;
use crate::metrics::TokenResult;
use crate::session::{Stage, Verifying};
use crate::shared::NotAdmitted;
use crate::wire::message::ErrorCode;
use crate::wire::ws::close::CloseReason;
use crate::wire::ws::head::{self, Upgrade};

/// The most tokens that wait for a fetch of keys; at 8 KiB each they take 8 MiB. Who comes beyond is refused at once.
const UNKNOWN_MAX: usize = 1024;

/// A token that somebody shows.
#[derive(Debug)]
struct Shown {
    by: SocketKey,
    token: Token,
    /// Keys were fetched for it: what is unknown now stays so.
    last: bool,
}

/// Tokens that are not decided on, and those that were found good.
#[derive(Debug, Default)]
pub(super) struct Credentials {
    queue: VecDeque<Shown>,
    /// Signed with a key that is not known yet.
    unknown: Vec<Shown>,
    cache: Cache,
    /// The control thread shall fetch keys; it was told so.
    wants_keys: bool,
    asked: bool,
}

impl Credentials {
    /// Tokens that are not decided on.
    pub(super) fn len(&self) -> usize {
        self.queue.len() + self.unknown.len()
    }

    /// Tokens that the next turns can decide on.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Keys may have changed: nothing that was found out by the old ones holds.
    pub(super) fn forget(&mut self) {
        self.cache.clear();
        self.queue.extend(self.unknown.drain(..));
    }

    fn look_again(&mut self) {
        self.asked = false;
        let last = |shown| Shown { last: true, ..shown };
        self.queue.extend(self.unknown.drain(..).map(last));
    }
}

/// A client comes back with a new token where the old one has expired, and not with any that is bad.
fn close_reason(refusal: Refusal) -> CloseReason {
    match refusal {
        Refusal::Expired => CloseReason::TokenExpired,
        _ => CloseReason::InvalidCredential,
    }
}

impl Core {
    /// A connection whose user is not known yet shows a token, with the handshake that is owed its `101` or after it.
    pub(super) fn begin_verifying(&mut self, slot: u32, token: Token, upgrade: Option<Upgrade>, rest: Vec<u8>) {
        let by = self.kernel.key(slot);
        self.kernel
            .go(slot, Stage::Verifying(Box::new(Verifying { upgrade, rest })));
        let timeout = self.kernel.settings.auth_timeout.as_millis() as u64;
        self.kernel.wheel.set(slot, self.kernel.now.mono_ms() + timeout);
        self.show(by, token);
    }

    /// A connection whose user is known shows a new token.
    pub(super) fn begin_refreshing(&mut self, slot: u32, client_id: Option<&str>, token: Token) {
        if self.kernel.conn(slot).refreshing {
            let message = "the last auth is still being looked at";
            return self.kernel.send_error(slot, client_id, ErrorCode::RateLimited, message);
        }
        self.kernel.conn(slot).refreshing = true;
        let by = self.kernel.key(slot);
        self.show(by, token);
    }

    fn show(&mut self, by: SocketKey, token: Token) {
        self.credentials.queue.push_back(Shown { by, token, last: false });
    }

    /// Decides on as many tokens as one turn may.
    pub(super) fn verify_credentials(&mut self) {
        while self.strangers.may_go_on()
            && let Some(shown) = self.credentials.queue.pop_front()
        {
            if self.is_waiting(shown.by) {
                let cost_us = self.verify(shown);
                self.strangers.spend(cost_us);
            }
        }
    }

    /// True once for each time that keys shall be fetched; [`crate::lanes::LifecycleToShard::KeysFetched`] is the answer, whatever came
    /// of it.
    pub fn poll_keys_wanted(&mut self) -> bool {
        std::mem::take(&mut self.credentials.wants_keys)
    }

    /// Keys were fetched, or could not be: the new settings, if any, came before this.
    pub(super) fn handle_keys_fetched(&mut self) {
        self.credentials.look_again();
    }

    /// Did this connection stay to hear what becomes of its token?
    fn is_waiting(&mut self, by: SocketKey) -> bool {
        self.kernel.connection(by).is_some_and(|conn| match conn.stage {
            Stage::Verifying(_) => true,
            Stage::Open => conn.refreshing,
            _ => false,
        })
    }

    /// Decides on one token; what that cost, microseconds.
    fn verify(&mut self, shown: Shown) -> u32 {
        let now_ms = self.kernel.now.wall_ms;
        if let Some(identity) = self.credentials.cache.get(&shown.token, now_ms).cloned() {
            self.kernel.metrics().verified(TokenResult::Cached);
            self.handle_verified(shown.by.slot, Ok(identity));
            return TOKEN_US;
        }
        let settings = Arc::clone(&self.kernel.settings);
        let Some(verifier) = &settings.auth else {
            // Tokens are shown only where they are verified, and that does not change while running.
            self.handle_verified(shown.by.slot, Err(Refusal::Malformed));
            return TOKEN_US;
        };
        let (result, signatures) = verifier.verify_counting(&shown.token.0, now_ms);
        let cost = TOKEN_US + signatures * verifier.signature_us();
        let credentials = &mut self.credentials;
        let may_be_known = !shown.last && verifier.may_learn_keys() && credentials.unknown.len() < UNKNOWN_MAX;
        if result == Err(Refusal::UnknownKey) && may_be_known {
            credentials.unknown.push(shown);
            credentials.wants_keys |= !credentials.asked;
            credentials.asked = true;
            return cost;
        }
        match &result {
            Ok(identity) => {
                credentials.cache.insert(&shown.token, identity.clone());
                self.kernel.metrics().verified(TokenResult::Ok);
            }
            Err(refusal) => self.kernel.metrics().verified((*refusal).into()),
        }
        self.handle_verified(shown.by.slot, result);
        cost
    }

    fn handle_verified(&mut self, slot: u32, result: Result<Identity, Refusal>) {
        if let Stage::Open = self.kernel.conn(slot).stage {
            return self.refresh(slot, result);
        }
        let Identity { user, grant } = match result {
            Ok(identity) => identity,
            Err(refusal) => return self.refuse_credential(slot, refusal),
        };
        let Stage::Verifying(verifying) = self.kernel.go(slot, Stage::Authenticating) else {
            return;
        };
        self.enter(slot, user, Some(grant), verifying.upgrade, verifying.rest);
    }

    fn refresh(&mut self, slot: u32, result: Result<Identity, Refusal>) {
        self.kernel.conn(slot).refreshing = false;
        let identity = match result {
            Ok(identity) => identity,
            Err(refusal) => return self.kernel.begin_close(slot, close_reason(refusal)),
        };
        let Some(user) = self.kernel.conn(slot).user else {
            return;
        };
        if self.kernel.users.name(user) != identity.user {
            return self.kernel.begin_close(slot, CloseReason::NotPermitted);
        }
        let before = self.kernel.conn(slot).grant.replace(identity.grant);
        self.kernel.conn(slot).bad_frames = 0;
        if !self.lifecycle.was_told(slot) {
            // The old token's end is not a deadline any more, and the new one's is.
            self.kernel.look_at_once(slot);
        }
        self.kernel.send_welcome(slot);
        let after = &self.kernel.connections[slot as usize].grant;
        let [before, after] = [&before, after].map(|grant| grant.as_ref().and_then(|grant| grant.rights.as_ref()));
        if before != after {
            self.channels.review(slot);
        }
        let limit = self
            .lifecycle
            .connections_limit(&self.kernel, self.kernel.connections[slot as usize].grant.as_ref());
        if limit > 0 {
            self.lifecycle.limit_devices(&mut self.kernel, user, limit);
        }
    }

    fn refuse_credential(&mut self, slot: u32, why: Refusal) {
        let Stage::Verifying(verifying) = &mut self.kernel.conn(slot).stage else {
            return;
        };
        let Some(upgrade) = &verifying.upgrade else {
            return self.kernel.begin_close(slot, close_reason(why));
        };
        if upgrade.browser
            && let Some(upgrade) = verifying.upgrade.take()
        {
            return self.close_browser(slot, &upgrade, close_reason(why));
        }
        let refusal = head::Refusal::Credential;
        self.kernel.count_refused(slot, refusal.into());
        let (challenge, text) = match why {
            Refusal::Expired => (
                "WWW-Authenticate: Bearer error=\"expired\"\r\n",
                "the token has expired",
            ),
            _ => ("WWW-Authenticate: Bearer\r\n", refusal.response().1),
        };
        self.refuse_upgrade(slot, "401 Unauthorized", challenge, text);
    }

    /// The token could not be looked at in time, or shall not be: the client may come again with it.
    pub(super) fn give_up_verifying(&mut self, slot: u32, reason: NotAdmitted, close: CloseReason) {
        if self.owes_upgrade(slot) {
            self.kernel.count_refused(slot, reason.into());
            self.refuse_unavailable(slot, reason);
        } else {
            self.kernel.begin_close(slot, close);
        }
    }

    fn owes_upgrade(&mut self, slot: u32) -> bool {
        matches!(&self.kernel.conn(slot).stage, Stage::Verifying(verifying) if verifying.upgrade.is_some())
    }
}
