//! The behaviours of SPEC.md, shown with packets on the real daemon. One file per area.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    reason = "a behaviour test stops at once when an assumption breaks"
)]

mod aff;
mod api;
mod common;
mod crowd;
mod ct;
mod damage;
mod dl;
mod ds;
mod eps;
mod external;
mod harness;
mod life;
mod loc;
mod master;
mod nowhere;
mod np;
mod process;
mod rej;
mod senders;
mod served;
mod src;
mod svc;
mod sync;
mod sysctls;
mod topo;
mod unprinted;
mod untranslated;
mod vip;
mod xm;

fn main() {
    let mut cases = harness::cases();
    cases.extend(vip::cases());
    cases.extend(src::cases());
    cases.extend(dl::cases());
    cases.extend(external::cases());
    cases.extend(np::cases());
    cases.extend(loc::cases());
    cases.extend(rej::cases());
    cases.extend(aff::cases());
    cases.extend(topo::cases());
    cases.extend(svc::cases());
    cases.extend(eps::cases());
    cases.extend(ds::cases());
    cases.extend(ct::cases());
    cases.extend(nowhere::cases());
    cases.extend(untranslated::cases());
    cases.extend(sysctls::cases());
    cases.extend(xm::cases());
    cases.extend(sync::cases());
    cases.extend(damage::cases());
    cases.extend(unprinted::cases());
    cases.extend(life::cases());
    cases.extend(process::cases());
    cases.extend(served::cases());
    cases.extend(crowd::cases());
    cases.extend(api::cases());
    cases.extend(master::cases());
    proxy_tests::matrix::main(cases)
}
