//! `hostd setup --ask`: the settings of a host that has none, typed at its console.
//!
//! The form asks for what every host needs; the rest of provider-seed.toml keeps its defaults. What is typed is checked by
//! the parser of the file itself, and put where the setup service looks for it: this screen changes nothing by itself.
//! [`Form`] is pure; [`run`] has the terminal.

use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use toml::{Table, Value};

use super::TuiError;
use super::keys::Key;
use super::state::Event;
use super::terminal::{self, Screen};
use super::text::{clean, fit, wrap};
use crate::setup::settings::{Settings, parse_delegation};
use crate::setup::source::{DELEGATION_FILE, SETTINGS_FILE};
use crate::setup::{self, Report, Stage, write};

/// The longest answer: a delegation in Base64 has less than a thousand characters.
const ANSWER_MAX: usize = 8192;

/// How long the setup service may take.
const ANSWER: Duration = Duration::from_secs(130);

/// What kind of TOML value an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    List,
    Number,
}

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    /// `section.key` of the file.
    key: &'static str,
    label: &'static str,
    kind: Kind,
    answer: String,
}

/// Everything that is asked: key, label, kind, what stands there before.
const QUESTIONS: [(&str, &str, Kind, &str); 16] = [
    ("host.name", "host name", Kind::Text, ""),
    ("ledger.url", "ledger: URL", Kind::Text, "https://"),
    ("ledger.canister_id", "ledger: canister id", Kind::Text, ""),
    ("ledger.root_key", "ledger: root key (hex)", Kind::Text, ""),
    ("network.uplink", "port (empty: the only one)", Kind::Text, ""),
    ("network.addresses", "addresses (empty: DHCP)", Kind::List, ""),
    ("network.gateways", "gateways", Kind::List, ""),
    ("network.nameservers", "name servers", Kind::List, ""),
    ("network.public_ip4", "public IPv4 address", Kind::Text, ""),
    ("offering.title", "offering: title", Kind::Text, ""),
    ("offering.region", "offering: region", Kind::Text, ""),
    (
        "offering.prices.vm_hour",
        "price, VM (1e-9 DCT/h)",
        Kind::Number,
        "10000000",
    ),
    (
        "offering.prices.vcpu_hour",
        "price, vCPU",
        Kind::Number,
        "5000000",
    ),
    (
        "offering.prices.memory_gib_hour",
        "price, GiB of memory",
        Kind::Number,
        "2000000",
    ),
    (
        "offering.prices.storage_gib_hour",
        "price, GiB of disk",
        Kind::Number,
        "50000",
    ),
    ("ledger.delegation", "delegation (may come later)", Kind::Text, ""),
];

/// What is on the screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    principal: String,
    attestation_key: String,
    fields: Vec<Field>,
    /// The field that is typed into; behind the last one: saving.
    at: usize,
    faults: Vec<(String, String)>,
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing.
    Stay,
    /// Draw everything anew.
    Redraw,
    /// Leave.
    Quit,
    /// Hand this file in: its name and content.
    Save(&'static str, Vec<u8>),
}

impl Form {
    /// What is missing: all of the settings, or only the delegation.
    pub fn new(report: Option<&Report>) -> Self {
        let only = report.is_some_and(|report| report.stage == Stage::NoDelegation);
        let wanted = |key: &str| !only || key == "ledger.delegation";
        Self {
            principal: report
                .and_then(|report| report.principal.clone())
                .unwrap_or_default(),
            attestation_key: report
                .and_then(|report| report.attestation_key.clone())
                .unwrap_or_default(),
            fields: QUESTIONS
                .into_iter()
                .filter(|(key, ..)| wanted(key))
                .map(|(key, label, kind, answer)| Field {
                    key,
                    label,
                    kind,
                    answer: answer.to_owned(),
                })
                .collect(),
            at: 0,
            faults: Vec::new(),
        }
    }

