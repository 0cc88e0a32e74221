//! What the daemon and its eBPF programs must agree on.
#![no_std]
