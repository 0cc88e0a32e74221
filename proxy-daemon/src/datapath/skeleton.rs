//! What does the least datapath look like?
//!
//! It carries nothing: what it would have in the kernel is in memory, by network namespace, so that it outlives
//! the process's objects as the kernel's would. Compiled in tests only, and listed like every other datapath.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{
    DatapathError, Descriptor, FailureCounter, Figure, Needs, Plane, PlaneOptions, Rules,
    SyncReport, Tables, Worker,
};
use crate::forwarding::{Changes, ForwardingState};
use crate::net::{Family, IpFamily, V4, V6};
use crate::sys::Interfaces;

/// What is known of it before it is opened.
pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "skeleton",
    mode: "skeleton",
    backend: None,
    failures: &[FailureCounter {
        name: "sync_proxy_rules_skeleton_sync_failures",
        help: "Syncs that failed",
        only_partial: false,
    }],
    needs: Needs {
        capabilities: &[],
        loads_modules: false,
        conntrack: false,
        affinity_limit: None,
    },
    rules: Rules {
        v4: |_| String::new(),
        v6: |_| String::new(),
    },
    open: |options| Ok(Box::new(Skeleton::open(options)?)),
};

/// How often there is timed work.
pub(crate) const TICK: Duration = Duration::from_millis(5);

/// What a network namespace has of this datapath.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    /// The number of ServicePorts of each family that is carried.
    pub(crate) installed: BTreeMap<IpFamily, usize>,
    /// Where the programs are attached, once a family is carried.
    pub(crate) attached: BTreeSet<String>,
    /// The families that were left to another mode with their flows.
    pub(crate) handed_over: BTreeSet<IpFamily>,
    /// The families that cannot be written.
    pub(crate) refused: BTreeSet<IpFamily>,
    /// The families that cannot be opened yet.
    pub(crate) closed: BTreeSet<IpFamily>,
    /// The families that the newest plane was opened for.
    pub(crate) families: BTreeSet<IpFamily>,
    pub(crate) n_ticks: u64,
    /// Workers that run.
    pub(crate) n_workers: usize,
}

/// Shows and changes what the network namespace of the calling thread has.
pub(crate) fn kernel<T>(look: impl FnOnce(&mut Kernel) -> T) -> T {
    look(&mut namespace().lock().unwrap_or_else(PoisonError::into_inner))
}

/// Begins with nothing in the network namespace of the calling thread, whose number another one may have had.
pub(crate) fn reset() {
    with_all(|inode, all| drop(all.remove(&inode)));
}

fn namespace() -> Arc<Mutex<Kernel>> {
    with_all(|inode, all| Arc::clone(all.entry(inode).or_default()))
}

fn with_all<T>(look: impl FnOnce(u64, &mut BTreeMap<u64, Arc<Mutex<Kernel>>>) -> T) -> T {
    static ALL: Mutex<BTreeMap<u64, Arc<Mutex<Kernel>>>> = Mutex::new(BTreeMap::new());
    let inode = std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
    look(
        inode,
        &mut ALL.lock().unwrap_or_else(PoisonError::into_inner),
    )
}

fn refused(operation: &'static str) -> DatapathError {
    DatapathError::Refused {
        operation,
        object: "skeleton".to_owned(),
        source: std::io::ErrorKind::Other.into(),
    }
}

struct Skeleton {
    kernel: Arc<Mutex<Kernel>>,
}

impl Skeleton {
    fn open(options: &PlaneOptions) -> Result<Self, DatapathError> {
        let kernel = namespace();
        let mut state = kernel.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed.len() == IpFamily::ALL.len() {
            return Err(refused("opening the plane"));
        }
        state.families.clone_from(&options.families);
        drop(state);
        Ok(Self { kernel })
    }

    fn tables<F: Family>(&self) -> Result<Box<dyn Tables<F>>, DatapathError> {
        if self.with(|kernel| kernel.closed.contains(&F::FAMILY)) {
            return Err(refused("opening"));
        }
        let kernel = Arc::clone(&self.kernel);
        let is_known = false;
        Ok(Box::new(SkeletonTables { kernel, is_known }))
    }