    /// What a key does.
    pub fn press(&mut self, key: Key) -> Wish {
        let saving = self.fields.len();
        match key {
            Key::Interrupt | Key::Esc => return Wish::Quit,
            Key::Redraw => return Wish::Redraw,
            Key::Enter if self.at == saving => return self.save(),
            Key::Enter | Key::Down | Key::Tab => self.at = (self.at + 1).min(saving),
            Key::Up => self.at = self.at.saturating_sub(1),
            Key::Home | Key::PageUp => self.at = 0,
            Key::End | Key::PageDown => self.at = saving,
            Key::Backspace => {
                if let Some(field) = self.fields.get_mut(self.at) {
                    field.answer.pop();
                }
            }
            Key::Char(c) => {
                if let Some(field) = self.fields.get_mut(self.at)
                    && field.answer.len() < ANSWER_MAX
                    && !c.is_control()
                {
                    field.answer.push(c);
                }
            }
        }
        Wish::Stay
    }

    fn save(&mut self) -> Wish {
        let handed = if self.fields.len() == 1 {
            self.delegation()
                .map_err(|why| vec![("ledger.delegation".to_owned(), why)])
        } else {
            let text = self.text();
            match Settings::parse(text.as_bytes()) {
                Ok(_) => Ok((SETTINGS_FILE, text.into_bytes())),
                Err(faults) => Err(faults.into_iter().map(|fault| (fault.key, fault.why)).collect()),
            }
        };
        match handed {
            Ok((name, content)) => Wish::Save(name, content),
            Err(faults) => {
                self.faults = faults;
                let wrong = |field: &Field| self.faults.iter().any(|(key, _)| key == field.key);
                self.at = self.fields.iter().position(wrong).unwrap_or(self.at);
                Wish::Stay
            }
        }
    }

    fn delegation(&self) -> Result<(&'static str, Vec<u8>), String> {
        let text: String = self.fields[0].answer.split_whitespace().collect();
        let bytes = BASE64_STANDARD
            .decode(text)
            .map_err(|error| format!("isn't Base64 ({error}): base64 -w0 delegation"))?;
        parse_delegation(&bytes)?;
        Ok((DELEGATION_FILE, bytes))
    }

    /// The file that the answers make. Empty ones are left out.
    fn text(&self) -> String {
        let mut whole = Table::new();
        whole.insert("version".to_owned(), Value::Integer(1));
        for field in &self.fields {
            let answer = field.answer.trim();
            if answer.is_empty() {
                continue;
            }
            let text = |text: &str| Value::String(text.trim().to_owned());
            let value = match field.kind {
                Kind::Text => text(answer),
                Kind::List => Value::Array(
                    answer
                        .split([',', ' '])
                        .filter(|s| !s.is_empty())
                        .map(text)
                        .collect(),
                ),
                // What is no number stays as it is, and the parser says so.
                Kind::Number => answer
                    .replace('_', "")
                    .parse()
                    .map_or(text(answer), Value::Integer),
            };
            let mut table = &mut whole;
            let mut words = field.key.split('.').peekable();
            while let Some(word) = words.next() {
                if words.peek().is_none() {
                    table.insert(word.to_owned(), value);
                    break;
                }
                let next = table.entry(word).or_insert_with(|| Value::Table(Table::new()));
                match next {
                    Value::Table(inner) => table = inner,
                    _ => break,
                }
            }
        }
        whole.to_string()
    }

