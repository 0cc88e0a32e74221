//! The proxy-daemon program.
fn main() {}
