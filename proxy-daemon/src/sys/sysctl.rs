//! How are kernel parameters read and written?

use std::io;
use std::path::PathBuf;

/// The tree of `/proc/sys`, or a directory that stands in for it in tests.
#[derive(Clone, Debug)]
pub struct Sysctls {
    root: PathBuf,
}

impl Default for Sysctls {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/proc/sys"),
        }
    }
}

impl Sysctls {
    /// A directory that looks like `/proc/sys`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The value of a parameter such as `net/netfilter/nf_conntrack_max`.
    ///
    /// # Errors
    /// Whatever the kernel says to the read; `InvalidData` if it is no number.
    pub fn read(&self, name: &str) -> io::Result<u64> {
        let text = std::fs::read_to_string(self.root.join(name))?;
        text.trim()
            .parse()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Whether the parameter's file mode allows no writing.
    ///
    /// Kernel: parameters of the whole machine are shown without write permission in every network
    /// namespace but the initial one (`nf_conntrack_standalone_init_sysctl`). A mount that is read-only
    /// does not show in the mode.
    pub fn is_read_only(&self, name: &str) -> bool {
        std::fs::metadata(self.root.join(name))
            .is_ok_and(|metadata| metadata.permissions().readonly())
    }

    /// Sets a parameter.
    ///
    /// # Errors
    /// Whatever the kernel says to the write.
    pub fn write(&self, name: &str, value: u64) -> io::Result<()> {
        std::fs::write(self.root.join(name), value.to_string())
    }
}
