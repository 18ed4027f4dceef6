use std::cell::RefCell;

use super::*;

/// What a VM's sources answer; every one that isn't set fails with its name.
#[derive(Default)]
struct Answers {
    tsm: Option<TsmReport>,
    sev_guest: Option<(Vec<u8>, Vec<u8>)>,
    tdx_guest: Option<[u8; TD_REPORT_LEN]>,
    quote_service: Option<Vec<u8>>,
    simulator: Option<(Vec<u8>, Vec<u8>)>,
    event_log: Option<Vec<u8>>,
    asked: RefCell<Vec<&'static str>>,
}

impl Answers {
    fn give<T: Clone>(&self, name: &'static str, answer: &Option<T>) -> Result<T, String> {
        self.asked.borrow_mut().push(name);
        answer.clone().ok_or_else(|| format!("no {name} here"))
    }
}

impl Sources for Answers {
    fn tsm(&self, _: &[u8; 64]) -> Result<TsmReport, String> {
        self.give("tsm", &self.tsm)
    }
    fn sev_guest(&self, _: &[u8; 64]) -> Result<(Vec<u8>, Vec<u8>), String> {
        self.give("sev_guest", &self.sev_guest)
    }
    fn tdx_guest(&self, _: &[u8; 64]) -> Result<[u8; TD_REPORT_LEN], String> {
        self.give("tdx_guest", &self.tdx_guest)
    }
    fn quote_service(&self, report: &[u8; TD_REPORT_LEN]) -> Result<Vec<u8>, String> {
        assert_eq!(Some(*report), self.tdx_guest, "the quote is over the TDREPORT");
        self.give("quote_service", &self.quote_service)
    }
    fn simulator(&self, _: &[u8; 64]) -> Result<(Vec<u8>, Vec<u8>), String> {
        self.give("simulator", &self.simulator)
    }
    fn event_log(&self) -> Option<Vec<u8>> {
        self.event_log.clone()
    }
}

fn vector(name: &str) -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/");
    std::fs::read(format!("{path}{name}")).unwrap()
}

/// A real report, its VCEK, and the question that it answers.
fn snp_vector() -> (Vec<u8>, Vec<u8>, [u8; 64]) {
    let report = vector("snp/genoa-v5-lunal-a-siena/report.bin");
    let question = Report::parse(&report).unwrap().report_data();
    (report, vector("snp/genoa-v5-lunal-a-siena/vek.der"), question)
}

fn tdx_vector() -> (Vec<u8>, [u8; 64]) {
    let quote = vector("tdx/tdx-v4-automatanetwork-4b23198a/quote.bin");
    let question = tdx::report_data(&quote).unwrap();
    (quote, question)
}

fn tsm_answer(provider: &str, report: &[u8], auxiliary: &[u8]) -> Option<TsmReport> {
    Some(TsmReport {
        provider: provider.to_owned(),
        report: report.to_vec(),
        auxiliary: auxiliary.to_vec(),
    })
}

#[test]
fn an_snp_guest_takes_configfs_and_without_it_the_device_with_the_hosts_certificates() {
    let (report, vcek, question) = snp_vector();
    let table = Table::of_chain(std::slice::from_ref(&vcek));
    let want = CpuEvidence::SevSnp {
        report: report.clone(),
        certificates: vec![vcek],
    };
    let device = Some((report.clone(), table.clone()));
    let by_tsm = Answers {
        tsm: tsm_answer("sev_guest", &report, &table),
        sev_guest: device.clone(),
        ..Answers::default()
    };
    assert_eq!(evidence_of(&by_tsm, Platform::SevSnp, &question).unwrap(), want);
    assert_eq!(*by_tsm.asked.borrow(), ["tsm"]);

    let stale = [&report[..0x50], &[9; 64], &report[0x90..]].concat();
    for tsm in [
        None,
        tsm_answer("arm_cca_guest", &report, &[]),
        tsm_answer("tdx_guest", &tdx_vector().0, &[]),
        tsm_answer("sev_guest", b"no report", &table),
        tsm_answer("sev_guest", &stale, &table),
    ] {
        let by_device = Answers {
            tsm: tsm.clone(),
            sev_guest: device.clone(),
            ..Answers::default()
        };
        let got = evidence_of(&by_device, Platform::SevSnp, &question);
        assert_eq!(got.unwrap(), want, "{tsm:?}");
        assert_eq!(*by_device.asked.borrow(), ["tsm", "sev_guest"]);
    }
    let without_table = Answers {
        sev_guest: Some((report.clone(), vec![0xff; 16384])),
        ..Answers::default()
    };
    let got = evidence_of(&without_table, Platform::SevSnp, &question).unwrap();
    let certificates = vec![];
    assert_eq!(
        got,
        CpuEvidence::SevSnp { report, certificates },
        "a lying table costs its certificates only"
    );
}

