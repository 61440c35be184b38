//! Exports a table or view as lines of JSON, gzipped if the file's name ends in `.gz`:
//! `cargo run --release --example export -- --key id v_order orders.ndjson.gz`.
//!
//! `--help` prints all options. `--demo` creates data, on the server of `DATABASE_URL` or a private
//! one, and exports it.
//!
//! The file appears when it is complete. With a key, an export resumes after a lost connection, and
//! with `--resume` after an interruption: see part.rs.

mod part;
#[path = "../support/mod.rs"]
mod support;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    pin::pin,
    process::ExitCode,
    time::{Duration, Instant},
};

use fraiseql_wire::{ConnectionConfig, FraiseClient, QueryBuilder, RawJson, RetryPolicy, field};
use futures_util::StreamExt;
use indicatif::{HumanBytes, HumanCount, HumanDuration, ProgressBar, ProgressState, ProgressStyle};
use part::Part;
use serde_json::{Value, json};
use support::Result;
use tokio::signal::unix::{SignalKind, signal};

const HELP: &str = "
Usage: export [--url URL] [--where SQL] [--key FIELD [--resume]] ENTITY OUTPUT

  ENTITY       the table or view, as NAME or SCHEMA.NAME; its column `data` is exported
  OUTPUT       the file, which is replaced if it exists; gzipped if its name ends in .gz
  --url URL    the server, without a password; default: DATABASE_URL, or PGHOST and so on
  --where SQL  a condition, as raw SQL
  --key FIELD  a unique field, a number or a string, to sort by; an export with a key can resume
  --resume     resume with OUTPUT.part, if it exists
  --demo       create data and export it, without other arguments

Every user of this machine can read the arguments of a program: put a password into DATABASE_URL,
PGPASSWORD or the password file (~/.pgpass).

An export is one snapshot of the server, unless it was resumed. Then rows that changed meanwhile may be
missing or older, and a row whose key changed may occur twice.
";

#[derive(Default)]
struct Options {
    url: Option<String>,
    entity: String,
    output: PathBuf,
    condition: Option<String>,
    key: Option<String>,
    resume: bool,
}

enum End {
    Done,
    /// By a signal, with its exit code.
    Interrupted(u8),
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let has = |option: &str| arguments.iter().any(|argument| argument == option);
    if has("--help") {
        print!("{}", HELP.trim_start());
        return ExitCode::SUCCESS;
    }
    let result = if has("--demo") {
        support::with_data(DEMO, demo).await.map(|()| End::Done)
    } else {
        match Options::parse(arguments) {
            Ok(options) => export(&options).await,
            Err(e) => {
                eprintln!("export: {e}\n`export --help` prints the usage");
                return ExitCode::from(2);
            }
        }
    };
    match result {
        Ok(End::Done) => ExitCode::SUCCESS,
        Ok(End::Interrupted(code)) => ExitCode::from(code),
        Err(e) => {
            eprintln!("export: {e}");
            ExitCode::FAILURE
        }
    }
}

async fn export(options: &Options) -> Result<End> {
    let config = match options.url.clone().or_else(|| std::env::var("DATABASE_URL").ok()) {
        Some(url) => ConnectionConfig::parse(&url)?,
        None => ConnectionConfig::from_env()?,
    };
    // Retries for as long as a failover takes.
    let retry = RetryPolicy::default().max_attempts(60).max_backoff(Duration::from_secs(1));
    let config = config.to_builder().retry(retry).build()?;
    // Reading an existing file may take long. Until then Ctrl-C ends the program, and changes
    // nothing.
    let begun = match options.resume {
        true => Part::resume(&options.output, &options.identity())?,
        false => None,
    };
    let mut stopped = pin!(stopped()?);
    let mut part = match begun {
        Some(part) => part,
        None => Part::begin(&options.output, &options.identity())?,
    };
    let client = FraiseClient::new(config);
    let began = Instant::now();

    // No write contains an await: wherever this is cancelled, the file has complete lines.
    let end = tokio::select! {
        copied = copy(&client, options, &mut part) => copied.map(|()| End::Done),
        code = &mut stopped => Ok(End::Interrupted(code)),
    };
    // Waits until the server has stopped a cancelled query.
    if let Err(e) = client.close().await {
        eprintln!("while closing: {e}");
    }

    if let Ok(End::Done) = end {
        let snapshots = if part.is_resumed { "several snapshots" } else { "one snapshot" };
        let (rows, size) = (part.rows, HumanBytes(part.bytes));
        part.finish()?;
        let (output, took) = (options.output.display(), HumanDuration(began.elapsed()));
        println!("{output}: {rows} rows, {size} of JSON, from {snapshots}, in {took}");
        return end;
    }
    let why = if end.is_ok() { "interrupted" } else { "failed" };
    let rows = match part.rows {
        1 => "1 row".to_owned(),
        rows => format!("{rows} rows"),
    };
    if part.rows == 0 {
        part.discard()?;
    } else if options.key.is_none() {
        part.discard()?;
        eprintln!("{why} after {rows}; resuming needs a --key, so nothing is kept");
    } else if end.as_ref().is_err_and(|error| is_wrong(&**error)) {
        part.discard()?;
        eprintln!("{why} after {rows}; resuming would fail in the same way, so nothing is kept");
    } else {
        part.keep()?;
        eprintln!("{why} after {rows}; to resume:\n  {}", options.to_resume());
    }
    end
}

/// Whether the key or the condition is wrong, for example a key that is not unique.
fn is_wrong(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(fraiseql_wire::Error::Config { .. }))
}

