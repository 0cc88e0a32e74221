//! Where would this packet go, and why? The oracle's answer in words.

use std::fmt::{self, Write as _};

use super::{Affinity, Decision, Oracle, Packet, SourceClass, Transport, Verdict};
use crate::net::Family;

/// What must happen to a packet, with the rule of SPEC and the object that decided, as text.
pub fn explain<F: Family>(oracle: &Oracle<'_, F>, packet: &Packet<'_, F>) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    write_answer(&mut text, packet, &oracle.eval(packet)).unwrap_or_default();
    text
}

fn write_answer<F: Family>(
    out: &mut String,
    packet: &Packet<'_, F>,
    decision: &Decision<F>,
) -> fmt::Result {
    let Decision {
        verdict,
        class,
        frontend,
        affinity,
        because,
    } = decision;
    match packet.transport {
        Transport::Ports(protocol, port) => {
            writeln!(
                out,
                "packet:   {protocol} {} to {} port {port}",
                packet.source, packet.destination
            )?;
        }
        Transport::Other => writeln!(out, "packet:   {} to {}", packet.source, packet.destination)?,
    }
    writeln!(out, "source:   {} ({})", class.name(), class.meaning())?;
    match frontend {
        Some((key, id)) => writeln!(out, "frontend: {key} of Service {id}")?,
        None => writeln!(out, "frontend: none")?,
    }
    let (rule, spec) = because.rule();
    writeln!(out, "because:  {rule} ({spec})")?;
    match verdict {
        Verdict::Forward(hops) => {
            writeln!(
                out,
                "verdict:  forward to one of {}, each equally likely",
                hops.len()
            )?;
            for hop in hops {
                let source = if hop.masquerade {
                    "sees an address of this node"
                } else {
                    "sees the source"
                };
                writeln!(out, "          {} {source}", hop.backend)?;
            }
            match affinity {
                Affinity::Off => Ok(()),
                Affinity::Seconds(seconds) => {
                    writeln!(
                        out,
                        "affinity: the client keeps its backend for {seconds} s"
                    )
                }
                Affinity::OverLimit => writeln!(
                    out,
                    "affinity: none, since other Services take all memory that this mode has for it"
                ),
            }
        }
        Verdict::Reject => writeln!(out, "verdict:  reject with port unreachable"),
        Verdict::Drop => writeln!(out, "verdict:  drop"),
        Verdict::Pass => writeln!(out, "verdict:  pass, as if there were no Services"),
    }
}

impl SourceClass {
    /// The name that SPEC uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pod => "POD",
            Self::Host => "HOST",
            Self::Extn => "EXTN",
        }
    }

    const fn meaning(self) -> &'static str {
        match self {
            Self::Pod => "a pod, by the local-traffic detector",
            Self::Host => "an address of this node",
            Self::Extn => "neither a pod nor this node",
        }
    }
}
