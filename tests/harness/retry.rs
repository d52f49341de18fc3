//! The API server may be away in the middle of a test; what stands in for operators and kubelets
//! then writes again.

use std::time::Duration;

use tokio::time::sleep;

const AGAIN: Duration = Duration::from_millis(200);

/// Repeats a write until the API server has answered it; a refusal is an answer.
///
/// # Errors
/// The refusal.
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

/// True for an error that says something about the request, false for one about the way to the
/// server or its store.
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
    async fn a_server_that_is_away_is_asked_again_and_a_refusal_is_final() {
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
