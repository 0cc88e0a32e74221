//! Who has to go when the places for connections are taken?
//!
//! The healthz address is open to whoever reaches the node. Invariants: a new connection always gets a
//! place; the one that goes for it is one that has not asked yet, if there is one, and the oldest of
//! those; a peer takes places only from itself once it has its share; no stranger takes one from this
//! node, from where kubelet asks.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// How many connections there are at a time.
struct Limits {
    /// From all other machines.
    strangers: usize,
    /// From one address of them; for IPv6 from one /64, since a host has as many addresses of it as it likes.
    peer: usize,
    /// From this machine.
    local: usize,
    /// Waiting for, or being sent, an answer as large as the cluster.
    large: usize,
}

const LIMITS: Limits = Limits {
    strangers: 128,
    peer: 32,
    local: 32,
    large: 2,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Peer {
    Local,
    Stranger(IpAddr),
}

impl Peer {
    fn of(peer: IpAddr, own: IpAddr) -> Self {
        let (peer, own) = (peer.to_canonical(), own.to_canonical());
        // Kernel: who connects to an address of his own machine has that address, unless he asks for another.
        if peer.is_loopback() || peer == own {
            return Self::Local;
        }
        Self::Stranger(match peer {
            IpAddr::V4(_) => peer,
            IpAddr::V6(address) => {
                let network = address.to_bits() & !u128::from(u64::MAX);
                Ipv6Addr::from_bits(network).into()
            }
        })
    }
}

#[derive(Debug)]
struct Occupant {
    peer: Peer,
    /// Whether a request has come.
    asks: bool,
    /// Dropped to cut the connection.
    _stays: oneshot::Sender<()>,
}

#[derive(Debug, Default)]
struct Occupants {
    /// By age, the oldest first.
    all: BTreeMap<u64, Occupant>,
    next: u64,
    n_cut: u64,
}

impl Occupants {
    /// The one to go, of those that `is_meant`.
    fn first(&self, is_meant: impl Fn(&Occupant) -> bool) -> Option<u64> {
        let meant = self.all.iter().filter(|(_, occupant)| is_meant(occupant));
        let (id, _) = meant.min_by_key(|(id, occupant)| (occupant.asks, **id))?;
        Some(*id)
    }

    fn n(&self, is_meant: impl Fn(&Occupant) -> bool) -> usize {
        self.all.values().filter(|o| is_meant(o)).count()
    }

    /// The one to go for a new connection of this peer, if there is no free place.
    fn victim(&self, new: Peer) -> Option<u64> {
        let is_new = |occupant: &Occupant| occupant.peer == new;
        let is_stranger = |occupant: &&Occupant| occupant.peer != Peer::Local;
        let share = match new {
            Peer::Local => LIMITS.local,
            Peer::Stranger(_) => LIMITS.peer,
        };
        if self.n(is_new) >= share {
            return self.first(is_new);
        }
        let mut places: BTreeMap<Peer, usize> = BTreeMap::new();
        for occupant in self.all.values().filter(is_stranger) {
            *places.entry(occupant.peer).or_default() += 1;
        }
        if new == Peer::Local || places.values().sum::<usize>() < LIMITS.strangers {
            return None;
        }
        let most = places.values().max();
        self.first(|occupant| places.get(&occupant.peer) == most)
    }

    fn cut(&mut self, victim: Option<u64>) -> bool {
        let is_cut = victim.is_some_and(|id| self.all.remove(&id).is_some());
        self.n_cut += u64::from(is_cut);
        is_cut
    }
}

/// The places of one or more listeners. All clones are the same places.
#[derive(Clone, Debug)]
pub(super) struct Places {
    occupants: Arc<Mutex<Occupants>>,
    large: Arc<Semaphore>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            occupants: Arc::default(),
            large: Arc::new(Semaphore::new(LIMITS.large)),
        }
    }
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, Occupants> {
        self.occupants
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection of `peer` to our address `own`, with what tells that it is to go.
    pub(super) fn take(&self, peer: SocketAddr, own: SocketAddr) -> (Place, oneshot::Receiver<()>) {
        let peer = Peer::of(peer.ip(), own.ip());
        let (stays, goes) = oneshot::channel();
        let mut occupants = self.lock();
        let victim = occupants.victim(peer);
        occupants.cut(victim);
        let id = occupants.next;
        occupants.next += 1;
        let occupant = Occupant {
            peer,
            asks: false,
            _stays: stays,
        };
        occupants.all.insert(id, occupant);
        drop(occupants);
        let place = Place {
            places: self.clone(),
            id,
            large: OnceLock::new(),
        };
        (place, goes)
    }

    /// Cuts a connection, for its descriptor.
    pub(super) fn give_way(&self) {
        let mut occupants = self.lock();
        let victim = occupants.first(|occupant| occupant.peer != Peer::Local);
        let victim = victim.or_else(|| occupants.first(|_| true));
        occupants.cut(victim);
    }

    /// How many were cut since this last returned a number, which it does if `is_due`.
    pub(super) fn take_cut(&self, is_due: impl FnOnce(u64) -> bool) -> Option<u64> {
        let n_cut = &mut self.lock().n_cut;
        is_due(*n_cut).then(|| std::mem::take(n_cut))
    }
}

/// The place of a connection, which is free again when this goes.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    id: u64,
    large: OnceLock<OwnedSemaphorePermit>,
}

impl Place {
    /// A request has come: those that have none go before it.
    pub(super) fn asks(&self) {
        if let Some(occupant) = self.places.lock().all.get_mut(&self.id) {
            occupant.asks = true;
        }
    }

