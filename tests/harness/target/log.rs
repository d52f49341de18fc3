//! What the operator and the instance's pods would log: kept in a file of the instance, for a test
//! or a person to read.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};

/// A log file; cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Log {
    path: PathBuf,
    file: Arc<Mutex<File>>,
}

impl Log {
    /// Opens the file, keeping what is in it.
    ///
    /// # Errors
    /// It cannot be opened.
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

    /// Adds a line with the time.
    pub fn write(&self, line: &str) {
        let now = jiff::Timestamp::now();
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // A log that cannot be written must not end what it tells of.
        let _ = writeln!(file, "{now:.3} {line}");
    }

    /// Everything that was written.
    pub fn text(&self) -> String {
        std::fs::read_to_string(&self.path).unwrap_or_default()
    }
}
