//! Multipart upload with its own bookkeeping in place of object_store's `WriteMultipart`, because
//! [`PendingWrites`] must count each part that is still being sent: a part that arrives after its
//! upload was aborted stays in the store. It also limits memory by the size of the parts, and
//! recognises a completed upload whose answer was lost.

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

use super::PendingWrites;

/// S3's limit of parts per upload. Each part except the last must have at least 5 MiB.
const PARTS_MAX: u64 = 10_000;
const MIB: u64 = 1 << 20;
/// Limit of the memory for the part that is being filled and the parts that are being sent.
const MEMORY_BYTES: u64 = 24 * MIB;
/// Size of parts of which two are sent while the next one is filled.
const PART_BYTES: u64 = MEMORY_BYTES / 3;
/// Largest size of parts of which one is sent while the next one is filled.
const PART_BYTES_LARGE: u64 = MEMORY_BYTES / 2;
/// Size of parts that are filled only once the previous one has arrived.
const PART_BYTES_MAX: u64 = MEMORY_BYTES;
/// For a stream of unknown length: the WAL, which is sent at the same time as the archive.
const PART_BYTES_WAL: u64 = 5 * MIB;

/// Size of parts that is large enough for a file of `bytes`, and small enough for the memory. 0
/// means a stream of unknown length.
pub fn part_bytes(bytes: u64) -> u64 {
    if bytes == 0 {
        return PART_BYTES_WAL;
    }
    // The estimate is the size before compression. Add a tenth, because compression may increase
    // it.
    let needed = (bytes + bytes / 10).div_ceil(PARTS_MAX).div_ceil(MIB) * MIB;
    if needed <= PART_BYTES_LARGE {
        needed.max(PART_BYTES)
    } else {
        PART_BYTES_MAX
    }
}

/// The part that is being filled.
#[derive(Default)]
pub struct PartBuffer {
    chunks: Vec<Bytes>,
    bytes: u64,
}

impl PartBuffer {
    /// Adds a chunk, and returns the part once it has `limit` bytes. All parts have the same size,
    /// because some stores require that.
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

    /// Returns what has been added, and empties the buffer.
    pub fn take(&mut self) -> PutPayload {
        self.bytes = 0;
        std::mem::take(&mut self.chunks).into_iter().collect()
    }
}

/// An upload in progress.
pub struct Upload {
    store: Arc<AmazonS3>,
    path: Path,
    id: String,
    pending_writes: PendingWrites,
    sending: FuturesUnordered<JoinHandle<(usize, object_store::Result<PartId>)>>,
    sending_max: usize,
    done: BTreeMap<usize, PartId>,
    begun: usize,
    bytes: u64,
}

impl Upload {
    /// Continues the upload `id`, which has begun, in parts of `part_bytes`.
    pub fn new(
        store: Arc<AmazonS3>,
        path: Path,
        id: String,
        pending_writes: PendingWrites,
        part_bytes: u64,
    ) -> Self {
        Self {
            store,
            path,
            id,
            pending_writes,
            sending: FuturesUnordered::new(),
            sending_max: match part_bytes {
                PART_BYTES => 2,
                PART_BYTES_MAX => 0,
                _ => 1,
            },
            done: BTreeMap::new(),
            begun: 0,
            bytes: 0,
        }
    }

    /// Sends a part, and waits until no more than the permitted number are being sent.
    ///
    /// # Errors
    /// The store's errors as `failed` classifies them; Refused after the last permitted part.
    pub async fn put(
        &mut self,
        part: PutPayload,
        failed: impl Fn(object_store::Error) -> Error,
    ) -> Result<()> {
        if self.begun as u64 == PARTS_MAX {
            return Err(Error::refused(format!(
                "the archive is larger than {PARTS_MAX} parts of {}, the limit of a bucket with \
                 the memory of this pod",
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
        let pending = Arc::clone(&self.pending_writes).read_owned().await;
        self.sending.push(tokio::spawn(async move {
            let sent = store.put_part(&path, &id, index, part).await;
            drop(pending);
            (index, sent)
        }));
        while self.sending.len() > self.sending_max {
            self.wait_for_one(&failed).await?;
        }
        Ok(())
    }

    async fn wait_for_one(&mut self, failed: impl Fn(object_store::Error) -> Error) -> Result<()> {
        if let Some(ended) = self.sending.next().await {
            let (index, part) =
                ended.map_err(|error| Error::transient("a task has died").caused_by(error))?;
            self.done.insert(index, part.map_err(failed)?);
        }
        Ok(())
    }

    /// Sends the last part, and completes the upload.
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
        while !self.sending.is_empty() {
            self.wait_for_one(&failed).await?;
        }
        let parts = self.done.into_values().collect();
        match self
            .store
            .complete_multipart(&self.path, &self.id, parts)
            .await
        {
            Ok(_) => Ok(()),
            // The first answer may have been lost. A store that has completed the upload does not
            // know it any more when the request is repeated.
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
    fn parts_grow_with_the_file_within_the_memory_limit() {
        let gigabytes = |count: u64| part_bytes(count * 1_000_000_000) / MIB;
        assert_eq!(
            (gigabytes(0), gigabytes(1), gigabytes(40), gigabytes(100)),
            (5, 8, 8, 11)
        );
        assert_eq!((gigabytes(110), gigabytes(10_000)), (12, 24));
    }

    #[test]
    fn every_part_except_the_last_has_the_same_size() {
        let mut part = PartBuffer::default();
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
