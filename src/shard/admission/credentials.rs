//! Tokens on their way to being believed.
//!
//! Owned by the shard's thread. Every token passes one queue under the pre-auth budget, so that a
//! rush of handshakes does not keep messages waiting. A connection that waits has a deadline,
//! `auth.timeout`. Identical tokens are verified once.
//!
//! ```text
//! handshake ──> Verifying ──┐                ┌──> Open, here or on the home shard
//! first `auth` ─> Verifying ├─> queue ──> cache, verifier ──> refused: 401, 3500, or 3005
//! `auth` again, while Open ─┘     ^          └──> key unknown: waits for a fetch
//!                                 └───────────────────────────┘ once
//! ```
//!
//! Invariant *one at a time*: a connection has at most one token that is not decided on.

use std::sync::Arc;

use super::Admission;
use super::budget::TOKEN_US;
use super::tables::Shown;
use crate::auth::{Identity, Token, TokenError};
use crate::engine::SocketKey;
use crate::lanes::LifecycleToControl;
use crate::metrics::TokenResult;
use crate::session::{Migrating, Stage, Verifying};
use crate::shard::kernel::{Happened, Kernel};
use crate::shared::NotAdmitted;
use crate::wire::message::ErrorCode;
use crate::wire::ws::close::CloseReason;
use crate::wire::ws::head::{self, Upgrade};

/// The most tokens that wait for a fetch of keys; at 8 KiB each they take 8 MiB. A token
/// beyond them is refused at once.
const UNKNOWN_MAX: usize = 1024;

/// The reason tells the client whether to come back: with a new token if the old one has expired,
/// and not at all if it is bad.
fn close_reason(refusal: TokenError) -> CloseReason {
    match refusal {
        TokenError::Expired => CloseReason::TokenExpired,
        _ => CloseReason::InvalidCredential,
    }
}

impl Admission {
    /// A connection whose user is not known yet shows a token, with the handshake that is owed its
    /// `101` or after it.
    pub(in crate::shard) fn begin_verifying(
        &mut self,
        kernel: &mut Kernel,
        slot: u32,
        token: Token,
        upgrade: Option<Upgrade>,
        rest: Vec<u8>,
    ) {
        let by = kernel.key(slot);
        kernel.go(slot, Stage::Verifying(Box::new(Verifying { upgrade, rest })));
        let timeout = kernel.settings.auth_timeout.as_millis() as u64;
        kernel.wheel.set(slot, kernel.now.mono_ms() + timeout);
        self.show(by, token);
    }

    /// A connection whose user is known shows a new token.
    pub(in crate::shard) fn begin_refreshing(
        &mut self,
        kernel: &mut Kernel,
        slot: u32,
        client_id: Option<&str>,
        token: Token,
    ) {
        if kernel.conn(slot).refreshing {
            let message = "the last auth is still being looked at";
            return kernel.send_error(slot, client_id, ErrorCode::RateLimited, message);
        }
        kernel.conn(slot).refreshing = true;
        let by = kernel.key(slot);
        self.show(by, token);
    }

    fn show(&mut self, by: SocketKey, token: Token) {
        self.credentials.queue.push_back(Shown { by, token, last: false });
    }

    /// Decides on the next token, if this turn may do one more. False if none is left that may.
    pub(in crate::shard) fn verify_next(&mut self, kernel: &mut Kernel) -> bool {
        while self.budget.may_go_on() {
            let Some(shown) = self.credentials.queue.pop_front() else {
                return false;
            };
            if Self::awaits_verdict(kernel, shown.by) {
                let cost_us = self.verify(kernel, shown);
                self.budget.spend(cost_us);
                return true;
            }
        }
        false
    }

    /// Keys were fetched, or could not be: the new settings, if any, came before this.
    pub(in crate::shard) fn handle_keys_fetched(&mut self) {
        self.credentials.look_again();
    }

    /// True if this connection has stayed to hear what becomes of its token.
    fn awaits_verdict(kernel: &mut Kernel, by: SocketKey) -> bool {
        kernel.connection(by).is_some_and(|conn| match conn.stage {
            Stage::Verifying(_) => true,
            Stage::Open => conn.refreshing,
            _ => false,
        })
    }

