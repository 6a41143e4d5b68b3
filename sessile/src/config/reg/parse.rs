//! The text of registry exports: `REGEDIT4` and version 5.00, UTF-16LE with a byte order mark as
//! regedit writes it, or UTF-8. The parser does not know the meaning of values.

use crate::config::file::Problem;

/// Most bytes of a registry export. The settings of sessile take a few hundred bytes.
pub const MAX_BYTES: usize = 16 << 20;

const VERSION_4: &str = "REGEDIT4";
const VERSION_5: &str = "Windows Registry Editor Version 5.00";

const NO_ENCODING: &str = "neither UTF-16LE with a byte order mark nor UTF-8 from here on";
const NO_DATA: &str = "expected \"text\", dword:, hex:, hex(type): or -";
const NO_DWORD: &str = "dword: takes one to eight hexadecimal digits; 10000 is dword:00002710";
const NO_HEX: &str = "hex: takes bytes of two hexadecimal digits with commas between them";

/// The type of `REG_DWORD`, for values that are written as bytes.
const TYPE_DWORD: u32 = 4;

/// A registry export: its changes, in the order of the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegFile {
    pub entries: Vec<Entry>,
}

/// One line of a registry export that changes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Counted from 1.
    pub line: usize,
    /// The key's full path as written.
    pub key: String,
    pub edit: Edit,
}

/// The change of a key or of one of its values. An empty name is the key's default value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// `"Name"=data`
    Set { name: String, data: Data },
    /// `"Name"=-`
    Delete { name: String },
    /// `[-KEY]`: the key with all that is below it.
    DeleteKey,
}

/// The data of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// `REG_DWORD`: `dword:` and hexadecimal digits, or `hex(4):` and four bytes.
    Dword(u32),
    /// `REG_SZ`.
    Text(String),
    /// The number of another type. The bytes are not kept.
    Other(u32),
}

/// Reads a registry export.
pub fn parse(bytes: &[u8]) -> Result<RegFile, Problem> {
    if bytes.len() > MAX_BYTES {
        let what = "more than 16 MiB; export only the branches with the settings";
        return Err(Place::START.problem(what));
    }
    let text = decode(bytes)?;
    let mut cursor = Cursor::new(text.strip_prefix('\u{feff}').unwrap_or(&text));
    cursor.header()?;
    let mut file = RegFile::default();
    let mut key: Option<String> = None;
    while cursor.skip_to_content() {
        let line = cursor.place.line;
        if cursor.eat('[') {
            let (path, deletes) = cursor.key()?;
            if deletes {
                file.entries.push(Entry {
                    line,
                    key: path,
                    edit: Edit::DeleteKey,
                });
                // A value below a deleted key would contradict the deletion.
                key = None;
            } else {
                key = Some(path);
            }
        } else {
            let place = cursor.place;
            let edit = cursor.value()?;
            let Some(key) = key.clone() else {
                return Err(place.problem(
                    "a value before any key, or below one that is deleted; write its [key] first",
                ));
            };
            file.entries.push(Entry { line, key, edit });
        }
        cursor.end_of_line()?;
    }
    Ok(file)
}

fn decode(bytes: &[u8]) -> Result<String, Problem> {
    match bytes {
        [0xff, 0xfe, rest @ ..] => {
            let (units, odd) = rest.as_chunks::<2>();
            let units = units.iter().map(|&unit| u16::from_le_bytes(unit));
            let mut text = String::with_capacity(rest.len() / 2);
            for unit in char::decode_utf16(units) {
                text.push(unit.map_err(|_| Cursor::end_of(&text).problem(NO_ENCODING))?);
            }
            if odd.is_empty() {
                Ok(text)
            } else {
                Err(Cursor::end_of(&text).problem(NO_ENCODING))
            }
        }
        [_, 0, ..] | [0, _, ..] => Err(Place::START.problem(
            "UTF-16 without a byte order mark; save the file as \"UTF-16 LE\" with a byte order mark, as regedit does, \
             or as UTF-8",
        )),
        [0xfe, 0xff, ..] => Err(Place::START.problem(
            "UTF-16 in big-endian order; save it as regedit does, in little-endian order, or as UTF-8",
        )),
        _ => match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            // A version 4 file is in the code page of the machine that wrote the file. Bytes outside
            // ASCII are letters in comments or in keys without settings.
            Err(_) if bytes.starts_with(VERSION_4.as_bytes()) => {
                Ok(bytes.iter().map(|&byte| char::from(byte)).collect())
            }
            Err(error) => {
                let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
                Err(Cursor::end_of(&valid).problem(NO_ENCODING))
            }
        },
    }
}

/// A place in the text. Lines and columns count from 1, and columns are characters.
#[derive(Clone, Copy)]
struct Place {
    line: usize,
    column: usize,
}

impl Place {
    const START: Self = Self { line: 1, column: 1 };

    fn problem(self, what: &str) -> Problem {
        let Self { line, column } = self;
        let what = what.to_owned();
        Problem { line, column, what }
    }
}

/// The rest of the text and its place.
struct Cursor<'a> {
    rest: &'a str,
    place: Place,
}

