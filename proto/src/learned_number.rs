//! The number of a server that was found by name, as the labels of its tickets show it.

/// A server's number, learned from labels.
///
/// A label names the server that made the ticket. Another server may have the address now. So another number
/// counts only after two labels in a row. One discovery of key names can take both tickets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LearnedNumber {
    number: Option<u32>,
    /// The number of the last label, if this number differs from `number`.
    doubt: Option<u32>,
}

impl LearnedNumber {
    /// The number. `None` until the first label.
    #[must_use]
    pub const fn get(self) -> Option<u32> {
        self.number
    }

    /// Records the number in a label. Returns true if the server's number has changed.
    pub fn record(&mut self, number: u32) -> bool {
        if self.number == Some(number) {
            self.doubt = None;
            return false;
        }
        if self.number.is_some() && self.doubt != Some(number) {
            self.doubt = Some(number);
            return false;
        }
        *self = Self {
            number: Some(number),
            doubt: None,
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_label_counts_at_once_and_another_number_when_it_comes_twice_in_a_row() {
        let mut learned = LearnedNumber::default();
        assert_eq!(learned.get(), None);
        for (label, changes, number) in [
            (1, true, 1),
            (1, false, 1),
            (2, false, 1),
            (1, false, 1),
            (2, false, 1),
            (3, false, 1),
            (3, true, 3),
            (1, false, 3),
            (1, true, 1),
        ] {
            assert_eq!(learned.record(label), changes, "{learned:?}");
            assert_eq!(learned.get(), Some(number));
        }
    }
}
