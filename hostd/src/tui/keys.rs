//! Keys, as far as they mean something here.
//!
//! Every function key has a letter twin: serial lines and web consoles swallow function keys.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde::{Deserialize, Serialize};

/// A key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Key {
    /// A character.
    Char(char),
    /// Carriage return.
    Enter,
    /// Escape.
    Esc,
    /// Deletes to the left.
    Backspace,
    /// Arrow.
    Up,
    /// Arrow.
    Down,
    /// A screen up.
    PageUp,
    /// A screen down.
    PageDown,
    /// To the top.
    Home,
    /// To the bottom.
    End,
    /// The next page.
    Tab,
    /// Control-C: out, whatever is on the screen.
    Interrupt,
    /// Control-L: draw everything anew.
    Redraw,
}

/// What each key does, for the help page: keys, function key, meaning.
pub const HELP: &[(&str, &str, &str)] = &[
    (
        "1-7 tab",
        "",
        "overview, contracts, GPUs, network, doctor, log, host",
    ),
    (
        "j k arrows",
        "",
        "down, up; space b: a screen down, up; g G: to the top, to the bottom",
    ),
    ("enter", "", "look at a contract; back: esc"),
    ("/", "F3", "show only lines that contain a text"),
    ("s", "F4", "another order of contracts"),
    ("f", "F6", "follow the log and the console, or stand still"),
    ("r", "F5", "ask the daemon now"),
    (
        ":",
        "F2",
        "a command: drain, drain end, maintenance [end], update, end CONTRACT, quit",
    ),
    ("?", "F1", "this page"),
    ("d m u", "", "drain, maintenance, approve the update and reboot"),
    ("q", "F10", "quit"),
];

/// What a key of the terminal is to us.
pub fn from_terminal(event: KeyEvent) -> Option<Key> {
    let control = event.modifiers.contains(KeyModifiers::CONTROL);
    Some(match event.code {
        KeyCode::Char('c') if control => Key::Interrupt,
        KeyCode::Char('l') if control => Key::Redraw,
        KeyCode::Char('h') if control => Key::Backspace, // what some serial consoles send for it
        KeyCode::Char('j' | 'm') if control => Key::Enter,
        KeyCode::Char(_) if control || event.modifiers.contains(KeyModifiers::ALT) => return None,
        KeyCode::Char(c) => Key::Char(c),
        KeyCode::F(1) => Key::Char('?'),
        KeyCode::F(2) => Key::Char(':'),
        KeyCode::F(3) => Key::Char('/'),
        KeyCode::F(4) => Key::Char('s'),
        KeyCode::F(5) => Key::Char('r'),
        KeyCode::F(6) => Key::Char('f'),
        KeyCode::F(10) => Key::Char('q'),
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Esc,
        KeyCode::Backspace | KeyCode::Delete => Key::Backspace,
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Tab | KeyCode::Right => Key::Tab,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_key_has_a_letter_twin() {
        for (letter, function, _) in HELP.iter().filter(|(_, function, _)| !function.is_empty()) {
            let number = function[1..].parse().unwrap();
            let key = from_terminal(KeyEvent::new(KeyCode::F(number), KeyModifiers::NONE));
            assert_eq!(key, Some(Key::Char(letter.chars().next().unwrap())), "{function}");
        }
    }
}
