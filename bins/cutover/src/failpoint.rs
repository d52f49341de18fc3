//! Moments at which a test may inject a fault: `FAILPOINT="before Block"` makes a program wait
//! there, the first time, until it is sent SIGUSR1; `FAILPOINT=each` makes it wait at every moment,
//! and `FAILPOINT=*` makes it name each one that it passes. Only in builds with debug assertions;
//! released programs do not contain it.

use job::report::Reporter;

/// A moment before or after an effect, such as `before Block` or `after record Promotion`.
#[cfg(debug_assertions)]
pub async fn reached(moment: &str, report: &Reporter) {
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::signal::unix::{SignalKind, signal};
    static WAITED: AtomicBool = AtomicBool::new(false);
    let wanted = std::env::var("FAILPOINT").unwrap_or_default();
    if wanted == "*" {
        report.info(format!("failpoint {moment}"));
    }
    let here = wanted == "each" || wanted == moment && !WAITED.swap(true, Ordering::Relaxed);
    if here && let Ok(mut go_on) = signal(SignalKind::user_defined1()) {
        report.info(format!("failpoint {moment}: waiting"));
        go_on.recv().await;
    }
}

/// Does nothing in a release build.
#[cfg(not(debug_assertions))]
pub async fn reached(_moment: &str, _report: &Reporter) {}
