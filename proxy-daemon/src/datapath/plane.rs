//! What does a datapath have once per node, and what once per family?
//!
//! A plane is opened once per network namespace and hands out the tables of each family. Invariants: a
//! family that cannot be opened does not keep the other from it (DS-1, DS-2); dropping a plane, its tables or
//! its worker ends threads and changes nothing in the kernel (LIFE-6).

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use super::worker::WorkerThread;
use super::{DatapathError, DatapathKind, SyncReport, Tables};
use crate::forwarding::{Changes, ForwardingState};
use crate::net::{Family, IpFamily, V4, V6};
use crate::sys::Interfaces;

/// How a plane is opened.
#[derive(Clone, Debug)]
pub struct PlaneOptions {
    /// The families that will be opened.
    pub families: BTreeSet<IpFamily>,
}

/// The part of a datapath that a node has once, in the network namespace that it was opened in.
pub trait Plane: Send + Sync {
    /// Opens the IPv4 tables. Writes nothing.
    ///
    /// # Errors
    /// [`DatapathError::Unusable`] if a program or a part of the kernel is missing;
    /// [`DatapathError::Refused`] if that may pass.
    fn tables_v4(&self) -> Result<Box<dyn Tables<V4>>, DatapathError>;

    /// Opens the IPv6 tables. Writes nothing.
    ///
    /// # Errors
    /// As [`Plane::tables_v4`].
    fn tables_v6(&self) -> Result<Box<dyn Tables<V6>>, DatapathError>;

    /// Removes everything that is ours of a family, and with the last family the rest; not an error if there
    /// is nothing.
    ///
    /// # Errors
    /// [`DatapathError`] naming what could not be removed.
    fn cleanup(&self, family: IpFamily) -> Result<(), DatapathError>;

    /// Leaves a family to another mode, which carries it already: hands over what can be, and cleans up.
    ///
    /// # Errors
    /// As [`Plane::cleanup`].
    fn retire(&self, family: IpFamily) -> Result<(), DatapathError> {
        self.cleanup(family)
    }

    /// The work that must not wait for a sync; it runs on a thread of its own from the time when the first
    /// tables were opened. What SYNC-12 forbids before the first resync, it must not do before either.
    fn worker(&self) -> Option<Box<dyn Worker>> {
        None
    }

    /// Counters, and gauges of what is installed, for `/metrics`. Never waits for a sync.
    fn figures(&self) -> Vec<Figure> {
        Vec::new()
    }
}

/// What a plane does beside syncs.
pub trait Worker: Send {
    /// Takes in the node's interfaces: all of them, at the start and whenever one of them or of their addresses
    /// changed. [`Worker::tick`] follows.
    fn interfaces_changed(&mut self, interfaces: &Interfaces);

    /// Does the timed work that is due; returns when to be called next, if ever.
    fn tick(&mut self, now: Instant) -> Option<Instant>;
}

/// One number of a plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figure {
    /// The metric's name, without the prefix `kubeproxy_`, and of a counter without `_total`.
    pub name: &'static str,
    /// The metric's help text.
    pub help: &'static str,
    /// Whether it only grows.
    pub is_counter: bool,
    /// Its value.
    pub value: u64,
}

/// A family, and its tables of any plane.
pub trait PlaneFamily: Family {
    /// Opens the tables of this family.
    ///
    /// # Errors
    /// As [`Plane::tables_v4`].
    fn tables(plane: &dyn Plane) -> Result<Box<dyn Tables<Self>>, DatapathError>;
}

impl PlaneFamily for V4 {
    fn tables(plane: &dyn Plane) -> Result<Box<dyn Tables<Self>>, DatapathError> {
        plane.tables_v4()
    }
}

impl PlaneFamily for V6 {
    fn tables(plane: &dyn Plane) -> Result<Box<dyn Tables<Self>>, DatapathError> {
        plane.tables_v6()
    }
}

/// Opens a plane when it is first needed, and again after that failed; shared by both families.
pub struct Opener {
    kind: DatapathKind,
    options: PlaneOptions,
    opening: Mutex<()>,
    plane: OnceLock<Box<dyn Plane>>,
    worker: OnceLock<Option<WorkerThread>>,
}

impl Opener {
    /// Of a datapath, for these families. Opens nothing yet.
    pub fn new(kind: DatapathKind, families: impl IntoIterator<Item = IpFamily>) -> Arc<Self> {
        Arc::new(Self {
            kind,
            options: PlaneOptions {
                families: families.into_iter().collect(),
            },
            opening: Mutex::default(),
            plane: OnceLock::new(),
            worker: OnceLock::new(),
        })
    }

    /// Which datapath.
    pub const fn kind(&self) -> DatapathKind {
        self.kind
    }

