//! The genesis: everything about one ledger that isn't decided by its blocks. A TOML file; unknown keys are refused.
//!
//! A genesis that isn't a demo starts with no token at all: the paper knows no way in but block rewards [5.4]. A demo
//! says so in `demo = true`, and only then may it name balances, test roots and a fast clock.

use attestation::tpm::ReferenceKey;
use candid::{CandidType, Principal};
use serde::{Deserialize, Serialize};

use super::block::hash;
use crate::api::{Amount, DCT, Digest32, HostImages, ProductFloors, TcbFloor, TimeNs};

/// The supply that the paper caps the token at [5.4]; genesis balances must stay below it too.
pub const SUPPLY_MAX: Amount = 21_000_000 * DCT;

/// A demo's floor for Genoa: what the simulated platform has. It says nothing of which real firmware is safe.
const DEMO_FLOOR: TcbFloor = TcbFloor {
    fmc: None,
    bootloader: Some(10),
    tee: Some(0),
    snp: Some(23),
    microcode: Some(84),
};

/// Everything that a ledger starts with.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genesis {
    /// Shown to clients, 1–100 characters.
    pub name: String,
    /// Whether this is a demo or test: balances out of nothing, test roots and a fast clock are allowed then.
    pub demo: bool,
    /// The ledger's clock runs so many times as fast as the wall clock; 1 unless `demo`.
    pub clock_rate: u32,
    /// The ledger's time at its start, seconds since the Unix epoch, UTC.
    pub start_time_s: u64,
    /// The DAO's wallet: gets its part of the fees [5.2].
    pub dao_wallet: Principal,
    /// Gets the rest of the fees, transfer fees and registration fees.
    pub fees_wallet: Principal,
    /// The numbers.
    pub parameters: Parameters,
    /// What hosts must have booted for `host-verified`.
    #[serde(default)]
    pub host_images: HostImages,
    /// Floors for TCB versions of SEV-SNP; a request may only raise them. Evidence of a product without one, here or in
    /// the request, is refused.
    #[serde(default)]
    pub min_tcb: ProductFloors,
    /// Balances out of nothing; only in a demo.
    #[serde(default)]
    pub balances: Vec<InitialBalance>,
    /// Attestation roots that aren't a manufacturer's; only in a demo. Evidence under one is marked `test-root`.
    #[serde(default)]
    pub test_roots: Vec<Der>,
}

/// The protocol's named numbers.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// Fee of a payment, withheld from the provider's payout, basis points: 200 [5.2].
    pub fee_bps: u32,
    /// The DAO's part of that fee, basis points [5.2: "a part of it"].
    pub dao_bps: u32,
    /// Fee of an ICRC-1 transfer.
    pub transfer_fee: Amount,
    /// Time to accept a paid request, ledger seconds.
    pub accept_timeout_s: u64,
    /// Time from acceptance to verified evidence, ledger seconds, for a VM without memory.
    pub confirm_timeout_base_s: u64,
    /// Added to that for each GiB of memory (begun ones count), ledger seconds.
    pub confirm_timeout_per_gib_s: u64,
    /// Paid once by a provider [5.4].
    pub provider_registration_fee: Amount,
    /// Paid once by a developer [5.4].
    pub developer_registration_fee: Amount,
    /// Reputation that both sides gain by a payment, basis points of its value in base units: 100 [5.2].
    pub reputation_bps: u32,
    /// The most reputation that one contract gives to one side, base units.
    pub reputation_cap: u64,
    /// What a penalty takes from the other side, basis points of what is spent on it: 20000 [3.1, 5.2].
    pub penalty_bps: u32,
    /// What taking part in a block's reward costs, basis points of the reward: 100 [5.4].
    pub check_in_bps: u32,
    /// The longest period that can be paid ahead, seconds.
    pub period_max_s: u64,
}

/// A balance out of nothing.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitialBalance {
    /// Whose (its default subaccount).
    pub owner: Principal,
    /// How much, base units.
    pub amount: Amount,
    /// Why, for whoever reads the genesis.
    pub reason: String,
}

/// A DER document, hexadecimal in text.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Der(#[serde(with = "hex::serde")] pub Vec<u8>);

/// What is wrong with a genesis.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("genesis: {field}: {why}")]
pub struct GenesisError {
    /// Which key.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub why: String,
}

