//! Kernel modules: which ones an image needs, and the tables that `modprobe` reads.
//!
//! `depmod` would want an unpacked tree and its own version decides about its output, so the two tables are made here
//! from what each module says in its `.modinfo` section (`depends=`, `alias=`, `softdep=`).

use std::collections::{BTreeMap, BTreeSet};

use crate::config::ModuleName;
use crate::elf;
use crate::tree::{Kind, Tree, TreeError};

/// Why the modules of an image can't be put together.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// The kernel package has no such module, neither as a file nor built in.
    #[error(
        "the kernel {release} has no module {name:?} (needed by {wanted_by}); take it out of the list or choose another kernel"
    )]
    Missing {
        /// The kernel's release.
        release: String,
        /// The module.
        name: String,
        /// The configuration, or the module that depends on it.
        wanted_by: String,
    },
    /// A module isn't a proper ELF file, for instance because it is compressed.
    #[error(
        "{path} in the kernel package is not a module that this builder reads (compressed modules are not)"
    )]
    Unreadable {
        /// The module.
        path: String,
        /// The reason.
        #[source]
        source: elf::ElfError,
    },
    /// It doesn't fit into the image.
    #[error("cannot put {path} into the image")]
    Place {
        /// The module.
        path: String,
        /// The reason.
        #[source]
        source: TreeError,
    },
}

struct Module<'a> {
    path: &'a str,
    content: &'a [u8],
    depends: Vec<String>,
    aliases: Vec<String>,
}

/// Copies the wanted modules and all that they need from `kernel` (the unpacked kernel package) into `image`, and
/// writes `modules.dep`, `modules.alias` and `modules.builtin`. Returns the modules to load, in order, leaving out
/// those that the kernel has built in.
pub fn install(
    image: &mut Tree,
    kernel: &Tree,
    release: &str,
    load: &[ModuleName],
    available: &[ModuleName],
) -> Result<Vec<String>, ModulesError> {
    let base = format!("lib/modules/{release}/");
    let builtin_list = kernel.file(&format!("{base}modules.builtin")).unwrap_or_default();
    let builtin: BTreeSet<String> = String::from_utf8_lossy(builtin_list)
        .lines()
        .map(module_name)
        .collect();
    let paths: BTreeMap<String, (&str, &[u8])> = kernel
        .iter()
        .filter_map(|(path, node)| match &node.kind {
            Kind::File(content) if path.starts_with(&base) && path.ends_with(".ko") => {
                Some((module_name(path), (path, content.as_slice())))
            }
            _ => None,
        })
        .collect();
    let mut chosen: BTreeMap<String, Module<'_>> = BTreeMap::new();
    let mut queue: Vec<(String, String)> = load
        .iter()
        .chain(available)
        .map(|name| (name.to_string(), "the configuration".to_owned()))
        .collect();
    while let Some((name, wanted_by)) = queue.pop() {
        if builtin.contains(&name) || chosen.contains_key(&name) {
            continue;
        }
        let Some((path, content)) = paths.get(&name) else {
            return Err(ModulesError::Missing {
                release: release.to_owned(),
                name,
                wanted_by,
            });
        };
        let module = read(path, content)?;
        queue.extend(
            module
                .depends
                .iter()
                .map(|dependency| (dependency.clone(), name.clone())),
        );
        chosen.insert(name, module);
    }
    let mut dep = String::new();
    let mut alias = String::new();
    for (name, module) in &chosen {
        image
            .add_file(module.path, 0o644, module.content)
            .map_err(|source| ModulesError::Place {
                path: module.path.to_owned(),
                source,
            })?;
        dep.push_str(&format!("{}:", relative(module.path, &base)));
        for needed in closure(name, &chosen) {
            dep.push_str(&format!(" {}", relative(chosen[&needed].path, &base)));
        }
        dep.push('\n');
        for pattern in &module.aliases {
            alias.push_str(&format!("alias {pattern} {name}\n"));
        }
    }
    for (file, content) in [("modules.dep", dep), ("modules.alias", alias)] {
        let path = format!("{base}{file}");
        image
            .add_file(&path, 0o644, content)
            .map_err(|source| ModulesError::Place {
                path: path.clone(),
                source,
            })?;
    }
    let path = format!("{base}modules.builtin");
    image
        .add_file(&path, 0o644, builtin_list)
        .map_err(|source| ModulesError::Place { path, source })?;
    Ok(load
        .iter()
        .map(ToString::to_string)
        .filter(|name| !builtin.contains(name))
        .collect())
}

