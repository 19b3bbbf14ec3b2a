//! The wire, and nothing else: frames, messages, request heads, close codes.
//!
//! | module | duty |
//! | --- | --- |
//! | [`message`] | what the gateway says |
//! | [`codec`], [`json`] | how a message becomes a body, and back |
//! | [`framing`] | how a body becomes bytes of a stream |
//! | [`ws`] | WebSocket |
//!
//! Pure: no sockets, clock, random source or executor. Every function works on bytes that it is
//! given. The gateway, the tests and the fuzzers all call the same code.

pub mod codec;
pub mod framing;
pub mod json;
pub mod message;
pub mod ws;
