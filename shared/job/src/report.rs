//! What a program reports: a log line per decision, Events on the target Cluster, and the
//! termination message, which `kubectl describe pod` shows.

use std::{
    io::Write as _,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder};
use serde_json::{Map, Value, json};
use tokio::{sync::mpsc, task::JoinHandle};

use crate::error::{Error, Result};

/// Longest note the API accepts in an Event (events.k8s.io/v1: "Maximal length of the note is
/// 1kB").
const NOTE_BYTES_MAX: usize = 1024;
/// Longest termination message that the kubelet keeps (kubernetes.io, *Determine the Reason for Pod
/// Failure*).
const TERMINATION_MESSAGE_BYTES_MAX: usize = 4096;
/// How long a program that ends waits until its Events are posted.
const EVENTS_FLUSH: Duration = Duration::from_secs(2);

enum Queued {
    Event(Box<Event>),
    Flush(tokio::sync::oneshot::Sender<()>),
}

/// Writes the log and posts Events. Events are posted in the background, so that the work never
/// waits for them.
pub struct Reporter {
    started: Instant,
    json: bool,
    program: &'static str,
    queue: Option<mpsc::UnboundedSender<Queued>>,
    /// Set by a dry run, which does not even create Events.
    events_off: AtomicBool,
    facts: Mutex<Map<String, Value>>,
    last_waiting: Mutex<Option<String>>,
}

impl Reporter {
    /// Returns a reporter that only writes the log, to standard output.
    pub fn new(program: &'static str, format: Format) -> Self {
        Self {
            started: Instant::now(),
            json: format == Format::Json,
            program,
            queue: None,
            events_off: AtomicBool::new(false),
            facts: Mutex::default(),
            last_waiting: Mutex::default(),
        }
    }

    /// Turns Events on: from now on steps and warnings are also posted on `subject`, by a task that
    /// ends with the reporter.
    pub fn events_on(&mut self, client: kube::Client, subject: ObjectReference) -> JoinHandle<()> {
        let (sender, mut queue) = mpsc::unbounded_channel();
        self.queue = Some(sender);
        let program = self.program;
        tokio::spawn(async move {
            let mut failure_logged = false;
            while let Some(item) = queue.recv().await {
                match item {
                    Queued::Event(event) => {
                        // One recorder for all would count a second Event of the same reason as a
                        // repetition of the first one, and lose its note.
                        let recorder = Recorder::new(client.clone(), program.into());
                        if let Err(error) = recorder.publish(&event, &subject).await
                            && !std::mem::replace(&mut failure_logged, true)
                        {
                            // Logged once: the log contains everything that Events do.
                            log::warn!(
                                "an event cannot be posted, the log continues: {}",
                                Error::from(error)
                            );
                        }
                    }
                    Queued::Flush(done) => drop(done.send(())),
                }
            }
        })
    }

    /// Turns Events off, as in a dry run.
    pub fn events_off(&self) {
        self.events_off.store(true, Ordering::Relaxed);
    }

    fn line(&self, mark: &str, text: &str) {
        let elapsed = self.started.elapsed();
        let mut out = std::io::stdout().lock();
        let written = if self.json {
            let now = jiff::Timestamp::now();
            writeln!(
                out,
                "{}",
                json!({
                    "time": now.to_string(),
                    "elapsed_ms": elapsed.as_millis() as u64,
                    "program": self.program,
                    "kind": line_kind(mark),
                    "message": text,
                })
            )
        } else {
            let seconds = elapsed.as_secs();
            writeln!(
                out,
                "{:02}:{:02}.{:03} {mark} {text}",
                seconds / 60,
                seconds % 60,
                elapsed.subsec_millis()
            )
        };
        // A closed standard output does not end the work.
        let _ = written.and_then(|()| out.flush());
    }

    fn event(&self, type_: EventType, reason: &str, note: &str) {
        if let Some(queue) = self
            .queue
            .as_ref()
            .filter(|_| !self.events_off.load(Ordering::Relaxed))
        {
            let note = truncated(note, NOTE_BYTES_MAX);
            let event = Event {
                type_,
                reason: reason.into(),
                note: Some(note),
                action: self.program.into(),
                secondary: None,
            };
            let _ = queue.send(Queued::Event(Box::new(event)));
        }
    }