impl Genesis {
    /// A demo without balances: the paper's numbers, and deadlines that give a slow machine `clock_rate` times as long
    /// on the ledger's clock, so that they are minutes of the wall clock whatever the rate.
    pub fn demo(name: &str, clock_rate: u32, start_time_s: u64) -> Self {
        let rate = u64::from(clock_rate.max(1));
        Self {
            name: name.to_owned(),
            demo: true,
            clock_rate,
            start_time_s,
            dao_wallet: Principal::from_slice(b"decent-demo-dao"),
            fees_wallet: Principal::from_slice(b"decent-demo-fees"),
            parameters: Parameters {
                fee_bps: 200,
                dao_bps: 2_500,
                transfer_fee: 10_000,
                accept_timeout_s: 60 * rate,
                confirm_timeout_base_s: 240 * rate,
                confirm_timeout_per_gib_s: 60 * rate,
                provider_registration_fee: 0,
                developer_registration_fee: 0,
                reputation_bps: 100,
                reputation_cap: 10 * DCT,
                penalty_bps: 20_000,
                check_in_bps: 100,
                period_max_s: 366 * 86_400,
            },
            host_images: HostImages::default(),
            min_tcb: ProductFloors {
                genoa: Some(DEMO_FLOOR),
                ..ProductFloors::default()
            },
            balances: Vec::new(),
            test_roots: Vec::new(),
        }
    }

    /// The first wrong thing, if any.
    pub fn check(&self) -> Result<(), GenesisError> {
        let wrong = |field: &str, why: &str| {
            Err(GenesisError {
                field: field.to_owned(),
                why: why.to_owned(),
            })
        };
        let p = &self.parameters;
        if !(1..=100).contains(&self.name.chars().count()) || self.name.chars().any(char::is_control) {
            return wrong("name", "1 to 100 characters, no control characters");
        }
        if !self.demo && self.clock_rate != 1 {
            return wrong("clock_rate", "must be 1 unless demo = true");
        }
        if !(1..=100_000).contains(&self.clock_rate) {
            return wrong("clock_rate", "from 1 to 100000");
        }
        if self.start().is_none() {
            return wrong(
                "start_time_s",
                "does not fit 64 bits of nanoseconds; give seconds since 1970",
            );
        }
        if !self.demo && !self.balances.is_empty() {
            return wrong(
                "balances",
                "only a demo starts with balances: tokens are minted as block rewards only",
            );
        }
        if !self.demo && !self.test_roots.is_empty() {
            return wrong(
                "test_roots",
                "only a demo trusts roots that aren't a manufacturer's",
            );
        }
        if self.dao_wallet == Principal::anonymous() || self.fees_wallet == Principal::anonymous() {
            return wrong(
                "dao_wallet, fees_wallet",
                "the anonymous principal belongs to everyone",
            );
        }
        for (field, bps) in [
            ("parameters.fee_bps", p.fee_bps),
            ("parameters.dao_bps", p.dao_bps),
            ("parameters.reputation_bps", p.reputation_bps),
            ("parameters.check_in_bps", p.check_in_bps),
        ] {
            if bps > 10_000 {
                return wrong(field, "basis points: at most 10000");
            }
        }
        if !(10_000..=100_000).contains(&p.penalty_bps) {
            return wrong(
                "parameters.penalty_bps",
                "from 10000, as much as was spent, to 100000, ten times that",
            );
        }
        for (field, seconds) in [
            ("parameters.accept_timeout_s", p.accept_timeout_s),
            ("parameters.confirm_timeout_base_s", p.confirm_timeout_base_s),
            ("parameters.period_max_s", p.period_max_s),
        ] {
            if !(1..=100 * 366 * 86_400).contains(&seconds) {
                return wrong(field, "from 1 second to 100 years");
            }
        }
        let images = &self.host_images;
        if images.keys.len() > 16 || images.refused.len() > 256 {
            return wrong("host_images", "at most 16 keys and 256 refused images");
        }
        if images
            .keys
            .iter()
            .any(|pem| ReferenceKey::parse(pem.as_bytes()).is_none())
        {
            return wrong("host_images.keys", "P-256 public keys in PEM");
        }
        if !(60..=366 * 86_400).contains(&images.valid_s) {
            return wrong("host_images.valid_s", "from 60 seconds to 366 days");
        }
        if p.confirm_timeout_per_gib_s > 86_400 * 1_000 {
            return wrong("parameters.confirm_timeout_per_gib_s", "at most 1000 days");
        }
        let mut total: Amount = 0;
        for balance in &self.balances {
            if balance.reason.trim().is_empty() {
                return wrong("balances.reason", "say why this balance exists");
            }
            if balance.amount == 0 || balance.owner == Principal::anonymous() {
                return wrong(
                    "balances",
                    "an amount above 0 for a principal that isn't anonymous",
                );
            }
            total = match total.checked_add(balance.amount) {
                Some(sum) if sum <= SUPPLY_MAX => sum,
                _ => return wrong("balances", "together more than 21 million DCT"),
            };
        }
        Ok(())
    }

