//! Why did a datapath operation fail?

use std::io;

use nix::errno::Errno;

/// A datapath operation failed.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The kernel lacks a feature, or we lack a privilege; a retry does not help.
    #[error("{operation}: {advice}")]
    Unusable {
        /// What was tried.
        operation: &'static str,
        /// What a person can do about it.
        advice: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Another program owns an object of our name exclusively.
    #[error(
        "{object} is reserved by another program (netlink port {port}, usually its process id); \
        stop that program"
    )]
    Held {
        /// Which object.
        object: String,
        /// The netlink port of the owner.
        port: u32,
    },
    /// The kernel refused an operation.
    #[error("{operation} of {object}")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// Which object of ours.
        object: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl DatapathError {
    /// Whether waiting for a lock or a program timed out.
    pub fn is_late(&self) -> bool {
        match self {
            Self::Unusable { source, .. } | Self::Refused { source, .. } => {
                source.kind() == io::ErrorKind::TimedOut
            }
            Self::Held { .. } => false,
        }
    }

    /// [`DatapathError::Unusable`], or [`DatapathError::Refused`] on a shortage of descriptors or memory.
    pub(super) fn lacking(
        operation: &'static str,
        advice: &'static str,
        source: io::Error,
    ) -> Self {
        if is_shortage(&source) {
            let object = "the system's resources".to_owned();
            Self::Refused {
                operation,
                object,
                source,
            }
        } else {
            Self::Unusable {
                operation,
                advice,
                source,
            }
        }
    }

    /// [`DatapathError::Refused`] for a bug of a datapath, whose panic was logged.
    pub(crate) fn panicked() -> Self {
        Self::Refused {
            operation: "writing",
            object: "the rules".to_owned(),
            source: io::Error::other("the datapath panicked, which is a bug"),
        }
    }

    /// Whether a retry can help.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// Whether nothing of the datapath can be on this node: the kernel or a program lacks support.
    pub fn means_absent(&self) -> bool {
        match self {
            Self::Unusable { source, .. } => source.kind() != io::ErrorKind::PermissionDenied,
            Self::Held { .. } | Self::Refused { .. } => false,
        }
    }
}

/// Kernel: the errors of a shortage, or of a race with another caller.
fn is_shortage(error: &io::Error) -> bool {
    let shortages = [
        Errno::EMFILE,
        Errno::ENFILE,
        Errno::ENOMEM,
        Errno::ENOBUFS,
        Errno::EAGAIN,
        Errno::EINTR,
        Errno::EBUSY,
    ];
    let errno = error.raw_os_error().map(Errno::from_raw);
    errno.is_some_and(|errno| shortages.contains(&errno))
}
