//! How long did recovery take after each kind of fault, and which failed?

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// How long it took after one fault.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    /// Until every frontend answered.
    pub(crate) answered: Duration,
    /// Until the kernel held the expected objects.
    pub(crate) in_step: Duration,
}

/// What was measured.
#[derive(Default)]
pub(crate) struct Report {
    times: BTreeMap<&'static str, Vec<Times>>,
    pub(crate) failures: Vec<String>,
}

impl Report {
    pub(crate) fn add(&mut self, fault: &'static str, times: Times) {
        self.times.entry(fault).or_default().push(times);
    }
}

/// Median and maximum, in seconds.
fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let longest = times.last().copied().unwrap_or_default();
    format!(
        "{:>8.2} {:>8.2}",
        median.as_secs_f64(),
        longest.as_secs_f64()
    )
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<48} {:>3} {:>17} {:>17}",
            "seconds after it was over (median, longest)", "n", "all answer", "all in step"
        )?;
        for (fault, times) in &self.times {
            let answered = spread(times.iter().map(|times| times.answered).collect());
            let in_step = spread(times.iter().map(|times| times.in_step).collect());
            writeln!(f, "{fault:<48} {:>3} {answered} {in_step}", times.len())?;
        }
        Ok(())
    }
}
