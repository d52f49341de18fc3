//! What a person starts on this machine, and may end with Ctrl-C.

use anyhow::Result;

/// Runs it to its end, or until Ctrl-C.
///
/// # Errors
/// Its own, or that it was interrupted.
pub fn interruptible<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        tokio::select! {
            outcome = work => outcome,
            // Everything that was started ends with the values that are dropped here.
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted: everything that was \
                started is being ended")),
        }
    })
}
