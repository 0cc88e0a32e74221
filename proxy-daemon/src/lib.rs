//! proxy-daemon: programs a node's kernel so that packets to Kubernetes Services reach their backends.
//!
//! Modules in reading order:
//! - [`net`]: the words about addresses and ports that all layers share;
//! - [`model`]: the cluster in our words;
//! - [`cli`]: what was written on the command line;
//! - [`config`]: what the daemon was asked to do;
//! - [`watch`]: where the objects come from, and which changed;
//! - [`compile`]: what they mean for packets;
//! - [`forwarding`]: that meaning, the contract;
//! - [`sys`]: the machine;
//! - [`datapath`]: what carries it in the kernel.

pub mod cli;
pub mod compile;
pub mod config;
pub mod datapath;
pub mod forwarding;
pub mod model;
pub mod net;
pub mod sys;
pub mod watch;
