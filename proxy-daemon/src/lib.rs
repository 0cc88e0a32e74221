//! proxy-daemon: programs a node's kernel so that packets to Kubernetes Services reach their backends.
//!
//! Modules in reading order:
//! - [`net`]: the words about addresses and ports that all layers share;
//! - [`model`]: the cluster in our words;
//! - [`cli`]: what was written on the command line;
//! - [`config`]: what the daemon was asked to do;
//! - [`diagnostics`]: what of them cannot be used, and who was told;
//! - [`watch`]: where the objects come from, and which changed;
//! - [`compile`]: what they mean for packets;
//! - [`forwarding`]: that meaning, the contract;
//! - [`sys`]: the machine;
//! - [`conntrack`]: which flows the kernel must forget;
//! - [`sync`]: when the kernel is made to match;
//! - [`health`]: how that goes;
//! - [`debug`]: what is held, for people;
//! - [`telemetry`]: how it is told;
//! - [`app`]: all of it together;
//! - [`datapath`]: what carries it in the kernel.

pub mod app;
pub mod cli;
pub mod compile;
pub mod config;
pub mod conntrack;
pub mod datapath;
pub mod debug;
pub mod diagnostics;
pub mod forwarding;
pub mod health;
pub mod model;
pub mod net;
pub mod sync;
pub mod sys;
pub mod telemetry;
pub mod watch;
