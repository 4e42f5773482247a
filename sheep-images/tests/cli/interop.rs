//! The same images by the other tools: what is in a tree is the same whoever made it.

use crate::harness::World;

/// All that there is to see in a tree: kinds, modes, owners, sizes, times, targets, devices, contents, which names are one file,
/// extended attributes, access control lists and capabilities. Not the size and links of directories, which are the file
/// system's, nor OverlayFS's own notes.
pub fn picture(world: &World, dir: &str) -> String {
    let script = r#"cd DIR || exit 1
        find . -type d -printf '%p d %m %U:%G %T@\n' | sort
        find . ! -type d -printf '%p %y %m %U:%G %s %T@ %l\n' | sort
        find . \( -type b -o -type c \) -exec stat -c '%n %t:%T' {} + | sort
        find . -type f -exec sha256sum {} + | sort
        find . ! -type d -links +1 -printf '%i %p\n' | sort | awk '{i=$1; $1=""; g[i]=g[i] $0; n[i]++} END {for (i in g) if (n[i] > 1) print "links:" g[i]}' | sort
        find . -print0 | sort -z | xargs -0 getfattr -hd -m '^(user|trusted|security)' -e hex -- 2>/dev/null | grep -av '^trusted.overlay'
        find . ! -type l -print0 | sort -z | xargs -0 getfacl -ns -- 2>/dev/null
        getcap -rn . 2>/dev/null | sort
        true"#;
    world.sh(&script.replace("DIR", dir)).ok()
}