/// All that `name` needs, nearest first, as `modules.dep` wants it: modprobe loads from the right.
fn closure(name: &str, chosen: &BTreeMap<String, Module<'_>>) -> Vec<String> {
    let mut order: Vec<String> = Vec::new();
    let mut queue: Vec<String> = chosen[name].depends.clone();
    while let Some(next) = queue.pop() {
        if let Some(module) = chosen.get(&next) {
            // A module needed by two others must stand behind both.
            order.retain(|known| *known != next);
            order.push(next);
            queue.extend(module.depends.iter().cloned());
        }
    }
    order
}

fn relative<'a>(path: &'a str, base: &str) -> &'a str {
    path.strip_prefix(base).unwrap_or(path)
}

/// `kernel/drivers/char/hw_random/virtio-rng.ko` → `virtio_rng`, as the kernel names it.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.strip_suffix(".ko").unwrap_or(file).replace('-', "_")
}

fn read<'a>(path: &'a str, content: &'a [u8]) -> Result<Module<'a>, ModulesError> {
    let info = elf::section(content, ".modinfo")
        .map_err(|source| ModulesError::Unreadable {
            path: path.to_owned(),
            source,
        })?
        .unwrap_or_default();
    let mut module = Module {
        path,
        content,
        depends: Vec::new(),
        aliases: Vec::new(),
    };
    for field in info.split(|byte| *byte == 0) {
        let field = String::from_utf8_lossy(field);
        if let Some(names) = field.strip_prefix("depends=") {
            module
                .depends
                .extend(names.split(',').filter(|n| !n.is_empty()).map(module_name));
        } else if let Some(pattern) = field.strip_prefix("alias=") {
            module.aliases.push(pattern.to_owned());
        }
    }
    Ok(module)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&'static str, &[&str])]) -> BTreeMap<String, Module<'static>> {
        edges
            .iter()
            .map(|(name, depends)| {
                let depends = depends.iter().map(|d| (*d).to_owned()).collect();
                (
                    (*name).to_owned(),
                    Module {
                        path: name,
                        content: b"",
                        depends,
                        aliases: Vec::new(),
                    },
                )
            })
            .collect()
    }

    #[test]
    fn a_dependency_stands_behind_everything_that_needs_it() {
        let chosen = graph(&[
            ("pci", &["legacy", "modern", "ring", "virtio"]),
            ("legacy", &[]),
            ("modern", &[]),
            ("ring", &[]),
            ("virtio", &["ring"]),
        ]);
        let order = closure("pci", &chosen);
        let at = |name: &str| order.iter().position(|n| n == name).unwrap();
        assert_eq!(order.len(), 4);
        assert!(at("virtio") < at("ring"), "{order:?}");
    }

    #[test]
    fn names_are_the_kernels_own() {
        assert_eq!(
            module_name("kernel/drivers/char/hw_random/virtio-rng.ko"),
            "virtio_rng"
        );
        assert_eq!(module_name("ext4"), "ext4");
    }

    #[test]
    fn a_module_that_no_kernel_has_is_named_with_who_wants_it() {
        let mut kernel = Tree::default();
        kernel
            .add_file(
                "lib/modules/6.1/modules.builtin",
                0o644,
                "kernel/fs/ext4/ext4.ko\n",
            )
            .unwrap();
        let (ext4, floppy) = ("ext4".parse().unwrap(), "floppy".parse().unwrap());
        assert!(
            install(&mut Tree::default(), &kernel, "6.1", &[ext4], &[])
                .unwrap()
                .is_empty()
        );
        let error = install(&mut Tree::default(), &kernel, "6.1", &[floppy], &[]).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("no module \"floppy\" (needed by the configuration)"),
            "{error}"
        );
    }

    #[test]
    fn a_compressed_module_is_refused() {
        let mut kernel = Tree::default();
        kernel
            .add_file("lib/modules/6.1/kernel/a.ko", 0o644, *b"\xfd7zXZ\0")
            .unwrap();
        let error = install(&mut Tree::default(), &kernel, "6.1", &["a".parse().unwrap()], &[]).unwrap_err();
        assert!(matches!(error, ModulesError::Unreadable { .. }), "{error}");
    }
}
