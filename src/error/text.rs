use std::fmt;

/// Displays untrusted text so that it cannot mislead the reader of a log or a terminal.
///
/// The text comes from a server, a certificate or a document. It is displayed on one line, with at
/// most `max` bytes, and without escape sequences, invisible characters and changes of direction.
///
/// A run of such characters becomes one space, so that words stay separated.
pub(crate) struct OneLine<'a> {
    pub(crate) text: &'a str,
    pub(crate) max: usize,
}

impl<'a> OneLine<'a> {
    /// For names, for example of a parameter, a mechanism or an authority.
    pub(crate) fn name(text: &'a str) -> Self {
        Self { text, max: 256 }
    }
}

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_boundary = |end: &usize| self.text.is_char_boundary(*end);
        let end = (0..=self.max.min(self.text.len())).rev().find(is_boundary).unwrap_or_default();
        let shown = self.text.get(..end).unwrap_or_default();
        for (i, part) in shown.split(misleads).filter(|part| !part.is_empty()).enumerate() {
            if i > 0 {
                f.write_str(" ")?;
            }
            f.write_str(part)?;
        }
        if shown.len() < self.text.len() { f.write_str("...") } else { Ok(()) }
    }
}

/// Returns whether a character is invisible or changes how others are displayed.
///
/// These are control characters (C0 and C1), line separators, interlinear annotation marks, and
/// Unicode's Default_Ignorable_Code_Point: bidirectional controls, zero-width characters, fillers
/// and tags.
fn misleads(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{34f}'
                | '\u{61c}'
                | '\u{115f}'..='\u{1160}'
                | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_replaces_misleading_characters_by_a_space() {
        let shown = |text: &str| OneLine { text, max: 1000 }.to_string();
        // The characters of CVE-2021-42574, zero-width characters, and line terminators.
        for c in "\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}\u{200e}\
                  \u{200f}\u{61c}\u{200b}\u{200c}\u{200d}\u{2060}\u{feff}\u{ad}\u{180e}\u{2028}\
                  \u{2029}\u{85}\n\r\t\0\u{1b}\u{7f}\u{80}\u{9b}\u{9f}\u{e0041}\u{3164}\u{fff9}"
            .chars()
        {
            assert_eq!(shown(&format!("a{c}b")), "a b", "{c:?}");
            assert_eq!(shown(&format!("{c}a{c}{c}b{c}")), "a b", "{c:?}");
        }
        for text in [
            "relation \"größe\" x",
            "ошибка: таблица",
            "エラー 関係",
            "שגיאה",
            "नहीं",
            "🙂 e\u{301}",
        ] {
            assert_eq!(shown(text), text);
        }
    }

    #[test]
    fn one_line_truncates_long_text_between_characters() {
        assert_eq!(OneLine { text: "aé", max: 2 }.to_string(), "a...");
        assert_eq!(OneLine { text: "aé", max: 3 }.to_string(), "aé");
        assert_eq!(OneLine::name(&"x".repeat(300)).to_string().len(), 259);
    }
}