    /// The ledger's time at its start; `None`: past the year 2554.
    pub fn start(&self) -> Option<TimeNs> {
        self.start_time_s.checked_mul(1_000_000_000)
    }

    /// SHA-256 of each test root.
    pub fn test_root_digests(&self) -> Vec<Digest32> {
        self.test_roots.iter().map(|root| hash(&[&root.0])).collect()
    }

    /// What the first block names as its parent: binds the chain to this genesis and this ledger.
    pub(crate) fn hash(&self, ledger: Principal) -> Digest32 {
        // Candid of a fixed type is one function of the value; it fails only on a broken writer, and there is none.
        let encoded = candid::encode_args((self, ledger)).unwrap_or_default();
        hash(&[b"\x0fdecent-genesis", &encoded])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_round_trips_and_refuses_unknown_keys() {
        let mut genesis = Genesis::demo("demo", 60, 1_790_000_000);
        genesis.test_roots.push(Der(vec![0x30, 0x00]));
        genesis.balances.push(InitialBalance {
            owner: Principal::from_slice(&[1; 29]),
            amount: DCT,
            reason: "a developer of the demo".into(),
        });
        let text = toml::to_string(&genesis).unwrap();
        assert!(text.contains("3000"), "{text}");
        assert_eq!(toml::from_str::<Genesis>(&text).unwrap(), genesis);
        let bad = text.replace("clock_rate", "clock_rat");
        let error = toml::from_str::<Genesis>(&bad).unwrap_err().to_string();
        assert!(error.contains("clock_rat"), "{error}");
        let bad = text.replace("fee_bps = 200", "fee_bps = 200\nfee_bp = 1");
        assert!(
            toml::from_str::<Genesis>(&bad)
                .unwrap_err()
                .to_string()
                .contains("fee_bp")
        );
    }

    #[test]
    fn only_a_demo_has_balances_test_roots_and_a_fast_clock() {
        let good = Genesis {
            demo: false,
            ..Genesis::demo("real", 1, 1_790_000_000)
        };
        assert_eq!(good.check(), Ok(()));
        let balance = InitialBalance {
            owner: Principal::from_slice(&[1]),
            amount: 1,
            reason: "because".into(),
        };
        let table: &[(&str, Genesis)] = &[
            (
                "clock_rate",
                Genesis {
                    clock_rate: 2,
                    ..good.clone()
                },
            ),
            (
                "balances",
                Genesis {
                    balances: vec![balance.clone()],
                    ..good.clone()
                },
            ),
            (
                "test_roots",
                Genesis {
                    test_roots: vec![Der(vec![1])],
                    ..good.clone()
                },
            ),
            (
                "name",
                Genesis {
                    name: String::new(),
                    ..good.clone()
                },
            ),
            (
                "start_time_s",
                Genesis {
                    start_time_s: u64::MAX,
                    ..good.clone()
                },
            ),
            (
                "parameters.fee_bps",
                Genesis {
                    parameters: Parameters {
                        fee_bps: 10_001,
                        ..good.parameters.clone()
                    },
                    ..good.clone()
                },
            ),
            (
                "balances",
                Genesis {
                    demo: true,
                    balances: vec![
                        InitialBalance {
                            amount: SUPPLY_MAX,
                            ..balance.clone()
                        },
                        balance.clone(),
                    ],
                    ..good.clone()
                },
            ),
            (
                "balances.reason",
                Genesis {
                    demo: true,
                    balances: vec![InitialBalance {
                        reason: " ".into(),
                        ..balance
                    }],
                    ..good.clone()
                },
            ),
        ];
        for (field, genesis) in table {
            assert_eq!(&genesis.check().unwrap_err().field, field);
        }
    }
}
