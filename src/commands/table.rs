//! Plain text tables: columns padded to their widest cell, numbers to the right.

/// A table with a heading for each column.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<'a>(heading: impl IntoIterator<Item = &'a str>) -> Self {
        Self { rows: vec![heading.into_iter().map(str::to_owned).collect()] }
    }

    /// Adds a row of as many cells as there are headings.
    pub fn push(&mut self, row: impl IntoIterator<Item = String>) {
        self.rows.push(row.into_iter().collect());
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows[0].len();
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        (0..columns).map(width).collect()
    }

    fn cells(&self, row: &[String], widths: &[usize], separator: &str) -> String {
        let cells = row.iter().zip(widths).map(|(cell, &width)| {
            let number = cell.trim_start_matches(['-', '$']).starts_with(|c: char| c.is_ascii_digit());
            if number { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        cells.collect::<Vec<_>>().join(separator).trim_end().to_owned()
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let widths = self.widths();
        self.rows.iter().map(|row| self.cells(row, &widths, "  ") + "\n").collect()
    }

    /// For a document.
    pub fn markdown(&self) -> String {
        let line = |row: &[String]| format!("| {} |\n", row.join(" | "));
        let rule: Vec<String> = self.rows[0].iter().map(|_| "---".to_owned()).collect();
        let (heading, rows) = self.rows.split_at(1);
        line(&heading[0]) + &line(&rule) + &rows.iter().map(|row| line(row)).collect::<String>()
    }
}
