//! Measures memory and CPU time of a running process from outside.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

/// Both values only grow, so a late sample loses only the last moments.
const INTERVAL: Duration = Duration::from_millis(10);
/// Clock tick on all architectures of Linux (proc(5), stat; sysconf(_SC_CLK_TCK)).
const TICK: Duration = Duration::from_millis(10);

/// Resources that a process has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Peak resident memory.
    pub memory_peak_bytes: u64,
    /// CPU time of all threads.
    pub processor: Duration,
}

/// Samples a process until it has ended.
#[derive(Debug)]
pub struct CostMonitor(Arc<Mutex<Cost>>);

impl CostMonitor {
    /// Starts sampling.
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

    /// The resources used so far; the last 10 ms may be missing.
    pub fn cost(&self) -> Cost {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// None once the process has ended (proc(5), status: VmHWM; stat: utime and stime).
fn sample(pid: u32) -> Option<Cost> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = peak.trim().trim_end_matches("kB").trim().parse().ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The process name before it may contain any character, including parentheses.
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
