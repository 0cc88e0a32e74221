//! How are figures printed? Each with its spread, the target, the verdict, and the peer's figure from the same run.

use std::io::Write as _;

use proxy_tests::lab::stats::{median, quantile, show_ms};

use crate::Plan;

/// The unit of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Given in milliseconds.
    Time,
    Microseconds,
    Megabytes,
    /// Given in per cent of one core.
    Core,
    PerSecond,
    Ratio,
}

impl Unit {
    pub(crate) fn show(self, value: f64) -> String {
        if !value.is_finite() {
            return "never".into();
        }
        match self {
            Self::Time => show_ms(value),
            Self::Microseconds => format!("{value:.1} µs"),
            Self::Megabytes => format!("{value:.1} MB"),
            Self::Core => format!("{value:.2} %"),
            Self::PerSecond => format!("{value:.0}/s"),
            Self::Ratio => format!("{value:.3} ×"),
        }
    }
}

/// The target of a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    /// No more than this.
    AtMost(f64),
    /// No worse than the peer, within two per cent; lower is better.
    PeerOrLess,
    /// No worse than the peer, within two per cent; higher is better.
    PeerOrMore,
    /// None: it is only printed.
    None,
}

/// The figures of one subject: one per round.
pub(crate) type Figures = Vec<f64>;

#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<[String; 6]>,
    met: usize,
    missed: Vec<String>,
}

impl Report {
    /// Adds a row: its name, our figure, the peer's if there is one.
    pub(crate) fn row(
        &mut self,
        what: &str,
        unit: Unit,
        ours: &Figures,
        peer: Option<&Figures>,
        target: Target,
    ) {
        let figure = median(ours);
        let peer_figure = peer.map(|p| median(p));
        let (wanted, verdict) = match target {
            Target::AtMost(limit) => (format!("≤ {}", unit.show(limit)), Some(figure <= limit)),
            Target::PeerOrLess => (
                "≤ the peer's".into(),
                peer_figure.map(|p| figure <= p * 1.02),
            ),
            Target::PeerOrMore => (
                "≥ the peer's".into(),
                peer_figure.map(|p| figure >= p * 0.98),
            ),
            Target::None => (String::new(), None),
        };
        match verdict {
            Some(true) => self.met += 1,
            Some(false) => self.missed.push(what.to_owned()),
            None => {}
        }
        let row = [
            what.to_owned(),
            spread(unit, ours),
            wanted,
            verdict
                .map_or("", |good| if good { "met" } else { "MISSED" })
                .to_owned(),
            peer.map_or(String::new(), |p| spread(unit, p)),
            peer_figure.map_or(String::new(), |p| format!("{:.3}", figure / p)),
        ];
        println!(
            "  {}: {}{}",
            row[0],
            row[1],
            if row[4].is_empty() {
                String::new()
            } else {
                format!(" (peer {})", row[4])
            }
        );
        self.rows.push(row);
    }

    /// Prints the table.
    pub(crate) fn print(&self) {
        let header = [
            "what",
            "median (min … max)",
            "target",
            "",
            "peer",
            "ours / peer",
        ]
        .map(str::to_owned);
        let mut widths = header.each_ref().map(|h| h.chars().count());
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        println!();
        for row in std::iter::once(&header).chain(&self.rows) {
            let line: Vec<String> = row
                .iter()
                .zip(widths)
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            println!("{}", line.join("  ").trim_end());
        }
        println!("\n{} targets met, {} missed", self.met, self.missed.len());
        for missed in &self.missed {
            println!("  missed: {missed}");
        }
    }
}

fn spread(unit: Unit, figures: &Figures) -> String {
    if figures.len() < 2 {
        return unit.show(median(figures));
    }
    format!(
        "{} ({} … {})",
        unit.show(median(figures)),
        unit.show(quantile(figures, 0.0)),
        unit.show(quantile(figures, 1.0))
    )
}

/// Prints the next measurement, so that a wait is not silent.
pub(crate) fn progress(what: &str) {
    println!("{what} …");
    drop(std::io::stdout().flush());
}

/// Prints the machine and the kernel.
pub(crate) fn conditions(mode: &str, plan: &Plan, peer: Option<&str>) {
    let read = |path: &str| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    println!(
        "mode {mode}, {} round(s){}",
        plan.rounds,
        if plan.quick {
            ", quick: figures to look at, not to quote"
        } else {
            ""
        }
    );
    println!(
        "Linux {}, {cores} cores,{}",
        read("/proc/sys/kernel/osrelease"),
        model
            .trim_start_matches(['\t', ' ', ':'])
            .split_whitespace()
            .fold(String::new(), |s, w| s + " " + w)
    );
    println!("load before: {}", read("/proc/loadavg"));
    if cfg!(debug_assertions) {
        println!("a debug build: these figures mean nothing");
    }
    if let Some(peer) = peer {
        println!("peer: {peer}");
    }
    println!();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(target: Target, ours: f64, peer: Option<f64>) -> (usize, usize) {
        let mut report = Report::default();
        report.row(
            "x",
            Unit::Time,
            &vec![ours],
            peer.map(|p| vec![p]).as_ref(),
            target,
        );
        (report.met, report.missed.len())
    }

    #[test]
    fn a_target_is_met_or_missed() {
        assert_eq!(verdict(Target::AtMost(2.0), 2.0, None), (1, 0));
        assert_eq!(verdict(Target::AtMost(2.0), 2.1, None), (0, 1));
        assert_eq!(verdict(Target::AtMost(2.0), f64::INFINITY, None), (0, 1));
    }

    #[test]
    fn without_a_peer_a_comparison_has_no_verdict() {
        assert_eq!(verdict(Target::PeerOrLess, 1.0, None), (0, 0));
        assert_eq!(verdict(Target::PeerOrLess, 1.0, Some(0.9)), (0, 1));
        assert_eq!(verdict(Target::PeerOrMore, 1.0, Some(0.9)), (1, 0));
    }
}
