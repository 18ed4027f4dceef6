//! Golden frames, and what holds for every frame.

use std::collections::BTreeMap;

use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::keys::Key;
use super::model::{Detail, Link};
use super::state::{Answer, Effect, Event, Mode, Order, Page, State, Timed};
use super::text::clean;
use super::theme::{Colours, Glyphs, Theme};
use super::{page, view};
use crate::doctor::{Finding, Report, Severity};
use crate::events::LogEvent;
use crate::inventory::Probe;
use crate::inventory::tests::gpu_host;
use crate::journal::{Step, StepLine, StepState};
use crate::names::OwnName;
use crate::ports::NetCounters;
use crate::surface::model::{
    CapacityStatus, ContractCounts, ContractLine, ContractMoney, EventList, EvidenceFacts, EvidenceVerdict,
    EvidenceView, Explanation, LedgerStatus, Money, Share, Status, VmInfo,
};
use crate::vmm::VmCounters;

/// 2026-11-23 12:00:00 UTC.
const NOW: i64 = 1_795_435_200_000;
const DCT: u64 = 1_000_000_000;

const FULL: Theme = Theme {
    glyphs: Glyphs::Full,
    colours: Colours::Many,
    slow: false,
};

fn status() -> Status {
    let share = |used, total| Share { total, used };
    Status {
        name: "kraken-03".into(),
        version: "0.1.0".into(),
        started_ms: NOW - 3 * 3_600_000,
        ready: true,
        not_ready: vec![],
        draining: false,
        maintenance: None,
        update: None,
        ledger: LedgerStatus {
            url: "https://ledger.example".into(),
            canister_id: "aaaaa-aa".into(),
            host: "host-principal".into(),
            height: 4711,
            heard_ms_ago: Some(800),
            trouble: None,
            offering: Some(7),
            registration_trouble: None,
        },
        capacity: CapacityStatus {
            vcpus: share(48, 128),
            memory_mib: share(192 * 1024, 480 * 1024),
            storage_gib: share(900, 3500),
            gpus: share(1, 2),
            ports: share(12, 10_000),
        },
        contracts: ContractCounts {
            provisioning: 1,
            running: 2,
            removing: 0,
            degraded: 1,
            names_not_routed: 0,
        },
        vmms: vec![],
        quarantine: vec![],
        host_trust: None,
        test_platform: false,
    }
}

fn line(id: &str, phase: &str, kind: &str, grade: &str) -> ContractLine {
    ContractLine {
        id: id.repeat(64 / id.len()),
        phase: phase.into(),
        ledger: "active".into(),
        activity: "watching".into(),
        kind: kind.into(),
        vcpus: 16,
        memory_mib: 64 * 1024,
        slot: Some(3),
        grade: Some(grade.into()),
        ports: vec!["tcp 20001→22".into()],
        gpus: vec![],
        names: vec![format!("{id}.provider.example")],
        own_name: None,
        degraded: None,
        last_error: None,
        opened_ms: NOW - 7_200_000,
    }
}

fn contracts() -> Vec<ContractLine> {
    let gpu = ContractLine {
        gpus: vec!["0000:41:00.0".into()],
        own_name: Some(OwnName {
            name: "shop.example.org".into(),
            routed: false,
            record: "_dcloud.shop.example.org".into(),
            value: "dc=abc".into(),
            why: Some("no such record".into()),
        }),
        ..line("a1b2c3d4", "running", "sev-snp", "hardware-verified")
    };
    vec![
        gpu,
        ContractLine {
            degraded: Some("the VM's process is gone\u{1b}[2J\u{202e}".into()),
            ..line("77aa77aa", "running", "plain", "host-verified")
        },
        ContractLine {
            activity: "launch".into(),
            ledger: "accepted".into(),
            opened_ms: NOW - 60_000,
            ..line("0f0f0f0f", "provisioning", "tdx", "unconfirmed")
        },
    ]
}

