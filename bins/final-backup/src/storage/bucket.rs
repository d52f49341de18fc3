//! A prefix in a bucket of an S3-compatible store.
//!
//! A large file is a multipart upload, which the bucket does not list until it is completed. Until
//! then, or until the upload is aborted, the store keeps its parts invisibly and bills them, so
//! each run finds and aborts the uploads of killed runs.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use crc32c::crc32c_append;
use futures::{StreamExt as _, TryStreamExt as _};
use job::error::{Context as _, Error, Result};
use object_store::{
    BackoffConfig, ObjectStore, ObjectStoreExt as _, PutPayload, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    client::{HttpClient, HttpRequest, HttpRequestBody},
    multipart::MultipartStore as _,
    path::Path,
    signer::{Method, SignedUrlOptions, Signer as _},
};
use platform::postgres::read_secret;
use secrecy::ExposeSecret as _;
use tokio::time::timeout;

use super::{
    COMPLETE, Entry, NAMES, PendingWrites, StoredFile, UNFINISHED, UNFINISHED_TEXT,
    crypto::OpenSsl,
    file_vanished,
    http::Http,
    unfinished_files,
    upload::{PartBuffer, Upload, part_bytes},
    wait_for_pending_writes,
};
use crate::{
    pipe::{CHUNK_BYTES, PipeReader, PipeWriter, joined},
    settings::Settings,
};

/// Validity of a signed URL, which is used at once.
const SIGNED_FOR: Duration = Duration::from_secs(120);
/// How long to repeat requests to a store that does not answer. After that the Job starts another
/// pod.
const RETRY_TIMEOUT: Duration = Duration::from_secs(180);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// More than fit into [`RETRY_TIMEOUT`], so that only the time limits retries.
const RETRIES_MAX: usize = 1000;
/// Limit for the first request, so that a wrong endpoint is reported soon.
const FIRST_ANSWER: Duration = Duration::from_secs(30);

/// Error codes for which a retry cannot help (Amazon S3 API Reference, *Error Responses*).
const REFUSALS: [&str; 7] = [
    "AccessDenied",
    "AllAccessDisabled",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
];

/// A prefix in a bucket.
#[derive(Clone)]
pub struct Bucket {
    store: Arc<AmazonS3>,
    bucket: String,
    prefix: Path,
    /// For requests that object_store has no call for.
    http: HttpClient,
    pending_writes: PendingWrites,
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.prefix)
    }
}

impl Bucket {
    pub(super) fn new(bucket: &str, prefix: &str, settings: &Settings) -> Result<Self> {
        // The CA is an optional key of the Secret.
        let ca = settings.s3_ca_file.as_deref().filter(|file| file.exists());
        let http = Http::trusting(ca)?;
        let plain = settings
            .s3_endpoint
            .as_deref()
            .is_some_and(|endpoint| endpoint.starts_with("http://"));
        // Without keys, use the identity that AWS gives a ServiceAccount in environment variables.
        let mut builder = match (&settings.s3_access_key_file, &settings.s3_secret_key_file) {
            (Some(id), Some(secret)) => AmazonS3Builder::new()
                .with_access_key_id(read_secret(id)?.expose_secret())
                .with_secret_access_key(read_secret(secret)?.expose_secret()),
            (None, None) => AmazonS3Builder::from_env(),
            _ => {
                return Err(Error::config(
                    "only one of S3_ACCESS_KEY_FILE and S3_SECRET_KEY_FILE is set",
                ));
            }
        };
        if let Some(endpoint) = &settings.s3_endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let retry = RetryConfig {
            max_retries: RETRIES_MAX,
            retry_timeout: RETRY_TIMEOUT,
            backoff: BackoffConfig {
                max_backoff: BACKOFF_MAX,
                ..BackoffConfig::default()
            },
        };
        let store = builder
            .with_bucket_name(bucket)
            .with_region(&settings.s3_region)
            .with_virtual_hosted_style_request(!settings.s3_path_style)
            .with_allow_http(plain)
            .with_http_connector(http.clone())
            .with_crypto_provider(Arc::new(OpenSsl))
            .with_retry(retry)
            .build()
            .map_err(|error| invalid_settings(error.into()))?;
        Ok(Self {
            store: Arc::new(store),
            bucket: bucket.to_owned(),
            prefix: Path::from(format!("{prefix}/{}", settings.backup_name)),
            http: HttpClient::new(http),
            pending_writes: Arc::default(),
        })
    }

    fn path(&self, name: &str) -> Path {
        self.prefix.clone().join(name)
    }

