//! What is on the screen, and what each event changes. Pure: the same events give the same state.

use serde::{Deserialize, Serialize};

use super::keys::Key;
use super::model::{Detail, Link, Model};
pub use super::order::{Confirm, Order};
use super::view;
use crate::doctor::Report;
use crate::inventory::Inventory;
use crate::journal::now_ms;
use crate::surface::model::{ContractLine, EventList, EvidenceView, Money, Status};

/// Longest text that can be typed, characters: the longest reason that the daemon takes.
const TYPED_MAX: usize = 400;

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The screen was opened so.
    Start {
        /// No orders.
        read_only: bool,
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// A key was pressed.
    Key {
        /// Which.
        key: Key,
    },
    /// The terminal has another size.
    Resize {
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// The daemon answered.
    Answer {
        /// What.
        answer: Answer,
    },
    /// The daemon doesn't answer.
    Lost {
        /// Why.
        why: String,
    },
    /// What came of an order.
    Done {
        /// Whether it was taken.
        ok: bool,
        /// In words.
        text: String,
    },
    /// Time passes.
    Tick,
}

/// An answer of the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The host and its contracts.
    Glance {
        /// The host.
        status: Box<Status>,
        /// Contracts.
        contracts: Vec<ContractLine>,
    },
    /// What it earns.
    Money(Box<Money>),
    /// The machine.
    Inventory(Box<Inventory>),
    /// The doctor's report.
    Doctor(Report),
    /// New in the log.
    Log(EventList),
    /// The contract that is looked at.
    Detail(Box<Detail>),
    /// Its evidence.
    Evidence {
        /// Which contract's.
        id: String,
        /// It.
        evidence: EvidenceView,
    },
}

/// An event and when it happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timed {
    /// When, ms since the Unix epoch.
    pub at_ms: i64,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

impl Timed {
    /// Of now.
    pub fn now(event: Event) -> Self {
        Self {
            at_ms: now_ms(),
            event,
        }
    }
}

/// What is to be done beside drawing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The operator has seen enough.
    Quit,
    /// Everything is to be drawn anew.
    Redraw,
    /// The daemon is to be told.
    Order(Order),
}

/// A page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Page {
    /// Everything at a glance.
    Overview,
    /// Contracts in full width.
    Contracts,
    /// GPUs.
    Gpus,
    /// Ports, names, routes.
    Network,
    /// Checks and fixes.
    Doctor,
    /// The log.
    Log,
    /// The host: reasons in full, and the actions.
    Host,
}

impl Page {
    /// In the order of their keys.
    pub const ALL: [Self; 7] = [
        Self::Overview,
        Self::Contracts,
        Self::Gpus,
        Self::Network,
        Self::Doctor,
        Self::Log,
        Self::Host,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Overview => "overview",
            Self::Contracts => "contracts",
            Self::Gpus => "gpus",
            Self::Network => "network",
            Self::Doctor => "doctor",
            Self::Log => "log",
            Self::Host => "host",
        }
    }

    /// Its key.
    pub fn number(self) -> usize {
        Self::ALL.iter().position(|page| *page == self).unwrap_or(0) + 1
    }
}

/// An order of contracts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Those with trouble first.
    Trouble,
    /// The youngest first.
    Age,
    /// The largest first.
    Size,
    /// By id.
    Id,
}

impl Sort {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trouble => "trouble",
            Self::Age => "age",
            Self::Size => "size",
            Self::Id => "id",
        }
    }

    fn next(self) -> Self {
        match self {
            Self::Trouble => Self::Age,
            Self::Age => Self::Size,
            Self::Size => Self::Id,
            Self::Id => Self::Trouble,
        }
    }
}

/// What keys mean now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Moving about.
    Look,
    /// The help page.
    Help,
    /// A filter is typed.
    Filter(String),
    /// A command is typed.
    Command(String),
    /// An order waits for its reason or its confirmation.
    Confirm(Confirm),
}

/// What the screen asks of the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// The contract that is looked at.
    pub open: Option<String>,
    /// Changes when everything shall be asked anew.
    pub refresh: u64,
}

/// A sentence for some seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// It.
    pub text: String,
    /// Whether it is bad news.
    pub bad: bool,
    /// Until when, ms since the Unix epoch.
    until_ms: i64,
}

/// How long a notice stays.
const NOTICE_MS: i64 = 8_000;

