//! A prefix in a bucket of an S3-compatible store.
//!
//! A large file is a multipart upload: the bucket shows nothing of it until it is completed. What
//! an upload has received is kept, and paid for, until it is completed or aborted, and nobody sees
//! it; so what a killed run has begun is looked for, and aborted.

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
use tokio::time::timeout;

use super::{
    COMPLETE, Entry, NAMES, OnTheirWay, Stored, UNFINISHED, UNFINISHED_TEXT,
    crypto::OpenSsl,
    http::Http,
    none_on_its_way, removable,
    upload::{Part, Upload, part_bytes},
    vanished,
};
use crate::{
    flow::{CHUNK_BYTES, Drain, Feed, joined},
    settings::Settings,
};

/// A signed URL is used at once.
const SIGNED_FOR: Duration = Duration::from_secs(120);
/// A store that is away for longer is not worth more waiting; the pod is started again.
const RETRY_TIMEOUT: Duration = Duration::from_secs(180);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// More than fit into that time.
const RETRIES_MAX: usize = 1000;
/// A person who has given a wrong endpoint need not wait for all of that.
const FIRST_ANSWER: Duration = Duration::from_secs(30);

/// Answers that no other try changes (Amazon S3 API Reference, *Error Responses*).
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
    /// For what object_store has no call for.
    http: HttpClient,
    on_their_way: OnTheirWay,
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.prefix)
    }
}

impl Bucket {
    pub(super) fn new(bucket: &str, prefix: &str, settings: &Settings) -> Result<Self> {
        // The CA is one of the Secret's keys, which may be missing.
        let ca = settings.s3_ca_file.as_deref().filter(|file| file.exists());
        let http = Http::trusting(ca)?;
        let plain = settings
            .s3_endpoint
            .as_deref()
            .is_some_and(|endpoint| endpoint.starts_with("http://"));
        // Without keys: the pod's own identity, as AWS gives it to a ServiceAccount in variables.
        let mut builder = match (&settings.s3_access_key_file, &settings.s3_secret_key_file) {
            (Some(id), Some(secret)) => AmazonS3Builder::new()
                .with_access_key_id(read_secret(id)?)
                .with_secret_access_key(read_secret(secret)?),
            (None, None) => AmazonS3Builder::from_env(),
            _ => {
                return Err(Error::config(
                    "S3_ACCESS_KEY_FILE and S3_SECRET_KEY_FILE belong together, and one is missing",
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
            .map_err(|error| unusable(error.into()))?;
        Ok(Self {
            store: Arc::new(store),
            bucket: bucket.to_owned(),
            prefix: Path::from(format!("{prefix}/{}", settings.backup_name)),
            http: HttpClient::new(http),
            on_their_way: Arc::default(),
        })
    }

    fn path(&self, name: &str) -> Path {
        self.prefix.clone().join(name)
    }

    fn failed(&self, error: object_store::Error) -> Error {
        let text = error.to_string();
        let said = answer(&text);
        let is = |codes: &[&str]| {
            said.as_deref().is_some_and(|said| {
                codes
                    .iter()
                    .any(|code| said.starts_with(&format!("{code}:")))
            })
        };
        let refused = matches!(
            error,
            object_store::Error::PermissionDenied { .. }
                | object_store::Error::Unauthenticated { .. }
        );
        let failed = |error: Error| error.caused_by(said.clone().unwrap_or_else(|| text.clone()));
        if refused || is(&REFUSALS) {
            return failed(Error::config(format!("the bucket {} refuses", self.bucket))).hint(
                "correct the keys in the Secret zalando-backup-s3, or what they allow: list, \
                    get, put and delete below the prefix",
            );
        }
        // Of an object that is not there the callers know what it means; here it is the bucket, or
        // an upload that somebody has aborted.
        if is(&["NoSuchBucket"])
            || matches!(error, object_store::Error::NotFound { .. }) && !is(&["NoSuchUpload"])
        {
            return failed(Error::config(format!("there is no bucket {}", self.bucket)))
                .hint("make the bucket, or correct BACKUP_TO, S3_ENDPOINT and S3_PATH_STYLE");
        }
        failed(Error::transient(format!("the bucket {}", self.bucket)))
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
            .hint("is S3_ENDPOINT right, and reachable from here?")
        })?;
        let below = |path: &Path| {
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
                name: below(&object.location)?,
                bytes: object.size,
            })
        };
        Ok(list.into_iter().filter_map(entry).collect())
    }

