//! Does compile mean what SPEC says, and is it the same on every road?

mod affinity;
mod collisions;
mod endpoints;
mod findings;
mod incremental;
mod tables;
mod unallocated;
mod world;