    /// Waits until few other answers are large. Its own then counts as such until it goes, also when it is cut
    /// before, since its answer may still be made.
    pub(super) async fn become_large(&self) {
        let turn = Arc::clone(&self.places.large).acquire_owned().await;
        // Nobody closes the semaphore.
        if let Ok(turn) = turn {
            self.large.set(turn).unwrap_or_default();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().all.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const OWN: &str = "192.0.2.1";

    /// Places, and the connections that were made, with what each was told.
    #[derive(Default)]
    struct Guests {
        places: Places,
        all: Vec<(String, Place, oneshot::Receiver<()>)>,
    }

    impl Guests {
        fn come(&mut self, from: &str) -> usize {
            let peer = SocketAddr::new(from.parse().unwrap(), 1);
            let own = SocketAddr::new(OWN.parse().unwrap(), 2);
            let (place, goes) = self.places.take(peer, own);
            self.all.push((from.to_owned(), place, goes));
            self.all.len() - 1
        }

        fn is_cut(&mut self, guest: usize) -> bool {
            let goes = &mut self.all[guest].2;
            goes.try_recv() == Err(oneshot::error::TryRecvError::Closed)
        }

        fn n_there(&mut self, from: &str) -> usize {
            let meant = |at: &usize| self.all[*at].0 == from;
            let guests: Vec<usize> = (0..self.all.len()).filter(meant).collect();
            guests.into_iter().filter(|at| !self.is_cut(*at)).count()
        }
    }

    #[test]
    fn hz_9_one_peer_takes_places_only_from_itself_beyond_its_share() {
        let mut guests = Guests::default();
        let first = guests.come("198.51.100.1");
        let asks = guests.come("198.51.100.2");
        guests.all[asks].1.asks();
        for _ in 0..1000 {
            guests.come("198.51.100.2");
        }
        assert!(!guests.is_cut(first) && !guests.is_cut(asks));
        assert_eq!(guests.n_there("198.51.100.2"), LIMITS.peer);
        assert_eq!(guests.places.lock().n_cut, 1001 - 32);
    }

    #[test]
    fn hz_9_an_ipv6_network_is_one_peer() {
        let mut guests = Guests::default();
        for n in 0..1000 {
            guests.come(&format!("2001:db8::{n:x}"));
        }
        assert_eq!(guests.places.lock().all.len(), LIMITS.peer);
        let mapped = guests.come("::ffff:198.51.100.1");
        assert!(!guests.is_cut(mapped));
        let mapped = &guests.places.lock().all[&1000].peer;
        assert_eq!(*mapped, Peer::Stranger("198.51.100.1".parse().unwrap()));
    }

    #[test]
    fn hz_9_many_peers_take_places_from_the_greediest_and_then_from_the_oldest() {
        let mut guests = Guests::default();
        for _ in 0..LIMITS.peer {
            guests.come("198.51.100.1");
        }
        for n in 0..200 {
            guests.come(&format!("203.0.113.{n}"));
        }
        assert_eq!(guests.places.lock().all.len(), LIMITS.strangers);
        assert!(guests.n_there("198.51.100.1") <= 1);
        let last = guests.all.len() - 1;
        guests.all[last].1.asks();
        for n in 0..250 {
            guests.come(&format!("203.0.113.{n}"));
        }
        assert!(!guests.is_cut(last), "the others have not asked");
    }

    #[test]
    fn hz_9_no_stranger_takes_a_place_of_this_node() {
        let mut guests = Guests::default();
        let loopback = guests.come("127.0.0.1");
        let own = guests.come(OWN);
        for n in 0..2000 {
            guests.come(&format!("198.51.{}.{}", n / 250, n % 250));
        }
        assert!(!guests.is_cut(loopback) && !guests.is_cut(own));
        // And this node takes none of theirs.
        let last = guests.all.len() - 1;
        for _ in 0..200 {
            guests.come("127.0.0.9");
        }
        assert!(!guests.is_cut(last) && guests.is_cut(loopback));
        assert_eq!(
            guests.places.lock().all.len(),
            LIMITS.strangers + LIMITS.local
        );
    }

    #[tokio::test]
    async fn hz_9_large_answers_are_few_and_others_wait() {
        let mut guests = Guests::default();
        let may = async |guests: &Guests, guest: usize| {
            let turn = guests.all[guest].1.become_large();
            tokio::time::timeout(Duration::from_millis(1), turn)
                .await
                .is_ok()
        };
        for _ in 0..6 {
            let guest = guests.come("127.0.0.1");
            guests.all[guest].1.asks();
            assert_eq!(may(&guests, guest).await, guest < LIMITS.large);
        }
        assert!((0..6).all(|guest| !guests.is_cut(guest)));
        // Its answer may still be made when it is cut, and takes memory until it is gone.
        guests.places.lock().cut(Some(0));
        assert!(!may(&guests, 5).await);
        guests.all.remove(0);
        assert!(may(&guests, 4).await);
        assert!(!may(&guests, 3).await);
    }

    #[test]
    fn hz_9_a_place_is_free_once_its_connection_ended() {
        let mut guests = Guests::default();
        guests.come("198.51.100.1");
        guests.all.clear();
        assert!(guests.places.lock().all.is_empty());
        assert_eq!(guests.places.lock().n_cut, 0);
        guests.come("127.0.0.1");
        let stranger = guests.come("198.51.100.1");
        guests.places.give_way();
        assert!(guests.is_cut(stranger) && !guests.is_cut(0));
    }
}
