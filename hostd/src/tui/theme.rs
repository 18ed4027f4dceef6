//! What a terminal can show: glyphs and colours, chosen once at the start.
//!
//! | terminal | glyphs | colours |
//! |---|---|---|
//! | `vt100`–`vt520`, `dumb`, unknown, a serial line, a locale without UTF-8 | ASCII | none |
//! | `linux` (the machine's own console) | boxes and blocks of its font | 8 |
//! | others | the same and arrows | 8, or 256 where `TERM` or `COLORTERM` says so |
//!
//! `NO_COLOR` (no-color.org) takes colours away. The palette is Okabe and Ito's, which people with any colour vision can
//! tell apart; and every state is a word too.

use ratatui::style::{Color, Modifier, Style};

/// Which characters beside ASCII may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Glyphs {
    /// None.
    Ascii,
    /// Boxes and blocks.
    Boxes,
    /// Everything.
    Full,
}

/// Which colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colours {
    /// None: bold and reverse only.
    None,
    /// The eight that every colour terminal has.
    Eight,
    /// 256.
    Many,
}

/// How to draw here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    /// Characters.
    pub glyphs: Glyphs,
    /// Colours.
    pub colours: Colours,
    /// At most one frame a second.
    pub slow: bool,
}

/// What decides it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// `TERM`.
    pub term: String,
    /// `COLORTERM`.
    pub colorterm: String,
    /// `NO_COLOR` is set and not empty.
    pub no_color: bool,
    /// The first of `LC_ALL`, `LC_CTYPE`, `LANG` that isn't empty.
    pub locale: String,
    /// The terminal's device, as `/dev/ttyS0`.
    pub device: String,
}

impl Theme {
    /// What every terminal can show, at a serial line's pace.
    pub const PLAIN: Self = Self {
        glyphs: Glyphs::Ascii,
        colours: Colours::None,
        slow: true,
    };

    /// For this process's terminal.
    pub fn here() -> Self {
        let var = |name: &str| std::env::var(name).unwrap_or_default();
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().map(var);
        let device = std::fs::read_link("/proc/self/fd/1").unwrap_or_default();
        Self::of(&Surroundings {
            term: var("TERM"),
            colorterm: var("COLORTERM"),
            no_color: !var("NO_COLOR").is_empty(),
            locale: locale
                .into_iter()
                .find(|text| !text.is_empty())
                .unwrap_or_default(),
            device: device.to_string_lossy().into_owned(),
        })
    }

    /// Decides. Pure.
    pub fn of(around: &Surroundings) -> Self {
        let term = around.term.as_str();
        let serial = ["ttyS", "ttyAMA", "ttyUSB", "hvc", "ttysclp"]
            .iter()
            .any(|name| around.device.starts_with(&format!("/dev/{name}")));
        let old = matches!(term, "" | "dumb" | "unknown") || term.starts_with("vt");
        if serial || old {
            return Self::PLAIN;
        }
        let locale = around.locale.to_ascii_lowercase();
        let utf8 = locale.contains("utf-8") || locale.contains("utf8");
        let many = term.contains("256color") || !around.colorterm.is_empty();
        Self {
            glyphs: match (utf8, term) {
                (false, _) => Glyphs::Ascii,
                (true, "linux") => Glyphs::Boxes,
                (true, _) => Glyphs::Full,
            },
            colours: match (around.no_color, many) {
                (true, _) => Colours::None,
                (false, true) => Colours::Many,
                (false, false) => Colours::Eight,
            },
            slow: false,
        }
    }

    fn colour(&self, eight: Color, many: u8) -> Style {
        match self.colours {
            Colours::None => Style::new(),
            Colours::Eight => Style::new().fg(eight),
            Colours::Many => Style::new().fg(Color::Indexed(many)),
        }
    }

    /// As it should be (bluish green).
    pub fn good(&self) -> Style {
        self.colour(Color::Cyan, 36)
    }

    /// Worth knowing (sky blue).
    pub fn note(&self) -> Style {
        self.colour(Color::Blue, 74)
    }

    /// Not as it should be (orange).
    pub fn warn(&self) -> Style {
        self.colour(Color::Yellow, 214).add_modifier(Modifier::BOLD)
    }

    /// Broken (vermillion).
    pub fn bad(&self) -> Style {
        let style = self.colour(Color::Red, 166).add_modifier(Modifier::BOLD);
        match self.colours {
            Colours::None => style.add_modifier(Modifier::REVERSED),
            Colours::Eight | Colours::Many => style,
        }
    }

    /// Headings.
    pub fn strong(&self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// Less important. The same as plain without colours: `dim` isn't legible everywhere.
    pub fn quiet(&self) -> Style {
        match self.colours {
            Colours::None | Colours::Eight => Style::new(),
            Colours::Many => Style::new().fg(Color::Indexed(245)),
        }
    }

    /// Where the cursor is.
    pub fn selected(&self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// A horizontal line.
    pub fn rule(&self) -> &'static str {
        match self.glyphs {
            Glyphs::Ascii => "-",
            Glyphs::Boxes | Glyphs::Full => "─",
        }
    }

    /// Full and empty part of a bar.
    pub fn bar(&self) -> (&'static str, &'static str) {
        match self.glyphs {
            Glyphs::Ascii => ("#", "."),
            Glyphs::Boxes | Glyphs::Full => ("█", "░"),
        }
    }

    /// A character that this terminal can't show, as ones that it can.
    pub fn spell(&self, symbol: &str) -> Option<&'static str> {
        if symbol.is_ascii() || self.glyphs == Glyphs::Full {
            return None;
        }
        match symbol {
            "→" => Some(">"),
            "─" | "–" | "—" if self.glyphs == Glyphs::Ascii => Some("-"),
            "█" if self.glyphs == Glyphs::Ascii => Some("#"),
            "░" if self.glyphs == Glyphs::Ascii => Some("."),
            _ if self.glyphs == Glyphs::Ascii => Some("?"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_what_it_can_show() {
        let around = |term: &str, locale: &str, device: &str, no_color: bool| Surroundings {
            term: term.into(),
            locale: locale.into(),
            device: device.into(),
            no_color,
            ..Surroundings::default()
        };
        let theme = |glyphs, colours| Theme {
            glyphs,
            colours,
            slow: false,
        };
        for (surroundings, want) in [
            (
                around("xterm-256color", "en_US.UTF-8", "/dev/pts/1", false),
                theme(Glyphs::Full, Colours::Many),
            ),
            (
                around("xterm-256color", "C", "/dev/pts/1", false),
                theme(Glyphs::Ascii, Colours::Many),
            ),
            (
                around("tmux", "C.UTF-8", "/dev/pts/1", true),
                theme(Glyphs::Full, Colours::None),
            ),
            (
                around("linux", "C.UTF-8", "/dev/tty1", false),
                theme(Glyphs::Boxes, Colours::Eight),
            ),
            (around("linux", "C.UTF-8", "/dev/ttyS0", false), Theme::PLAIN),
            (around("vt220", "C.UTF-8", "/dev/pts/1", false), Theme::PLAIN),
            (around("dumb", "C.UTF-8", "/dev/pts/1", false), Theme::PLAIN),
            (around("", "", "", false), Theme::PLAIN),
        ] {
            assert_eq!(Theme::of(&surroundings), want, "{surroundings:?}");
        }
    }
}
