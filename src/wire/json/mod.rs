//! Messages as JSON: what clients send is decoded, what the gateway sends is encoded.

pub mod decode;
pub mod encode;
