//! What a process costs, seen from outside while it runs.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

/// Both marks only rise, so a late look loses nothing but the last moments of a program.
const INTERVAL: Duration = Duration::from_millis(10);
/// Of all Linux's architectures (proc(5), stat: clock ticks of sysconf(_SC_CLK_TCK)).
const TICK: Duration = Duration::from_millis(10);

/// What a process has cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// The most memory that it had resident.
    pub memory_peak_bytes: u64,
    /// What processors have worked for it, with all its threads.
    pub processor: Duration,
}

/// Looks at a process until it has ended.
#[derive(Debug)]
pub struct CostMonitor(Arc<Mutex<Cost>>);

impl CostMonitor {
    /// Begins to look.
    pub fn process(pid: u32) -> Self {
        let cost = Arc::new(Mutex::new(Cost::default()));
        let latest = Arc::clone(&cost);
        thread::spawn(move || {
            while let Some(now) = sample(pid) {
                *latest.lock().unwrap_or_else(PoisonError::into_inner) = now;
                thread::sleep(INTERVAL);
            }
        });
        Self(cost)
    }

    /// What it has cost so far, give or take its last 10 ms.
    pub fn cost(&self) -> Cost {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// None when it has ended: then it has no memory any more (proc(5), status: VmHWM; stat: utime and
/// stime).
fn sample(pid: u32) -> Option<Cost> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = peak.trim().trim_end_matches("kB").trim().parse().ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything, also a bracket.
    let (_, numbers) = stat.rsplit_once(')')?;
    let ticks = numbers
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse::<u32>);
    Some(Cost {
        memory_peak_bytes: kilobytes * 1024,
        processor: TICK * ticks.sum::<Result<u32, _>>().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_process_has_memory_and_works() {
        let before = sample(std::process::id()).unwrap();
        assert!(before.memory_peak_bytes > 1_000_000);
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(100) {
            std::hint::spin_loop();
        }
        let after = sample(std::process::id()).unwrap();
        assert!(after.processor > before.processor, "{before:?} {after:?}");
        assert_eq!(sample(0), None);
    }
}
