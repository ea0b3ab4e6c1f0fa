//! Numbers with units, tables, JSON: how things are shown.
//!
//! Key type: [`Table`]. Neighbours: the commands.

use std::fmt::Write as _;

/// Rows whose columns are aligned when it is printed. The last column is as wide as it likes.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Table {
        let headings = headings.iter().map(|heading| (*heading).to_string());
        Table { rows: vec![headings.collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The text, a line for each row.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `3 threads`, `1 thread`.
pub fn count(number: u64, what: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {what}{s}")
}

/// Bytes in the unit that gives up to four digits.
pub fn bytes(number: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = number as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 {
        format!("{value:.0} {}", units[unit])
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

/// A short time: `64 µs`, `0.41 ms`, `1.20 s`.
pub fn nanoseconds(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..100_000 => format!("{} µs", ns / 1_000),
        100_000..1_000_000_000 => format!("{:.2} ms", ns as f64 / 1e6),
        _ => format!("{:.2} s", ns as f64 / 1e9),
    }
}

/// A long time in its largest unit: `5s`, `3m`, `2h`, `4d`.
pub fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// JSON with line breaks, for people and programs.
pub fn json(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

/// Bytes as hexadecimal digits; only the first `limit`, and how many there are in all.
pub fn hex(bytes: &[u8], limit: usize) -> String {
    let mut text = String::new();
    for byte in &bytes[..bytes.len().min(limit)] {
        let _ = write!(text, "{byte:02x}");
    }
    if bytes.len() > limit {
        let _ = write!(text, "... ({} bytes)", bytes.len());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(5 << 40), "5.0 TiB");
        assert_eq!(nanoseconds(64_000), "64 µs");
        assert_eq!(nanoseconds(410_000), "0.41 ms");
        assert_eq!(age(59), "59s");
        assert_eq!(age(7200), "2h");
        assert_eq!(count(1, "thread"), "1 thread");
        assert_eq!(hex(&[1, 2, 255], 2), "0102... (3 bytes)");
    }

    #[test]
    fn tables_are_aligned() {
        let mut table = Table::new(&["A", "B"]);
        table.row(vec!["long".into(), "x".into()]);
        assert_eq!(table.render(), "A     B\nlong  x\n");
    }
}