impl<'a> Cursor<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            rest: text,
            place: Place::START,
        }
    }

    fn end_of(text: &str) -> Place {
        let mut cursor = Cursor::new(text);
        while cursor.next().is_some() {}
        cursor.place
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let char = chars.next()?;
        self.rest = chars.as_str();
        if char == '\n' {
            self.place.line += 1;
            self.place.column = 1;
        } else {
            self.place.column += 1;
        }
        Some(char)
    }

    fn eat(&mut self, wanted: char) -> bool {
        self.peek() == Some(wanted) && self.next().is_some()
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let before = self.rest;
        while self.peek().is_some_and(&wanted) {
            self.next();
        }
        &before[..before.len() - self.rest.len()]
    }

    fn blanks(&mut self) {
        self.take_while(|c| matches!(c, ' ' | '\t'));
    }

    /// Skips empty lines and comments. Returns false at the end of the text.
    fn skip_to_content(&mut self) -> bool {
        loop {
            self.take_while(|c| matches!(c, ' ' | '\t' | '\r' | '\n'));
            match self.peek() {
                Some(';') => self.take_while(|c| c != '\n'),
                Some(_) => return true,
                None => return false,
            };
        }
    }

    fn header(&mut self) -> Result<(), Problem> {
        self.skip_to_content();
        let place = self.place;
        match self.take_while(|c| c != '\n').trim_end() {
            VERSION_4 | VERSION_5 => Ok(()),
            _ => Err(place.problem(
                "the first line must be \"Windows Registry Editor Version 5.00\" or \"REGEDIT4\"",
            )),
        }
    }

    /// The end of a line: blanks and a comment.
    fn end_of_line(&mut self) -> Result<(), Problem> {
        self.blanks();
        let place = self.place;
        match self.take_while(|c| c != '\n').trim_end() {
            rest if rest.is_empty() || rest.starts_with(';') => Ok(()),
            _ => Err(place.problem("unexpected text after the end of the entry")),
        }
    }

    /// `KEY]` or `-KEY]`. A key's name may contain brackets. The first bracket before a comment or the
    /// end of the line ends the key.
    fn key(&mut self) -> Result<(String, bool), Problem> {
        let deletes = self.eat('-');
        let place = self.place;
        let line = self.rest.split('\n').next().unwrap_or_default();
        let ends = |&(at, _): &(usize, &str)| {
            let after = line[at + 1..].trim();
            after.is_empty() || after.starts_with(';')
        };
        let end = line.match_indices(']').find(ends);
        let path = end.map_or("", |(at, _)| &line[..at]);
        if path.trim().is_empty() {
            let what = "a key must be written as [HKEY_LOCAL_MACHINE\\...] on one line";
            return Err(place.problem(what));
        }
        for _ in 0..=path.chars().count() {
            self.next();
        }
        Ok((path.to_owned(), deletes))
    }

    /// `"Name"=data` or `@=data`.
    fn value(&mut self) -> Result<Edit, Problem> {
        let place = self.place;
        let name = match self.next() {
            Some('@') => String::new(),
            Some('"') => self.string(place)?,
            _ => return Err(place.problem("expected [a key], \"a value\"= or a comment after ;")),
        };
        self.blanks();
        if !self.eat('=') {
            return Err(self.place.problem("expected = after the value's name"));
        }
        self.blanks();
        let place = self.place;
        if self.eat('-') {
            return Ok(Edit::Delete { name });
        }
        if self.eat('"') {
            let data = Data::Text(self.string(place)?);
            return Ok(Edit::Set { name, data });
        }
        let kind = self
            .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '(' | ')'))
            .to_ascii_lowercase();
        if !self.eat(':') {
            return Err(place.problem(NO_DATA));
        }
        let data = match kind.as_str() {
            "dword" => self.dword()?,
            "hex" => self.hex(3)?,
            _ => {
                let number = kind
                    .strip_prefix("hex(")
                    .and_then(|kind| kind.strip_suffix(')'))
                    .and_then(|digits| u32::from_str_radix(digits, 16).ok())
                    .ok_or_else(|| place.problem(NO_DATA))?;
                self.hex(number)?
            }
        };
        Ok(Edit::Set { name, data })
    }

    /// The rest of a quoted string. A backslash takes the next character literally. A line break is part
    /// of the string, because regedit writes strings in this way.
    fn string(&mut self, opened: Place) -> Result<String, Problem> {
        let mut text = String::new();
        loop {
            match self.next() {
                Some('"') => return Ok(text),
                Some('\\') => text.extend(self.next()),
                Some(char) => text.push(char),
                None => {
                    let what = "a string that begins here does not end; close its quotes";
                    return Err(opened.problem(what));
                }
            }
        }
    }

    fn dword(&mut self) -> Result<Data, Problem> {
        self.blanks();
        let place = self.place;
        let digits = self.take_while(|c| c.is_ascii_alphanumeric());
        if digits.len() > 8 {
            return Err(place.problem(NO_DWORD));
        }
        let number = u32::from_str_radix(digits, 16);
        number.map(Data::Dword).map_err(|_| place.problem(NO_DWORD))
    }

    /// Bytes with commas between them. A backslash continues on the next line.
    fn hex(&mut self, kind: u32) -> Result<Data, Problem> {
        let mut bytes: Vec<u8> = Vec::new();
        loop {
            self.blanks();
            let place = self.place;
            if self.eat('\\') {
                self.take_while(|c| matches!(c, ' ' | '\t' | '\r'));
                if !self.eat('\n') {
                    return Err(place.problem(NO_HEX));
                }
                continue;
            }
            let digits = self.take_while(|c| c.is_ascii_alphanumeric());
            match (digits.len(), u8::from_str_radix(digits, 16)) {
                (1..=2, Ok(byte)) => bytes.push(byte),
                // The value has no bytes, or a comma after the last byte.
                (0, _) => break,
                _ => return Err(place.problem(NO_HEX)),
            }
            self.blanks();
            if !self.eat(',') {
                break;
            }
        }
        match (kind, <[u8; 4]>::try_from(bytes.as_slice())) {
            (TYPE_DWORD, Ok(bytes)) => Ok(Data::Dword(u32::from_le_bytes(bytes))),
            _ => Ok(Data::Other(kind)),
        }
    }
}
