//! proxy-daemon.
