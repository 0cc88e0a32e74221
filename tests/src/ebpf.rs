//! Where is the eBPF object that is tested?

use std::path::PathBuf;

/// The object that `PROXY_EBPF_OBJECT` names, as in CI the one just built, or else the committed one.
pub fn object() -> PathBuf {
    let committed = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../proxy-ebpf/object/programs.o"
    );
    std::env::var_os("PROXY_EBPF_OBJECT").map_or_else(|| committed.into(), Into::into)
}
