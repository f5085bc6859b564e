//! How the testbed speaks: steps with their time, and tables.

use std::io::{IsTerminal as _, Write as _};
use std::time::Instant;

/// A step that takes a while: printed when it starts, completed when it ends.
pub(crate) struct Step {
    label: String,
    start: Instant,
    live: bool,
}

impl Step {
    /// Says what starts now.
    pub(crate) fn start(label: impl Into<String>) -> Self {
        let label = label.into();
        let live = std::io::stdout().is_terminal();
        if live {
            print!("  {label} …");
            let _ = std::io::stdout().flush();
        }
        Self { label, start: Instant::now(), live }
    }

    /// Says how it ended, in a few words.
    pub(crate) fn end(self, outcome: &str) {
        let seconds = self.start.elapsed().as_secs_f64();
        let lead = if self.live { "\r" } else { "" };
        println!("{lead}  {:<52} {outcome}  ({seconds:.1} s)", self.label);
    }
}

/// Rows of text in columns; the first row is the heading. Columns named in `right` are aligned right.
pub(crate) fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let mut line = String::from("  ");
        for (column, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[column] - cell.chars().count());
            if right.contains(&column) {
                line += &format!("{pad}{cell}  ");
            } else {
                line += &format!("{cell}{pad}  ");
            }
        }
        text += line.trim_end();
        text.push('\n');
        if number == 0 {
            let rule: usize = widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
            text += &format!("  {}\n", "─".repeat(rule));
        }
    }
    text
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_three() {
        assert_eq!(
            [grouped(0), grouped(999), grouped(1_000), grouped(1_234_567)],
            ["0", "999", "1,000", "1,234,567"]
        );
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["name".into(), "n".into()], vec!["a".into(), "10".into()]];
        assert_eq!(table(&rows, &[1]), "  name   n\n  ────────\n  a     10\n");
    }
}
