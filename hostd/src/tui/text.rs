//! Text from outside, made harmless: a guest's console and a ledger's words are drawn on the operator's terminal.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Longest text that is drawn, characters.
const CHARS_MAX: usize = 4_000;

/// Whether a character shows what it is: no control, no change of direction, nothing that joins onto its neighbours.
fn is_plain(c: char) -> bool {
    let joins = matches!(c, '\u{300}'..='\u{36f}' | '\u{483}'..='\u{489}' | '\u{1ab0}'..='\u{1aff}' | '\u{1dc0}'..='\u{1dff}'
        | '\u{20d0}'..='\u{20ff}' | '\u{fe00}'..='\u{fe0f}' | '\u{fe20}'..='\u{fe2f}');
    // Zero width: bidirectional marks, joiners, tags, the byte order mark; also what the width table doesn't know.
    !c.is_control()
        && !joins
        && c.width().is_some_and(|width| width > 0)
        && !matches!(c, '\u{ad}' | '\u{2028}' | '\u{2029}')
}

/// One line without anything that a terminal would obey or a reader would misread.
pub fn clean(text: &str) -> String {
    let shown = text.chars().take(CHARS_MAX);
    shown
        .filter_map(|c| match c {
            '\n' | '\t' => Some(' '),
            c if is_plain(c) => Some(c),
            c if c.is_control() => Some('\u{fffd}'),
            _ => None,
        })
        .collect()
}

/// Columns that a text takes.
pub fn width(text: &str) -> usize {
    text.width()
}

/// The text in exactly `columns` columns: cut, or filled up with blanks. What is cut ends in `~`.
pub fn fit(text: &str, columns: usize) -> String {
    let text = clean(text);
    let fits = text.width() <= columns;
    let room = if fits { columns } else { columns.saturating_sub(1) };
    let (mut out, mut used) = (String::new(), 0);
    for c in text.chars() {
        let wide = c.width().unwrap_or(0);
        if used + wide > room {
            break;
        }
        out.push(c);
        used += wide;
    }
    if !fits && columns > 0 {
        out.push('~');
        used += 1;
    }
    out.push_str(&" ".repeat(columns.saturating_sub(used)));
    out
}

/// The text in lines of at most `columns` columns, broken at blanks where there are any.
pub fn wrap(text: &str, columns: usize) -> Vec<String> {
    let columns = columns.max(1);
    let mut lines = vec![String::new()];
    for word in clean(text).split_whitespace() {
        let mut rest: String = word.to_owned();
        loop {
            let line = lines.last_mut().expect("starts with one line");
            let gap = usize::from(!line.is_empty());
            if line.width() + gap + rest.width() <= columns {
                if gap == 1 {
                    line.push(' ');
                }
                line.push_str(&rest);
                break;
            }
            if !line.is_empty() {
                lines.push(String::new());
                continue;
            }
            // A word wider than a line: as much as fits, at least one character.
            let mut used = 0;
            let at = rest.char_indices().find_map(|(at, c)| {
                used += c.width().unwrap_or(0);
                (used > columns && at > 0).then_some(at)
            });
            let Some(at) = at else {
                line.push_str(&rest);
                break;
            };
            let tail = rest.split_off(at);
            line.push_str(&rest);
            lines.push(String::new());
            rest = tail;
        }
    }
    lines
}

/// The lines of a guest's console: escape sequences (ECMA-48 CSI, OSC and the short ones) leave no trace, a carriage
/// return starts the line anew.
pub fn console(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let line = lines.last_mut().expect("starts with one line");
        match c {
            '\n' => lines.push(String::new()),
            '\r' if chars.peek() != Some(&'\n') => line.clear(),
            '\u{8}' => drop(line.pop()),
            '\u{1b}' => match chars.next() {
                Some('[') => while chars.next().is_some_and(|c| !matches!(c, '@'..='~')) {},
                Some(']') => while chars.next().is_some_and(|c| !matches!(c, '\u{7}' | '\\')) {},
                Some('(' | ')' | '#' | '%') => drop(chars.next()),
                _ => {}
            },
            '\t' => line.push(' '),
            c if is_plain(c) && line.len() < CHARS_MAX => line.push(c),
            _ => {}
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        for (input, want) in [
            ("plain", "plain"),
            ("a\u{1b}[2Jb", "a\u{fffd}[2Jb"),
            ("name\u{202e}gnp.exe", "namegnp.exe"),
            ("z\u{300}\u{301}\u{302}", "z"),
            ("a\u{200b}b\u{feff}c\u{2066}", "abc"),
            ("line\nline\tx", "line line x"),
            ("Zürich 東京", "Zürich 東京"),
        ] {
            assert_eq!(clean(input), want, "{input:?}");
        }
        assert_eq!(clean(&"x".repeat(10_000)).len(), CHARS_MAX);
    }

    #[test]
    fn a_fitted_text_has_exactly_its_columns() {
        for (input, columns, want) in [
            ("abc", 5, "abc  "),
            ("abcdef", 5, "abcd~"),
            ("abcde", 5, "abcde"),
            ("東京都", 5, "東京~"),
            ("東京都", 4, "東~ "),
            ("abc", 1, "~"),
            ("abc", 0, ""),
        ] {
            assert_eq!(fit(input, columns), want, "{input:?} in {columns}");
        }
    }

    #[test]
    fn a_wrapped_text_keeps_every_word() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefgh", 3), ["abc", "def", "gh"]);
        assert_eq!(wrap("", 3), [""]);
        assert_eq!(wrap("東京", 1), ["東", "京"]);
    }

    #[test]
    fn a_console_shows_what_the_guest_wrote_and_does_nothing() {
        let lines =
            console("boot\u{1b}[32m ok\u{1b}[0m\r\n10%\r20%\u{1b}]0;owned\u{7}\nx\u{202e}y\u{8}z\u{1b}");
        assert_eq!(lines, ["boot ok", "20%", "xz"]);
    }
}