fn money() -> Money {
    let of = |held| ContractMoney {
        price_per_hour: DCT / 4,
        held,
        paid_out: DCT,
        accrued: Some(DCT / 2),
        refunded: 0,
        active_since_ms: Some(NOW - 3_600_000),
        deadline_ms: Some(NOW + 3_600_000),
    };
    Money {
        provider: "provider-principal".into(),
        escrow: Probe::Known(41 * DCT + DCT / 2),
        accrued: Probe::Known(DCT + DCT / 2),
        paid_out: Probe::Known(2 * DCT),
        per_hour: Probe::Known(DCT / 2),
        balance: Probe::Known(1_234 * DCT),
        reputation: Probe::Known(12_345_678_900),
        next_reward: Probe::Known(24_500_000_000),
        contracts: contracts()
            .into_iter()
            .map(|line| (line.id, of(12 * DCT)))
            .collect(),
    }
}

fn finding(id: &str, severity: Severity, text: &str, fix: Option<&str>, children: Vec<Finding>) -> Finding {
    Finding {
        id: id.into(),
        severity,
        finding: text.into(),
        evidence: "/proc/cmdline".into(),
        fix: fix.map(str::to_owned),
        children,
    }
}

fn report() -> Report {
    let snp = finding(
        "kvm.sev-snp",
        Severity::Fail,
        "SEV-SNP is offered but doesn't work",
        Some("remove iommu=pt: the kernel refuses SNP unless the IOMMU translates (iommu.passthrough=0)"),
        vec![],
    );
    Report {
        findings: vec![
            finding("machine", Severity::Ok, "AMD EPYC 9354", None, vec![]),
            finding(
                "kvm",
                Severity::Ok,
                "hardware virtualization works",
                None,
                vec![snp],
            ),
            finding(
                "network",
                Severity::Ok,
                "nftables and taps are there",
                None,
                vec![],
            ),
            finding(
                "ledger",
                Severity::Warn,
                "our clock differs from the ledger's",
                Some("look at NTP"),
                vec![],
            ),
        ],
    }
}

fn log() -> EventList {
    let event = |number: u64, level: &str, text: &str| LogEvent {
        number,
        at_ms: NOW - 10_000 + i64::try_from(number).unwrap() * 1000,
        level: level.into(),
        text: text.into(),
    };
    EventList {
        started_ms: NOW - 3 * 3_600_000,
        events: vec![
            event(1, "info", "hostd is up"),
            event(2, "warn", "no heartbeat error=no answer from the ledger"),
            event(3, "info", "confirmed contract=a1b2c3d4 grade=HardwareVerified"),
            event(4, "error", "disk trouble \u{1b}]0;owned\u{7}"),
        ],
    }
}

fn detail() -> Detail {
    let line = contracts().remove(0);
    let step = |at: i64, state, took: Option<i64>| StepLine {
        state,
        attempts: 1,
        started_ms: NOW - 7_200_000 + at,
        ended_ms: took.map(|took| NOW - 7_200_000 + at + took),
        detail: None,
    };
    let steps = BTreeMap::from([
        (Step::Reserve, step(0, StepState::Done, Some(3))),
        (Step::Network, step(100, StepState::Done, Some(48))),
        (Step::Launch, step(400, StepState::Done, Some(5_800))),
        (Step::Attest, step(7_000, StepState::Done, Some(900))),
    ]);
    let check = |id: &str, outcome: &str| serde_json::json!({"id": id, "outcome": outcome, "expected": "11", "found": "22", "reason": "MeasurementMismatch"});
    Detail {
        id: line.id.clone(),
        explanation: Ok(Box::new(Explanation {
            developer: "developer-principal".into(),
            request: serde_json::json!({}),
            allocation: None,
            steps,
            removal: None,
            process: None,
            alive: Some(true),
            endpoint: None,
            configs: vec![],
            evidence: Some(EvidenceFacts {
                bytes: 4321,
                sha256: "ab".repeat(32),
            }),
            line: line.clone(),
        })),
        vm: Some(VmInfo {
            line: line.clone(),
            adapter: Some("cloud-hypervisor".into()),
            pid: Some(4242),
            alive: true,
            counters: Some(VmCounters {
                cpu_us: 90_000_000,
                rss_bytes: 3 << 30,
                ..VmCounters::default()
            }),
            traffic: Some(NetCounters {
                from_vm_bytes: 5_000_000,
                to_vm_bytes: 700,
            }),
            trouble: vec![],
        }),
        console: Ok("[    0.1] Linux\r\n\u{1b}[32mok\u{1b}[0m sshd\r\nlogin: ".into()),
        evidence: Some(EvidenceView {
            verdict: Some(EvidenceVerdict {
                grade: "hardware-verified".into(),
                trust: "pinned".into(),
                at_ms: NOW - 7_000_000,
                result: serde_json::json!({"checks": [check("report-data", "passed"), check("measurement", "failed")]}),
            }),
            why: None,
            refusals: vec!["report_data differs".into()],
        }),
    }
}

