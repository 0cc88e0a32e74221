//! Where are the tables of the programs?
//!
//! Each is reached through [`Tables`] only. The sizes here are those of a large cluster; the daemon sets others when it loads the object.

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_jiffies64};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};
use proxy_common::{
    Address, BITMAP_WORDS, Backend, Flow, FlowKey, Frontend, FrontendKey, Interface,
    InterfaceFlags, LocalAddress, Reason, Record, Settings, SourceRangeKey,
};
use proxy_ebpf::{Scratch, Tables, Unwritten};

/// Memory is taken for an entry when it is added.
const NO_PREALLOC: u32 = 1;
/// The daemon writes it through a mapping.
const MMAPABLE: u32 = 1 << 10;
/// An entry with this key must not be there yet.
const NOEXIST: u64 = 1;
/// An entry with this key must be there.
const EXIST: u64 = 2;

const FLOWS: u32 = 1 << 18;
const FRONTENDS: u32 = 1 << 18;
const SERVICES: u32 = 1 << 17;
const SLOTS: u32 = 1 << 20;
const BACKENDS: u32 = 1 << 20;
const SOURCE_RANGES: u32 = 1 << 16;
const LOCAL_ADDRESSES: u32 = 1 << 12;
const INTERFACES: u32 = 1 << 16;
/// How many refusals a CPU sends in a tick.
const REFUSALS: u32 = 500;

#[map(name = "bitmap")]
static BITMAP: Array<u64> = Array::with_max_entries(BITMAP_WORDS, MMAPABLE);
/// The same bits for the sources of packets that others marked, a byte for each: several CPUs may write
/// bytes at the same time, but not bits of one word.
#[map(name = "marked")]
static MARKED: Array<[u8; 64]> = Array::with_max_entries(BITMAP_WORDS, 0);
#[map(name = "interfaces")]
static INTERFACE_TABLE: Array<Interface> = Array::with_max_entries(INTERFACES, 0);
/// The tick, and how many refusals were asked for in it.
#[map(name = "refusals")]
static REFUSED: PerCpuArray<[u32; 2]> = PerCpuArray::with_max_entries(1, 0);
#[map(name = "counters")]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(64, 0);

/// The tables of one family, and their names in the kernel.
macro_rules! tables {
    ($module:ident, $words:literal:
     $flows:literal $frontends:literal $services:literal $records:literal $slots:literal $backends:literal
     $ranges:literal $local:literal $settings:literal $scratch:literal) => {
        pub(crate) mod $module {
            use super::*;

            #[map(name = $flows)]
            static FLOW: LruHashMap<FlowKey<$words>, Flow<$words>> =
                LruHashMap::with_max_entries(FLOWS, 0);
            #[map(name = $frontends)]
            static FRONTEND: HashMap<FrontendKey<$words>, Frontend> =
                HashMap::with_max_entries(FRONTENDS, NO_PREALLOC);
            #[map(name = $services)]
            static SERVICE: Array<u32> = Array::with_max_entries(SERVICES, MMAPABLE);
            #[map(name = $records)]
            static RECORD: Array<Record> = Array::with_max_entries(SERVICES, MMAPABLE);
            #[map(name = $slots)]
            static SLOT: Array<u32> = Array::with_max_entries(SLOTS, MMAPABLE);
            #[map(name = $backends)]
            static BACKEND: Array<Backend<$words>> = Array::with_max_entries(BACKENDS, MMAPABLE);
            #[map(name = $ranges)]
            static RANGE: LpmTrie<SourceRangeKey<$words>, u32> =
                LpmTrie::with_max_entries(SOURCE_RANGES, NO_PREALLOC);
            #[map(name = $local)]
            static LOCAL: HashMap<Address<$words>, LocalAddress> =
                HashMap::with_max_entries(LOCAL_ADDRESSES, NO_PREALLOC);
            #[map(name = $settings)]
            static SETTINGS: Array<Settings<$words>> = Array::with_max_entries(1, 0);
            #[map(name = $scratch)]
            static SCRATCH: PerCpuArray<Scratch<$words>> = PerCpuArray::with_max_entries(1, 0);

            /// The tables of this family.
            pub(crate) struct Kernel;

            /// The working memory of this CPU.
            #[inline(always)]
            pub(crate) fn scratch() -> Option<&'static mut Scratch<$words>> {
                let scratch = SCRATCH.get_ptr_mut(0)?;
                // SAFETY: the map holds it, and no other program runs on this CPU until this one ends.
                Some(unsafe { &mut *scratch })
            }

            impl Tables<$words> for Kernel {
                #[inline(always)]
                fn flow(&mut self, key: &FlowKey<$words>) -> Option<&mut Flow<$words>> {
                    let flow = FLOW.get_ptr_mut(key)?;
                    // SAFETY: the map holds it until the program ends; others may write its fields at the
                    // same time, each of which is read and written as a whole.
                    Some(unsafe { &mut *flow })
                }

                #[inline(always)]
                fn add_flow(
                    &mut self,
                    key: &FlowKey<$words>,
                    flow: &Flow<$words>,
                ) -> Result<(), Unwritten> {
                    FLOW.insert(key, flow, NOEXIST).map_err(|_code| Unwritten)
                }

                #[inline(always)]
                fn replace_flow(
                    &mut self,
                    key: &FlowKey<$words>,
                    flow: &Flow<$words>,
                ) -> Result<(), Unwritten> {
                    FLOW.insert(key, flow, EXIST).map_err(|_code| Unwritten)
                }

                #[inline(always)]
                fn remove_flow(&mut self, key: &FlowKey<$words>) {
                    // It may have been evicted meanwhile.
                    FLOW.remove(key).unwrap_or_default();
                }

                #[inline(always)]
                fn frontend(&mut self, key: &FrontendKey<$words>) -> Option<Frontend> {
                    let frontend = FRONTEND.get_ptr(key)?;
                    // SAFETY: as in `flow`.
                    Some(unsafe { *frontend })
                }

                #[inline(always)]
                fn record(&mut self, service: u32) -> Option<&Record> {
                    RECORD.get(*SERVICE.get(service)?)
                }

                #[inline(always)]
                fn slot(&mut self, index: u32) -> Option<u32> {
                    SLOT.get(index).copied()
                }

                #[inline(always)]
                fn backend(&mut self, id: u32) -> Option<&Backend<$words>> {
                    BACKEND.get(id)
                }

                #[inline(always)]
                fn is_in_source_ranges(&mut self, set: u32, address: &Address<$words>) -> bool {
                    let key = SourceRangeKey {
                        raw_set: set.to_be(),
                        address: *address,
                    };
                    RANGE.get(&Key::new(32 * ($words + 1), key)).is_some()
                }

                #[inline(always)]
                fn local_address(&mut self, address: &Address<$words>) -> Option<LocalAddress> {
                    let found = LOCAL.get_ptr(address)?;
                    // SAFETY: as in `flow`.
                    Some(unsafe { *found })
                }

                #[inline(always)]
                fn may_concern(&mut self, address: &Address<$words>) -> bool {
                    let (word, bit) = address.bit();
                    let is_of_daemon = BITMAP.get(word).is_none_or(|bits| (bits >> bit) & 1 == 1);
                    is_of_daemon || super::is_marked(word, bit)
                }

                #[inline(always)]
                fn concern(&mut self, address: &Address<$words>) {
                    let (word, bit) = address.bit();
                    super::set_marked(word, bit);
                }

                #[inline(always)]
                fn may_refuse(&mut self) -> bool {
                    let now = self.now();
                    super::may_refuse(now)
                }

                #[inline(always)]
                fn settings(&mut self) -> Option<&Settings<$words>> {
                    SETTINGS.get(0)
                }

                #[inline(always)]
                fn interface(&mut self, index: u32) -> Option<&Interface> {
                    super::interface(index)
                }

                #[inline(always)]
                fn random(&mut self) -> u32 {
                    // SAFETY: the helper takes nothing and cannot fail.
                    unsafe { bpf_get_prandom_u32() }
                }

                #[inline(always)]
                fn now(&mut self) -> u32 {
                    // SAFETY: as above.
                    let jiffies = unsafe { bpf_jiffies64() };
                    #[expect(clippy::cast_possible_truncation, reason = "it wraps around")]
                    {
                        (jiffies >> 8) as u32
                    }
                }

                #[inline(always)]
                fn count(&mut self, reason: Reason) {
                    super::count(reason);
                }
            }
        }
    };
}

