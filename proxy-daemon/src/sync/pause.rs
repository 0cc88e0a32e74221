//! How long do changes wait after a sync?
//!
//! Invariants: pure; at least minSyncPeriod (SYNC-1). Where changes never end, syncs take about a fifth of the time,
//! whatever a sync costs in the mode and at the size of the cluster: each has to be paid for with [`PRICE`] times
//! what it took. It may be paid for later, up to [`CREDIT`], so that a few changes in a row wait for minSyncPeriod
//! only; and no pause is longer than [`LONGEST`], so that a removed endpoint is removed soon.

use std::time::{Duration, Instant};

const PRICE: u32 = 5;
const CREDIT: Duration = Duration::from_secs(1);
/// kube-proxy's minSyncPeriod.
const LONGEST: Duration = Duration::from_secs(1);

/// What past syncs cost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pause {
    /// Until when they are paid for.
    paid: Option<Instant>,
}

impl Pause {
    /// Charges for a sync; returns when the next one may begin.
    pub(super) fn after(
        &mut self,
        started: Instant,
        ended: Instant,
        min_sync: Duration,
    ) -> Instant {
        let paid = self.paid.map_or(started, |paid| paid.max(started));
        let paid = paid + (ended - started) * PRICE;
        let paid = paid.min(ended + CREDIT + LONGEST);
        self.paid = Some(paid);
        let owed = paid.saturating_duration_since(ended + CREDIT);
        ended + owed.max(min_sync)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Clock, SystemClock};

    const MIN: Duration = Duration::from_millis(10);

    /// The pauses after so many syncs without an end to changes, each of which takes this long.
    fn pauses(cost: Duration, n: usize) -> Vec<Duration> {
        let mut pause = Pause::default();
        let mut now = SystemClock.now();
        let mut pauses = Vec::new();
        for _ in 0..n {
            let ended = now + cost;
            now = pause.after(now, ended, MIN);
            pauses.push(now - ended);
        }
        pauses
    }

    #[test]
    fn sync_1_pauses_grow_with_the_cost_of_syncs_and_stay_bounded() {
        let ms = Duration::from_millis;
        // What costs little never waits longer.
        assert_eq!(pauses(ms(2), 1000), [MIN; 1000]);
        // A few changes in a row are followed at once, and many get a fifth of the time.
        let of_60 = pauses(ms(60), 100);
        assert_eq!(of_60[..4], [MIN; 4]);
        assert_eq!(of_60[50..], [ms(240); 50]);
        // No removal waits longer than this.
        assert_eq!(pauses(ms(900), 9)[1..], [LONGEST; 8]);
    }

    #[test]
    fn sync_1_idle_time_pays() {
        let ms = Duration::from_millis;
        let mut pause = Pause::default();
        let start = SystemClock.now();
        let mut now = start;
        for _ in 0..20 {
            now = pause.after(now, now + ms(100), MIN);
        }
        now += ms(2_000);
        assert_eq!(pause.after(now, now + ms(100), MIN), now + ms(100) + MIN);
    }
}