    /// Reports a step that is done, by a log line and an Event. `reason` is the Event's reason, in
    /// UpperCamelCase.
    pub fn step(&self, reason: &str, text: impl AsRef<str>) {
        self.line("✓", text.as_ref());
        self.event(EventType::Normal, reason, text.as_ref());
    }

    /// Logs what is about to be done, or a detail.
    pub fn info(&self, text: impl AsRef<str>) {
        self.line("·", text.as_ref());
    }

    /// Warns of something that the operator may act on, by a log line and an Event.
    pub fn warning(&self, reason: &str, text: impl AsRef<str>) {
        self.line("!", text.as_ref());
        self.event(EventType::Warning, reason, text.as_ref());
    }

    /// Logs what is being waited for; repeated only when it changes.
    pub fn waiting(&self, text: impl AsRef<str>) {
        let mut last = self.last_waiting.lock().expect("no panic while holding it");
        if last.as_deref() != Some(text.as_ref()) {
            self.line("…", text.as_ref());
            *last = Some(text.as_ref().to_owned());
        }
    }

    /// Logs the progress of a long operation; the caller limits it to a line every ten seconds.
    pub fn progress(&self, text: impl AsRef<str>) {
        self.line("…", text.as_ref());
    }

    /// Adds a fact to the termination message, such as the downtime in ms.
    pub fn fact(&self, key: &str, value: impl Into<Value>) {
        self.facts
            .lock()
            .expect("no panic while holding it")
            .insert(key.into(), value.into());
    }

    /// Writes the last log line, the Event of a failure, and the termination message: a JSON object
    /// with the verdict, then the facts.
    pub async fn close(&self, outcome: &Result<()>, termination_log: &std::path::Path) {
        let mut message = Map::new();
        match outcome {
            Ok(()) => {
                message.insert("verdict".into(), "done".into());
                self.line("✓", "done");
            }
            Err(error) => {
                message.insert("verdict".into(), error.kind().word().into());
                message.insert("exit".into(), error.kind().code().into());
                message.insert("error".into(), error.to_string().into());
                let mut text = error.to_string();
                if let Some(hint) = error.next_step() {
                    message.insert("next".into(), hint.into());
                    text = format!("{text} → {hint}");
                }
                self.line("✗", &text);
                self.event(EventType::Warning, "Failed", &text);
            }
        }
        message.extend(
            self.facts
                .lock()
                .expect("no panic while holding it")
                .clone(),
        );
        if termination_log.exists() {
            let _ = std::fs::write(
                termination_log,
                truncated(
                    &Value::Object(message).to_string(),
                    TERMINATION_MESSAGE_BYTES_MAX,
                ),
            );
        }
        self.flush().await;
    }

    async fn flush(&self) {
        if let Some(queue) = &self.queue {
            let (sender, done) = tokio::sync::oneshot::channel();
            if queue.send(Queued::Flush(sender)).is_ok() {
                let _ = tokio::time::timeout(EVENTS_FLUSH, done).await;
            }
        }
    }
}

/// The setting LOG_FORMAT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A line with the elapsed time, a mark and the text.
    #[default]
    Text,
    /// A JSON object per line.
    Json,
}

fn line_kind(mark: &str) -> &'static str {
    match mark {
        "✓" => "step",
        "!" => "warning",
        "…" => "waiting",
        "✗" => "failed",
        _ => "info",
    }
}

fn truncated(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let ellipsis = "…";
    let mut end = bytes_max - ellipsis.len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{ellipsis}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_truncated_between_characters_and_stays_within_the_limit() {
        let note = truncated(&"ä".repeat(1000), NOTE_BYTES_MAX);
        assert!(note.len() <= NOTE_BYTES_MAX && note.ends_with('…'));
    }

    #[tokio::test]
    async fn the_termination_message_has_verdict_and_next_step() {
        let file = std::env::temp_dir().join(format!("termination-message-{}", std::process::id()));
        std::fs::write(&file, "").unwrap();
        let reporter = Reporter::new("test", Format::Text);
        reporter.fact("downtime_ms", 12);
        reporter
            .close(&Err(Error::refused("no").hint("do this")), &file)
            .await;
        let written: Value =
            serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(
            written,
            json!({
                "verdict": "refused", "exit": 3, "error": "no", "next": "do this",
                "downtime_ms": 12,
            })
        );
        std::fs::remove_file(&file).unwrap();
    }
}