#[test]
fn a_td_asks_the_hosts_quote_service_and_without_it_configfs() {
    let (quote, question) = tdx_vector();
    let td_report = Some([7; TD_REPORT_LEN]);
    let want = CpuEvidence::Tdx {
        quote: quote.clone(),
        event_log: Some(b"log".to_vec()),
    };
    let event_log = Some(b"log".to_vec());
    for (tdx_guest, service, asked) in [
        (
            td_report,
            Some(quote.clone()),
            &["tdx_guest", "quote_service"][..],
        ),
        (td_report, None, &["tdx_guest", "quote_service", "tsm"]),
        (
            td_report,
            Some(b"no quote".to_vec()),
            &["tdx_guest", "quote_service", "tsm"],
        ),
        (None, Some(quote.clone()), &["tdx_guest", "tsm"]),
    ] {
        let answers = Answers {
            tdx_guest,
            quote_service: service,
            tsm: tsm_answer("tdx_guest", &quote, &[]),
            event_log: event_log.clone(),
            ..Answers::default()
        };
        let got = evidence_of(&answers, Platform::Tdx, &question);
        assert_eq!(got.unwrap(), want, "{asked:?}");
        assert_eq!(*answers.asked.borrow(), asked);
    }
}

#[test]
fn where_nothing_answers_the_error_says_what_each_source_said() {
    let nothing = Answers::default();
    let says = |platform| evidence_of(&nothing, platform, &[0; 64]).unwrap_err().to_string();
    assert_eq!(
        says(Platform::SevSnp),
        "no report from configfs-tsm (no tsm here), nor from /dev/sev-guest (no sev_guest here)"
    );
    assert_eq!(
        says(Platform::Tdx),
        "no report from the host's quote service (/dev/tdx_guest: no tdx_guest here), nor from configfs-tsm (no tsm here)"
    );
    assert_eq!(
        says(Platform::Simulated),
        "no report from the simulator (no simulator here)"
    );
    nothing.asked.borrow_mut().clear();
    assert_eq!(
        evidence_of(&nothing, Platform::Plain, &[0; 64]).unwrap(),
        CpuEvidence::None
    );
    assert!(nothing.asked.borrow().is_empty(), "nobody is asked");
    // Protected memory: what the host gave as the simulator's port has no say.
    let (report, _, question) = snp_vector();
    let answers = Answers {
        simulator: Some((report, vec![])),
        ..Answers::default()
    };
    for platform in [Platform::SevSnp, Platform::Tdx] {
        assert!(evidence_of(&answers, platform, &question).is_err());
    }
    assert!(!answers.asked.borrow().contains(&"simulator"));
}