    fn with<T>(&self, look: impl FnOnce(&mut Kernel) -> T) -> T {
        look(&mut self.kernel.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Plane for Skeleton {
    fn tables_v4(&self) -> Result<Box<dyn Tables<V4>>, DatapathError> {
        self.tables()
    }

    fn tables_v6(&self) -> Result<Box<dyn Tables<V6>>, DatapathError> {
        self.tables()
    }

    fn cleanup(&self, family: IpFamily) -> Result<(), DatapathError> {
        self.with(|kernel| {
            kernel.installed.remove(&family);
            if kernel.installed.is_empty() {
                kernel.attached.clear();
            }
        });
        Ok(())
    }

    fn retire(&self, family: IpFamily) -> Result<(), DatapathError> {
        self.with(|kernel| kernel.handed_over.insert(family));
        self.cleanup(family)
    }

    fn worker(&self) -> Option<Box<dyn Worker>> {
        self.with(|kernel| kernel.n_workers += 1);
        let kernel = Arc::clone(&self.kernel);
        let interfaces = BTreeSet::new();
        Some(Box::new(SkeletonWorker { kernel, interfaces }))
    }

    fn figures(&self) -> Vec<Figure> {
        let attached = self.with(|kernel| kernel.attached.len());
        vec![Figure {
            name: "skeleton_attached_interfaces",
            help: "Interfaces that the skeleton is attached to",
            is_counter: false,
            value: u64::try_from(attached).unwrap(),
        }]
    }
}

struct SkeletonTables {
    kernel: Arc<Mutex<Kernel>>,
    /// Whether what is there was read.
    is_known: bool,
}

impl SkeletonTables {
    fn write<F: Family>(
        &mut self,
        desired: &ForwardingState<F>,
    ) -> Result<SyncReport, DatapathError> {
        self.is_known = false;
        let mut kernel = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        if kernel.refused.contains(&F::FAMILY) {
            return Err(refused("writing"));
        }
        let n = desired.service_ports.len();
        let before = kernel.installed.insert(F::FAMILY, n).unwrap_or(0);
        drop(kernel);
        self.is_known = true;
        Ok(SyncReport {
            n_added: n.saturating_sub(before),
            n_removed: before.saturating_sub(n),
        })
    }
}

impl<F: Family> Tables<F> for SkeletonTables {
    fn sync(
        &mut self,
        desired: &ForwardingState<F>,
        changes: &Changes<F>,
    ) -> Result<Option<SyncReport>, DatapathError> {
        if !self.is_known || changes.globals.is_some() {
            return Ok(None);
        }
        self.write(desired).map(Some)
    }

    fn resync(&mut self, desired: &ForwardingState<F>) -> Result<SyncReport, DatapathError> {
        self.write(desired)
    }

    fn changed_by_others(&mut self) -> Result<bool, DatapathError> {
        let kernel = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(!kernel.installed.contains_key(&F::FAMILY))
    }
}

struct SkeletonWorker {
    kernel: Arc<Mutex<Kernel>>,
    interfaces: BTreeSet<String>,
}

impl Worker for SkeletonWorker {
    fn interfaces_changed(&mut self, interfaces: &Interfaces) {
        let up = interfaces.values().filter(|interface| interface.is_up);
        self.interfaces = up.map(|interface| interface.name.clone()).collect();
    }

    fn tick(&mut self, now: Instant) -> Option<Instant> {
        let mut kernel = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        kernel.n_ticks += 1;
        // Nothing is attached before a family is carried (SYNC-12).
        if !kernel.installed.is_empty() {
            kernel.attached.clone_from(&self.interfaces);
        }
        Some(now + TICK)
    }
}

impl Drop for SkeletonWorker {
    fn drop(&mut self) {
        let mut kernel = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        kernel.n_workers -= 1;
    }
}
