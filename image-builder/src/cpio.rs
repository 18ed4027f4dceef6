//! The initrd: a cpio archive of the `newc` kind (kernel `Documentation/driver-api/early-userspace/buffer-format.rst`),
//! compressed.
//!
//! The same [`Tree`] always gives the same bytes: order is the tree's, inode numbers count up, every time is the one
//! given, and the compressors are linked in, so their version is pinned by the lock file of this workspace.

use std::io::{self, Write};

use crate::config::Compression;
use crate::tree::{Kind, Node, Tree};

/// Writes `tree` as one archive with all times set to `mtime` (seconds since 1970).
pub fn write(tree: &Tree, mtime: u32) -> Vec<u8> {
    let mut out = Vec::new();
    for (inode, (path, node)) in (1u32..).zip(tree.iter()) {
        append(&mut out, inode, path, node, mtime);
    }
    let trailer = Node {
        mode: 0,
        uid: 0,
        gid: 0,
        kind: Kind::File(Vec::new()),
    };
    append_raw(
        &mut out,
        [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        "TRAILER!!!",
        &trailer,
    );
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

fn append(out: &mut Vec<u8>, inode: u32, path: &str, node: &Node, mtime: u32) {
    let (kind, links, device) = match node.kind {
        Kind::Dir => (0o040_000, 2, (0, 0)),
        Kind::File(_) => (0o100_000, 1, (0, 0)),
        Kind::Symlink(_) => (0o120_000, 1, (0, 0)),
        Kind::Char(major, minor) => (0o020_000, 1, (major, minor)),
    };
    let size = content(node).len() as u32;
    let fields = [
        inode,
        kind | node.mode,
        node.uid,
        node.gid,
        links,
        mtime,
        size,
        0,
        0,
        device.0,
        device.1,
    ];
    append_raw(out, fields, path, node);
}

fn append_raw(out: &mut Vec<u8>, fields: [u32; 11], path: &str, node: &Node) {
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(format!("{:08X}{:08X}", path.len() + 1, 0).as_bytes());
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(content(node));
    out.resize(out.len().next_multiple_of(4), 0);
}

fn content(node: &Node) -> &[u8] {
    match &node.kind {
        Kind::File(content) => content,
        Kind::Symlink(target) => target.as_bytes(),
        Kind::Dir | Kind::Char(..) => &[],
    }
}

/// Compresses an archive so that the kernel's own decompressor reads it.
pub fn compress(archive: &[u8], how: Compression) -> io::Result<Vec<u8>> {
    match how {
        // The kernel refuses windows over 128 MiB; level 15 uses 4 MiB.
        Compression::Zstd => zstd(archive, 15),
        Compression::Lz4 => Ok(lz4_legacy(archive)),
    }
}

/// Compresses with Zstandard, at a level of at most 15.
pub fn zstd(archive: &[u8], level: i32) -> io::Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), level.min(15))?;
    encoder.include_checksum(true)?;
    encoder.set_pledged_src_size(Some(archive.len() as u64))?;
    encoder.write_all(archive)?;
    encoder.finish()
}

/// LZ4's legacy frame: a magic number, then blocks of 8 MiB, each after its compressed length.
fn lz4_legacy(archive: &[u8]) -> Vec<u8> {
    let mut out = 0x184C_2102u32.to_le_bytes().to_vec();
    for chunk in archive.chunks(8 << 20) {
        let block = lz4_flex::block::compress(chunk);
        out.extend_from_slice(&(block.len() as u32).to_le_bytes());
        out.extend_from_slice(&block);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn sample() -> Tree {
        let mut tree = Tree::default();
        tree.dir("etc", 0o755).unwrap();
        tree.add_file("etc/motd", 0o644, "hello\n").unwrap();
        tree.add_file("bin/odd-length", 0o755, "abcde").unwrap();
        tree.symlink("bin/sh", "odd-length").unwrap();
        tree.insert(
            "dev/console",
            Node {
                mode: 0o600,
                uid: 0,
                gid: 0,
                kind: Kind::Char(5, 1),
            },
        )
        .unwrap();
        tree
    }

    fn through(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}; apt-get install {program}"));
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        assert!(output.status.success(), "{program} refused the data");
        output.stdout
    }

    #[test]
    fn gnu_cpio_lists_what_was_written() {
        let listing = through(
            "cpio",
            &["-tv", "--numeric-uid-gid", "--quiet"],
            &write(&sample(), 0),
        );
        let listing = String::from_utf8(listing).unwrap();
        let rows: Vec<Vec<&str>> = listing
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let wanted = [
            ("drwxr-xr-x", "bin"),
            ("-rwxr-xr-x", "bin/odd-length"),
            ("lrwxrwxrwx", "odd-length"),
            ("drwxr-xr-x", "dev"),
            ("crw-------", "dev/console"),
            ("drwxr-xr-x", "etc"),
            ("-rw-r--r--", "etc/motd"),
        ];
        let found: Vec<_> = rows.iter().map(|row| (row[0], *row.last().unwrap())).collect();
        assert_eq!(found, wanted, "{listing}");
    }

    #[test]
    fn order_of_insertion_changes_no_byte() {
        let mut other = Tree::default();
        let nodes: Vec<_> = sample().iter().map(|(p, n)| (p.to_owned(), n.clone())).collect();
        for (path, node) in nodes.iter().rev() {
            other.insert(path, node.clone()).unwrap();
        }
        assert_eq!(write(&sample(), 7), write(&other, 7));
        assert_ne!(write(&sample(), 7), write(&sample(), 8));
    }

    #[test]
    fn the_usual_tools_decompress_both_kinds() {
        let archive = write(&sample(), 0).repeat(40_000); // 40 MB: several lz4 blocks
        for (how, tool) in [(Compression::Zstd, "zstd"), (Compression::Lz4, "lz4")] {
            let archive = if how == Compression::Zstd {
                &archive[..1 << 20]
            } else {
                &archive[..]
            };
            let packed = compress(archive, how).unwrap();
            assert!(
                through(tool, &["-dc"], &packed) == archive,
                "{tool} gave other bytes"
            );
        }
    }
}
