//! An upload to a bucket, in parts.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesUnordered};
use job::{
    error::{Error, Result},
    quantity::size,
};
use object_store::{
    ObjectStoreExt as _, PutPayload,
    aws::AmazonS3,
    multipart::{MultipartStore as _, PartId},
    path::Path,
};
use tokio::task::JoinHandle;

use super::OnTheirWay;

/// S3 takes at most so many parts, each but the last of 5 MiB at least.
const PARTS_MAX: u64 = 10_000;
const MIB: u64 = 1 << 20;
/// What is held in memory is the part that is being filled, and those on their way: never more than
/// this.
const MEMORY_BYTES: u64 = 24 * MIB;
/// Two on their way while the next one is being filled.
const PART_BYTES: u64 = MEMORY_BYTES / 3;
/// One on its way.
const PART_BYTES_LARGE: u64 = MEMORY_BYTES / 2;
/// Filled only when the one before has arrived.
const PART_BYTES_MAX: u64 = MEMORY_BYTES;
/// Of a stream of unknown length, the WAL, which comes beside the archive.
const PART_BYTES_BESIDE: u64 = 5 * MIB;

/// Parts large enough for the whole file, and small enough for the memory; 0 is a stream of unknown
/// length.
pub fn part_bytes(bytes: u64) -> u64 {
    if bytes == 0 {
        return PART_BYTES_BESIDE;
    }
    // The estimate is of files before compression; a tenth on top for those that grow.
    let needed = (bytes + bytes / 10).div_ceil(PARTS_MAX).div_ceil(MIB) * MIB;
    if needed <= PART_BYTES_LARGE {
        needed.max(PART_BYTES)
    } else {
        PART_BYTES_MAX
    }
}

/// A part that is being filled.
#[derive(Default)]
pub struct Part {
    chunks: Vec<Bytes>,
    bytes: u64,
}

impl Part {
    /// A part when it is full: all of the same size, as some stores want it.
    pub fn push(&mut self, mut chunk: Bytes, limit: u64) -> Option<PutPayload> {
        let room = usize::try_from(limit - self.bytes).unwrap_or(usize::MAX);
        let rest = chunk.split_off(room.min(chunk.len()));
        self.bytes += chunk.len() as u64;
        self.chunks.push(chunk);
        if self.bytes < limit {
            return None;
        }
        let full = self.take();
        self.bytes = rest.len() as u64;
        self.chunks.push(rest);
        Some(full)
    }

    /// What there is of it.
    pub fn take(&mut self) -> PutPayload {
        self.bytes = 0;
        std::mem::take(&mut self.chunks).into_iter().collect()
    }
}

/// An upload under way.
pub struct Upload {
    store: Arc<AmazonS3>,
    path: Path,
    id: String,
    on_their_way: OnTheirWay,
    under_way: FuturesUnordered<JoinHandle<(usize, object_store::Result<PartId>)>>,
    under_way_max: usize,
    done: BTreeMap<usize, PartId>,
    begun: usize,
    bytes: u64,
}

impl Upload {
    /// An upload that was begun, for parts of a size.
    pub fn new(
        store: Arc<AmazonS3>,
        path: Path,
        id: String,
        on_their_way: OnTheirWay,
        part_bytes: u64,
    ) -> Self {
        Self {
            store,
            path,
            id,
            on_their_way,
            under_way: FuturesUnordered::new(),
            under_way_max: match part_bytes {
                PART_BYTES => 2,
                PART_BYTES_MAX => 0,
                _ => 1,
            },
            done: BTreeMap::new(),
            begun: 0,
            bytes: 0,
        }
    }

    /// Sends a part, and waits until no more are under way than may be.
    ///
    /// # Errors
    /// The store's, for `failed` to judge; Refused after the last part that there may be.
    pub async fn put(
        &mut self,
        part: PutPayload,
        failed: impl Fn(object_store::Error) -> Error,
    ) -> Result<()> {
        if self.begun as u64 == PARTS_MAX {
            return Err(Error::refused(format!(
                "the archive is larger than {PARTS_MAX} parts of {}, which is all that a bucket \
                 takes with the memory of this pod",
                size(PART_BYTES_MAX)
            ))
            .hint("use a volume (components/backup-volume)"));
        }
        let (store, path, id, index) = (
            Arc::clone(&self.store),
            self.path.clone(),
            self.id.clone(),
            self.begun,
        );
        self.begun += 1;
        self.bytes += part.content_length() as u64;
        let sending = Arc::clone(&self.on_their_way).read_owned().await;
        self.under_way.push(tokio::spawn(async move {
            let sent = store.put_part(&path, &id, index, part).await;
            drop(sending);
            (index, sent)
        }));
        while self.under_way.len() > self.under_way_max {
            self.one(&failed).await?;
        }
        Ok(())
    }

    async fn one(&mut self, failed: impl Fn(object_store::Error) -> Error) -> Result<()> {
        if let Some(ended) = self.under_way.next().await {
            let (index, part) =
                ended.map_err(|error| Error::transient("a task has died").caused_by(error))?;
            self.done.insert(index, part.map_err(failed)?);
        }
        Ok(())
    }

    /// Sends the last part, and makes one object of all.
    ///
    /// # Errors
    /// As [`Upload::put`].
    pub async fn complete(
        mut self,
        last: PutPayload,
        failed: impl Fn(object_store::Error) -> Error,
    ) -> Result<()> {
        if last.content_length() > 0 {
            self.put(last, &failed).await?;
        }
        while !self.under_way.is_empty() {
            self.one(&failed).await?;
        }
        let parts = self.done.into_values().collect();
        match self
            .store
            .complete_multipart(&self.path, &self.id, parts)
            .await
        {
            Ok(_) => Ok(()),
            // The answer may have been lost: asked again, a store that has made the object knows
            // the upload no more.
            Err(error @ object_store::Error::NotFound { .. }) => {
                match self.store.head(&self.path).await {
                    Ok(object) if object.size == self.bytes => Ok(()),
                    _ => Err(failed(error)),
                }
            }
            Err(error) => Err(failed(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_grow_with_the_file_within_the_memory() {
        let gigabytes = |count: u64| part_bytes(count * 1_000_000_000) / MIB;
        assert_eq!(
            (gigabytes(0), gigabytes(1), gigabytes(40), gigabytes(100)),
            (5, 8, 8, 11)
        );
        assert_eq!((gigabytes(110), gigabytes(10_000)), (12, 24));
    }

    #[test]
    fn every_part_but_the_last_has_the_same_size() {
        let mut part = Part::default();
        let mut sizes = Vec::new();
        for chunk in [3, 3, 9, 1] {
            sizes.extend(
                part.push(Bytes::from(vec![0; chunk]), 8)
                    .map(|full| full.content_length()),
            );
        }
        assert_eq!(sizes, [8, 8]);
        assert_eq!(part.take().content_length(), 0);
    }
}
