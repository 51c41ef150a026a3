//! All versions of all pages of a database over many generations. Depends on nothing.

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;

/// Number of a page's content among all that were ever seen, in order of their appearance.
pub type Version = u32;

/// What each generation held.
#[derive(Default)]
pub struct History {
    pages: Vec<u8>,
    numbers: Vec<u32>,
    /// For each generation, the version of each page.
    pub maps: Vec<Vec<Version>>,
}

impl History {
    /// Adds a generation; returns how many pages differ from the one before.
    pub fn add(&mut self, file: &[u8]) -> usize {
        let before = self.maps.last().cloned().unwrap_or_default();
        let mut map = Vec::with_capacity(file.len() / PAGE_BYTES);
        for (number, page) in file.chunks_exact(PAGE_BYTES).enumerate() {
            let old = before.get(number).copied();
            let same = old.filter(|old| self.page(*old) == page);
            map.push(same.unwrap_or_else(|| {
                self.pages.extend_from_slice(page);
                self.numbers.push(number as u32);
                self.numbers.len() as Version - 1
            }));
        }
        let changed = map.iter().enumerate().filter(|(at, version)| before.get(*at) != Some(version)).count();
        self.maps.push(map);
        changed
    }

    /// The bytes of a version.
    pub fn page(&self, version: Version) -> &[u8] {
        &self.pages[version as usize * PAGE_BYTES..][..PAGE_BYTES]
    }

    /// The number of the page that this is a version of.
    pub fn number(&self, version: Version) -> usize {
        self.numbers[version as usize] as usize
    }

    /// How many versions there are of all pages.
    pub fn versions(&self) -> usize {
        self.numbers.len()
    }

    /// The highest number of pages of any generation.
    pub fn pages(&self) -> usize {
        self.maps.iter().map(Vec::len).max().unwrap_or_default()
    }
}