tables!(v4, 1: "flows4" "frontends4" "services4" "records4" "slots4" "backends4" "ranges4" "local4" "settings4" "scratch4");
tables!(v6, 4: "flows6" "frontends6" "services6" "records6" "slots6" "backends6" "ranges6" "local6" "settings6" "scratch6");

/// The interface with this index, if the daemon knows it.
#[inline(always)]
pub(crate) fn interface(index: u32) -> Option<&'static Interface> {
    let interface = INTERFACE_TABLE.get(index)?;
    interface
        .flags
        .has(InterfaceFlags::KNOWN)
        .then_some(interface)
}

/// Whether the kernel wants to be told that a checksum is of IPv6.
#[inline(always)]
pub(crate) fn has_ipv6_checksums() -> bool {
    v6::Kernel
        .settings()
        .is_some_and(|settings| settings.has_ipv6_checksums != 0)
}

/// Whether the source of a marked packet has this bit.
#[inline(always)]
fn is_marked(word: u32, bit: u32) -> bool {
    let bytes = MARKED.get(word);
    let byte = bytes.and_then(|bytes| bytes.get(bit as usize & 63));
    byte.is_some_and(|byte| *byte != 0)
}

/// Remembers the source of a marked packet.
#[inline(always)]
fn set_marked(word: u32, bit: u32) {
    let Some(bytes) = MARKED.get_ptr_mut(word) else {
        return;
    };
    // SAFETY: the map holds it; others write single bytes, and all write the same.
    let bytes = unsafe { &mut *bytes };
    if let Some(byte) = bytes.get_mut(bit as usize & 63) {
        *byte = 1;
    }
}

/// Whether one more refusal may be sent by this CPU in this tick.
#[inline(always)]
fn may_refuse(now: u32) -> bool {
    let Some(refused) = REFUSED.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: the map holds it, for this CPU alone.
    let [tick, asked] = unsafe { &mut *refused };
    if *tick != now {
        *tick = now;
        *asked = 0;
    }
    *asked = asked.wrapping_add(1);
    *asked <= REFUSALS
}

/// Counts a packet.
#[inline(always)]
pub(crate) fn count(reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: the map holds it, for this CPU alone.
        let counter = unsafe { &mut *counter };
        *counter = counter.wrapping_add(1);
    }
}

/// How far into a packet its headers may reach: a bound for the verifier. Unit: bytes, a power of two.
const REACH: usize = 512;

/// Part of a packet in memory, or `None` if it does not lie between its bounds.
#[inline(always)]
pub(crate) fn within<'a, T>(start: usize, end: usize, offset: u32) -> Option<&'a mut T> {
    // No header lies further; the mask tells the verifier so.
    let at = start + (offset as usize & (REACH - 1));
    if at + size_of::<T>() > end {
        return None;
    }
    // SAFETY: the bounds are the kernel's, and lie in the packet; the verifier checks it again. The
    // processors that we build for read and write at any alignment.
    Some(unsafe { &mut *(at as *mut T) })
}