    /// Classifies an error of the store. Callers have handled an object that is not found, so here
    /// that means a missing bucket, or an upload that was aborted.
    fn failed(&self, error: object_store::Error) -> Error {
        let text = error.to_string();
        let answer = code_and_message(&text);
        let has_code = |codes: &[&str]| {
            answer.as_deref().is_some_and(|answer| {
                codes
                    .iter()
                    .any(|code| answer.starts_with(&format!("{code}:")))
            })
        };
        let refused = matches!(
            error,
            object_store::Error::PermissionDenied { .. }
                | object_store::Error::Unauthenticated { .. }
        );
        let with_cause =
            |error: Error| error.caused_by(answer.clone().unwrap_or_else(|| text.clone()));
        if refused || has_code(&REFUSALS) {
            return with_cause(Error::config(format!(
                "the bucket {} denies access",
                self.bucket
            )))
            .hint(
                "correct the keys in the Secret zalando-backup-s3, or their permissions: list, \
                 get, put and delete below the prefix",
            );
        }
        let not_found = matches!(error, object_store::Error::NotFound { .. });
        if has_code(&["NoSuchBucket"]) || not_found && !has_code(&["NoSuchUpload"]) {
            return with_cause(Error::config(format!(
                "the bucket {} does not exist",
                self.bucket
            )))
            .hint("create the bucket, or correct BACKUP_TO, S3_ENDPOINT and S3_PATH_STYLE");
        }
        with_cause(Error::transient(format!("the bucket {}", self.bucket)))
    }

    pub(super) async fn entries(&self) -> Result<Vec<Entry>> {
        let list = timeout(
            FIRST_ANSWER,
            self.store.list(Some(&self.prefix)).try_collect::<Vec<_>>(),
        )
        .await;
        let list = list.map_err(|_| {
            Error::transient(format!(
                "the bucket {} does not answer within {} s",
                self.bucket,
                FIRST_ANSWER.as_secs()
            ))
            .hint("check that S3_ENDPOINT is correct and reachable from this pod")
        })?;
        let relative = |path: &Path| {
            path.prefix_match(&self.prefix).map(|parts| {
                parts
                    .map(|part| part.as_ref().to_owned())
                    .collect::<Vec<_>>()
                    .join("/")
            })
        };
        let list = list.map_err(|error| self.failed(error))?;
        let entry = |object: object_store::ObjectMeta| {
            Some(Entry {
                name: relative(&object.location)?,
                bytes: object.size,
            })
        };
        Ok(list.into_iter().filter_map(entry).collect())
    }

