//! Whether a stream of WAL is what it says it is: each page names its own address
//! (access/xlog_internal.h, XLogPageHeaderData). Only behind a switch to the next segment are pages
//! empty, and then all of them up to its end.

use job::error::{Error, Result};
use protocol::wal::Lsn;

/// XLOG_BLCKSZ.
const PAGE_BYTES: u64 = 8192;
/// xlp_magic, xlp_info, xlp_tli, xlp_pageaddr.
const HEADER_BYTES: usize = 16;

/// Looks at each page's header as it passes.
pub struct Pages {
    position: u64,
    segment_bytes: u64,
    header: [u8; HEADER_BYTES],
    switched: bool,
}

impl Pages {
    /// `start` begins a page.
    pub fn new(start: Lsn, segment_bytes: u64) -> Self {
        Self {
            position: start.0.into(),
            segment_bytes,
            header: [0; HEADER_BYTES],
            switched: false,
        }
    }

    /// What comes next.
    ///
    /// # Errors
    /// Unsafe when a page is not the one that belongs here.
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
                    self.judge()?;
                }
            }
            self.position += part.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    fn judge(&mut self) -> Result<()> {
        let address = self
            .header
            .last_chunk()
            .map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let wanted = self.position - self.position % PAGE_BYTES;
        let begins_segment = wanted.is_multiple_of(self.segment_bytes);
        let empty = self.header == [0; HEADER_BYTES];
        self.switched = !begins_segment && (self.switched || empty);
        let right = if self.switched {
            empty
        } else {
            address == wanted
        };
        if right {
            return Ok(());
        }
        let (address, wanted) = (Lsn(address.into()), Lsn(wanted.into()));
        Err(Error::contradiction(format!(
            "the wal is damaged: the page at {wanted} says that it is the one at {address}"
        ))
        .hint("copy from another member; this one cannot be recovered past that page"))
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

    fn judged(bytes: &[u8], chunk: usize) -> Result<()> {
        let mut pages = Pages::new("0/2000000".parse().unwrap(), 4 * PAGE_BYTES);
        bytes.chunks(chunk).try_for_each(|chunk| pages.check(chunk))
    }

    #[test]
    fn pages_are_recognised_however_they_come() {
        let whole = pages(3);
        for chunk in [1, 5, 8191, 8192, 8193, 100_000] {
            assert!(judged(&whole, chunk).is_ok(), "{chunk}");
        }
    }

    #[test]
    fn only_the_rest_of_a_segment_may_be_empty() {
        let with_empty = |empty: &[u64]| {
            let mut bytes = pages(6);
            for page in empty {
                bytes[(page * PAGE_BYTES) as usize..][..PAGE_BYTES as usize].fill(0);
            }
            judged(&bytes, 1000)
        };
        assert!(with_empty(&[2, 3]).is_ok(), "the next segment begins anew");
        assert!(with_empty(&[2]).is_err(), "something follows the end");
        assert!(
            with_empty(&[2, 3, 4]).is_err(),
            "a segment that does not begin"
        );
    }

    #[test]
    fn a_page_of_another_place_is_not_taken() {
        let mut wrong = pages(3);
        wrong[2 * 8192 + 9] ^= 1;
        let error = judged(&wrong, 1000).unwrap_err();
        assert!(
            error.to_string().contains("the page at 0/2004000 says"),
            "{error}"
        );
    }
}