fn state() -> State {
    let mut state = State::new(false, NOW);
    state.model.status = Some(status());
    state.model.link = Link::Up;
    state.model.contracts = contracts();
    state.model.money = Some(money());
    state.model.inventory = Some(gpu_host().take());
    state.model.doctor = Some(report());
    state.model.log = Some(log());
    state
}

fn at(event: Event) -> Timed {
    Timed { at_ms: NOW, event }
}

fn press(state: &mut State, keys: &str) -> Vec<Effect> {
    keys.chars()
        .flat_map(|c| {
            let key = match c {
                '\n' => Key::Enter,
                '\u{1b}' => Key::Esc,
                c => Key::Char(c),
            };
            state.apply(at(Event::Key { key }))
        })
        .collect()
}

fn golden(name: &str, state: &mut State, theme: &Theme, (columns, rows): (u16, u16)) {
    state.apply(at(Event::Resize { columns, rows }));
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
    terminal
        .draw(|frame| view::draw(state, theme, frame.area(), frame.buffer_mut()))
        .unwrap();
    insta::assert_snapshot!(name, terminal.backend());
}

#[test]
fn the_overview_at_every_size() {
    for (name, theme, size) in [
        ("overview_80x24", FULL, (80, 24)),
        ("overview_120x40", FULL, (120, 40)),
        ("overview_60x16", FULL, (60, 16)),
        ("overview_plain", Theme::PLAIN, (80, 24)),
    ] {
        golden(name, &mut state(), &theme, size);
    }
}

#[test]
fn every_other_page() {
    for (name, keys) in [
        ("contracts", "2"),
        ("gpus", "3"),
        ("network", "4"),
        ("doctor", "5jj"),
        ("log", "6"),
        ("host", "7"),
        ("help", "?"),
        ("confirm", ":end a1b2\nabuse\nx\n"),
        ("filter", "2/plain"),
    ] {
        let mut state = state();
        press(&mut state, keys);
        golden(name, &mut state, &FULL, (80, 24));
    }
}

#[test]
fn a_contract_in_full() {
    let mut state = state();
    press(&mut state, "2jj\n"); // the degraded one and the young one come first
    let answer = Answer::Detail(Box::new(detail()));
    state.apply(at(Event::Answer { answer }));
    let evidence = detail().evidence.unwrap();
    let id = detail().id;
    state.apply(at(Event::Answer {
        answer: Answer::Evidence { id, evidence },
    }));
    golden("contract_120x40", &mut state, &FULL, (120, 40));
    golden("contract_plain", &mut state, &Theme::PLAIN, (80, 24));
}

