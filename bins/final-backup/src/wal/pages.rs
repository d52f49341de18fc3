//! Checks a stream of WAL by its page headers: each page has its own address in its header
//! (PostgreSQL's access/xlog_internal.h, XLogPageHeaderData). Pages are empty only after a switch
//! to the next segment, and then all of them up to the end of the segment.

use job::error::{Error, Result};
use protocol::wal::Lsn;

/// Size of a WAL page (XLOG_BLCKSZ).
const PAGE_BYTES: u64 = 8192;
/// Size of the header's fields xlp_magic, xlp_info, xlp_tli and xlp_pageaddr.
const HEADER_BYTES: usize = 16;

/// Checks the header of each page of a stream.
pub struct PageChecker {
    position: u64,
    segment_bytes: u64,
    header: [u8; HEADER_BYTES],
    /// Whether the rest of the segment is empty.
    switched: bool,
}

impl PageChecker {
    /// `start` must be the beginning of a page.
    pub fn new(start: Lsn, segment_bytes: u64) -> Self {
        Self {
            position: start.0,
            segment_bytes,
            header: [0; HEADER_BYTES],
            switched: false,
        }
    }

    /// Checks the next bytes, which may end anywhere in a page.
    ///
    /// # Errors
    /// Unsafe if a page has another address than its position.
    pub fn check(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let within = (self.position % PAGE_BYTES) as usize;
            let (end, in_header) = if within < HEADER_BYTES {
                (HEADER_BYTES, true)
            } else {
                (PAGE_BYTES as usize, false)
            };
            let (part, rest) = bytes.split_at((end - within).min(bytes.len()));
            if in_header {
                self.header[within..within + part.len()].copy_from_slice(part);
                if within + part.len() == HEADER_BYTES {
                    self.check_header()?;
                }
            }
            self.position += part.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    fn check_header(&mut self) -> Result<()> {
        let address = self
            .header
            .last_chunk()
            .map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let expected = self.position - self.position % PAGE_BYTES;
        let begins_segment = expected.is_multiple_of(self.segment_bytes);
        let empty = self.header == [0; HEADER_BYTES];
        self.switched = !begins_segment && (self.switched || empty);
        let valid = if self.switched {
            empty
        } else {
            address == expected
        };
        if valid {
            return Ok(());
        }
        let (address, expected) = (Lsn(address), Lsn(expected));
        Err(Error::manual_intervention(format!(
            "the wal is damaged: the page at {expected} has the address {address} in its header"
        ))
        .hint("copy another member; this one cannot be recovered past that page"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(count: u64) -> Vec<u8> {
        let mut all = Vec::new();
        for page in 0..count {
            let mut bytes = vec![1; PAGE_BYTES as usize];
            bytes[8..16].copy_from_slice(&(0x200_0000 + page * PAGE_BYTES).to_le_bytes());
            all.extend(bytes);
        }
        all
    }

    fn checked(bytes: &[u8], chunk: usize) -> Result<()> {
        let mut pages = PageChecker::new("0/2000000".parse().unwrap(), 4 * PAGE_BYTES);
        bytes.chunks(chunk).try_for_each(|chunk| pages.check(chunk))
    }

    #[test]
    fn pages_are_recognised_in_chunks_of_any_size() {
        let whole = pages(3);
        for chunk in [1, 5, 8191, 8192, 8193, 100_000] {
            assert!(checked(&whole, chunk).is_ok(), "{chunk}");
        }
    }

    #[test]
    fn only_the_rest_of_a_segment_may_be_empty() {
        let with_empty = |empty: &[u64]| {
            let mut bytes = pages(6);
            for page in empty {
                bytes[(page * PAGE_BYTES) as usize..][..PAGE_BYTES as usize].fill(0);
            }
            checked(&bytes, 1000)
        };
        assert!(
            with_empty(&[2, 3]).is_ok(),
            "the next segment has pages again"
        );
        assert!(with_empty(&[2]).is_err(), "a page follows an empty one");
        assert!(
            with_empty(&[2, 3, 4]).is_err(),
            "the first page of a segment is empty"
        );
    }

    #[test]
    fn a_page_with_another_address_is_rejected() {
        let mut wrong = pages(3);
        wrong[2 * 8192 + 9] ^= 1;
        let error = checked(&wrong, 1000).unwrap_err();
        assert!(
            error.to_string().contains("the page at 0/2004000 has"),
            "{error}"
        );
    }
}