    /// Draws it; at home from 60×12 on, cut below.
    pub fn draw(&self, area: Rect, buffer: &mut Buffer) {
        let columns = usize::from(area.width);
        let mut lines: Vec<(String, Style)> = Vec::new();
        let plain = Style::new();
        let bold = plain.add_modifier(Modifier::BOLD);
        let marked = plain.add_modifier(Modifier::REVERSED);
        let title = if self.fields.len() == 1 {
            "This host waits for its provider's delegation"
        } else {
            "This host has no settings yet"
        };
        lines.push((title.to_owned(), bold));
        lines.push((format!("principal {}", clean(&self.principal)), plain));
        lines.push((clean(&self.attestation_key), plain));
        for (index, field) in self.fields.iter().enumerate() {
            let label = fit(field.label, 28);
            let room = columns.saturating_sub(31);
            // The end of what is typed is what is looked at.
            let answer = clean(&field.answer);
            let skip = answer.chars().count().saturating_sub(room);
            let shown: String = answer.chars().skip(skip).collect();
            let wrong = self.faults.iter().any(|(key, _)| key == field.key);
            let mark = if wrong { '!' } else { ' ' };
            let style = if index == self.at { marked } else { plain };
            lines.push((format!("{mark}{label} {shown}"), style));
        }
        let style = if self.at == self.fields.len() {
            marked
        } else {
            plain
        };
        lines.push((" [ check and save ]".to_owned(), style));
        let here = self.fields.get(self.at).map(|field| field.key);
        let fault = self
            .faults
            .iter()
            .find(|(key, _)| Some(key.as_str()) == here)
            .or(self.faults.first());
        if let Some((key, why)) = fault {
            for line in wrap(&clean(&format!("{key}: {why}")), columns)
                .into_iter()
                .take(3)
            {
                lines.push((line, bold));
            }
        }
        let rows = usize::from(area.height);
        lines.truncate(rows.saturating_sub(1));
        for (row, (line, style)) in (area.y..).zip(&lines) {
            buffer.set_stringn(area.x, row, fit(line, columns), columns, *style);
        }
        if rows > 0 {
            let bar = "up down: field   enter: next, save   ctrl-l: redraw   esc: leave";
            buffer.set_stringn(area.x, area.y + area.height - 1, bar, columns, bold);
        }
    }
}

/// Asks until the operator leaves or the answers were taken; the report then, for the console.
pub(crate) async fn run(root: &Path) -> Result<Option<Report>, TuiError> {
    let mut form = Form::new(setup::last(root).as_ref());
    let mut screen = Screen::open().map_err(TuiError::Terminal)?;
    let mut keys = terminal::keys();
    let mut ends = terminal::Ends::listen().map_err(TuiError::Terminal)?;
    loop {
        screen
            .draw(|area, buffer| form.draw(area, buffer))
            .map_err(TuiError::Terminal)?;
        let event = tokio::select! {
            event = keys.recv() => event,
            () = ends.any() => None,
        };
        let Some(event) = event else {
            return Ok(None);
        };
        let Event::Key { key } = event else {
            continue;
        };
        match form.press(key) {
            Wish::Stay => {}
            Wish::Redraw => screen.clear().map_err(TuiError::Terminal)?,
            Wish::Quit => return Ok(None),
            Wish::Save(name, content) => {
                drop(screen);
                return hand_in(root, name, &content).await.map(Some);
            }
        }
    }
}

