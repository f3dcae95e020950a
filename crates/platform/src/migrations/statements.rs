//! The statements of a migration, and what each is about.
//!
//! Reads only what `migrations/` is written in: the part of SQL that both databases understand, names without quotes. So there are no
//! dollar quotes and no backslashes in literals here, which SQLite does not know.

/// An index that a migration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    pub name: String,
    pub table: String,
    sql: String,
    /// Behind the word INDEX.
    behind: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    CreateIndex(Index),
    DropIndex(String),
    CreateTable(String),
    DropTable(String),
    /// Whatever needs no attention: it runs as it stands.
    Other,
}

impl Index {
    /// The statement that builds it while others write to its table.
    pub fn concurrently(&self) -> String {
        format!("{} CONCURRENTLY{}", &self.sql[..self.behind], &self.sql[self.behind..])
    }
}

/// What a statement of [`split`] is about.
pub fn about(statement: &str) -> About {
    let words: Vec<&str> = statement.split([' ', '\t', '\r', '\n', '(']).filter(|word| !word.is_empty()).collect();
    let is = |at: usize, word: &str| words.get(at).is_some_and(|found| found.eq_ignore_ascii_case(word));
    let name = |at: usize| words.get(at).map_or_else(String::new, |word| word.to_lowercase());
    let exists = |at: usize| if is(at, "IF") && is(at + 1, "EXISTS") { at + 2 } else { at };
    if is(0, "CREATE") && is(1, "TABLE") {
        return About::CreateTable(name(2));
    }
    if is(0, "DROP") && is(1, "TABLE") {
        return About::DropTable(name(exists(2)));
    }
    if is(0, "DROP") && is(1, "INDEX") {
        return About::DropIndex(name(exists(2)));
    }
    let index = if is(1, "UNIQUE") { 2 } else { 1 };
    if is(0, "CREATE") && is(index, "INDEX") && is(index + 2, "ON") {
        let behind = words[index].as_ptr() as usize - statement.as_ptr() as usize + words[index].len();
        return About::CreateIndex(Index {
            name: name(index + 1),
            table: name(index + 3),
            sql: statement.into(),
            behind,
        });
    }
    About::Other
}

/// The statements of a script, in their order, without its comments.
pub fn split(script: &str) -> Vec<String> {
    let (mut statements, mut statement) = (Vec::new(), String::new());
    let mut rest = script;
    while let Some(next) = rest.chars().next() {
        let length = match next {
            '-' if rest.starts_with("--") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            // A quote within a literal is written twice: as two literals side by side it is the same text.
            '\'' | '"' => rest[1..].find(next).map_or(rest.len(), |end| end + 2),
            other => other.len_utf8(),
        };
        let (part, left) = rest.split_at(length);
        match next {
            ';' => statements.push(std::mem::take(&mut statement)),
            '-' | '/' if length > 1 => statement.push(' '),
            _ => statement.push_str(part),
        }
        rest = left;
    }
    statements.push(statement);
    statements.iter().map(|statement| statement.trim().to_owned()).filter(|statement| !statement.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_end_no_statement() {
        let script = "-- One; two.\nCREATE TABLE t (a TEXT DEFAULT 'x;--''y', -- three;\n b BIGINT /* four; */);;\n\
                      INSERT INTO t VALUES ('ä;', 1 - 2 / 3), (\"o;\", 4) ; -- five;";
        let expected = [
            "CREATE TABLE t (a TEXT DEFAULT 'x;--''y',  \n b BIGINT  )",
            "INSERT INTO t VALUES ('ä;', 1 - 2 / 3), (\"o;\", 4)",
        ];
        assert_eq!(split(script), expected);
        assert_eq!(split("SELECT 1; SELECT 'open"), ["SELECT 1", "SELECT 'open"]);
        assert!(split(" -- nothing").is_empty());
    }

    #[test]
    fn an_index_is_built_concurrently() {
        let About::CreateIndex(index) = about("create UNIQUE  Index One\nON two(three) WHERE index = 'INDEX'") else {
            panic!("no index");
        };
        assert_eq!((index.name.as_str(), index.table.as_str()), ("one", "two"));
        assert_eq!(index.concurrently(), "create UNIQUE  Index CONCURRENTLY One\nON two(three) WHERE index = 'INDEX'");
        assert_eq!(about("DROP INDEX IF EXISTS one"), About::DropIndex("one".into()));
        assert_eq!(about("DROP INDEX one"), About::DropIndex("one".into()));
        assert_eq!(about("DROP TABLE one"), About::DropTable("one".into()));
        assert_eq!(about("CREATE TABLE one(two TEXT)"), About::CreateTable("one".into()));
        assert_eq!(about("ALTER TABLE one ADD COLUMN two TEXT"), About::Other);
    }
}