    /// Decides on one token. Returns what that cost, microseconds.
    fn verify(&mut self, kernel: &mut Kernel, shown: Shown) -> u32 {
        let now_ms = kernel.now.wall_ms;
        if let Some(identity) = self.credentials.cache.get(&shown.token, now_ms).cloned() {
            kernel.metrics().verified(TokenResult::Cached);
            self.handle_verified(kernel, shown.by.slot, Ok(identity));
            return TOKEN_US;
        }
        let settings = Arc::clone(&kernel.settings);
        let Some(verifier) = &settings.auth else {
            // Tokens are shown only where they are verified, and that does not change while
            // running.
            self.handle_verified(kernel, shown.by.slot, Err(TokenError::Malformed));
            return TOKEN_US;
        };
        let (result, signatures) = verifier.verify_counting(&shown.token.0, now_ms);
        let cost = TOKEN_US + signatures * verifier.signature_us();
        let credentials = &mut self.credentials;
        let may_be_known = !shown.last && verifier.may_learn_keys() && credentials.unknown.len() < UNKNOWN_MAX;
        if result == Err(TokenError::UnknownKey) && may_be_known {
            credentials.unknown.push(shown);
            if !std::mem::replace(&mut credentials.asked, true) {
                kernel.lanes.push_control(LifecycleToControl::KeysWanted);
            }
            return cost;
        }
        match &result {
            Ok(identity) => {
                credentials.cache.insert(&shown.token, identity.clone());
                kernel.metrics().verified(TokenResult::Ok);
            }
            Err(refusal) => kernel.metrics().verified((*refusal).into()),
        }
        self.handle_verified(kernel, shown.by.slot, result);
        cost
    }

    fn handle_verified(&mut self, kernel: &mut Kernel, slot: u32, result: Result<Identity, TokenError>) {
        if let Stage::Open = kernel.conn(slot).stage {
            return self.refresh(kernel, slot, result);
        }
        let Identity { user, grant } = match result {
            Ok(identity) => identity,
            Err(refusal) => return self.refuse_credential(kernel, slot, refusal),
        };
        let Stage::Verifying(verifying) = kernel.go(slot, Stage::Authenticating) else {
            return;
        };
        let newcomer = Migrating {
            hash: kernel.homes.hash(&user),
            user,
            grant: Some(grant),
            upgrade: verifying.upgrade,
            rest: verifying.rest,
        };
        self.enter(kernel, slot, newcomer);
    }

    fn refresh(&mut self, kernel: &mut Kernel, slot: u32, result: Result<Identity, TokenError>) {
        kernel.conn(slot).refreshing = false;
        let identity = match result {
            Ok(identity) => identity,
            Err(refusal) => return kernel.begin_close(slot, close_reason(refusal)),
        };
        let Some(user) = kernel.conn(slot).user else {
            return;
        };
        if kernel.users.name(user) != identity.user {
            return kernel.begin_close(slot, CloseReason::NotPermitted);
        }
        let before = kernel.conn(slot).grant.replace(identity.grant);
        kernel.conn(slot).bad_frames = 0;
        kernel.send_welcome(slot);
        let after = &kernel.conn(slot).grant;
        let [before, after] = [&before, after].map(|grant| grant.as_ref().and_then(|grant| grant.rights.as_ref()));
        let rights_changed = before != after;
        kernel.happened(Happened::Refreshed { slot, rights_changed });
    }

    fn refuse_credential(&mut self, kernel: &mut Kernel, slot: u32, why: TokenError) {
        let Stage::Verifying(verifying) = &mut kernel.conn(slot).stage else {
            return;
        };
        let Some(upgrade) = &verifying.upgrade else {
            return kernel.begin_close(slot, close_reason(why));
        };
        if upgrade.browser
            && let Some(upgrade) = verifying.upgrade.take()
        {
            return self.close_browser(kernel, slot, &upgrade, close_reason(why));
        }
        let refusal = head::Refusal::Credential;
        kernel.count_refused(slot, refusal.into());
        let (challenge, text) = match why {
            TokenError::Expired => (
                "WWW-Authenticate: Bearer error=\"expired\"\r\n",
                "the token has expired",
            ),
            _ => ("WWW-Authenticate: Bearer\r\n", refusal.response().1),
        };
        self.refuse_upgrade(kernel, slot, "401 Unauthorized", challenge, text);
    }

    /// The token could not be looked at in time, or shall not be: the client may come again with
    /// it.
    pub(super) fn give_up_verifying(
        &mut self,
        kernel: &mut Kernel,
        slot: u32,
        reason: NotAdmitted,
        close: CloseReason,
    ) {
        if Self::owes_upgrade(kernel, slot) {
            kernel.count_refused(slot, reason.into());
            self.refuse_unavailable(kernel, slot, reason);
        } else {
            kernel.begin_close(slot, close);
        }
    }

    fn owes_upgrade(kernel: &mut Kernel, slot: u32) -> bool {
        matches!(&kernel.conn(slot).stage, Stage::Verifying(verifying) if verifying.upgrade.is_some())
    }
}
