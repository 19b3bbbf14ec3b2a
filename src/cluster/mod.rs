//! Many gateways as one system: what each knows of the others, says to them and hears from them.

pub mod store;
