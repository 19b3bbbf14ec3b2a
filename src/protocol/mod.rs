//! The wire, and nothing else: frames, envelopes, request heads, close codes.
//!
//! Pure: no sockets, clock, random source or executor. Every function works on bytes that it is given;
//! the gateway, the tests and the fuzzers all call the same code.

pub mod close;
pub mod encode;
pub mod envelope;
pub mod frame;
pub mod head;
pub mod server_frame;
