//! Captures the crate's `tracing` events and spans.

use std::{
    collections::BTreeMap,
    fmt::{Debug, Write},
    sync::{Arc, Mutex, MutexGuard, OnceLock},
};

use tracing::{
    Dispatch, Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
    subscriber::DefaultGuard,
};

/// The events and spans of this thread since this was created.
#[derive(Clone, Default)]
pub struct Events(Arc<Mutex<Recorded>>);

#[derive(Default)]
struct Recorded {
    events: Vec<String>,
    /// Spans by their ids, from 1.
    spans: Vec<SpanSeen>,
    /// The entered spans, by index.
    entered: Vec<usize>,
}

#[derive(Debug, Clone, Default)]
pub struct SpanSeen {
    pub name: &'static str,
    pub level: String,
    pub fields: BTreeMap<&'static str, String>,
    /// The name of its parent span.
    pub parent: Option<&'static str>,
    /// The events within it.
    pub events: Vec<String>,
    /// The number of times that it was entered.
    pub entries: usize,
    handles: usize,
}

impl SpanSeen {
    pub fn has_ended(&self) -> bool {
        self.handles == 0
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }
}

impl Events {
    /// Captures the events of this thread, until the guard is dropped.
    pub fn listen() -> (Self, DefaultGuard) {
        // `tracing` caches for each event whether any subscriber is interested. While there is one
        // subscriber, a thread without it decides that for all threads; with two, all are asked.
        static SECOND: OnceLock<Dispatch> = OnceLock::new();
        SECOND.get_or_init(|| Dispatch::new(Self::default()));
        let events = Self::default();
        let guard = tracing::subscriber::set_default(events.clone());
        (events, guard)
    }

    /// Returns the events that contain this text.
    pub fn with(&self, part: &str) -> Vec<String> {
        let recorded = self.recorded();
        recorded.events.iter().filter(|event| event.contains(part)).cloned().collect()
    }

    /// Returns the spans of this name, in the order in which they began.
    pub fn spans(&self, name: &str) -> Vec<SpanSeen> {
        self.recorded().spans.iter().filter(|span| span.name == name).cloned().collect()
    }

    fn recorded(&self) -> MutexGuard<'_, Recorded> {
        self.0.lock().unwrap()
    }
}

fn index(id: &span::Id) -> usize {
    id.into_u64() as usize - 1
}

impl Subscriber for Events {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "fraiseql_wire"
    }

    fn new_span(&self, attributes: &span::Attributes<'_>) -> span::Id {
        let mut recorded = self.recorded();
        let parent = match attributes.parent() {
            Some(id) => Some(index(id)),
            None if attributes.is_contextual() => recorded.entered.last().copied(),
            None => None,
        };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let parent = parent.map(|parent| recorded.spans[parent].name);
        let level = attributes.metadata().level().to_string();
        let name = attributes.metadata().name();
        recorded.spans.push(SpanSeen {
            name,
            level,
            fields: fields.0,
            parent,
            events: Vec::new(),
            entries: 0,
            handles: 1,
        });
        span::Id::from_u64(recorded.spans.len() as u64)
    }

    fn record(&self, id: &span::Id, values: &span::Record<'_>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        self.recorded().spans[index(id)].fields.append(&mut fields.0);
    }

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let line = line(event);
        let mut recorded = self.recorded();
        let span = match event.parent() {
            Some(id) => Some(index(id)),
            None if event.is_contextual() => recorded.entered.last().copied(),
            None => None,
        };
        if let Some(span) = span {
            recorded.spans[span].events.push(line.clone());
        }
        recorded.events.push(line);
    }

    fn enter(&self, id: &span::Id) {
        let mut recorded = self.recorded();
        recorded.entered.push(index(id));
        recorded.spans[index(id)].entries += 1;
    }

    fn exit(&self, id: &span::Id) {
        let mut recorded = self.recorded();
        let at = recorded.entered.iter().rposition(|entered| *entered == index(id)).unwrap();
        recorded.entered.remove(at);
    }

    fn clone_span(&self, id: &span::Id) -> span::Id {
        self.recorded().spans[index(id)].handles += 1;
        id.clone()
    }

    fn try_close(&self, id: span::Id) -> bool {
        let mut recorded = self.recorded();
        recorded.spans[index(&id)].handles -= 1;
        recorded.spans[index(&id)].handles == 0
    }
}

#[derive(Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

/// Formats an event as one line: its level and its fields.
pub fn line(event: &Event<'_>) -> String {
    let mut line = Line(event.metadata().level().to_string());
    event.record(&mut line);
    line.0
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}
