//! The file of an export while it is written: `OUTPUT.part`, which is renamed when it is complete.
//!
//! If the program ends normally, the file has complete lines. If it is killed, the last line may be
//! truncated, or the last member of a gzipped file, whose members are complete lines. A resumed
//! export reads the file, truncates it after the last complete line or member, and continues after
//! the key of the last line. `OUTPUT.part.query` has the query, which must be the same.
//!
//! After a crash of the machine, parts in the middle of the file may be missing. The checksum of a
//! gzip member detects this, and invalid JSON may. Start again rather than rely on that.

use std::{
    borrow::Cow,
    collections::HashMap,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, ErrorKind, Seek, Write},
    mem,
    path::{Path, PathBuf},
};

use flate2::{Compression, bufread::GzDecoder, write::GzEncoder};
use serde::de::IgnoredAny;
use serde_json::{Value, value::RawValue};

use crate::support::Result;

/// Text per member of a gzipped file, which is what a killed program may lose. A member costs 20
/// bytes and restarts the compression.
const MEMBER: usize = 16 << 20;

pub struct Part {
    output: PathBuf,
    file: BufWriter<File>,
    /// The current member, which is written when it is complete.
    member: Option<Member>,
    pub rows: u64,
    /// Bytes of text.
    pub bytes: u64,
    /// The last line of the file that an export was resumed with.
    pub last_line: Option<Vec<u8>>,
    /// The rows come from several snapshots.
    pub is_resumed: bool,
}

struct Member {
    encoder: GzEncoder<Vec<u8>>,
    text: usize,
}

impl Part {
    /// Creates a file.
    pub fn begin(output: &Path, identity: &str) -> Result<Self> {
        let path = part(output);
        let file = match OpenOptions::new().write(true).create_new(true).open(&path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                let path = path.display();
                let what = "of an unfinished export: use --resume, or remove it";
                return Err(format!("{path} is {what}").into());
            }
            other => other.map_err(|e| format!("{}: {e}", path.display()))?,
        };
        fs::write(query(output), identity)?;
        Ok(Self {
            output: output.to_owned(),
            file: BufWriter::new(file),
            member: is_gzip(output).then(Member::new),
            rows: 0,
            bytes: 0,
            last_line: None,
            is_resumed: false,
        })
    }

    /// Resumes the file, if it exists.
    pub fn resume(output: &Path, identity: &str) -> Result<Option<Self>> {
        let path = part(output);
        if !path.exists() {
            return Ok(None);
        }
        let begun_with = fs::read_to_string(query(output)).unwrap_or_default();
        if begun_with != identity {
            let path = path.display();
            return Err(format!("{path} is of another query: {begun_with}").into());
        }
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let mut reader = BufReader::new(file);
        let whole =
            if is_gzip(output) { whole_members(&mut reader)? } else { Whole::of(&mut reader)?.0 };
        let mut file = reader.into_inner();
        file.set_len(whole.end)?;
        file.seek(io::SeekFrom::Start(whole.end))?;
        Ok(Some(Self {
            output: output.to_owned(),
            file: BufWriter::new(file),
            member: is_gzip(output).then(Member::new),
            rows: whole.rows,
            bytes: whole.bytes,
            is_resumed: whole.rows > 0,
            last_line: (whole.rows > 0).then_some(whole.last),
        }))
    }

    /// Appends complete lines.
    pub fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match &mut self.member {
            None => self.file.write_all(lines)?,
            Some(member) => {
                member.encoder.write_all(lines)?;
                member.text += lines.len();
                if member.text >= MEMBER {
                    self.end_member()?;
                }
            }
        }
        self.rows += lines.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.bytes += lines.len() as u64;
        Ok(())
    }

    fn end_member(&mut self) -> io::Result<()> {
        if let Some(member) = &mut self.member {
            let Member { encoder, .. } = mem::replace(member, Member::new());
            self.file.write_all(&encoder.finish()?)?;
        }
        Ok(())
    }

    /// Syncs the file to disk, then renames it.
    pub fn finish(mut self) -> Result<()> {
        self.end_member()?;
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        fs::rename(part(&self.output), &self.output)?;
        fs::remove_file(query(&self.output))?;
        let folder = self.output.parent().filter(|folder| !folder.as_os_str().is_empty());
        // Syncs the folder, which contains the new name.
        Ok(File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?)
    }

    /// Keeps the file for a resumed export.
    pub fn keep(mut self) -> io::Result<()> {
        if self.member.as_ref().is_some_and(|member| member.text > 0) {
            self.end_member()?;
        }
        self.file.flush()?;
        self.file.get_ref().sync_all()
    }

    /// Removes the file.
    pub fn discard(self) -> io::Result<()> {
        fs::remove_file(part(&self.output))?;
        fs::remove_file(query(&self.output))
    }
}

impl Member {
    fn new() -> Self {
        Self { encoder: GzEncoder::new(Vec::new(), Compression::default()), text: 0 }
    }
}

/// The complete part of a file.
#[derive(Default)]
struct Whole {
    /// Its end in the file.
    end: u64,
    rows: u64,
    /// Bytes of text.
    bytes: u64,
    last: Vec<u8>,
}

impl Whole {
    /// Reads complete lines of JSON, and returns whether they reach the end.
    fn of(reader: &mut impl BufRead) -> io::Result<(Self, bool)> {
        let (mut whole, mut line) = (Self::default(), Vec::new());
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line)?;
            let is_json = || serde_json::from_slice::<IgnoredAny>(&line).is_ok();
            if length == 0 || line.last() != Some(&b'\n') || !is_json() {
                return Ok((whole, length == 0));
            }
            whole.rows += 1;
            whole.bytes += length as u64;
            whole.end = whole.bytes;
            mem::swap(&mut whole.last, &mut line);
        }
    }
}

/// Reads complete gzip members that contain complete lines.
fn whole_members(reader: &mut BufReader<File>) -> io::Result<Whole> {
    let mut all = Whole::default();
    while !reader.fill_buf()?.is_empty() {
        let mut member = BufReader::new(GzDecoder::new(&mut *reader));
        // A member ends with a checksum.
        let Ok((whole, true)) = Whole::of(&mut member) else { break };
        drop(member);
        let rows = all.rows + whole.rows;
        all =
            Whole { end: reader.stream_position()?, rows, bytes: all.bytes + whole.bytes, ..whole };
    }
    Ok(all)
}

/// Returns the key of a line, unchanged.
///
/// # Errors
///
/// If it is not a string, or a number that would be rounded.
pub fn key_of(line: &[u8], path: &str) -> Result<Value> {
    let mut found: &RawValue = serde_json::from_slice(line)?;
    for name in path.split('.') {
        let mut object: HashMap<Cow<'_, str>, &RawValue> = serde_json::from_str(found.get())?;
        found = object.remove(name).ok_or_else(|| format!("the last line has no {path}"))?;
    }
    let key: Value = serde_json::from_str(found.get())?;
    let written = key.to_string();
    if key.is_string() || key.is_number() && written == found.get() {
        return Ok(key);
    }
    Err(format!("cannot resume after {path} {found} of the last line").into())
}

fn is_gzip(output: &Path) -> bool {
    output.extension().is_some_and(|extension| extension == "gz")
}

/// The unfinished file.
fn part(output: &Path) -> PathBuf {
    with(output, ".part")
}

/// The file with its query.
fn query(output: &Path) -> PathBuf {
    with(output, ".part.query")
}

fn with(output: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(output);
    name.push(ending);
    name.into()
}