    pub(super) async fn read_small(&self, name: &str) -> Result<Option<Bytes>> {
        match self.store.get(&self.path(name)).await {
            Ok(object) => Ok(Some(
                object.bytes().await.map_err(|error| self.failed(error))?,
            )),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    pub(super) async fn prepare(&self) -> Result<()> {
        let write_marker = async || {
            self.write(UNFINISHED, Bytes::from_static(UNFINISHED_TEXT.as_bytes()))
                .await
        };
        write_marker().await?;
        // Also check that the key may delete.
        self.remove(UNFINISHED).await?;
        write_marker().await
    }

    async fn remove(&self, name: &str) -> Result<()> {
        let removed = self.store.delete(&self.path(name)).await;
        removed
            .map_err(|error| self.failed(error))
            .context(format!("removing {self}/{name}"))
    }

    pub(super) async fn store(
        &self,
        name: &str,
        reader: PipeReader,
        bytes: u64,
    ) -> Result<StoredFile> {
        self.receive(name, reader, bytes)
            .await
            .context(format!("writing {self}/{name}"))
    }

    async fn receive(&self, name: &str, mut reader: PipeReader, bytes: u64) -> Result<StoredFile> {
        let limit = part_bytes(bytes);
        let mut part = PartBuffer::default();
        let (mut upload, mut crc, mut total) = (None, 0, 0);
        while let Some(chunk) = reader.next().await? {
            crc = crc32c_append(crc, &chunk);
            total += chunk.len() as u64;
            if let Some(full) = part.push(chunk, limit) {
                let upload = match &mut upload {
                    Some(upload) => upload,
                    none => none.insert(self.begin(name, limit).await?),
                };
                upload.put(full, |error| self.failed(error)).await?;
            }
        }
        match upload {
            None => self.put(name, part.take()).await?,
            Some(upload) => {
                upload
                    .complete(part.take(), |error| self.failed(error))
                    .await?
            }
        }
        Ok(StoredFile::new(name, total, crc))
    }

    async fn begin(&self, name: &str, part_bytes: u64) -> Result<Upload> {
        let path = self.path(name);
        let id = self
            .store
            .create_multipart(&path)
            .await
            .map_err(|error| self.failed(error))?;
        Ok(Upload::new(
            Arc::clone(&self.store),
            path,
            id,
            Arc::clone(&self.pending_writes),
            part_bytes,
        ))
    }

    /// Runs in a task, so that a caller that is cancelled can still wait until the object has
    /// arrived before it removes anything.
    async fn put(&self, name: &str, content: PutPayload) -> Result<()> {
        let (bucket, path) = (self.clone(), self.path(name));
        let pending = Arc::clone(&self.pending_writes).read_owned().await;
        let put = tokio::spawn(async move {
            let _pending = pending;
            let put = bucket.store.put(&path, content).await;
            put.map(drop).map_err(|error| bucket.failed(error))
        });
        joined(put).await
    }

    async fn write(&self, name: &str, content: Bytes) -> Result<()> {
        self.put(name, content.into())
            .await
            .context(format!("writing {self}/{name}"))
    }

    pub(super) async fn finish(&self, complete: Bytes) -> Result<()> {
        self.write(COMPLETE, complete).await?;
        // Next to complete.json the marker has no effect.
        let _ = self.remove(UNFINISHED).await;
        Ok(())
    }

    pub(super) async fn read(&self, name: &str, writer: PipeWriter) -> Result<()> {
        let context = format!("reading {self}/{name}");
        let object = match self.store.get(&self.path(name)).await {
            Err(object_store::Error::NotFound { .. }) => return Err(file_vanished(name)),
            other => other
                .map_err(|error| self.failed(error))
                .context(&context)?,
        };
        let mut stream = object.into_stream();
        while let Some(chunk) = stream.next().await {
            let mut chunk = chunk
                .map_err(|error| self.failed(error))
                .context(&context)?;
            while !chunk.is_empty() {
                let part = chunk.split_to(chunk.len().min(CHUNK_BYTES));
                // The reader that has stopped returns the error.
                if writer.send(part).await.is_err() {
                    return Ok(());
                }
            }
        }
        let _ = writer.end().await;
        Ok(())
    }

    pub(super) async fn remove_unfinished(&self) -> Result<()> {
        let _no_writes = wait_for_pending_writes(&self.pending_writes).await;
        let names = unfinished_files(self.entries().await?, self)?;
        self.abort_uploads().await?;
        for name in names {
            self.remove(&name).await?;
        }
        Ok(())
    }

    /// Aborts every upload to a name of a backup's file. After a successful backup there is one
    /// only if the store began an upload and its answer came too late.
    pub(super) async fn abort_uploads(&self) -> Result<()> {
        for name in NAMES {
            let path = self.path(name);
            for id in self
                .uploads(&path)
                .await
                .context(format!("listing uploads to {self}/{name}"))?
            {
                match self.store.abort_multipart(&path, &id).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => {
                        return Err(self.failed(error))
                            .context(format!("aborting an upload to {self}/{name}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// IDs of the uploads to a name. Requested by the full name, because MinIO does not list
    /// uploads by a shorter prefix.
    async fn uploads(&self, path: &Path) -> Result<Vec<String>> {
        let query = [("uploads", ""), ("prefix", path.as_ref())];
        let options = SignedUrlOptions::default().with_query(query);
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::transient(format!("the bucket {}", self.bucket)).caused_by(error)
        };
        let url = self
            .store
            .signed_url_opts(Method::GET, &Path::default(), SIGNED_FOR, &options)
            .await;
        let url = url.map_err(|error| self.failed(error))?;
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = url
            .as_str()
            .parse()
            .map_err(|_| failed("the signed URL is invalid".into()))?;
        let response = self
            .http
            .execute(request)
            .await
            .map_err(|error| failed(error.into()))?;
        let status = response.status();
        let body = response
            .into_body()
            .bytes()
            .await
            .map_err(|error| failed(error.into()))?;
        let text = String::from_utf8_lossy(&body);
        if !status.is_success() {
            let answer = code_and_message(&text).unwrap_or_else(|| status.to_string());
            if status.is_server_error() || status.as_u16() == 429 {
                return Err(failed(answer.into()));
            }
            return Err(Error::config(format!(
                "the bucket {} denies access: {answer}",
                self.bucket
            ))
            .hint("the key also needs permission to list and abort multipart uploads"));
        }
        Ok(text
            .split("<Upload>")
            .skip(1)
            .filter_map(|upload| field(upload, "UploadId"))
            .map(str::to_owned)
            .collect())
    }
}

/// Content of an XML element that holds only text.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>"))
        .map(|(value, _)| value)
}

/// Code and message of the XML document with which the store reports an error.
fn code_and_message(text: &str) -> Option<String> {
    Some(format!(
        "{}: {}",
        field(text, "Code")?,
        field(text, "Message").unwrap_or_default()
    ))
}

fn invalid_settings(error: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::config("the bucket's settings are invalid")
        .caused_by(error)
        .hint("correct BACKUP_TO and the S3_ settings in the ConfigMap replica-migration")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_message_are_read_from_the_stores_error() {
        let text = "Generic S3 error: status code: 404 Not Found: \
            <?xml?>\n<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not \
            exist.</Message></Error>";
        assert_eq!(
            code_and_message(text).unwrap(),
            "NoSuchBucket: The specified bucket does not exist."
        );
        assert_eq!(
            code_and_message("Generic S3 error: connection refused"),
            None
        );
    }
}
