//! Does compile mean what SPEC says, and is it the same on every road?

mod collisions;
mod endpoints;
mod incremental;
mod tables;
mod unallocated;
mod world;
