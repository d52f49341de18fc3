//! The log of the operator and of the instance's pods, in a file of the instance.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};

/// A log file; a clone is another handle.
#[derive(Clone, Debug)]
pub struct Log {
    path: PathBuf,
    file: Arc<Mutex<File>>,
}

impl Log {
    /// Opens the file for appending.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: PathBuf) -> Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        Ok(Self {
            path,
            file: Arc::new(Mutex::new(file)),
        })
    }

    /// Appends a line with the time.
    pub fn write(&self, line: &str) {
        let now = jiff::Timestamp::now();
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // A failure to log must not end the work that is logged.
        let _ = writeln!(file, "{now:.3} {line}");
    }

    /// The whole log.
    pub fn text(&self) -> String {
        std::fs::read_to_string(&self.path).unwrap_or_default()
    }
}