#[test]
fn before_the_daemon_answers_and_when_it_is_gone() {
    golden("connecting", &mut State::new(true, NOW), &FULL, (80, 24));
    let mut state = state();
    state.apply(at(Event::Lost {
        why: "no answer on /run/hostd/hostd.sock".into(),
    }));
    golden("lost", &mut state, &Theme::PLAIN, (80, 24));
    let mut fresh = status();
    fresh.started_ms = NOW;
    state.apply(at(Event::Answer {
        answer: Answer::Glance {
            status: Box::new(fresh),
            contracts: contracts(),
        },
    }));
    assert!(
        state
            .notice
            .as_ref()
            .unwrap()
            .text
            .contains("hostd was restarted")
    );
}

#[test]
fn an_order_is_given_only_when_the_right_word_is_typed() {
    let drain = Order::Drain { draining: true };
    for (keys, want) in [
        (":drain\n\n", vec![]),
        (":drain\ny\n", vec![]),
        (":drain\nkraken-03\n", vec![Effect::Order(drain.clone())]),
        ("dkraken-03\n", vec![Effect::Order(drain.clone())]),
        ("u\n", vec![]),
        ("ukraken-03\n", vec![Effect::Order(Order::ApplyUpdate)]),
        (":drain\nwrong\nkraken-03\n", vec![]), // what was typed wrongly is typed anew
        (":drain\nkraken-03\u{1b}", vec![]),
        (
            ":drain end\nkraken-03\n",
            vec![Effect::Order(Order::Drain { draining: false })],
        ),
        (":end a1b2\n\nkraken-03\n", vec![]),
        (":end zzzz\na1b2c3d4\n", vec![]),
        (":fly\n", vec![]),
        (
            "mnew disk\nkraken-03\n",
            vec![Effect::Order(Order::Maintenance {
                reason: Some("new disk".into()),
            })],
        ),
        (
            ":end a1b2\nabuse\na1b2c3d4\n",
            vec![Effect::Order(Order::End {
                id: contracts()[0].id.clone(),
                reason: "abuse".into(),
            })],
        ),
    ] {
        let mut state = state();
        let given = press(&mut state, keys);
        let want = if keys.contains("wrong") {
            vec![Effect::Order(drain.clone())]
        } else {
            want
        };
        assert_eq!(given, want, "{keys:?}");
        let mut state = self::state();
        state.read_only = true;
        let orders = press(&mut state, keys)
            .into_iter()
            .filter(|effect| matches!(effect, Effect::Order(_)));
        assert_eq!(orders.count(), 0, "read only: {keys:?}");
    }
}

#[test]
fn a_recorded_list_of_events_gives_the_same_frame_again() {
    let events = [
        Event::Resize {
            columns: 80,
            rows: 24,
        },
        Event::Answer {
            answer: Answer::Glance {
                status: Box::new(status()),
                contracts: contracts(),
            },
        },
        Event::Answer {
            answer: Answer::Money(Box::new(money())),
        },
        Event::Answer {
            answer: Answer::Inventory(Box::new(gpu_host().take())),
        },
        Event::Answer {
            answer: Answer::Log(log()),
        },
        Event::Key { key: Key::Char('2') },
        Event::Key { key: Key::Enter },
        Event::Answer {
            answer: Answer::Detail(Box::new(detail())),
        },
        Event::Tick,
    ];
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut recorder = super::Recorder::create(file.path()).unwrap();
    let mut seen = State::new(true, NOW);
    for event in events {
        recorder.write(&at(event.clone())).unwrap();
        seen.apply(at(event));
    }
    let mut again = State::new(true, NOW);
    for timed in super::record::read(file.path()).unwrap() {
        again.apply(timed);
    }
    assert_eq!(page(&again, &FULL, (80, 24)), page(&seen, &FULL, (80, 24)));
    std::fs::write(file.path(), "{}\n").unwrap();
    let error = super::record::read(file.path()).unwrap_err().to_string();
    assert!(error.contains("line 1"), "{error}");
}

