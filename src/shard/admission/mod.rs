//! Everything before a connection is open, under one budget.
//!
//! Owned by the shard's thread. [`Admission`] reads PROXY headers, TLS handshakes, request heads,
//! plain HTTP and tokens; it admits a connection, hands it to its home shard, or refuses it. It
//! gets the kernel lent for a call, and names no other service.
//!
//! ```text
//! accept ─> PROXY header ─> TLS ─> head ─┬─> http ─┬─> handshake ─┬─> credentials ─┬─> Open
//!                                        └─────────┘              └────────────────┴─> home shard
//! ```
//!
//! Invariants:
//! - *one budget*: the four queues together do no more in a turn than [`budget`] allows, whatever
//!   peers send.
//! - *no end here*: admission marks connections in the kernel, or returns to the core which socket
//!   shall end.
//! - *bytes in order*: bytes behind a handshake go into [`super::kernel::Happened::FramesDue`]; the
//!   core looks at them before it arms the next receive. So admission arms no receive of a
//!   connection that it has just let in.

mod addresses;
mod budget;
mod credentials;
mod enter;
mod head;
mod http;
mod inquiries;
mod pending;
mod tables;
mod tls;

use core::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::kernel::Kernel;
use crate::http::{HttpContext, ListenerKind};
use crate::metrics::RefusalReason;
use crate::session::{Stage, Tally};
use crate::settings::Settings;
use crate::shared::{NotAdmitted, Now, Shared};
use crate::wire::ws::close::CloseReason;

pub(super) use budget::Queue;
pub(super) use tables::ClientBytes;
use tables::{Credentials, Handshakes, Inquiries, Requests};

/// A shard's connections on their way in.
#[derive(Debug)]
pub(super) struct Admission {
    http: Rc<HttpContext>,
    budget: budget::Budget,
    handshakes: Handshakes,
    requests: Requests,
    credentials: Credentials,
    inquiries: Inquiries,
}

impl Admission {
    /// No connection is on its way in. `seed`: for the random choices of HTTP answers.
    pub(super) fn new(shared: Arc<Shared>, settings: Arc<Settings>, listener: ListenerKind, seed: u64) -> Self {
        Admission {
            http: Rc::new(HttpContext::new(shared, settings, listener, seed)),
            budget: Default::default(),
            handshakes: Default::default(),
            requests: Default::default(),
            credentials: Default::default(),
            inquiries: Default::default(),
        }
    }

    /// A new turn has its whole budget.
    pub(super) fn begin_turn(&mut self, now: Now) {
        self.http.set_now(now);
        self.budget.begin_turn();
    }

    /// The pre-auth queues in this turn's order.
    pub(super) fn begin_queues(&mut self) -> [Queue; 4] {
        self.budget.begin_queues()
    }

    /// How many steps wait for their turns.
    pub(super) fn waiting_pre_auth(&self, kernel: &Kernel) -> usize {
        let listen = kernel.pending.to_arm.len();
        self.handshakes.waiting() + self.requests.waiting() + self.credentials.waiting() + listen
    }

    /// True if so many steps wait that the shard shall accept no more sockets.
    pub(super) fn is_crowded(&self, kernel: &Kernel) -> bool {
        budget::Budget::is_crowded(self.waiting_pre_auth(kernel))
    }

    /// A socket was accepted from `peer`. False if it shall be closed at once.
    pub(super) fn handle_accepted(&mut self, kernel: &mut Kernel, slot: u32, peer: Option<SocketAddr>) -> bool {
        if !self.came_from(kernel, slot, peer) {
            return false;
        }
        self.budget.spend(budget::ACCEPT_US);
        kernel.count_as(slot, Tally::Pending);
        kernel.conn(slot).tls = tables::begin(&kernel.settings);
        let timeout_ms = kernel.settings.limits.handshake_timeout.as_millis() as u64;
        kernel.wheel.set(slot, kernel.now.mono_ms() + timeout_ms);
        true
    }

    /// The deadline of a connection has come that is not open yet. Plain HTTP has no deadline here:
    /// its connection ends.
    pub(super) fn handle_deadline(&mut self, kernel: &mut Kernel, slot: u32) {
        match &kernel.conn(slot).stage {
            Stage::Head(bytes) if bytes.is_empty() => {
                self.count_broken_handshake(kernel, slot);
                kernel.close_now(slot);
            }
            Stage::Head(_) => {
                self.refuse_head(kernel, slot, "408 Request Timeout", RefusalReason::HeadTimeout);
            }
            Stage::Authenticating => kernel.begin_close(slot, CloseReason::NoCredential),
            Stage::Verifying(_) => {
                let close = CloseReason::TooManyRequests;
                self.give_up_verifying(kernel, slot, NotAdmitted::Unverified, close);
            }
            _ => {}
        }
    }

    /// A drain begins: WebSocket clients whose user is not known yet shall go elsewhere.
    pub(super) fn begin_drain(&mut self, kernel: &mut Kernel) {
        for slot in 0..kernel.connections.len() as u32 {
            match kernel.conn(slot).stage {
                Stage::Authenticating => kernel.begin_close(slot, CloseReason::Shutdown),
                Stage::Verifying(_) => {
                    self.give_up_verifying(kernel, slot, NotAdmitted::Draining, CloseReason::Shutdown);
                }
                _ => {}
            }
        }
    }

    /// New settings have come.
    pub(super) fn handle_settings(&mut self, settings: &Arc<Settings>) {
        self.http.settings.replace(Arc::clone(settings));
        self.credentials.forget();
    }

    /// Tokens that are not decided on.
    pub(super) fn held_credentials(&self) -> usize {
        self.credentials.len()
    }

    /// Administrators' requests whose answers have not left.
    pub(super) fn held_inquiries(&self) -> usize {
        self.inquiries.len()
    }
}
