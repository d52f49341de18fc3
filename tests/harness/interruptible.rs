//! Runs work that a user may interrupt with Ctrl-C.

use anyhow::Result;

/// Runs `work` to its end, or until Ctrl-C.
///
/// # Errors
/// The error of `work`, or that it was interrupted.
pub fn interruptible<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        tokio::select! {
            outcome = work => outcome,
            // Dropping the values of `work` ends everything that it started.
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted: everything that was \
                started is being ended")),
        }
    })
}
