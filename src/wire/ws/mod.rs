//! WebSocket: handshakes, frames, close codes.

pub mod close;
pub mod credentials;
pub mod frame;
pub mod head;
pub mod request;
pub mod server_frame;