    pub(super) async fn small(&self, name: &str) -> Result<Option<Bytes>> {
        match self.store.get(&self.path(name)).await {
            Ok(object) => Ok(Some(
                object.bytes().await.map_err(|error| self.failed(error))?,
            )),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    pub(super) async fn prepare(&self) -> Result<()> {
        let mark = async || {
            self.write(UNFINISHED, Bytes::from_static(UNFINISHED_TEXT.as_bytes()))
                .await
        };
        mark().await?;
        // It must be possible to remove it, too.
        self.remove(UNFINISHED).await?;
        mark().await
    }

    async fn remove(&self, name: &str) -> Result<()> {
        let removed = self.store.delete(&self.path(name)).await;
        removed
            .map_err(|error| self.failed(error))
            .context(format!("removing {self}/{name}"))
    }

    pub(super) async fn store(&self, name: &str, drain: Drain, bytes: u64) -> Result<Stored> {
        self.receive(name, drain, bytes)
            .await
            .context(format!("writing {self}/{name}"))
    }

    async fn receive(&self, name: &str, mut drain: Drain, bytes: u64) -> Result<Stored> {
        let limit = part_bytes(bytes);
        let mut part = Part::default();
        let (mut upload, mut crc, mut total) = (None, 0, 0);
        while let Some(chunk) = drain.next().await? {
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
        Ok(Stored::new(name, total, crc))
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
            Arc::clone(&self.on_their_way),
            part_bytes,
        ))
    }

    /// In a task: whoever stops waiting for it must be able to wait until it has arrived, before
    /// anything is removed.
    async fn put(&self, name: &str, content: PutPayload) -> Result<()> {
        let (bucket, path) = (self.clone(), self.path(name));
        let sending = Arc::clone(&self.on_their_way).read_owned().await;
        let put = tokio::spawn(async move {
            let _sending = sending;
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
        // Beside a finished backup it means nothing.
        let _ = self.remove(UNFINISHED).await;
        Ok(())
    }

    pub(super) async fn read(&self, name: &str, feed: Feed) -> Result<()> {
        let doing = format!("reading {self}/{name}");
        let object = match self.store.get(&self.path(name)).await {
            Err(object_store::Error::NotFound { .. }) => return Err(vanished(name)),
            other => other.map_err(|error| self.failed(error)).context(&doing)?,
        };
        let mut stream = object.into_stream();
        while let Some(chunk) = stream.next().await {
            let mut chunk = chunk.map_err(|error| self.failed(error)).context(&doing)?;
            while !chunk.is_empty() {
                let part = chunk.split_to(chunk.len().min(CHUNK_BYTES));
                // Who does not take any more knows why.
                if feed.send(part).await.is_err() {
                    return Ok(());
                }
            }
        }
        let _ = feed.end().await;
        Ok(())
    }

    pub(super) async fn clear(&self) -> Result<()> {
        let _none_on_its_way = none_on_its_way(&self.on_their_way).await;
        let names = removable(self.entries().await?, self)?;
        self.abort_all().await?;
        for name in names {
            self.remove(&name).await?;
        }
        Ok(())
    }

    /// Aborts every upload to one of our names; when all is whole only one is left whose beginning
    /// was answered too late.
    ///
    /// # Errors
    /// As of all calls.
    pub(super) async fn abort_all(&self) -> Result<()> {
        for name in NAMES {
            let path = self.path(name);
            for id in self
                .uploads(&path)
                .await
                .context(format!("looking for uploads to {self}/{name}"))?
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

    /// Ids of the uploads to a name. Asked for by the whole name, because MinIO lists by nothing
    /// less.
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
        *request.uri_mut() = url.as_str().parse().map_err(|_| failed("no url".into()))?;
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
            let said = answer(&text).unwrap_or_else(|| status.to_string());
            if status.is_server_error() || status.as_u16() == 429 {
                return Err(failed(said.into()));
            }
            return Err(
                Error::config(format!("the bucket {} refuses: {said}", self.bucket))
                    .hint("the key must also be allowed to list and to abort multipart uploads"),
            );
        }
        Ok(text
            .split("<Upload>")
            .skip(1)
            .filter_map(|upload| field(upload, "UploadId"))
            .map(str::to_owned)
            .collect())
    }
}

/// The content of an element of XML that holds nothing but text.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>"))
        .map(|(value, _)| value)
}

/// Code and message of an answer of the store, which is a document of XML with more than a person
/// wants to read.
fn answer(text: &str) -> Option<String> {
    Some(format!(
        "{}: {}",
        field(text, "Code")?,
        field(text, "Message").unwrap_or_default()
    ))
}

fn unusable(error: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::config("the settings of the bucket cannot be used")
        .caused_by(error)
        .hint("correct BACKUP_TO and the S3_ settings in the ConfigMap replica-migration")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_stores_answer_a_person_reads_code_and_message() {
        let text = "Generic S3 error: status code: 404 Not Found: \
            <?xml?>\n<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not \
            exist.</Message></Error>";
        assert_eq!(
            answer(text).unwrap(),
            "NoSuchBucket: The specified bucket does not exist."
        );
        assert_eq!(answer("Generic S3 error: connection refused"), None);
    }
}