/// Puts a file where the setup service looks, and waits for what it says.
async fn hand_in(root: &Path, name: &str, content: &[u8]) -> Result<Report, TuiError> {
    let path = root.join("run/decent-cloud/answers").join(name);
    let failed = |source| TuiError::File {
        path: path.clone(),
        source,
    };
    // The service starts as soon as something lies there: it must be whole then.
    let beside = root.join("run/decent-cloud").join(name);
    write::file(&beside, content, 0o600)
        .and_then(|()| std::fs::rename(&beside, &path))
        .map_err(failed)?;
    let start = Instant::now();
    while path.exists() {
        if start.elapsed() > ANSWER {
            return Err(failed(std::io::Error::other(
                "the setup service took no notice; look at the report for what failed",
            )));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // The report is written when everything is done, which takes a moment longer.
    tokio::time::sleep(Duration::from_secs(2)).await;
    setup::last(root).ok_or_else(|| failed(std::io::Error::other("no report was written")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(stage: Stage) -> Report {
        Report {
            stage,
            source: None,
            faults: vec![],
            done: vec![],
            name: None,
            attestation_key: Some(format!("name:000b{}", "ab".repeat(32))),
            principal: Some("i3o4q-ljrhf-s4evb-ux72j-qdb6g-wzq66-73nfa-h2k3x-dw7zj-4cxkd-zae".into()),
            delegated_until: None,
        }
    }

    fn frame(form: &Form) -> String {
        let area = Rect::new(0, 0, 80, 24);
        let mut buffer = Buffer::empty(area);
        form.draw(area, &mut buffer);
        (0..24)
            .map(|row| {
                let line: String = (0..80).map(|column| buffer[(column, row)].symbol()).collect();
                line.trim_end().to_owned() + "\n"
            })
            .collect()
    }

    fn type_in(form: &mut Form, key: &str, text: &str) {
        form.at = form.fields.iter().position(|field| field.key == key).unwrap();
        for _ in 0..40 {
            form.press(Key::Backspace);
        }
        for c in text.chars() {
            assert_eq!(form.press(Key::Char(c)), Wish::Stay);
        }
    }

    #[test]
    fn answers_become_valid_settings_and_faults_stand_at_their_fields() {
        let mut form = Form::new(Some(&report(Stage::NoSettings)));
        insta::assert_snapshot!("first_boot_empty", frame(&form));
        let root_key = format!(
            "308182301d060d2b0601040182dc7c0503010201060c2b0601040182dc7c05030201036100{}",
            "07".repeat(96)
        );
        for (key, text) in [
            ("host.name", "rack7"),
            ("ledger.url", "https://ledger.example.org"),
            ("ledger.canister_id", "rrkah-fqaaa-aaaaa-aaaaq-cai"),
            ("ledger.root_key", root_key.as_str()),
            ("network.addresses", "203.0.113.10/24, 2001:db8::10/64"),
            ("network.gateways", "198.51.100.1"),
            ("offering.title", "VMs"),
            ("offering.region", "eu-ch"),
            ("offering.prices.vm_hour", "free"),
        ] {
            type_in(&mut form, key, text);
        }
        form.press(Key::End);
        assert_eq!(form.press(Key::Enter), Wish::Stay);
        assert_eq!(form.faults[0].0, "offering.prices.vm_hour", "{:?}", form.faults);
        type_in(&mut form, "offering.prices.vm_hour", "1_000");
        form.press(Key::End);
        assert_eq!(form.press(Key::Enter), Wish::Stay);
        assert_eq!(form.fields[form.at].key, "network.gateways");
        insta::assert_snapshot!("first_boot_fault", frame(&form));
        type_in(&mut form, "network.gateways", "203.0.113.1");
        form.press(Key::End);
        let Wish::Save(name, content) = form.press(Key::Enter) else {
            panic!("{:?}", form.faults);
        };
        assert_eq!(name, SETTINGS_FILE);
        let settings = Settings::parse(&content).unwrap();
        assert_eq!(settings.file.network.addresses.len(), 2);
        assert_eq!(settings.file.offering.prices.vm_hour, 1000);
    }

    #[test]
    fn a_host_with_settings_is_asked_for_the_delegation_alone() {
        let mut form = Form::new(Some(&report(Stage::NoDelegation)));
        insta::assert_snapshot!("first_boot_delegation", frame(&form));
        type_in(&mut form, "ledger.delegation", "AAAA");
        form.press(Key::Enter);
        assert_eq!(form.press(Key::Enter), Wish::Stay);
        assert!(
            form.faults[0].1.contains("isn't a delegation"),
            "{:?}",
            form.faults
        );
        assert_eq!(form.press(Key::Esc), Wish::Quit);
    }

    #[test]
    fn no_size_and_no_text_breaks_the_frame() {
        let mut form = Form::new(None);
        type_in(&mut form, "host.name", &"\u{202e}wide 界 ".repeat(40));
        for (columns, rows) in [(0, 0), (1, 1), (20, 3), (200, 60)] {
            let area = Rect::new(0, 0, columns, rows);
            form.draw(area, &mut Buffer::empty(area));
        }
    }
}
