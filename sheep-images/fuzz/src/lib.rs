//! What the fuzz targets share: a directory with a canary beside it, archives with good checksums, and seeds.

#[path = "../../tests/cli/maker.rs"]
#[allow(dead_code)]
pub mod maker;

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sheep_images::cli::LimitArgs;

/// A directory of this process's own, in memory where the machine has such a place, with a canary in it.
pub struct Ground {
    dir: PathBuf,
    canary: String,
}

impl Ground {
    /// Makes it. What an earlier run left there under this process's number goes first.
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let top = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let dir = top.join(format!("sheep-fuzz-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let make = |dir: &Path| fs::DirBuilder::new().mode(0o700).create(dir).expect("a directory");
        make(&dir);
        make(&dir.join("work"));
        make(&dir.join("canary"));
        fs::write(dir.join("canary/c"), "alive").expect("a canary");
        fs::set_permissions(dir.join("canary/c"), fs::Permissions::from_mode(0o600)).expect("a canary");
        let mut ground = Ground { dir, canary: String::new() };
        ground.canary = ground.look();
        ground
    }

    /// Where a target may write.
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// The names, modes, owners, sizes, links and times of all that a target may not touch.
    fn look(&self) -> String {
        let mut text = String::new();
        for name in ["canary", "canary/c"] {
            let m = fs::symlink_metadata(self.dir.join(name)).expect("the canary is gone");
            let time = (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
            text.push_str(&format!(
                "{name} {:o} {} {} {} {} {time:?}\n",
                m.mode(),
                m.uid(),
                m.gid(),
                m.size(),
                m.nlink()
            ));
        }
        for dir in [self.dir.clone(), self.dir.join("canary")] {
            let mut names: Vec<_> =
                fs::read_dir(dir).expect("the ground").map(|e| e.expect("entry").file_name()).collect();
            names.sort();
            text.push_str(&format!("{names:?}\n"));
        }
        text.push_str(&fs::read_to_string(self.dir.join("canary/c")).expect("the canary is gone"));
        text
    }

    /// Ends the process where something outside of [`Ground::work`] is not as it was.
    pub fn check(&self) {
        assert_eq!(self.look(), self.canary, "something got out");
    }
}

impl Default for Ground {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Limits that keep one run short.
pub fn limits() -> LimitArgs {
    LimitArgs { max_entries: 2000, max_bytes: 1 << 20, ..LimitArgs::default() }
}

/// An archive whose headers have good checksums: without them hardly a changed byte gets past the first look.
pub fn with_checksums(data: &[u8]) -> Vec<u8> {
    let mut archive = data.to_vec();
    for block in archive.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            let block: &mut [u8; 512] = block.try_into().expect("a block");
            *block = maker::Block(*block).summed();
        }
    }
    archive
}

/// With `$SHEEP_FUZZ_SEEDS`, writes a target's seeds into that directory and ends the process.
pub fn seed<S: IntoIterator<Item = Vec<u8>>>(seeds: impl FnOnce() -> S) {
    let Some(dir) = std::env::var_os("SHEEP_FUZZ_SEEDS") else { return };
    fs::create_dir_all(&dir).expect("the directory of seeds");
    for (number, seed) in seeds().into_iter().enumerate() {
        fs::write(Path::new(&dir).join(format!("seed-{number:02}")), seed).expect("a seed");
    }
    std::process::exit(0);
}

/// Small archives with every feature that the reader knows.
pub fn archives() -> Vec<Vec<u8>> {
    use maker::{Block, tar};
    let map: [(&[u8], &[u8]); 3] =
        [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"4096")];
    let old_sparse = Block::new(b"old", b'S')
        .size(512)
        .with(257, b"ustar  \0")
        .with(386, b"00000001000\0")
        .with(398, b"00000001000\0")
        .with(483, b"00000004000\0");
    let xattr: &[(&[u8], &[u8])] = &[
        (b"SCHILY.xattr.user.k", b"v\n1"),
        (b"SCHILY.xattr.trusted.overlay.redirect", b"/x"),
        (b"SCHILY.acl.access", b"user::rwx,user:33:r-x,group::r-x,mask::r-x,other::---"),
    ];
    vec![
        tar().dir(b"./").dir(b"a/").file(b"a/f", b"1").symlink(b"l", b"../../canary").file(b"l/x", b"2").end(),
        tar().dir(b"usr/bin").symlink(b"bin", b"usr/bin").file(b"bin/sh", b"x").hard(b"sh", b"bin/sh").end(),
        tar().hard(b"h", b"late").hard(b"h2", b"a/late").dir(b"a").file(b"late", b"").file(b"a/late", b"").end(),
        tar().long(b'L', &b"long/".repeat(30)).long(b'K', b"a/b/c").symlink(b"x", b"y").file(b"x/y/../z", b"").end(),
        tar().pax(b'x', &[(b"path", b"p/q"), (b"mtime", b"-1.5"), (b"size", b"3")]).file(b"r", b"abc").end(),
        tar().pax(b'g', &[(b"uid", b"7"), (b"path", b"g")]).pax(b'x', xattr).dir(b"x").file(b"y", b"").end(),
        tar().pax(b'x', &map).file(b"s", &[&b"2\n0\n512\n1024\n512\n"[..], &[0; 495], &[7; 1024]].concat()).end(),
        tar()
            .pax(b'x', &[(b"GNU.sparse.size", b"2048"), (b"GNU.sparse.map", b"0,512,1024,512")])
            .file(b"s", &[1; 1024])
            .end(),
        tar().block(old_sparse).content(&[9; 512]).end(),
        tar().file(b"a/.wh.f", b"").file(b"a/.wh..wh..opq", b"").file(b".wh.d", b"").dir(b"d").end(),
        tar()
            .block(Block::new(b"dev", b'3').with(329, b"0000001\0").with(337, b"0000003\0"))
            .block(Block::new(b"fifo", b'6'))
            .block(Block::new(b"label", b'V'))
            .block(Block::new(b"white", b'3'))
            .file(b"dev", b"x")
            .end(),
        tar().dir(b"d/e/f").file(b"d", b"1").dir(b"d").symlink(b"d", b"/").file(b"d/e", b"").file(b"\xff\n", b"").end(),
    ]
}
