//! WebSocket: handshakes, frames, close codes.

pub mod close;
pub mod frame;
pub mod head;
pub mod server_frame;
