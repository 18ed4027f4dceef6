//! What a kernel can host, read from the configuration file that its package brings.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::ConfigOption;

use super::config::Kernel;

/// Answers about one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Required options that it lacks; an image can't be built from it unless this is empty.
    pub missing: Vec<String>,
    /// Kinds of VM that it can't host, with the options that it lacks.
    pub cannot_host: BTreeMap<String, Vec<String>>,
}

/// Compares `config-RELEASE` with what is wanted. An option counts if it is built in or a module.
pub fn abilities(config: &str, kernel: &Kernel) -> Abilities {
    let has: BTreeSet<&str> = config
        .lines()
        .filter_map(|line| line.strip_prefix("CONFIG_")?.split_once('='))
        .filter(|(_, value)| matches!(*value, "y" | "m"))
        .map(|(option, _)| option)
        .collect();
    let lacks = |wanted: &[ConfigOption]| -> Vec<String> {
        let missing = wanted.iter().filter(|option| !has.contains(option.as_str()));
        missing.map(|option| format!("CONFIG_{option}")).collect()
    };
    Abilities {
        missing: lacks(&kernel.required_config),
        cannot_host: kernel
            .vm_kinds
            .iter()
            .map(|(kind, wanted)| (kind.clone(), lacks(wanted)))
            .filter(|(_, missing)| !missing.is_empty())
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_counts_as_module_or_built_in_and_not_otherwise() {
        let kernel: Kernel = toml::from_str(
            "package = \"linux-image-amd64\"\ninitrd = []\nrequired_config = [\"A\", \"B\", \"C\", \"D\"]\n\
             [vm_kinds]\nplain = [\"A\"]\ntdx = [\"A\", \"INTEL_TDX_HOST\"]\n",
        )
        .unwrap();
        let found = abilities(
            "CONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_D=\"x\"\nCONFIG_AB=y\n",
            &kernel,
        );
        assert_eq!(found.missing, ["CONFIG_C", "CONFIG_D"]);
        let cannot: Vec<_> = found.cannot_host.into_iter().collect();
        assert_eq!(
            cannot,
            [("tdx".to_owned(), vec!["CONFIG_INTEL_TDX_HOST".to_owned()])]
        );
    }
}
