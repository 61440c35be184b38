//! Prints the crate's `tracing` events in tests, by `RUST_LOG`:
//! `RUST_LOG=fraiseql_wire=trace cargo test --test stream NAME -- --nocapture`.

use std::{env, sync::OnceLock};

use tracing::{Event, Metadata, Subscriber, level_filters::LevelFilter, span};

use super::events::line;

/// Prints events, but no spans.
struct Print(LevelFilter);

/// Sets the default subscriber, once. A thread may have its own.
pub fn init() {
    static LEVEL: OnceLock<()> = OnceLock::new();
    LEVEL.get_or_init(|| {
        if let Some(level) = env::var("RUST_LOG").ok().and_then(|filter| level(&filter)) {
            // A test that captures all events of its process has its own.
            let _ = tracing::subscriber::set_global_default(Print(level));
        }
    });
}

/// The level of this crate in a filter such as `warn,fraiseql_wire=trace`.
fn level(filter: &str) -> Option<LevelFilter> {
    let directives = filter.split(',').map(str::trim);
    let levels = directives.filter_map(|d| d.strip_prefix("fraiseql_wire=").or(Some(d)));
    levels.filter_map(|level| level.parse().ok()).next_back()
}

impl Subscriber for Print {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "fraiseql_wire" && *metadata.level() <= self.0
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.0)
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        eprintln!("{}", line(event));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}
