//! The JSON codec: what clients send is decoded, what the gateway says is encoded.

pub mod decode;
pub mod encode;
