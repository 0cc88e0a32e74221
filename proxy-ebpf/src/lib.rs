//! The eBPF programs of proxy-daemon.
#![no_std]
