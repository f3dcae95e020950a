//! The nearest names to one that is not there.

/// Most names that are suggested.
const SUGGESTIONS: usize = 3;

/// Known names that could have been meant, nearest first.
pub fn nearest_names<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let allowed = (name.chars().count() / 3).max(1);
    let mut near: Vec<(usize, &str)> =
        known.into_iter().map(|other| (distance(name, other), other)).filter(|(d, _)| *d <= allowed).collect();
    near.sort_unstable();
    near.truncate(SUGGESTIONS);
    near.into_iter().map(|(_, name)| name).collect()
}

/// Edit distance (Levenshtein 1966).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &to) in b.iter().enumerate() {
            let cost = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_name_and_another_word_does_not() {
        assert_eq!(nearest_names("suport", ["sql", "support", "extract"]), ["support"]);
        assert_eq!(nearest_names("lisen", ["listen", "ops_listen"]), ["listen"]);
        assert!(nearest_names("zebra", ["sql", "support"]).is_empty());
    }
}