/// All that a frame is drawn from.
#[derive(Clone, Debug)]
pub struct State {
    /// What the daemon said.
    pub model: Model,
    /// The time of the last event, ms since the Unix epoch.
    pub now_ms: i64,
    /// Columns and rows.
    pub size: (u16, u16),
    /// The page.
    pub page: Page,
    /// The contract that is looked at.
    pub open: Option<String>,
    /// The selected line of the page's list.
    pub selected: usize,
    /// The first line of a text that is shown; of a text that is followed, counted from its end.
    pub scroll: usize,
    /// The order of contracts.
    pub sort: Sort,
    /// Lines without this text aren't shown.
    pub filter: String,
    /// Whether log and console are followed.
    pub follow: bool,
    /// What keys mean.
    pub mode: Mode,
    /// A sentence for some seconds.
    pub notice: Option<Notice>,
    /// No orders.
    pub read_only: bool,
    refresh: u64,
}

impl State {
    /// Before the first answer.
    pub fn new(read_only: bool, now_ms: i64) -> Self {
        Self {
            model: Model::default(),
            now_ms,
            size: (80, 24),
            page: Page::Overview,
            open: None,
            selected: 0,
            scroll: 0,
            sort: Sort::Trouble,
            filter: String::new(),
            follow: true,
            mode: Mode::Look,
            notice: None,
            read_only,
            refresh: 0,
        }
    }

    /// What the daemon is to be asked for.
    pub fn wants(&self) -> Wants {
        Wants {
            open: self.open.clone(),
            refresh: self.refresh,
        }
    }

    /// The contracts that are shown, in their order.
    pub fn contracts(&self) -> Vec<&ContractLine> {
        let holds = |line: &&ContractLine| {
            let trouble = line.degraded.iter().chain(&line.last_error).chain(&line.grade);
            let words = [&line.id, &line.phase, &line.ledger, &line.kind, &line.activity];
            let mut words = words.into_iter().chain(trouble).chain(&line.names);
            self.filter.is_empty() || words.any(|word| self.matches(word))
        };
        let mut lines: Vec<_> = self.model.contracts.iter().filter(holds).collect();
        let trouble = |line: &ContractLine| {
            (
                line.degraded.is_some(),
                line.last_error.is_some(),
                line.phase != "running",
            )
        };
        lines.sort_by(|a, b| {
            let order = match self.sort {
                Sort::Trouble => trouble(b).cmp(&trouble(a)).then(b.opened_ms.cmp(&a.opened_ms)),
                Sort::Age => b.opened_ms.cmp(&a.opened_ms),
                Sort::Size => (b.memory_mib, b.vcpus).cmp(&(a.memory_mib, a.vcpus)),
                Sort::Id => std::cmp::Ordering::Equal,
            };
            order.then(a.id.cmp(&b.id))
        });
        lines
    }

    /// Whether the filter lets a text through.
    pub fn matches(&self, text: &str) -> bool {
        self.filter.is_empty() || text.to_lowercase().contains(&self.filter.to_lowercase())
    }

    /// Takes in one event.
    pub fn apply(&mut self, timed: Timed) -> Vec<Effect> {
        self.now_ms = timed.at_ms;
        if self
            .notice
            .as_ref()
            .is_some_and(|notice| notice.until_ms < self.now_ms)
        {
            self.notice = None;
        }
        let effects = match timed.event {
            Event::Key { key } => self.key(key),
            Event::Start {
                read_only,
                columns,
                rows,
            } => {
                (self.read_only, self.size) = (read_only, (columns, rows));
                vec![]
            }
            Event::Resize { columns, rows } => {
                self.size = (columns, rows);
                vec![]
            }
            Event::Answer { answer } => {
                self.answer(answer);
                vec![]
            }
            Event::Lost { why } => {
                if !matches!(self.model.link, Link::Lost { .. }) {
                    self.model.link = Link::Lost {
                        why,
                        since_ms: self.now_ms,
                    };
                }
                vec![]
            }
            Event::Done { ok, text } => {
                self.say(text, !ok);
                self.refresh += 1;
                vec![]
            }
            Event::Tick => vec![],
        };
        self.keep_in_bounds();
        effects
    }

    fn say(&mut self, text: impl Into<String>, bad: bool) {
        self.notice = Some(Notice {
            text: text.into(),
            bad,
            until_ms: self.now_ms.saturating_add(NOTICE_MS),
        });
    }

