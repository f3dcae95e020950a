//! The prefix cache's second tier: pages that memory had no room for, in a file of bounded size.
//!
//! The engine's thread keeps the books and never touches the file; a thread of its own reads and writes, in the order asked. The file has no
//! name any more once it is open: its pages are known by keys that hold the process's own secret, so nothing of it is of use to another
//! process, and what tenants wrote must not lie around when this one is killed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use platform::Digest;

use crate::pages::PageKey;

/// Bytes on their way to the file, and as many on their way back. A page that would go over it is not kept.
const BYTES_IN_FLIGHT: usize = 64 << 20;

/// A file for pages, and how large it may become.
#[derive(Debug)]
pub struct PageFile {
    file: File,
    bytes: u64,
}

impl PageFile {
    /// Makes a file in `folder`, which is made too, and takes its name away at once.
    pub fn create(folder: &Path, bytes: u64) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let path = folder.join("pages");
        // One that is there was left between the two calls below.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(Self::over(file, bytes))
    }

    /// Over a file that is open for reading and writing.
    pub fn over(file: File, bytes: u64) -> Self {
        Self { file, bytes }
    }
}

#[derive(Debug)]
enum Command {
    Write { place: u64, key: PageKey, bytes: Vec<u8> },
    Read { place: u64, key: PageKey },
}

#[derive(Debug)]
struct Entry {
    place: u64,
    used: u64,
}

/// Which pages are in the file.
#[derive(Debug)]
pub struct DiskTier {
    known: HashMap<PageKey, Entry>,
    /// The same by last use.
    order: BTreeMap<u64, PageKey>,
    clock: u64,
    /// Places that have never been used begin here; those that have and are free again.
    unused: u64,
    free: Vec<u64>,
    places: u64,
    /// Being read.
    coming: HashSet<PageKey>,
    in_flight: usize,
    writing: Arc<AtomicUsize>,
    commands: Sender<Command>,
    pub written: u64,
    /// Pages that were not what had been written, or could not be read.
    pub lost: u64,
}

impl DiskTier {
    /// Starts the thread, which tells `arrived` what it has read; nothing where a page was damaged. None where not even one page fits.
    pub fn start(
        file: PageFile,
        page_bytes: usize,
        arrived: impl Fn(PageKey, Option<Vec<u8>>) + Send + 'static,
    ) -> Option<Self> {
        let places = file.bytes / page_bytes as u64;
        if places == 0 {
            return None;
        }
        let (commands, receiver) = channel();
        let writing = Arc::new(AtomicUsize::new(0));
        let thread = Thread { file: file.file, page_bytes, sums: HashMap::new(), writing: writing.clone() };
        std::thread::Builder::new()
            .name("kv-disk".into())
            .spawn(move || thread.run(&receiver, &arrived))
            .expect("the operating system gives a thread");
        Some(Self {
            known: HashMap::new(),
            order: BTreeMap::new(),
            clock: 0,
            unused: 0,
            free: Vec::new(),
            places,
            coming: HashSet::new(),
            in_flight: (BYTES_IN_FLIGHT / page_bytes).max(1),
            writing,
            commands,
            written: 0,
            lost: 0,
        })
    }

    pub fn used(&self) -> u64 {
        self.known.len() as u64
    }

    pub fn has(&self, key: &PageKey) -> bool {
        self.known.contains_key(key)
    }

    /// Whether a page should be stored that memory is about to forget: it is not there, and the thread keeps up.
    pub fn wants(&self, key: &PageKey) -> bool {
        !self.has(key) && self.writing.load(Ordering::Relaxed) < self.in_flight
    }

    /// Stores a page, in the place of the one that was used least recently where there is no other.
    pub fn store(&mut self, key: PageKey, bytes: Vec<u8>) {
        let place = match self.free.pop() {
            Some(place) => place,
            None if self.unused < self.places => {
                self.unused += 1;
                self.unused - 1
            }
            None => {
                let Some((_, oldest)) = self.order.pop_first() else { return };
                let Some(entry) = self.known.remove(&oldest) else { return };
                entry.place
            }
        };
        self.clock += 1;
        self.known.insert(key, Entry { place, used: self.clock });
        self.order.insert(self.clock, key);
        self.written += 1;
        self.writing.fetch_add(1, Ordering::Relaxed);
        let _ = self.commands.send(Command::Write { place, key, bytes });
    }

    /// Asks for a page; false where as many as may be are on their way. What is not there is not asked for.
    pub fn fetch(&mut self, key: PageKey) -> bool {
        if self.coming.contains(&key) {
            return true;
        }
        let Some(entry) = self.known.get_mut(&key) else { return true };
        if self.coming.len() >= self.in_flight {
            return false;
        }
        self.clock += 1;
        self.order.remove(&entry.used);
        self.order.insert(self.clock, key);
        entry.used = self.clock;
        self.coming.insert(key);
        let _ = self.commands.send(Command::Read { place: entry.place, key });
        true
    }

