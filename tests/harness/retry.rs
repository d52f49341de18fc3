//! Retries requests while the API server is unreachable, which tests cause on purpose. The imitated
//! operators and kubelets use it for their writes.

use std::time::Duration;

use tokio::time::sleep;

const AGAIN: Duration = Duration::from_millis(200);

/// Repeats a request until the API server answers; a refusal is an answer.
///
/// # Errors
/// The API server refused the request.
pub(crate) async fn until_answered<T, F>(mut write: impl FnMut() -> F) -> kube::Result<T>
where
    F: Future<Output = kube::Result<T>>,
{
    loop {
        match write().await {
            Err(error) if !is_answer(&error) => sleep(AGAIN).await,
            answered => return answered,
        }
    }
}

/// True for an error about the request itself, false for one about reaching the server or its
/// store.
fn is_answer(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code < 500)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use kube::core::Status;

    use super::*;

    fn error(code: u16) -> kube::Error {
        kube::Error::Api(Box::new(Status {
            code,
            ..Status::failure("", "")
        }))
    }

    #[tokio::test]
    async fn an_unreachable_server_is_retried_and_a_refusal_is_final() {
        let tries = Cell::new(0);
        let answers = || {
            tries.set(tries.get() + 1);
            let answer = match tries.get() {
                1 => Err(error(503)),
                2 => Err(kube::Error::LinesCodecMaxLineLengthExceeded),
                _ => Ok(7),
            };
            async move { answer }
        };
        assert_eq!(until_answered(answers).await.unwrap(), 7);
        assert_eq!(tries.get(), 3);
        let refused = until_answered(|| async { Err::<(), _>(error(409)) }).await;
        assert!(matches!(refused, Err(kube::Error::Api(status)) if status.code == 409));
    }
}
