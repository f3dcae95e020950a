//! A partition of a step's rows into consecutive, non-empty runs, each with a key.
//!
//! A step carries two of them: by sequence (attention reads it) and by adapter slot (LoRA reads it).

use std::ops::Range;

/// Rows `0..rows()`, cut into consecutive non-empty runs. Valid by construction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runs<K> {
    /// Where each run ends (exclusive), ascending.
    ends: Vec<u32>,
    keys: Vec<K>,
}

impl<K> Default for Runs<K> {
    fn default() -> Self {
        Self { ends: Vec::new(), keys: Vec::new() }
    }
}

impl<K> Runs<K> {
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a run of `rows` rows. A run of no rows is not a run: it is left out.
    pub fn push(&mut self, rows: u32, key: K) {
        if rows > 0 {
            self.ends.push(self.rows() + rows);
            self.keys.push(key);
        }
    }

    /// Appends `rows` rows to the last run where that has the same key, else a new run.
    pub fn extend(&mut self, rows: u32, key: K)
    where
        K: PartialEq,
    {
        match (self.keys.last(), self.ends.last_mut()) {
            (Some(last), Some(end)) if *last == key => *end += rows,
            _ => self.push(rows, key),
        }
    }

    /// Number of rows in all runs together.
    pub fn rows(&self) -> u32 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Number of runs.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Each run's rows and key, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Range<usize>, &K)> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).zip(&self.keys).map(|((start, &end), key)| (start as usize..end as usize, key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_all_rows_once_and_in_order() {
        let mut runs = Runs::new();
        runs.push(3, 'a');
        runs.push(0, 'x');
        runs.extend(2, 'a');
        runs.extend(1, 'b');
        let seen: Vec<_> = runs.iter().map(|(rows, key)| (rows, *key)).collect();
        assert_eq!(seen, [(0..5, 'a'), (5..6, 'b')]);
        assert_eq!((runs.rows(), runs.len()), (6, 2));
    }
}
