//! The file of an export while it is written: `OUTPUT.part`, which gets its name when it is whole.
//!
//! It holds whole lines, whenever the program ends in order. When it is killed, the last line may be cut; and a
//! gzipped file consists of members of whole lines, of which the last may be cut. An export that goes on reads the
//! file from its beginning, cuts off what is not whole, and continues behind the key of the last line that is. That
//! a file goes on with the query it was begun with, a second file, `OUTPUT.part.query`, sees to.
//!
//! After a crash of the whole machine, parts of a file may be missing in its middle. In a gzipped one the checksum of
//! the member tells; in a plain one a line that is not JSON may tell. Begin anew rather than rely on that.

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

/// How much text goes into one member of a gzipped file: what a program that is killed may lose. Each costs some
/// 20 bytes, and that the compression begins anew.
const MEMBER: usize = 16 << 20;

pub struct Part {
    output: PathBuf,
    file: BufWriter<File>,
    /// The member that is being made. It goes to the file when it is whole.
    member: Option<Member>,
    pub rows: u64,
    /// Of text.
    pub bytes: u64,
    /// The last one that was in the file when an export went on.
    pub last_line: Option<Vec<u8>>,
    /// Not all rows are of one query.
    pub went_on: bool,
}

struct Member {
    encoder: GzEncoder<Vec<u8>>,
    text: usize,
}

impl Part {
    /// Begins a file.
    pub fn begin(output: &Path, identity: &str) -> Result<Self> {
        let path = part(output);
        let file = match OpenOptions::new().write(true).create_new(true).open(&path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                let path = path.display();
                let what = "of an export that did not end: go on with --resume, or remove it";
                return Err(format!("there is {path}, {what}").into());
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
            went_on: false,
        })
    }

    /// Goes on with the file, if there is one.
    pub fn go_on(output: &Path, identity: &str) -> Result<Option<Self>> {
        let path = part(output);
        if !path.exists() {
            return Ok(None);
        }
        let begun_with = fs::read_to_string(query(output)).unwrap_or_default();
        if begun_with != identity {
            let path = path.display();
            return Err(format!("{path} was not begun with this query: {begun_with}").into());
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
            went_on: whole.rows > 0,
            last_line: (whole.rows > 0).then_some(whole.last),
        }))
    }

    /// Adds whole lines.
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

    /// Gives the file its name, when all of it is on the disk.
    pub fn finish(mut self) -> Result<()> {
        self.end_member()?;
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        fs::rename(part(&self.output), &self.output)?;
        fs::remove_file(query(&self.output))?;
        let folder = self.output.parent().filter(|folder| !folder.as_os_str().is_empty());
        // The name too.
        Ok(File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?)
    }

    /// Leaves the file to an export that goes on.
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

/// What of a file is whole.
#[derive(Default)]
struct Whole {
    /// Where it ends in the file.
    end: u64,
    rows: u64,
    /// Of text.
    bytes: u64,
    last: Vec<u8>,
}

impl Whole {
    /// Reads lines of JSON up to one that is not whole, and says whether that is the end.
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

/// Reads members of gzip up to one that is not whole, or holds what is not.
fn whole_members(reader: &mut BufReader<File>) -> io::Result<Whole> {
    let mut all = Whole::default();
    while !reader.fill_buf()?.is_empty() {
        let mut member = BufReader::new(GzDecoder::new(&mut *reader));
        // Its end has a checksum.
        let Ok((whole, true)) = Whole::of(&mut member) else { break };
        drop(member);
        let rows = all.rows + whole.rows;
        all =
            Whole { end: reader.stream_position()?, rows, bytes: all.bytes + whole.bytes, ..whole };
    }
    Ok(all)
}

/// The key of a line, exactly as it is there.
///
/// # Errors
///
/// It is no string, or a number that would have to be rounded.
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
    Err(format!("the last line has {found} as {path}, behind which it cannot go on").into())
}

fn is_gzip(output: &Path) -> bool {
    output.extension().is_some_and(|extension| extension == "gz")
}

/// The file while it is not whole.
fn part(output: &Path) -> PathBuf {
    with(output, ".part")
}

/// What it was begun with.
fn query(output: &Path) -> PathBuf {
    with(output, ".part.query")
}

fn with(output: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(output);
    name.push(ending);
    name.into()
}
