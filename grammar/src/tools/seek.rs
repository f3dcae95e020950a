//! Looks for markers in a stream of characters and holds back no more than what may still become one.

/// White space before a marker is dropped with it, so it is held back too, up to this many characters.
pub const HELD_SPACE: usize = 64;

/// No marker may begin another one: the shorter would always win.
pub struct Seek {
    markers: Vec<String>,
    held: String,
    space: String,
    dropped: String,
    /// Whether white space before the first other character is dropped (after a call, after reasoning).
    leading: bool,
    /// Whether white space before a marker is passed on.
    verbatim: bool,
}

impl Seek {
    pub fn new(markers: &[&str]) -> Self {
        Self {
            markers: markers.iter().map(|m| m.to_string()).collect(),
            held: String::new(),
            space: String::new(),
            dropped: String::new(),
            leading: false,
            verbatim: false,
        }
    }

    /// Passes white space on as it is.
    pub fn verbatim(mut self) -> Self {
        self.verbatim = true;
        self
    }

    pub fn after_call(mut self) -> Self {
        self.leading = true;
        self
    }

    /// Drops white space until something else comes, from now on.
    pub fn trim(&mut self) {
        self.leading = true;
    }

    /// The marker that `c` completes, by its place in the list. What certainly is not part of one goes to `text`.
    pub fn step(&mut self, c: char, mut text: impl FnMut(&str)) -> Option<usize> {
        self.held.push(c);
        loop {
            if let Some(found) = self.markers.iter().position(|m| *m == self.held) {
                self.held.clear();
                self.dropped = std::mem::take(&mut self.space);
                return Some(found);
            }
            if self.held.is_empty() || self.markers.iter().any(|m| m.starts_with(&self.held)) {
                return None;
            }
            let first = self.held.remove(0);
            self.release(first, &mut text);
        }
    }

    fn release(&mut self, c: char, text: &mut impl FnMut(&str)) {
        if c.is_whitespace() && self.leading {
            return;
        }
        self.leading = false;
        self.space.push(c);
        if self.verbatim || !c.is_whitespace() || self.space.len() >= HELD_SPACE {
            text(&self.space);
            self.space.clear();
        }
    }

    /// The white space before the last marker, for what turns out to be none.
    pub fn dropped(&mut self) -> String {
        std::mem::take(&mut self.dropped)
    }

    /// The stream ends: what is held back was text.
    pub fn end(&mut self, mut text: impl FnMut(&str)) {
        text(&self.space);
        text(&self.held);
        self.space.clear();
        self.held.clear();
    }
}
