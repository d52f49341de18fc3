//! What a person sees: a log line per decision, an Event on the target Cluster, and one last word
//! for `kubectl describe`.

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
/// The kubelet keeps this much of a termination message (kubernetes.io, *Determine the Reason for
/// Pod Failure*).
const LAST_WORD_BYTES_MAX: usize = 4096;
/// How long the end of a program waits for its Events.
const EVENTS_FLUSH: Duration = Duration::from_secs(2);

enum Queued {
    Event(Box<Event>),
    Flush(tokio::sync::oneshot::Sender<()>),
}

/// Says what happens, in the order in which it happens. Events go out beside the work, never in its
/// way.
pub struct Reporter {
    started: Instant,
    json: bool,
    program: &'static str,
    queue: Option<mpsc::UnboundedSender<Queued>>,
    /// A dry run changes nothing, not even the list of Events.
    events_off: AtomicBool,
    facts: Mutex<Map<String, Value>>,
    last_waiting: Mutex<Option<String>>,
}

impl Reporter {
    /// A reporter that writes to standard output only; `json` is the setting LOG_FORMAT=json.
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

    /// From now on steps also become Events on `subject`, posted by a task that ends with the
    /// reporter.
    pub fn events_on(&mut self, client: kube::Client, subject: ObjectReference) -> JoinHandle<()> {
        let (sender, mut queue) = mpsc::unbounded_channel();
        self.queue = Some(sender);
        let program = self.program;
        tokio::spawn(async move {
            let mut said = false;
            while let Some(item) = queue.recv().await {
                match item {
                    Queued::Event(event) => {
                        // A recorder that remembers would count a second Event of the same reason
                        // at the first one, and lose its note.
                        let recorder = Recorder::new(client.clone(), program.into());
                        if let Err(error) = recorder.publish(&event, &subject).await
                            && !std::mem::replace(&mut said, true)
                        {
                            // Said once: an Event is a courtesy, the log is the record.
                            log::warn!(
                                "an event cannot be posted, the log goes on: {}",
                                Error::from(error)
                            );
                        }
                    }
                    Queued::Flush(done) => drop(done.send(())),
                }
            }
        })
    }

    /// From now on the log is all, as in a dry run.
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
                json!({"time": now.to_string(), "elapsed_ms": elapsed.as_millis() as u64, "program": self.program, "kind": mark_word(mark), "message": text})
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
        // Nobody reads the log any more; the work goes on all the same.
        let _ = written.and_then(|()| out.flush());
    }

    fn event(&self, type_: EventType, reason: &str, note: &str) {
        if let Some(queue) = self
            .queue
            .as_ref()
            .filter(|_| !self.events_off.load(Ordering::Relaxed))
        {
            let note = cut(note, NOTE_BYTES_MAX);
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

    /// A decision carried out: a line and an Event. `reason` is the Event's reason in
    /// UpperCamelCase.
    pub fn step(&self, reason: &str, text: impl AsRef<str>) {
        self.line("✓", text.as_ref());
        self.event(EventType::Normal, reason, text.as_ref());
    }

    /// About to do something that takes a while or matters: a line only.
    pub fn info(&self, text: impl AsRef<str>) {
        self.line("·", text.as_ref());
    }

    /// Something that the operator should know and may act on.
    pub fn warning(&self, reason: &str, text: impl AsRef<str>) {
        self.line("!", text.as_ref());
        self.event(EventType::Warning, reason, text.as_ref());
    }

    /// What is being waited for; said again only when it changes.
    pub fn waiting(&self, text: impl AsRef<str>) {
        let mut last = self.last_waiting.lock().expect("no panic while holding it");
        if last.as_deref() != Some(text.as_ref()) {
            self.line("…", text.as_ref());
            *last = Some(text.as_ref().to_owned());
        }
    }

    /// A number that moves: always a line; the caller keeps it to one every ten seconds.
    pub fn progress(&self, text: impl AsRef<str>) {
        self.line("…", text.as_ref());
    }

    /// A fact for the termination message, such as the downtime in ms.
    pub fn fact(&self, key: &str, value: impl Into<Value>) {
        self.facts
            .lock()
            .expect("no panic while holding it")
            .insert(key.into(), value.into());
    }

    /// The last line, and the termination message: verdict first, then the facts.
    pub async fn close(&self, outcome: &Result<()>, termination_log: &std::path::Path) {
        let mut last = Map::new();
        match outcome {
            Ok(()) => {
                last.insert("verdict".into(), "done".into());
                self.line("✓", "done");
            }
            Err(error) => {
                last.insert("verdict".into(), error.kind().word().into());
                last.insert("exit".into(), error.kind().code().into());
                last.insert("error".into(), error.to_string().into());
                let mut text = error.to_string();
                if let Some(hint) = error.next_step() {
                    last.insert("next".into(), hint.into());
                    text = format!("{text} → {hint}");
                }
                self.line("✗", &text);
                self.event(EventType::Warning, "Failed", &text);
            }
        }
        last.extend(
            self.facts
                .lock()
                .expect("no panic while holding it")
                .clone(),
        );
        if termination_log.exists() {
            let _ = std::fs::write(
                termination_log,
                cut(&Value::Object(last).to_string(), LAST_WORD_BYTES_MAX),
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
    /// For a person who follows it: elapsed time first.
    #[default]
    Text,
    /// A JSON object a line, for machines.
    Json,
}

fn mark_word(mark: &str) -> &'static str {
    match mark {
        "✓" => "step",
        "!" => "warning",
        "…" => "waiting",
        "✗" => "failed",
        _ => "info",
    }
}

fn cut(text: &str, bytes_max: usize) -> String {
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
    fn a_long_note_is_cut_at_a_character_and_stays_within_the_limit() {
        let note = cut(&"ä".repeat(1000), NOTE_BYTES_MAX);
        assert!(note.len() <= NOTE_BYTES_MAX && note.ends_with('…'));
    }

    #[tokio::test]
    async fn the_last_word_names_verdict_and_next_step() {
        let file = std::env::temp_dir().join(format!("last-word-{}", std::process::id()));
        std::fs::write(&file, "").unwrap();
        let reporter = Reporter::new("test", Format::Text);
        reporter.fact("downtime_ms", 12);
        reporter
            .close(&Err(Error::refused("no").hint("do this")), &file)
            .await;
        let said: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(
            said,
            json!({"verdict": "refused", "exit": 3, "error": "no", "next": "do this", "downtime_ms": 12})
        );
        std::fs::remove_file(&file).unwrap();
    }
}
