//! proxy-daemon: programs a node's kernel so that packets to Kubernetes Services reach their backends.
//!
//! Modules in reading order:
//! - [`net`]: types of addresses and ports that all layers share;
//! - [`model`]: the cluster's objects;
//! - [`cli`]: the command line;
//! - [`config`]: the configuration;
//! - [`diagnostics`]: faults of objects, kept and logged;
//! - [`watch`]: where the objects come from, and which changed;
//! - [`compile`]: from objects to a forwarding state;
//! - [`forwarding`]: the forwarding state, which datapaths render;
//! - [`sys`]: the machine;
//! - [`conntrack`]: stale UDP flows;
//! - [`sync`]: when the kernel is written;
//! - [`health`]: health and metrics;
//! - [`debug`]: what `dump` and `explain` print;
//! - [`telemetry`]: the log;
//! - [`app`]: puts all of them together;
//! - [`datapath`]: what forwards packets in the kernel.

pub mod app;
pub mod cli;
pub mod compile;
pub mod config;
pub mod conntrack;
pub mod datapath;
pub mod debug;
pub mod diagnostics;
pub mod forwarding;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod health;
pub mod model;
pub mod net;
pub mod sync;
pub mod sys;
pub mod telemetry;
pub mod watch;
