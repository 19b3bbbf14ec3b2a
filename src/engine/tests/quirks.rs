//! What we rely on in glommio and in the kernel.
