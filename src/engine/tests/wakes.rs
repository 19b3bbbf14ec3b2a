//! Waking and parking, for both engines.