#[test]
fn an_event_log_comes_without_its_padding_and_not_too_long() {
    let (quote, question) = tdx_vector();
    for (area, want) in [
        (
            Some([&b"log\xff"[..], &[0xff; 65536]].concat()),
            Some([&b"log"[..], &[0xff; 64]].concat()),
        ),
        (Some(b"log".to_vec()), Some(b"log".to_vec())),
        (Some(vec![0xff; 100]), None),
        (Some(vec![]), None),
        (Some(vec![1; EVENT_LOG_LEN_MAX + 1]), None),
        (None, None),
    ] {
        let answers = Answers {
            tsm: tsm_answer("tdx_guest", &quote, &[]),
            event_log: area,
            ..Answers::default()
        };
        let got = evidence_of(&answers, Platform::Tdx, &question).unwrap();
        let CpuEvidence::Tdx { event_log, .. } = got else {
            panic!("a TD's evidence")
        };
        assert_eq!(event_log, want);
    }
}

/// A TDREPORT that a real TDX module made (over zeroes), of a launch with this `MRCONFIGID`.
fn td_report(config: &[u8; 48]) -> [u8; TD_REPORT_LEN] {
    let mut report: [u8; TD_REPORT_LEN] = vector("tdx/tdreport/lunal-tdreport.bin").try_into().unwrap();
    report[576..624].copy_from_slice(config);
    let hash = Sha384::digest(&report[512..]);
    report[80..128].copy_from_slice(&hash);
    report
}

#[test]
fn a_tds_launch_is_bound_to_the_contract_in_its_tdreport_and_to_nothing_else() {
    let contract_of = |report| {
        let answers = Answers {
            tdx_guest: report,
            // A quote comes by way of the host: it must never decide.
            quote_service: Some(tdx_vector().0),
            tsm: tsm_answer("tdx_guest", &tdx_vector().0, &[]),
            ..Answers::default()
        };
        let contract = contract_in(&answers, Platform::Tdx);
        assert_eq!(*answers.asked.borrow(), ["tdx_guest"]);
        contract
    };
    let mut config = [0; 48];
    config[..32].fill(0xc0);
    assert_eq!(contract_of(Some(td_report(&config))).unwrap(), Some([0xc0; 32]));
    // As the module made it.
    let real = vector("tdx/tdreport/lunal-tdreport.bin").try_into().unwrap();
    assert_eq!(contract_of(Some(real)).unwrap(), Some([0; 32]));

    let refused = |report: Option<[u8; TD_REPORT_LEN]>| contract_of(report).unwrap_err().to_string();
    for byte in 32..48 {
        let mut longer = config;
        longer[byte] = 1;
        let why = refused(Some(td_report(&longer)));
        assert!(
            why.starts_with("MRCONFIGID of this TD is no contract id: c0c0"),
            "{why}"
        );
    }
    let with = |at: usize, value| {
        let mut report = td_report(&config);
        report[at] = value;
        Some(report)
    };
    assert_eq!(refused(None), "no report from /dev/tdx_guest (no tdx_guest here)");
    assert_eq!(refused(with(0, 0)), "the TDREPORT isn't one of a TD");
    for byte in 128..192 {
        assert_eq!(refused(with(byte, 1)), "the TDREPORT answers another question");
    }
    for byte in 512..TD_REPORT_LEN {
        let report = td_report(&config);
        assert_eq!(
            refused(with(byte, !report[byte])),
            "TEE_INFO_HASH of the TDREPORT isn't of its TDINFO",
            "{byte}"
        );
    }
}

#[test]
fn an_snp_guests_launch_is_bound_to_host_data_and_a_plain_vms_to_nothing() {
    let (mut report, ..) = snp_vector();
    report[0x50..0x90].fill(0);
    report[0xc0..0xe0].fill(0xc0);
    let answers = Answers {
        sev_guest: Some((report, vec![])),
        ..Answers::default()
    };
    assert_eq!(contract_in(&answers, Platform::SevSnp).unwrap(), Some([0xc0; 32]));
    let nothing = Answers::default();
    assert_eq!(contract_in(&nothing, Platform::Plain).unwrap(), None);
    for platform in [Platform::SevSnp, Platform::Tdx, Platform::Simulated] {
        assert!(contract_in(&nothing, platform).is_err());
    }
}
