//! Administrators' requests: the service that carries them out, and the listener of `admin.listen`.

pub(super) mod listener;
mod service;

pub(super) use service::{ANSWER_MAX, AdminService};