    fn plane(&self) -> Result<&dyn Plane, DatapathError> {
        // Not `get` alone: both families may find nothing at the same time.
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plane) = self.plane.get() {
            return Ok(&**plane);
        }
        let plane = (self.kind.0.open)(&self.options)?;
        Ok(&**self.plane.get_or_init(|| plane))
    }

    fn open<F: PlaneFamily>(&self) -> Result<Box<dyn Tables<F>>, DatapathError> {
        let plane = self.plane()?;
        // In this order: a missing program is the more useful error.
        let tables = F::tables(plane)?;
        self.kind.needs().check()?;
        self.start_worker(plane, WorkerThread::start)?;
        Ok(tables)
    }

    /// Starts the plane's worker once; after a failure the next call tries again.
    fn start_worker(
        &self,
        plane: &dyn Plane,
        start: fn(Box<dyn Worker>) -> io::Result<WorkerThread>,
    ) -> Result<(), DatapathError> {
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if self.worker.get().is_none() {
            let started = plane.worker().map(start).transpose();
            let started = started.map_err(|source| DatapathError::Refused {
                operation: "starting",
                object: "the thread that follows network interfaces".to_owned(),
                source,
            })?;
            self.worker.get_or_init(|| started);
        }
        Ok(())
    }

    /// Opens the tables of a family.
    ///
    /// # Errors
    /// [`DatapathError::Unusable`] if a program, a capability or a part of the kernel is missing;
    /// [`DatapathError::Refused`] if there are no descriptors or no memory for it now.
    pub fn tables<F: PlaneFamily>(self: &Arc<Self>) -> Result<Box<dyn Tables<F>>, DatapathError> {
        let tables = self.open()?;
        Ok(Box::new(OpenedTables {
            opener: Arc::clone(self),
            opened: Some(tables),
        }))
    }

    /// Tables that are opened by their first sync, for when that is not possible now. Spec: DS-1.
    pub fn tables_later<F: PlaneFamily>(self: &Arc<Self>) -> Box<dyn Tables<F>> {
        Box::new(OpenedTables {
            opener: Arc::clone(self),
            opened: None,
        })
    }

    /// Removes everything that is ours of a family.
    ///
    /// # Errors
    /// [`DatapathError`] naming what could not be removed, or what is missing to do so.
    pub fn cleanup(&self, family: IpFamily) -> Result<(), DatapathError> {
        self.plane()?.cleanup(family).map_err(|e| self.explain(e))
    }

    /// Leaves a family to another mode, which carries it already.
    ///
    /// # Errors
    /// As [`Opener::cleanup`].
    pub fn retire(&self, family: IpFamily) -> Result<(), DatapathError> {
        self.plane()?.retire(family).map_err(|e| self.explain(e))
    }

    /// Where a capability is missing, that is the cause.
    fn explain(&self, error: DatapathError) -> DatapathError {
        if error.means_absent() {
            return error;
        }
        self.kind.needs().check().err().unwrap_or(error)
    }

    /// Counters and gauges; none before the plane is open.
    pub fn figures(&self) -> Vec<Figure> {
        let figures = self.plane.get().map(|plane| plane.figures());
        figures.unwrap_or_default()
    }
}

/// A family's tables, and what else must live as long as they; opened with the next call if they are not yet.
struct OpenedTables<F: PlaneFamily> {
    opener: Arc<Opener>,
    opened: Option<Box<dyn Tables<F>>>,
}

impl<F: PlaneFamily> OpenedTables<F> {
    fn get(&mut self) -> Result<&mut dyn Tables<F>, DatapathError> {
        let opened = match self.opened.take() {
            Some(opened) => opened,
            None => self.opener.open()?,
        };
        Ok(&mut **self.opened.insert(opened))
    }
}

impl<F: PlaneFamily> Tables<F> for OpenedTables<F> {
    fn sync(
        &mut self,
        desired: &ForwardingState<F>,
        changes: &Changes<F>,
    ) -> Result<Option<SyncReport>, DatapathError> {
        self.get()?.sync(desired, changes)
    }

    fn resync(&mut self, desired: &ForwardingState<F>) -> Result<SyncReport, DatapathError> {
        self.get()?.resync(desired)
    }

    fn changed_by_others(&mut self) -> Result<bool, DatapathError> {
        self.get()?.changed_by_others()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::in_netns;
    use super::super::skeleton::{kernel, reset};
    use super::*;

    #[test]
    fn ds_1_a_worker_that_cannot_be_started_is_started_with_the_next_tables() {
        in_netns(|| {
            reset();
            let kind = DatapathKind::named("skeleton").unwrap();
            let opener = Opener::new(kind, IpFamily::ALL);
            let plane = opener.plane().unwrap();
            let refuse = |_| Err(io::ErrorKind::OutOfMemory.into());
            let error = opener.start_worker(plane, refuse).unwrap_err();
            assert!(error.may_pass(), "{error}");
            assert_eq!(kernel(|kernel| kernel.n_workers), 0);
            opener.tables::<V4>().unwrap();
            opener.tables::<V6>().unwrap();
            assert_eq!(kernel(|kernel| kernel.n_workers), 1);
        });
    }
}