    fn answer(&mut self, answer: Answer) {
        match answer {
            Answer::Glance { status, contracts } => {
                let before = self.model.status.as_ref().map(|status| status.started_ms);
                match (&self.model.link, before) {
                    (_, Some(before)) if before != status.started_ms => {
                        self.say("connected again: hostd was restarted, VMs ran on", false);
                        self.refresh += 1;
                    }
                    (Link::Lost { .. }, _) => self.say("connected again", false),
                    _ => {}
                }
                self.model.link = Link::Up;
                self.model.status = Some(*status);
                self.model.contracts = contracts;
            }
            Answer::Money(money) => self.model.money = Some(*money),
            Answer::Inventory(inventory) => self.model.inventory = Some(*inventory),
            Answer::Doctor(report) => self.model.doctor = Some(report),
            Answer::Log(list) => self.model.add_log(list),
            Answer::Detail(mut detail) => {
                if self.open.as_ref() == Some(&detail.id) {
                    let before = self.model.detail.take().filter(|before| before.id == detail.id);
                    detail.evidence = before.and_then(|before| before.evidence);
                    self.model.detail = Some(*detail);
                }
            }
            Answer::Evidence { id, evidence } => {
                if let Some(detail) = self.model.detail.as_mut().filter(|detail| detail.id == id) {
                    detail.evidence = Some(evidence);
                } else if self.open.as_ref() == Some(&id) {
                    // Faster than the rest of the contract.
                    self.model.detail = Some(Detail {
                        explanation: Err("asked".into()),
                        vm: None,
                        console: Err("asked".into()),
                        evidence: Some(evidence),
                        id,
                    });
                }
            }
        }
    }

    fn key(&mut self, key: Key) -> Vec<Effect> {
        match key {
            Key::Interrupt => return vec![Effect::Quit],
            Key::Redraw => return vec![Effect::Redraw],
            _ => {}
        }
        match std::mem::replace(&mut self.mode, Mode::Look) {
            Mode::Look => self.look(key),
            Mode::Help => vec![], // any key ends it
            Mode::Filter(text) => {
                match typed(text, key) {
                    Typed::Still(text) => {
                        self.filter.clone_from(&text);
                        self.mode = Mode::Filter(text);
                    }
                    Typed::Done(text) => self.filter = text,
                    Typed::Left => self.filter.clear(),
                }
                self.selected = 0;
                vec![]
            }
            Mode::Command(text) => match typed(text, key) {
                Typed::Still(text) => {
                    self.mode = Mode::Command(text);
                    vec![]
                }
                Typed::Done(text) => self.command(text.trim()),
                Typed::Left => vec![],
            },
            Mode::Confirm(confirm) => self.confirm(confirm, key),
        }
    }

    fn show(&mut self, page: Page) {
        (self.page, self.open, self.selected, self.scroll) = (page, None, 0, 0);
        self.model.detail = None;
    }

    fn look(&mut self, key: Key) -> Vec<Effect> {
        let screen = usize::from(self.size.1).saturating_sub(6).max(1);
        match key {
            Key::Char('q') => return vec![Effect::Quit],
            Key::Char('?' | 'h') => self.mode = Mode::Help,
            Key::Char(digit @ '1'..='7') => self.show(Page::ALL[digit as usize - '1' as usize]),
            Key::Tab => self.show(Page::ALL[self.page.number() % Page::ALL.len()]),
            Key::Char('/') => self.mode = Mode::Filter(String::new()),
            Key::Char(':') => self.mode = Mode::Command(String::new()),
            Key::Char('s') => {
                self.sort = self.sort.next();
                self.say(format!("order: {}", self.sort.name()), false);
            }
            Key::Char('f') => {
                (self.follow, self.scroll) = (!self.follow, 0);
                self.say(
                    if self.follow {
                        "following"
                    } else {
                        "standing still"
                    },
                    false,
                );
            }
            Key::Char('r') => {
                self.refresh += 1;
                self.say("asked anew", false);
            }
            Key::Enter => self.enter(),
            Key::Esc | Key::Backspace => {
                if self.open.take().is_some() {
                    (self.model.detail, self.scroll) = (None, 0);
                } else if !self.filter.is_empty() {
                    self.filter.clear();
                } else {
                    self.notice = None;
                }
            }
            Key::Down | Key::Char('j') => self.step(1, true),
            Key::Up | Key::Char('k') => self.step(1, false),
            Key::PageDown | Key::Char(' ') => self.step(screen, true),
            Key::PageUp | Key::Char('b') => self.step(screen, false),
            Key::Home | Key::Char('g') => self.step(usize::MAX, false),
            Key::End | Key::Char('G') => self.step(usize::MAX, true),
            Key::Char('d') => return self.command("drain"),
            Key::Char('m') => return self.command("maintenance"),
            Key::Char('u') => return self.command("update"),
            _ => {}
        }
        vec![]
    }

    fn step(&mut self, by: usize, down: bool) {
        let place = if self.open.is_some() || view::is_text(self.page) {
            &mut self.scroll
        } else {
            &mut self.selected
        };
        // Of a text that is followed the scroll is counted from its end.
        let backwards = self.open.is_none() && self.page == Page::Log && self.follow;
        *place = if down != backwards {
            place.saturating_add(by)
        } else {
            place.saturating_sub(by)
        };
    }