#[test]
fn the_log_goes_on_after_a_restart_with_the_new_numbers() {
    let mut state = state();
    let mut list = log();
    list.events.drain(..2);
    state.model.add_log(list.clone());
    assert_eq!(state.model.events().len(), 4, "known ones aren't doubled");
    list.started_ms += 1;
    state.model.add_log(list);
    assert_eq!(
        state.model.events().len(),
        2,
        "another hostd's are in their place"
    );
}

fn any_key() -> impl Strategy<Value = Key> {
    prop_oneof![
        any::<char>().prop_map(Key::Char),
        "[q?1-7/sfrhjkgGbdm: end]".prop_map(|text| Key::Char(text.chars().next().unwrap())),
        prop::sample::select(vec![
            Key::Enter,
            Key::Esc,
            Key::Backspace,
            Key::Up,
            Key::Down,
            Key::PageUp,
            Key::PageDown,
            Key::Home,
            Key::End,
            Key::Tab,
        ]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// No size, text, number or key makes it panic, and no cell holds what the terminal would obey.
    #[test]
    fn every_frame_is_harmless(
        (columns, rows) in prop_oneof![(1u16..6, 1u16..6), (1u16..140, 1u16..50)],
        texts in prop::collection::vec(any::<String>(), 8),
        numbers in prop::collection::vec(any::<u64>(), 8),
        times in prop::collection::vec(any::<i64>(), 4),
        keys in prop::collection::vec(any_key(), 0..40),
        plain in any::<bool>(),
    ) {
        let theme = if plain { Theme::PLAIN } else { FULL };
        let mut state = state();
        let status = state.model.status.as_mut().unwrap();
        status.name.clone_from(&texts[0]);
        status.started_ms = times[0];
        status.not_ready = texts.clone();
        status.capacity.vcpus = Share { total: numbers[0], used: numbers[1] };
        status.capacity.memory_mib = Share { total: numbers[2], used: numbers[3] };
        let money = state.model.money.as_mut().unwrap();
        money.escrow = Probe::Known(numbers[4]);
        money.accrued = Probe::Unknown(texts[1].clone());
        for (number, line) in state.model.contracts.iter_mut().enumerate() {
            line.id = format!("{number}{}", texts[2]);
            line.phase.clone_from(&texts[3]);
            line.degraded = Some(texts[4].clone());
            line.memory_mib = numbers[5];
            line.names = texts.clone();
            line.opened_ms = times[1];
        }
        state.model.log.as_mut().unwrap().events[0].text.clone_from(&texts[5]);
        state.model.log.as_mut().unwrap().events[0].at_ms = times[2];
        let mut detail = detail();
        detail.console = Ok(texts[6].clone());
        let explanation = detail.explanation.as_mut().unwrap();
        explanation.steps.get_mut(&Step::Launch).unwrap().ended_ms = Some(times[3]);
        explanation.developer.clone_from(&texts[7]);
        state.apply(at(Event::Resize { columns, rows }));
        for key in keys {
            state.apply(Timed { at_ms: times[0], event: Event::Key { key } });
            if let Some(open) = state.open.clone() {
                detail.id = open;
                state.apply(at(Event::Answer { answer: Answer::Detail(Box::new(detail.clone())) }));
            }
            let frame = page(&state, &theme, (columns, rows));
            prop_assert_eq!(frame.lines().count(), usize::from(rows));
            for line in frame.lines() {
                prop_assert_eq!(clean(line), line);
                prop_assert!(!plain || line.is_ascii(), "{:?}", line);
            }
        }
    }
}

#[test]
fn keys_reach_every_page_and_come_back() {
    let mut state = state();
    for (number, want) in (1..).zip(Page::ALL) {
        press(&mut state, &number.to_string());
        assert_eq!((state.page, state.page.number()), (want, number));
    }
    press(&mut state, "1\n");
    assert!(state.open.is_some() && state.wants().open == state.open);
    press(&mut state, "\u{1b}?");
    assert_eq!((state.open.clone(), state.mode.clone()), (None, Mode::Help));
    assert_eq!(press(&mut state, "xq"), [Effect::Quit]);
}
