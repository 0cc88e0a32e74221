//! Does compile mean what SPEC says, and is it the same on every road?