    pub fn is_coming(&self, key: &PageKey) -> bool {
        self.coming.contains(key)
    }

    /// Notes that a page was read, or that it is lost.
    pub fn arrived(&mut self, key: &PageKey, whole: bool) {
        self.coming.remove(key);
        if whole {
            return;
        }
        self.lost += 1;
        if let Some(entry) = self.known.remove(key) {
            self.order.remove(&entry.used);
            self.free.push(entry.place);
        }
    }
}

/// What reads and writes.
struct Thread {
    file: File,
    page_bytes: usize,
    /// What each place holds, and its SHA-256. A place whose write failed holds nothing.
    sums: HashMap<u64, (PageKey, Digest)>,
    writing: Arc<AtomicUsize>,
}

impl Thread {
    fn run(mut self, commands: &Receiver<Command>, arrived: &impl Fn(PageKey, Option<Vec<u8>>)) {
        while let Ok(command) = commands.recv() {
            match command {
                Command::Write { place, key, bytes } => {
                    self.sums.remove(&place);
                    if self.file.write_all_at(&bytes, place * self.page_bytes as u64).is_ok() {
                        self.sums.insert(place, (key, Digest::of(&bytes)));
                    }
                    self.writing.fetch_sub(1, Ordering::Relaxed);
                }
                Command::Read { place, key } => arrived(key, self.read(place, key)),
            }
        }
    }

    fn read(&self, place: u64, key: PageKey) -> Option<Vec<u8>> {
        let (_, sum) = self.sums.get(&place).filter(|(held, _)| *held == key)?;
        let mut bytes = vec![0; self.page_bytes];
        self.file.read_exact_at(&mut bytes, place * self.page_bytes as u64).ok()?;
        (Digest::of(&bytes) == *sum).then_some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::pages::root_key;

    const PAGE: usize = 4096;

    type Arrivals = mpsc::Receiver<(PageKey, Option<Vec<u8>>)>;

    /// A tier of so many pages, its file, and what arrives from it.
    fn tier(pages: usize) -> (DiskTier, File, Arrivals) {
        let path = std::env::temp_dir().join(format!("myriad-pages-{}-{:p}", std::process::id(), &pages));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let (send, arrivals) = mpsc::channel();
        let pages = PageFile::over(file.try_clone().unwrap(), (pages * PAGE + 100) as u64);
        let tier = DiskTier::start(pages, PAGE, move |key, bytes| send.send((key, bytes)).unwrap()).unwrap();
        (tier, file, arrivals)
    }

    fn key(n: u64) -> PageKey {
        root_key(n, None)
    }

    fn page(n: u64) -> Vec<u8> {
        vec![n as u8 + 1; PAGE]
    }

    #[test]
    fn pages_come_back_as_they_were_and_the_oldest_make_room() {
        let (mut tier, file, arrivals) = tier(3);
        (0..3).for_each(|n| tier.store(key(n), page(n)));
        assert!(tier.fetch(key(0)) && tier.is_coming(&key(0)));
        assert_eq!(arrivals.recv().unwrap(), (key(0), Some(page(0))));
        tier.arrived(&key(0), true);
        // The second is the one that was used least recently now.
        tier.store(key(3), page(3));
        assert_eq!([0, 1, 2, 3].map(|n| tier.has(&key(n))), [true, false, true, true]);
        for n in [0, 2, 3] {
            assert!(tier.fetch(key(n)));
            assert_eq!(arrivals.recv().unwrap(), (key(n), Some(page(n))));
        }
        assert_eq!(file.metadata().unwrap().len(), 3 * PAGE as u64, "the file is larger than it may be");
    }

    #[test]
    fn a_damaged_page_is_lost_and_its_place_is_used_again() {
        let (mut tier, file, arrivals) = tier(2);
        (0..2).for_each(|n| tier.store(key(n), page(n)));
        assert!(tier.fetch(key(1)));
        assert_eq!(arrivals.recv().unwrap().1, Some(page(1)));
        file.write_all_at(&[0], 17).unwrap();
        assert!(tier.fetch(key(0)));
        assert_eq!(arrivals.recv().unwrap(), (key(0), None));
        tier.arrived(&key(0), false);
        assert_eq!((tier.has(&key(0)), tier.lost, tier.used()), (false, 1, 1));
        tier.store(key(2), page(2));
        assert!(tier.fetch(key(2)));
        assert_eq!(arrivals.recv().unwrap().1, Some(page(2)));
        assert!(tier.has(&key(1)), "a free place was there");
    }

    #[test]
    fn a_file_without_room_for_a_page_is_no_tier_and_leaves_no_name() {
        let folder = std::env::temp_dir().join(format!("myriad-pages-folder-{}", std::process::id()));
        let file = PageFile::create(&folder, 100).unwrap();
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "what tenants wrote can be found by its name");
        assert!(DiskTier::start(file, PAGE, |_, _| {}).is_none());
        std::fs::remove_dir(&folder).unwrap();
    }
}
