//! The behaviours of SPEC.md, shown with packets on the real daemon. One file per area.
#![expect(
    clippy::unwrap_used,
    reason = "a behaviour test stops at once when an assumption breaks"
)]

mod harness;

fn main() {
    let mut cases = Vec::new();
    cases.extend(harness::cases());
    proxy_tests::matrix::main(cases)
}