async fn copy(client: &FraiseClient, options: &Options, part: &mut Part) -> Result<()> {
    let after = match (&options.key, part.last_line.take()) {
        (Some(key), Some(line)) => Some(part::key_of(&line, key)?),
        _ => None,
    };
    let plan = options.query(client, &after).explain(false).await?;
    let bar = progress(part, plan[0]["Plan"]["Plan Rows"].as_u64().unwrap_or(0));

    let rows = options.query(client, &after).execute().await?;
    let control = rows.control();
    let mut lines = rows.into_ndjson();
    while let Some(whole_lines) = lines.next().await {
        part.write(&whole_lines?)?;
        bar.set_position(part.rows);
        bar.set_length(bar.length().unwrap_or(0).max(part.rows));
        if !bar.is_hidden() {
            bar.set_message(HumanBytes(part.bytes).to_string());
        }
    }
    part.is_resumed |= control.stats().resumptions > 0;
    bar.finish_and_clear();
    Ok(())
}

/// A progress bar on standard error, if that is a terminal. The total is the planner's estimate.
fn progress(part: &Part, estimate: u64) -> ProgressBar {
    let bar = ProgressBar::new(part.rows + estimate).with_position(part.rows);
    let template = "{wide_bar} {human_pos} of about {human_len} rows, {msg}, {rate}/s, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        // Without fractions of a row.
        let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = write!(out, "{}", HumanCount(state.per_sec() as u64));
        };
        bar.set_style(style.with_key("rate", rate));
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    // Rows of an earlier run took no time.
    bar.reset_eta();
    bar
}

/// Resolves at SIGINT or SIGTERM, which then no longer end the process.
fn stopped() -> Result<impl Future<Output = u8>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => 130,
            _ = terminate.recv() => 143,
        }
    })
}

/// Whether a connection string contains a password, judging by its syntax.
fn has_password(url: &str) -> bool {
    let user =
        url.split_once("://").and_then(|(_, rest)| rest.rsplit_once('@')).map(|(user, _)| user);
    user.is_some_and(|user| user.contains(':'))
        || ["password", "secret", "scram_"].iter().any(|part| url.to_lowercase().contains(part))
}

impl Options {
    fn parse(arguments: Vec<OsString>) -> Result<Self> {
        use lexopt::prelude::*;
        let (mut options, mut values) = (Self::default(), Vec::new());
        let mut parser = lexopt::Parser::from_args(arguments);
        while let Some(argument) = parser.next()? {
            match argument {
                Long("url") => {
                    let url = parser.value()?.string()?;
                    if has_password(&url) {
                        return Err("--url contains a password, which every user of this machine can read: put \
                                    it into DATABASE_URL, PGPASSWORD or the password file"
                            .into());
                    }
                    options.url = Some(url);
                }
                Long("where") => options.condition = Some(parser.value()?.string()?),
                Long("key") => options.key = Some(parser.value()?.string()?),
                Long("resume") => options.resume = true,
                Value(value) => values.push(value),
                other => return Err(other.unexpected().into()),
            }
        }
        let [entity, output] = <[OsString; 2]>::try_from(values)
            .map_err(|_| "an entity and a file are needed, and nothing else")?;
        (options.entity, options.output) = (entity.string()?, output.into());
        if options.resume && options.key.is_none() {
            return Err("--resume needs the --key by which the export was sorted".into());
        }
        Ok(options)
    }

    fn query(&self, client: &FraiseClient, after: &Option<Value>) -> QueryBuilder<RawJson> {
        let mut query = client.query(&self.entity);
        if let Some(condition) = &self.condition {
            query = query.where_sql(condition);
        }
        if let Some(key) = &self.key {
            // This also sorts by the key.
            query = query.resume_by(field(key));
            if let Some(last) = after {
                query = query.resume_after(last.clone());
            }
        }
        query
    }

    /// The query, which must be the same to resume an export.
    fn identity(&self) -> String {
        json!({"entity": self.entity, "where": self.condition, "key": self.key}).to_string()
    }

    fn to_resume(&self) -> String {
        let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
        let mut command = String::from("export --resume");
        for (option, value) in
            [(" --url ", &self.url), (" --key ", &self.key), (" --where ", &self.condition)]
        {
            if let Some(value) = value {
                command += &[option, &quoted(value)].concat();
            }
        }
        format!("{command} {} {}", quoted(&self.entity), quoted(&self.output.to_string_lossy()))
    }
}

const DEMO: &str = "
    create table tv_order as
    select jsonb_build_object('id', i, 'total', i % 700, 'note', repeat('as ever ', i % 20)) as data
    from generate_series(1, 200000) i;
    create unique index on tv_order ((data->'id'));
    analyze tv_order;
    create view v_order as select data from tv_order;
";

async fn demo(url: String, _: tokio_postgres::Client) -> Result<()> {
    let folder = tempfile::tempdir()?;
    for name in ["orders.ndjson", "orders.ndjson.gz"] {
        let output = Path::new(folder.path()).join(name);
        let (url, key) = (Some(url.clone()), Some("id".into()));
        let options = Options {
            url,
            key,
            entity: "v_order".into(),
            output: output.clone(),
            ..Options::default()
        };
        if let End::Interrupted(code) = export(&options).await? {
            return Err(format!("interrupted, exit code {code}").into());
        }
        println!("  it has {}", HumanBytes(std::fs::metadata(&output)?.len()));
    }
    Ok(())
}
