//! How does the demo talk: steps as they happen, and a table at the end.

use std::io::Write as _;
use std::time::Instant;

use anyhow::Result;

/// Prints a step, does it, and prints how long it took.
pub(crate) fn step<T>(what: &str, action: impl FnOnce() -> Result<T>) -> Result<T> {
    print!("  {what} … ");
    drop(std::io::stdout().flush());
    let start = Instant::now();
    let outcome = action();
    match &outcome {
        Ok(_) => println!("{:.0} ms", start.elapsed().as_secs_f64() * 1e3),
        Err(_) => println!("failed"),
    }
    outcome
}

/// One line of the table: a thing that was shown.
pub(crate) struct Row {
    /// The client.
    pub(crate) from: String,
    /// The address that was asked.
    pub(crate) to: String,
    /// The number of answers of each server.
    pub(crate) seen: String,
    /// Further remarks.
    pub(crate) remark: String,
    /// Whether it is as it should be.
    pub(crate) good: bool,
}

/// Shows a row as soon as it is known.
pub(crate) fn progress(row: &Row) {
    println!(
        "  {} {} → {}: {}",
        mark(row.good),
        row.from,
        row.to,
        row.seen
    );
}

/// Prints all rows as a table.
pub(crate) fn table(rows: &[Row]) {
    let header = ["", "from", "to", "where it went", "remark"].map(str::to_owned);
    let cells: Vec<[String; 5]> = rows
        .iter()
        .map(|r| {
            [
                mark(r.good).to_owned(),
                r.from.clone(),
                r.to.clone(),
                r.seen.clone(),
                r.remark.clone(),
            ]
        })
        .collect();
    let mut widths = header.each_ref().map(|h| h.chars().count());
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    println!();
    for row in std::iter::once(&header).chain(&cells) {
        let line: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        println!("{}", line.join("  ").trim_end());
    }
    println!();
}

fn mark(good: bool) -> &'static str {
    if good { "✔" } else { "✘" }
}
