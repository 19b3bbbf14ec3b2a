//! The wire, and nothing else: frames, messages, request heads, close codes.
//!
//! Pure: no sockets, clock, random source or executor. Every function works on bytes that it is given.
//! The gateway, the tests and the fuzzers all call the same code.

pub mod json;
pub mod ws;