    fn keep_in_bounds(&mut self) {
        let lines = view::list_len(self);
        self.selected = self.selected.min(lines.saturating_sub(1));
        self.scroll = self.scroll.min(view::text_len(self).saturating_sub(1));
    }

    fn enter(&mut self) {
        if self.open.is_some() || !view::lists_contracts(self.page) {
            return;
        }
        let id = self.contracts().get(self.selected).map(|line| line.id.clone());
        if id.is_some() {
            (self.open, self.scroll, self.model.detail) = (id, 0, None);
        }
    }

    fn command(&mut self, text: &str) -> Vec<Effect> {
        let (verb, rest) = text
            .split_once(' ')
            .map_or((text, ""), |(verb, rest)| (verb, rest.trim()));
        let order = match (verb, rest) {
            ("", _) => return vec![],
            ("q" | "quit" | "exit", _) => return vec![Effect::Quit],
            ("help" | "?", _) => {
                self.mode = Mode::Help;
                return vec![];
            }
            ("drain", "end") => Order::Drain { draining: false },
            ("drain", "") => Order::Drain { draining: true },
            ("maintenance", "end") => Order::Maintenance { reason: None },
            ("maintenance", reason) => Order::Maintenance {
                reason: Some(reason.to_owned()),
            },
            ("update", "") => Order::ApplyUpdate,
            ("end", given) => {
                let open = self.open.clone().filter(|_| given.is_empty());
                let given = given.to_lowercase();
                let lines = self.model.contracts.iter();
                let mut named = lines.filter(|line| given.len() >= 4 && line.id.starts_with(&given));
                match (open, named.next(), named.next()) {
                    (Some(id), _, _) => Order::End {
                        id,
                        reason: String::new(),
                    },
                    (None, Some(line), None) => Order::End {
                        id: line.id.clone(),
                        reason: String::new(),
                    },
                    _ => {
                        self.say("name one contract: `end` and at least 4 digits of its id", true);
                        return vec![];
                    }
                }
            }
            (word, _) => {
                match Page::ALL.into_iter().find(|page| page.name() == word) {
                    Some(page) => self.show(page),
                    None => self.say(format!("{word:?} is no command; ? explains the keys"), true),
                }
                return vec![];
            }
        };
        self.begin(order);
        vec![]
    }

    /// Asks for an order's reason and confirmation.
    fn begin(&mut self, order: Order) {
        if self.read_only {
            self.say("read only: no actions here", true);
            return;
        }
        let host = self.model.status.as_ref().map(|status| status.name.clone());
        let want = match (&order, host) {
            (Order::End { id, .. }, _) => id.chars().take(8).collect(),
            (_, Some(name)) => name,
            (_, None) => {
                self.say("the daemon hasn't answered yet", true);
                return;
            }
        };
        let reason = match &order {
            Order::Maintenance { reason: Some(reason) } | Order::End { reason, .. } => reason.is_empty(),
            Order::Maintenance { reason: None } | Order::Drain { .. } | Order::ApplyUpdate => false,
        };
        self.mode = Mode::Confirm(Confirm {
            order,
            reason,
            typed: String::new(),
            want,
            wrong: None,
        });
    }

    fn confirm(&mut self, mut confirm: Confirm, key: Key) -> Vec<Effect> {
        let text = match typed(std::mem::take(&mut confirm.typed), key) {
            Typed::Left => {
                self.say("nothing was done", false);
                return vec![];
            }
            Typed::Still(text) => {
                confirm.typed = text;
                self.mode = Mode::Confirm(confirm);
                return vec![];
            }
            Typed::Done(text) => text.trim().to_owned(),
        };
        confirm.wrong = None;
        if confirm.reason {
            if text.is_empty() {
                confirm.wrong = Some("a reason is needed".into());
            } else {
                confirm.reason = false;
                match &mut confirm.order {
                    Order::Maintenance { reason } => *reason = Some(text),
                    Order::End { reason, .. } => *reason = text,
                    Order::Drain { .. } | Order::ApplyUpdate => {}
                }
            }
            self.mode = Mode::Confirm(confirm);
            return vec![];
        }
        if text != confirm.want {
            confirm.wrong = Some(format!("that isn't {}", confirm.want));
            self.mode = Mode::Confirm(confirm);
            return vec![];
        }
        self.say("sent", false);
        vec![Effect::Order(confirm.order)]
    }
}

/// What came of a key while text is typed.
enum Typed {
    Still(String),
    Done(String),
    Left,
}

fn typed(mut text: String, key: Key) -> Typed {
    match key {
        Key::Enter => return Typed::Done(text),
        Key::Esc => return Typed::Left,
        Key::Backspace => drop(text.pop()),
        Key::Char(c) if text.chars().count() < TYPED_MAX && !c.is_control() => text.push(c),
        _ => {}
    }
    Typed::Still(text)
}
