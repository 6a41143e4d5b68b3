//! The problems of a configuration file or registry export: the place, and one sentence with cause and remedy.

/// One problem and its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {what}")]
pub struct Problem {
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// The cause and the remedy.
    pub what: String,
}

impl Problem {
    /// A problem at the byte `offset` of `text`.
    pub(super) fn at(text: &str, offset: usize, what: impl Into<String>) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        let line = before[line_start..].trim_start_matches('\u{feff}');
        Self {
            line: before.matches('\n').count() + 1,
            column: line.chars().count() + 1,
            what: what.into(),
        }
    }
}

/// A suggestion: the known word nearest to `written`, or all known words if none is near.
pub(in crate::config) fn hint<'a>(
    written: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    match nearest(written, known.iter().copied()) {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None if known.is_empty() => "none is defined yet".to_owned(),
        None => format!("known here: {}", known.join(", ")),
    }
}

/// The known word nearest to `written`. At most two letters may differ, or a third of the letters of a longer
/// word.
pub(crate) fn nearest<'a>(
    written: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let limit = (written.chars().count() / 3).max(2);
    known
        .into_iter()
        .map(|word| (strsim::levenshtein(written, word), word))
        .filter(|&(distance, word)| distance <= limit && distance < word.len())
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_similar_word_is_suggested() {
        let known = ["max-entries", "lifetime", "tickets", "store"];
        let meant = |written: &str| nearest(written, known);
        assert_eq!(meant("lifetme"), Some("lifetime"));
        assert_eq!(meant("max_entries"), Some("max-entries"));
        assert_eq!(meant("colour"), None);
        assert_eq!(meant(""), None);
    }

    #[test]
    fn a_place_is_a_line_and_a_column_in_characters() {
        let text = "a = 1\nä = ü!\n";
        let problem = Problem::at(text, text.find('!').expect("it is there"), "");
        assert_eq!((problem.line, problem.column), (2, 6));
    }
}
