//! The parts of a table's lines: wrapping, numbers with nouns, and colours.

use sessile_proto::verdict::How;

/// Whether the output has colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    Never,
    Always,
}

/// Most columns of a line.
pub(super) const WIDTH: usize = 80;

/// Adds a text that is wrapped at [`WIDTH`]. Each line after the first has two more columns of indent.
pub(super) fn push_wrapped(text: &mut String, indent: usize, words: &str) {
    let mut line = " ".repeat(indent);
    let mut has_words = false;
    for word in words.split(' ') {
        let width = line.chars().count() + 1 + word.chars().count();
        if has_words && width > WIDTH {
            push(text, line.trim_end());
            line = " ".repeat(indent + 2);
            has_words = false;
        }
        if has_words {
            line.push(' ');
        }
        line.push_str(word);
        has_words = true;
    }
    push(text, &line);
}

pub(super) fn push(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// The name of the mechanism with its TLS version.
#[must_use]
pub const fn title(how: How) -> &'static str {
    match how {
        How::SessionId => "TLS 1.2 session ID",
        How::Ticket => "TLS 1.2 ticket",
        How::Psk => "TLS 1.3 PSK",
    }
}

/// The number with its noun.
#[must_use]
pub fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[derive(Clone, Copy)]
pub(super) enum Shade {
    Good,
    Bad,
    Plain,
}

pub(super) fn paint(text: &str, shade: Shade, colour: Colour) -> String {
    let code = match (colour, shade) {
        (Colour::Never, _) | (_, Shade::Plain) => return text.to_owned(),
        (Colour::Always, Shade::Good) => 32,
        (Colour::Always, Shade::Bad) => 31,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}
